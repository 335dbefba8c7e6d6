"""A run with an activation cache: the same run, in no more memory than was said, and a budget that is too small is a sentence."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from resumed import facts
from rich.console import Console
from saved import adapter_files, interrupted_at, run_config, save_backbone, write_reviews

from fibecfed import check, session
from fibecfed.activation_plan import planned_bytes
from fibecfed.build import prepare
from fibecfed.core.errors import UserError

UPPER = {"kind": "fibecfed", "depth": 1, "depth_rule": "last", "score_after": 1}
LORA = {"kind": "lora", "depth": 1, "depth_rule": "last"}
LATE = {"kind": "lpt", "adapter": {"num_tokens": 3, "size": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cache")
    save_backbone(place / "backbone")
    write_reviews(place / "reviews.csv", 160)
    return place


def config(folder: Path, megabytes: int, method: dict[str, Any], **more: Any) -> Any:
    return run_config(folder, method=method, resources={"activation_cache_mb": megabytes}, **more)


def kept_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The prepared runs of sessions to come."""
    found: list[Any] = []

    def spied(*args: Any, **more: Any) -> Any:
        found.append(prepare(*args, **more))
        return found[-1]

    monkeypatch.setattr(session, "prepare", spied)
    return found


@pytest.mark.parametrize("method", [UPPER, LATE], ids=["fibecfed", "lpt"])
def test_a_run_has_the_same_records_scores_and_adapters_with_and_without_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    prepared = kept_of(monkeypatch)
    for megabytes in (0, 16):
        session.start(config(folder, megabytes, method), tmp_path / str(megabytes))
    assert facts(tmp_path / "0") == facts(tmp_path / "16") and adapter_files(tmp_path / "0") == adapter_files(tmp_path / "16")
    assert prepared[0].task.lower_blocks is None
    lower = prepared[1].task.lower_blocks
    assert lower.by_row and lower.found > lower.computed / 4


def test_a_run_resumed_with_another_budget_goes_on_to_the_same_end(folder: Path, tmp_path: Path) -> None:
    session.start(config(folder, 16, UPPER), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        session.start(config(folder, 16, UPPER), tmp_path / "run", interrupted_at(2))
    session.resume(tmp_path / "run", overrides=("resources.activation_cache_mb=0",))
    assert facts(tmp_path / "run") == facts(tmp_path / "whole") and adapter_files(tmp_path / "run") == adapter_files(tmp_path / "whole")


@pytest.mark.parametrize("method", [UPPER, LATE, {**LORA, "finetune": True}, {**UPPER, "curriculum": {"scoring": "training", "beta": 0.5}}])
@pytest.mark.parametrize("epochs", [1, 3])
def test_check_says_what_the_cache_will_hold(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], epochs: int
) -> None:
    wanted = config(folder, 16, method, training={"local_epochs": epochs}, federation={"rounds": 8})
    prepared = kept_of(monkeypatch)
    session.start(wanted, tmp_path / "run")
    held = prepared[0].task.lower_blocks.kept.nbytes
    assert planned_bytes(prepare(wanted)) == pytest.approx(held, rel=0.1) and held > 100_000


def test_check_says_the_budget_where_it_will_be_full(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reviews(folder / "many.csv", 600)
    wanted = config(folder, 1, UPPER, data={"path": str(folder / "many.csv")})
    prepared = kept_of(monkeypatch)
    session.start(wanted, tmp_path / "run")
    held = prepared[0].task.lower_blocks.kept.nbytes
    assert 0.99 * 2**20 < held <= 2**20
    assert planned_bytes(prepare(wanted)) == pytest.approx(held, rel=0.01)


def said(wanted: Any) -> str:
    console = Console(file=io.StringIO(), width=250)
    check.report(wanted, console)
    text: str = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return next(line for line in text.splitlines() if line.startswith("memory"))


def test_check_says_what_the_cache_takes_or_why_it_is_not_used(folder: Path) -> None:
    assert re.search(r"clients' states and [\d.]+ [kM]B the activation cache", said(config(folder, 16, UPPER)))
    assert "activation cache is not used: every block is trained" in said(config(folder, 16, {"kind": "lora"}))
    assert "activation cache is not used: dropout" in said(config(folder, 16, UPPER, training={"dropout": 0.1}))
    assert "activation cache" not in said(config(folder, 0, UPPER))


def test_a_budget_that_holds_no_batch_is_a_sentence_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    write_reviews(folder / "many.csv", 600)
    large = config(folder, 1, UPPER, training={"batch_size": 512}, data={"path": str(folder / "many.csv")})
    with pytest.raises(UserError, match=r"resources\.activation_cache_mb: got 1, expected at least \d+, .* raise it, or set it to 0"):
        session.start(large, tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"depth": 3}, r"method\.depth: got 3 blocks, expected at most 2"),
        ({"depth": -1}, r"method\.depth: got -1, expected an integer, at least 0, or a number, above 0 and at most 1"),
        (
            {"depth": 0},
            r'method\.depth: got 0 with `method\.kind` = "fibecfed", which chooses among trained blocks; set 1 or more, or lora',
        ),
        ({"kind": "fedsa-lora", "depth": 0}, r'method\.depth: got 0 with `method\.head` = "personal", so that nothing is shared'),
        ({"depth": 1.5}, r"method\.depth: got 1\.5, expected"),
        ({"depth": "half"}, r'method\.depth: got "half", expected'),
        ({"depth": 2, "depth_rule": "coverage"}, r'method\.depth: got 2 with `method\.depth_rule` = "coverage", expected a fraction'),
        ({"kind": "lora", "depth": 3}, r"method\.depth: got 3 blocks, expected at most 2"),
        ({"kind": "hetlora", "depth": 1}, r'method\.depth: got a key of fibecfed, lora, .* which method\.kind = "hetlora" does not have'),
        ({"kind": "lpt", "depth": 1}, r'method\.depth: got a key of .* which method\.kind = "lpt" does not have; remove it'),
        ({"depth_rule": "last"}, r'method\.depth_rule: got "last" without `method\.depth`'),
        ({"depth": 1, "depth_rule": "upper"}, r'method\.depth_rule: got "upper", expected'),
    ],
)
def test_a_depth_that_cannot_be_is_a_sentence(folder: Path, method: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        prepare(config(folder, 0, method))
