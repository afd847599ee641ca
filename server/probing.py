"""The probe of a run: frozen features of the pretrained backbone, beside a random one and the thumbnail floor."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from aiseeme_models.images.splits import Split
from server.results import Baselines, Probes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aiseeme_models.backbones import Backbone
    from aiseeme_models.downstream.folds import Fold
    from aiseeme_models.downstream.metrics import ProbeScore
    from aiseeme_models.images.augmentation import BatchAugmentation
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
class LabelledImages:
    """Decoded images with their labels and, for each, the catalogue's pseudonym of its patient or lesion."""

    images: CachedImages
    labels: list[str]
    rows: list[CatalogueRow]

    @property
    def patients(self) -> list[str]:
        """The pseudonym of each image's patient or lesion."""
        return [row.group for row in self.rows]


@dataclass(frozen=True)
class ProbeImages:
    """What probes train and test on, and how images become the network's input.

    Attributes:
        train: labelled images of patients or lesions that do not test.
        test: labelled images of the others, none of which is in pretraining at any site.
    """

    config: FederationConfig
    train: LabelledImages
    test: LabelledImages
    device: str

    def score(self, candidate: Backbone) -> Probes:
        """Linear and k-NN probe of frozen features."""
        return self.probes(*self.features(candidate))

    def features(self, candidate: Backbone) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Frozen features ``(N, D)`` of the training images and ``(M, D)`` of the test images."""
        from aiseeme_models.downstream.features import extract_features

        candidate = self.ready(candidate)
        plain = self.augmentation.plain
        train, test = (
            extract_features(candidate, images, plain, device=self.device)
            for images in (self.train.images, self.test.images)
        )
        return train, test

    def probes(self, x: NDArray[np.float32], x_test: NDArray[np.float32]) -> Probes:
        """Linear and k-NN probe of `features`."""
        from aiseeme_models.downstream.probe import knn_probe, linear_probe

        y, y_test, who = self.train.labels, self.test.labels, self.test.patients
        return Probes(
            linear=linear_probe(x, y, x_test, y_test, seed=self.config.seed, test_patients=who),
            knn=knn_probe(x, y, x_test, y_test, k=self.config.probe.k, test_patients=who),
        )

    def probes_in_folds(self, x: NDArray[np.float32], x_test: NDArray[np.float32], folds: Sequence[Fold]) -> Probes:
        """Linear and k-NN probe of `features` in folds of patients, over training and test images together."""
        from aiseeme_models.downstream.folds import score_in_folds
        from aiseeme_models.downstream.probe import knn_votes, linear_votes

        both, labels = np.concatenate([x, x_test]), self.all_labels
        knn = partial(knn_votes, k=self.config.probe.k)
        return Probes(
            linear=score_in_folds(linear_votes, both, labels, folds),
            knn=score_in_folds(knn, both, labels, folds),
        )

    def floor_in_folds(self, folds: Sequence[Fold]) -> ProbeScore:
        """The score of a thumbnail and the colours in folds of patients, over training and test images together."""
        from aiseeme_models.downstream.floor import thumbnail_features
        from aiseeme_models.downstream.folds import score_in_folds
        from aiseeme_models.downstream.probe import linear_votes

        x = np.concatenate([thumbnail_features(self.train.images), thumbnail_features(self.test.images)])
        return score_in_folds(linear_votes, x, self.all_labels, folds)

    @property
    def all_labels(self) -> list[str]:
        """Labels of the training images, then of the test images."""
        return [*self.train.labels, *self.test.labels]

    def floor(self) -> ProbeScore:
        """The score of a thumbnail and the colours."""
        from aiseeme_models.downstream.floor import thumbnail_floor

        train, test = self.train, self.test
        return thumbnail_floor(train.images, train.labels, test.images, test.labels, test_patients=test.patients)

    def ready(self, candidate: Backbone) -> Backbone:
        """See `ready_backbone`."""
        return ready_backbone(self.config, candidate, self.train.images, device=self.device)

    @property
    def augmentation(self) -> BatchAugmentation:
        """The domain's random views; its ``plain`` is what probes see."""
        from aiseeme_models.images.augmentation import BatchAugmentation

        return BatchAugmentation.of(self.config.images.resolved_preset)


def ready_backbone(config: FederationConfig, candidate: Backbone, training: CachedImages, *, device: str) -> Backbone:
    """``candidate``, or where its norm keeps no statistics a copy that has those of the training images."""
    from aiseeme_models.downstream.features import recalibrate_batch_norm
    from aiseeme_models.images.augmentation import BatchAugmentation

    if config.model.norm != "batch-local":
        return candidate
    candidate = copy.deepcopy(candidate)  # the delivered model does not depend on what it is probed with
    plain = BatchAugmentation.of(config.images.resolved_preset).plain
    recalibrate_batch_norm(candidate, training, plain, device=device)
    return candidate


def probe_images(
    config: FederationConfig,
    rows: Sequence[CatalogueRow],
    store: CacheStore,
    *,
    device: str,
    tested: Split = "test",
) -> ProbeImages | str:
    """The labelled images of a probe, or the reason why there can be none.

    Args:
        config: says how images become arrays, who is held out, and k.
        rows: catalogue rows of all sites; those without a label are left out.
        store: where the rows' decoded images are.
        device: where features are computed.
        tested: whose patients test. With ``"validation"`` (to choose between settings) those of the test split are not
            looked at; with ``"test"`` validation patients train the probe.
    """
    splits = [config.holdout.split_of(row.point) for row in rows]
    # An image that two hospitals hold under different ids may be in pretraining at one: then it tests nothing.
    training: set[Split] = {"train"} if tested == "validation" else {"train", "validation"}
    seen = {row.content for row, split in zip(rows, splits, strict=True) if split in training}
    labelled = [(row, split) for row, split in zip(rows, splits, strict=True) if row.label is not None]
    test = list({row.content: row for row, split in labelled if split == tested and row.content not in seen}.values())
    train = list({row.content: row for row, split in labelled if split in training}.values())
    if (note := _impossible(train, test, tested)) is not None:
        return note
    return ProbeImages(config, _open(config, train, store), _open(config, test, store), device)


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
    from server.global_model import new_backbone

    sets = probe_images(config, rows, store, device=device)
    if isinstance(sets, str):
        return ProbeOutcome(None, None, sets)
    train, test = len(sets.train.labels), len(sets.test.labels)
    say(f"probing on {train} labelled images, testing on {test} of other patients or lesions")
    pretrained = sets.score(backbone)
    say("probing the same backbone before training, and the thumbnail floor")
    return ProbeOutcome(pretrained, Baselines(random=sets.score(new_backbone(config)), floor=sets.floor()), None)


def _impossible(train: Sequence[CatalogueRow], test: Sequence[CatalogueRow], tested: Split) -> str | None:
    if not train and not test:
        return "no probe: the images have no labels (a labels.csv with the columns file and label gives them)"
    if not test:
        return f"no probe: no labelled patient or lesion fell into the {tested} split"
    if len(Counter(row.label for row in train)) < 2:
        return f"no probe: the labelled images outside the {tested} split are of fewer than two classes"
    return None


def _open(config: FederationConfig, rows: Sequence[CatalogueRow], store: CacheStore) -> LabelledImages:
    from aiseeme_models.images.cache import ImageCache

    ordered = sorted(rows, key=lambda row: row.content)
    cache = ImageCache(store, config.images.pipeline)
    return LabelledImages(cache.open([row.content for row in ordered]), [str(row.label) for row in ordered], ordered)
