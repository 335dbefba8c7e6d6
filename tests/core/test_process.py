"""What there is of a machine, as the system says it, in and outside of a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fibecfed.core import process


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a container, on a machine of 8 cores."""
    monkeypatch.setattr(process, "_CONTAINER", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (None, 8),
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("\n", 8),
    ],
)
def test_cores_are_those_of_the_process_and_of_its_container(quota: str | None, expected: int, container: Path) -> None:
    if quota is not None:
        (container / "cpu.max").write_text(quota)
    assert process.cores() == expected


def test_free_memory_is_what_the_machine_and_the_container_have(container: Path) -> None:
    of_machine = process.free_memory()
    assert of_machine is None or of_machine > 2**20
    for name, text in (("memory.max", "9000000\n"), ("memory.current", "5000000\n"), ("memory.stat", "anon 7\ninactive_file 1000000\n")):
        (container / name).write_text(text)
    assert process.free_memory() == 5_000_000
    (container / "memory.max").write_text("max\n")
    assert process.free_memory() == pytest.approx(of_machine, rel=0.5)


def test_the_memory_of_this_process_is_known() -> None:
    before = process.resident_memory()
    kept = bytearray(os.urandom(2**24))
    assert before == 0 or process.resident_memory() > before + 2**23
    del kept
