"""Ordinary mistakes, hostile names and Ctrl-C, in this process: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import client.cli
import server.cli
import server.run_folder
from federation_configs.command_line import shown
from server.registry import RunRegistry
from server.run_folder import registry_url
from tests.conftest import write_pictures

HOSTILE = "q[/bold]\x1b[31m\u202e:smile:"  # markup, a colour, another direction, an emoji
HOSTILE_SHOWN = "q[/bold]\ufffd[31m\ufffd:smile:"

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls a console script in this process; gives exit code, standard output and standard error."""

    def run(main: Callable[[], None], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aiseeme", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file, where a folder is meant."""
    path = tmp_path / "file"
    path.write_text("no folder")
    return path


def test_a_file_where_runs_should_lie(call, file, tmp_path):
    hospital = write_pictures(tmp_path / "hospital", 4)
    arguments = ("simulate", "demo", "--data", hospital, "--sites", "3", "--runs", file)
    assert call(server.cli.main, *arguments) == (2, "", f"error: {file}: File exists\n")


def test_a_file_where_the_cache_should_lie(call, file, tmp_path):
    hospital = write_pictures(tmp_path / "hospital", 4)
    code, _, err = call(client.cli.main, "scan", hospital, "--home", file, "--size", "16")
    assert code == 2
    assert re.fullmatch(rf"error: {file}.*: (Not a directory|File exists)\n", err)


def test_a_file_where_phantoms_should_lie(call, file):
    code, _, err = call(client.cli.main, "phantom", file / "p", "--sites", "1", "--images", "1")
    assert code == 2
    assert re.fullmatch(rf"error: {file}.*: Not a directory\n", err)


def test_a_configuration_that_is_nested_too_deeply(call, tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 5000 + "]" * 5000)
    code, _, err = call(server.cli.main, "config", "check", path)
    assert (code, err.startswith(f"error: {path}: nested too deeply")) == (2, True)


def test_names_of_files_and_folders_are_shown_as_they_are(call, tmp_path):
    hospital = write_pictures(tmp_path / HOSTILE, 4)
    rejected = hospital / "images" / f"{HOSTILE}.txt"  # its slash makes a folder, as in the hospital's own name
    rejected.parent.mkdir()
    rejected.write_text("no image")
    with (hospital / "labels.csv").open("a") as labels:
        labels.write("[/red]gone.png,blobs,p9,d0\n")
    home = ("--home", tmp_path / "home")
    code, scanned, err = call(client.cli.main, "scan", hospital, *home, "--size", "16")
    assert (code, err) == (0, "")
    code, listed, err = call(client.cli.main, "images", hospital, *home, "--left-out")
    assert (code, err) == (0, "")
    out = scanned + listed
    assert "".join(scanned.split()).count(HOSTILE_SHOWN) == 2  # the title and the hint
    assert "".join(listed.split()).count(HOSTILE_SHOWN) == 2  # the title and the rejected file
    assert not {"\x1b", "\u202e"} & set(out)


def test_names_and_reasons_of_runs_are_shown_as_they_are(call, tmp_path):
    registry = RunRegistry(registry_url(tmp_path))
    run = {"id": "run-1", "name": HOSTILE, "seed": 1, "config_sha256": "", "version": "", "rounds_total": 3}
    registry.create(**run, sites_total=2, folder=str(tmp_path / "run-1"), pid=1)
    registry.update("run-1", {"status": "failed", "reason": f"because of {HOSTILE}"})
    code, out, _ = call(server.cli.main, "runs", "--runs", tmp_path)
    assert (code, out.count(HOSTILE_SHOWN)) == (0, 2)
    code, shown_run, _ = call(server.cli.main, "show", "run-1", "--runs", tmp_path)
    assert (code, f"because of {HOSTILE_SHOWN}" in shown_run) == (0, True)
    assert not {"\x1b", "\u202e"} & set(out + shown_run)


def test_an_error_cannot_steer_the_terminal(call, tmp_path):
    code, _, err = call(client.cli.main, "scan", tmp_path / HOSTILE)
    assert (code, err) == (2, f"error: {tmp_path / HOSTILE_SHOWN}: no such folder\n")


def test_shown_text_has_no_markup_and_one_line():
    assert shown("[red]a\nb[/red]") == "\\[red]a\ufffdb\\[/red]"
    assert len(shown("a" * 1000)) == 300


@pytest.mark.parametrize(
    ("main", "says"),
    [
        (server.cli.main, "interrupted; `aiseeme runs` says which runs go on, and which can be resumed\n"),
        (client.cli.main, "interrupted\n"),
    ],
)
def test_ctrl_c_is_answered_with_a_sentence(main, says, call, monkeypatch, tmp_path):
    def interrupt(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(server.run_folder, "runs_home", interrupt)
    monkeypatch.setattr("client.scanning.scan", interrupt)
    arguments = ("runs",) if main is server.cli.main else ("scan", tmp_path, "--home", tmp_path / "home")
    assert call(main, *arguments) == (130, "", says)


def test_exit_codes_of_usage_help_and_version_are_the_usual_ones(call):
    assert call(server.cli.main, "--help")[0] == 0
    assert call(server.cli.main, "--version")[0] == 0
    code, _, err = call(server.cli.main, "simulate", "--no-such-option")
    assert (code, "No such option" in err) == (2, True)
