"""An answer that is not what it must be is rejected by name, and the run goes on as if its sender had not been asked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import Around, federation, made_data, made_method, made_task
from sums import scored
from toy import Count, Number, Reply, Toy

from fibecfed.core.errors import RunFailed
from fibecfed.core.method import Phase, Work
from fibecfed.core.statistics import of_classes
from fibecfed.core.types import Failure, Round
from fibecfed.core.wire import Tensors, WireError, decode, encode, message
from fibecfed.engine.checks import OVERHEAD_BYTES, Refused, checked, checked_sums, expected
from fibecfed.engine.failures import STOP, printable
from fibecfed.engine.options import FederationOptions
from fibecfed.engine.runtime import frame, unframe
from fibecfed.engine.transport import Answer, Ticket, Transport
from fibecfed.methods.fibecfed import AllLayers
from fibecfed.methods.importance import Importance

TASK, DATA = made_task(2), made_data(4, 6)
DROP = FederationOptions(on_failure="drop", max_samples=1000, max_update_norm=100)
BAD = "2"


class Faulty(Around):
    """A transport on which the answers of client 2 from round 1 on become others; without a fault, nothing of it arrives."""

    def __init__(self, inner: Transport, fault: Callable[[bytes], bytes] | None) -> None:
        super().__init__(inner)
        self.fault = fault

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        for answer in super().receive(tickets):
            if answer.ticket.client != BAD or answer.ticket.now.number == 0 or isinstance(answer.reply, Failure):
                yield answer
            elif self.fault is not None:
                yield Answer(answer.ticket, self.fault(answer.reply))


def changed(edit: Callable[[Any], Any], up: type = Reply) -> Callable[[bytes], bytes]:
    """A fault in the message itself, which is encoded and framed as it should be."""

    def fault(reply: bytes) -> bytes:
        encoded, work = unframe(reply)
        return frame(encode(edit(decode(up, encoded))), work)

    return fault


def shared(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Any], Any]:
    return lambda answer: replace(answer, shared=edit(dict(answer.shared)))


def other_work(work: Work) -> Callable[[bytes], bytes]:
    return lambda reply: frame(unframe(reply)[0], work)


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda reply: reply[:-40], "bytes that are not a fibecfed message"),
    "a few bytes": (lambda reply: reply[:5], "a reply of 5 bytes"),
    "nothing": (lambda reply: b"", "a reply of 0 bytes"),
    "oversized": (lambda reply: reply + bytes(2**21), r"a reply of 2\d{6} bytes, expected at most 1048"),
    "another version": (lambda reply: reply.replace(rb"\"version\":1", rb"\"version\":2"), "got wire version 2, expected 1"),
    "another message": (changed(lambda _: Count(3)), "got a message of type 'Count', expected 'Reply'"),
    "unknown name": (changed(shared(lambda t: {**t, "x": t["w"]})), r"shared of its update has 1 unknown tensors \(x\), expected 1"),
    "missing name": (changed(shared(lambda t: {})), r"shared of its update lacks 1 tensors \(w\), expected 1"),
    "wrong shape": (changed(shared(lambda t: {"w": t["w"][:2]})), r"shared w of its update has shape \(2,\), expected \(3,\)"),
    "another rank": (changed(shared(lambda t: {"w": t["w"][None]})), r"shared w of its update has shape \(1, 3\), expected \(3,\)"),
    "wrong dtype": (changed(shared(lambda t: {"w": t["w"].double()})), "shared w of its update has dtype float64, expected float32"),
    "NaN": (changed(shared(lambda t: {"w": t["w"] * float("nan")})), "shared w of its update is not finite"),
    "1e30": (changed(shared(lambda t: {"w": t["w"] * 0 + 1e30})), r"by 1\.732e\+30 .*shared w.*, expected at most 100"),
    "a million examples": (changed(lambda up: replace(up, num_samples=10**6)), "num_samples is 1000000, expected .* at most 1000"),
    "no examples": (changed(lambda up: replace(up, num_samples=0)), "num_samples is 0, expected at least 1"),
    "another number of examples": (changed(lambda up: replace(up, num_samples=999)), r"num_samples is 999, expected \d+ as in its first"),
    "a number of 400 digits": (changed(lambda up: replace(up, num_samples=10**400)), "integer of 1329 bits, expected at most 63"),
    "2^41 examples": (changed(lambda up: replace(up, num_samples=2**41)), "num_samples is 2199023255552, expected .* at most 1000"),
    "a loss that is NaN": (other_work(Work(1, 2, float("nan"), 0.1)), "its loss is nan"),
    "a loss below 0": (other_work(Work(1, 2, -0.5, 0.1)), r"its loss is -0\.5"),
    "a loss too large for sums": (other_work(Work(1, 2, 1.7e308, 0.1)), r"its loss is 1\.7e"),
    "infinite seconds": (other_work(Work(1, 2, 0.5, float("inf"))), "its seconds inf"),
    "negative seconds": (other_work(Work(1, 2, 0.1, -1.0)), r"its seconds -1\.0"),
    "absurd steps": (other_work(Work(2**63, 2, 0.1, 1.0)), "it counts 9223372036854775808 steps"),
    "absurd examples": (other_work(Work(2, 2**41, 0.1, 1.0)), "it counts 2 steps on 2199023255552 examples, expected"),
}  # fmt: skip


def final(fault: Callable[[bytes], bytes] | None, method: Any = None, **options: Any) -> tuple[bytes, list[Any]]:
    world = federation(method or Toy(rounds=2), TASK, DATA, per_round=4, wrap=lambda inner: Faulty(inner, fault))
    records = [step.record for step in world.run(tolerance=options.get("tolerance", DROP))]
    return encode(world.server), records


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_answer_is_refused_by_name_and_the_result_is_that_without_its_sender(name: str):
    fault, text = FAULTS[name]
    server, (first, second) = final(fault)
    assert not first.failures and not first.refused and set(second.failures) == {BAD} and second.refused == (BAD,)
    assert re.match(f"client 2, tune round 1: .*{text}", second.failures[BAD])
    expect, (_, without) = final(None)
    assert server == expect and set(without.failures) == {BAD} and without.refused == ()
    assert second.bytes_up.keys() - without.bytes_up.keys() == {BAD}


def test_without_a_sender_the_mean_is_that_of_the_others():
    counts = {client: len(DATA.client(client).train) for client in DATA.clients}
    _, (first, second) = final(None)
    assert set(first.steps) == set(DATA.clients) and set(second.steps) == set(DATA.clients) - {BAD}
    world = federation(Toy(rounds=2), TASK, DATA, per_round=4, wrap=lambda inner: Faulty(inner, FAULTS["NaN"][0]))
    *_, last = world.run(tolerance=DROP)
    mean = sum(n * n for n in counts.values()) / sum(counts.values())
    others = {client: n for client, n in counts.items() if client != BAD}
    mean += sum(n * n for n in others.values()) / sum(others.values())
    torch.testing.assert_close(last.server.shared["w"], torch.full((3,), mean))


@pytest.mark.parametrize("kind", ["lora", "fibecfed"])
def test_real_methods_go_on_without_a_client_that_sends_other_tensors(kind: str):
    method = made_method(kind, rounds=2, clients=4, **({"layers": {"rule": "last", "value": 1}} if kind == "fibecfed" else {}))
    up = method.phases[-1].up
    with_fault, (_, record) = final(changed(shared(lambda t: dict(list(t.items())[1:])), up), method)
    assert "shared of its update lacks 1 tensors" in record.failures[BAD]
    assert with_fault == final(None, method)[0]


def test_a_wrong_answer_stops_a_run_that_is_to_stop_at_failures():
    with pytest.raises(RunFailed, match=r"client 2, tune round 1: shared w of its update has dtype float64.*on_failure"):
        final(FAULTS["wrong dtype"][0], tolerance=STOP)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_comes_it_is_refused_or_like_what_is_expected_and_nothing_else_happens(data: st.DataObject):
    good = bytearray(frame(encode(answer()), Work(1, 2, 0.5, 0.1)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place] = data.draw(st.integers(0, 255))
    reply = bytes(good[: data.draw(st.sampled_from([len(good), len(good) - 1, len(good) // 2]))])
    try:
        got, work = checked(reply, expected(phase(Wide), SERVER, SENT, NOW), STOP, None)
    except (Refused, WireError):
        return
    assert {name: value.shape for name, value in got.shared.items()} == {"w": (2, 3)} and torch.isfinite(got.shared["w"]).all()
    assert work.compute_s >= 0


def test_what_a_client_wrote_cannot_garble_a_record_or_a_terminal():
    _, (_, record) = final(changed(shared(lambda t: {**t, "\x1b[2J\n" + "n" * 3000: torch.ones(1)})))
    text = record.failures[BAD]
    assert text.startswith("client 2, tune round 1: shared of its update has 1 unknown tensors (?[2J?nnn") and text.isprintable()
    assert printable("half a pair \ud83d").encode() == b"half a pair ?" and len(printable("n" * 3000)) == 500


# ---- what is expected


@message
class Wide:
    """Every kind of tensor field."""

    shared: Tensors
    control: Tensors
    scores: torch.Tensor
    extra: Tensors


@message
class State:
    """A server's state that knows two of the fields of `Wide`."""

    control: Tensors
    scores: torch.Tensor
    extra: Tensors


NOW = Round("tune", 0, 1, 0)
SERVER = State({"c": torch.zeros(2)}, torch.zeros(3), {})
SENT = Number({"w": torch.zeros(2, 3)})


def phase(up: type, template: Any = None) -> Phase[Any, Any, Any, Any]:
    return replace(Toy().phases[0], up=up, template=template)


def answer(**fields: Any) -> Wide:
    parts = {"shared": {"w": torch.ones(2, 3)}, "control": {"c": torch.ones(2)}, "scores": torch.ones(3), "extra": {"any": torch.ones(7)}}
    return Wide(**{**parts, **fields})


def check(value: Any, row: Phase[Any, Any, Any, Any], tolerance: FederationOptions = STOP, sent: Any = SENT) -> Any:
    return checked(frame(encode(value), Work()), expected(row, SERVER, sent, NOW), tolerance, None)[0]


def test_without_a_template_fields_are_like_those_that_were_sent_or_that_the_server_has():
    row = phase(Wide)
    check(answer(), row)
    for wrong, text in [
        ({"shared": {"w": torch.ones(3, 2)}}, r"shared w .*shape \(3, 2\), expected \(2, 3\)"),
        ({"control": {"d": torch.ones(2)}}, "control of its update has 1 unknown tensors"),
        ({"scores": torch.ones(4)}, r"scores of its update has shape \(4,\), expected \(3,\)"),
        ({"extra": {"any": torch.tensor([float("inf")])}}, "extra any of its update is not finite"),
        ({"extra": {"any": torch.zeros(2, dtype=torch.complex64)}}, "extra any of its update has dtype complex64"),
        ({"extra": {"any": torch.zeros(2).to(torch.float8_e5m2)}}, "extra any of its update has dtype float8"),
    ]:
        with pytest.raises(Refused, match=text):
            check(answer(**wrong), row)


def ranked(server: Any, now: Round) -> Wide:
    """Any number of rows of w, and nothing in `extra`."""
    return answer(shared={"w": torch.zeros(0, 3)}, extra={})


def test_a_template_says_what_differs_and_a_size_of_0_stands_for_any():
    row = phase(Wide, ranked)
    for rows in (1, 5):
        check(answer(shared={"w": torch.ones(rows, 3)}, extra={}), row)
    with pytest.raises(Refused, match=r"shape \(2, 4\), expected \(any, 3\)"):
        check(answer(shared={"w": torch.ones(2, 4)}, extra={}), row)
    with pytest.raises(Refused, match="extra of its update has 1 unknown tensors"):
        check(answer(), row)


def test_without_a_limit_a_client_still_cannot_name_more_examples_than_sums_hold():
    row, huge = phase(Reply), Reply({"w": torch.ones(2, 3)}, 2**41)
    with pytest.raises(Refused, match="num_samples is 2199023255552, expected at least 1 and at most 1099511627776"):
        check(huge, row)
    assert check(replace(huge, num_samples=2**40), row).num_samples == 2**40


def test_an_answer_may_be_as_long_as_all_that_the_server_knows_and_a_mebibyte():
    expect = expected(phase(Wide), SERVER, SENT, NOW)
    assert expect.max_bytes == OVERHEAD_BYTES + 4 * (6 + 2 + 3)
    with pytest.raises(Refused, match="expected at most"):
        checked(bytes(expect.max_bytes + 1), expect, STOP, None)
    with pytest.raises(WireError):
        checked(bytes(expect.max_bytes), expect, STOP, None)


def test_the_norm_is_that_of_the_difference_to_what_was_sent():
    row, sent = phase(Wide), Number({"w": torch.full((2, 3), 1e3)})
    near = answer(shared={"w": torch.full((2, 3), 1e3 + 1)}, control={"c": torch.full((2,), 1e9)})
    check(near, row, FederationOptions(max_update_norm=6**0.5 + 1e-9), sent)  # what was not sent has no limit
    with pytest.raises(Refused, match=r"by 2\.449 \(L2 norm, most of it in shared w\), expected at most 2\.4 "):
        check(near, row, FederationOptions(max_update_norm=2.4), sent)
    with pytest.raises(Refused, match="by inf"):
        wide = Number({"w": torch.zeros(1, dtype=torch.float64)})
        check(answer(shared={"w": torch.tensor([1e200], dtype=torch.float64)}), row, FederationOptions(max_update_norm=1), wide)


def test_the_answers_of_fibecfed_are_known_in_every_phase():
    method = made_method(rounds=1, clients=4, closing_round=True, layers={"rule": "share", "importance_clients": 2})
    server = method.init(TASK, method.key)
    for row in method.phases:
        now = Round(row.name, 0, 1, 0)
        expect = expected(row, server, row.broadcast(server, now), now)
        if row.up is AllLayers:
            assert expect.like["shared"].keys() == set(TASK.names)
        if row.up is Importance:
            assert expect.like["importance"][""].shape == (2,)
    finished = federation(method, TASK, DATA).finish(tolerance=FederationOptions(max_update_norm=1e4, max_samples=99))
    assert [step.record.failures for step in finished] == [{}] * 3


TWO = of_classes(2)


def test_sums_of_an_evaluation_are_those_of_the_classes_there_are():
    good = scored(torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64), 0.5)
    assert checked_sums(encode(good), TWO, 4, ((2, 2), (0, 0))).test["nll"] == 0.5
    far = replace(good, test={**good.test, "calibration": good.test["calibration"] + 0.3})
    for wrong, text in [
        (scored(torch.ones(3, 3, dtype=torch.int64), good.test["confusion"]), r"test confusion .* has shape \(3, 3\), expected \(2, 2\)"),
        (replace(good, validation={**good.test, "confusion": torch.ones(2, 2)}), "validation confusion .* dtype float32, expected int64"),
        (replace(good, validation={"confusion": good.test["confusion"]}), r"validation of its update lacks 2 tensors \(calibration, nll\)"),
        (scored(torch.tensor([[1, 0], [0, -1]]), good.test["confusion"]), "test confusion has a count of -1, expected at least 0"),
        (scored(good.test["confusion"] * 2**62, good.test["confusion"]), f"test counts {2**64} examples, expected at most {2**40}$"),
        (far, r"test calibration sums to 4\.5, expected at most 4, the number of examples"),
    ]:
        with pytest.raises(Refused, match=text):
            checked_sums(encode(wrong), TWO, 0, None)
    for most, known, text in [
        (3, None, r"test counts 4 examples, expected at most 3 \(federation.max_samples\)"),
        (0, ((2, 3), (0, 0)), "test counts 2 examples of class 1, expected 3 as in its first evaluation"),
        (0, ((2, 2), (1, 0)), "validation counts 0 examples of class 0, expected 1 as in its first evaluation"),
    ]:
        with pytest.raises(Refused, match=text):
            checked_sums(encode(good), TWO, most, known)
    with pytest.raises(Refused, match="a reply of 16777217 bytes"):
        checked_sums(bytes(2**24 + 1), TWO, 0, None)


TABLES = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), min_size=4, max_size=4)


@settings(max_examples=100, deadline=None)
@given(TABLES, TABLES, st.floats(), st.floats(), st.integers(0, 20))
def test_whatever_sums_come_they_are_refused_or_add_up_to_what_they_may(test: Any, validation: Any, a: float, b: float, most: int):
    message = scored(torch.tensor(test).view(2, 2), torch.tensor(validation).view(2, 2), a, b)
    try:
        found = checked_sums(encode(message), TWO, most, None)
    except Refused:
        return
    limit = most or 2**40
    assert min(*test, *validation) >= 0 and sum(test) <= limit and sum(validation) <= limit
    assert found.test["nll"] >= 0 and found.validation["nll"] >= 0 and math.isfinite(1e6 * (a + b))
