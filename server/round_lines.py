"""What a round's lines in ``metrics.jsonl`` say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiseeme_models.curriculum.stages import Stage
from federation_configs.wire import TrainReply
from server.replies import Refused


def round_lines(
    common: Mapping[str, Any],
    options: Stage,
    counted: Mapping[str, TrainReply],
    refused: Mapping[str, Refused],
    summary: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One line for each site, in the order of their names, those that counted first; and one for the round.

    Args:
        common: what all lines have: round, stage, task.
        options: the stage.
        counted: the sites' replies.
        refused: why others did not count.
        summary: the round's own figures; those that are None stand as null, where they are in it.
    """
    there = [
        {
            **common,
            "site": name,
            "images": reply.images,
            "steps": reply.steps,
            "loss": reply.loss,
            "seconds": reply.seconds,
            **({} if reply.epsilon is None else {"epsilon": reply.epsilon}),
            **({} if reply.collapsed is None else {"collapsed": reply.collapsed}),
            "images_per_s": options.images_seen(reply.images) / max(reply.seconds, 1e-9),
        }
        for name, reply in sorted(counted.items())
    ]
    missed = [
        {**common, "site": name, "missed": why.code.value, "reason": why.sentence}
        for name, why in sorted(refused.items())
        if name not in counted
    ]
    return [*there, *missed, {**common, "event": "round", **summary}]
