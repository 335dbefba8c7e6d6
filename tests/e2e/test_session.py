"""A run on disk, from a configuration to adapters that plain PEFT loads."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ran import counted_by_plain_peft
from saved import run_config
from sums import matrix

from fibecfed import session
from fibecfed.comparison.report.recorded import Header
from fibecfed.comparison.report.runs import _conditions
from fibecfed.config import load
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.metrics import offered_by
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.core.statistics import of_classes
from fibecfed.engine.events import DataInspected, Evaluated, Finished, PhaseStarted, RoundDone, Started, Warned
from fibecfed.engine.loop import run
from fibecfed.saving import folder_name

METHODS: dict[str, dict[str, Any]] = {
    "fibecfed": {"kind": "fibecfed"},
    "fibecfed by default": {"kind": "fibecfed", "preset": None},
    "closing round": {"kind": "fibecfed", "closing_round": True},
    "lora, then personal": {"kind": "lora", "finetune": True},
    "local": {"kind": "local"},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_leaves_everything_in_its_folder(whole: Any, inputs: Path) -> None:
    out, summary, _ = whole
    assert {path.name for path in out.iterdir()} == {
        "config.toml", "records.jsonl", "summary.json", "checkpoints", "global", "clients", "lock",
    }  # fmt: skip
    assert json.loads((out / "summary.json").read_text()) == summary
    assert load(out / "config.toml").config == run_config(inputs)
    for adapter in (out / "global", *(out / "clients").iterdir()):
        assert {path.name for path in adapter.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "labels.json", "README.md", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip
        about = json.loads((adapter / "labels.json").read_text())
        assert (about["labels"], about["id2label"], about["label2id"]) == (
            ["bad", "good"],
            {"0": "bad", "1": "good"},
            {"bad": 0, "good": 1},
        )
        assert (about["max_length"], about["pair"]) == (64, False)
        settings = json.loads((adapter / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == "backbone"
        assert str(inputs.parent) not in (adapter / "README.md").read_text() + (adapter / "adapter_config.json").read_text()


def test_the_summary_has_the_names_that_others_rely_on(whole: Any) -> None:
    out, summary, _ = whole
    three = {"pooled_personalised", "global", "worst_decile"}
    scores = summary["scores"]
    assert three <= scores.keys() and three < scores["untrained"].keys()
    assert {"rounds", *three} <= scores["best_by_validation"].keys()
    assert (summary["metric"], summary["higher_is_better"]) == ("accuracy", True)
    assert scores["metrics"]["personalised"]["accuracy"] == scores["pooled_personalised"]
    assert (
        scores["metrics"]["global"].keys() == {metric.name for metric in offered_by(of_classes(2).zero)}
        and scores["metrics"]["global"]["loss"] > 0
    )
    assert summary["classes"]["labels"] == ["bad", "good"]
    for name in ("bytes_up", "bytes_down", "steps", "examples", "seconds"):
        assert summary[name] > 0
    assert summary["selected"]["global_layers"] in ([0], [1])
    assert len(summary["adapters"]["sha256"]) == 64 and summary["adapters"]["personal"] == len(list((out / "clients").iterdir()))


def test_the_records_say_under_what_conditions_and_what_happened(whole: Any) -> None:
    out, summary, _ = whole
    header, records = read(out / "records.jsonl")
    assert header["configuration"]["federation"]["clients"] == 4
    assert {"torch", "transformers", "peft", "python"} <= header["versions"].keys()
    assert (header["threads"], header["precision"], header["device"], header["labels"]) == (1, "float32", "cpu", ["bad", "good"])
    assert (header["metric"], header["higher_is_better"], header["usual_metric"]) == ("accuracy", True, None)
    assert list(header["model"]["files"]) == ["model.safetensors"] and header["machine"]["cores"] >= 1
    assert set(header["partition"]) == {"0", "1", "2", "3"}
    assert sum(sum(parts["test"]) for parts in header["partition"].values()) == 24
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    assert [(record.phase, record.index) for record in rounds] == [("importance", 0), *(("tune", t) for t in range(4))]
    assert [record.rounds for record in evaluations] == [0, 3, 5]
    assert rounds[0].server["global_layers"] == summary["selected"]["global_layers"]
    assert summary["bytes_up"] == sum(sum(record.bytes_up.values()) for record in rounds)
    assert all(record.cpu_s > 0 for record in rounds)
    assert header["warnings"] == []


def test_warnings_about_the_data_are_told_once_and_recorded(inputs: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    session.start(run_config(inputs, federation={"clients": 30, "rounds": 1}), tmp_path / "run", events.append, adapters=False)
    (told,) = (event for event in events if isinstance(event, DataInspected))
    header, _ = read(tmp_path / "run" / "records.jsonl")
    assert any("fewer than 8 training examples on 30 of 30 clients" in text for text in told.warnings)
    assert header["warnings"] == list(told.warnings)


def test_events_tell_whoever_watches(whole: Any) -> None:
    out, summary, events = whole
    assert events[0] == Started(out, (("importance", 1), ("tune", 4)), 0) and events[0].total_rounds == 5
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == ["importance", "tune"]
    assert [(event.phase, event.index) for event in events if isinstance(event, RoundDone)] == [
        ("importance", 0), *(("tune", t) for t in range(4)),
    ]  # fmt: skip
    scored = [event for event in events if isinstance(event, Evaluated)]
    assert [(event.rounds, event.is_last) for event in scored] == [(0, False), (3, False), (5, True)]
    assert scored[-1].pooled_personalised == summary["scores"]["pooled_personalised"]
    assert events[-1] == Finished(summary, out)
    losses = [event.loss for event in events if isinstance(event, RoundDone)]
    assert losses[0] is None and all(loss is not None and math.isfinite(loss) for loss in losses[1:])


def test_a_phase_is_announced_before_its_first_round_is_computed(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def listening(*arguments: Any, **more: Any) -> Iterator[Any]:
        said.append("computing")
        for step in run(*arguments, **more):
            yield step
            said.append("computing")

    monkeypatch.setattr(session, "run", listening)
    session.start(run_config(inputs, federation={"rounds": 2}), tmp_path / "run", said.append, adapters=False)
    of_rounds = [
        one if one == "computing" else type(one) for one in said if one == "computing" or isinstance(one, PhaseStarted | RoundDone)
    ]
    assert of_rounds == [PhaseStarted, "computing", RoundDone, PhaseStarted, "computing", RoundDone, "computing", RoundDone]


@pytest.mark.parametrize("name", METHODS)
def test_plain_peft_loads_the_adapters_and_predicts_what_was_reported(name: str, inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, method=METHODS[name])
    out = tmp_path / "run"
    summary = session.start(config, out)
    *_, last = [record for record in read(out / "records.jsonl")[1] if isinstance(record, EvalRecord)]

    server, clients = counted_by_plain_peft(config, inputs, out)
    assert server == matrix(last.server) and clients == {client: matrix(sums) for client, sums in last.clients.items()}
    assert all(sum(column) for column in zip(*matrix(last.pooled), strict=True)), "all predictions are equal: the test would see little"
    assert summary["adapters"]["personal"] > 0


def test_the_same_configuration_gives_the_same_adapters_and_another_seed_others(whole: Any, inputs: Path, tmp_path: Path) -> None:
    digest = whole[1]["adapters"]["sha256"]
    assert session.start(run_config(inputs), tmp_path / "again")["adapters"]["sha256"] == digest
    assert session.start(run_config(inputs, seed=1), tmp_path / "other")["adapters"]["sha256"] != digest


def test_how_often_scores_and_checkpoints_are_made_changes_no_bit(whole: Any, inputs: Path, tmp_path: Path) -> None:
    config = run_config(
        inputs, evaluation={"every": 1, "batch_size": 3}, resources={"checkpoint_every": 3, "keep_checkpoints": 1, "client_memory_mb": 1}
    )
    assert session.start(config, tmp_path / "run")["adapters"]["sha256"] == whole[1]["adapters"]["sha256"]


def test_without_a_validation_part_no_round_is_called_the_best_by_it(inputs: Path, tmp_path: Path) -> None:
    summary = session.start(run_config(inputs, data={"validation_fraction": 0.0}, federation={"rounds": 1}), tmp_path / "run")
    assert summary["scores"]["best_by_validation"] is None


def test_clients_named_by_a_column_get_folders_of_their_own_whatever_they_are_called(inputs: Path, tmp_path: Path) -> None:
    long = "第二人民医院" * 8
    names = ["../up", "a/b", "ü and co", ".hidden", long]
    lines = (inputs / "reviews.csv").read_text().splitlines()
    rows = [lines[0] + ",who", *(f"{line},{names[i % 5]}" for i, line in enumerate(lines[1:]))]
    (tmp_path / "named.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    data = {"path": str(tmp_path / "named.csv"), "client_column": "who"}
    federation = {"partition": "column", "clients_per_round": 5, "rounds": 2}
    session.start(run_config(inputs, data=data, federation=federation), tmp_path / "runs" / "run")
    made = {path.name for path in (tmp_path / "runs" / "run" / "clients").iterdir()}
    assert made == {"%2E.%2Fup", "a%2Fb", "%C3%BC%20and%20co", "%2Ehidden", folder_name(long)}
    assert len(folder_name(long)) < 143 and folder_name(long) != folder_name(long + "一")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"run"}
    assert "# Adapter of client ü and co" in (tmp_path / "runs" / "run" / "clients" / "%C3%BC%20and%20co" / "README.md").read_text()


# ---- what is rejected


def test_a_folder_that_holds_a_run_is_refused_and_not_touched(whole: Any, inputs: Path) -> None:
    out = whole[0]
    before = contents(out)
    with pytest.raises(UserError, match=r"already contains a run; nothing was changed.*fibecfed resume"):
        session.start(run_config(inputs), out)
    assert contents(out) == before


def test_a_folder_with_anything_else_in_it_or_a_file_is_refused_and_not_touched(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)
    for out in ("mine", "file"):
        with pytest.raises(UserError, match="not an empty folder; nothing was changed"):
            session.start(run_config(inputs), tmp_path / out)
    with pytest.raises(UserError, match="nothing was trained"):
        session.start(run_config(inputs), tmp_path / "file" / "run")
    assert contents(tmp_path) == before


def test_what_a_process_left_that_was_killed_before_its_run_began_is_in_nobodys_way(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lock", ".config.toml.4711.tmp"):
        (tmp_path / name).write_text("")

    def prepare(*_: object, **more: object) -> None:
        raise InterruptedError("the folder was taken")

    monkeypatch.setattr(session, "prepare", prepare)
    with pytest.raises(InterruptedError, match="was taken"):
        session.start(run_config(inputs), tmp_path)


def test_a_folder_that_another_process_takes_meanwhile_is_refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, prepare = tmp_path / "run", session.prepare

    def slow(*arguments: Any, **more: Any) -> Any:
        out.mkdir()
        (out / "config.toml").write_text("of another")
        return prepare(*arguments, **more)

    monkeypatch.setattr(session, "prepare", slow)
    with pytest.raises(UserError, match="already contains a run"):
        session.start(run_config(inputs), out)
    assert (out / "config.toml").read_text() == "of another" and not (out / "records.jsonl").exists()


def test_an_empty_folder_and_one_with_a_lock_alone_are_taken(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1\n")
    session.start(run_config(inputs, federation={"rounds": 1}), tmp_path)


def test_two_processes_cannot_work_on_one_folder(inputs: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def intrude(event: object) -> None:
        if isinstance(event, RoundDone):
            for attempt in (lambda: session.resume(tmp_path), lambda: session.start(run_config(inputs), tmp_path)):
                with pytest.raises(UserError) as error:
                    attempt()
                refused.append(str(error.value))

    session.start(run_config(inputs, federation={"rounds": 1}), tmp_path, intrude)
    assert "is in use by another run" in refused[0] and "already contains a run" in refused[1]


def test_a_wrong_folder_to_resume_is_refused(whole: Any, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing", whole[0] / "global"):
        with pytest.raises(UserError, match=r"got (a folder without config\.toml|nothing), expected the folder of a run"):
            session.resume(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        (
            {"method": {"kind": "fibecfed", "layers": {"rule": "count", "value": 3}}},
            "method.layers.value: got 3 layers, expected at most 2",
        ),
        ({"federation": {"clients": 200, "clients_per_round": 2}}, "200"),
        ({"model": {"target_modules": ["qwerty"]}}, "model.target_modules"),
        ({"data": {"text_column": "text"}}, "text"),
    ],
    ids=["layers", "clients", "modules", "column"],
)
def test_what_does_not_fit_model_or_data_is_refused_before_anything_is_written(
    tables: dict[str, Any], text: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=text):
        session.start(run_config(inputs, **tables), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_clients_a_round_than_there_are_by_the_column_are_refused(inputs: Path, tmp_path: Path) -> None:
    data = {"client_column": "review", "text_column": "review"}
    with pytest.raises(UserError):
        session.start(run_config(inputs, data=data, federation={"partition": "column"}), tmp_path / "run")
    lines = (inputs / "reviews.csv").read_text().splitlines()
    (tmp_path / "named.csv").write_text("\n".join([lines[0] + ",who", *(f"{line},{i % 3}" for i, line in enumerate(lines[1:]))]) + "\n")
    data = {"path": str(tmp_path / "named.csv"), "client_column": "who"}
    with pytest.raises(UserError, match=r"federation\.clients_per_round: got 4, expected at most 3"):
        session.start(run_config(inputs, data=data, federation={"partition": "column", "clients_per_round": 4}), tmp_path / "run")


def test_a_round_asks_all_clients_of_a_column_where_there_are_fewer_than_by_default(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    rows = (inputs / "reviews.csv").read_text().splitlines()
    path.write_text("\n".join([f"{rows[0]},site", *(f"{row},{'abc'[n % 3]}" for n, row in enumerate(rows[1:]))]) + "\n")
    wanted = run_config(inputs, data={"path": str(path), "client_column": "site"}, federation={"rounds": 2})
    federation = wanted.federation.model_copy(update={"clients_per_round": None, "partition": "column"})
    session.start(wanted.model_copy(update={"federation": federation}), tmp_path / "run", adapters=False)
    header, records = read(tmp_path / "run" / "records.jsonl")
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    assert rounds and all(set(record.cohort) == {"a", "b", "c"} for record in rounds)
    assert _conditions(Header.model_validate(header))["federation"].startswith("3 clients, 3 per round")


def test_texts_longer_than_the_models_positions_are_refused(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text("review,verdict\n" + "\n".join(f"{'film ' * 200},{v}" for v in ["good", "bad"] * 30) + "\n")
    data = {"path": str(tmp_path / "long.csv"), "max_length": 150}
    with pytest.raises(UserError, match=r"data\.max_length: got a text of 150 tokens, expected at most 130"):
        session.start(run_config(inputs, data=data), tmp_path / "run")


# ---- what is not finite


def test_a_loss_that_is_not_finite_stops_with_client_and_round_and_leaves_the_last_checkpoint(inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, training={"learning_rate": 1e30})
    with pytest.raises(RunFailed, match=r"client \d, tune round 0: the (loss|tensor) .*fibecfed resume") as first:
        session.start(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.json")] == ["checkpoint-00000001.json"]  # of phase 1
    with pytest.raises(RunFailed) as again:
        session.resume(tmp_path)
    assert str(again.value) == str(first.value)
    header, records = read(tmp_path / "records.jsonl")
    assert header and len(records) == 2


def test_a_client_that_is_not_finite_is_dropped_by_choice(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fibecfed.methods.fibecfed import FibecFed

    train = FibecFed._train

    def poisoned(self: Any, client: Any, message: Any, now: Any) -> Any:
        if client.id == "2":
            raise FloatingPointError("the loss of step 0 is nan")
        return train(self, client, message, now)

    monkeypatch.setattr(FibecFed, "_train", poisoned)
    config = run_config(inputs, federation={"on_failure": "drop", "clients_per_round": 4, "rounds": 2})
    events: list[Any] = []
    summary = session.start(config, tmp_path, events.append)
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert warnings == [f"client 2 was left out of tune round {t}: client 2, tune round {t}: the loss of step 0 is nan" for t in (0, 1)]
    assert summary["failures"] == 2 and summary["clients_that_took_part"] == 3
    assert {path.name for path in (tmp_path / "clients").iterdir()} == {"0", "1", "3"}


def test_every_file_of_json_that_a_run_leaves_is_read_by_other_languages(whole: Any) -> None:
    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    out, _, _ = whole
    files = [path for path in out.rglob("*.json*") if path.is_file()]
    assert {path.name for path in files} >= {"records.jsonl", "summary.json", "adapter_config.json", "labels.json"}
    for path in files:
        texts = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
        assert all(json.loads(text, parse_constant=reject) is not None for text in texts)


def test_a_run_from_python_shows_no_warnings_of_its_libraries_and_keeps_the_callers_filters(inputs: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        session.start(run_config(inputs, federation={"rounds": 1}), tmp_path / "run")
        assert warnings.filters == before
    assert [str(one.message) for one in seen if issubclass(one.category, FutureWarning)] == []


def test_an_evaluation_may_ask_a_sample_of_the_clients_the_same_one_each_time(inputs: Path, tmp_path: Path) -> None:
    summary = session.start(run_config(inputs, evaluation={"every": 1, "clients": 2}), tmp_path / "run")
    found = [record for record in read(tmp_path / "run" / "records.jsonl")[1] if isinstance(record, EvalRecord) and record.rounds]
    asked = {tuple(record.clients) for record in found}
    assert len(asked) == 1 and len(*asked) == 2 and len(found) > 2
    held = read(tmp_path / "run" / "records.jsonl")[0]["partition"]
    assert all(sum(map(sum, matrix(record.server))) == sum(sum(held[client]["test"]) for client in record.clients) for record in found)
    assert summary["scores"]["pooled_personalised"] is not None and len(list((tmp_path / "run" / "clients").iterdir())) > 2
    with pytest.raises(UserError, match=r"evaluation\.clients: got 9, expected at most 4"):
        session.start(run_config(inputs, evaluation={"clients": 9}), tmp_path / "more")
