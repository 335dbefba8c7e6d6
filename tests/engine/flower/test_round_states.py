from __future__ import annotations

from pathlib import Path

from fibecfed.engine.flower.round_states import RoundStates


def states(folder: Path, numbers: list[int], keep: int = 10) -> RoundStates:
    made = RoundStates(folder / "run", keep)
    for number in numbers:
        made.now = number
        made.put("a", b"after %d" % number)
    return made


def at(made: RoundStates, now: int) -> bytes | None:
    made.now = now
    return made.get("a")


def test_a_round_starts_from_the_state_after_the_last_one_before_it(tmp_path: Path) -> None:
    made = states(tmp_path, [1, 4, 6])
    assert [at(made, now) for now in (0, 1, 2, 4, 5, 6, 7, 99)] == [
        None, None, b"after 1", b"after 1", b"after 4", b"after 4", b"after 6", b"after 6",
    ]  # fmt: skip


def test_a_round_that_is_asked_for_again_starts_from_the_same_state(tmp_path: Path) -> None:
    made = states(tmp_path, [1, 4])
    assert at(made, 4) == b"after 1"
    made.put("a", b"again")
    assert at(made, 4) == b"after 1" and at(made, 5) == b"again"


def test_what_a_resumed_run_has_not_reached_is_forgotten(tmp_path: Path) -> None:
    made = states(tmp_path, [1, 4, 6])
    made.forget_from(4)
    assert at(made, 99) == b"after 1" and made.numbers() == [1]
    made.forget_from(0)
    assert at(made, 99) is None


def test_only_the_newest_states_are_kept(tmp_path: Path) -> None:
    made = states(tmp_path, [9, 10, 99, 100], keep=3)
    assert sorted(made.numbers()) == [10, 99, 100]


def test_without_a_state_there_is_no_folder(tmp_path: Path) -> None:
    made = RoundStates(tmp_path / "run", 3)
    made.forget_from(0)
    assert made.get("a") is None and not (tmp_path / "run").exists()
