"""Real processes: what a SuperNode whose client never answers, and a client that never comes, cost the others."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from machines import BIN, Machines
from tiny_federation import NAMES, make_tiny, rounds_of

from fibecfed.core.records import RoundRecord

pytestmark = [pytest.mark.flower, pytest.mark.slow]

SILENT = """
import socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("silent.sock")
listener.listen()
print("listening at silent.sock", flush=True)
time.sleep(9999)
"""


def rounds_with(here: Machines, names: tuple[str, ...]) -> list[RoundRecord]:
    """A run of the three clients and of whoever else is named, in which everybody is asked in every round."""
    config = here.app / "federation.toml"
    before, runs = config.read_text(), set((here.app / "runs").glob("*"))
    keys = f"clients = {len(names)}\nclient_names = {list(names)}\nclients_per_round = {len(names)}\n"
    config.write_text(before.replace("clients = 3\n", keys).replace("round_timeout_s = 120.0", "round_timeout_s = 20.0"))
    for name in NAMES:
        here.client(name)
    for name in NAMES:
        here.until(f"client-{name}", "listening at")
    shown = here.run(str(BIN / "flwr"), "run", "fed", "production", "--stream", "--run-config", "wait-s=30.0")
    for name in NAMES:
        here.stop(f"client-{name}")
    config.write_text(before)
    new = set((here.app / "runs").glob("*")) - runs
    assert len(new) == 1, shown
    (out,) = new
    assert (out / "summary.json").is_file(), shown
    return rounds_of(out)


PAIRS = 3
"""Pairs of runs at most. Other work on the machine may make one run of half a minute slower than the one before it; a server that waits
for those who are silent makes every round longer, in each pair."""


def runs_without_and_with_them(folder: Path) -> tuple[list[RoundRecord], list[RoundRecord]]:
    """A run of the three clients alone, then one of them, of a silent and of an absent one."""
    folder.mkdir()
    here = make_tiny(folder, every=99, rounds=4)
    try:
        here.link()
        for name in (*NAMES, "silent"):
            here.key(name)
            here.register(name)
        for name in NAMES:
            here.node(name)
        without = rounds_with(here, NAMES)
        here.start("silent", sys.executable, "-c", SILENT)
        here.until("silent", "listening at")
        here.node("silent")
        here.until("node-silent", "SuperNode ID")
        return without, rounds_with(here, (*NAMES, "silent", "absent"))
    finally:
        here.close()


def test_a_silent_and_an_absent_client_cost_the_others_no_round_and_no_time(tmp_path: Path) -> None:
    ratios = list[float]()
    while not ratios or (ratios[-1] > 1.2 and len(ratios) < PAIRS):
        without, rounds = runs_without_and_with_them(tmp_path / str(len(ratios)))
        assert len(rounds) == len(without) >= 5
        for record in rounds:
            assert set(record.bytes_up) == set(NAMES) and set(record.failures) == {"silent", "absent"}
        alone, together = ([record.seconds for record in some] for some in (without, rounds))
        ratios.append(mean(together) / mean(alone))
        print(f"rounds without the two: {alone}; with them: {together}; ratio of the means {ratios[-1]:.2f}")
    assert ratios[-1] <= 1.2, ratios
