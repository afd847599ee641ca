"""Who serves, who runs, where runs are, and how one is asked to stop: what processes tell each other through files."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from aiseeme_models.errors import InputError, RunFailed
from client.local_state import forget_old_runs
from client.node_files import NodeFiles
from client.refusals import Refusal
from client.runner import Interruption
from federation_configs.site_errors import SiteError
from federation_configs.supervision import Kept
from server import service
from server.registry import RunRegistry
from server.run_folder import StopRequest, runs_home
from server.service_files import ServiceFiles


@pytest.mark.parametrize("files", [ServiceFiles, NodeFiles])
def test_only_one_process_serves_or_runs(tmp_path, files):
    assert not files(tmp_path).is_held()
    with files(tmp_path).held():
        assert files(tmp_path).is_held()
        with pytest.raises(InputError, match="running already"), files(tmp_path).held():
            pass
    assert not files(tmp_path).is_held()


def test_a_site_s_secret_is_its_owner_s_and_new_with_every_start(tmp_path):
    files = NodeFiles(tmp_path)
    with files.held():
        first = files.secret.read_text()
        assert stat.S_IMODE(files.secret.stat().st_mode) == 0o600 and len(first) == 64
    with files.held():
        assert files.secret.read_text() != first


def test_a_node_s_address_is_on_loopback_and_forgotten_at_the_next_start(tmp_path):
    files = NodeFiles(tmp_path)
    with files.held():
        assert files.address() is None
        port = files.choose_port()
        assert files.address() == f"127.0.0.1:{port}"
        (files.folder / "address").write_text("10.0.0.1:80\n")
        assert files.address() is None
    with files.held():
        assert files.address() is None and files.since_alive() is None


def test_a_superlink_keeps_its_port_where_it_can(tmp_path):
    files = ServiceFiles(tmp_path)
    with pytest.raises(RunFailed, match="`aiseeme serve` writes it"):
        _ = files.link_address
    with files.held():
        port = files.choose_link_port()
        assert files.choose_link_port() == port
        assert files.link_address == f"127.0.0.1:{port}"


def interruption(files, now):
    look = Interruption(files, clock=lambda: now[0])
    look.begin(7, expires=100.0)
    return look


def looked(look):
    look._looked = 0.0
    look.look()


def test_work_is_given_up_when_its_run_has_ended_when_the_node_is_gone_and_when_nobody_waits(tmp_path):
    files, now = NodeFiles(tmp_path), [50.0]
    with files.held():
        files.choose_port()
        look = interruption(files, now)
        looked(look)
        files.note_ended(8)
        looked(look)  # another run
        files.note_ended(7)
        with pytest.raises(Refusal) as refused:
            looked(look)
        assert refused.value.code is SiteError.STOPPED
        (files.folder / "ended" / "7").unlink()
        now[0] = 101.0
        with pytest.raises(Refusal) as refused:
            looked(look)
        assert refused.value.code is SiteError.EXPIRED
        now[0] = 50.0
        files._address.write_text("127.0.0.1:1\n")
        with pytest.raises(Refusal) as refused:
            looked(look)
        assert refused.value.code is SiteError.STOPPED


def test_what_old_runs_left_at_a_site_is_forgotten(tmp_path):
    old, new = tmp_path / "runs" / "old" / "stage-000", tmp_path / "runs" / "new" / "stage-000"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "round-000001.safetensors").write_bytes(b"x")
    month = time.time() - 31 * 86_400
    for path in (old / "round-000001.safetensors", old):
        os.utime(path, (month, month))
    forget_old_runs(tmp_path, 30)
    assert new.exists() and not old.parent.exists()
    forget_old_runs(tmp_path / "not-there", 30)


def test_where_runs_are(tmp_path, monkeypatch):
    for name in ("AISEEME_RUNS", "AISEEME_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert runs_home(None) == Path("runs")
    monkeypatch.setenv("AISEEME_HOME", "/srv/federation")
    assert runs_home(None) == Path("/srv/federation/runs")
    monkeypatch.setenv("AISEEME_RUNS", "/srv/runs")
    assert runs_home(None) == Path("/srv/runs")
    assert runs_home(tmp_path) == tmp_path


def test_a_wish_to_stop_can_be_withdrawn(tmp_path):
    stop = StopRequest(tmp_path)
    assert not stop
    stop.make()
    assert StopRequest(tmp_path)
    stop.withdraw()
    stop.withdraw()
    assert not stop


def test_queued_and_running_runs_are_unfinished(tmp_path):
    registry = RunRegistry(f"sqlite:///{tmp_path}/registry.sqlite")
    for name, status in (("a", "queued"), ("b", "running"), ("c", "done"), ("d", "stopped"), ("e", "failed")):
        registry.create(
            id=name,
            name=name,
            seed=0,
            config_sha256="0" * 64,
            version="0",
            rounds_total=1,
            sites_total=1,
            folder=name,
            status=status,
        )
    assert sorted(row.id for row in registry.unfinished()) == ["a", "b"]
    assert registry.update("e", {"status": "queued"}).finished is None
    registry.close()


def test_a_part_that_ends_says_why_with_the_last_line_of_its_log(tmp_path):
    heard = []
    kept = Kept(
        "the part",
        lambda: [sys.executable, "-c", "print('\\x1b[91mwhat happened\\x1b[0m'); raise SystemExit(3)"],
        dict(os.environ),
        tmp_path / "part.log",
    )
    kept.start()
    kept.process.wait(30)
    kept.tend(heard.append)
    assert heard == [
        "the part ended (exit code 3); it is started again in 2 s",
        "the last line of its log: what happened",
    ]
    kept.end(0)


def test_a_superlink_that_was_started_again_is_asked_as_often_as_the_first(monkeypatch):
    class Away:
        def is_up(self):
            return False

    monkeypatch.setattr(service, "_HEALTH_EVERY_S", 0.0)
    health = service._Health(Away())
    looks = [health.is_deaf() for _ in range(service._DEAF_AFTER)]
    assert looks == [False] * (service._DEAF_AFTER - 1) + [True]
    health.begin()
    assert [health.is_deaf() for _ in range(service._DEAF_AFTER)] == looks
