"""The catalogue of a hospital's images: SQLite at the site, where nothing identifying is stored in clear.

Names of files and folders are encrypted under the site's key, patients, studies and series are pseudonyms under it.
A scan writes in transactions: after SIGKILL every row is whole, and the next scan goes on.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, UniqueConstraint, delete, event, insert, update
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
from sqlmodel import Field, Session, SQLModel, col, create_engine, select

from aiseeme_models.errors import InputError
from client.site_key import SiteKey

SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 60

ACCEPTED, QUARANTINED, DUPLICATE = "accepted", "quarantined", "duplicate"


class SourceRow(SQLModel, table=True):
    """A folder that was scanned.

    Attributes:
        folder_key: pseudonym of its path.
        folder: its path, encrypted.
        cohort: what the hospital calls these images.
        scanned: when the last scan ended, ISO 8601 in UTC; none while the first one is not done.
    """

    __tablename__ = "sources"

    id: int | None = Field(default=None, primary_key=True)
    folder_key: str = Field(unique=True)
    folder: bytes
    cohort: str
    scanned: str | None = None


class FileRow(SQLModel, table=True):
    """A file of a source.

    Attributes:
        path_key: pseudonym of its path below the source's folder.
        path: that path, encrypted.
        size, mtime_ns, ctime_ns, inode: as the file system says; unchanged means: not read again.
        content: sha256 of its bytes; "" where it cannot be read.
        reason: why nothing of it can be used, or "".
        readers: versions of the decoders that saw it, and their limits; what they rejected is tried again with others.
        present: whether the last scan found it.
    """

    __tablename__ = "files"
    __table_args__ = (UniqueConstraint("source_id", "path_key"),)

    id: int | None = Field(default=None, primary_key=True)
    source_id: int = Field(foreign_key="sources.id", index=True)
    path_key: str
    path: bytes
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    content: str
    reason: str
    readers: str
    present: bool = True


class ImageRow(SQLModel, table=True):
    """An image of a file.

    Attributes:
        key: of its decoded pixels in the cache.
        frame: its number in the file.
        pixel_hash: equal for equal images of any format.
        modality, rows, columns, photometric, encoding, bits: see `ImageFacts`.
        patient, study, series: pseudonyms, or "".
        point: split point of its patient, else its study (12 bits); none where the header names neither.
        findings: what a policy may object to, joined by commas.
        saturated: over a quarter of it is as bright as can be.
        status: accepted, quarantined or duplicate, under the policy of the last scan.
    """

    __tablename__ = "images"

    id: int | None = Field(default=None, primary_key=True)
    file_id: int = Field(foreign_key="files.id", index=True)
    key: str
    frame: int
    pixel_hash: str = Field(index=True)
    modality: str
    rows: int
    columns: int
    photometric: str
    encoding: str
    bits: int
    patient: str
    study: str
    series: str
    point: int | None
    findings: str
    saturated: bool
    status: str


@dataclass(frozen=True)
class KnownFile:
    """What the catalogue remembers of a file."""

    id: int
    stamp: tuple[int, int, int, int]
    content: str
    reason: str
    readers: str
    present: bool


class Catalogue:
    """The catalogue of one site. One scan at a time; readers are never in the way.

    Args:
        path: the database; made if it is not there.
        key: the site's.

    Raises:
        InputError: the file is no catalogue, or one of a later version.
    """

    def __init__(self, path: Path, key: SiteKey) -> None:
        self.path, self.key = path, key
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_TIMEOUT_S})
        event.listen(self._engine, "connect", _set_up)
        try:
            if self._pragma("user_version") == 0:
                with self.scanning():
                    self._create()
            if self._pragma("user_version") > SCHEMA_VERSION:
                raise InputError(f"{path}: written by a newer version of this program")
            if self._pragma("application_id") != self._key_check:
                raise InputError(f"{path}: written with another site key: put the right site.key back")
        except OperationalError as error:  # busy, full or read-only: SQLite's words name no content
            raise InputError(f"{path}: the catalogue cannot be used now: {error.orig}") from None
        except DatabaseError:
            raise InputError(
                f"{path}: not a catalogue, or damaged: move it away and scan again (the images are not touched)"
            ) from None

    def _create(self) -> None:
        """Make the tables, unless another process just did; the caller holds the lock of scans."""
        if self._pragma("user_version"):
            return
        with self._engine.connect() as connection:  # outside a transaction: a database's journal is set once
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        self.path.chmod(0o600)
        with self._engine.begin() as connection:
            tables = [_table(row) for row in (SourceRow, FileRow, ImageRow)]
            SQLModel.metadata.create_all(connection, tables=tables)
            connection.exec_driver_sql(f"PRAGMA application_id = {self._key_check}")
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _pragma(self, name: str) -> int:
        with self._engine.connect() as connection:
            return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

    @property
    def _key_check(self) -> int:
        """28 bits of a pseudonym: tells another key before it writes rows that the right one cannot read."""
        return int(self.key.pseudonym("check", "catalogue")[:7], 16) | 1

    @property
    def engine(self) -> Engine:
        """For tests and for tools that look into the database."""
        return self._engine

    @contextmanager
    def scanning(self) -> Iterator[None]:
        """While a scan writes; a second scan waits for its turn."""
        with self.path.with_suffix(".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: all of it is kept, or nothing."""
        try:
            with Session(self._engine) as session:
                yield session
                session.commit()
        except OperationalError as error:
            raise InputError(f"{self.path}: the catalogue cannot be used now: {error.orig}") from None
        except SQLAlchemyError as error:
            raise InputError(f"{self.path}: the catalogue cannot be used: {type(error).__name__}") from None

    def source(self, folder: Path, cohort: str) -> int:
        """The id of a folder's source, entered if it is new."""
        name = str(folder.resolve())
        key = self.key.pseudonym("folder", name)
        with self.session() as session:
            row = session.exec(select(SourceRow).where(SourceRow.folder_key == key)).one_or_none()
            if row is None:
                row = SourceRow(folder_key=key, folder=self.key.seal(name), cohort=cohort)
            row.cohort = cohort
            session.add(row)
            session.flush()
            assert row.id is not None
            return row.id

    def known_files(self, source: int) -> dict[str, KnownFile]:
        """What is known of the files of a source, by `FileRow.path_key`."""
        columns = (
            FileRow.path_key,
            FileRow.id,
            FileRow.size,
            FileRow.mtime_ns,
            FileRow.ctime_ns,
            FileRow.inode,
            FileRow.content,
            FileRow.reason,
            FileRow.readers,
            FileRow.present,
        )
        with self.session() as session:
            rows = session.execute(_select(*columns).where(col(FileRow.source_id) == source)).all()
        return {row[0]: KnownFile(row[1], (row[2], row[3], row[4], row[5]), *row[6:]) for row in rows}

    def write(self, files: Sequence[dict[str, Any]], images: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Enter decoded files with their images, in one transaction; what was known of them before is replaced.

        Args:
            files: columns of `FileRow`, without id.
            images: for each file, columns of its `ImageRow`, without id and file_id.
        """
        if not files:
            return
        with self.session() as session:
            keys = [file["path_key"] for file in files]
            source = files[0]["source_id"]
            old = _select(FileRow.id).where(col(FileRow.source_id) == source, col(FileRow.path_key).in_(keys))
            session.execute(delete(ImageRow).where(col(ImageRow.file_id).in_(old)))
            session.execute(delete(FileRow).where(col(FileRow.source_id) == source, col(FileRow.path_key).in_(keys)))
            # Into the tables, past the ORM: it took as long as decoding small images.
            session.execute(insert(_table(FileRow)), list(files))
            ids = dict(
                session.execute(
                    _select(FileRow.path_key, FileRow.id).where(
                        col(FileRow.source_id) == source, col(FileRow.path_key).in_(keys)
                    )
                ).all()
            )
            rows = [
                image | {"file_id": ids[file["path_key"]]}
                for file, its in zip(files, images, strict=True)
                for image in its
            ]
            if rows:
                session.execute(insert(_table(ImageRow)), rows)

    def restamp(self, stamps: dict[int, tuple[int, int, int, int]]) -> None:
        """Note new stamps of files whose content is as it was."""
        if not stamps:
            return
        with self.session() as session:
            rows = [
                {"id": file, "size": size, "mtime_ns": mtime, "ctime_ns": ctime, "inode": inode, "present": True}
                for file, (size, mtime, ctime, inode) in stamps.items()
            ]
            session.execute(update(FileRow), rows)

    def mark_present(self, files: Sequence[int], present: bool) -> None:
        """Note which files are there."""
        if files:
            with self.session() as session:
                session.execute(update(FileRow), [{"id": file, "present": present} for file in files])

    def image_rows(self, source: int) -> list[Any]:
        """Every image of the files that are there, with `FileRow.path_key`: what a scan decides by."""
        columns = (
            FileRow.path_key,
            ImageRow.id,
            ImageRow.key,
            ImageRow.frame,
            ImageRow.pixel_hash,
            ImageRow.patient,
            ImageRow.study,
            ImageRow.series,
            ImageRow.point,
            ImageRow.findings,
            ImageRow.saturated,
            ImageRow.status,
        )
        query = _select(*columns).join(FileRow, col(FileRow.id) == col(ImageRow.file_id))
        query = query.where(col(FileRow.source_id) == source, col(FileRow.present).is_(True))
        with self.session() as session:
            return list(session.execute(query).all())

    def set_status(self, changes: dict[int, str]) -> None:
        """Note what became of images under the present policy."""
        if changes:
            with self.session() as session:
                session.execute(
                    update(ImageRow), [{"id": image, "status": status} for image, status in changes.items()]
                )

    def scan_done(self, source: int) -> None:
        """Note that a scan reached its end."""
        with self.session() as session:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            session.execute(update(SourceRow).where(col(SourceRow.id) == source).values(scanned=now))

    def sources(self) -> list[tuple[int, Path, str, str | None]]:
        """Id, folder, cohort and time of the last scan of every source."""
        with self.session() as session:
            rows = session.exec(select(SourceRow).order_by(col(SourceRow.id))).all()
            return [(row.id or 0, Path(self.key.unseal(row.folder)), row.cohort, row.scanned) for row in rows]

    def listing(self, source: int) -> Iterator[tuple[FileRow, ImageRow | None]]:
        """Every file of a source with its images, in the order of their ids; a rejected file has none."""
        query = (
            _select(FileRow, ImageRow)
            .join(ImageRow, col(FileRow.id) == col(ImageRow.file_id), isouter=True)
            .where(col(FileRow.source_id) == source)
            .order_by(col(FileRow.id), col(ImageRow.frame))
        )
        with self.session() as session:
            yield from session.execute(query.execution_options(yield_per=1000))


def _table(row: type[SQLModel]) -> Any:
    return SQLModel.metadata.tables[str(row.__tablename__)]


def _select(*columns: Any) -> Any:
    """SQLAlchemy's select: SQLModel's is typed for at most four columns."""
    from sqlalchemy import select as select_columns

    return select_columns(*columns)


def _set_up(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
