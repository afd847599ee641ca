"""``aiseeme audit attention``: how much of networks' attention lies in the masks of lesions or lungs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from aiseeme_models.analysis.attention import energy_inside, mask_share, overlap
from aiseeme_models.analysis.attention_summary import Looked, LookedSummary, Mean, summarise
from aiseeme_models.analysis.cam import HEADLESS, activation_maps
from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.cache import ImageCache
from aiseeme_models.images.masks import mask_files, mask_of, read_mask
from aiseeme_models.images.splits import POINTS
from client.scanning import scan
from client.site_home import SiteHome
from client.walking import MASKS_FOLDER
from server.attention_networks import LookingNetwork, TrainingImages, networks_of
from server.model_reference import find_model

if TYPE_CHECKING:
    from aiseeme_models.images.cached_images import CachedImages
    from aiseeme_models.images.pipeline import Pipeline
    from client.scanning import CatalogueRow
    from server.model_reference import FoundModel
    from server.progress import Progress

FILE = "attention.json"
PRIOR = "where masks usually lie"
_BATCH = 64


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ToFirst(_Part):
    """A network's energy and IoU less those of the first, image by image, with 95 % intervals."""

    energy: float
    energy_low: float | None
    energy_high: float | None
    iou: float
    iou_low: float | None
    iou_high: float | None


class AttentionRow(_Part):
    """Where one network looks.

    Attributes:
        model: the run, the untrained start of one, or `PRIOR`: the mean mask of the other patients as a map, which
            knows where masks lie and has seen no image.
        kind: ``pretrained``, ``classifier``, ``untrained`` or ``prior``.
        head: whose logits the maps follow; None: they follow none.
        images: whose map is not 0 everywhere; the means are over them.
        zero_maps: the others.
        energy: share of the map inside the mask; None where every map is 0. ``low`` and ``high`` are ends of 95 %
            intervals over patients, None where there are too few.
        iou: intersection over union of the mask and the hottest half of the map.
        mask_share: of the image; the energy of a map that is the same everywhere.
        gain: energy less mask share.
        to_first: what sets it apart from the first model; None for that one.
    """

    model: str
    kind: str
    head: str | None
    images: int
    zero_maps: int
    energy: float | None = None
    energy_low: float | None = None
    energy_high: float | None = None
    iou: float | None = None
    iou_low: float | None = None
    iou_high: float | None = None
    mask_share: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    to_first: ToFirst | None = None


class AttentionAudit(_Part):
    """What is written as ``attention.json``.

    Attributes:
        cam: kind of class activation map.
        size: side of the images in pixels.
        map_size: side of the networks' last feature maps: what they can tell apart at all.
        patients: test patients or lesions whose images were looked at.
        test_images: of the folder.
        without_mask: of those, how many have none.
        empty_masks: of those with one, in how many nothing of it is in the image that the network sees.
        not_looked_at: left out as ``--images`` says.
        followed: how many maps of all networks followed the true class, and how many the predicted one.
        rows: the networks.
    """

    cam: str
    size: int
    map_size: int
    patients: int
    test_images: int
    without_mask: int
    empty_masks: int
    not_looked_at: int
    followed: dict[str, int]
    rows: list[AttentionRow]

    @property
    def sentences(self) -> list[str]:
        """What must be known to read the figures, a sentence each."""
        zero = {row.model: row.zero_maps for row in self.rows if row.zero_maps}
        heads = sorted({row.model for row in self.rows if row.head == "linear probe"})
        followed = " and ".join(f"the {which} ({count:,} maps)" for which, count in self.followed.items() if count)
        told = [
            (followed, f"a map follows the logit of {followed}"),
            (heads, f"a linear probe, fitted to images that are not looked at, is the head of {', '.join(heads)}"),
            (self.without_mask, f"without a mask: {self.without_mask:,} of {self.test_images:,} test images"),
            (self.empty_masks, f"masks that are empty where the network looks, left out: {self.empty_masks:,}"),
            (self.not_looked_at, f"more than --images, not looked at: {self.not_looked_at:,} test images"),
            *((count, f"maps that are 0 everywhere, left out: {count:,} of {model}") for model, count in zero.items()),
            (True, f"the maps have {self.map_size} x {self.map_size} cells over {self.size} x {self.size} px"),
        ]
        return [sentence for is_so, sentence in told if is_so]


@dataclass(frozen=True)
class _Masked:
    """Images with their masks.

    Attributes:
        rows: the catalogue's row of each.
        masks: ``(N, S, S)`` bool.
        without: images that have none.
        empty: masks with nothing in them.
        over: images more than were asked for.
    """

    rows: list[CatalogueRow]
    masks: NDArray[np.bool_]
    without: int
    empty: int
    over: int


def audit_attention(
    references: Sequence[str],
    data: Path,
    *,
    masks: Path | None,
    cam: str,
    images: int,
    untrained: bool,
    device: str,
    home: Path,
    progress: Progress,
) -> AttentionAudit:
    """Look where models look, on the same test images of a folder; writes `FILE` into the first run's folder.

    Args:
        references: one model or more, see `find_model`.
        data: an image folder.
        masks: the folder of masks; None: ``masks`` in ``data``.
        cam: kind of class activation map.
        images: most test images to look at.
        untrained: add the backbones that the runs began with.
        device: where to compute.
        home: the folder of all runs.
        progress: shows what happens.

    Raises:
        InputError: a model is unreadable, models see images prepared in different ways, there is no mask, a mask fits
            no image, or a head is needed and cannot be fitted.
    """
    activation_maps[cam]  # an unknown kind is said before any work
    models = [find_model(reference, home) for reference in references]
    pipeline = _pipeline_of(models)
    there = mask_files(data / MASKS_FOLDER if masks is None else masks)
    site = SiteHome(home)
    with progress.reading(data) as on_file:
        scanned = scan(data, site, pipeline, on_file=on_file)
    tested = min(model.config.holdout.test for model in models) * POINTS
    trained = max(model.config.holdout.test for model in models) * POINTS
    test = [row for row in scanned.rows if row.point < tested]
    if not test:
        raise InputError(f"{data}: no patient or lesion fell into the test split, and only those are looked at")
    masked = _masked(scanned.root, test, there, pipeline, images)
    cache = ImageCache(site.store, pipeline)
    fitting = sorted((row for row in scanned.rows if row.point >= trained), key=lambda row: row.content)
    training = TrainingImages(cache.open([row.content for row in fitting]), fitting)
    headless = cam in HEADLESS
    networks = networks_of(models, training, headless=headless, untrained=untrained, device=device, say=progress.say)
    opened = cache.open([row.content for row in masked.rows])
    patients = [row.group for row in masked.rows]
    followed: Counter[str] = Counter()
    looked = []
    for network in networks:
        progress.say(f"{cam} of {network.model} on {len(masked.rows)} images")
        looked.append(_look(network, opened, masked, cam, device, followed))
    looked.append(_prior(masked.masks, patients))
    summaries = summarise(looked, mask_share(torch.from_numpy(masked.masks)).double().numpy(), patients)
    named = [(one.model, one.kind, None if headless else one.head_from) for one in networks]
    audit = AttentionAudit(
        cam=cam,
        size=pipeline.size,
        map_size=_map_size(networks[0], pipeline, device),
        patients=len(set(patients)),
        test_images=len(test),
        without_mask=masked.without,
        empty_masks=masked.empty,
        not_looked_at=masked.over,
        followed=dict(followed),
        rows=[_row(*who, one) for who, one in zip([*named, (PRIOR, "prior", None)], summaries, strict=True)],
    )
    write_atomically(models[0].folder.parent / FILE, audit.model_dump_json(indent=2).encode())
    return audit


def _pipeline_of(models: Sequence[FoundModel]) -> Pipeline:
    """What images become, for all models alike."""
    first = models[0]
    for place, model in enumerate(models[1:], start=1):
        if model.run in {earlier.run for earlier in models[:place]}:
            raise InputError(f"{model.run} is named twice")
        if model.config.images.pipeline != first.config.images.pipeline:
            raise InputError(
                f"{first.run} and {model.run} were trained on images prepared in different ways, so they do not see the"
                " same part of a picture: audit them one by one"
            )
    pipeline = first.config.images.pipeline
    if pipeline.orthogonal:
        raise InputError(f"{first.run} sees three planes at once, over which no mask lies")
    return pipeline


def _masked(
    root: Path, rows: Sequence[CatalogueRow], there: Mapping[str, Path], pipeline: Pipeline, most: int
) -> _Masked:
    """The images that have a mask, ``most`` of them at most, in an order that depends on their content only."""
    ordered = sorted(rows, key=lambda row: row.content)
    found = [(row, path) for row in ordered for path in [mask_of(there, row.file)] if path is not None]
    if not found:
        some, other = ordered[0].file, next(iter(there.values())).name
        raise InputError(
            f"none of the {len(rows)} test images has a mask: a mask is called as its image (an image is called {some},"
            f" a mask {other})"
        )
    kept, masks = [], []
    for row, path in found[:most]:
        mask = read_mask(path, root / row.file, pipeline, row.frame)
        if mask.any():
            kept.append(row)
            masks.append(mask)
    if not kept:
        raise InputError(f"all {len(found[:most])} masks of the test images are empty")
    return _Masked(
        kept,
        np.stack(masks),
        without=len(rows) - len(found),
        empty=len(found[:most]) - len(kept),
        over=len(found[most:]),
    )


def _look(
    network: LookingNetwork, images: CachedImages, masked: _Masked, cam: str, device: str, followed: Counter[str]
) -> Looked:
    backbone, head = network.backbone.to(device).eval(), network.head.to(device).eval()
    plain = BatchAugmentation.of(network.config.images.resolved_preset).plain
    targets = network.targets(masked.rows)
    energy, iou = [], []
    for start in range(0, len(images), _BATCH):
        places = torch.arange(start, min(start + _BATCH, len(images)))
        batch = plain(images.batch(places).to(device))
        known = [targets[place] for place in places.tolist()]
        classes = torch.tensor([-1 if one is None else one for one in known], device=device)
        if cam not in HEADLESS:
            with torch.no_grad():
                classes = torch.where(classes < 0, head(backbone(batch)).argmax(dim=1), classes)
            followed["true class"] += sum(one is not None for one in known)
            followed["predicted class"] += sum(one is None for one in known)
        maps = activation_maps[cam](backbone, head, batch, classes).cpu()
        masks = torch.from_numpy(masked.masks[places.numpy()])
        energy.append(energy_inside(maps, masks).double().numpy())
        iou.append(overlap(maps, masks).double().numpy())
    return Looked(np.concatenate(energy), np.concatenate(iou))


def _prior(masks: NDArray[np.bool_], patients: Sequence[str]) -> Looked:
    """The mean mask of all other patients as each image's map."""
    total = masks.sum(axis=0, dtype=np.float64)  # (S, S)
    of_patient: dict[str, list[int]] = {}
    for place, patient in enumerate(patients):
        of_patient.setdefault(patient, []).append(place)
    energy, iou = np.zeros(len(masks)), np.zeros(len(masks))
    for places in of_patient.values():
        own = torch.from_numpy(masks[places])
        others = torch.from_numpy(total - masks[places].sum(axis=0)).float()
        maps = others.expand(len(places), *others.shape)
        energy[places] = energy_inside(maps, own).numpy()
        iou[places] = overlap(maps, own).numpy()
    return Looked(energy, iou)


def _map_size(network: LookingNetwork, pipeline: Pipeline, device: str) -> int:
    with torch.no_grad():
        blank = torch.zeros(1, *pipeline.shape, device=device)
        return int(network.backbone.to(device).eval().forward_map(blank).shape[-1])


def _row(model: str, kind: str, head: str | None, found: LookedSummary) -> AttentionRow:
    figures = {name: _ends(name, found.means[name]) for name in ("energy", "iou", "gain") if name in found.means}
    flat = {key: value for part in figures.values() for key, value in part.items()}
    share = found.means.get("share")
    between = {key: value for name, mean in found.to_first.items() for key, value in _ends(name, mean).items()}
    return AttentionRow(
        model=model,
        kind=kind,
        head=head,
        images=found.images,
        zero_maps=found.zero_maps,
        mask_share=None if share is None else share.value,
        to_first=ToFirst.model_validate(between) if between else None,
        **flat,
    )


def _ends(name: str, mean: Mean) -> dict[str, float | None]:
    low, high = (None, None) if mean.interval is None else (mean.interval.low, mean.interval.high)
    return {name: mean.value, f"{name}_low": low, f"{name}_high": high}
