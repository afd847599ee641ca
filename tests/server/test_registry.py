"""The registry of runs: prefixes, several processes at once, and errors in the user's words."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aiseeme_models.errors import InputError
from server.registry import RunRegistry, new_run_id

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def registry(tmp_path):
    registry = RunRegistry(f"sqlite:///{tmp_path}/registry.sqlite")
    yield registry
    registry.close()


def create(registry, id, name="skin"):
    return registry.create(
        id=id,
        name=name,
        seed=7,
        config_sha256="0" * 64,
        version="0.1.0",
        rounds_total=10,
        sites_total=4,
        folder=f"runs/{id}",
        pid=123,
    )


def test_a_run_goes_from_running_to_done(registry):
    created = create(registry, "20260101-aa")
    assert (created.status, created.rounds_done, created.finished) == ("running", 0, None)
    changed = registry.update("20260101-aa", {"rounds_done": 10, "sites_complete": 3})
    assert (changed.rounds_done, changed.finished) == (10, None)
    assert changed.updated >= created.updated
    done = registry.update("20260101-aa", {"status": "done", "reason": "3 of 4 sites", "pid": None})
    assert done.finished == done.updated
    assert done.created == created.created
    assert done.pid is None
    assert registry.get("20260101-aa") == done
    assert registry.update("20260101-aa", {"status": "running"}).finished is None  # resumed


def test_a_run_is_found_by_the_start_of_its_id(registry):
    for id in ("2026-abc", "2026-abd", "2026-ab", "2027-x"):
        create(registry, id)
    assert registry.get("2027").id == "2027-x"
    assert registry.get("2026-ab").id == "2026-ab"  # exact wins over being a prefix of others
    with pytest.raises(InputError, match="could be 3 runs: 2026-ab, 2026-abc, 2026-abd"):
        registry.get("2026")
    for nothing in ("3", "", "%", "2026_abc", "027"):
        with pytest.raises(InputError, match="there is no run"):
            registry.get(nothing)


def test_runs_are_listed_newest_first(registry):
    for id in ("a", "b", "c"):
        create(registry, id)
    assert [row.id for row in registry.list()] == ["c", "b", "a"]
    assert [row.id for row in registry.list(limit=2)] == ["c", "b"]


def test_ids_are_given_once_and_sort_by_time(registry):
    create(registry, "a")
    with pytest.raises(InputError, match="already"):
        create(registry, "a")
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) == 50


def test_changes_to_nothing_are_refused(registry):
    with pytest.raises(InputError, match="no run 'zz'"):
        registry.update("zz", {"rounds_done": 1})
    create(registry, "a")
    with pytest.raises(TypeError, match="folder"):
        registry.update("a", {"folder": "/elsewhere"})


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////nonexistent/folder/x.sqlite", "oracle+nodriver://x/y"])
def test_a_registry_that_cannot_be_opened_is_explained(url):
    with pytest.raises(InputError, match="registry"):
        RunRegistry(url)


def test_a_file_that_is_no_database_is_explained(tmp_path):
    (tmp_path / "x.sqlite").write_text("this is no database, but long enough to be looked at" * 20)
    with pytest.raises(InputError, match="not a database"):
        RunRegistry(f"sqlite:///{tmp_path}/x.sqlite")


def test_processes_that_open_and_write_at_once_all_get_through(tmp_path):
    code = textwrap.dedent(
        """
        import sys
        from server.registry import RunRegistry
        registry = RunRegistry(sys.argv[1])
        run = sys.argv[2]
        registry.create(id=run, name="n", seed=1, config_sha256="0", version="0", rounds_total=1, sites_total=1,
                        folder="f")
        for number in range(25):
            registry.update(run, {"rounds_done": number + 1})
        """
    )
    url = f"sqlite:///{tmp_path}/registry.sqlite"
    runs = [
        subprocess.Popen([sys.executable, "-c", code, url, f"run-{number}"], cwd=REPOSITORY, stderr=subprocess.PIPE)
        for number in range(3)
    ]
    for run in runs:
        assert run.wait(60) == 0, run.stderr.read().decode()
        run.stderr.close()
    registry = RunRegistry(url)
    assert sorted((row.id, row.rounds_done) for row in registry.list()) == [(f"run-{n}", 25) for n in range(3)]
    registry.close()


@pytest.mark.parametrize("module", ["server.registry", "server.checkpoints", "server.aggregation"])
def test_light_modules_import_nothing_heavy(module):
    heavy = ("torch", "monai", "sklearn", "matplotlib", "flwr")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
