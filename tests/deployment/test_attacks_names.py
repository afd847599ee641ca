"""Names with which a file would leave its place, at every command that takes one: refused, and nothing is written.

Names in messages are tried on running hospitals in ``test_attacks_coordinator.py`` and ``test_attacks_site.py``; those
in invitations, requests and kits in ``tests/client/test_joining.py`` and ``tests/server/test_provisioning.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from aiseeme_models.errors import InputError
from client.cli import app as site_app
from federation_configs.loading import load_config
from server.cli import app as coordinator_app
from server.federation_home import FederationHome, FederationSettings
from server.provisioning import init_federation, invite, make_kit
from server.service_files import ServiceFiles
from tests.conftest import write_pictures
from tests.deployment.hospitals import FEDERATION
from tests.server.finished_runs import finished_run

NAMES = ["../../x", "..", ".", "/etc/passwd", "a/../../b", "", "x\x00y", "\x1b[2J", "~/x"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FederationHome:
    """A federation with a site and a finished run, and beside it what an attacker would have opened."""
    folder = tmp_path_factory.mktemp("names")
    home = init_federation(folder / "deep" / "federation", FederationSettings(name="demo", hostname="localhost"))
    invite(home, "alpha")
    make_kit(home, "alpha")
    finished_run(home.runs)
    finished_run(folder / "elsewhere")
    (folder / "deep" / "x").mkdir()
    return home


def files_below(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*") if ".sqlite" not in path.name}


def refused(app: object, *arguments: object) -> InputError:
    """A command ends with a person's mistake; the words of it do not steer the terminal."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])  # type: ignore[arg-type]
    assert done.exit_code != 0, done.output
    assert isinstance(done.exception, (InputError, SystemExit)), done.exception
    return done.exception if isinstance(done.exception, InputError) else InputError("usage")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("show", ["--runs"]),
        ("resume", ["--runs"]),
        ("stop", ["--federation"]),
        ("export", ["--format", "safetensors", "--runs"]),
        ("evaluate", ["--data", ".", "--runs"]),
    ],
)
def test_the_name_of_a_run(command: str, options: list[str], name: str, made: FederationHome) -> None:
    before = files_below(made.folder.parent.parent)
    last = made.folder if options[-1] == "--federation" else made.runs
    refused(coordinator_app, command, *options, last, "--", name)
    refused(coordinator_app, command, *options, last, "--", "../../elsewhere/20261125-120000-abcdef")
    assert files_below(made.folder.parent.parent) == before


@pytest.mark.parametrize("name", NAMES)
def test_what_is_verified_is_a_run_or_a_path_that_is_there(name: str, made: FederationHome, tmp_path: Path) -> None:
    before = files_below(made.folder.parent.parent)
    done = CliRunner().invoke(coordinator_app, ["verify", "--runs", str(made.runs), "--", name])
    assert done.exit_code != 0 and isinstance(done.exception, (InputError, SystemExit))
    assert files_below(made.folder.parent.parent) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ["add", "revoke", "rotate"])
def test_the_name_of_a_site(command: str, name: str, made: FederationHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.folder.parent / "x")
    before = files_below(made.folder.parent.parent)
    error = refused(coordinator_app, "site", command, "--federation", made.folder, "--", name)
    assert "\x1b" not in str(error) and "\x00" not in str(error)
    assert files_below(made.folder.parent.parent) == before


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_the_sites_that_are_asked_for(name: str, made: FederationHome, tmp_path: Path) -> None:
    config = tmp_path / "federation.toml"
    config.write_text(FEDERATION)
    with ServiceFiles(made.folder).held():
        refused(coordinator_app, "launch", config, "--federation", made.folder, "--sites", name)
    assert len([path for path in made.runs.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("key", ['name = "loopback"', 'preset = "dermoscopy"', 'backbone = "resnet-small"', '"moco"'])
@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "", "a b"])
def test_the_names_in_a_configuration(key: str, name: str, tmp_path: Path) -> None:
    given = key.partition('"')[2].rstrip('"')
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION.replace(f'"{given}"', f'"{name}"', 1))
    with pytest.raises(InputError, match=r"federation\.toml"):
        load_config(path)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_cohort(name: str, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 2)
    options = ("--home", tmp_path / "home", "--preset", "dermoscopy", "--size", 32)
    refused(site_app, "scan", pictures, *options, "--cohort", name)
    assert not list(tmp_path.rglob("*passwd*")) and not (tmp_path.parent / "x").exists()
