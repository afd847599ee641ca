"""Verifying a model: whatever is changed between it and round 0, and whoever signed instead, is found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from aiseeme_models.errors import InputError, RunFailed
from federation_configs.loading import to_toml
from federation_configs.signatures import create_signing_key, load_signing_key, public_hex
from server.cli import app
from server.federation_home import check_settings
from server.federation_home import to_toml as settings_to_toml
from server.final_files import FinalFiles
from server.global_model import backbone_of
from server.lineage import Lineage, verify, verify_model, verify_run
from server.models_list import list_models
from server.probing import ProbeOutcome
from server.registry import RunRegistry
from server.run_folder import registry_url
from server.signed_files import CHECKPOINT, EXPORT, MODEL, signature_file, write_signature, write_signed
from tests.conftest import tiny_config
from tests.server.finished_runs import RUN, finished_run, run_config

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
LAST = 4


@pytest.fixture(scope="module")
def signed_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("signed")
    finished_run(home, key=KEY)
    return home


@pytest.fixture(scope="module")
def unsigned_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("unsigned")
    finished_run(home)
    return home


@pytest.fixture
def run(signed_home: Path, tmp_path: Path) -> Path:
    """A signed run that a test may spoil."""
    shutil.copytree(signed_home, tmp_path / "runs")
    return tmp_path / "runs" / RUN


@pytest.fixture
def unsigned(unsigned_home: Path, tmp_path: Path) -> Path:
    shutil.copytree(unsigned_home, tmp_path / "runs")
    return tmp_path / "runs" / RUN


@pytest.fixture(autouse=True)
def no_federation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No federation of the person who runs the tests is found."""
    monkeypatch.delenv("AISEEME_HOME", raising=False)
    monkeypatch.delenv("AISEEME_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)


def walked(run: Path) -> Lineage:
    return verify_run(run, KEY.public_key(), demanded=True)


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def round_file(run: Path, number: int, suffix: str = "json") -> Path:
    return run / "checkpoints" / f"round-{number:04d}.{suffix}"


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_whole_signed_run_is_walked_from_its_model_to_round_0(run):
    found = walked(run)
    assert found.whole and found.signed and found.pinned
    assert found.key == public_hex(KEY.public_key())
    told = "\n".join(found.verified)
    assert f"sha256 {sha256(run / 'model' / 'backbone.safetensors')}" in told
    assert "the model's weights are those of the checkpoint of round 4, bit for bit" in told
    assert "5 checkpoints, round 0 to 4" in told
    assert f"6 signatures by {found.key} (pinned)" in told
    assert found.notes == []


def test_a_federation_that_was_really_played_is_verified_and_resumes_from_no_forged_round(federation):
    played = federation(tiny_config(curriculum={"stage": [{"task": "rotation", "rounds": 2, "batch_size": 4}]}))
    loop = played.loop()
    loop.signing_key = KEY
    state, vector = loop.play()
    (loop.folder / "config.toml").write_text(to_toml(played.config))
    files = FinalFiles(played.config, loop.folder, classes={}, signing_key=KEY)
    files.done(state, backbone_of(played.config, 0, vector), ProbeOutcome(None, None, "not probed"), 1.0)
    found = walked(loop.folder)
    assert found.problems == [] and found.signed
    assert any("4 signatures" in line for line in found.verified)
    last = json.loads(round_file(loop.folder, 2).read_bytes())
    images = {line["site"]: line["images"] for line in metrics(loop.folder) if line["round"] == 2 and "images" in line}
    assert {name: site["images"] for name, site in last["sites"].items()} == images and len(images) == 3
    for number in range(3):
        resigned(round_file(loop.folder, number), CHECKPOINT)
    again = played.loop()
    again.signing_key = KEY
    with pytest.raises(RunFailed, match="none of its checkpoints can be used"):
        again.play()


def test_every_manifest_says_who_counted_and_with_what(run):
    for number in range(LAST + 1):
        manifest = json.loads(round_file(run, number).read_bytes())
        sites = {"north": {"images": 40, "epsilon": None}, "south": {"images": 31, "epsilon": None}}
        assert manifest["sites"] == (sites if number else {})
        assert manifest["version"]


def test_a_key_that_was_only_found_beside_the_model_is_said_not_to_be_pinned(run):
    found = verify_run(run)
    assert found.whole and found.signed and not found.pinned
    assert found.key == public_hex(KEY.public_key())
    assert any("NOT PINNED" in note for note in found.notes)


def test_an_unsigned_run_is_whole_and_plainly_said_not_to_be_signed(unsigned):
    found = verify_run(unsigned)
    assert found.whole and not found.signed and found.key is None
    assert any("NOT SIGNED" in note for note in found.notes)
    with_key = walked(unsigned)
    assert with_key.problems == ["not signed: the model, round 0, round 1, round 2, round 3 and 1 more"]


def test_a_launched_run_that_nobody_signed_is_broken_even_where_no_key_is_known(unsigned):
    (unsigned / "federation.json").write_text("{}")
    assert any(problem.startswith("not signed: the model") for problem in verify_run(unsigned).problems)


def resigned(path: Path, purpose: str, key: Ed25519PrivateKey = OTHER) -> None:
    write_signature(path, path.read_bytes(), purpose, key)


def removed(path: Path) -> None:
    path.unlink()
    signature_file(path).unlink()


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def another_runs_model(run: Path) -> None:
    for name in ("model.json", "model.sig"):
        path = run / "model" / name
        path.write_bytes((run.parent.parent / "second" / "20261125-130000-123456" / "model" / name).read_bytes())


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the model's weights": (
        lambda run: flip(run / "model" / "backbone.safetensors"),
        "backbone.safetensors is not the file that its manifest was written for",
    ),
    "the model's weights are a link": (
        lambda run: linked(run / "model" / "backbone.safetensors"),
        "backbone.safetensors is a link",
    ),
    "the model's weights are gone": (
        lambda run: (run / "model" / "backbone.safetensors").unlink(),
        "backbone.safetensors is not there",
    ),
    "the model's manifest": (
        lambda run: edit(run / "model" / "model.json", norm="batch"),
        "model.json is not what its signature was made for",
    ),
    "a blank in the model's manifest": (
        lambda run: (run / "model" / "model.json").write_bytes((run / "model" / "model.json").read_bytes() + b" "),
        "model.json is not what its signature was made for",
    ),
    "the model's manifest is gone": (lambda run: (run / "model" / "model.json").unlink(), "no model here"),
    "the model's signature is gone": (lambda run: (run / "model" / "model.sig").unlink(), "not signed: the model"),
    "the model is signed by another key": (
        lambda run: resigned(run / "model" / "model.json", MODEL),
        "model.json is signed by another key",
    ),
    "a signature that was made for an export": (
        lambda run: resigned(run / "model" / "model.json", EXPORT, KEY),
        "model.json is not what its signature was made for",
    ),
    "a signature that was made for a checkpoint": (
        lambda run: resigned(run / "model" / "model.json", CHECKPOINT, KEY),
        "model.json is not what its signature was made for",
    ),
    "a byte of a checkpoint's weights": (
        lambda run: flip(round_file(run, LAST, "safetensors")),
        "round-0004.safetensors is not the file that its manifest was written for",
    ),
    "a checkpoint's manifest": (
        lambda run: edit(round_file(run, 2), sites={}),
        "round-0002.json is not what its signature was made for",
    ),
    "the newest checkpoint's manifest": (
        lambda run: edit(round_file(run, LAST), sites={}),
        "round-0004.json is not what its signature was made for",
    ),
    "a checkpoint's manifest is no JSON": (
        lambda run: round_file(run, 2).write_bytes(b"\x00"),
        "round-0002.json is no manifest",
    ),
    "a folder in a manifest's place": (
        lambda run: (round_file(run, 2).unlink(), round_file(run, 2).mkdir()),
        "round-0002.json cannot be read",
    ),
    "a digit of a signature": (
        lambda run: flip(round_file(run, 1, "sig"), -2),
        "round-0001.json is not what its signature was made for",
    ),
    "a signature that is none": (
        lambda run: round_file(run, 1, "sig").write_text("trust me\n"),
        "round-0001.sig is no signature",
    ),
    "a signature is gone": (lambda run: round_file(run, 1, "sig").unlink(), "not signed: round 1"),
    "a round is signed by another key": (
        lambda run: resigned(round_file(run, 3), CHECKPOINT),
        "round-0003.json is signed by another key",
    ),
    "two rounds have changed places": (
        lambda run: [swap(round_file(run, 1, suffix), round_file(run, 2, suffix)) for suffix in ("json", "sig")],
        "round-0001.json speaks of round 2",
    ),
    "two signatures have changed places": (
        lambda run: swap(round_file(run, 1, "sig"), round_file(run, 2, "sig")),
        "round-0002.json is not what its signature was made for",
    ),
    "a round in the middle is gone": (
        lambda run: removed(round_file(run, 2)),
        "the manifests between round 1 and round 3 are missing",
    ),
    "round 0 is gone": (lambda run: removed(round_file(run, 0)), "the chain begins at round 1"),
    "the last round is gone": (
        lambda run: removed(round_file(run, LAST)),
        "the checkpoint that the model came from: the manifest of round 4",
    ),
    "every round is gone": (lambda run: shutil.rmtree(run / "checkpoints"), "there is no chain to walk"),
    "the configuration": (
        lambda run: (run / "config.toml").write_text((run / "config.toml").read_text().replace("seed = 0", "seed = 1")),
        "config.toml is not the configuration that the model was trained with",
    ),
    "the configuration is none": (
        lambda run: (run / "config.toml").write_text("name = 3"),
        "the configuration cannot be read",
    ),
    "the results": (
        lambda run: edit(run / "results.json", backbone_sha256="0" * 64),
        "results.json speaks of another model",
    ),
    "the model is that of another run": (another_runs_model, "the model is that of run 20261125-130000-123456"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_is_named(what, run):
    change, problem = TAMPERED[what]
    if change is another_runs_model:
        finished_run(run.parent.parent / "second", key=KEY, run="20261125-130000-123456")
    assert walked(run).whole
    change(run)
    found = walked(run)
    assert not found.whole and not (found.signed and "signature" in problem)
    assert any(problem in named for named in found.problems), found.problems


def test_a_changed_configuration_is_found_before_there_is_a_model(run):
    shutil.rmtree(run / "model")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    problems = walked(run).problems
    assert sum("was trained with another configuration" in problem for problem in problems) == LAST + 1


def test_a_later_version_that_resolves_configurations_in_another_way_still_verifies(run, monkeypatch):
    """A key that a version adds is in what it resolves, and so in the digest; not in the file of old."""
    monkeypatch.setattr("server.lineage.config_sha256", lambda config: "0" * 64)
    monkeypatch.setattr("federation_configs.loading.config_sha256", lambda config: "0" * 64)
    monkeypatch.setattr("server.lineage.__version__", "99")
    assert walked(run).problems == []
    shutil.rmtree(run / "model")
    found = walked(run)
    assert found.problems == [] and any("resolved it in another way" in note for note in found.notes)


def test_a_run_under_another_name_is_found_out(run):
    other = run.rename(run.with_name("20261125-999999-ffffff"))
    problems = walked(other).problems
    assert any("the model is that of run" in problem for problem in problems)
    assert any(f"round 0 is of run {RUN}" in problem for problem in problems)


def test_a_model_that_is_forged_as_a_whole_needs_the_key(run):
    """Weights, their hash and the signature of it are made anew, by somebody else."""
    flip(run / "model" / "backbone.safetensors")
    edit(run / "model" / "model.json", sha256=sha256(run / "model" / "backbone.safetensors"))
    edit(run / "results.json", backbone_sha256=sha256(run / "model" / "backbone.safetensors"))
    resigned(run / "model" / "model.json", MODEL)
    assert any("signed by another key" in problem for problem in walked(run).problems)
    assert verify_run(run).problems, "two keys in one lineage are found without knowing either"


def test_the_weights_of_an_unsigned_model_are_held_against_its_checkpoint(unsigned):
    """All hashes are right, and yet it is not the model that was trained."""
    weights = unsigned / "model" / "backbone.safetensors"
    flip(weights)
    edit(unsigned / "model" / "model.json", sha256=sha256(weights))
    edit(unsigned / "results.json", backbone_sha256=sha256(weights))
    assert verify_run(unsigned).problems == ["the model's weights are not those of the checkpoint of round 4"]


@pytest.mark.parametrize("norm", ["group-ws", "batch", "batch-local"])
def test_a_model_of_every_norm_is_verified(norm, tmp_path):
    run = finished_run(tmp_path, run_config(model={"backbone": "resnet-small", "norm": norm}), key=KEY)
    assert walked(run).problems == []


def test_a_run_that_was_killed_in_the_middle_of_a_save_is_whole_so_far(run):
    shutil.rmtree(run / "model")
    (run / "results.json").unlink()
    round_file(run, LAST).unlink()
    found = walked(run)
    assert found.problems == []
    assert any("round 4 has weights or a signature but no manifest" in note for note in found.notes)
    assert any("no final model" in note for note in found.notes)


def test_manifests_of_the_format_before_signatures_are_still_read(unsigned):
    parent = None
    for number in range(LAST + 1):
        path = round_file(unsigned, number)
        old = json.loads(path.read_bytes()) | {"format": 1, "parent_sha256": parent}
        del old["sites"], old["version"]
        path.write_text(json.dumps(old))
        parent = sha256(path)
    model = unsigned / "model" / "model.json"
    old = json.loads(model.read_bytes()) | {"format": 1}
    for key in ("round", "parent_sha256", "config_file_sha256", "layout_sha256", "sites"):
        del old[key]
    model.write_text(json.dumps(old))
    found = verify_run(unsigned)
    assert found.problems == []
    assert any("older format" in note for note in found.notes)


def test_a_model_of_the_present_format_must_name_its_checkpoint(unsigned):
    edit(unsigned / "model" / "model.json", parent_sha256=None)
    assert verify_run(unsigned).problems == ["the model's manifest names no checkpoint"]


def test_a_model_that_left_its_run_is_verified_for_itself(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "received")
    found = verify(str(tmp_path / "received"), tmp_path / "nowhere", KEY.public_key(), demanded=True)
    assert found.whole and found.signed
    assert any("nothing before the model was looked at" in note for note in found.notes)
    flip(tmp_path / "received" / "backbone.safetensors")
    assert not verify_model(tmp_path / "received", KEY.public_key()).whole


def test_a_run_may_be_named_by_its_id_its_folder_or_its_models(run):
    for subject in (RUN, RUN[:12], str(run), str(run / "model")):
        assert verify(subject, run.parent, KEY.public_key()).subject == f"run {RUN}"


@pytest.mark.parametrize("subject", ["../runs", f"../runs/{RUN}", f"{RUN}/../..", "/", "", "%", "_", "x\0y", "a" * 64])
def test_no_trick_with_a_runs_id_leads_out_of_the_folder_of_runs(subject, run):
    with pytest.raises(InputError):
        verify(subject, run.parent)


@pytest.mark.parametrize("name", ["../other", "/etc", "", ".", "..", "a/b", "a" * 101])
def test_a_model_cannot_name_a_run_that_is_a_path(name, unsigned):
    edit(unsigned / "model" / "model.json", run=name)
    assert any("not a model's manifest: run" in problem for problem in verify_run(unsigned).problems)


def test_a_manifest_that_is_no_manifest_is_not_read_to_its_end(unsigned):
    with (unsigned / "model" / "model.json").open("wb") as file:
        file.truncate(10**10)  # takes no room on the disk
    assert any("no manifest is" in problem for problem in verify_run(unsigned).problems)


# The commands


def federation_of(folder: Path) -> Path:
    """A federation's home as far as these commands need it."""
    (folder / "keys").mkdir(parents=True)
    (folder / "federation.toml").write_bytes(
        settings_to_toml(check_settings({"name": "f", "hostname": "localhost"}, "test"))
    )
    create_signing_key(folder / "keys" / "signing.key")
    return folder


def called(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_verify_ends_with_0_or_1_and_says_why(run):
    key = public_hex(KEY.public_key())
    done = called("verify", RUN, "--runs", run.parent, "--key", key.upper())
    assert done.exit_code == 0 and f"run {RUN}: whole, signed" in done.output and key in done.output
    in_groups = " ".join(key[start : start + 4] for start in range(0, 64, 4))  # as `aiseeme init` shows it
    assert called("verify", RUN, "--runs", run.parent, "--key", in_groups).exit_code == 0
    done = called("verify", RUN, "--runs", run.parent, "--key", public_hex(OTHER.public_key()))
    assert done.exit_code == 1 and "model.json is signed by another key" in done.output
    flip(run / "model" / "backbone.safetensors")
    done = called("verify", run, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["whole"] is False and told["signed"] is True and told["pinned"] is False and len(told["problems"]) == 1


def test_verify_takes_the_key_of_the_federation_that_the_runs_belong_to(tmp_path, monkeypatch):
    home = federation_of(tmp_path / "home")
    own = load_signing_key(home / "keys" / "signing.key")
    finished_run(home / "runs", key=own)
    for how in (["--federation", home], ["--runs", home / "runs"]):
        told = json.loads(called("verify", RUN, *how, "--json").stdout)
        assert told["whole"] and told["pinned"] and told["key"] == public_hex(own.public_key())
    monkeypatch.setenv("AISEEME_HOME", str(home))
    assert json.loads(called("verify", RUN, "--json").stdout)["pinned"]
    for path in (home / "runs" / RUN).rglob("*.sig"):
        path.unlink()
    done = called("verify", RUN)
    assert done.exit_code == 0 and "whole, not signed" in done.output, "a simulation among the federation's runs"
    assert called("verify", RUN, "--federation", home).exit_code == 1


def test_mistakes_with_keys_are_told(run, tmp_path):
    for arguments, why in (
        (["--key", "abc"], "64 hexadecimal digits"),
        (["--key", "00" * 32, "--federation", tmp_path], "give one of them"),
        (["--federation", tmp_path / "none"], "no federation here"),
    ):
        for command in (["verify", RUN], ["models"]):
            done = called(*command, "--runs", run.parent, *arguments)
            assert isinstance(done.exception, InputError) and why in str(done.exception)


def test_models_lists_what_finished_runs_left_and_who_signed_it(run):
    finished_run(run.parent, run="20261125-140000-000001")
    finished_run(run.parent, run="20261125-150000-000002", key=OTHER)
    finished_run(run.parent, run="20261125-160000-000003", key=KEY)
    edit(run.parent / "20261125-160000-000003" / "model" / "model.json", norm="batch")
    registry = RunRegistry(registry_url(run.parent))
    facts = {"name": "n", "seed": 0, "config_sha256": "0" * 64, "version": "0", "rounds_total": 4, "sites_total": 2}
    registry.create(id="20261125-170000-000004", folder="", **facts)
    registry.close()
    listed = {model.run: model for model in list_models(run.parent, KEY.public_key())}
    assert {name[-6:]: model.signed for name, model in listed.items()} == {
        "abcdef": "signed",
        "000001": "not signed",
        "000002": "another key",
        "000003": "broken",
    }
    first = listed[RUN]
    assert (first.backbone, first.norm, first.rounds, first.sites) == ("resnet-small", "group", 4, "2/2")
    assert first.sha256 == sha256(run / "model" / "backbone.safetensors")
    assert Path(first.folder) == run / "model" and first.linear is None
    done = called("models", "--runs", run.parent)
    assert done.exit_code == 0 and RUN in done.output and "170000" not in done.output
    assert len(json.loads(called("models", "--runs", run.parent, "--json").stdout)) == 4


def test_a_model_that_is_gone_is_listed_with_the_reason(run):
    shutil.rmtree(run / "model")
    assert "no model here" in list_models(run.parent)[0].problem
    assert "no model here" in called("models", "--runs", run.parent).output


def test_without_a_run_there_is_nothing_to_list(tmp_path):
    done = called("models", "--runs", tmp_path / "none")
    assert done.exit_code == 0 and "no finished run" in done.output
    assert called("models", "--runs", tmp_path / "none", "--json").stdout.strip() == "[]"


def test_a_manifest_without_a_key_loses_the_signature_of_the_one_before(tmp_path):
    write_signed(tmp_path / "a.json", b"1", MODEL, KEY)
    write_signed(tmp_path / "a.json", b"2", MODEL, None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
