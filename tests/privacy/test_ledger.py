"""The ledger: no charge is lost, none is made twice for one release, and nothing edited or foreign is believed."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fibecfed.core.errors import UserError
from fibecfed.privacy.gaussian import epsilon_of
from fibecfed.privacy.ledger import LEDGER, LEDGERS, SECRET, BudgetSpent, Ledger, Release, Terms, epsilon_of_clients, forget

TERMS = Terms("client", 4, 2, 4, 2.0, 0.1, 1e-3, None)


def release(number: int, total: bytes = b"a", charged: tuple[str, ...] = ("0", "1"), **other: Any) -> Release:
    return replace(Release(number, "tune", 10, 2.0, 0.1, 2, total * 32, charged), **other)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]


def test_a_client_is_charged_for_its_own_rounds(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, TERMS)
    assert lines(tmp_path)[-1]["epsilon_max"] == 0 and lines(tmp_path)[-1]["delta"] == 1e-3
    for number, charged in enumerate([("0", "1"), ("2", "3"), ("0", "2")]):
        ledger.charge(release(number, charged=charged))
    assert ledger.mu2_max == 2 / 4 and ledger.clients == 4 and ledger.releases == 3
    last = lines(tmp_path)[-1]
    assert (last["mu2_max"], last["epsilon_max"], last["delta"]) == (0.5, epsilon_of(0.5, 1e-3), 1e-3)
    assert last["charged"] == ["0", "2"] and last["round"] == 2 and last["attempt"] == 0


def test_the_charge_is_on_the_disk_before_the_noise_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, TERMS)
    synced: list[int] = []
    monkeypatch.setattr("fibecfed.privacy.ledger.os.fsync", lambda file: synced.append(len(lines(tmp_path))))
    ledger.charge(release(0))
    assert synced == [2]


def test_the_same_sum_of_a_round_has_the_same_noise_and_one_charge(tmp_path: Path) -> None:
    first = Ledger(tmp_path, TERMS)
    key = first.charge(release(0))
    again = Ledger(tmp_path, TERMS)
    assert again.charge(release(0)) == key and again.mu2_max == 1 / 4 and len(lines(tmp_path)) == 2
    other = again.charge(release(0, b"b"))
    assert other != key and again.mu2_max == 2 / 4 and lines(tmp_path)[-1]["attempt"] == 1
    assert again.charge(release(1)) not in (key, other)  # a sum of another round
    assert Ledger(tmp_path, TERMS).mu2_max == 3 / 4


def test_another_run_has_other_noise_for_the_same_sum(tmp_path: Path) -> None:
    one, other = (Ledger(tmp_path / name, TERMS) for name in "ab" if (tmp_path / name).mkdir() is None)
    assert one.charge(release(0)) != other.charge(release(0))
    assert lines(tmp_path / "a")[1]["sum_code"] != lines(tmp_path / "b")[1]["sum_code"]  # no hash that a guess could be compared with


def test_the_secret_is_of_the_operating_system_and_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("fibecfed.privacy.ledger.secrets.token_bytes", lambda size: asked.append(size) or b"s" * size)
    Ledger(tmp_path, TERMS)
    path = tmp_path / "checkpoints" / SECRET
    assert asked == [32] and path.read_bytes() == b"s" * 32 and stat.S_IMODE(path.stat().st_mode) == 0o600
    forget(tmp_path)
    assert not path.exists()


def test_a_budget_is_not_passed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, replace(TERMS, budget=epsilon_of(2 / 4, 1e-3)))
    ledger.charge(release(0))
    ledger.charge(release(1))
    assert not ledger.affords(["0", "2"], 2.0) and ledger.affords(["2", "3"], 2.0)
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(BudgetSpent):
        ledger.charge(release(2))
    assert (tmp_path / LEDGER).read_bytes() == before
    assert ledger.charge(release(1)) and ledger.mu2_max == 2 / 4  # what is known already costs nothing


def test_half_a_line_is_of_a_release_that_was_never_made(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, TERMS)
    ledger.charge(release(0))
    whole = (tmp_path / LEDGER).read_bytes()
    ledger.charge(release(1))
    for size in (len(whole) + 1, len((tmp_path / LEDGER).read_bytes()) - 1):
        (tmp_path / LEDGER).write_bytes((tmp_path / LEDGER).read_bytes()[:size])
        assert Ledger(tmp_path, TERMS).mu2_max == 1 / 4 and (tmp_path / LEDGER).read_bytes() == whole


def test_a_ledger_that_was_stopped_in_its_first_line_is_begun_again(tmp_path: Path) -> None:
    Ledger(tmp_path, TERMS)
    (tmp_path / LEDGER).write_bytes((tmp_path / LEDGER).read_bytes()[:20])
    assert Ledger(tmp_path, TERMS).mu2_max == 0 and len(lines(tmp_path)) == 1


def edited(blob: bytes) -> list[bytes]:
    first, second, third = blob.splitlines(keepends=True)
    return [
        blob.replace(b'"z": 2.0', b'"z": 9.0'),
        blob.replace(b'"charged": ["0", "1"]', b'"charged": ["3", "3"]'),
        first + third,
        first + third + second,
        blob + third,
        second + third,
        first + b"{}\n",
        first + second + b"\xff\n",
        blob.replace(b'"code": "', b'"code": "0', 1),
        blob.replace(b'"code": "', b'"code": "\xff', 1),
    ]


@pytest.mark.parametrize("which", range(10))
def test_an_edited_ledger_is_rejected(tmp_path: Path, which: int) -> None:
    ledger = Ledger(tmp_path, TERMS)
    ledger.charge(release(0))
    ledger.charge(release(1))
    path = tmp_path / LEDGER
    path.write_bytes(edited(path.read_bytes())[which])
    with pytest.raises(UserError, match=r"line \d was changed, or is of another run"):
        Ledger(tmp_path, TERMS)


def test_a_ledger_of_other_clients_or_data_is_rejected(tmp_path: Path) -> None:
    Ledger(tmp_path, TERMS, data="a").charge(release(0))
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(UserError, match="got clients or data that are not those which the ledger was begun with"):
        Ledger(tmp_path, TERMS, data="b")
    assert (tmp_path / LEDGER).read_bytes() == before and Ledger(tmp_path, TERMS, data="a").charged(0)


def test_charges_that_records_know_of_cannot_be_removed_before_the_first_checkpoint(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, TERMS)
    ledger.charge(release(0))
    ledger.charge(release(1))
    path = tmp_path / LEDGER
    whole = path.read_bytes()
    assert Ledger(tmp_path, TERMS, recorded=2).charged(1)
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match="charges of this run are missing: it has those of 1 rounds, and 2 are recorded"):
        Ledger(tmp_path, TERMS, recorded=2)
    path.unlink()
    with pytest.raises(UserError, match="charges of this run are missing: it is empty or missing"):
        Ledger(tmp_path, TERMS, recorded=2)


def test_a_foreign_ledger_is_rejected(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Ledger(tmp_path / name, TERMS).charge(release(0))
    (tmp_path / "a" / LEDGER).write_bytes((tmp_path / "b" / LEDGER).read_bytes())
    with pytest.raises(UserError, match="line 1 was changed, or is of another run"):
        Ledger(tmp_path / "a", TERMS)


def test_charges_that_the_checkpoint_saw_must_be_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, TERMS)
    ledger.charge(release(0))
    kept = ledger.mark()
    ledger.charge(release(1))
    path = tmp_path / LEDGER
    blob = path.read_bytes()
    assert Ledger(tmp_path, TERMS, kept=kept).mu2_max == 2 / 4
    path.write_bytes(b"".join(blob.splitlines(keepends=True)[:1]))
    with pytest.raises(UserError, match="it has 1 lines, and the checkpoint saw 2"):
        Ledger(tmp_path, TERMS, kept=kept)
    path.unlink()
    with pytest.raises(UserError, match="charges of this run are missing"):
        Ledger(tmp_path, TERMS, kept=kept)
    path.write_bytes(blob)
    with pytest.raises(UserError, match="line 2 is not the one"):
        Ledger(tmp_path, TERMS, kept={**kept, "code": "0" * 64})


def test_a_lost_secret_and_other_terms_are_rejected(tmp_path: Path) -> None:
    Ledger(tmp_path, TERMS)
    with pytest.raises(UserError, match=r"noise_multiplier: got 1.0, expected 2.0"):
        Ledger(tmp_path, replace(TERMS, noise_multiplier=1.0))
    forget(tmp_path)
    with pytest.raises(UserError, match="secret of the run's noise is missing"):
        Ledger(tmp_path, TERMS)


def test_the_largest_epsilon_of_clients_whose_first_line_may_be_half_written(tmp_path: Path):
    for client, text in {"a": b'{"epsilon_max": 1.5}\n{"epsilon_max": 2.5}\n{"eps', "b": b'{"eps', "c": b""}.items():
        (tmp_path / LEDGERS / client).mkdir(parents=True)
        (tmp_path / LEDGERS / client / LEDGER).write_bytes(text)
    assert epsilon_of_clients(tmp_path) == 2.5
    assert epsilon_of_clients(tmp_path / "none") == 0
