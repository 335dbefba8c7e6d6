"""Too few answers, clients that are excluded, and a run that goes on after each as if it had never stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import KEY, Spy
from toy import Number, Reply, Scripted, Toy

from fibecfed.core.errors import RunFailed
from fibecfed.core.method import Work
from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.core.wire import encode
from fibecfed.engine.failures import NEW, Standing, sentences
from fibecfed.engine.loop import Step, cohort, run, schedule
from fibecfed.engine.options import FederationOptions
from fibecfed.engine.runtime import frame
from fibecfed.engine.transport import Action, Answer, Ticket

CLIENTS = tuple(str(i) for i in range(6))
NAN = float("nan")
DROP = FederationOptions(on_failure="drop")
QUORUM = FederationOptions(on_failure="drop", quorum=0.6, round_attempts=3)
ROUNDS = 6


class Plan(Scripted):
    """A transport whose exchanges, counted from 0, lose the answers of some clients; `asked` is what it was asked."""

    def __init__(self, lost: Mapping[int, Any] | None = None) -> None:
        super().__init__({})
        self.lost = lost or {}
        self.asked: list[tuple[int, tuple[ClientId, ...], float | None, int | None]] = []

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        self.asked.append((now.number, tuple(requests), timeout_s, max_bytes))
        return super().send(action, now, requests, timeout_s, max_bytes)

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        lost, asked = self.lost.get(len(self.asked) - 1, ()), self.asked[-1][1]
        if lost == "all" or asked.index(ticket.client) in lost:
            return Failure(f"client {ticket.client} answered too late")
        return super().answer(ticket, blob)


def rounds(transport: Any, *, tolerance: FederationOptions = QUORUM, per_round: int = 3, after: Step | None = None) -> list[Step]:
    server, start, standing = (Number({"w": torch.zeros(3)}), 0, NEW) if after is None else (after.server, after.number, after.standing)
    standing = Standing.from_table(json.loads(json.dumps(standing.table())))  # as a checkpoint brings it back
    return list(
        run(
            Toy(rounds=ROUNDS),
            transport,
            CLIENTS,
            per_round=per_round,
            key=KEY,
            server=server,
            start=start,
            tolerance=tolerance,
            standing=standing,
        )
    )


def planned(round_number: int, attempt: int = 0) -> tuple[ClientId, ...]:
    return cohort(Toy().phases[0], CLIENTS, 3, KEY, round_number, attempt)


# ---- quorum and repetition


@given(st.floats(0, 1), st.integers(1, 50))
def test_a_quorum_is_the_least_number_that_reaches_the_share(share: float, asked: int):
    needed = FederationOptions(quorum=share).needed(asked)
    assert 1 <= needed <= asked
    assert needed / asked >= share - 1e-9 and (needed == 1 or (needed - 1) / asked < share)


def test_a_round_with_too_few_answers_is_repeated_with_another_cohort_and_tells_so():
    transport = Spy(Plan({2: {0, 1}, 3: "all"}))
    steps = rounds(transport)
    record = steps[2].record
    first, second = record.attempts
    assert (first.cohort, second.cohort, record.cohort) == tuple(planned(2, attempt) for attempt in range(3))
    assert len({first.cohort, second.cohort, record.cohort}) == 3
    assert set(first.failures) == set(first.cohort[:2]) and set(second.failures) == set(second.cohort) and not record.failures
    carried = [(down, up) for _, _, now, down, up in transport.carried if now.number == 2]
    assert sum(record.bytes_down.values()) == sum(len(down) for down, _ in carried) == sum(record.fields_down.values())
    up = sum(len(reply) for _, reply in carried if isinstance(reply, bytes))
    assert sum(record.bytes_up.values()) == up == sum(record.fields_up.values())
    assert record.fields_up["discarded"] == first.bytes_up[first.cohort[2]] > 0 and set(record.steps) == set(record.cohort)
    told = sentences(record)
    assert told[0] == "tune round 2 was repeated with other clients: 1 of 3 gave a usable answer"
    assert f"client {first.cohort[0]} failed in it: client {first.cohort[0]} answered too late" in told
    # the server moved by the answers of the last cohort alone
    mean = sum(int(client) + 1 for client in record.cohort) / 3
    torch.testing.assert_close(steps[2].server.shared["w"], torch.full((3,), mean))


def test_the_cohorts_of_other_rounds_are_the_same_whatever_happened():
    clean = rounds(Plan())
    assert [step.record.cohort for step in clean] == [planned(number) for number in range(ROUNDS)]
    for lost in ({0: "all"}, {1: {0, 1}, 2: "all"}, {4: {1, 2}}):
        steps = rounds(Plan(lost))
        repeated = [step.now.number for step in steps if step.record.attempts]
        assert len(repeated) == 1
        for ours, theirs in zip(steps, clean, strict=True):
            assert ours.record.cohort == theirs.record.cohort or ours.now.number in repeated


def test_enough_answers_are_enough():
    steps = rounds(Plan({2: {1}}))
    assert not steps[2].record.attempts and set(steps[2].record.failures) == {steps[2].record.cohort[1]}
    assert all(not step.record.failures for step in steps if step.number != 3)


def test_below_the_quorum_in_every_attempt_the_run_stops_and_a_resumed_one_ends_as_if_it_had_not():
    whole = rounds(Plan())
    transport = Plan({3: "all", 4: {0, 2}, 5: "all"})
    steps: list[Step] = []
    with pytest.raises(RunFailed) as stopped:
        for step in run(
            Toy(rounds=ROUNDS), transport, CLIENTS, per_round=3, key=KEY, server=Number({"w": torch.zeros(3)}), tolerance=QUORUM
        ):
            steps.append(step)
    who = planned(3, 2)[0]
    text = "tune round 3: none of 3 clients gave a usable answer, expected at least 2 (federation.quorum), the last of 3 cohorts that were "
    assert str(stopped.value) == f"{text}asked; the first: client {who} answered too late. The checkpoint before it stays usable"
    assert [asked for _, asked, *_ in transport.asked[3:]] == [planned(3, attempt) for attempt in range(3)]
    rest = rounds(Plan(), after=steps[-1])
    assert [step.record.cohort for step in steps + rest] == [step.record.cohort for step in whole]
    assert encode(rest[-1].server) == encode(whole[-1].server)


def test_a_client_of_which_nothing_is_heard_has_failed():
    class Silent(Plan):
        def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
            yield from list(super().receive(tickets))[1:]

    (first, *_) = rounds(Silent())
    assert first.record.failures == {planned(0)[0]: f"client {planned(0)[0]}, tune round 0: no answer"}
    with pytest.raises(RunFailed, match="tune round 0: no answer"):
        rounds(Silent(), tolerance=FederationOptions())


def test_the_transport_is_told_how_long_to_wait_and_how_much_to_take():
    transport = Plan()
    rounds(transport, tolerance=FederationOptions(round_timeout_s=2.5))
    assert {timeout_s for _, _, timeout_s, _ in transport.asked} == {2.5}
    assert {max_bytes for *_, max_bytes in transport.asked} == {2**20 + 2 * 12}
    transport = Plan()
    rounds(transport)
    assert {timeout_s for _, _, timeout_s, _ in transport.asked} == {None}


# ---- exclusion


def wrong(*rounds: int, client: ClientId = "2") -> dict[tuple[ClientId, int], Any]:
    return {(client, number): NAN for number in rounds}


EXCLUDE = FederationOptions(on_failure="drop", exclude_after=3)


def test_three_refused_answers_in_a_row_exclude_a_client_and_the_others_fill_its_place():
    steps = rounds(Scripted(wrong(0, 1, 2, 3, 4, 5)), tolerance=EXCLUDE, per_round=5)
    clean = rounds(Scripted({}), tolerance=EXCLUDE, per_round=5)
    asked = [step.now.number for step in clean if "2" in step.record.cohort][:3]
    out = asked[2]
    for ours, theirs in zip(steps, clean, strict=True):
        record = ours.record
        assert record.excluded == (("2",) if ours.now.number == out else ())
        assert len(record.cohort) == 5 and set(theirs.record.cohort) - {"2"} <= set(record.cohort)
        if ours.now.number > out:
            assert "2" not in record.cohort and not record.failures
    assert steps[-1].standing.excluded == {"2"}
    assert sentences(steps[out].record)[-1] == "client 2 is excluded from now on: too many consecutive updates of it were rejected"


@pytest.mark.parametrize(
    ("script", "excluded"),
    [
        (wrong(0, 1, 3, 4), ()),  # a good one in between
        ({**wrong(0, 1, 3), ("2", 2): Failure("gone")}, ("2",)),  # not answering neither counts nor makes good
        ({("2", number): Failure("gone") for number in range(ROUNDS)}, ()),
        (wrong(0, 1), ()),
    ],
    ids=["good between", "gone between", "gone", "two"],
)
def test_only_refused_answers_in_a_row_count(script: Any, excluded: tuple[str, ...]):
    steps = rounds(Scripted(script), tolerance=EXCLUDE, per_round=6)
    assert steps[-1].standing.excluded == set(excluded)
    assert rounds(Scripted(script), tolerance=DROP, per_round=6)[-1].standing.excluded == set()


def test_a_run_that_goes_on_after_any_round_remembers_who_was_refused_and_excluded():
    script = {**wrong(0, 2, 4), **wrong(1, 2, 3, client="4")}
    tolerance = FederationOptions(on_failure="drop", exclude_after=2)
    whole = rounds(Scripted(script), tolerance=tolerance, per_round=4)
    assert whole[-1].standing.excluded
    for step in whole[:-1]:
        rest = rounds(Scripted(script), tolerance=tolerance, per_round=4, after=step)
        assert [one.record.cohort for one in rest] == [one.record.cohort for one in whole[step.number :]]
        assert encode(rest[-1].server) == encode(whole[-1].server) and rest[-1].standing == whole[-1].standing


def test_a_client_cannot_change_its_number_of_examples_after_the_run_was_resumed():
    def counted(n: int) -> bytes:
        return frame(encode(Reply({"w": torch.ones(3)}, n)), Work())

    first, *_ = rounds(Scripted({("2", 0): counted(7)}), tolerance=DROP, per_round=6)
    assert first.standing.num_samples == {**dict.fromkeys(CLIENTS, 1), "2": 7}
    (second, third, *_) = rounds(Scripted({("2", 1): counted(8), ("2", 2): counted(7)}), tolerance=DROP, per_round=6, after=first)
    assert second.record.failures["2"] == "client 2, tune round 1: num_samples is 8, expected 7 as in its first answer"
    assert not third.record.failures.get("2")


def test_the_first_refused_answer_declares_nothing():
    script = {("2", 0): frame(encode(Reply({"x": torch.ones(3)}, 7)), Work())}
    first, second, *_ = rounds(Scripted(script), tolerance=DROP, per_round=6)
    assert "2" in first.record.refused and "2" not in first.standing.num_samples
    assert not second.record.failures and second.standing.num_samples["2"] == 1


def test_a_run_of_which_everybody_is_excluded_says_so():
    script = {(client, number): NAN for client in CLIENTS for number in range(ROUNDS)}
    tolerance = FederationOptions(on_failure="drop", exclude_after=1, round_attempts=2)
    with pytest.raises(RunFailed, match=r"tune round 0: none of the 6 clients is left that is not excluded \(federation.exclude_after\)"):
        rounds(Scripted(script), tolerance=tolerance, per_round=6)


def test_a_first_attempt_draws_what_a_run_without_attempts_draws():
    for now in schedule(Toy(rounds=4)):
        order = KEY.fold("cohort", now.number).permutation(6).tolist()
        assert planned(now.number) == tuple(sorted(CLIENTS[i] for i in order[:3]))
    assert math.comb(6, 3) > 3 and len({planned(0, attempt) for attempt in range(4)}) > 1
