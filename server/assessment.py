"""How well a trained classifier does its task on the simulated hospitals' test patients, pooled and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.downstream.calibration import fit_temperature
from aiseeme_models.downstream.classification import Classification, predicted
from aiseeme_models.downstream.metrics import ProbeScore, score_predictions
from aiseeme_models.images.augmentation import BatchAugmentation
from client.stage_images import StageImages, stage_images
from server.global_model import task_of
from server.results import Downstream

if TYPE_CHECKING:
    from aiseeme_models.images.splits import Split
    from client.site import Site
    from federation_configs.schema import FederationConfig

_FEWEST_FOR_TEMPERATURE = 20


@dataclass(frozen=True)
class _Predicted:
    """A classifier's answers to ``N`` images.

    Attributes:
        probabilities: ``(N, C)`` float64.
        truth: ``(N,)`` true columns.
        patients: ``N`` pseudonyms.
    """

    probabilities: NDArray[np.float64]
    truth: NDArray[np.int64]
    patients: list[str]


def assess(
    config: FederationConfig, vector: NDArray[np.float32], sites: Sequence[Site], *, device: str
) -> Downstream | str:
    """Test the classifier in a stage's final ``vector`` ``(P,)``, or say why it cannot be.

    An image that is in training or validation at any site tests nothing, and none tests twice.
    """
    task = task_of(config, 0, vector).to(device).eval()
    assert isinstance(task, Classification)
    options, names = task.options, list(task.options.names)
    # All of them, labelled or not: what was pretrained on without a label tests nothing either.
    seen = {row.content for site in sites for split in _SEEN for row in site.rows_of(split, config.holdout)}
    tested: dict[str, _Predicted] = {}
    for site in sites:
        data = _without(stage_images(site, config, 0, "test"), seen)
        seen |= {row.content for row in data.rows}
        tested[site.name] = _predicted(config, task, data, device)
    if not sum(len(one.truth) for one in tested.values()):
        return "the classifier was not tested: no test patient has a label of its classes"
    trained = [label for site in sites for label in _labels(stage_images(site, config, 0, "train"), names)]
    held_out = [stage_images(site, config, 0, "validation") for site in sites]
    validated = _together([_predicted(config, task, data, device) for data in held_out])
    enough = len(validated.truth) >= _FEWEST_FOR_TEMPERATURE
    temperature = fit_temperature(validated.probabilities, validated.truth) if enough else None

    def score(one: _Predicted) -> ProbeScore:
        truth = [names[place] for place in one.truth]
        guess = [names[place] for place in one.probabilities.argmax(axis=1)]
        return score_predictions(
            trained, truth, guess, one.probabilities, names, patients=one.patients, temperature=temperature
        )

    return Downstream(
        mode=options.mode,
        classes=names,
        labels=options.labels,
        pooled=score(_together(list(tested.values()))),
        sites={name: score(one) for name, one in tested.items() if len(one.truth)},
        n_validation=len(validated.truth) if enough else 0,
    )


_SEEN: tuple[Split, Split] = ("train", "validation")


def _without(data: StageImages, seen: set[str]) -> StageImages:
    places = [place for place, row in enumerate(data.rows) if row.content not in seen]
    assert data.targets is not None
    return StageImages(data.images.only(places), [data.rows[place] for place in places], data.targets[places])


def _predicted(config: FederationConfig, task: Classification, data: StageImages, device: str) -> _Predicted:
    plain = BatchAugmentation.of(config.images.resolved_preset).plain
    assert data.targets is not None
    found = predicted(task, data.images, plain, device=device)
    return _Predicted(found, data.targets.numpy(), [row.group for row in data.rows])


def _labels(data: StageImages, names: Sequence[str]) -> list[str]:
    assert data.targets is not None
    return [names[place] for place in data.targets.tolist()]


def _together(parts: Sequence[_Predicted]) -> _Predicted:
    return _Predicted(
        np.concatenate([one.probabilities for one in parts]),
        np.concatenate([one.truth for one in parts]),
        [name for one in parts for name in one.patients],
    )
