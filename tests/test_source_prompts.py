"""Source prompts of ATTEMPT: which tasks may give one, trained once, kept by what decides their numbers."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import run_config, save_backbone, write_reviews, write_task

from fibecfed import session, source_prompts
from fibecfed.build import prepare
from fibecfed.config import Config
from fibecfed.core.errors import UserError
from fibecfed.methods.catalogue import AttemptOptions
from fibecfed.source_prompts import source_tasks

ATTEMPT = {
    "kind": "attempt", "adapter": {"num_tokens": 3, "size": 4}, "sources": ["subj", "sst2"], "source_steps": 5, "source_batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, reviews, and two tasks of 24 sentences."""
    place = tmp_path_factory.mktemp("attempt")
    save_backbone(place / "backbone")
    write_reviews(place / "reviews.csv", 40)
    for task in ("subj", "sst2"):
        write_task(place, task)
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIBECFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(folder: Path, *, seed: int = 0, **method: Any) -> Config:
    return run_config(folder, seed=seed, method={**ATTEMPT, **method}, data={"root": str(folder)}, federation={"rounds": 1})


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks that are trained from now on."""
    done: list[str] = []
    train = source_prompts._train
    monkeypatch.setattr(source_prompts, "_train", lambda *args: done.append(args[-1]) or train(*args))
    return done


def test_each_source_is_trained_once_whatever_the_seed_of_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = trainings(monkeypatch)
    first, again = prepare(config(folder)), prepare(config(folder, seed=3))
    assert done == ["subj", "sst2"]
    a, b = (prepared.task.model.adapter.sources for prepared in (first, again))
    assert torch.equal(a, b) and a.shape == (2, 3, 64) and not torch.equal(a[0], a[1])
    works = first.beforehand.summary["sources"]
    assert works == again.beforehand.summary["sources"]
    assert [(work["task"], work["examples"]) for work in works] == [("subj", 20), ("sst2", 20)]
    assert all(work["seconds"] > 0 for work in works)
    assert not any("sources" in name for name in first.task.names)


def test_what_another_process_is_training_is_waited_for_and_the_others_are_trained_meanwhile(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(config(folder))
    files = sorted((cache / "source-prompts").glob("*.safetensors"))
    held = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    first, meanwhile = files[0], list[str]()
    lock = os.open(first.with_suffix(".lock"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    train = source_prompts._train

    def trained(*args: Any) -> Any:
        meanwhile.append(args[-1])
        result = train(*args)
        first.write_bytes(held[first])  # the other process is done
        os.close(lock)
        return result

    monkeypatch.setattr(source_prompts, "_train", trained)
    prepare(config(folder))
    assert len(meanwhile) == 1 and first.read_bytes() == held[first]
    assert files[1].is_file()


@pytest.mark.parametrize("change", [{"source_steps": 6}, {"source_learning_rate": 0.1}, {"adapter": {"num_tokens": 2, "size": 4}}])
def test_another_budget_or_length_gives_another_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    done = trainings(monkeypatch)
    prepare(config(folder, sources=["subj"]))
    prepare(config(folder, sources=["subj"], **change))
    assert done == ["subj", "subj"]


def test_a_trial_trains_and_writes_nothing(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = trainings(monkeypatch)
    prepared = prepare(config(folder), trial=True)
    assert not done and not cache.exists() and prepared.beforehand.summary == {}
    assert not prepared.task.model.adapter.sources.any()


def test_a_run_says_what_its_sources_cost_and_saves_them_with_the_adapter(folder: Path, tmp_path: Path) -> None:
    summary = session.start(config(folder), tmp_path / "run")
    assert [source["task"] for source in summary["sources"]] == ["subj", "sst2"]
    assert all(source["examples"] == 20 and source["seconds"] > 0 for source in summary["sources"])
    table = json.loads((tmp_path / "run" / "global" / "adapter.json").read_text(encoding="utf-8"))
    assert table["kind"] == "mixed prompt"
    assert "fibecfed.load_adapter" in (tmp_path / "run" / "global" / "README.md").read_text(encoding="utf-8")


def test_a_file_in_the_cache_that_cannot_be_read_is_named(folder: Path, cache: Path) -> None:
    prepare(config(folder, sources=["subj"]))
    (path,) = (cache / "source-prompts").glob("*.safetensors")
    path.write_bytes(b"cut")
    with pytest.raises(UserError, match=r"got no source prompt that can be read .*delete the file"):
        prepare(config(folder, sources=["subj"]))


def test_a_source_whose_data_are_missing_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method.sources: trec cannot be used: .*trec"):
        prepare(config(folder, sources=["trec"]))
    with pytest.raises(UserError, match=r"method.sources: trec cannot be used: .*trec"):
        prepare(config(folder, sources=["trec"]), trial=True)


@pytest.mark.parametrize(
    ("sources", "task", "message"),
    [
        (("sst2",), "mr", "got 'sst2' for a run on mr, which it is or shares texts with"),
        (("mr",), "sst2", "got 'mr' for a run on sst2"),
        (("qnli", "rte"), "rte", "got 'rte' for a run on rte"),
        (("imdb",), "rte", "got 'imdb', expected names among"),
        ((), "rte", "got none, expected at least one name, and each once"),
        (("qnli", "qnli"), None, "got qnli, qnli, expected"),
    ],
)
def test_sources_that_may_not_be_used_are_refused(sources: tuple[str, ...], task: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        source_tasks(AttemptOptions(sources=sources), task)


def test_the_default_leaves_out_the_runs_own_task_and_what_shares_texts_with_it() -> None:
    assert source_tasks(AttemptOptions(), None) == ("qnli", "sst2", "boolq", "subj")
    for task in ("sst2", "mr", "subj"):
        assert source_tasks(AttemptOptions(), task) == ("qnli", "boolq")
    assert source_tasks(AttemptOptions(), "mpqa") == ("qnli", "boolq", "subj")


def test_a_source_rate_with_which_training_diverges_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method\.source_learning_rate: got 1e\+30, with which training on subj diverged"):
        prepare(config(folder, source_learning_rate=1e30))
