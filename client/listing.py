"""What the catalogue holds, for the eyes of the hospital: names of files are shown, so nothing of it leaves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiseeme_models.errors import InputError
from aiseeme_models.images.rejection import RejectReason
from client.catalogue import ACCEPTED, DUPLICATE, FileRow, ImageRow
from client.site_home import SiteHome


@dataclass(frozen=True)
class ListedImage:
    """An image, or a file that has none that can be used (``frame`` is None).

    Attributes:
        file: its path below the folder.
        frame: its number in the file.
        status: accepted, quarantined, duplicate, rejected or vanished.
        reasons: why it is not used, as fixed words.
        modality, rows, columns, photometric, encoding, bits: see `ImageFacts`; empty for a rejected file.
        patient, study: pseudonyms.
        cohort: what the hospital calls these images.
        flags: ``saturated``, or nothing.
        content: sha256 of the file.
    """

    file: str
    frame: int | None
    status: str
    reasons: tuple[str, ...]
    modality: str
    rows: int
    columns: int
    photometric: str
    encoding: str
    bits: int
    patient: str
    study: str
    cohort: str
    flags: tuple[str, ...]
    content: str

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def list_images(home: SiteHome, folder: Path) -> list[ListedImage]:
    """Everything that the last scan of ``folder`` found, by name.

    Raises:
        InputError: the folder was never scanned.
    """
    wanted = folder.resolve()
    for source, path, cohort, _ in home.catalogue.sources():
        if path == wanted:
            listed = [_listed(home, file, image, cohort) for file, image in home.catalogue.listing(source)]
            return sorted(listed, key=lambda image: (image.file, image.frame or 0))
    raise InputError(f"{folder}: was not scanned yet: `aiseeme-site scan` does it")


def _listed(home: SiteHome, file: FileRow, image: ImageRow | None, cohort: str) -> ListedImage:
    name = home.key.unseal(file.path)
    if image is None:
        status = "rejected" if file.present else "vanished"
        why: tuple[str, ...] = (file.reason,) if file.reason else ()
        return ListedImage(name, None, status, why, "", 0, 0, "", "", 0, "", "", cohort, (), file.content)
    reasons = tuple(word for word in image.findings.split(",") if word) if image.status != ACCEPTED else ()
    return ListedImage(
        file=name,
        frame=image.frame,
        status=image.status if file.present else "vanished",
        reasons=(RejectReason.DUPLICATE.value,) if image.status == DUPLICATE else reasons,
        modality=image.modality,
        rows=image.rows,
        columns=image.columns,
        photometric=image.photometric,
        encoding=image.encoding,
        bits=image.bits,
        patient=image.patient,
        study=image.study,
        cohort=cohort,
        flags=("saturated",) if image.saturated else (),
        content=file.content,
    )
