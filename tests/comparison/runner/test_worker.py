"""A worker's runs have the bits of runs made alone, whatever it made before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from texts import bits

from fibecfed import session
from fibecfed.comparison.runner import worker
from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.plan import job
from fibecfed.config import to_toml
from fibecfed.core.errors import RunFailed
from fibecfed.core.records import read
from fibecfed.core.rng import Key
from fibecfed.engine.events import RoundDone
from fibecfed.models.base_models import find, load_model
from fibecfed.models.kept import KeptWeights
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions

CLOCKS = ("seconds", "cpu_s", "compute_s", "evaluation")


def facts(folder: Path) -> list[Any]:
    """Header, records and summary without what a clock said."""
    header, records = read(folder / "records.jsonl")
    timeless = [{name: value for name, value in vars(record).items() if name not in CLOCKS} for record in records]
    summary = json.loads((folder / "summary.json").read_text())
    return [header, timeless, {name: value for name, value in summary.items() if name not in CLOCKS}]


def test_a_reused_worker_gives_the_bits_of_a_fresh_run_and_reads_the_backbone_once(
    compared: Callable[..., ComparisonOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, from_files = [], ClassHead.model_class.from_pretrained

    def counted(*arguments: Any, **keywords: Any) -> Any:
        reads.append(arguments)
        return from_files(*arguments, **keywords)

    # with a head for three classes, which the file's does not fit, and for two, which it does; another seed, another method
    three = ('task.reviews.data.labels=["bad", "good", "neither"]',)
    jobs = [
        job(compared(*three), tmp_path / "first", "reviews", "lora", 3),
        job(compared(), tmp_path / "second", "reviews", "fibecfed", 0),
        job(compared(*three, "base.model.head=last"), tmp_path / "third", "reviews", "lora", 1),
    ]
    weights = KeptWeights()
    with monkeypatch.context() as patch:
        patch.setattr(ClassHead.model_class, "from_pretrained", counted)
        last = [worker.do(to_toml(one.config), one.folder, lambda message: None, weights) for one in jobs]
    assert [message.get("reason") for message in last] == [None, None, None]
    assert len(reads) == 2  # the first could not be kept: its head is lost, and the second needs it
    for number, one in enumerate(jobs[1:]):
        fresh = tmp_path / f"fresh{number}"
        session.start(one.config, fresh)
        assert facts(one.folder) == facts(fresh)
    assert (fresh / "global").is_dir()
    assert {path.name for path in jobs[1].folder.iterdir()} == {"config.toml", "records.jsonl", "summary.json", "lock"}


@pytest.mark.parametrize("method", ["lora", "slora", "fedex-lora", "adapter", "fibecfed"])
def test_kept_weights_are_in_memory_once_and_no_run_writes_them(
    method: str, compared: Callable[..., ComparisonOptions], inputs: Path, tmp_path: Path
) -> None:
    one = job(compared(f'methods=["{method}"]'), tmp_path / "run", "reviews", method, 0)
    source, weights = find(ModelOptions(name=str(inputs / "backbone"))), KeptWeights()
    name = (source, "AutoModelForSequenceClassification", "float32")
    first, _ = load_model(source, objective=ClassHead(2), pad_token_id=0, dropout=0.0, key=Key(0), weights=weights)
    kept = weights.find(name, source.files)
    assert kept is not None
    before = bits(kept[1])
    assert worker.do(to_toml(one.config), one.folder, lambda message: None, weights).get("reason") is None
    second, _ = load_model(source, objective=ClassHead(2), pad_token_id=0, dropout=0.0, key=Key(1), weights=weights)
    kept = weights.find(name, source.files)
    assert kept is not None and bits(kept[1]) == before
    for model in (first, second):
        own = model.state_dict()
        assert all(value.data_ptr() == own[key].data_ptr() for key, value in kept[1].items())


def test_a_changed_file_is_read_again(inputs: Path) -> None:
    source, weights = find(ModelOptions(name=str(inputs / "backbone"))), KeptWeights()
    load_model(source, objective=ClassHead(2), pad_token_id=0, dropout=0.0, key=Key(0), weights=weights)
    name = (source, "AutoModelForSequenceClassification", "float32")
    assert weights.find(name, source.files) is not None
    (file,) = source.files
    file.touch()
    assert weights.find(name, source.files) is None


def test_every_way_to_fail_is_a_message(
    compared: Callable[..., ComparisonOptions], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(name: str, *pairs: str) -> dict[str, Any]:
        one = job(compared(*pairs), tmp_path / name, "reviews", "lora", 0)
        return worker.do(to_toml(one.config), one.folder, lambda message: None, None)

    refused = outcome("refused", "base.federation.clients=70", "base.federation.clients_per_round=70")
    assert (refused["kind"], refused["why"]) == ("failed", "refused")
    diverged = outcome("diverged", "base.training.learning_rate=1e30")
    assert diverged["why"] == "diverged" and "client" in diverged["reason"]
    drop = "base.federation.on_failure=drop"
    diverged = outcome("all diverged", "base.training.learning_rate=1e30", drop)
    assert diverged["why"] == "diverged" and "usable answer" in diverged["reason"]
    missed = outcome("missed", drop, "base.federation.max_samples=1", "base.federation.quorum=1")
    assert missed["why"] == "stopped" and "num_samples" in missed["reason"]  # its numbers were finite: the same command tries it again

    def unreadable(*arguments: Any, **keywords: Any) -> None:
        raise RunFailed("the state of client 'a' cannot be read back")

    with monkeypatch.context() as patch:
        patch.setattr(session, "start", unreadable)
        assert outcome("unreadable")["why"] == "stopped"

    def broken(*arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(session, "start", broken)
    stopped = outcome("stopped")
    assert stopped["why"] == "stopped" and "ZeroDivisionError: division by zero; its traceback is in" in stopped["reason"]
    assert "Traceback" in (tmp_path / "stopped/runs/reviews/lora/0.traceback.txt").read_text()


def test_records_of_another_version_are_named_by_file_and_line(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    one = job(compared(), tmp_path, "reviews", "lora", 0)

    def interrupt(message: Any) -> None:
        if message.get("done") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.do(to_toml(one.config), one.folder, interrupt, None)
    records = one.folder / "records.jsonl"
    records.write_bytes(records.read_bytes().replace(b'"version":2', b'"version":9'))
    failed = worker.do(to_toml(one.config), one.folder, lambda message: None, None)
    assert "records.jsonl, line 1: records of version 9, expected one of 1, 2" in failed["reason"]


def test_a_run_whose_data_were_moved_is_resumed(compared: Callable[..., ComparisonOptions], inputs: Path, tmp_path: Path) -> None:
    before = tmp_path / "reviews.csv"
    before.write_text((inputs / "reviews.csv").read_text())
    old = job(compared(f"task.reviews.data.path={before}"), tmp_path, "reviews", "lora", 0)

    def stop(event: object) -> None:
        if isinstance(event, RoundDone) and event.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.start(old.config, old.folder, stop, adapters=False)
    before.unlink()
    one = job(compared(), tmp_path, "reviews", "lora", 0)
    assert worker.do(to_toml(one.config), one.folder, lambda message: None, KeptWeights())["kind"] == "done"


@pytest.mark.parametrize(("asked", "expected"), [((), "in_process"), (("base.resources.workers=1",), "simulated")])
def test_a_run_computes_its_clients_in_one_process_unless_it_is_asked_to(
    asked: tuple[str, ...], expected: str, compared: Callable[..., ComparisonOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(compared(*asked), tmp_path, "reviews", "lora", 0)
    monkeypatch.setattr(session, "start", lambda *_, connect, **__: {"connected": connect.__name__})
    done = worker.do(to_toml(one.config), one.folder, lambda message: None, KeptWeights())
    assert done["summary"] == {"connected": expected}
