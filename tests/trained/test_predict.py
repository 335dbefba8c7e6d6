"""`fibecfed predict`: the same rows with their classes, and a sentence for whatever cannot be predicted."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from saved import run_config
from typer.testing import CliRunner

from fibecfed import cli, session
from fibecfed.core.errors import UserError
from fibecfed.trained.export import export
from fibecfed.trained.model import load

READS = ["--text-column", "review"]


def call(*arguments: str | Path, given: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["predict", *map(str, arguments)], input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def rejected(*arguments: str | Path) -> str:
    code, out, said = call(*arguments)
    assert (code, out) == (2, ""), said
    assert said.count("error: ") == 1
    return said


def test_each_row_comes_back_with_its_class_and_probabilities(run: Path, place: Path) -> None:
    code, out, said = call(run, place / "reviews.csv")
    rows, before = list(csv.DictReader(io.StringIO(out))), list(csv.DictReader((place / "reviews.csv").open()))
    assert (code, said) == (0, "") and [{k: row[k] for k in ("review", "verdict")} for row in rows] == before
    expected = load(run).probabilities([row["review"] for row in before])
    for row, found in zip(rows, expected.tolist(), strict=True):
        assert [float(row["probability_bad"]), float(row["probability_good"])] == pytest.approx(found, rel=1e-5)
        assert row["predicted_label"] == ("good" if found[1] > found[0] else "bad")
    assert {row["predicted_label"] for row in rows} == {"good", "bad"}


def test_a_clients_own_model_answers_otherwise_and_one_without_is_the_global(run: Path, made: Callable[[str], Path], place: Path) -> None:
    clients = sorted(path.name for path in (run / "clients").iterdir())
    own = {client: call(run, place / "reviews.csv", "--client", client)[1] for client in clients}
    assert len({call(run, place / "reviews.csv")[1], *own.values()}) == len(clients) + 1
    shared = made("lora")
    code, out, said = call(shared, place / "reviews.csv", "--client", "0")
    assert (code, out) == (0, call(shared, place / "reviews.csv")[1]) and "the global one, which is used" in said


def test_standard_input_and_an_output_file(run: Path, place: Path, tmp_path: Path) -> None:
    line = json.dumps({"id": 7, "text": "great story is great is witty"})
    code, out, _ = call(run, "-", "--text-column", "text", given=line)
    assert code == 0 and json.loads(out)["id"] == 7
    to = tmp_path / "out.csv"
    assert call(run, place / "reviews.csv", "--out", to) == (0, f"{to} written.\n", "")
    assert to.read_text() == call(run, place / "reviews.csv")[1]


def test_nothing_is_overwritten(run: Path, place: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to("nowhere")
    for name in ("out.csv", "link.csv"):
        assert "exists already, and nothing is overwritten" in rejected(run, place / "reviews.csv", "--out", tmp_path / name)
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert "cannot be written" in rejected(run, place / "reviews.csv", "--out", tmp_path / "no" / "out.csv")
    assert "expected a name ending in .csv" in rejected(run, place / "reviews.csv", "--out", tmp_path / "out.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "out.csv"]


def test_two_texts(made: Callable[[str], Path], place: Path) -> None:
    run = made("pairs")
    assert call(run, place / "pairs.csv")[0] == 0
    assert "there is no column 'more'" in rejected(run, place / "reviews.csv")
    assert "this model reads one text" in rejected(made("lora"), place / "pairs.csv", "--pair-column", "more")


def test_a_run_without_what_is_needed_is_rejected(run: Path, place: Path, tmp_path: Path) -> None:
    file = place / "reviews.csv"
    assert "got nothing, expected the folder of a run" in rejected(tmp_path / "no", file)
    assert "got a folder without config.toml" in rejected(tmp_path, file)
    assert f"expected that of its run; give {run}" in rejected(run / "global", file)
    assert f"give {run} --client 1" in rejected(run / "clients" / "1", file)
    shutil.copytree(run, tmp_path / "stopped")
    (tmp_path / "stopped" / "summary.json").unlink()
    assert "fibecfed resume" in rejected(tmp_path / "stopped", file)
    session.start(run_config(place, federation={"rounds": 1}, method={"kind": "lora"}), tmp_path / "bare", adapters=False)
    assert "got a run without adapters" in rejected(tmp_path / "bare", file)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_lost_a_file_is_rejected_by_name(run: Path, place: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "global" / name).unlink()
    assert f"got an adapter without {name}" in rejected(tmp_path / "run", place / "reviews.csv")
    with pytest.raises(UserError, match=f"got an adapter without {name}"):
        export(tmp_path / "run", None, {"adapter": tmp_path / "copy"})
    assert not (tmp_path / "copy").exists()


def test_clients_that_are_unknown_or_never_trained_are_rejected(place: Path, tmp_path: Path) -> None:
    rows = (place / "reviews.csv").read_text().splitlines()
    names = ("general", "psychiatry", "women")
    lines = ["site," + rows[0], *(f"{names[(n // 2) % 3]},{row}" for n, row in enumerate(rows[1:]))]
    (tmp_path / "sites.csv").write_text("\n".join(lines) + "\n")
    data = {"path": str(tmp_path / "sites.csv"), "client_column": "site"}
    federation = {"clients": 3, "clients_per_round": 1, "rounds": 1, "partition": "column"}
    run = tmp_path / "run"
    session.start(run_config(place, data=data, federation=federation, method={"kind": "lora"}), run)
    taking_part = json.loads((run / "records.jsonl").read_text().splitlines()[2])["cohort"]
    absent = next(name for name in names if name not in taking_part)
    assert f"got '{absent}', which never trained in this run" in rejected(run, place / "reviews.csv", "--client", absent)
    assert "did you mean 'psychiatry'?" in rejected(run, place / "reviews.csv", "--client", "psychiatric")
    assert "expected a client of the run: 'general', 'psychiatry', 'women'" in rejected(run, place / "reviews.csv", "--client", "7")


def test_a_file_without_the_column_of_texts_says_which_it_has(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("message,id\nx,1\n")
    assert "there is no column 'review'; the file has 'message', 'id'." in rejected(run, tmp_path / "a.csv")
    assert "Set --text-column" in rejected(run, tmp_path / "a.csv")
    assert call(run, tmp_path / "a.csv", "--text-column", "message")[0] == 0
    assert "the file does not exist" in rejected(run, tmp_path / "no.csv")


def test_a_file_may_lie_at_home(run: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert call(run, "~/reviews.csv")[:2] == call(run, place / "reviews.csv")[:2]


def test_numbers_that_are_no_json_are_told_of(run: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"review": "film", "age": NaN, "more": [1, {"least": -Infinity}]}\n{"review": "NaN"}\n')
    code, out, said = call(run, tmp_path / "rows.jsonl")
    first, second = map(json.loads, out.splitlines())
    assert (code, first["age"], first["more"], second["review"]) == (0, None, [1, {"least": None}], "NaN")
    assert "rows.jsonl: NaN and Infinity, which are no JSON, are written as null (2 numbers)" in said


def test_a_base_model_that_was_quantised_in_training_is_told_of(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    quick = {"model": {"quantization": "nf4"}, "method": {"kind": "lora"}, "federation": {"rounds": 1}, "evaluation": {"every": 1}}
    session.start(run_config(place, **quick), tmp_path / "run")
    for command in (["predict"], ["evaluate"]):
        result = CliRunner().invoke(cli.app, [*command, str(tmp_path / "run"), str(place / "reviews.csv")])
        assert result.exit_code == 0, result.output
        assert "the adapter was trained beside weights in nf4, and stands beside those of full precision here" in " ".join(
            result.stderr.split()
        )
