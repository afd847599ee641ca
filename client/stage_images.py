"""The images that a stage is trained on or measured with at this site, and, where it learns labels, their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.grouping import lasting_names

if TYPE_CHECKING:
    from torch import Tensor

    from aiseeme_models.downstream.classification import ClassificationOptions
    from aiseeme_models.images.cached_images import CachedImages
    from aiseeme_models.images.splits import Split
    from client.scan_result import CatalogueRow
    from client.site import Site
    from federation_configs.schema import FederationConfig


@dataclass(frozen=True)
class StageImages:
    """What a stage sees of a split.

    Attributes:
        images: preprocessed.
        rows: the catalogue's row of each.
        targets: ``(N,)`` int64 their classes, which leave a site in no form; None where the stage looks at no label.
    """

    images: CachedImages
    rows: list[CatalogueRow]
    targets: Tensor | None


def stage_images(site: Site, config: FederationConfig, stage: int, split: Split) -> StageImages:
    """The images of a split for a stage: all of them, or where it learns labels those that have one it knows.

    Where a stage asks for a share of the labelled patients, the others' training images are left out.
    """
    from aiseeme_models.downstream.classification import ClassificationOptions

    options = config.curriculum.stage[stage].options
    images = site.images(config.images, split, config.holdout)
    rows = site.rows_of_images(config.images, split, config.holdout)
    if not isinstance(options, ClassificationOptions):
        return StageImages(images, rows, None)
    places, targets = labelled_rows(rows, options)
    if split == "train" and options.labels < 1:
        kept = _some([rows[place] for place in places], targets, options.labels, config.seed)
        places, targets = [places[place] for place in kept], [targets[place] for place in kept]
    import torch

    return StageImages(images.only(places), [rows[place] for place in places], torch.tensor(targets, dtype=torch.long))


def labelled_rows(rows: Sequence[CatalogueRow], options: ClassificationOptions) -> tuple[list[int], list[int]]:
    """The positions of the rows whose label means a class, and the class's place."""
    class_of, places, targets = options.class_of, [], []
    for place, row in enumerate(rows):
        label = row.told(options.column)
        if label is not None and label in class_of:
            places.append(place)
            targets.append(class_of[label])
    return places, targets


def _some(rows: Sequence[CatalogueRow], targets: Sequence[int], share: float, seed: int) -> list[int]:
    from aiseeme_models.downstream.finetune import labelled_subset

    return labelled_subset([f"{target:03d}" for target in targets], lasting_names(rows), share, seed)
