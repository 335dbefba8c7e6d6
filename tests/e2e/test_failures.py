"""A run on disk that stops for want of answers, or excludes a client, and goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from saved import run_config

from fibecfed import session
from fibecfed.core.errors import RunFailed
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.core.wire import decode, encode
from fibecfed.engine.events import RoundDone, Warned
from fibecfed.engine.runtime import Scored
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.transport import Ticket

Answer = Callable[[str, Round, ClientId, bytes], Any]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    """Makes others of the answers that clients send from now on."""
    answer = Simulator.answer

    def install(change: Answer) -> None:
        def faulty(self: Simulator, ticket: Ticket, blob: bytes) -> Any:
            return change(ticket.action, ticket.now, ticket.client, answer(self, ticket, blob))  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(Simulator, "answer", faulty)

    return install


def rounds_of(out: Path) -> list[RoundRecord]:
    return [record for record in read(out / "records.jsonl")[1] if isinstance(record, RoundRecord)]


def test_a_run_without_a_quorum_stops_and_resumes_to_the_same_adapters(
    inputs: Path, whole: Any, tmp_path: Path, answers: Callable[[Answer], None]
) -> None:
    config = run_config(inputs, federation={"on_failure": "drop", "quorum": 1.0, "round_attempts": 2})
    asked: list[tuple[int, ClientId]] = []

    def gone_in_round_3(action: str, now: Round, client: ClientId, reply: bytes) -> bytes | Failure:
        asked.append((now.number, client))
        return Failure(f"client {client} is gone") if now.number == 3 else reply

    answers(gone_in_round_3)
    with pytest.raises(RunFailed, match=r"tune round 2: none of 2 clients .* at least 2 \(federation\.quorum\).*fibecfed resume"):
        session.start(config, tmp_path)
    assert sum(number == 3 for number, _ in asked) == 4 and len(rounds_of(tmp_path)) == 3

    answers(lambda action, now, client, reply: reply)
    summary, was_finished = session.resume(tmp_path)
    assert not was_finished
    assert summary["adapters"] == whole[1]["adapters"] and summary["scores"] == whole[1]["scores"]
    assert [record.cohort for record in rounds_of(tmp_path)] == [record.cohort for record in rounds_of(whole[0])]


def test_an_excluded_client_stays_excluded_in_a_resumed_run(inputs: Path, tmp_path: Path, answers: Callable[[Answer], None]) -> None:
    federation = {"on_failure": "drop", "exclude_after": 2, "clients_per_round": 3, "rounds": 4}
    config = run_config(inputs, method={"kind": "lora"}, federation=federation)
    trained: list[int] = []

    def truncated(action: str, now: Round, client: ClientId, reply: bytes) -> bytes:
        if client != "2" or action != "train":
            return reply
        trained.append(now.number)
        return reply[:-40]

    answers(truncated)
    events: list[Any] = []
    expected = session.start(config, tmp_path / "whole", events.append)
    refused = list(trained)
    records = rounds_of(tmp_path / "whole")
    assert len(refused) == 2 and records[refused[1]].excluded == ("2",) and refused[1] < 3
    assert "client 2 is excluded from now on" in [event.text for event in events if isinstance(event, Warned)][-1]
    last = read(tmp_path / "whole" / "records.jsonl")[1][-1]
    assert isinstance(last, EvalRecord) and set(last.clients) == {"0", "1", "3"}  # it is not asked for its counts either

    def stop_there(event: object) -> None:
        if isinstance(event, RoundDone) and event.index == refused[1] + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.start(config, tmp_path / "resumed", stop_there)
    trained.clear()
    summary, _ = session.resume(tmp_path / "resumed")
    assert not trained and summary["adapters"] == expected["adapters"]
    assert [record.cohort for record in rounds_of(tmp_path / "resumed")] == [record.cohort for record in records]


def test_a_client_cannot_count_on_other_examples_after_the_run_was_resumed(
    inputs: Path, tmp_path: Path, answers: Callable[[Answer], None]
) -> None:
    config = run_config(inputs, method={"kind": "lora"}, federation={"on_failure": "drop"})

    def stop_in_round_4(event: object) -> None:
        if isinstance(event, RoundDone) and event.index == 3:  # behind it lie an evaluation, and a round with a checkpoint and without one
            raise KeyboardInterrupt

    def twice_as_many(action: str, now: Round, client: ClientId, reply: bytes) -> bytes:
        if action != "evaluate" or client != "2":
            return reply
        sent = decode(Scored, reply)
        return encode(replace(sent, test={**sent.test, "confusion": 2 * sent.test["confusion"]}))

    with pytest.raises(KeyboardInterrupt):
        session.start(config, tmp_path, stop_in_round_4)
    answers(twice_as_many)
    session.resume(tmp_path)
    evaluations = [record for record in read(tmp_path / "records.jsonl")[1] if isinstance(record, EvalRecord)]
    assert [set(record.failures) for record in evaluations] == [set(), set(), {"2"}]
    assert "as in its first evaluation" in evaluations[-1].failures["2"] and "2" not in evaluations[-1].clients
