"""``aiseeme audit sites``: whether what a model makes of an image gives away which simulated hospital it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from aiseeme_models.analysis.site_inference import FEWEST_PATIENTS, SiteInference, infer_sites, shared_classes
from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.downstream.features import extract_features
from aiseeme_models.downstream.floor import thumbnail_features
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.cache import ImageCache
from server.audited_hospitals import audited_hospitals
from server.global_model import load_classifier, new_backbone
from server.model_reference import find_model
from server.probing import ready_backbone
from server.results import Text

if TYPE_CHECKING:
    from aiseeme_models.images.cached_images import CachedImages
    from server.model_reference import FoundModel
    from server.progress import Progress
    from server.simulation import Hospitals

FILE = "audit-sites.json"
_LEAST_PROBABILITY = 1e-6


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Told(_Part):
    """See `SiteInference`."""

    balanced_accuracy: float
    low: float | None
    high: float | None
    p: float
    images: int
    patients: int

    @classmethod
    def of(cls, found: SiteInference) -> Told:
        """The same, to be written."""
        return cls.model_validate(vars(found))


class Attack(_Part):
    """One kind of attacker.

    Attributes:
        sees: what of each image.
        dimensions: how many figures that are.
        all_images: how well hospitals are told from it.
        same_class: likewise where every class counts the same at every hospital; None where no class is at all of them.
    """

    sees: str
    dimensions: int
    all_images: Told
    same_class: Told | None


class SiteAudit(_Part):
    """What is written as ``audit-sites.json``.

    Attributes:
        run: whose model.
        sites: test images of each simulated hospital.
        chance: of naming a hospital without looking.
        classes: those of ``same_class``: all hospitals have enough patients of them.
        left_out: hospitals with too few test patients, and how many those have.
        rows: the attackers.
    """

    run: str
    sites: dict[Text, int]
    chance: float
    classes: list[Text]
    left_out: dict[Text, int]
    rows: list[Attack]

    @property
    def sentences(self) -> list[str]:
        """What must be known to read the figures, a sentence each."""
        counts = ", ".join(f"{name} {images:,}" for name, images in self.sites.items())
        few = ", ".join(f"{name} ({patients})" for name, patients in self.left_out.items())
        told = [f"test images: {counts}"]
        if few:
            told.append(f"left out, with fewer than {FEWEST_PATIENTS} test patients: {few}")
        if self.classes:
            told.append(f"of the same class: {', '.join(self.classes)}, each counting the same at every hospital")
        else:
            told.append(
                f"no class has {FEWEST_PATIENTS} test patients at every hospital, so other classes cannot be told from"
                " other devices"
            )
        return told


@dataclass(frozen=True)
class _TestImages:
    """Images of patients who are in no training, and at which simulated hospital each is.

    Attributes:
        images: decoded.
        training: the images that the hospitals trained on.
        sites, patients: of each image.
        labels: of each image, None where there is none.
        left_out: see `SiteAudit`.
    """

    images: CachedImages
    training: CachedImages
    sites: list[str]
    patients: list[str]
    labels: list[str | None]
    left_out: dict[str, int]


def audit_sites(
    reference: str,
    data: Sequence[Path],
    *,
    sites: int | None,
    partition: str | None,
    device: str,
    home: Path,
    progress: Progress,
) -> SiteAudit:
    """Attack a model's features, and a classifier's class probabilities; writes `FILE` into the run's folder.

    Beside them: the untrained backbone, a thumbnail of the image, and the image's class alone.

    Args:
        reference: see `find_model`.
        data: as in `server.simulation.simulate`; none: the images and hospitals of the run's own simulation.
        sites, partition: likewise.
        device: where features are computed.
        home: the folder of all runs.
        progress: shows what happens.

    Raises:
        InputError: the model is unreadable, the data do not fit, or fewer than two hospitals have test patients enough.
    """
    found = find_model(reference, home)
    with audited_hospitals(
        found, data, sites=sites, partition=partition, device=device, home=home, progress=progress
    ) as hospitals:
        test = _test_images(hospitals, found)
    shared = shared_classes(test.sites, test.patients, test.labels)
    progress.say(
        f"attacking {len(test.sites)} test images of {len(set(test.patients))} patients or lesions at"
        f" {len(set(test.sites))} hospitals"
    )
    rows = []
    for name, seen in _seen(found, test, device).items():
        progress.say(f"an attacker sees: {name}")
        rows.append(
            Attack(
                sees=name,
                dimensions=seen.shape[1],
                all_images=Told.of(infer_sites(seen, test.sites, test.patients, seed=found.config.seed)),
                same_class=_matched(seen, test, shared, found.config.seed),
            )
        )
    names = sorted(set(test.sites))
    audit = SiteAudit(
        run=found.run,
        sites={name: test.sites.count(name) for name in names},
        chance=1 / len(names),
        classes=shared,
        left_out=test.left_out,
        rows=rows,
    )
    write_atomically(found.folder.parent / FILE, audit.model_dump_json(indent=2).encode())
    return audit


def _matched(seen: NDArray[np.float32], test: _TestImages, shared: Sequence[str], seed: int) -> Told | None:
    """The attack on the images of the classes that all hospitals have."""
    places = [place for place, label in enumerate(test.labels) if label in shared]
    if not places:
        return None
    return Told.of(
        infer_sites(
            seen[places],
            [test.sites[place] for place in places],
            [test.patients[place] for place in places],
            classes=[str(test.labels[place]) for place in places],
            seed=seed,
        )
    )


def _test_images(hospitals: Hospitals, found: FoundModel) -> _TestImages:
    """Test patients of all hospitals; an image that trains at any, or is at another too, is nobody's."""
    holdout, pipeline = found.config.holdout, found.config.images.pipeline
    training = [row for site in hospitals.sites for row in site.rows_of("train", holdout)]
    validating = [row for site in hospitals.sites for row in site.rows_of("validation", holdout)]
    seen = {row.content for row in (*training, *validating)}
    placed = []
    for site in hospitals.sites:
        fresh = [row for row in site.rows_of("test", holdout) if row.content not in seen]
        seen |= {row.content for row in fresh}
        placed += [(site.name, row) for row in fresh]
    patients = {site.name: len({row.group for name, row in placed if name == site.name}) for site in hospitals.sites}
    enough = [name for name, count in patients.items() if count >= FEWEST_PATIENTS]
    if len(enough) < 2:
        counts = ", ".join(f"{name} {count}" for name, count in patients.items())
        raise InputError(
            f"hospitals are told apart by {FEWEST_PATIENTS} test patients or more at two of them at least; there are"
            f" {counts}: give more images, or take a run with a larger holdout.test"
        )
    kept = [(name, row) for name, row in placed if name in enough]
    cache = ImageCache(hospitals.sites[0].store, pipeline)
    return _TestImages(
        images=cache.open([row.content for _, row in kept]),
        training=cache.open(sorted({row.content for row in training})),
        sites=[name for name, _ in kept],
        patients=[row.group for _, row in kept],
        labels=[row.label for _, row in kept],
        left_out={name: count for name, count in patients.items() if name not in enough},
    )


def _seen(found: FoundModel, test: _TestImages, device: str) -> Mapping[str, NDArray[np.float32]]:
    """What each attacker sees of the images, ``(N, D)``."""
    config = found.config
    plain = BatchAugmentation.of(config.images.resolved_preset).plain
    backbones = {"features": found.backbone, "features of the untrained backbone": new_backbone(config)}
    seen = {
        name: extract_features(
            ready_backbone(config, one, test.training, device=device), test.images, plain, device=device
        )
        for name, one in backbones.items()
    }
    if found.manifest.head_sha256 is not None:
        seen["class probabilities"] = _log_probabilities(found, seen["features"])
    seen["thumbnail and colours"] = thumbnail_features(test.images)
    classes = sorted({label for label in test.labels if label is not None})
    if classes:
        seen["true class alone"] = np.array(
            [[label == name for name in classes] for label in test.labels], dtype=np.float32
        )
    return seen


def _log_probabilities(found: FoundModel, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """A classifier's probabilities as it tells them, in logarithms: what a linear attacker makes most of."""
    import torch

    network = load_classifier(found.folder, found.backbone)
    with torch.no_grad():
        logits = network.fc.to("cpu")(torch.from_numpy(features)) / network.temperature
        told: NDArray[np.float32] = logits.softmax(dim=1).clamp(min=_LEAST_PROBABILITY).log().numpy()
    return told
