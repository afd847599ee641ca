"""The folder of a hospital's client: key, settings, catalogue, cache and the site's own log."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from client.site_config import SiteConfig, load_site_config
from client.site_key import SiteKey

if TYPE_CHECKING:
    from aiseeme_models.images.cache import CacheStore
    from client.catalogue import Catalogue

HOME_VARIABLE = "AISEEME_SITE"
SETTINGS = "site.toml"


def site_home(given: Path | None) -> SiteHome:
    """The home given, else ``$AISEEME_SITE``, else ``site`` here."""
    return SiteHome(given or Path(os.environ.get(HOME_VARIABLE, "site")))


class SiteHome:
    """Everything that the client keeps; the images themselves stay where they are.

    Args:
        folder: made, readable by its owner only, when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> SiteConfig:
        """The site's settings; raises InputError for a mistake in ``site.toml``."""
        return load_site_config(self.folder / SETTINGS)

    @cached_property
    def key(self) -> SiteKey:
        """The site's secret, made when it is first needed."""
        self._made()
        return SiteKey.load_or_create(self.folder / "site.key")

    @cached_property
    def catalogue(self) -> Catalogue:
        """The site's catalogue of images."""
        from client.catalogue import Catalogue

        return Catalogue(self._made() / "catalogue.sqlite", self.key)

    @property
    def store(self) -> CacheStore:
        """Where decoded images are kept."""
        from aiseeme_models.images.cache import CacheStore

        options = self.config.cache
        return CacheStore(
            root=self.folder / "cache" if options.folder is None else Path(options.folder),
            key=self.key.cache_key if options.encrypt else None,
            budget_bytes=None if options.budget_gb is None else int(options.budget_gb * 10**9),
        )

    @property
    def log(self) -> logging.Logger:
        """The site's own log, which may name files; nothing of it ever leaves the site."""
        return private_log(self.folder)

    def _made(self) -> Path:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, mode=0o700)
        return self.folder


class _PrivateLog(logging.FileHandler):
    """A file only the site reads. Where it cannot be written, nothing is shown elsewhere: records may name patients."""

    def _open(self):  # type: ignore[no-untyped-def]
        os.close(os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT, 0o600))
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""


def private_log(folder: Path) -> logging.Logger:
    """The log ``site.log`` in ``folder``, readable by its owner only; made with its first record."""
    logger = logging.getLogger(f"aiseeme.site.{folder.resolve()}")
    if not logger.handlers:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _PrivateLog(folder / "site.log", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    return logger
