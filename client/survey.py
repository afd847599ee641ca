"""Which images a running site offers: what the folders that it scanned hold now, of the cohorts it lets in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from client.scanning import scan
from client.site import Site
from client.site_home import SiteHome

if TYPE_CHECKING:
    from aiseeme_models.images.presets import ImageOptions
    from client.scan_result import CatalogueRow


class Survey:
    """Gives a site with the images of its catalogue's folders, for one way of preprocessing them at a time.

    Args:
        home: the site's home; every folder that was scanned into its catalogue counts.
        site: what the site is apart from its images.
        cohorts: names of the cohorts that may be used; None: all.
        on_file: called once per file that has to be decoded.
    """

    def __init__(
        self,
        home: SiteHome,
        site: Site,
        cohorts: frozenset[str] | None,
        on_file: Callable[[], None] | None = None,
    ) -> None:
        self._home, self._cohorts, self._on_file = home, cohorts, on_file
        self._plain = replace(site, survey=self)
        self._key = ""
        self._site = self._plain

    @property
    def site(self) -> Site:
        """The site as it was surveyed last."""
        return self._site

    def __call__(self, options: ImageOptions, anew: bool) -> Site:
        """The site with its images; ``anew`` looks at the folders again, which opens only what has changed.

        A run that goes on keeps the images it began with: new ones count from the next description on.
        """
        key = options.pipeline.key
        if anew or key != self._key:
            self._site, self._key = self._surveyed(options), key
        return self._site

    def _surveyed(self, options: ImageOptions) -> Site:
        rows: dict[str, CatalogueRow] = {}
        rejected: dict[str, int] = {}
        for _, folder, cohort, _ in self._home.catalogue.sources():
            if self._cohorts is not None and cohort not in self._cohorts:
                continue
            try:
                done = scan(folder, self._home, options.pipeline, cohort=cohort, on_file=self._on_file)
            except InputError as error:  # a share that is not mounted, a folder that was emptied: the others count
                self._home.log.warning("a folder of the catalogue cannot be used now: %s", error)
                continue
            root = done.root.resolve()
            for row in done.rows:
                # One image in two folders is one image.
                rows.setdefault(row.content, replace(row, file=str(root / row.file)))
            for reason, count in done.reasons.items():
                rejected[reason] = rejected.get(reason, 0) + count
        return replace(self._plain, folder=Path("/"), rows=list(rows.values()), rejected=rejected, _opened={})
