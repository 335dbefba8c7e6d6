"""Runs that are private for examples, on disk: each client's own ledger, the server's account, what is told, and interruptions."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answer_runs import save_chats
from chats import chat_config
from safetensors.torch import load_file
from saved import run_config

from fibecfed import session
from fibecfed.audit.command import audit
from fibecfed.audit.replay import observed
from fibecfed.build import prepare
from fibecfed.check import privacy_section
from fibecfed.config import Config
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.private_examples import ExampleRounds, ExampleTraining
from fibecfed.privacy.examples import OneTraining
from fibecfed.privacy.gaussian import epsilon_of
from fibecfed.privacy.ledger import LEDGER, Ledger
from fibecfed.privacy.statement import rounded_up

PRIVACY = {"unit": "example", "noise_multiplier": 2.0, "clip_norm": 1.0, "delta": 1e-3}


def private(inputs: Path, **tables: Any) -> Config:
    more = {"method": {"kind": "lora"}, **tables, "privacy": {**PRIVACY, **tables.pop("privacy", {})}}
    return run_config(inputs, **more)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]


def own(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {folder.name: lines(folder) for folder in sorted((out / "ledgers").iterdir())}


def adapter(out: Path) -> dict[str, Any]:
    return {name: value.tolist() for name, value in load_file(out / "global" / "adapter_model.safetensors").items()}


@pytest.fixture(autouse=True)
def _one_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fibecfed.privacy.ledger.secrets.token_bytes", lambda size: b"7" * size)


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fibecfed.privacy.ledger.secrets.token_bytes", lambda size: b"7" * size)
        out = tmp_path_factory.mktemp("private") / "run"
        session.start(private(inputs), out)
    return out


def test_every_client_keeps_its_own_ledger_and_the_run_an_account(whole: Path) -> None:
    summary, (first, *charges) = json.loads((whole / "summary.json").read_text()), lines(whole)
    assert first["unit"] == "example" and [line["round"] for line in charges] == [0, 1, 2, 3]
    found = own(whole)
    assert len(found) == 4
    for _, *mine in found.values():  # 2 of 4 rounds, 2 epochs in each
        assert [(line["times"], line["z"], line["clip"]) for line in mine] == [(2, 2.0, 1.0)] * 2
        assert mine[-1]["epsilon_max"] == epsilon_of(4 / 2.0**2, 1e-3) and len(mine[-1]["charged"]) == 1
    assert charges[-1]["epsilon_max"] == summary["privacy"]["epsilon"] == epsilon_of(1.0, 1e-3)
    assert charges[-1]["delta"] == summary["privacy"]["delta"] == 1e-3 and summary["privacy"]["unit"] == "example"
    assert summary["clients_that_took_part"] == 4 and not list((whole / "checkpoints").rglob("*secret*/*"))
    assert not (whole / "checkpoints" / "noise.secret").exists()


def test_neither_losses_nor_seconds_nor_scores_are_told(whole: Path) -> None:
    header, *records = [json.loads(line) for line in (whole / "records.jsonl").read_text().splitlines()]
    assert header["partition"] == {} and header["warnings"] == [] and "data" not in header
    for record in records:
        if record["kind"] == "round":
            assert not any(record[name] for name in ("loss", "compute_s", "notes", "failures", "seconds", "cpu_s"))
            assert all(record["steps"].values())  # which follow from the numbers of examples
        if record["kind"] == "evaluation":
            assert record["clients"] == {} and not any(map(sum, record["pooled"]["confusion"]))
    card = (whole / "global" / "README.md").read_text()
    assert json.loads((whole / "summary.json").read_text())["privacy"]["statement"] in card
    assert "For each training example of each client" in card and "other examples of the same person" in card


class Killed(BaseException):
    """A process that dies: nothing catches it."""


GAPS: dict[str, tuple[Any, str, bool]] = {
    "before the account": (ExampleRounds, "charge", True),
    "after the account": (ExampleRounds, "charge", False),
    "before a client's line": (OneTraining, "charge", True),
    "in a client's line": (Ledger, "_write", True),
    "after a client's line": (OneTraining, "charge", False),
    "after an answer": (ExampleTraining, "train", False),
    "before the checkpoint": (Checkpoints, "save", True),
    "after the checkpoint": (Checkpoints, "save", False),
}


@pytest.mark.parametrize("gap", GAPS)
def test_killed_in_any_gap_a_run_charges_once_and_makes_the_same_releases(
    gap: str, inputs: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, before = GAPS[gap]
    true, calls = getattr(owner, name), []

    def dies(*args: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) != {"_write": 8, "train": 4}.get(name, 3 if owner is OneTraining else 2):
            return true(*args, **named)
        if name == "_write":
            with args[0].path.open("ab") as file:
                file.write(json.dumps(args[1]).encode()[:40])
        elif not before:
            true(*args, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            session.start(private(inputs), tmp_path / "run")
    session.resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole) and own(tmp_path / "run") == own(whole)
    assert adapter(tmp_path / "run") == adapter(whole)


def test_a_repeated_training_that_ends_otherwise_is_charged_again_with_other_noise(
    inputs: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fibecfed.local import private as step

    true, calls = step.clipped_sum, []

    def other(*args: Any, **named: Any) -> Any:  # as on another machine
        found = true(*args, **named)
        calls.append(None)
        if len(calls) == 1:
            next(iter(found.sums.values()))[..., 0] += 1e-6
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *args: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            session.start(private(inputs), tmp_path / "run")
    monkeypatch.setattr(step, "clipped_sum", other)
    session.resume(tmp_path / "run")
    counts = sorted(len(mine) - 1 for mine in own(tmp_path / "run").values())
    assert counts == [2, 2, 2, 3] and lines(tmp_path / "run")[-1]["round"] == 3
    # that client's four sums and the two that were repeated, of which the server's account does not know
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["privacy"]["epsilon"] == epsilon_of(6 / 2.0**2, 1e-3) > lines(tmp_path / "run")[-1]["epsilon_max"]


def test_a_client_rejects_by_itself_what_would_pass_its_budget(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps no account asks on; nothing but that leaves."""
    budget = epsilon_of(2 / 2.0**2, 1e-3) * 1.01
    config = private(inputs, privacy={"max_epsilon": budget}, federation={"on_failure": "drop", "quorum": 0.5})
    monkeypatch.setattr(ExampleRounds, "affords", lambda rounds, number: True)
    monkeypatch.setattr(ExampleRounds, "charge", lambda rounds, now, server: None)
    with pytest.raises(RunFailed, match="its budget for privacy is spent"):
        session.start(config, tmp_path / "run")
    for _, *mine in own(tmp_path / "run").values():
        assert len(mine) == 1 and mine[-1]["epsilon_max"] <= budget


def test_a_run_ends_before_a_client_would_have_to_reject_it(inputs: Path, tmp_path: Path) -> None:
    budget = epsilon_of(2 / 2.0**2, 1e-3) * 1.01
    summary = session.start(private(inputs, privacy={"max_epsilon": budget}), tmp_path / "run")
    assert summary["rounds"] == 2 and summary["privacy"]["ended"] == "stopped by its budget after 2 of 4 rounds"
    assert summary["privacy"]["epsilon"] <= budget


def test_fibecfed_is_charged_for_its_scoring_as_planned(inputs: Path, tmp_path: Path) -> None:
    method = {"kind": "fibecfed", "layers": {"rule": "last", "value": 1}, "score_after": 0, "closing_round": True}
    summary = session.start(private(inputs, method=method, federation={"rounds": 3}), tmp_path / "run")
    found = [[(line["round"], line["times"]) for line in mine] for _, *mine in own(tmp_path / "run").values()]
    assert sorted(found) == [[(0, 3), (2, 2)], [(0, 3), (2, 2)], [(1, 3), (3, 2)], [(1, 3), (3, 2)]]
    assert summary["privacy"]["epsilon"] == epsilon_of(6 / 2.0**2, 1e-3)  # the closing round might have been the first to score


def with_people(inputs: Path, folder: Path, name: Callable[[int], str]) -> dict[str, Any]:
    """The reviews with a column that names whose each is; as the tables [data] and [privacy]."""
    with (inputs / "reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [{**row, "who": name(number)} for number, row in enumerate(csv.DictReader(file))]
    with (folder / "people.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {"data": {"path": str(folder / "people.csv")}, "privacy": {"unit_column": "who"}}


def test_all_examples_of_one_person_count_as_one(inputs: Path, tmp_path: Path) -> None:
    tables = with_people(inputs, tmp_path, lambda number: f"person {number % 5}")
    summary = session.start(private(inputs, **tables), tmp_path / "run")
    for first, *mine in own(tmp_path / "run").values():
        assert first["units"] == 5 and first["per_round"] == 4 and [line["times"] for line in mine] == [2, 2]
    assert summary["steps"] == 4 * 2 * 2 * 2  # four trainings a client's turn apart: 2 epochs of 5 people by 4
    assert summary["privacy"]["statement"].startswith("For each person in the training data of each client")
    assert "unit_column" not in (tmp_path / "run" / "global" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "column", "text"),
    [
        (lambda number: "" if number == 3 else "a", "who", r"column 'who', row 4 .* the person is missing\. Expected its name"),
        (lambda number: "a", "owner", "there is no column 'owner'"),
    ],
)
def test_a_person_without_a_name_or_a_column_that_is_not_there_is_rejected(
    name: Callable[[int], str], column: str, text: str, inputs: Path, tmp_path: Path
) -> None:
    tables = with_people(inputs, tmp_path, name)
    with pytest.raises(UserError, match=text):
        session.start(private(inputs, **{**tables, "privacy": {"unit_column": column}}), tmp_path / "run")


def test_scores_can_be_had_for_data_that_need_no_protection(inputs: Path, tmp_path: Path) -> None:
    summary = session.start(private(inputs, privacy={"evaluation": "exact"}), tmp_path / "run")
    assert summary["scores"]["global"] is not None
    assert "The evaluation was exact" in (tmp_path / "run" / "global" / "README.md").read_text()


def test_a_ledger_that_was_changed_or_taken_away_is_rejected(inputs: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        save, calls = Checkpoints.save, []
        patch.setattr(Checkpoints, "save", lambda *args: (save(*args), calls.append(None), len(calls) == 2 and _die()))
        with pytest.raises(Killed):
            session.start(private(inputs), tmp_path / "run")
    one = sorted((tmp_path / "run" / "ledgers").iterdir())[0] / LEDGER
    kept = one.read_text()
    shutil.copytree(tmp_path / "run", tmp_path / "gone")
    shutil.copytree(tmp_path / "run", tmp_path / "secret")
    one.write_text(kept.replace('"times": 2', '"times": 1'))
    with pytest.raises(UserError, match=r"privacy\.jsonl: line 2 was changed"):
        session.resume(tmp_path / "run")
    (tmp_path / "gone" / "ledgers" / one.parent.name / LEDGER).unlink()
    with pytest.raises(UserError, match="charges of this run are missing"):
        session.resume(tmp_path / "gone")
    for secret in (tmp_path / "secret" / "checkpoints" / "secrets").iterdir():
        secret.unlink()
    with pytest.raises(UserError, match="the secret of the run's noise is missing"):
        session.resume(tmp_path / "secret")


def _die() -> None:
    raise Killed


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "a method that measures": ({"method": {"kind": "fibecfed"}}, 'the method fibecfed cannot be run with: in its stage "importance"'),
    "the default of fibecfed": (
        {"method": {"kind": "fibecfed", "preset": None}},
        'in its stage "tune" .*; set `method.layers.rule` = "last", or choose another method',
    ),
    "a curriculum": ({"method": {"kind": "voc"}}, 'the method voc cannot be run with: in its stage "tune"'),
    "control variates": ({"method": {"kind": "scaffold"}}, "the method scaffold cannot be run with"),
    "delta": ({"privacy": {"delta": 0.5}}, r"privacy\.delta: got 0.5 where a client has \d+ training examples"),
    "epsilon": (
        {"privacy": {"noise_multiplier": None, "epsilon": 1e-6, "delta": 1e-12}},
        "privacy.epsilon: got 1e-06, which needs noise of",
    ),
    "budget": ({"privacy": {"max_epsilon": 0.1}}, r"privacy\.max_epsilon: got 0\.1, expected at least"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_what_cannot_be_kept_is_rejected_by_name(case: str, inputs: Path, tmp_path: Path) -> None:
    tables, text = REJECTED[case]
    with pytest.raises(UserError, match=text):
        session.start(private(inputs, **tables), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_check_prints_epsilon_for_the_planned_rounds(inputs: Path) -> None:
    ((title, table),) = privacy_section(prepare(private(inputs), trial=True))
    text = " ".join(str(cell) for column in table.columns for cell in column.cells)
    assert title.startswith("Privacy: each training example, from everybody but its client; noise 2, clip 1, delta 0.001")
    assert f"{rounded_up(epsilon_of(1.0, 1e-3))} for every example after 4 rounds" in text
    assert "each example in 4 noised steps at most, in 4 rounds" in text


def test_its_messages_can_be_audited_without_touching_its_ledgers(whole: Path, tmp_path: Path) -> None:
    """With noise that is drawn anew; the run's own ledgers and secrets stay as they are."""
    shutil.copytree(whole, tmp_path / "run")
    found = audit(tmp_path / "run", 2)
    assert found["rounds"] == [0, 3] and found["note"]
    assert own(tmp_path / "run") == own(whole) and not list((tmp_path / "run" / "checkpoints").rglob("*secret*/*"))


def test_answers_are_private_too_and_clients_weigh_by_their_number(tmp_path: Path) -> None:
    """Not by labelled tokens, which would tell how long one is."""
    save_chats(tmp_path)
    tables = {"method": {"kind": "lora"}, "training": {"objective": "example"}, "privacy": PRIVACY}
    out = tmp_path / "run"
    session.start(chat_config(tmp_path, **tables), out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["privacy"]["epsilon"] == epsilon_of(summary_times(out) / 2.0**2, 1e-3) and "example" in summary["privacy"]["statement"]
    prepared = prepare(chat_config(tmp_path, **tables))
    (first, *_), _, _ = observed(prepared, out)
    sizes = {client: len(prepared.inputs.data.client(client).train) for client in first.updates}
    for name, change in first.mean.items():
        mean = sum(first.updates[client][name].double() * sizes[client] for client in sizes) / sum(sizes.values())
        assert float((change.double() - mean).abs().max()) <= 1e-6 + 1e-4 * float(mean.abs().max())


def summary_times(out: Path) -> int:
    """In how many noised sums an example of the client that trained most was."""
    return max(sum(line["times"] for line in mine[1:]) for mine in own(out).values())
