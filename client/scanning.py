"""From a hospital's folder to its catalogue: what is new is decoded, what is known is not, everything has a reason."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiseeme_models.errors import InputError
from aiseeme_models.images.cache import ImageCache
from aiseeme_models.images.decode_pool import DecodedFile, DecodedImage, DecodePool, DecodeTask
from aiseeme_models.images.filling import WantedImage, fill, image_key
from aiseeme_models.images.labels import POINT_COLUMN, LabelRow, Labels
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.images.published import labels_of
from aiseeme_models.images.reading import read_bytes
from aiseeme_models.images.rejection import ImageRejected, RejectReason
from aiseeme_models.images.splits import split_point
from client.catalogue import ACCEPTED, DUPLICATE, QUARANTINED, Catalogue, KnownFile
from client.grouping import Identity, group, names_somebody
from client.scan_result import CatalogueRow, LeftOut, Scan
from client.site_home import SiteHome
from client.walking import IMAGES_FOLDER, FoundFile, Stamp, image_root, walk

__all__ = ["CatalogueRow", "LeftOut", "Scan", "scan"]

DEFAULT_COHORT = "default"

_FILES_AT_ONCE = 500
_SECONDS_AT_ONCE = 5.0


def scan(
    folder: Path,
    home: SiteHome,
    pipeline: Pipeline,
    *,
    cohort: str = DEFAULT_COHORT,
    on_file: Callable[[], None] | None = None,
) -> Scan:
    """Catalogue the images of ``folder`` and make sure that they are in the cache of ``pipeline``.

    Where ``<folder>/images`` exists only that is read; else the folder and everything below it. Files that are as
    they were at the last scan are not opened. Of several equal images the first by name counts.

    Args:
        folder: the hospital's folder, with an optional labels.csv at its top.
        home: the site's catalogue, cache, key and policy.
        pipeline: what images become.
        cohort: what the hospital calls these images.
        on_file: called once per file that is decoded, for a progress bar.

    Raises:
        InputError: no such folder, not one usable image in it, or a mistake in labels.csv or site.toml.
    """
    started = time.perf_counter()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    root = image_root(folder)
    if root.resolve() == home.folder.resolve():
        raise InputError(f"{folder}: is the site's home; --home names another folder for key, catalogue and cache")
    labels = labels_of(folder)
    with home.catalogue.scanning():
        work = _Work(folder, root, home, pipeline, cohort)
        work.decode(on_file)
        done = work.outcome(labels)
        # A copy that takes the place of a vanished original was not cached while it was a copy.
        lacking = work.cache.missing(row.content for row in done.rows)
        wanted = [WantedImage(row.content, root / row.file) for row in done.rows if row.content in lacking]
        fill(work.cache, wanted, home.config.intake.limits)
    if not done.rows:
        raise InputError(_nothing_usable(root, done))
    return replace(done, seconds=time.perf_counter() - started)


class _Work:
    """One scan, step by step."""

    def __init__(self, folder: Path, root: Path, home: SiteHome, pipeline: Pipeline, cohort: str) -> None:
        self.folder, self.root = folder, root
        self.intake = home.config.intake
        self.log = home.log
        self.catalogue: Catalogue = home.catalogue
        self.key = home.key
        self.cache = ImageCache(home.store, pipeline)
        self.source = self.catalogue.source(folder, cohort)
        found, self.unlisted = walk(root, home.folder, home.store.root)
        self.found = {self.key.pseudonym("path", file.name): file for file in found}
        self.known = self.catalogue.known_files(self.source)
        self.images = self.catalogue.image_rows(self.source)
        self.decoded = self.images_decoded = 0
        self.logged: set[str] = set()
        limits = self.intake.limits
        self.attempt = f"{_readers()}, {limits.seconds:g} s, {limits.memory_bytes} bytes, {pipeline.key}"

    def decode(self, on_file: Callable[[], None] | None) -> None:
        """Bring catalogue and cache up to date; what is done lasts, whatever happens to the rest."""
        wanted = self._to_decode()
        tasks = (
            DecodeTask(number, self.root / self.found[key].name, self.found[key].stamp[0])
            for number, key in enumerate(wanted)
        )
        with DecodePool(self.cache.pipeline, self.intake.limits, self.intake.admitted) as pool:
            for batch in _batches(self._outcomes(pool, tasks, on_file)):
                self._write([(wanted[outcome.number], outcome) for outcome in batch])
        unopened = [key for key, file in self.found.items() if file.reason is not None and self._is_news(key, file)]
        self._write([(key, DecodedFile(0, "", self.found[key].reason)) for key in unopened])
        gone = [known.id for key, known in self.known.items() if known.present and key not in self.found]
        back = [known.id for key, known in self.known.items() if not known.present and key in self.found]
        self.catalogue.mark_present(gone, False)
        self.catalogue.mark_present(back, True)
        self.vanished = sum(key not in self.found for key in self.known)
        if wanted or unopened or gone or back:
            self.known = self.catalogue.known_files(self.source)
            self.images = self.catalogue.image_rows(self.source)

    def outcome(self, labels: Labels | None) -> Scan:
        """Decide under the present policy what is accepted, and join what labels.csv says."""
        files = {key: file.name for key, file in self.found.items()}
        self.images.sort(key=lambda row: (files.get(row.path_key, ""), row.frame))
        seen: set[str] = set()
        changes: dict[int, str] = {}
        accepted, left_out = [], [LeftOut(name, None, RejectReason.UNREADABLE) for name in self.unlisted]
        saturated = 0
        for row in self.images:
            findings = _findings(row) - self.intake.admitted
            if findings:
                status, reason = QUARANTINED, min(findings, key=list(RejectReason).index)
                left_out.append(LeftOut(files[row.path_key], row.frame, reason))
            elif row.pixel_hash in seen:
                status = DUPLICATE
                left_out.append(LeftOut(files[row.path_key], row.frame, RejectReason.DUPLICATE))
            else:
                status = ACCEPTED
                seen.add(row.pixel_hash)
                accepted.append(row)
                saturated += row.saturated
            if status != row.status:
                changes[row.id] = status
        for key, known in self.known.items():
            if known.reason and key in self.found:
                left_out.append(LeftOut(files[key], None, RejectReason(known.reason)))
        self.catalogue.set_status(changes)
        self.catalogue.scan_done(self.source)
        left_out.sort(key=lambda item: (item.file, item.frame or 0))
        for item in left_out:
            if item.file in self.logged:
                self.log.info("not used: %r, image %s: %s", item.file, item.frame, item.reason.value)
        return Scan(
            folder=self.folder,
            root=self.root,
            rows=self._joined(accepted, files, labels),
            left_out=tuple(left_out),
            missing=_missing(labels, set(files.values())),
            vanished=self.vanished,
            saturated=saturated,
            decoded=self.decoded,
            images_decoded=self.images_decoded,
            seconds=0.0,
        )

    def _to_decode(self) -> list[str]:
        """Files that are new, changed, or whose accepted images the cache lacks, in the order of their names."""
        # Another window or size may show something in what was blank to the pipeline of an earlier scan.
        blank = {row.path_key for row in self.images if RejectReason.NEAR_BLANK in _findings(row)}
        wanted: set[str] = set()
        restamped: dict[int, Stamp] = {}
        for key, file in self.found.items():
            if file.reason is not None:
                continue
            known = self.known.get(key)
            retried = known is not None and (
                known.reason == RejectReason.UNREADABLE
                or ((known.reason or key in blank) and known.readers != self.attempt)
            )
            if known is None or retried:
                wanted.add(key)
            elif known.stamp != file.stamp:
                if self._same_content(file, known):
                    restamped[known.id] = file.stamp
                else:
                    wanted.add(key)
        self.catalogue.restamp(restamped)
        usable = {
            row.key: row.path_key
            for row in self.images
            if row.status != DUPLICATE and row.path_key in self.found and self.intake.admitted >= _findings(row)
        }
        wanted |= {usable[missing] for missing in self.cache.missing(usable)}
        return [key for key in self.found if key in wanted]

    def _same_content(self, file: FoundFile, known: KnownFile) -> bool:
        """Whether a file that was touched or copied still holds the bytes that were catalogued."""
        if not known.content or known.stamp[0] != file.stamp[0]:
            return False
        try:
            return hashlib.sha256(read_bytes(self.root / file.name)).hexdigest() == known.content
        except ImageRejected:
            return False

    def _is_news(self, key: str, file: FoundFile) -> bool:
        known = self.known.get(key)
        return known is None or known.reason != file.reason or known.stamp != file.stamp

    def _outcomes(
        self, pool: DecodePool, tasks: Iterable[DecodeTask], on_file: Callable[[], None] | None
    ) -> Iterator[DecodedFile]:
        for outcome in pool.decode(tasks, self._keep):
            for image in outcome.images:
                self._keep(outcome.content, image)
            self.decoded += 1
            self.images_decoded += len(outcome.images)
            yield outcome
            if on_file is not None:
                on_file()

    def _keep(self, content: str, image: DecodedImage) -> None:
        if image.square is not None:
            self.cache.put(image_key(content, image.frame), image.square)

    def _write(self, outcomes: list[tuple[str, DecodedFile]]) -> None:
        """The pixels first, then the rows that say that they are there."""
        self.cache.commit()
        files = [self._file_row(key, outcome) for key, outcome in outcomes]
        self.catalogue.write(files, [self._image_rows(outcome) for _, outcome in outcomes])

    def _file_row(self, key: str, outcome: DecodedFile) -> dict[str, Any]:
        file = self.found[key]
        self.logged.add(file.name)
        size, mtime, ctime, inode = file.stamp
        return {
            "source_id": self.source,
            "path_key": key,
            "path": self.key.seal(file.name),
            "size": size,
            "mtime_ns": mtime,
            "ctime_ns": ctime,
            "inode": inode,
            "content": outcome.content,
            "reason": "" if outcome.reason is None else outcome.reason.value,
            "readers": self.attempt,
            "present": True,
        }

    def _image_rows(self, outcome: DecodedFile) -> list[dict[str, Any]]:
        rows = []
        for image in outcome.images:
            subject = image.subject
            patient = subject.patient.strip()
            patient = patient if names_somebody(patient) else ""
            named = patient or subject.study
            rows.append(
                {
                    "key": image_key(outcome.content, image.frame),
                    "frame": image.frame,
                    "pixel_hash": image.pixel_hash,
                    **vars(image.facts),
                    "patient": self.key.pseudonym("patient", patient) if patient else "",
                    "study": self.key.pseudonym("study", subject.study) if subject.study else "",
                    "series": self.key.pseudonym("series", subject.series) if subject.series else "",
                    "point": split_point(named) if named else None,
                    "findings": ",".join(image.findings),
                    "saturated": image.saturated,
                    "status": ACCEPTED if self.intake.admitted.issuperset(image.findings) else QUARANTINED,
                }
            )
        return rows

    def _joined(self, images: list[Any], files: dict[str, str], labels: Labels | None) -> tuple[CatalogueRow, ...]:
        lines = [_line(labels, files[row.path_key], row.frame) for row in images]
        identities = [self._identity(row, line, files[row.path_key]) for row, line in zip(images, lines, strict=True)]
        return tuple(
            CatalogueRow(
                file=files[row.path_key],
                frame=row.frame,
                content=row.key,
                group=name,
                point=point,
                label=None if line is None else line.label,
                columns={} if line is None else line.columns,
            )
            for row, line, (name, point) in zip(images, lines, group(identities), strict=True)
        )

    def _identity(self, row: Any, line: LabelRow | None, file: str) -> Identity:
        """Everything that tells whose an image is, the file itself only where there is nothing else."""
        given = {} if line is None else line.columns
        tokens, points = [], []
        if given.get(POINT_COLUMN):
            points.append((-1, int(given[POINT_COLUMN])))
        for rank, (column, kind) in enumerate(_LABEL_IDS):
            if names_somebody(given.get(column, "")):
                tokens.append(self.key.pseudonym(kind, given[column]))
                points.append((rank, split_point(given[column])))
        tokens += [token for token in (row.patient, row.study, row.series) if token]
        if row.point is not None:
            points.append((len(_LABEL_IDS), row.point))
        if not tokens:
            tokens.append(row.path_key)
        if not points:
            points.append((len(_LABEL_IDS) + 1, split_point(file)))
        return Identity(tuple(tokens), min(points))


_LABEL_IDS = (("patient_id", "patient"), ("lesion_id", "lesion"), ("seriesuid", "series"))


def _findings(row: Any) -> set[RejectReason]:
    return {RejectReason(word) for word in row.findings.split(",") if word}


def _line(labels: Labels | None, file: str, frame: int) -> LabelRow | None:
    if labels is None:
        return None
    return labels.of(file, frame) or labels.of(f"{IMAGES_FOLDER}/{file}", frame)


def _missing(labels: Labels | None, there: set[str]) -> tuple[str, ...]:
    named = {row.file for row in labels.rows.values() if row.file} if labels is not None else set()
    return tuple(sorted(f for f in named if f not in there and f.removeprefix(f"{IMAGES_FOLDER}/") not in there))


def _batches(outcomes: Iterator[DecodedFile]) -> Iterator[list[DecodedFile]]:
    """A few seconds' outcomes at a time: what a killed scan loses."""
    batch: list[DecodedFile] = []
    since = time.monotonic()
    for outcome in outcomes:
        batch.append(outcome)
        if len(batch) >= _FILES_AT_ONCE or time.monotonic() - since > _SECONDS_AT_ONCE:
            yield batch
            batch, since = [], time.monotonic()
    yield batch


def _nothing_usable(root: Path, done: Scan) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in done.reasons.items())
    found = f"none of what is in it can be used ({counts})" if counts else "it is empty"
    policy = [word for word in done.reasons if RejectReason(word).is_policy]
    hint = f'; site.toml can let images in: [intake] admit = ["{policy[0]}"]' if policy else ""
    return f"{root}: no usable image: {found}; DICOM, NIfTI, PNG, JPEG, TIFF and npz patch sets are read{hint}"


@cache
def _readers() -> str:
    """Versions of what decodes: another version may read what this one could not."""
    return " ".join(f"{name} {version(name)}" for name in ("pillow", "pydicom", "imagecodecs", "nibabel"))
