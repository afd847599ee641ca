"""The probe of a run: frozen features of the pretrained backbone, beside a random one and the thumbnail floor."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiseeme_models.images.splits import split_at
from server.results import Baselines, Probes

if TYPE_CHECKING:
    from aiseeme_models.backbones import Backbone
    from aiseeme_models.images.cache import CacheStore
    from aiseeme_models.images.cached_images import CachedImages
    from client.scanning import CatalogueRow
    from federation_configs.schema import FederationConfig


@dataclass(frozen=True)
class ProbeOutcome:
    """Scores, or why there are none."""

    probe: Probes | None
    baselines: Baselines | None
    note: str | None


@dataclass(frozen=True)
class _Labelled:
    images: CachedImages
    labels: list[str]


def probe_run(
    config: FederationConfig,
    backbone: Backbone,
    rows: Sequence[CatalogueRow],
    store: CacheStore,
    *,
    device: str,
    say: Callable[[str], None],
) -> ProbeOutcome:
    """Probe a backbone on labelled images: train on all but the test split's patients or lesions, test on those.

    Args:
        config: says how images become arrays, who is held out, and k.
        backbone: the pretrained one.
        rows: catalogue rows of all sites; those without a label are left out.
        store: where the rows' decoded images are.
        device: where features are computed.
        say: told what is being done.
    """
    from aiseeme_models.downstream.floor import thumbnail_floor
    from aiseeme_models.images.augmentation import BatchAugmentation
    from server.global_model import new_backbone

    labelled = [row for row in rows if row.label is not None]
    # An image that two hospitals hold under different ids may be in pretraining at one: then it tests nothing.
    seen = {row.content for row in rows if not _is_test(config, row)}
    test = list({row.content: row for row in labelled if _is_test(config, row) and row.content not in seen}.values())
    train = list({row.content: row for row in labelled if not _is_test(config, row)}.values())
    if (note := _impossible(train, test)) is not None:
        return ProbeOutcome(None, None, note)
    preset = config.images.resolved_preset
    plain = BatchAugmentation(preset.augmentation, preset.mean, preset.std).plain
    train_set, test_set = _open(config, train, store), _open(config, test, store)

    def score(candidate: Backbone) -> Probes:
        from aiseeme_models.downstream.features import extract_features, recalibrate_batch_norm
        from aiseeme_models.downstream.probe import knn_probe, linear_probe

        if config.model.norm == "batch-local":
            candidate = copy.deepcopy(candidate)  # the delivered model does not depend on what it is probed with
            recalibrate_batch_norm(candidate, train_set.images, plain, device=device)
        x = extract_features(candidate, train_set.images, plain, device=device)
        x_test = extract_features(candidate, test_set.images, plain, device=device)
        y, y_test = train_set.labels, test_set.labels
        return Probes(
            linear=linear_probe(x, y, x_test, y_test, seed=config.seed),
            knn=knn_probe(x, y, x_test, y_test, k=config.probe.k),
        )

    say(f"probing on {len(train)} labelled images, testing on {len(test)} of other patients or lesions")
    pretrained = score(backbone)
    say("probing the same backbone before training, and the thumbnail floor")
    random = score(new_backbone(config))
    floor = thumbnail_floor(train_set.images, train_set.labels, test_set.images, test_set.labels)
    return ProbeOutcome(pretrained, Baselines(random=random, floor=floor), None)


def _is_test(config: FederationConfig, row: CatalogueRow) -> bool:
    return split_at(row.point, test=config.holdout.test, validation=config.holdout.validation) == "test"


def _impossible(train: Sequence[CatalogueRow], test: Sequence[CatalogueRow]) -> str | None:
    if not train and not test:
        return "no probe: the images have no labels (a labels.csv with the columns file and label gives them)"
    if not test:
        return "no probe: no labelled patient or lesion fell into the test split"
    if len(Counter(row.label for row in train)) < 2:
        return "no probe: the labelled images outside the test split are of fewer than two classes"
    return None


def _open(config: FederationConfig, rows: Sequence[CatalogueRow], store: CacheStore) -> _Labelled:
    from aiseeme_models.images.cache import ImageCache

    ordered = sorted(rows, key=lambda row: row.content)
    cache = ImageCache(store, config.images.pipeline)
    return _Labelled(cache.open([row.content for row in ordered]), [str(row.label) for row in ordered])
