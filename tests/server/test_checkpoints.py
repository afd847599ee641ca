"""A checkpoint is there whole or not at all, and an edited one is found out."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aiseeme_models.errors import InputError, RunFailed
from server.aggregation import build_aggregation
from server.checkpoints import CheckpointStore
from server.signed_files import MODEL, write_signature

REPOSITORY = Path(__file__).parents[2]
HASH = hashlib.sha256(b"x").hexdigest()


def save(store, round, *, stage=0, size=1000, optimizer_state=None, state=None):
    return store.save(
        run="r1",
        round=round,
        stage=stage,
        round_in_stage=round,
        config_sha256=HASH,
        layout_sha256=HASH,
        vector=np.full(size, round, dtype=np.float32),
        optimizer_state=optimizer_state or {},
        state=state or {"loss": [0.5, None]},
    )


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def weights_of(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(5000, dtype=np.float32)
    vector[:3] = [-0.0, 1e-42, np.float32(np.pi)]
    method = build_aggregation("fedadam")
    method.start_round(vector, 10, tmp_path)
    method.fold(vector * np.float32(1.01), 10)
    vector = method.finish_round()
    store = CheckpointStore(tmp_path / "new" / "checkpoints")
    manifest = store.save(
        run="r1",
        round=3,
        stage=1,
        round_in_stage=1,
        config_sha256=HASH,
        layout_sha256=HASH,
        vector=vector,
        optimizer_state=method.state(),
        state={"seed": 2**53 + 1, "losses": [0.1, 1e-300], "nested": {"a": None, "b": True}},
    )
    found = CheckpointStore(tmp_path / "new" / "checkpoints").latest()
    assert found.manifest == manifest
    assert found.vector.tobytes() == vector.tobytes()
    assert {k: v.tobytes() for k, v in found.optimizer_state.items()} == {
        k: v.tobytes() for k, v in method.state().items()
    }
    found.vector[0] = 1  # the caller may go on training in it
    restored = build_aggregation("fedadam")
    restored.load_state(found.optimizer_state)
    ends = []
    for one in (method, restored):
        one.start_round(vector, 10, tmp_path)
        one.fold(vector * np.float32(0.9), 4)
        ends.append(one.finish_round().tobytes())
    assert ends[0] == ends[1]


def test_a_view_that_is_not_contiguous_is_saved_right(tmp_path):
    store = CheckpointStore(tmp_path)
    vector = np.arange(20, dtype=np.float32)[::2]
    store.save(
        run="r",
        round=0,
        stage=0,
        round_in_stage=0,
        config_sha256=HASH,
        layout_sha256=HASH,
        vector=vector,
        optimizer_state={},
        state={},
    )
    assert store.load(0).vector.tolist() == vector.tolist()


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path / "none")
    assert store.latest() is None
    assert store.rounds() == []
    assert store.verify() == []
    with pytest.raises(InputError, match="no checkpoint of round 4"):
        store.load(4)


def test_one_to_go_back_to_is_always_kept(tmp_path):
    with pytest.raises(InputError, match="at least 2"):
        CheckpointStore(tmp_path, keep=1)


def test_the_last_rounds_and_the_end_of_every_stage_stay(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for round, stage in enumerate([0, 0, 0, 1, 1, 2, 2, 2, 2]):
        save(store, round, stage=stage)
    assert weights_of(tmp_path) == [f"round-000{n}.safetensors" for n in (2, 4, 7, 8)]
    assert store.rounds() == list(range(9))
    assert store.verify() == []
    assert store.warnings == []
    with pytest.raises(InputError, match="older weights are not kept"):
        store.load(0)


def test_going_back_behind_damaged_rounds_starts_from_there(tmp_path):
    store = CheckpointStore(tmp_path, keep=4)
    for round in range(4):
        save(store, round)
    for round in (2, 3):
        (tmp_path / f"round-000{round}.safetensors").write_bytes(b"")
    assert store.latest().manifest.round == 1
    assert len(store.warnings) == 2
    save(store, 2)
    assert store.rounds() == [0, 1, 2]
    assert store.verify() == []
    assert CheckpointStore(tmp_path).latest().manifest.round == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "link"])
def test_damaged_newest_weights_are_skipped_with_a_warning(damage, tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    save(store, 2)
    file = tmp_path / "round-0002.safetensors"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-7])
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "gone":
        file.unlink()
    else:
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    assert store.latest().manifest.round == 1
    assert len(store.warnings) == 1
    assert "round-0002.safetensors" in store.warnings[0]
    assert any("round-0002.safetensors" in problem for problem in store.verify())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', "\x00" * 500])
def test_a_damaged_newest_manifest_is_skipped_with_a_warning(content, tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    save(store, 2)
    (tmp_path / "round-0002.json").write_text(content)
    assert store.latest().manifest.round == 1
    assert "round-0002.json" in store.warnings[0]
    save(store, 2)
    assert store.verify() == []
    assert store.latest().manifest.round == 2


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "round-0001.safetensors", "./round-0002.safetensors", "", "a/../b"],
)
def test_a_manifest_cannot_point_at_other_files(name, tmp_path):
    folder = tmp_path / "checkpoints"
    store = CheckpointStore(folder)
    save(store, 1)
    save(store, 2)
    # the pointed-at file is valid and has the right hash: only the name gives it away
    (tmp_path / "outside.safetensors").write_bytes((folder / "round-0002.safetensors").read_bytes())
    edit(folder / "round-0002.json", weights_file=name)
    with pytest.raises(InputError, match="not its own"):
        store.load(2)
    assert store.latest().manifest.round == 1


def test_a_checkpoint_under_another_rounds_name_is_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    for suffix in ("json", "safetensors"):
        (tmp_path / f"round-0007.{suffix}").write_bytes((tmp_path / f"round-0001.{suffix}").read_bytes())
    assert store.latest().manifest.round == 1
    assert "speaks of round 1" in store.warnings[0]


@pytest.mark.parametrize(
    "change",
    [{"state": {"loss": [0.1, None]}}, {"config_sha256": "0" * 64}, {"run": "other"}, {"round_in_stage": 9}],
)
def test_an_edited_manifest_is_found_by_its_successor(change, tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    for round in range(4):
        save(store, round)
    assert store.verify() == []
    edit(tmp_path / "round-0001.json", **change)
    assert any(problem.startswith("round 2 does not follow") for problem in store.verify())


def test_a_missing_link_and_missing_weights_are_found(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for round in range(5):
        save(store, round)
    (tmp_path / "round-0001.json").unlink()
    (tmp_path / "round-0003.safetensors").unlink()
    problems = store.verify()
    assert any("between round 0 and round 2" in problem for problem in problems)
    assert any("round-0003.safetensors is not there" in problem for problem in problems)


def test_numbers_that_are_not_finite_do_not_become_json(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    with pytest.raises(ValueError, match="finite"):
        save(store, 2, state={"loss": float("nan")})
    assert store.latest().manifest.round == 1


# A process is killed


CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from server.checkpoints import CheckpointStore

    folder, fatal, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))) if sys.argv[4] == "signed" else None

    def watch(step):
        print(step, flush=True)
        if step == fatal and armed:
            os.kill(os.getpid(), signal.SIGKILL)

    armed = False
    store = CheckpointStore(folder, 2, key, watch=watch)
    for round in (1, 2, 3):
        armed = round == 3
        store.save(run="r1", round=round, stage=0, round_in_stage=round, config_sha256="0" * 64,
                   layout_sha256="0" * 64, vector=np.full(size, round, dtype=np.float32),
                   optimizer_state={"momentum": np.full(size, -round, dtype=np.float32)}, state={})
    """
)

BEFORE_COMMIT = [
    "write .safetensors",
    "flush .safetensors",
    "rename .safetensors",
    "renamed .safetensors",
    "write .json",
    "flush .json",
    "rename .json",
]


def child(folder, fatal, size=1000, signed="unsigned"):
    command = [sys.executable, "-c", CHILD, str(folder), fatal, str(size), signed]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("fatal", "left"), [(step, 2) for step in BEFORE_COMMIT] + [("renamed .json", 3), ("prune", 3)]
)
def test_a_kill_at_any_step_leaves_the_one_before_or_the_whole_new_one(fatal, left, tmp_path):
    process = child(tmp_path, fatal)
    steps = process.communicate(timeout=60)[0].split("\n")
    assert process.returncode == -signal.SIGKILL
    assert steps[-2] == fatal
    store = CheckpointStore(tmp_path)
    found = store.latest()
    assert found.manifest.round == left
    assert (found.vector == left).all()
    assert (found.optimizer_state["momentum"] == -left).all()
    assert store.warnings == []
    for round in range(left + 1, 5):
        save(store, round)
    assert store.latest().manifest.round == 4
    assert not list(tmp_path.glob("*.tmp"))


def test_a_kill_in_the_middle_of_the_bytes_loses_nothing(tmp_path):
    """Not at a step but while a large file grows on the disk."""
    process = child(tmp_path, "never", size=12_000_000)
    growing = tmp_path / "round-0003.safetensors.tmp"
    deadline = time.monotonic() + 60
    while not growing.exists() and time.monotonic() < deadline and process.poll() is None:
        pass
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    store = CheckpointStore(tmp_path)
    found = store.latest()
    assert found.manifest.round in (2, 3)
    assert (found.vector == found.manifest.round).all()
    assert store.warnings == []


# The disk is full


@pytest.fixture
def file_size_limit():
    """The kernel refuses to let a file grow beyond this many bytes, as a full disk or quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("limit", [0, 100, 2000])
def test_a_write_that_the_system_refuses_loses_no_earlier_checkpoint(limit, tmp_path, file_size_limit):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    save(store, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    file_size_limit(limit)
    with pytest.raises(RunFailed, match="round 3 could not be written"):
        save(store, 3)
    file_size_limit(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save(store, 3)
    assert store.latest().manifest.round == 3
    assert store.verify() == []


@pytest.mark.parametrize("step", [step for step in BEFORE_COMMIT if not step.startswith("renamed")])
def test_a_full_disk_at_any_step_loses_no_earlier_checkpoint(step, tmp_path):
    def full(current):
        if current == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(CheckpointStore(tmp_path), 1)
    with pytest.raises(RunFailed, match="No space left on device"):
        save(CheckpointStore(tmp_path, watch=full), 2)
    store = CheckpointStore(tmp_path)
    assert store.latest().manifest.round == 1
    assert store.warnings == []
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="could not be written"):
        save(CheckpointStore(tmp_path / "file" / "checkpoints"), 0)


# Signed by the coordinator


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def signed_store(folder, key=KEY, **options):
    return CheckpointStore(folder, signing_key=key, **options)


def test_signed_checkpoints_are_trusted_by_their_signer_and_readable_by_all(tmp_path):
    for round in range(4):
        save(signed_store(tmp_path), round)
    for store in (signed_store(tmp_path), CheckpointStore(tmp_path)):
        assert store.latest().manifest.round == 3
        assert store.warnings == [] and store.verify() == [] and store.leftovers() == []
    assert sorted(path.name for path in tmp_path.glob("*.sig")) == [f"round-000{n}.sig" for n in range(4)]


@pytest.mark.parametrize("forgery", ["unsigned", "edited", "another key", "another round's", "another purpose", "link"])
def test_a_forged_newest_checkpoint_is_not_gone_on_from(forgery, tmp_path):
    for round in (1, 2):
        save(signed_store(tmp_path), round)
    manifest, signature = tmp_path / "round-0002.json", tmp_path / "round-0002.sig"
    if forgery == "unsigned":
        signature.unlink()
    elif forgery == "edited":
        edit(manifest, state={"loss": [0.1, None]})
    elif forgery == "another key":
        save(signed_store(tmp_path, OTHER), 2)
    elif forgery == "another round's":
        signature.write_bytes((tmp_path / "round-0001.sig").read_bytes())
    elif forgery == "another purpose":
        write_signature(manifest, manifest.read_bytes(), MODEL, KEY)
    else:
        signature.unlink()
        signature.symlink_to("nowhere")
    store = signed_store(tmp_path)
    assert store.latest().manifest.round == 1
    assert len(store.warnings) == 1 and "round-0002.json" in store.warnings[0]
    with pytest.raises(InputError, match=r"round-0002\.json"):
        store.load(2)
    save(store, 2)
    assert signed_store(tmp_path).latest().manifest.round == 2


def test_where_no_checkpoint_is_signed_there_is_none_to_go_on_from(tmp_path):
    save(CheckpointStore(tmp_path), 1)
    store = signed_store(tmp_path)
    assert store.latest() is None and store.rounds() == [1]
    assert "round-0001.json is not signed" in store.warnings[0]


def test_going_back_takes_the_signatures_of_later_rounds_along(tmp_path):
    for round in range(4):
        save(signed_store(tmp_path), round)
    save(signed_store(tmp_path), 1)
    assert sorted(path.name for path in tmp_path.glob("*.sig")) == ["round-0000.sig", "round-0001.sig"]


SIGNING = ["write .sig", "flush .sig", "rename .sig", "renamed .sig"]


@pytest.mark.parametrize(
    ("fatal", "left"), [(step, 2) for step in (*BEFORE_COMMIT, *SIGNING)] + [("renamed .json", 3), ("prune", 3)]
)
def test_a_kill_at_any_step_leaves_a_signed_checkpoint(fatal, left, tmp_path):
    process = child(tmp_path, fatal, signed="signed")
    steps = process.communicate(timeout=60)[0].split("\n")
    assert process.returncode == -signal.SIGKILL
    assert steps[-2] == fatal
    store = signed_store(tmp_path)
    assert store.latest().manifest.round == left
    assert store.warnings == []
    save(store, left + 1)
    assert signed_store(tmp_path).latest().manifest.round == left + 1
    assert store.leftovers() == [] and not list(tmp_path.glob("*.tmp"))
