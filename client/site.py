"""A hospital as the client sees itself: its name, its images, and where its state lives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.images.splits import Split, split_of

if TYPE_CHECKING:
    from aiseeme_models.images.cache import CachedImages
    from aiseeme_models.images.presets import ImageOptions
    from client.catalogue import CatalogueRow
    from federation_configs.schema import HoldOut


class _PrivateLog(logging.FileHandler):
    """A file only the site reads. Where it cannot be written, nothing is shown elsewhere: records may name patients."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""


@dataclass(frozen=True)
class Site:
    """One hospital.

    Attributes:
        name: what the federation calls it.
        folder: where its images are; rows name files below it.
        rows: the accepted images of its catalogue.
        rejected: how many files were not accepted, by reason.
        cache_root: where decoded images are kept.
        state_folder: where what must stay at the site between rounds is kept (queues, optimiser state, log).
        device: a torch device string.
        on_step: called with (site name, step, steps, loss) while training, for progress on this machine only.
    """

    name: str
    folder: Path
    rows: Sequence[CatalogueRow]
    cache_root: Path
    state_folder: Path
    rejected: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    on_step: Callable[[str, int, int, float], None] | None = None
    _opened: dict[tuple[str, Split, str], CachedImages] = field(default_factory=dict, repr=False, compare=False)

    def rows_of(self, split: Split, holdout: HoldOut) -> list[CatalogueRow]:
        """The accepted images of a split, in an order that depends on their content only."""
        chosen = [
            row for row in self.rows if split_of(row.group, test=holdout.test, validation=holdout.validation) == split
        ]
        return sorted(chosen, key=lambda row: row.content)

    def images(self, options: ImageOptions, split: Split, holdout: HoldOut) -> CachedImages:
        """The preprocessed images of a split; what the cache lacks is decoded first, what cannot be is left out."""
        from aiseeme_models.images.cache import ImageCache
        from aiseeme_models.images.preprocessing import pipeline_key

        key = (pipeline_key(options), split, holdout.model_dump_json())
        if key not in self._opened:
            rows = self.rows_of(split, holdout)
            cache = ImageCache(self.cache_root, options)
            bad = cache.add({row.content: self.folder / row.file for row in rows})
            if bad:
                self.log.warning("%d files of the catalogue can no longer be used", len(bad))
            self._opened[key] = cache.open([row.content for row in rows if row.content not in bad])
        return self._opened[key]

    @property
    def log(self) -> logging.Logger:
        """The site's own log, a file in its state folder. It may name files; nothing of it ever leaves the site."""
        logger = logging.getLogger(f"aiseeme.site.{self.name}.{abs(hash(str(self.state_folder)))}")
        if not logger.handlers:
            self.state_folder.mkdir(parents=True, exist_ok=True)
            handler = _PrivateLog(self.state_folder / "site.log", delay=True)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(handler)
            logger.propagate = False
            logger.setLevel(logging.INFO)
        return logger
