"""A hospital as the client sees itself: its name, its images, and where its state lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.images.cache import CacheStore
from aiseeme_models.images.decode_pool import DecodeLimits
from aiseeme_models.images.splits import Split
from client.site_home import private_log

if TYPE_CHECKING:
    import logging

    from aiseeme_models.images.cached_images import CachedImages
    from aiseeme_models.images.presets import ImageOptions
    from client.gate import Gate
    from client.privacy import PrivacyBudget
    from client.scanning import CatalogueRow
    from federation_configs.schema import HoldOut


@dataclass(frozen=True)
class Labelled:
    """Preprocessed images and what each shows. Labels leave a site in no form."""

    images: CachedImages
    labels: list[str]


@dataclass(frozen=True)
class Site:
    """One hospital.

    Attributes:
        name: what the federation calls it.
        folder: where its images are; rows name files below it.
        rows: the accepted images of its catalogue.
        rejected: how many files and images were not accepted, by reason.
        store: where decoded images are kept.
        state_folder: where what must stay at the site between rounds is kept (queues, optimiser state, log).
        limits: what decoding one file may cost.
        device: a torch device string.
        gate: checks and enters every request at a real site; None in a simulation.
        budget: what may be spent of the patients' privacy, at a real site.
        survey: gives the site with the images of its catalogue, for images of one kind, anew where that is True; None
            where the rows are given.
        on_step: called with (site name, step, steps, loss) while training, for progress on this machine only.
    """

    name: str
    folder: Path
    rows: Sequence[CatalogueRow]
    store: CacheStore
    state_folder: Path
    rejected: dict[str, int] = field(default_factory=dict)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    device: str = "cpu"
    gate: Gate | None = None
    budget: PrivacyBudget | None = None
    survey: Callable[[ImageOptions, bool], Site] | None = None
    on_step: Callable[[str, int, int, float], None] | None = None
    _opened: dict[tuple[str, Split, str], tuple[CachedImages, list[CatalogueRow]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def with_rows(self, name: str, rows: Sequence[CatalogueRow], state_folder: Path) -> Site:
        """A simulated site of the same folder with other images, which knows nothing of this one's."""
        return replace(self, name=name, rows=rows, state_folder=state_folder, _opened={})

    def rows_of(self, split: Split, holdout: HoldOut) -> list[CatalogueRow]:
        """The accepted images of a split, in an order that depends on their content only."""
        chosen = [row for row in self.rows if holdout.split_of(row.point) == split]
        return sorted(chosen, key=lambda row: row.content)

    def training_patients(self, holdout: HoldOut) -> int:
        """How many patients have images in the training split, by the catalogue: no image is looked at."""
        return len({row.group for row in self.rows_of("train", holdout)})

    def images(self, options: ImageOptions, split: Split, holdout: HoldOut) -> CachedImages:
        """The preprocessed images of a split; what the cache lacks is decoded first, what cannot be is left out."""
        return self._open(options, split, holdout)[0]

    def patients_of_images(self, options: ImageOptions, split: Split, holdout: HoldOut) -> list[str]:
        """Whose each of `images` is: pseudonyms of patients, or of what is known in their place."""
        return [row.group for row in self.rows_of_images(options, split, holdout)]

    def rows_of_images(self, options: ImageOptions, split: Split, holdout: HoldOut) -> list[CatalogueRow]:
        """The catalogue's row of each of `images`."""
        return self._open(options, split, holdout)[1]

    def labelled(self, options: ImageOptions, split: Split, holdout: HoldOut) -> Labelled:
        """Those of `images` that have a label."""
        images, rows = self._open(options, split, holdout)
        places = [place for place, row in enumerate(rows) if row.label is not None]
        return Labelled(images.only(places), [str(rows[place].label) for place in places])

    def _open(self, options: ImageOptions, split: Split, holdout: HoldOut) -> tuple[CachedImages, list[CatalogueRow]]:
        from aiseeme_models.images.cache import ImageCache
        from aiseeme_models.images.filling import WantedImage, fill

        key = (options.pipeline.key, split, holdout.model_dump_json())
        if key not in self._opened:
            rows = self.rows_of(split, holdout)
            cache = ImageCache(self.store, options.pipeline)
            bad = fill(cache, [WantedImage(row.content, self.folder / row.file) for row in rows], self.limits)
            if bad:
                self.log.warning("%d images of the catalogue can no longer be used", len(bad))
            usable = [row for row in rows if row.content not in bad]
            self._opened[key] = cache.open([row.content for row in usable]), usable
        return self._opened[key]

    @property
    def log(self) -> logging.Logger:
        """The site's own log, a file in its state folder. It may name files; nothing of it ever leaves the site."""
        return private_log(self.state_folder)
