"""The report of one run: what it opens with, that its numbers are those of the records, and what it leaves out."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import made_runs
import pytest
from rich.console import Console

from fibecfed.comparison.report import terminal
from fibecfed.comparison.report.comparison import read_report, write_report
from fibecfed.comparison.report.one import report
from fibecfed.comparison.report.one.converged import converged, training_loss
from fibecfed.comparison.report.one.examples import difficulty, listed
from fibecfed.comparison.report.one.section import Section
from fibecfed.comparison.report.results import Classes
from fibecfed.comparison.report.standing import Standings
from fibecfed.comparison.report.tables import Table
from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, RoundRecord, read, to_line
from fibecfed.engine.summary import summarise


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 8 clients."""
    made_runs.write_run(tmp_path / "run", clients=8, rounds=6, final=0.8)
    return tmp_path / "run"


def part(found: Standings, name: str) -> Section:
    return next(one for one in report.parts(found) if one.name == name)


def table(found: Standings, name: str) -> Table:
    return next(one for one in report.all_tables(found) if one.name == name)


def with_header(folder: Path, **changes: object) -> None:
    """Other values in the first line of the records."""
    first, *rest = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("\n".join([json.dumps(json.loads(first) | changes), *rest]) + "\n")


def with_partition(folder: Path) -> None:
    """Each client with test examples of both classes as they were counted, and training examples mostly of the second class."""
    _, records = read(folder / "records.jsonl")
    last = next(one for one in reversed(records) if isinstance(one, EvalRecord))
    tests = {client: [sum(row) for row in sums["confusion"]] for client, sums in last.clients.items()}
    partition = {client: {"train": [4, 12], "validation": [0, 0], "test": counts} for client, counts in tests.items()}
    with_header(folder, partition=partition)
    header, records = read(folder / "records.jsonl")
    old = json.loads((folder / "summary.json").read_text())
    summary = summarise(records, metric=METRICS["accuracy"], selected=old["selected"], labels=header["labels"], partition=partition)
    (folder / "summary.json").write_text(json.dumps(old | summary))


def test_it_opens_with_what_was_learned_beside_what_costs_nothing(run: Path):
    with_partition(run)
    found = read_report(run)
    assert [one.name for one in report.parts(found)] == [
        "learned", "converged", "clients", "classes", "examples", "sent", "cost", "selection", "settings",
    ]  # fmt: skip
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table(found, "learned").rows}
    # 25 test examples of each client, 10 of the second class, which is the most frequent one of its training examples
    assert rows["always the most frequent class"] == ["40.0", "0.0", "60.0", "-"]
    assert rows["untrained"][:2] == ["50.0", "10.0"] and rows["after round 7"][:2] == ["80.0", "40.0"]
    first = part(found, "learned").lines[0]
    assert first == (
        "The clients' own models reach 80.0 % accuracy on their own test examples: 40.0 points above always answering each client's most "
        "frequent class (40.0 %), and 30.0 points above the untrained model (50.0 %)."
    )


def test_where_the_score_is_below_the_own_majority_it_says_so(run: Path):
    with_partition(run)
    summary = json.loads((run / "summary.json").read_text())
    summary["saved"] |= {"pooled_personalised": 0.35, "global": 0.6}
    (run / "summary.json").write_text(json.dumps(summary))
    lines = part(read_report(run), "learned").lines
    assert "5.0 points below always answering each client's most frequent class" in lines[0]
    assert "level with always answering the most frequent class (60.0 %)" in lines[1]
    assert any(line.startswith("The personalised score (35.0 %) is worse than") for line in lines)


def test_each_client_alone_is_shown_where_a_run_beside_has_measured_it_on_the_same_data(run: Path):
    alone = run.with_name("run-local")
    made_runs.write_run(alone, method="local", clients=8, rounds=6, final=0.7)
    found = read_report(run)
    assert part(found, "learned").lines[2].startswith("Not measured: each client alone.")  # of other examples
    assert f"fibecfed run {run}/config.toml method.kind=local --out {alone}" in part(found, "learned").lines[2]
    header, _ = read(run / "records.jsonl")
    with_header(alone, partition=header["partition"])
    found = read_report(run)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table(found, "learned").rows}
    assert rows["each client alone"][0] == "70.0"
    assert (
        part(found, "learned").lines[2]
        == "That is 10.0 points above what each client reaches alone, without the others (70.0 %, run-local)."
    )
    summary = json.loads((alone / "summary.json").read_text())
    clients = table(found, "clients")
    column = clients.header.index("alone %")
    assert {row[0].text: row[column].value for row in clients.rows} == {
        name: pytest.approx(100 * one["score"]) for name, one in summary["clients"].items()
    }


def test_a_damaged_run_beside_is_not_measured(run: Path):
    alone = run.with_name("run-local")
    made_runs.write_run(alone, method="local", clients=8, rounds=6)
    header, _ = read(run / "records.jsonl")
    with_header(alone, partition=header["partition"])
    (alone / "summary.json").write_text("{")
    assert part(read_report(run), "learned").lines[2].startswith("Not measured")


def test_clients_are_those_of_the_records_the_least_gain_first(run: Path):
    with_partition(run)
    _, records = read(run / "records.jsonl")
    rounds = [one for one in records if isinstance(one, RoundRecord)]
    last = next(one for one in reversed(records) if isinstance(one, EvalRecord))
    shown = table(read_report(run), "clients")
    gains = [row[shown.header.index("above it, points")].value for row in shown.rows]
    assert gains == sorted(gains) and len(gains) == 8  # type: ignore[type-var]
    for row in shown.rows:
        cells = {name: cell.value for name, cell in zip(shown.header, row, strict=True)}
        client = row[0].text
        assert cells["score %"] == pytest.approx(100 * METRICS["accuracy"].of(last.clients[client]))
        assert cells["rounds"] == sum(bool(one.steps.get(client)) for one in rounds)
        assert cells["MB"] == pytest.approx(sum(one.bytes_up.get(client, 0) + one.bytes_down.get(client, 0) for one in rounds) / 1e6)


def test_bytes_by_field_add_up_to_all_that_was_sent(run: Path):
    shown = table(read_report(run), "sent")
    _, records = read(run / "records.jsonl")
    fields = sum(sum(one.fields_up.values()) + sum(one.fields_down.values()) for one in records if isinstance(one, RoundRecord))
    assert sum(row[shown.header.index("MB in all")].value or 0 for row in shown.rows) == pytest.approx(fields / 1e6)


def test_training_loss_is_the_mean_over_examples():
    draw = made_runs.random.Random(0)
    one = made_runs.made_round("tune", 0, 4, ["a", "b"], {"a": 10, "b": 30}, 5, draw)
    object.__setattr__(one, "loss", {"a": 1.0, "b": 2.0})
    nobody = made_runs.made_round("importance", 0, 0, ["a"], {"a": 0}, 5, draw)
    assert training_loss([nobody, one]) == [(5, 1.75)]


@pytest.mark.parametrize(
    ("scores", "begins"),
    [
        ((0.6, 0.8, 0.805), "The personalised score has settled: 80.0 % after round 4"),
        ((0.6, 0.9, 0.7), "The personalised score was best after round 4 (90.0 %) and is 20.0 points below that after round 6"),
        ((0.6, 0.7, 0.8), "The personalised score was still getting better when training ended (70.0 % after round 4, 80.0 %"),
    ],
)
def test_whether_it_has_converged_is_told_by_the_last_evaluations(tmp_path: Path, scores: tuple[float, ...], begins: str):
    draw = made_runs.random.Random(0)
    names = [f"{k:02d}" for k in range(8)]
    records: list[RoundRecord | EvalRecord] = [made_runs.evaluation(0, names, 0.5, draw)]
    for index in range(6):
        records.append(made_runs.made_round("tune", index, index, names[:2], dict.fromkeys(names, 10), 5, draw))
        if index % 2:
            records.append(made_runs.evaluation(index + 1, names, scores[index // 2], draw))
    made_runs.write(tmp_path / "run", records, "sst2", "lora", 0, "lora", dict.fromkeys(names, 20), {})
    assert converged(read_report(tmp_path / "run").comparison).lines[0].startswith(begins)


def test_the_hardest_and_the_easiest_examples_are_those_that_were_scored_last_so(run: Path):
    header, records = read(run / "records.jsonl")
    rounds = [one for one in records if isinstance(one, RoundRecord) and one.steps and any(one.steps.values())]
    first, later = rounds[0], rounds[-1]
    object.__setattr__(first, "notes", {"00": {"difficulty": [float(value) for value in range(20)]}})
    object.__setattr__(later, "notes", {"00": {"difficulty": [100.0, 0.5], "difficulty_of": [3, 19]}})
    for one in rounds[1:-1]:
        object.__setattr__(one, "notes", {})
    del header["kind"], header["version"]
    (run / "records.jsonl").write_text(to_line(header) + "".join(map(to_line, records)))
    found = read_report(run)
    files = found.comparison.files
    assert files is not None and len(difficulty(files)) == 20
    assert listed(files) == [("00", place) for place in (3, 18, 17, 16, 15, 0, 19, 1, 2, 4)]
    shown = table(found, "examples")
    assert "text" not in " ".join(shown.header) and "report --texts" in part(found, "examples").lines[1]


def test_a_run_without_recorded_difficulty_names_no_examples(tmp_path: Path):
    made_runs.write_run(tmp_path / "run", method="lora", clients=6, rounds=4)
    assert "examples" not in [one.name for one in report.parts(read_report(tmp_path / "run"))]


def test_files_are_written_for_the_one_run_and_name_no_place_on_this_machine(run: Path):
    write_report(run)
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page)[:3] == ["What was learned", "How far it has converged", "Clients"]
    assert "mean rank" not in page and str(run.parent) not in page + text
    assert "data-refresh" not in page.partition("<script>")[0]
    assert {path.name for path in run.glob("report-*.csv")} == {
        f"report-{name}.csv" for name in ("learned", "clients", "classes", "confusion-personalised", "confusion-global", "examples", "sent")
    }


def test_a_terminal_shows_twenty_clients_and_says_where_the_others_are(tmp_path: Path):
    made_runs.write_run(tmp_path / "run", clients=30, rounds=4)
    out = io.StringIO()
    terminal.show(read_report(tmp_path / "run"), Console(file=out, width=100))
    assert "Shown: 20 of 30 rows; report-clients.csv has all." in out.getvalue().replace("\n", " ")
    assert "mean rank" not in out.getvalue()


def test_a_run_of_another_metric_and_one_with_nothing_counted_have_a_report(tmp_path: Path):
    made_runs.write_run(tmp_path / "loss", clients=6, rounds=4, metric="loss")
    lines = part(read_report(tmp_path / "loss"), "learned").lines
    assert " nat better than the untrained model" in lines[0]
    made_runs.write_run(tmp_path / "none", clients=6, rounds=4)
    _, records = read(tmp_path / "none/records.jsonl")
    rounds = [one for one in records if isinstance(one, RoundRecord)]
    empty = made_runs.sums([[0, 0], [0, 0]], 0.0)
    last = EvalRecord(len(rounds), {}, empty, empty, empty, empty, 0, 0, 0.0)
    made_runs.write(tmp_path / "none", [*rounds, last], "sst2", "lora", 0, "lora", {}, {})
    found = write_report(tmp_path / "none")
    assert part(found, "learned").lines[0].startswith("No test examples were counted")


def test_a_matrix_of_many_classes_fills_no_terminal_and_is_in_the_files(run: Path) -> None:
    found = read_report(run)

    def with_classes(number: int) -> Standings:
        confusion = [[3 if a == b else 0 for b in range(number)] for a in range(number)]
        classes = Classes(tuple(f"chapter {c}" for c in range(number)), confusion, confusion)
        (one,) = found.comparison.runs
        return replace(found, comparison=replace(found.comparison, runs=(replace(one, classes=classes),)))

    def shown(number: int) -> str:
        console = Console(file=io.StringIO(), width=80)
        report.show(with_classes(number), console)
        return " ".join(console.file.getvalue().split())  # pyright: ignore[reportAttributeAccessIssue]

    assert "predicted predicted" in shown(12), "headers of columns, on several lines"
    assert "predicted predicted" not in shown(21)
    assert "Confusion matrix, global: 21 columns, in report.html and report-confusion-global.csv" in shown(21)
    page = report.to_html(with_classes(21))
    assert 'class="scroll dense"' in page and '<button type="button">chapter 20</button>' in page
    assert 'class="scroll dense"' not in report.to_html(with_classes(4))


def test_of_machines_no_examples_are_claimed_and_no_command_is_advised_that_needs_their_data(run: Path) -> None:
    header, records = read(run / "records.jsonl")
    last = next(one for one in reversed(records) if isinstance(one, EvalRecord))
    assert "fibecfed run" in " ".join(part(read_report(run), "learned").lines)
    nothing = {"train": [0, 0], "validation": [0, 0], "test": [0, 0]}
    configuration = header["configuration"]
    federation = configuration["federation"] | {"partition": "machines"}
    with_header(run, partition=dict.fromkeys(last.clients, nothing), configuration=configuration | {"federation": federation})
    found = read_report(run)
    assert "fibecfed run" not in " ".join(part(found, "learned").lines)
    made = table(found, "clients")
    assert "training examples" not in made.header
    place = made.header.index("test examples")
    assert [row[place].value for row in made.rows] == [25.0] * len(last.clients)
