"""How well a trained classifier does its task on the simulated hospitals' test patients, pooled and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.downstream.calibration import fit_temperature
from aiseeme_models.downstream.classification import Classification, predicted
from aiseeme_models.downstream.floor import thumbnail_features
from aiseeme_models.downstream.metrics import ProbeScore, score_predictions
from aiseeme_models.downstream.probe import linear_probe
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.training.shared_state import layout_of
from client.own_head import OWN_HEAD, has_own_head, kept_head, with_own_head
from client.stage_images import StageImages, stage_images
from server.global_model import task_of
from server.results import Downstream

if TYPE_CHECKING:
    from aiseeme_models.images.splits import Split
    from client.site import Site
    from federation_configs.schema import FederationConfig

# Drawn from calibrated classes and made 1.25 times too sure, the calibration error of two classes is 0.029; with a
# temperature fitted on 20 images it becomes 0.049, on 50 0.030, on 100 0.025 (60 draws each).
_FEWEST_FOR_TEMPERATURE = 50


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
    config: FederationConfig, vector: NDArray[np.float32], sites: Sequence[Site], *, run: str, device: str
) -> Downstream | str:
    """Test the classifier in a run's final ``vector`` ``(P,)``, or say why it cannot be.

    Where every site has a head of its own, each site's images are tested with it; a site that has none tests nothing.

    An image that is in training or validation at any site tests nothing, and none tests twice.
    """
    classifiers = _classifiers(config, vector, sites, run)
    if not classifiers:
        return "the classifier was not tested: no site has a head"
    options = next(iter(classifiers.values())).options
    names = list(options.names)
    able = [site for site in sites if site.name in classifiers]
    tests = tested_images(config, able, sites)
    if not any(data.rows for data in tests.values()):
        return "the classifier was not tested: no test patient has a label of its classes"
    tested = {name: _predicted(config, classifiers[name], data, device) for name, data in tests.items()}
    trained = [stage_images(site, config, 0, "train") for site in able]
    labels = _labels(trained, names)
    held_out = {site.name: stage_images(site, config, 0, "validation") for site in able}
    validated = _together([_predicted(config, classifiers[name], data, device) for name, data in held_out.items()])
    enough = len(validated.truth) >= _FEWEST_FOR_TEMPERATURE
    temperature = fit_temperature(validated.probabilities, validated.truth) if enough else None
    pooled = _together(list(tested.values()))
    headless = [site.name for site in sites if site.name not in classifiers]
    notes = [f"{', '.join(headless)}: no head of its own, so nothing was tested there."] if headless else []
    return Downstream(
        mode=options.mode,
        head=options.head,
        classes=names,
        labels=options.labels,
        pooled=_score(pooled, names, labels, temperature, notes),
        sites={name: _score(one, names, labels, temperature) for name, one in tested.items() if len(one.truth)},
        n_validation=len(validated.truth) if enough else 0,
        floor=_floor(trained, list(tests.values()), names),
    )


def _classifiers(
    config: FederationConfig, vector: NDArray[np.float32], sites: Sequence[Site], run: str
) -> dict[str, Classification]:
    """The classifier of each site: the same for all, or one for each site that has kept a head."""
    task = task_of(config, 0, vector)
    assert isinstance(task, Classification)
    if not has_own_head(task):
        return {site.name: task for site in sites}
    layout, found = layout_of(task, config.model.norm), {}
    for site in sites:
        kept = kept_head(site, config, run)
        if kept is not None and OWN_HEAD in kept:
            own = task_of(config, 0, with_own_head(vector, layout, kept))
            assert isinstance(own, Classification)
            found[site.name] = own
    return found


def tested_images(config: FederationConfig, tested: Sequence[Site], sites: Sequence[Site]) -> dict[str, StageImages]:
    """The labelled test images of those ``tested``: none that trains or validates at any of ``sites``, none twice."""
    # All of them, labelled or not: what was pretrained on without a label tests nothing either.
    seen = {row.content for site in sites for split in _SEEN for row in site.rows_of(split, config.holdout)}
    tests: dict[str, StageImages] = {}
    for site in tested:
        tests[site.name] = _without(stage_images(site, config, 0, "test"), seen)
        seen |= {row.content for row in tests[site.name].rows}
    return tests


def assess_elsewhere(
    config: FederationConfig, task: Classification, data: StageImages, *, temperature: float | None, device: str
) -> ProbeScore:
    """The figures of a finished classifier on images of a place that its federation may never have seen.

    Args:
        config: the classifier's; says how images become the network's input.
        task: the classifier.
        data: labelled images, at least one.
        temperature: what its logits are divided by, found on validation images of its own federation.
        device: where to compute.
    """
    return _score(_predicted(config, task.to(device).eval(), data, device), list(task.options.names), None, temperature)


def _score(
    one: _Predicted,
    names: Sequence[str],
    trained: Sequence[str] | None,
    temperature: float | None,
    notes: Sequence[str] = (),
) -> ProbeScore:
    truth = [names[place] for place in one.truth]
    guess = [names[place] for place in one.probabilities.argmax(axis=1)]
    return score_predictions(
        trained,
        truth,
        guess,
        one.probabilities,
        names,
        notes=notes,
        patients=one.patients,
        temperature=temperature,
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


def _labels(parts: Sequence[StageImages], names: Sequence[str]) -> list[str]:
    return [names[place] for data in parts if data.targets is not None for place in data.targets.tolist()]


def _floor(trained: Sequence[StageImages], tested: Sequence[StageImages], names: Sequence[str]) -> ProbeScore | None:
    """What thumbnails tell; None where not one labelled image trains."""
    if not any(data.rows for data in trained):
        return None
    x, x_test = (
        np.concatenate([thumbnail_features(data.images) for data in parts if data.rows]) for parts in (trained, tested)
    )
    patients = [row.group for data in tested for row in data.rows]
    return linear_probe(x, _labels(trained, names), x_test, _labels(tested, names), seed=0, test_patients=patients)


def _together(parts: Sequence[_Predicted]) -> _Predicted:
    return _Predicted(
        np.concatenate([one.probabilities for one in parts]),
        np.concatenate([one.truth for one in parts]),
        [name for one in parts for name in one.patients],
    )
