"""What a data-protection officer may rely on: the ledger is whole, or it says where it is not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aiseeme_models.errors import RunFailed
from client import ledger as ledger_module
from client.ledger import GENESIS, Ledger, LedgerBroken
from client.refusals import code_of
from federation_configs.site_errors import SiteError


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    """Four entries, as of one round."""
    made = Ledger(tmp_path / "home" / "ledger.jsonl")
    asked = made.append("asked", what="train", run="r1", round=1, coordinator="ab" * 32, nonce="1" * 32)
    made.append("started", request=asked.seq, what="train", images=30, epochs=2)
    made.append("answered", request=asked.seq, what="train", images=30, bytes=100, sha256="c" * 64, privacy=None)
    made.append("asked", what="train", run="r2", round=1, coordinator=None, nonce="2" * 32)
    return made


def lines(book: Ledger) -> list[bytes]:
    return book.path.read_bytes().splitlines(keepends=True)


def site(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from client.cli import main; main()", "ledger", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_every_entry_carries_the_hash_of_the_line_before_it(book: Ledger) -> None:
    """Recomputed here from the file alone, as an officer with `sha256sum` would."""
    before = GENESIS
    for number, line in enumerate(lines(book), start=1):
        entry = json.loads(line)
        assert (entry["seq"], entry["previous"]) == (number, before)
        assert datetime.fromisoformat(entry["time"]).utcoffset() == timedelta(0)
        before = hashlib.sha256(line).hexdigest()
    assert book.head == before
    assert book.verify() == [] and book.verify(before) == []
    assert [entry.kind for entry in book.entries()] == ["asked", "started", "answered", "asked"]


def test_only_the_site_reads_it(book: Ledger) -> None:
    assert book.path.stat().st_mode & 0o777 == 0o600
    assert book.path.parent.stat().st_mode & 0o077 == 0


def test_an_entry_is_on_the_disk_before_anything_else_happens(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    real = os.fsync
    monkeypatch.setattr(ledger_module.os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_size) or real(fd))
    book.append("answered", request=1)
    assert flushed == [book.path.stat().st_size]


TAMPERING = {
    "an edited number": lambda found: [found[0], found[1].replace(b'"images":30', b'"images":31'), *found[2:]],
    "an entry taken out of the middle": lambda found: [found[0], *found[2:]],
    "the first one taken out": lambda found: found[1:],
    "two that changed places": lambda found: [found[0], found[2], found[1], found[3]],
    "one that is there twice": lambda found: [found[0], found[1], found[1], *found[2:]],
    "an added line": lambda found: [*found[:2], b'{"kind":"asked"}\n', *found[2:]],
    "a line that is no JSON": lambda found: [*found[:2], b"\xff\xfe\n", *found[2:]],
    "an empty line": lambda found: [*found[:2], b"\n", *found[2:]],
    "a line said to be a cut-off write": lambda found: [*found[:2], found[2][:-1] + b"#torn\n", found[3]],
    "a cut-off write between whole lines": lambda found: [*found[:2], found[2][:40], found[3]],
    "a deep nest": lambda found: [*found[:2], b"[" * 100_000 + b"\n", *found[2:]],
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_noticed_and_nothing_is_added_to_it(what: str, book: Ledger) -> None:
    book.path.write_bytes(b"".join(TAMPERING[what](lines(book))))
    fresh = Ledger(book.path)
    assert fresh.verify(), what
    assert any(char.isdigit() for char in fresh.verify()[0]), "it says which line"
    with pytest.raises(LedgerBroken) as broken:
        fresh.append("asked")
    assert code_of(broken.value) == SiteError.LEDGER_BROKEN
    with pytest.raises(LedgerBroken):
        list(fresh.entries())


def test_what_was_cut_off_at_the_end_or_forged_is_shown_by_a_head_noted_down(book: Ledger) -> None:
    head, found = book.head, lines(book)
    book.path.write_bytes(b"".join(found[:3]))
    assert Ledger(book.path).verify() == [], "the chain itself cannot know"
    assert "changed or cut off" in Ledger(book.path).verify(head)[0]
    forged = Ledger(book.path.with_name("forged.jsonl"))
    for entry in Ledger(book.path).entries():
        forged.append(entry.kind, **entry.fields)
    assert forged.verify() == [] and forged.verify(head)
    book.path.write_bytes(b"".join(found))
    book.append("asked", what="train")
    assert Ledger(book.path).verify(head) == [], "what came later does not matter"


@pytest.mark.parametrize("cut", [1, 5, 60, "newline"])
def test_a_write_cut_off_by_a_crash_is_recovered_from_and_is_no_tampering(cut: int | str, book: Ledger) -> None:
    head, whole = book.head, lines(book)
    entry = b'{"seq":5,"time":"2026-11-25T12:00:00.000+00:00","previous":"' + head.encode() + b'","kind":"asked"}'
    torn = entry if cut == "newline" else entry[: int(cut)]
    with book.path.open("ab") as file:
        file.write(torn)
    fresh = Ledger(book.path)
    assert [len(list(fresh.entries())), fresh.head] == [4, head], "it is never read as an entry"
    assert fresh.verify(head) == []
    assert "cut off" in fresh.check().notes[0]
    fresh.append("started-up")
    kinds = [entry.kind for entry in Ledger(book.path).entries()]
    assert kinds[-2:] == ["recovered", "started-up"]
    assert lines(book)[:4] == whole and lines(book)[4].startswith(torn), "nothing is taken away"
    assert Ledger(book.path).verify(head) == []
    assert "entry 5" in Ledger(book.path).check().notes[0]
    book.append("asked")  # by the process that was there before
    assert Ledger(book.path).verify(head) == []


def test_a_crash_while_recovering_is_recovered_from_too(book: Ledger) -> None:
    head, four = book.head, book.path.read_bytes()
    book.path.write_bytes(four + b'{"seq":5,"ti')
    Ledger(book.path).append("started-up")
    recovered = book.path.read_bytes()
    for length in range(len(four), len(recovered)):
        book.path.write_bytes(recovered[:length])
        Ledger(book.path).append("started-up")
        assert Ledger(book.path).verify(head) == [], length


def test_a_recovered_write_that_is_changed_afterwards_is_tampering(book: Ledger) -> None:
    with book.path.open("ab") as file:
        file.write(b'{"seq":5')
    book.append("started-up")
    book.path.write_bytes(book.path.read_bytes().replace(b'{"seq":5#torn', b'{"seq":6#torn'))
    assert "do not agree" in Ledger(book.path).verify()[0]


def test_a_ledger_changed_or_removed_while_the_site_runs_is_noticed(book: Ledger) -> None:
    content = book.path.read_bytes()
    for changed in (b"", content[: content.rindex(b'{"seq":4')], content.replace(b'"r2"', b'"r3"')):
        book.path.write_bytes(changed)
        with pytest.raises(LedgerBroken):
            book.append("asked")
    book.path.unlink()
    with pytest.raises(LedgerBroken):
        book.append("asked")


def test_a_full_disk_leaves_no_part_of_an_entry(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = book.path.read_bytes(), os.write

    def nearly_full(descriptor: int, content: bytes) -> int:
        if len(content) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content[:-40])

    monkeypatch.setattr(ledger_module.os, "write", nearly_full)
    with pytest.raises(OSError) as full:
        book.append("asked", what="train", filler="x" * 200)
    assert code_of(full.value) == SiteError.DISK_FULL
    assert book.path.read_bytes() == before
    monkeypatch.setattr(ledger_module.os, "write", real)
    assert book.append("asked").seq == 5 and book.verify() == []


APPENDS = """
import sys
from pathlib import Path
from client.ledger import Ledger
book = Ledger(Path(sys.argv[1]))
for number in range(200):
    book.append("asked", what="train", run=sys.argv[2], round=number)
"""


def test_processes_and_threads_that_append_at_once_make_one_chain(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "ledger.jsonl"
    processes = [subprocess.Popen([sys.executable, "-c", APPENDS, str(path), f"p{number}"]) for number in range(2)]
    here = Ledger(path)
    threads = [threading.Thread(target=lambda: [here.append("refused") for _ in range(50)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    checked = Ledger(path).check()
    assert (checked.entries, checked.problems, checked.notes) == (500, [], [])
    for name in ("p0", "p1"):
        rounds = [entry.fields["round"] for entry in Ledger(path).entries() if entry.fields.get("run") == name]
        assert rounds == list(range(200))


def test_epochs_of_all_runs_are_counted_since_a_time(tmp_path: Path) -> None:
    clock = [1_800_000_000.0]
    book = Ledger(tmp_path / "ledger.jsonl", clock=lambda: clock[0])
    for hours, run, epochs in ((0, "r1", 3), (10, "r2", 0.5), (30, "r1", 2)):
        clock[0] = 1_800_000_000.0 + 3600 * hours
        book.append("started", run=run, what="train", epochs=epochs, images=9)
        book.append("started", run=run, what="evaluate", images=9)
    for reader in (book, Ledger(book.path)):
        assert reader.epochs_since(datetime.fromtimestamp(clock[0], UTC) - timedelta(hours=24)) == 2.5
        assert reader.epochs_since(datetime.fromtimestamp(0, UTC)) == 5.5
        assert reader.epochs_since(datetime.fromtimestamp(clock[0] + 1, UTC)) == 0


def test_comparisons_are_counted_since_a_time_and_those_without_a_number_as_one(tmp_path: Path) -> None:
    clock = [1_800_000_000.0]
    book = Ledger(tmp_path / "ledger.jsonl", clock=lambda: clock[0])
    counts = ({"comparisons": 64}, {"comparisons": 3}, {}, {"comparisons": 0}, {"comparisons": "many"})
    for hours, told in enumerate(counts):
        clock[0] = 1_800_000_000.0 + 3600 * hours
        book.append("started", what="audit", images=90, **told)
        book.append("started", what="evaluate", images=90)
    for reader in (book, Ledger(book.path)):
        assert reader.comparisons_since(datetime.fromtimestamp(0, UTC)) == 64 + 3 + 1 + 1 + 1
        assert reader.comparisons_since(datetime.fromtimestamp(1_800_000_001, UTC)) == 3 + 1 + 1 + 1


def test_a_nonce_is_known_for_ever_and_only_from_a_coordinator(book: Ledger) -> None:
    for reader in (book, Ledger(book.path)):
        assert reader.knows("1" * 32)
        assert not reader.knows("2" * 32), "nobody is kept from asking by a forged request with their nonce"


def test_an_entry_cannot_say_anything_for_the_chain(book: Ledger) -> None:
    with pytest.raises(ValueError, match="previous"):
        book.append("asked", previous=GENESIS)
    with pytest.raises(ValueError):
        book.append("asked", loss=float("nan"))
    assert book.verify() == []


def test_the_command_shows_what_was_asked_computed_and_left(book: Ledger) -> None:
    home = book.path.parent
    shown = site("--home", home)
    assert shown.returncode == 0
    assert ("abababababababab" in shown.stdout, "answered" in shown.stdout, book.head in shown.stdout) == (True,) * 3
    rows = json.loads(site("--home", home, "--json").stdout)
    assert [(row["run"], row["images"], row["bytes"], row["verdict"]) for row in rows] == [
        ("r1", 30, 100, "answered"),
        ("r2", None, None, "not answered"),
    ]
    assert [row["run"] for row in json.loads(site("--home", home, "--run", "r2", "--json").stdout)] == ["r2"]
    assert json.loads(site("--home", home, "--since", "2100-01-01", "--json").stdout) == []
    wrong = site("--home", home, "--since", "yesterday")
    assert (wrong.returncode, "2026-11-25" in wrong.stderr) == (2, True)
    nothing = site("--home", home / "new")
    assert (nothing.returncode, "nothing was asked yet" in nothing.stdout) == (0, True)


def test_the_command_verifies(book: Ledger) -> None:
    home, head = book.path.parent, book.head
    assert site("verify", "--home", home).returncode == 0
    assert site("verify", "--home", home, "--head", head).returncode == 0
    assert site("--home", home, "verify", "--head", head).returncode == 0
    other = site("verify", "--home", home, "--head", "a" * 64)
    assert (other.returncode, "changed or cut off" in other.stdout) == (1, True)
    wrong = site("verify", "--home", home, "--head", "abc")
    assert (wrong.returncode, "64 hexadecimal digits" in wrong.stderr) == (2, True)
    with book.path.open("ab") as file:
        file.write(b'{"seq":5')
    torn = site("verify", "--home", home)
    assert (torn.returncode, "no tampering" in torn.stdout) == (0, True)
    book.path.write_bytes(book.path.read_bytes().replace(b'"images":30', b'"images":31'))
    broken = json.loads(site("verify", "--home", home, "--json").stdout)
    assert "line 3" in broken["problems"][0]
    assert site("verify", "--home", home).returncode == 1
    listed = site("--home", home)
    assert (listed.returncode, "answered" in listed.stdout, "verify" in listed.stderr) == (1, True, True)


def test_text_in_a_forged_ledger_cannot_steer_the_terminal(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.jsonl")
    book.append("asked", what="\x1b[2Jtrain", run="[red]r", task="a\nb", coordinator="\x1b" * 64, nonce="1" * 32)
    shown = site("--home", tmp_path)
    assert shown.returncode == 0 and "\x1b[2J" not in shown.stdout
    assert "[red]r" in shown.stdout


def test_ten_thousand_entries_are_shown_without_anything_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module.os, "fsync", lambda descriptor: None)
    book = Ledger(tmp_path / "ledger.jsonl")
    for number in range(5000):
        asked = book.append("asked", what="train", run="r", round=number, config="0" * 64, coordinator="ab" * 32)
        book.append("answered", request=asked.seq, what="train", images=20, bytes=10, sha256="0" * 64)
    assert site("--home", tmp_path).returncode == 0
    code = "import sys, client.cli_ledger, client.ledger, client.site_home; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "flwr", "numpy"} & set(loaded)


def test_a_person_is_told_of_a_broken_ledger_in_a_sentence(book: Ledger) -> None:
    book.path.write_bytes(book.path.read_bytes().replace(b'"images":30', b'"images":31', 1))
    with pytest.raises(RunFailed, match=r"the ledger does not hold together: line 3.*ledger verify"):
        Ledger(book.path).append("started-up")
