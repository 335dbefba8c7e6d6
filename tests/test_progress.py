"""What a watched run prints."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from fibecfed.core.metrics import METRICS
from fibecfed.engine.events import DataInspected, Evaluated, Finished, PhaseStarted, RoundDone, Started, Warned
from fibecfed.progress import Progress, how_to_ask, show_summary


def events() -> list:
    rounds = [RoundDone("tune", t, 25, None if t == 0 else 0.5, 600_000, 400_000, 2.0) for t in range(25)]
    return [
        Started(Path("runs/a"), (("importance", 1), ("tune", 25))),
        PhaseStarted("importance", 1),
        RoundDone("importance", 0, 1, None, 100, 100, 2.0),
        PhaseStarted("tune", 25),
        Evaluated(0, METRICS["accuracy"], 0.5, 0.5, None, {}),
        *rounds[:10],
        Warned("checkpoint 3 [was] corrupt"),
        *rounds[10:],
        Evaluated(25, METRICS["accuracy"], 0.81, 0.8, 0.7, {}, is_last=True, answered=2, clients=3),
        Finished({}, Path("runs/a")),
    ]


def shown(terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Progress(console) as progress:
        for event in events():
            progress(event)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_log_has_a_line_an_evaluation_one_every_ten_rounds_and_the_warnings() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "runs/a: 26 rounds (importance 1, tune 25)",
        "phase importance: 1 round",
        "importance 1/1: 200 bytes, 50 s left",
        "phase tune: 25 rounds",
        "after round 0: personalised 50.0 %, global 50.0 %, worst decile -",
        "tune 10/25: untrained 50.0 %, loss 0.500, 10.0 MB, 30 s left",
        "warning: checkpoint 3 [was] corrupt",
        "tune 20/25: untrained 50.0 %, loss 0.500, 20.0 MB, 10 s left",
        "tune 25/25: untrained 50.0 %, loss 0.500, 25.0 MB, last evaluation, then saving",
        "after round 25 (2 of 3 clients): personalised 81.0 %, global 80.0 %, worst decile 70.0 % (last)",
    ]


def test_a_terminal_has_one_live_line_and_the_warnings() -> None:
    text = shown(terminal=True)
    assert "warning: checkpoint 3 [was] corrupt" in text and "phase importance" not in text
    assert "26/26" in text and "score 81.0 %, loss 0.500, 25.0 MB, saving" in text and "0.0 s left" not in text


def test_what_is_done_before_the_first_round_is_said_and_where_a_resumed_run_goes_on() -> None:
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with Progress(console, "loading model and data") as progress:
            begun = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
            assert begun.startswith("\x1b[?25l") if terminal else begun == "loading model and data ...\n"  # a spinner is drawn later
            progress(Started(Path("a"), (("tune", 9),), completed=4))
        text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert "a: 9 rounds, resumed after round 4: rounds after the last checkpoint are repeated" in text


def test_an_interrupted_run_gives_the_terminal_back() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    try:
        with Progress(console) as progress:
            progress(Started(Path("a"), (("tune", 3),), completed=1))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert console.file.getvalue().rfind("\x1b[?25h") > console.file.getvalue().rfind("\x1b[?25l") >= 0  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_likely_to_spoil_the_data_stays_on_the_screen() -> None:
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with Progress(console) as progress:
            progress(Started(Path("a"), (("tune", 1),)))
            progress(DataInspected(("classes that look alike: 'a' and 'A'", "b")))
        text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert "warning: classes that look alike: 'a' and 'A'" in text and "warning: b" in text


def test_a_clients_name_out_of_a_file_steers_no_terminal() -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, width=200))
    progress(Warned("client \x1b]0;owned\x07\u202e\x9b31m was left out"))
    assert out.getvalue() == "warning: client \\x1b]0;owned\\x07\\u202e\\x9b31m was left out\n"


def ended(**scores: float | None) -> list[str]:
    """The lines that a run with these scores ends with."""
    found = {"pooled_personalised": 0.85, "global": 0.71, "worst_decile": 0.6, "majority": 0.5, "own_majority": 0.8} | scores
    summary = {
        "method": "fibecfed", "scores": found, "saved": {"rounds": 3, **found}, "rounds": 3, "bytes_up": 1, "bytes_down": 1, "steps": 1,
        "examples": 1, "seconds": 1.0, "selected": {}, "clients": {}, "classes": {},
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=100)
    show_summary(console, summary, Path("runs/a"))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_run_ends_with_what_its_scores_are_above_without_reading_and_what_to_do_next() -> None:
    lines = ended()
    assert "majority class 80.0 % 50.0 % -" in lines
    assert "above majority class +5.0 points +21.0 points -" in lines
    assert [line.partition(":")[0] for line in lines[-3:]] == [
        "To compare",
        "To ask a model, see the model card.",
        "To see curves, clients and classes",
    ]
    assert "above majority class -30.0 points - -" in ended(**{"pooled_personalised": 0.5, "global": None})


def test_the_command_that_asks_a_model_is_that_of_its_kind(tmp_path: Path) -> None:
    (tmp_path / "a b" / "global").mkdir(parents=True)
    assert how_to_ask({"classes": {}}, tmp_path / "a b") == f"To classify texts: fibecfed predict '{tmp_path}/a b' FILE"
    assert how_to_ask({}, tmp_path / "a b") == f"To get an answer: fibecfed generate '{tmp_path}/a b' PROMPT"
    assert how_to_ask({"classes": {}}, tmp_path) == "To ask a model, see the model card."


def test_scores_without_a_majority_are_shown_without_it() -> None:
    assert not [line for line in ended(majority=None, own_majority=None) if "ajority" in line]
