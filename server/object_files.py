"""Large objects of a SuperLink as files beside its database.

Flower 1.41 keeps the pieces of a message, 5 MiB each, as blobs in SQLite: each is copied into a chain of pages, summed
up for the write-ahead log, and written again when the log is folded into the database. Here the database keeps the name
of a file. Everything else, and above all what counts as being there, stays with the database's transactions.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore import log
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    get_object_id,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store.object_store import NoObjectInStoreError
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.objectstore_models import StoredObject
from sqlalchemy import Table, event, func, make_url, select, update
from sqlalchemy.orm import Session

from federation_configs.supervision import say

LEAST_BYTES = 2**18
"""What is smaller stays in the database: a file of its own would cost more than it saves."""

MOST_SPARE = 64
"""Files that are kept for the next objects: 320 MiB of pieces of weights, which are 5 MiB each."""

# An object begins with the name of its type, never with a null: `validate_object_content` sees to it.
_MARK = b"\0file "


@dataclass
class _Ready:
    """What an object's row is to have, and whether it has it."""

    object_id: str
    content: bytes
    taken: bool = False


_ready: ContextVar[_Ready | None] = ContextVar("ready", default=None)


class FileObjectStore(SqlObjectStore):
    """Flower's store in SQLite (`flwr.supercore.object_store`, private), with the contents of large objects in files.

    Files lie in ``<database>.objects``, under names drawn at random: an object that is deleted and comes again at the
    same time has another file. A file is written before the row that names it is committed, and let go after the commit
    that deletes the row; what a crash leaves without a row goes when the store is opened.

    Files are not forced to the disk. After a power cut one may be short, or hold what lay there before: when the store
    is opened, a file whose content is not that of its row's id is removed. An object without its file is not there for
    who asks for it, and is asked for again when somebody announces it.

    A file that is let go is overwritten by the next object, under another name: the kernel takes ten times as long to
    find new pages as to fill old ones. When a run's objects are deleted, so are these files.

    Args:
        database_path: an SQLite file that no other process stores objects in.
    """

    def __init__(self, database_path: str) -> None:
        super().__init__(database_path, verify=False)  # `put` verifies, before anything is written
        self._folder = Path(f"{make_url(self.database_url).database}.objects")
        self._spare: deque[Path] = deque()

    def initialize(self, log_queries: bool = False, **engine_kwargs: object) -> list[str]:
        """Open the database, and remove files that no row names, or whose content is not their row's."""
        tables = super().initialize(log_queries, **engine_kwargs)
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o700)
        with self.session() as session:
            named = {_name_and_size(mark)[0]: object_id for object_id, mark in session.execute(_IN_FILES)}
        for path in self._folder.iterdir():
            if path.is_dir():
                continue
            object_id = named.get(path.name)
            if object_id is None:
                path.unlink()
            elif get_object_id(path.read_bytes()) != object_id:
                say("a file of an object does not hold it, as after a power cut: the object is asked for again")
                path.unlink()
        return tables

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Announce objects, and say which are to come: new ones, and those that lost their file."""
        with self._mutation_session() as session:
            to_come = super().preregister(run_id, object_tree)
            there = iter({node.object_id for node in iterate_object_tree(object_tree)}.difference(to_come))
            while some := list(islice(there, _MOST_IDS)):
                rows = session.execute(_IN_FILES.where(StoredObject.object_id.in_(some))).all()
                if lost := {object_id: mark for object_id, mark in rows if not self._is_whole(mark)}:
                    again = update(StoredObject).where(StoredObject.object_id.in_(list(lost)))
                    session.execute(again.values(content=b"", is_available=0))
                    to_come += lost
                    _when_committed(session, partial(self._forget, list(lost.values())))
            return to_come

    def put(self, object_id: str, object_content: bytes) -> None:
        """Put an object into the store.

        Raises:
            NoObjectInStoreError: it was not preregistered.
            OSError: its file cannot be written.
            UnexpectedObjectContentError: it is no object.
            ValueError: it is not the object of that id.
        """
        ready = _ready.get()
        if ready is None or ready.object_id != object_id:
            with self.made_ready(object_id, object_content) as ready:
                self._put(object_id, ready)
        else:
            self._put(object_id, ready)

    def _put(self, object_id: str, ready: _Ready) -> None:
        row = cast(Table, StoredObject.__table__)
        here = row.c.object_id == object_id
        with self.session() as session:
            came = update(row).where(here, row.c.is_available == 0).values(content=ready.content, is_available=1)
            ready.taken = session.execute(came.returning(row.c.object_id)).first() is not None
            if not ready.taken and session.execute(select(row.c.object_id).where(here)).first() is None:
                raise NoObjectInStoreError(f"Object with ID '{object_id}' was not pre-registered.")

    @contextmanager
    def made_ready(self, object_id: str, content: bytes) -> Iterator[_Ready]:
        """Verify an object and write its file, so that the transaction in which it is then `put` is a short one.

        Raises:
            OSError: its file cannot be written.
            UnexpectedObjectContentError: it is no object.
            ValueError: it is not the object of that id.
        """
        if object_id != get_object_id(content):
            raise ValueError(f"Object ID {object_id} does not match content hash")
        validate_object_content(content=content)
        large = len(content) >= LEAST_BYTES
        ready = _Ready(object_id, self._written(content) if large else content)
        token = _ready.set(ready)
        try:
            yield ready
        except BaseException:
            ready.taken = False
            raise
        finally:
            _ready.reset(token)
            if large and not ready.taken:  # not put, or there already
                self._path(ready.content).unlink(missing_ok=True)

    def get(self, object_id: str) -> bytes | None:
        """The object; empty where it is preregistered and did not come yet, None where it is not there."""
        content = super().get(object_id)
        if content is None or not content.startswith(_MARK):
            return content
        size, path = _name_and_size(content)[1], self._path(content)
        try:
            content = path.read_bytes()
            path.stat()  # it still has that name: nothing was written over it while it was read
        except FileNotFoundError:
            return None  # deleted since the row was read, or lost
        if len(content) != size:
            say(f"an object has {len(content)} of {size} bytes, as after a power cut: it is not given")
            return None
        return content

    def delete(self, object_id: str) -> None:
        """Delete an object that nothing refers to, and what only it refers to."""
        with self._mutation_session() as session:
            free = _IN_FILES.where(StoredObject.object_id == object_id, StoredObject.ref_count == 0)
            marks = [mark for _, mark in session.execute(free)]
            super().delete(object_id)
            for mark in marks:
                _when_committed(session, partial(self._let_go, mark))

    def delete_objects_in_run(self, run_id: int) -> None:
        """Delete a run's objects, and what was kept of deleted ones."""
        with self.session() as session:
            super().delete_objects_in_run(run_id)
            _when_committed(session, self._forget)

    def clear(self) -> None:
        """Delete all objects, and what was kept of deleted ones."""
        with self._mutation_session() as session:
            marks = [mark for _, mark in session.execute(_IN_FILES)]
            super().clear()
            _when_committed(session, lambda: self._forget(marks))

    def _path(self, mark: bytes) -> Path:
        return self._folder / _name_and_size(mark)[0]

    def _is_whole(self, mark: bytes) -> bool:
        try:
            return self._path(mark).stat().st_size == _name_and_size(mark)[1]
        except FileNotFoundError:
            return False

    def _written(self, content: bytes) -> bytes:
        """Write a file of ``content``, and give what its row has to say."""
        path = self._folder / secrets.token_hex(16)
        try:
            with suppress(IndexError, FileNotFoundError):
                self._spare.pop().rename(path)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(content)
                file.truncate()
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return _MARK + f"{path.name} {len(content)}".encode()

    def _let_go(self, mark: bytes) -> None:
        """Take a file's name from it, so that what is read of it from now on is not taken for the object."""
        path = self._path(mark)
        if len(self._spare) >= MOST_SPARE:
            path.unlink(missing_ok=True)
            return
        spare = self._folder / secrets.token_hex(16)
        with suppress(FileNotFoundError):
            path.rename(spare)
            self._spare.append(spare)

    def _forget(self, marks: Sequence[bytes] = ()) -> None:
        for mark in marks:
            self._path(mark).unlink(missing_ok=True)
        while self._spare:
            with suppress(IndexError):
                self._spare.pop().unlink(missing_ok=True)


_IN_FILES: Any = select(StoredObject.object_id, StoredObject.content).where(
    func.substr(StoredObject.content, 1, len(_MARK)) == _MARK
)
_MOST_IDS = 500  # in one question: SQLite takes so many parameters and not more


def _name_and_size(mark: bytes) -> tuple[str, int]:
    name, size = mark.removeprefix(_MARK).decode().split(" ")
    return name, int(size)


def _when_committed(session: Session, do: Callable[[], None]) -> None:
    """Do what changes files once the outermost transaction is committed, and nothing where it is rolled back."""

    def committed(_session: Session) -> None:
        if session.in_nested_transaction():  # a savepoint, after which all may still be rolled back
            return
        try:
            do()
        except OSError as error:  # what is committed stays so; the file goes when the store is opened again
            say(f"a file of a deleted object is still there: {error.strerror}")

    event.listen(session, "after_commit", committed)


_writing = threading.RLock()


def stored_in_turn(plain: Callable[..., bool]) -> Callable[..., bool]:
    """Flower's ``SqlCoreState.store_object``, for a `FileObjectStore`: one object at a time, each made ready before.

    SQLite lets one transaction write at a time, and has the others look again after ever longer pauses.
    """

    def stored(state: Any, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        try:
            with state.object_store.made_ready(object_id, object_content) as ready, _writing:
                done = plain(state, run_id, session_id, object_id, object_content)
                ready.taken = ready.taken and done  # what it could not store it has rolled back
                return done
        except (OSError, ValueError, UnexpectedObjectContentError) as error:
            log(logging.ERROR, "Failed to store object %s: %s", object_id, error)
            return False

    return stored
