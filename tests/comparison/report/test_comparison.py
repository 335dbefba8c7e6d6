"""Folders of runs: whole, broken and missing; numbers of a read run against sums over its lines."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import made_runs
import pytest
from sums import sums

from fibecfed.comparison.report.comparison import read_comparison, write_report
from fibecfed.comparison.report.conditions import conditions
from fibecfed.comparison.report.standing import standings
from fibecfed.comparison.report.verdict import verdict
from fibecfed.core.clock import Network
from fibecfed.core.errors import UserError


def test_bytes_steps_and_scores_of_a_run_are_those_of_its_lines(folder: Path):
    (run,) = [run for run in read_comparison(folder).runs if (run.task, run.method, run.seed) == ("cola", "fibecfed", 1)]
    lines = [json.loads(line) for line in (folder / "runs/cola/fibecfed/1/records.jsonl").read_text().splitlines()]
    size = sum(sum(line["bytes_up"].values()) + sum(line["bytes_down"].values()) for line in lines if line["kind"] == "round")
    last = lines[-1]
    matrix = last["pooled"]["confusion"]
    right = sum(matrix[i][i] for i in range(2))
    assert run.bytes_up + run.bytes_down == run.last.size == size
    assert run.steps == sum(sum(line["steps"].values()) for line in lines if line["kind"] == "round")
    assert run.last.personalised == right / sum(map(sum, matrix))
    assert run.majority == pytest.approx(0.6) and run.prior == pytest.approx(0.7)
    assert run.usual == "matthews" and run.usual_personalised is not None
    assert [point.rounds for point in run.points] == [0, 3, 5, 7, 9, 11]
    assert len(run.clients) == 20 and list(run.clients) == sorted(run.clients)


@pytest.mark.parametrize("nobody", [False, True])
def test_a_federation_across_machines_is_called_as_its_folder_and_gaps_stand_where_nothing_was_counted(tmp_path: Path, nobody: bool):
    """Its server has no examples; `nobody`: neither has any client."""
    for method in ("fibecfed", "lora"):
        folder = tmp_path / "runs" / f"20260501-{method}"
        made_runs.write_run(folder, method=method, rounds=4)
        header, *lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        header["configuration"]["data"] |= {"task": None}
        header["configuration"]["federation"]["partition"] = "machines"
        for line in (line for line in lines if line["kind"] == "evaluation"):
            line |= {"server": sums([[0, 0], [0, 0]]), "server_validation": sums([[0, 0], [0, 0]])}
            line["pooled"] = sums([[0, 0], [0, 0]]) if nobody or not line["rounds"] else line["pooled"]
        (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    found = write_report(tmp_path / "runs", out=tmp_path)
    assert found.comparison.tasks == ["20260501-fibecfed", "20260501-lora"]
    assert set(found.ranks) == (set() if nobody else {"fibecfed", "lora"})
    for name in ("report.html", "report.md", "report-runs.csv"):
        assert not re.search(r"\bnan\b", (tmp_path / name).read_text(), re.IGNORECASE)


def test_what_was_trained_beforehand_on_other_tasks_stands_apart(folder: Path):
    path = folder / "runs/cola/voc/0/summary.json"
    sources = [{"task": "mr", "seconds": 30.0, "examples": 400}, {"task": "rte", "seconds": 12.0, "examples": 600}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "sources": sources}))
    found = read_comparison(folder)
    plain, other = found.of("cola", "lora")[0], found.of("cola", "voc")[0]
    assert (other.source_s, other.source_examples, plain.source_s, plain.source_examples) == (42.0, 1000, 0.0, 0)
    assert dict(conditions(found))["Trained beforehand"].startswith(
        "voc: source prompts on other tasks' data, 10 s and 250 examples per run"
    )


def test_what_was_selected_is_read_from_notes_and_summary(folder: Path):
    selection = read_comparison(folder).of("sst2", "fibecfed")[0].selection
    lines = [json.loads(line) for line in (folder / "runs/sst2/fibecfed/0/records.jsonl").read_text().splitlines()]
    scored = [value for line in lines for note in line.get("notes", {}).values() for value in note.get("difficulty", ())]
    edges, counts = selection.difficulty
    assert selection.layers == (3, 4, 5) and len(selection.importance) == 6
    assert sum(counts) == len(scored) > 0 and len(edges) == len(counts) + 1
    assert edges[0] == pytest.approx(math.log10(min(scored)))
    assert set(selection.data) == set(range(1, 11))
    assert selection.data[1] == pytest.approx(0.6, abs=0.02) and selection.data[10] == 1.0
    assert all(1100 <= kept < 1200 for kept in selection.kept.values())


def test_a_slower_network_only_stretches_the_modelled_time(folder: Path):
    fast, slow = (read_comparison(folder, Network(up_mbit=up)).of("sst2", "lora")[0] for up in (10.0, 1.0))
    assert slow.last.seconds > fast.last.seconds + 1
    assert (slow.last.size, slow.last.personalised, slow.measured_s) == (fast.last.size, fast.last.personalised, fast.measured_s)


def test_which_clock_the_seconds_of_clients_are_of_is_told_and_they_are_taken_as_such(folder: Path):
    assert dict(conditions(read_comparison(folder)))["Seconds of clients"].startswith("wall clock, times the fraction")
    before = read_comparison(folder).of("sst2", "lora")[0].last.seconds  # with half of the processor, as made
    for path in folder.glob("runs/*/lora/*/records.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [{**line, "compute_clock": "cpu"} if line["kind"] == "round" else line for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_comparison(folder)
    told = dict(conditions(found))["Seconds of clients"]
    assert "CPU seconds: lora (" in told and "wall clock, times the fraction of it in which the process had a CPU: " in told
    assert found.of("sst2", "lora")[0].last.seconds > before + 1


def test_with_counted_work_runs_of_a_fast_and_of_a_slow_machine_give_the_same_table(folder: Path):
    def modelled() -> float:
        found = read_comparison(folder, Network(tokens_per_s=1000.0))
        assert dict(conditions(found))["Seconds of clients"].startswith("counted work")
        return found.of("sst2", "lora")[0].last.seconds

    for factor in (1.0, 7.0):
        for path in folder.glob("runs/*/*/*/records.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in (line for line in lines if line["kind"] == "round"):
                line["compute_s"] = {client: factor * seconds for client, seconds in line["compute_s"].items()}
                for client in line["cohort"]:
                    line["notes"].setdefault(client, {})["token_blocks"] = [100, 50]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if factor == 1.0:
            before = modelled()
    assert modelled() == before


def test_an_empty_folder_is_refused_and_one_without_a_single_good_run_names_each(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: got no finished run; expected runs/<task>"):
        read_comparison(tmp_path / "empty")
    with pytest.raises(UserError, match="got no folder"):
        read_comparison(tmp_path / "nowhere")
    for path in folder.rglob("summary.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"(?s)got no finished run:\n.*cola/fibecfed/0.*sst2/voc/1"):
        read_comparison(folder)


def test_a_single_run_and_a_tree_of_runs_without_a_plan_are_comparisons_too(tmp_path: Path):
    made_runs.write_run(tmp_path / "tree" / "a")
    made_runs.write_run(tmp_path / "tree" / "deep" / "b", method="lora", seed=3)
    made_runs.write_run(tmp_path / "tree" / "c")
    assert [(run.task, run.method, run.seed) for run in read_comparison(tmp_path / "tree" / "a").runs] == [("sst2", "fibecfed", 0)]
    found = read_comparison(tmp_path / "tree")
    assert [(run.method, run.seed) for run in found.runs] == [("fibecfed", 0), ("lora", 3)]
    assert any("a second run of fibecfed on sst2 with seed 0" in problem for problem in found.problems)


def test_a_run_is_rising_where_its_summary_says_so(folder: Path):
    path = folder / "runs/sst2/voc/1/summary.json"
    for rising in ({"rounds": 10, "score": 0.9, "before_rounds": 6, "before": 0.8}, None):
        path.write_text(json.dumps({**json.loads(path.read_text()), "rising": rising}))
        (run,) = (run for run in read_comparison(folder).runs if (run.task, run.method, run.seed) == ("sst2", "voc", 1))
        assert run.rising == (rising is not None)


def test_a_run_with_other_rounds_or_computed_in_another_precision_is_warned_of(folder: Path):
    path = folder / "runs/sst2/voc/1/records.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"learning_rate":0.0005', '"learning_rate":0.1', 1).replace('"kind":"voc"', '"kind":"voc","own":3', 1))
    assert not any("like with like" in line for line in verdict(standings(read_comparison(folder))))
    path.write_text(text.replace('"rounds":10', '"rounds":40', 1).replace('"precision":"bf16"', '"precision":"float32"', 1))
    warning = verdict(standings(read_comparison(folder)))[0]
    assert "federation.rounds on sst2 (10: fibecfed, lora, voc; 40: voc)" in warning
    assert "training.precision on sst2 (bf16: fibecfed, lora, voc; float32: voc)" in warning


def test_trials_are_no_runs_of_the_comparison_even_where_there_are_no_others(tmp_path: Path):
    plan = tmp_path / "all" / "c" / "comparison.toml"
    made_runs.write_run(plan.parent / "tuning" / "sst2" / "lora" / "0.0005", method="lora")
    plan.write_text('methods = ["lora"]\ntasks = ["sst2"]\nseeds = [0]\n')
    for folder in (plan.parent, tmp_path / "all"):
        with pytest.raises(UserError, match="got no finished run; expected runs/<task>"):
            read_comparison(folder)


def test_a_tree_with_a_comparison_in_it_takes_names_from_its_paths_and_leaves_its_trials_out(tmp_path: Path):
    made_runs.write_comparison(tmp_path / "all" / "c", ("fibecfed", "a variant without masks"), ("rte",), (0, 1), rounds=2)
    made_runs.write_run(tmp_path / "all" / "c" / "tuning" / "sst2" / "lora" / "0.0005", method="lora")
    made_runs.write_run(tmp_path / "all" / "c" / "runs" / "rte" / "lora" / ".0.tmp", task="rte", method="lora")
    made_runs.write_run(tmp_path / "all" / "runs" / "rte" / "mine" / "3", task="rte", method="voc")
    names = [("a variant without masks", 0), ("a variant without masks", 1), ("fibecfed", 0), ("fibecfed", 1)]
    found = read_comparison(tmp_path / "all")
    assert [(run.method, run.seed) for run in found.runs] == [*names, ("voc", 0)]
    assert not any("a second run" in problem for problem in found.problems)
    assert [(run.method, run.seed) for run in read_comparison(tmp_path / "all" / "c" / "runs" / "rte").runs] == names


def test_a_run_that_is_not_finished_is_reported_with_its_round(tmp_path: Path):
    run = tmp_path / "run"
    made_runs.write_run(run, rounds=10, every=2)
    (run / "summary.json").unlink()
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[:8]))  # header, untrained, importance, 4 rounds with an evaluation after the second
    found = read_comparison(run)
    assert len(found.runs[0].points) == 2 and found.runs[0].last.rounds == 3
    assert found.problems == (
        f"{run}: unfinished, 4 of 10 training rounds: these are its numbers so far; resume with: fibecfed resume {run}",
    )
    write_report(run)
    text = (run / "report.md").read_text()
    assert "unfinished, 4 of 10 training rounds" in text and "20 clients, scored after 3 rounds, not finished" in text
    assert "unfinished" in (run / "report.html").read_text()


def test_the_number_of_clients_is_that_of_the_data(tmp_path: Path):
    """With a column of clients the configuration keeps its default, which nobody had."""
    made_runs.write_run(tmp_path / "run")
    records = tmp_path / "run/records.jsonl"
    records.write_text(records.read_text().replace('"clients":20,"clients_per_round":5', '"clients":50,"clients_per_round":30', 1))
    assert dict(conditions(read_comparison(tmp_path / "run")))["Federation"].startswith("20 clients, 20 per round, 10 rounds")


def test_what_is_handed_on_names_no_place_on_this_machine(tmp_path: Path):
    place = tmp_path / "private-place"
    made_runs.write_comparison(place / "c", ("fibecfed", "lora"), ("sst2", "mine"), (0, 1), rounds=4)
    for records in place.rglob("records.jsonl"):
        text = records.read_text().replace('"name":"minilm"', f'"name":"{place}/models/mine"', 1)
        text = text.replace('"path":null', f'"path":"{place}/data.csv","root":"{place}","test_path":"{place}/test.csv"', 1)
        records.write_text(text.replace('"task":"mine"', '"task":null', 1))
    (place / "c/runs/sst2/lora/1/summary.json").unlink()
    (place / "c/runs/sst2/lora/0/summary.json").unlink()
    (place / "c/runs/sst2/lora/0/failure.json").write_text(json.dumps({"why": "stopped", "reason": f"{place}/elsewhere/x.csv: is gone"}))
    assert str(place) in " ".join(read_comparison(place / "c").problems)
    write_report(place / "c", out=tmp_path / "out", export=tmp_path / "out/short.jsonl")
    files = sorted((tmp_path / "out").iterdir())
    assert {"report.html", "report.md", "report-runs.csv", "short.jsonl"} <= {path.name for path in files}
    for path in files:
        assert "private-place" not in path.read_text(), path.name
    assert (
        "Model: mine, head full" in (tmp_path / "out/report.md").read_text()
        and "x.csv: is gone" in (tmp_path / "out/report.md").read_text()
    )


def test_a_target_of_an_unknown_task_is_refused_with_the_tasks_there_are(folder: Path):
    with pytest.raises(UserError, match="got sst, expected a task of this folder: cola, sst2"):
        read_comparison(folder, targets={"sst": 0.8})


def test_the_files_hold_the_tables_in_full_and_say_what_is_missing(folder: Path, tmp_path: Path):
    (folder / "runs/sst2/voc/1/summary.json").unlink()
    write_report(folder, out=tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    for heading in ("## Verdict", "## Where FibecFed loses", "## Missing from this report", "## Personalised score", "## Targets"):
        assert heading in text
    assert "sst2/voc/1" in text and "trainable" not in text
    with (tmp_path / "out/report-runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    assert {row["learning rate"] for row in rows} == {"0.0005"} and {row["parameters of adapter and head"] for row in rows} == {"74498"}
    assert not (folder / "report.md").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written .*choose another folder for the report with --out"):
        write_report(folder, out=tmp_path / "file")
