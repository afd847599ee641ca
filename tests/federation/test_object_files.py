"""A SuperLink's store with large objects in files answers as Flower's own, loses nothing, and leaves nothing behind."""

from __future__ import annotations

import importlib
import os
import resource
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError, get_object_id
from flwr.supercore.object_store.object_store import NoObjectInStoreError
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from server import object_files
from server.object_files import LEAST_BYTES, FileObjectStore, stored_in_turn

RUN = 2**63 + 5  # as an unsigned one it does not fit into SQLite


def piece(fill: int, size: int = 2 * LEAST_BYTES) -> tuple[str, bytes]:
    """The id and content of an object."""
    one = ArrayChunk(memoryview(bytes([fill]) * size))
    return one.object_id, one.deflate()


LARGE, OTHER, SMALL = piece(1), piece(2), piece(3, 100)


def opened(path: Path, kind=FileObjectStore):
    store = kind(str(path / "link.sqlite"))
    store.initialize()
    return store


def files(path: Path) -> list[Path]:
    return sorted((path / "link.sqlite.objects").iterdir())


def given(store, *objects) -> None:
    for object_id, content in objects:
        assert store.preregister(RUN, ObjectTree(object_id=object_id)) == [object_id]
        store.put(object_id, content)


@pytest.fixture
def store(tmp_path):
    return opened(tmp_path)


@pytest.mark.parametrize("kind", [SqlObjectStore, FileObjectStore])
class TestAsFlowersOwn:
    @pytest.mark.parametrize("one", [LARGE, SMALL])
    def test_an_object_comes_stays_and_goes(self, tmp_path, kind, one):
        store, (object_id, content) = opened(tmp_path, kind), one
        assert store.get(object_id) is None
        store.preregister(RUN, ObjectTree(object_id=object_id))
        assert store.get(object_id) == b""  # known, not there yet
        store.put(object_id, content)
        store.put(object_id, content)  # once more
        assert store.get(object_id) == content and object_id in store and len(store) == 1
        assert store.preregister(RUN, ObjectTree(object_id=object_id)) == []
        store.delete(object_id)
        assert store.get(object_id) is None and object_id not in store

    @pytest.mark.parametrize("one", [LARGE, SMALL])
    def test_what_is_not_expected_or_not_the_object_is_refused(self, tmp_path, kind, one):
        store, (object_id, content) = opened(tmp_path, kind), one
        with pytest.raises(NoObjectInStoreError, match="not pre-registered"):
            store.put(object_id, content)
        store.preregister(RUN, ObjectTree(object_id=object_id))
        with pytest.raises(ValueError, match="does not match"):
            store.put(object_id, content + b"x")
        for no_object in (b"\0file ../../etc/passwd 10", b"\0file x 1" + bytes(LEAST_BYTES), b"ArrayChunk  9\0short"):
            named = get_object_id(no_object)
            store.preregister(RUN, ObjectTree(object_id=named))
            with pytest.raises(UnexpectedObjectContentError):
                store.put(named, no_object)
            assert store.get(named) == b""
        assert store.get(object_id) == b""

    def test_what_others_refer_to_stays(self, tmp_path, kind):
        store = opened(tmp_path, kind)
        child = ObjectTree(object_id=LARGE[0])
        parents = [piece(fill, 100) for fill in (7, 8)]
        for parent, _ in parents:
            store.preregister(RUN, ObjectTree(object_id=parent, children=[child]))
        store.put(*LARGE)
        store.delete(LARGE[0])
        store.delete(parents[0][0])
        assert store.get(LARGE[0]) == LARGE[1]
        store.delete(parents[1][0])
        assert store.get(LARGE[0]) is None and len(store) == 0

    def test_a_runs_objects_go_with_it(self, tmp_path, kind):
        store = opened(tmp_path, kind)
        given(store, LARGE, SMALL)
        store.delete_objects_in_run(RUN)
        assert len(store) == 0
        given(store, LARGE, SMALL)
        store.clear()
        assert store.get(LARGE[0]) is None and len(store) == 0


class TestFiles:
    def test_only_large_objects_are_files_of_their_owner(self, tmp_path, store):
        given(store, LARGE, SMALL)
        (file,) = files(tmp_path)
        assert file.read_bytes() == LARGE[1]
        assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
        with sqlite3.connect(tmp_path / "link.sqlite") as database:
            sizes = {len(content) for (content,) in database.execute("SELECT content FROM objects")}
        assert max(sizes) < LEAST_BYTES

    def test_a_store_that_is_opened_again_has_what_was_there_and_no_more(self, tmp_path, store):
        given(store, LARGE, SMALL)
        for name in ("0" * 32, "half"):
            (tmp_path / "link.sqlite.objects" / name).write_bytes(b"left behind by a crash")
        again = opened(tmp_path)
        assert again.get(LARGE[0]) == LARGE[1] and again.get(SMALL[0]) == SMALL[1]
        assert len(files(tmp_path)) == 1

    def test_a_database_from_before_there_were_files_goes_on(self, tmp_path):
        given(opened(tmp_path, SqlObjectStore), LARGE)
        store = opened(tmp_path)
        assert store.get(LARGE[0]) == LARGE[1]
        store.delete(LARGE[0])
        assert store.get(LARGE[0]) is None

    def test_a_file_is_used_again_and_goes_with_the_run(self, tmp_path, store):
        for fill in range(5):
            one = piece(fill, LEAST_BYTES * (1 + fill % 2))
            given(store, one)
            assert store.get(one[0]) == one[1]
            store.delete(one[0])
            assert len(files(tmp_path)) == 1
        given(store, OTHER)
        store.delete_objects_in_run(RUN)
        assert files(tmp_path) == []

    def test_only_so_many_are_kept(self, tmp_path, store, monkeypatch):
        monkeypatch.setattr(object_files, "MOST_SPARE", 2)
        several = [piece(fill) for fill in range(5)]
        given(store, *several)
        for object_id, _ in several:
            store.delete(object_id)
        assert len(files(tmp_path)) == 2

    def test_a_deletion_that_is_rolled_back_loses_nothing(self, store):
        given(store, LARGE)
        with pytest.raises(KeyboardInterrupt), store.session():
            store.delete(LARGE[0])
            raise KeyboardInterrupt
        assert store.get(LARGE[0]) == LARGE[1]

    @pytest.mark.parametrize("left", [0, 100])
    def test_an_incomplete_file_is_not_given(self, tmp_path, store, capfd, left):
        given(store, LARGE)
        os.truncate(files(tmp_path)[0], left)
        assert store.get(LARGE[0]) is None
        assert f"an object has {left} of {len(LARGE[1])} bytes" in capfd.readouterr().out

    @pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 7), Path.unlink])
    def test_what_lost_its_file_is_asked_for_again(self, tmp_path, store, damage):
        given(store, LARGE, OTHER)
        damage(next(file for file in files(tmp_path) if file.read_bytes() == LARGE[1]))
        tree = ObjectTree(object_id=SMALL[0], children=[ObjectTree(object_id=one[0]) for one in (LARGE, OTHER)])
        assert sorted(store.preregister(RUN + 1, tree)) == sorted([SMALL[0], LARGE[0]])
        assert store.get(LARGE[0]) == b""  # on its way
        assert [file.read_bytes() for file in files(tmp_path)] == [OTHER[1]]  # no row names what was left of the other
        store.put(*LARGE)
        assert store.get(LARGE[0]) == LARGE[1] and store.get(OTHER[0]) == OTHER[1]
        assert store.preregister(RUN + 2, tree) == [SMALL[0]]

    def test_more_objects_than_one_question_takes(self, tmp_path, store, monkeypatch):
        monkeypatch.setattr(object_files, "_MOST_IDS", 2)
        several = [piece(fill) for fill in range(5)]
        given(store, *several)
        lost = [content for _, content in several[1:4]]
        for file in files(tmp_path):
            if file.read_bytes() in lost:
                file.unlink()
        tree = ObjectTree(object_id=SMALL[0], children=[ObjectTree(object_id=object_id) for object_id, _ in several])
        assert sorted(store.preregister(RUN, tree)) == sorted([SMALL[0], *(one for one, _ in several[1:4])])

    def test_a_file_that_holds_something_else_after_a_power_cut_is_not_given(self, tmp_path, store, capfd):
        given(store, LARGE, OTHER)
        next(file for file in files(tmp_path) if file.read_bytes() == LARGE[1]).write_bytes(OTHER[1])
        (tmp_path / "link.sqlite.objects" / "lost+found").mkdir()
        again = opened(tmp_path)
        assert again.get(LARGE[0]) is None and again.get(OTHER[0]) == OTHER[1]
        assert "asked for again" in capfd.readouterr().out
        assert again.preregister(RUN, ObjectTree(object_id=LARGE[0])) == [LARGE[0]]

    def test_an_older_folder_becomes_its_owner_s(self, tmp_path):
        (tmp_path / "link.sqlite.objects").mkdir(mode=0o755)
        opened(tmp_path)
        assert (tmp_path / "link.sqlite.objects").stat().st_mode & 0o777 == 0o700

    def test_a_transaction_that_is_rolled_back_after_a_savepoint_loses_nothing(self, store):
        given(store, LARGE, OTHER)
        with pytest.raises(KeyboardInterrupt), store.session() as session:
            store.delete(LARGE[0])
            store.clear()
            with session.begin_nested():
                pass
            raise KeyboardInterrupt
        assert store.get(LARGE[0]) == LARGE[1] and store.get(OTHER[0]) == OTHER[1]

    def test_a_store_that_was_cleared_takes_objects_again(self, tmp_path, store):
        given(store, LARGE, OTHER)
        store.delete(LARGE[0])
        store.clear()
        assert files(tmp_path) == []
        given(store, LARGE)
        store.delete(LARGE[0])
        files(tmp_path)[0].unlink()  # somebody tidied the folder
        given(store, OTHER)
        assert store.get(OTHER[0]) == OTHER[1]

    def test_an_object_is_stored_under_its_own_id_alone(self, store):
        for object_id, _ in (LARGE, OTHER):
            store.preregister(RUN, ObjectTree(object_id=object_id))
        with store.made_ready(*LARGE):
            store.put(*OTHER)
        assert store.get(OTHER[0]) == OTHER[1] and store.get(LARGE[0]) == b""

    def test_an_object_that_is_deleted_and_written_over_while_it_is_read_is_not_given(self, store, monkeypatch):
        given(store, LARGE)
        plain = Path.read_bytes

        def read_slowly(path: Path) -> bytes:
            with path.open("rb") as file:
                store.delete(LARGE[0])
                given(store, OTHER)
                return file.read()

        monkeypatch.setattr(Path, "read_bytes", read_slowly)
        assert store.get(LARGE[0]) is None
        monkeypatch.setattr(Path, "read_bytes", plain)
        assert store.get(OTHER[0]) == OTHER[1]

    def test_a_full_disk_stores_nothing_and_what_was_there_stays(self, tmp_path, store, monkeypatch):
        given(store, LARGE)
        store.preregister(RUN, ObjectTree(object_id=OTHER[0]))
        monkeypatch.setattr(object_files.os, "fdopen", _full)
        with pytest.raises(OSError, match="No space"):
            store.put(*OTHER)
        monkeypatch.undo()
        assert store.get(OTHER[0]) == b"" and store.get(LARGE[0]) == LARGE[1]
        store.put(*OTHER)  # there is room again
        assert store.get(OTHER[0]) == OTHER[1]

    def test_a_disk_that_fills_up_within_an_object_stores_nothing(self, tmp_path, store):
        object_id, content = piece(9, 2**23)
        store.preregister(RUN, ObjectTree(object_id=object_id))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**22, hard))  # the first write takes half of it, without an error
        try:
            with pytest.raises(OSError, match="too large"):
                store.put(object_id, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert store.get(object_id) == b"" and files(tmp_path) == []
        store.put(object_id, content)
        assert store.get(object_id) == content


def _full(descriptor: int, *_arguments, **_named):
    os.close(descriptor)
    raise OSError(28, "No space left on device")


class TestInTurn:
    """Flower's ``store_object``, which claims an object that is pending and puts it."""

    @pytest.fixture
    def state(self, tmp_path, monkeypatch):
        link = importlib.import_module("flwr.server.superlink.linkstate.sql_linkstate").SqlLinkState
        monkeypatch.setattr(link, "store_object", stored_in_turn(link.store_object))
        store = opened(tmp_path)
        state = link(str(tmp_path / "link.sqlite"), SimpleNamespace(), store)
        state.initialize()
        return state

    def test_many_at_once_are_all_stored(self, state, tmp_path):
        several = [piece(fill) for fill in range(24)]
        session = state.start_session(RUN)
        for object_id, _ in several:
            assert state.preregister_object_tree(ObjectTree(object_id=object_id), session) == [object_id]
        done: list[bool] = []
        threads = [
            threading.Thread(target=lambda part=part: done.extend(state.store_object(RUN, session, *o) for o in part))
            for part in (several[index::6] for index in range(6))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert done == [True] * 24
        assert [state.get_object(RUN, object_id) for object_id, _ in several] == [content for _, content in several]
        assert len(files(tmp_path)) == 24

    def test_what_is_refused_leaves_no_object_behind(self, state, tmp_path, monkeypatch):
        session = state.start_session(RUN)
        assert state.store_object(RUN, session, *LARGE) is False  # nobody expects it
        state.preregister_object_tree(ObjectTree(object_id=LARGE[0]), session)
        assert state.store_object(RUN, "another session", *LARGE) is False
        assert state.store_object(RUN + 1, session, *LARGE) is False
        assert state.store_object(RUN, session, LARGE[0], OTHER[1]) is False  # another content
        assert state.store_object(RUN, session, LARGE[0], b"no object") is False
        with monkeypatch.context() as patched:
            patched.setattr(object_files.os, "fdopen", _full)
            assert state.store_object(RUN, session, *LARGE) is False
        assert state.get_object(RUN, LARGE[0]) == b""
        assert files(tmp_path) == []
        assert state.store_object(RUN, session, *LARGE) is True
        assert state.get_object(RUN, LARGE[0]) == LARGE[1]
        state.object_store.delete_objects_in_run(RUN)
        assert files(tmp_path) == []

    def test_a_transaction_that_fails_stores_nothing(self, state, tmp_path, monkeypatch):
        session = state.start_session(RUN)
        for object_id, _ in (LARGE, OTHER):
            state.preregister_object_tree(ObjectTree(object_id=object_id), session)

        def broken(*_arguments, **_named):
            raise RuntimeError("after the object was put")

        with monkeypatch.context() as patched:
            patched.setattr(importlib.import_module("flwr.supercore.corestate.sql_corestate"), "timedelta", broken)
            assert state.store_object(RUN, session, *LARGE) is False
        assert state.get_object(RUN, LARGE[0]) == b""
        assert files(tmp_path) == []
        assert state.store_object(RUN, session, *OTHER) is True
        assert len(files(tmp_path)) == 1
