"""``aiseeme-site head``: what a site kept of a run comes out as one file, for its owner alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aiseeme_models.downstream.head_file import read_own_head
from client.cli import main
from client.local_state import LocalState
from client.own_head import OWN_HEAD

RUN = "20261201-010203-abcdef"


def head(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["aiseeme-site", "head", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A site that kept a head of its own after rounds 1 and 3: it missed the second."""
    place = tmp_path / "site"
    state = LocalState(place / "state", RUN, 0, kept=2)
    for number in (1, 3):
        state.save(number, {OWN_HEAD: torch.full((6,), float(number)), "other": torch.zeros(2)})
    return place


def test_the_newest_head_of_a_run_is_written_for_its_owner(home, tmp_path, capsys):
    out = tmp_path / "exports" / "head.safetensors"
    assert head(RUN[:10], "--home", home, "--out", out) == 0
    said = capsys.readouterr().out
    assert f"after round 3 of run {RUN}" in said and "keep it here" in said
    own = read_own_head(out)
    assert (own.run, own.round) == (RUN, 3)
    np.testing.assert_array_equal(own.values, np.full(6, 3.0, dtype=np.float32))
    assert out.stat().st_mode & 0o777 == 0o600
    assert str(home).encode() not in out.read_bytes()


def test_what_is_there_is_not_replaced_unless_told_to(home, tmp_path, capsys):
    out = tmp_path / "head.safetensors"
    out.write_bytes(b"mine")
    assert head(RUN, "--home", home, "--out", out) == 2
    assert "--force" in capsys.readouterr().err and out.read_bytes() == b"mine"
    assert head(RUN, "--home", home, "--out", out, "--force") == 0
    assert read_own_head(out).round == 3
    assert head(RUN, "--home", home, "--out", tmp_path, "--force") == 2


def test_a_run_that_is_not_known_has_no_own_head_or_is_not_the_only_one_is_refused(home, tmp_path, capsys):
    out = tmp_path / "head.safetensors"
    assert head("2025", "--home", home, "--out", out) == 2
    assert "nothing of it is kept" in capsys.readouterr().err
    for run, why in (("*", "nothing of it is kept"), ("../runs/20", "nothing of it is kept"), ("", "was expected")):
        assert head(run, "--home", home, "--out", out) == 2
        assert why in capsys.readouterr().err
    assert head(RUN, "--home", tmp_path / "nowhere", "--out", out) == 2
    assert "--home names the site's folder" in capsys.readouterr().err
    LocalState(home / "state", "20261201-other", 0, kept=1).save(1, {"own/weights": torch.zeros(3)})
    assert head("20261201-o", "--home", home, "--out", out) == 2
    assert "it has trained no head of its own here" in capsys.readouterr().err
    assert head("20261201", "--home", home, "--out", out) == 2
    assert "2 runs begin so" in capsys.readouterr().err
    assert not out.exists()
    LocalState(home / "state", RUN + "-again", 0, kept=1).save(1, {OWN_HEAD: torch.zeros(3)})
    assert head(RUN, "--home", home, "--out", out) == 0  # its whole id, though it begins another one's
    assert read_own_head(out).round == 3


def test_a_state_that_was_cut_off_is_told_and_nothing_is_written(home, tmp_path, capsys):
    kept = home / "state" / "runs" / RUN / "stage-000" / "round-000003.safetensors"
    kept.write_bytes(kept.read_bytes()[:-8])
    out = tmp_path / "head.safetensors"
    assert head(RUN, "--home", home, "--out", out) == 2
    assert "of round 3 cannot be read" in capsys.readouterr().err and not out.exists()


def test_it_is_its_owner_s_though_somebody_left_a_file_for_others_in_its_way(home, tmp_path):
    out, theirs = tmp_path / "head.safetensors", tmp_path / "theirs"
    theirs.write_bytes(b"")
    theirs.chmod(0o666)
    (tmp_path / "head.safetensors.tmp").symlink_to(theirs)
    assert head(RUN, "--home", home, "--out", out) == 0
    assert out.stat().st_mode & 0o777 == 0o600 and theirs.read_bytes() == b""
