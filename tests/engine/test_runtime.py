"""A client's side of the engine: bytes in, bytes out, and a state that is replaced only when all went well."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import KEY, Federation, federation, made_data, made_task, undecided
from toy import Count, Reply, Toy

from fibecfed.core import process
from fibecfed.core.clock import CLOCKS
from fibecfed.core.method import Phase, Update, Work
from fibecfed.core.types import Failure, Round
from fibecfed.core.wire import WireError, decode, encode, message
from fibecfed.engine.runtime import ClientRuntime, NotFinite, check_finite, frame, unframe
from fibecfed.engine.scoring import totals
from fibecfed.engine.states import ClientStates
from fibecfed.engine.stopwatch import Stopwatch
from fibecfed.engine.transport import exchange

NOW = Round("tune", 1, 3, 1)
TASK, DATA = made_task(2), made_data(4, 5, test_per_client=9, num_classes=2)


def begun(**phase: Any) -> Federation:
    """The toy, with its phase changed."""

    class Changed(Toy):
        @property
        def phases(self) -> tuple[Phase[Any, Any, Any, Any], ...]:
            return (replace(Toy().phases[0], **phase),)

    return federation(Changed(), TASK, DATA)


COUNTS = st.integers(0, 2**40)


@given(st.binary(max_size=50), COUNTS, COUNTS, st.floats(allow_nan=False), st.floats(0, 1e9), st.sampled_from(CLOCKS))
def test_a_reply_comes_apart_as_it_was_put_together(message: bytes, steps: int, examples: int, loss: float, seconds: float, clock: str):
    work = Work(steps, examples, loss, seconds, clock)
    assert unframe(frame(message, work)) == (message, work)
    assert len(frame(message, work)) == len(message) + 32


def test_the_work_of_a_client_of_version_0_1_is_wall_clock():
    message, work = unframe(b"message" + struct.pack("<QQdd", 3, 24, 0.5, 1.25))
    assert message == b"message" and work == Work(3, 24, 0.5, 1.25, "wall")


def test_too_short_a_reply_is_refused():
    with pytest.raises(WireError, match="a reply of 31 bytes"):
        unframe(bytes(31))


def test_a_client_answers_keeps_its_state_and_measures_its_time():
    world = begun()
    blob = encode(world.server)
    for times in (1, 2):
        reply, notes = world.runtime.train("3", blob, replace(NOW, number=times))
        message, work = unframe(reply)
        n = len(DATA.client("3").train)
        assert decode(Reply, message).num_samples == n and notes == {"n": n}
        assert (work.steps, work.examples, work.loss) == (1, n, 0.5) and work.compute_s > 0
        assert world.state("3").times == times
    assert world.states.clients() == ["3"]


def burn(seconds: float) -> None:
    """Compute until the processor has worked so long for this thread, however long that takes."""
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


def elsewhere(busy: Callable[[], None]) -> None:
    """Do something in another thread, and wait for it."""
    with ThreadPoolExecutor() as pool:
        pool.submit(busy).result()


@pytest.mark.parametrize(
    "threads, busy, least, most",
    [
        (1, lambda: burn(0.2), 0.2, 0.3),
        (1, lambda: time.sleep(0.3), 0, 0.1),
        (1, lambda: elsewhere(lambda: burn(0.3)), 0, 0.1),  # a thread of the engine is no work of the client
        (2, lambda: elsewhere(lambda: burn(0.2)), 0.2, 0.3),  # one of torch's is
        (2, lambda: time.sleep(0.3), 0, 0.1),
    ],
    ids=["computing", "sleeping", "another thread", "torch's threads", "sleeping with threads"],
)
def test_seconds_of_a_client_are_those_in_which_the_processor_worked_for_it(
    threads: int, busy: Callable[[], None], least: float, most: float
):
    def update(client: Any, down: Any, now: Round) -> Update[Any, Any]:
        busy()
        return Update(Reply(down.shared, 1), Count(0))

    world = begun(client_update=update)
    with process.threads(threads):
        _, work = unframe(world.runtime.train("3", encode(world.server), NOW)[0])
    assert work.compute_clock == "cpu" and least <= work.compute_s < most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_wall_clock_waits_for_what_was_started():
    device = torch.device("cuda")
    a = torch.randn(8192, 8192, device=device)
    watch, start = Stopwatch(device), time.perf_counter()
    for _ in range(20):
        a @ a  # pyright: ignore[reportUnusedExpression]
    started = time.perf_counter() - start
    assert watch.kind == "cuda" and watch.seconds() > 5 * started


def test_the_same_request_twice_in_a_round_gives_the_same_reply_and_state():
    def update(client: Any, down: Any, now: Round) -> Update[Any, Any]:
        times = client.state.times + 1
        return Update(Reply({"w": down.shared["w"] + times}, 1), Count(times))

    world = begun(client_update=update)
    blob = encode(world.server)
    for number, times in ((0, 1), (1, 2)):
        now = replace(NOW, number=number)
        replies = [unframe(dict(exchange(world.transport, "train", now, {"1": blob, "2": blob}))["1"])[0] for _ in range(2)]
        assert replies[0] == replies[1]
        assert world.state("1").times == times


@message
class Large:
    """A state of a megabyte."""

    values: torch.Tensor


class Keeping(Toy):
    """The toy, with clients that add one to a megabyte of numbers in each round."""

    client_state = Large

    @property
    def phases(self) -> tuple[Phase[Any, Any, Any, Any], ...]:
        def update(client: Any, down: Any, now: Round) -> Update[Any, Any]:
            return Update(Reply(down.shared, 1), Large(client.state.values + 1))

        return (replace(Toy().phases[0], client_update=update),)

    def init_client(self, task: Any, client: str, key: Any) -> Any:
        return Large(torch.zeros(2**18))


@pytest.mark.parametrize("repeatable", [False, True])
def test_the_limit_of_memory_holds_with_a_cohort_of_any_size(tmp_path: Path, repeatable: bool):
    limit, clients = 4 * 2**20, [f"{n:02d}" for n in range(40)]
    states = ClientStates(tmp_path, limit, repeatable=repeatable)
    runtime = ClientRuntime(Keeping(), TASK, lambda client: DATA.client("0"), states, KEY, 64)
    blob = encode(Toy().init(None, KEY))
    tracemalloc.start()
    try:
        for number in (0, 1):
            for client in clients:
                runtime.train(client, blob, replace(NOW, number=number))
            held = tracemalloc.get_traced_memory()[0]
            assert held < limit + 2**20, f"{held / 2**20:.1f} MiB after round {number}"
        if repeatable:
            for client in clients:  # asked again, they start from where they stood before the round
                runtime.train(client, blob, replace(NOW, number=1))
            assert tracemalloc.get_traced_memory()[0] < limit + 2**20
    finally:
        tracemalloc.stop()
    assert states.memory_bytes > limit // 2
    assert all(decode(Large, states.get(client) or b"").values.eq(2).all() for client in clients)


def test_what_a_client_draws_hangs_on_its_id_and_the_round_alone():
    keys: list[Any] = []

    def update(client: Any, down: Any, now: Round) -> Update[Any, Any]:
        keys.append(client.key)
        return Update(Reply(down.shared, 1), client.state)

    world = begun(client_update=update)
    for client, number in (("1", 1), ("2", 1), ("1", 2), ("1", 1)):
        world.runtime.train(client, encode(world.server), replace(NOW, number=number))
    assert keys[0] == keys[3] and len(set(keys)) == 3
    assert keys[0] == KEY.fold("run", "client", "1", "round", 1)


def failing(error: Exception | None = None, value: float = 0.0) -> Any:
    def update(client: Any, down: Any, now: Round) -> Update[Any, Any]:
        if error is not None:
            raise error
        return Update(Reply({"good": torch.zeros(2), "w": torch.tensor([0.0, value])}, 1), Count(9))

    return update


@pytest.mark.parametrize(
    ("update", "text"),
    [
        (failing(FloatingPointError("the loss of step 3 is nan")), "client 3, tune round 1: the loss of step 3 is nan"),
        (failing(value=float("nan")), "client 3, tune round 1: shared w of its update is not finite"),
        (failing(value=float("-inf")), "client 3, tune round 1: shared w of its update is not finite"),
    ],
)
def test_what_is_not_finite_is_named_with_client_round_and_tensor_and_the_state_stays(update: Any, text: str):
    world = begun(client_update=update)
    world.states.put("3", encode(Count(4)))
    with pytest.raises(NotFinite) as found:
        world.runtime.train("3", encode(world.server), NOW)
    assert str(found.value) == text
    assert world.state("3").times == 4
    (reply,) = list(exchange(world.transport, "train", NOW, {"3": encode(world.server)}))
    assert reply == ("3", Failure(text, repeats=True))


def test_other_errors_are_not_taken_for_numbers_that_are_not_finite():
    world = begun(client_update=failing(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        world.runtime.train("3", encode(world.server), NOW)


def test_a_single_tensor_of_a_message_is_looked_at_too():
    from fibecfed.methods.importance import Importance

    with pytest.raises(NotFinite, match="round 1: importance of its update is not finite"):
        check_finite(Importance(torch.tensor([0.1, float("nan")]), 3), Toy().phases[0], "1", NOW)


def test_a_broadcast_that_is_not_of_the_phase_is_refused():
    with pytest.raises(WireError, match="expected 'Number'"):
        begun().runtime.train("3", encode(Count(1)), NOW)


def test_sums_are_what_a_loop_over_examples_adds_up():
    params = undecided(TASK, TASK.init_params(KEY), DATA.test)
    expected, loss, calibration = torch.zeros(2, 2, dtype=torch.int64), 0.0, torch.zeros(15, dtype=torch.float64)
    for i in range(len(DATA.test)):
        batch = DATA.test.batch([i])
        expected[int(batch["labels"]), int(TASK.predict(params, batch))] += 1
        loss += float(TASK.losses(params, batch))
        sure, predicted = TASK.logits(params, batch)[0].double().softmax(-1).max(-1)
        calibration[min(14, int(15 * sure))] += float(sure) - (int(batch["labels"]) == int(predicted))
    for size in (1, 5, 64):
        found = totals(TASK, params, DATA.test, size)
        assert found["confusion"].tolist() == expected.tolist() and found["confusion"].dtype == torch.int64
        assert float(found["nll"]) == pytest.approx(loss, rel=1e-4)
        assert torch.allclose(found["calibration"], calibration, atol=1e-5)
    assert (expected > 0).all()


def test_nothing_to_count_on_gives_zeros():
    found = totals(TASK, TASK.init_params(KEY), DATA.test.select(torch.tensor([], dtype=torch.int64)), 4)
    assert found["confusion"].tolist() == [[0, 0], [0, 0]] and found["nll"] == 0.0 and not found["calibration"].any()
