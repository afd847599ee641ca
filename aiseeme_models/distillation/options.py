"""How a stage's backbone is held to an earlier one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from aiseeme_models.distillation.base import distillations
from aiseeme_models.options import Options, parse_options


class DistillOptions(Options):
    """``L = pretext_weight * L_pretext + weight * L_distill``; both defaults are those of the AISEEME project.

    Attributes:
        kind: the registered way to compare features.
        teacher: ``"stage"``: the global backbone at the end of the stage before, so that what was learnt there is not
            forgotten. ``"round"``: the global backbone of the round, so that the sites do not drift apart.
        weight: of the distance between the features.
        pretext_weight: of the pretext task's loss.
        options: the kind's own options.
    """

    kind: str = "kl"
    teacher: Literal["stage", "round"] = "stage"
    weight: float = Field(default=1.0, gt=0, le=1e6)
    pretext_weight: float = Field(default=0.1, ge=0, le=1e6)
    options: SerializeAsAny[Options] = Field(default_factory=Options)

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_kind(cls, data: Any) -> Any:
        if isinstance(data, dict):
            name, given = str(data.get("kind", "kl")), data.get("options", {})
            kind = distillations[name].options_type
            if isinstance(given, dict):
                data = {**data, "options": parse_options(kind, given, where="options", owner=name)}
        return data
