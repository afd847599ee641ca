"""Pictures of where a run's model looks: on phantoms, or on images that may be shown.

A report is passed on, and whoever has it has what is in it. So it holds an image only where every one is a phantom, or
where the person who writes it names a folder and says with that that its images may be shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.downstream.classification import ClassificationOptions
from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import PHANTOM_COLUMN
from client.scanning import CatalogueRow, scan
from client.site_home import SiteHome
from client.stage_images import labelled_rows
from server.model_manifest import MODEL_FOLDER
from server.model_reference import FoundModel, find_model
from server.predicting import classifier_of
from server.probing import ready_backbone
from server.results import Results
from server.run_folder import PLAN, SimulationPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from server.progress import Progress

MOST = 8
_SIDE = 224


@dataclass(frozen=True)
class Panel:
    """One image.

    Attributes:
        image, looked: as it is, and with the map over it: ``data:`` URIs of PNG files.
        label: its class.
        predicted: what the classifier makes of it; None: the model is none.
    """

    image: str
    looked: str
    label: str
    predicted: str | None


@dataclass(frozen=True)
class Panels:
    """What a report shows.

    Attributes:
        cam: kind of class activation map.
        panels: the images.
        held_out: whether none of them is of a patient whom the run trained on, by the run's own holdout.
        phantom: whether all are phantoms; else somebody said that they may be shown.
    """

    cam: str
    panels: tuple[Panel, ...]
    held_out: bool
    phantom: bool


def panels_of(run_folder: Path, home: Path, consented: Path | None, progress: Progress) -> Panels | None:
    """Up to `MOST` images spread over the classes, those of test patients first.

    Args:
        run_folder: of a finished run.
        home: the folder of all runs.
        consented: a labelled folder whose images may be shown; None: the phantoms that a run of phantoms was played on.
        progress: told what is read.

    Raises:
        InputError: there is no model, no image of the folder that it is given can be shown, or the model's norm needs
            statistics of training images and there are fewer than two.
    """
    folders = [consented] if consented is not None else _phantom_folders(run_folder)
    if not folders or not (run_folder / MODEL_FOLDER).is_dir():
        if consented is not None:
            raise InputError(f"{run_folder}: no model here, so there is nothing to show on images")
        return None
    model = find_model(str(run_folder), home)
    site = SiteHome(home)
    rows: dict[str, CatalogueRow] = {}
    for folder in folders:
        with progress.reading(folder) as on_file:
            scanned = scan(folder, site, model.config.images.pipeline, on_file=on_file)
        rows |= {row.content: row for row in scanned.rows}
    phantom = all(row.columns.get(PHANTOM_COLUMN) == "yes" for row in rows.values())
    if consented is None and not phantom:
        return None  # another folder lies where the phantoms were
    chosen, held_out = _chosen(model, list(rows.values()))
    if not chosen:
        if consented is not None:
            raise InputError(f"{consented}: none of its images has a label that the model's classes know")
        return None
    training = [row for row in rows.values() if model.config.holdout.split_of(row.point) == "train"]
    cam, panels = _drawn(model, site, chosen, training)
    return Panels(cam, panels, held_out, phantom)


def _phantom_folders(run_folder: Path) -> list[Path]:
    if not Results.load(run_folder).phantom or not (run_folder / PLAN).is_file():
        return []
    folders = [Path(path) for path in SimulationPlan.load(run_folder).data]
    return folders if all(folder.is_dir() for folder in folders) else []


def _chosen(model: FoundModel, rows: Sequence[CatalogueRow]) -> tuple[list[tuple[CatalogueRow, str]], bool]:
    """Images with their classes, one of each patient or lesion, the classes by turns; whether all are test images."""
    options = model.config.curriculum.stage[-1].options
    if isinstance(options, ClassificationOptions):
        places, targets = labelled_rows(rows, options)
        known = [(rows[place], options.names[target]) for place, target in zip(places, targets, strict=True)]
    else:
        known = [(row, row.label) for row in rows if row.label is not None]
    test = [(row, label) for row, label in known if model.config.holdout.split_of(row.point) == "test"]
    by_class: dict[str, dict[str, CatalogueRow]] = {}
    for row, label in sorted(test or known, key=lambda one: one[0].content):
        by_class.setdefault(label, {}).setdefault(row.group, row)
    turns = zip_longest(*([(row, label) for row in by_class[label].values()] for label in sorted(by_class)))
    return [one for turn in turns for one in turn if one is not None][:MOST], bool(test)


def _drawn(
    model: FoundModel,
    site: SiteHome,
    chosen: Sequence[tuple[CatalogueRow, str]],
    training: Sequence[CatalogueRow],
) -> tuple[str, tuple[Panel, ...]]:
    import torch
    from torch import nn

    from aiseeme_models.analysis.cam import activation_maps
    from aiseeme_models.analysis.overlay import overlay
    from aiseeme_models.images.augmentation import BatchAugmentation
    from aiseeme_models.images.cache import ImageCache

    cache = ImageCache(site.store, model.config.images.pipeline)
    images = cache.open([row.content for row, _ in chosen]).batch(torch.arange(len(chosen)))  # (B, C, S, S)
    preset = model.config.images.resolved_preset
    normalised = BatchAugmentation.of(preset).plain(images)
    cam = "eigen-cam"
    head: nn.Module = nn.Identity()
    classes = torch.zeros(len(chosen), dtype=torch.long)
    predicted: Iterable[str | None] = [None] * len(chosen)
    seen = cache.open(sorted(row.content for row in training))
    backbone = ready_backbone(model.config, model.backbone, seen, device="cpu").eval()
    if model.manifest.head_sha256 is not None:
        network = classifier_of(model)
        with torch.no_grad():
            classes = network(normalised).argmax(dim=1)
        cam, head, backbone = "grad-cam", network.fc, network.backbone
        predicted = [model.manifest.classes[place] for place in classes.tolist()]
    maps = activation_maps[cam](backbone, head, normalised, classes).numpy()
    nothing = maps[0] * 0
    return cam, tuple(
        Panel(
            _uri(overlay(image, nothing, apart=preset.orthogonal)),
            _uri(overlay(image, heat, apart=preset.orthogonal)),
            label,
            name,
        )
        for image, heat, (_, label), name in zip(images.numpy(), maps, chosen, predicted, strict=True)
    )


def _uri(picture: NDArray[np.uint8]) -> str:
    """A PNG of a picture ``(H, W, 3)``, small enough for a page."""
    from PIL import Image

    image, content = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((_SIDE * max(1, round(image.width / image.height)), _SIDE))
    image.save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
