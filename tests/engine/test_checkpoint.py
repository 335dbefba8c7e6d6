"""Checkpoints: the newest usable moment comes back whole, whatever happened to the process or the files."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fibecfed.core.errors import RunFailed, UserError
from fibecfed.engine import packs
from fibecfed.engine.checkpoint import Checkpoint, Checkpoints
from fibecfed.engine.states import ClientStates, StatesAt

LIMIT = 150  # a few states in memory, the rest paged


def start(folder: Path, keep: int = 2) -> tuple[Checkpoints, Checkpoint | None, ClientStates]:
    checkpoints = Checkpoints(folder, keep)
    latest = checkpoints.load_latest()
    return checkpoints, latest, checkpoints.open_states(latest, LIMIT)


def run(folder: Path, numbers: range, keep: int = 2, clients: int = 6) -> tuple[Checkpoints, ClientStates]:
    """Every round changes two clients and the server; each state says when it was written."""
    checkpoints, _, states = start(folder, keep)
    for number in numbers:
        for client in (f"c/{number % clients}", f"c/{(number * 5 + 1) % clients}"):
            states.put(client, f"{client}@{number}".encode() * 10)
        checkpoints.save(number, f"server@{number}".encode() * 10, states, {"records": 100 * number})
    return checkpoints, states


def expected(number: int, clients: int = 6) -> dict[str, bytes]:
    truth: dict[str, bytes] = {}
    for n in range(1, number + 1):
        for client in (f"c/{n % clients}", f"c/{(n * 5 + 1) % clients}"):
            truth[client] = f"{client}@{n}".encode() * 10
    return truth


def held(states: ClientStates) -> dict[str, bytes | None]:
    return {client: states.get(client) for client in states.clients()}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def server_file(folder: Path, number: int) -> Path:
    (path,) = folder.glob(f"server-{number:08d}-*.state")
    return path


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    run(tmp_path, range(1, 8))
    _, latest, states = start(tmp_path)
    assert latest is not None
    assert (latest.number, latest.server, latest.extra, latest.warnings) == (7, b"server@7" * 10, {"records": 700}, ())
    assert held(states) == expected(7)


def test_a_run_that_is_restarted_after_every_round_holds_what_one_without_restarts_holds(tmp_path: Path) -> None:
    run(tmp_path / "whole", range(1, 12))
    for number in range(1, 12):
        run(tmp_path / "pieces", range(number, number + 1))
    assert held(start(tmp_path / "pieces")[2]) == held(start(tmp_path / "whole")[2]) == expected(11)
    assert len(packs.pack_numbers(tmp_path / "pieces" / "clients")) <= 11


def test_extra_comes_back_as_json_whatever_its_keys(tmp_path: Path) -> None:
    checkpoints, _, states = start(tmp_path)
    checkpoints.save(1, b"", states, {"table": {10: 1, 9: 2, "é": None}, "loss": 0.1, "text": "\ud800"})
    latest = checkpoints.load_latest()
    assert latest is not None
    assert latest.extra == {"table": {"10": 1, "9": 2, "é": None}, "loss": 0.1, "text": "\ud800"}
    assert (latest.server, latest.where) == (b"", {})


def test_a_folder_without_checkpoints_has_no_latest_one(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "missing", 2).load_latest() is None
    assert Checkpoints(tmp_path, 2).load_latest() is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_kept_checkpoints_and_what_they_name_stay_on_disk(tmp_path: Path, keep: int) -> None:
    run(tmp_path, range(1, 10), keep)
    manifests = sorted(tmp_path.glob("checkpoint-*.json"))
    assert [path.name for path in manifests] == [f"checkpoint-{number:08d}.json" for number in range(10 - keep, 10)]
    bodies = [json.loads(path.read_text()) for path in manifests]
    named = {body["server"]["file"] for body in bodies} | {
        f"clients/{number:08d}.pack" for body in bodies for number, _, _ in body["packs"]
    }
    assert set(names(tmp_path)) == named | {path.name for path in manifests}


def test_a_pinned_checkpoint_stays_whole_through_restarts_until_another_one_is_pinned(tmp_path: Path) -> None:
    def on(numbers: range, pinned: int) -> Checkpoints:
        checkpoints, _, states = start(tmp_path)
        for number in numbers:
            for client in (f"c/{number % 6}", f"c/{(number * 5 + 1) % 6}"):
                states.put(client, f"{client}@{number}".encode() * 10)
            checkpoints.save(number, f"server@{number}".encode() * 10, states, {}, pinned)
        return checkpoints

    def kept() -> list[int]:
        return sorted(int(path.stem.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*.json"))

    on(range(1, 8), 3)
    checkpoints = on(range(8, 30), 3)  # a process of its own
    assert kept() == [3, 28, 29]
    pinned = checkpoints.load(3)
    states = StatesAt(tmp_path / "clients", pinned.where)
    assert pinned.server == b"server@3" * 10 and {client: states.get(client) for client in states.clients()} == expected(3)
    assert states.get("nobody") is None
    with pytest.raises(TypeError, match="cannot be replaced"):
        states.put("c/1", b"")
    assert held(start(tmp_path)[2]) == expected(29)
    checkpoints = on(range(30, 32), 30)
    assert kept() == [30, 31]
    with pytest.raises(UserError, match=r"checkpoint-00000003\.json cannot be used: No such file"):
        checkpoints.load(3)


def test_a_pack_with_nothing_current_in_it_goes_with_the_last_checkpoint_that_names_it(tmp_path: Path) -> None:
    run(tmp_path, range(1, 3))
    run(tmp_path, range(3, 20))
    run(tmp_path, range(20, 40))
    assert packs.pack_numbers(tmp_path / "clients") == [3]
    assert held(start(tmp_path)[2]) == expected(39)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: flip(folder / "checkpoint-00000005.json", 40), "SHA-256|not JSON"),
        (lambda folder: os.truncate(folder / "checkpoint-00000005.json", 100), "not JSON"),
        (lambda folder: os.truncate(folder / "checkpoint-00000005.json", 0), "not JSON"),
        (lambda folder: (folder / "checkpoint-00000005.json").write_text("[]"), "SHA-256"),
        (lambda folder: (folder / "checkpoint-00000005.json").write_text("[" * 100_000), "not JSON"),
        (lambda folder: flip(server_file(folder, 5), 7), "server-00000005.*SHA-256"),
        (lambda folder: os.truncate(server_file(folder, 5), 7), "server-00000005.*got 7 bytes"),
        (lambda folder: server_file(folder, 5).unlink(), "server-00000005.*No such file"),
        (lambda folder: flip(folder / "clients/00000001.pack", -1), "00000001.pack.*client 'c/2'.*damaged"),
        (lambda folder: flip(folder / "clients/00000001.pack", -45), "00000001.pack"),
        (
            lambda folder: os.truncate(folder / "clients/00000001.pack", (folder / "clients/00000001.pack").stat().st_size - 1),
            "00000001.pack",
        ),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    run(tmp_path, range(1, 6))
    damage(tmp_path)
    _, latest, states = start(tmp_path)
    assert latest is not None
    assert latest.number == 4
    assert latest.server == b"server@4" * 10
    assert held(states) == expected(4)
    (warning,) = latest.warnings
    assert "checkpoint-00000005.json" in warning
    assert re.search(said, warning)
    assert (tmp_path / "checkpoint-00000005.json").exists()

    run(tmp_path, range(5, 8))
    _, latest, states = start(tmp_path)
    assert latest is not None
    assert (latest.number, latest.warnings) == (7, ())
    assert held(states) == expected(7)
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == ["checkpoint-00000006.json", "checkpoint-00000007.json"]


def test_every_kept_checkpoint_can_be_returned_to_and_not_the_newest_alone(tmp_path: Path) -> None:
    run(tmp_path / "run", range(1, 2), keep=3, clients=2)
    for number in range(2, 9):  # each restart begins a new pack, and each round makes all that the packs before hold obsolete
        run(tmp_path / "run", range(number, number + 1), keep=3, clients=2)
        for back in range(min(3, number)):
            copy = tmp_path / f"{number}-{back}"
            shutil.copytree(tmp_path / "run", copy)
            for newer in range(number - back + 1, number + 1):
                (copy / f"checkpoint-{newer:08d}.json").unlink()
            assert held(start(copy)[2]) == expected(number - back, clients=2)
    assert len(packs.pack_numbers(tmp_path / "run/clients")) == 3


def test_an_unusable_checkpoint_does_not_count_as_one_of_those_kept(tmp_path: Path) -> None:
    run(tmp_path, range(1, 6))
    server_file(tmp_path, 5).unlink()
    run(tmp_path, range(6, 7))
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == ["checkpoint-00000004.json", "checkpoint-00000006.json"]


def test_any_flipped_byte_of_the_newest_files_is_noticed(tmp_path: Path) -> None:
    run(tmp_path, range(1, 4), keep=1)
    draw = random.Random(0)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        live = Checkpoints(tmp_path, 1).load_latest()
        assert live is not None
        dead = set(range(len(whole))) if path.suffix == ".pack" else set()
        for location in live.where.values() if dead else ():
            dead -= set(range(location.start, location.start + location.size))
        for position in draw.sample(sorted(set(range(len(whole))) - dead), 60):
            flip(path, position)
            try:
                found = Checkpoints(tmp_path, 1).load_latest()
            except UserError:
                pass
            else:  # a byte between two values of the manifest may change without changing any of them
                assert path.suffix == ".json" and found == live
            path.write_bytes(whole)


def test_when_no_checkpoint_is_usable_the_error_names_each_and_the_reason(tmp_path: Path) -> None:
    run(tmp_path, range(1, 6))
    flip(tmp_path / "clients/00000001.pack", 2)
    server_file(tmp_path, 5).unlink()
    with pytest.raises(UserError, match=r"checkpoint-00000005\.json .*No such file.*checkpoint-00000004\.json .*00000001\.pack.*damaged"):
        Checkpoints(tmp_path, 2).load_latest()


def test_a_checkpoint_of_another_version_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fibecfed.engine.checkpoint.CHECKPOINT_VERSION", 99)
    run(tmp_path, range(1, 2))
    monkeypatch.undo()
    with pytest.raises(UserError, match="version 99, expected 1"):
        Checkpoints(tmp_path, 2).load_latest()


def test_a_pack_exchanged_for_another_runs_pack_of_the_same_length_is_noticed(tmp_path: Path) -> None:
    for name, blob in (("a", b"1" * 50), ("b", b"2" * 50)):
        checkpoints, _, states = start(tmp_path / name)
        states.put("c", blob)
        checkpoints.save(1, b"", states, {})
    os.replace(tmp_path / "b/clients/00000001.pack", tmp_path / "a/clients/00000001.pack")
    with pytest.raises(UserError, match="not those that were written"):
        Checkpoints(tmp_path / "a", 2).load_latest()


def test_loading_changes_nothing_on_disk_and_opening_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    run(tmp_path, range(1, 4))
    before = names(tmp_path)
    for orphan in ("clients/00000009.pack", "server-00000004-0123456789ab.state", ".checkpoint-00000004.json.77.tmp"):
        (tmp_path / orphan).write_bytes(b"half")
    with (tmp_path / "clients/00000001.pack").open("ab") as pack:
        pack.write(b"half a record")
    with_orphans = names(tmp_path)
    latest = Checkpoints(tmp_path, 2).load_latest()
    assert names(tmp_path) == with_orphans
    states = Checkpoints(tmp_path, 2).open_states(latest, LIMIT)
    assert names(tmp_path) == before
    assert held(states) == expected(3)


def test_a_run_killed_before_its_first_checkpoint_starts_empty(tmp_path: Path) -> None:
    _, _, states = start(tmp_path)
    for i in range(10):
        states.put(f"{i}", bytes(100))
    assert names(tmp_path)
    _, latest, states = start(tmp_path)
    assert latest is None
    assert not len(states)
    assert names(tmp_path) == []


def test_opening_empty_beside_checkpoints_or_saving_foreign_states_is_refused(tmp_path: Path) -> None:
    checkpoints, _ = run(tmp_path, range(1, 2))
    with pytest.raises(ValueError, match="holds checkpoints"):
        Checkpoints(tmp_path, 2).open_states(None, LIMIT)
    with pytest.raises(ValueError, match="use those of open_states"):
        checkpoints.save(2, b"", ClientStates(tmp_path / "other", LIMIT), {})


def test_saving_a_number_again_replaces_it(tmp_path: Path) -> None:
    checkpoints, states = run(tmp_path, range(1, 4))
    states.put("new", b"new")
    checkpoints.save(3, b"other", states, {})
    latest = checkpoints.load_latest()
    assert latest is not None
    assert (latest.number, latest.server, "new" in latest.where) == (3, b"other", True)
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == ["checkpoint-00000002.json", "checkpoint-00000003.json"]
    assert len(list(tmp_path.glob("server-*"))) == 2


@pytest.mark.parametrize("nth", range(8))
@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_a_disk_that_fills_up_at_any_call_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    checkpoints, states = run(tmp_path, range(1, 4))
    count = 0
    whole = getattr(os, call)

    def full(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count > nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(*arguments)

    states.put("c/0", b"4" * 40)
    monkeypatch.setattr(os, call, full)
    try:
        checkpoints.save(4, b"server@4" * 10, states, {"records": 400})
        failed = False
    except RunFailed as error:
        assert "No space left" in str(error)
        failed = True
    monkeypatch.undo()
    assert failed == (count > nth)
    latest = Checkpoints(tmp_path, 2).load_latest()
    assert latest is not None
    assert latest.warnings == ()
    assert latest.number == 4 if not failed else latest.number in (3, 4)  # 4 when only the last flush of the folder failed
    assert latest.server == f"server@{latest.number}".encode() * 10
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert len(list(tmp_path.glob("server-*"))) == len(list(tmp_path.glob("checkpoint-*")))

    checkpoints.save(5, b"server@5", states, {})  # with room again, the same process goes on
    states = start(tmp_path)[2]
    assert held(states) == {**expected(3), "c/0": b"4" * 40}


def test_everything_a_manifest_names_is_flushed_before_the_manifest_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, range(1, 4))
    checkpoints, _, states = start(tmp_path)  # begins a new pack
    unflushed: set[int] = set()
    appeared: list[str] = []
    opened, pwrite, fsync, replace = os.open, os.pwrite, os.fsync, os.replace

    def track_open(path: Path, *arguments: int) -> int:
        if path.suffix == ".pack" and not path.exists():
            unflushed.add(path.parent.stat().st_ino)
        return opened(path, *arguments)

    def track_write(file: int, data: memoryview, offset: int) -> int:
        unflushed.add(os.fstat(file).st_ino)
        return pwrite(file, data, offset)

    def track_flush(file: int) -> None:
        fsync(file)
        unflushed.discard(os.fstat(file).st_ino)

    def track_name(aside: Path, path: Path) -> None:
        assert not unflushed
        replace(aside, path)
        appeared.append(path.name)
        unflushed.add(path.parent.stat().st_ino)

    for name, call in (("open", track_open), ("pwrite", track_write), ("fsync", track_flush), ("replace", track_name)):
        monkeypatch.setattr(os, name, call)
    for i in range(6):
        states.put(f"c/{i}", bytes(100))  # more than memory holds: some are written before the checkpoint
    path = checkpoints.save(4, b"server", states, {})
    assert appeared == [server_file(tmp_path, 4).name, path.name]
    assert not unflushed


def test_the_files_written_for_a_round_do_not_grow_with_the_number_of_clients(tmp_path: Path) -> None:
    written: dict[int, int] = {}
    for clients in (10, 2000):
        checkpoints = Checkpoints(tmp_path / f"{clients}", 2)
        states = checkpoints.open_states(None, 10_000)
        for i in range(clients):
            states.put(f"client-{i}", bytes(100))
        checkpoints.save(1, b"server", states, {})
        pack = tmp_path / f"{clients}/clients/00000001.pack"
        size = pack.stat().st_size
        for i in range(5):
            states.put(f"client-{i}", bytes([1] * 100))
        manifest = checkpoints.save(2, b"server", states, {})
        written[clients] = pack.stat().st_size - size + manifest.stat().st_size
    assert abs(written[2000] - written[10]) < 20
