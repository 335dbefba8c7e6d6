"""Trainings side by side against the same one after the other, in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch
from fibecfed.engine import lockstep
from fibecfed.engine.lockstep import OwnTask, in_lockstep
from fibecfed.engine.stopwatch import Stopwatch
from fibecfed.local.collect import Collect
from fibecfed.local.optimise import Fit, fit
from fibecfed.local.optimisers import MAKERS
from fibecfed.local.options import TrainingOptions
from fibecfed.models.tiny import tiny_task
from fibecfed.models.transformer_task import TransformerTask

SIZES = ((5, 4, 3), (4, 4), (2, 5, 1, 3))
"""Examples in the batches of each client: they differ in number and size of batches."""
TASK = tiny_task("bert", dtype=torch.float64, num_classes=3)
MASKED = sorted(TASK.names)[:6]


def batches(client: int, *, weights: bool = False) -> list[Batch]:
    g = Key(client).generator()
    found = []
    for size in SIZES[client]:
        width = int(torch.randint(2, 5, (), generator=g)) * 4
        mask = (torch.arange(width) < torch.randint(2, width + 1, (size, 1), generator=g)).long()
        batch = {"input_ids": torch.randint(3, 64, (size, width), generator=g) * mask, "attention_mask": mask}
        batch["labels"] = torch.randint(3, (size,), generator=g)
        found.append({**batch, "weights": torch.rand(size, generator=g) + 0.5} if weights else batch)
    return found


def start(client: int) -> dict[str, Tensor]:
    noise = {name: torch.randn(value.shape, generator=Key(client).fold(name).generator()) for name, value in TASK.params().items()}
    return {name: value + 0.1 * noise[name] for name, value in TASK.params().items()}


def training(client: int, *, weights: bool = False, masks: bool = False, penalty: bool = False, collect: Any = None, **options: Any) -> Any:
    """A client's training as a function of its task."""
    settings = TrainingOptions.model_validate({"learning_rate": 0.02, "weight_decay": 0.1, **options})
    own = {name: torch.rand(len(start(0)[name]), generator=Key(client).generator()) < 0.5 for name in MASKED} if masks else None
    term = (lambda params: params[MASKED[0]].square().sum() * client) if penalty else None

    def train(task: Any) -> Fit:
        epochs = [batches(client, weights=weights)] * 2
        return fit(task, start(client), epochs, settings, Key(client), masks=own, penalty=term, collect=collect)

    return train


def assert_same(got: Fit, expected: Fit) -> None:
    assert (got.steps, got.examples) == (expected.steps, expected.examples)
    assert got.loss == pytest.approx(expected.loss, rel=1e-9)
    for name, value in expected.params.items():
        torch.testing.assert_close(got.params[name], value, rtol=1e-7, atol=1e-10)
    assert (got.neurons is None) == (expected.neurons is None)
    if got.neurons is not None and expected.neurons is not None:
        torch.testing.assert_close(got.neurons.rows, expected.neurons.rows, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(got.neurons.columns, expected.neurons.columns, rtol=1e-5, atol=1e-12)
    assert (got.traces is None) == (expected.traces is None)
    if got.traces is not None and expected.traces is not None:
        torch.testing.assert_close(got.traces, expected.traces, rtol=1e-5, atol=0)


def side_by_side(train: Callable[[int], Callable[[OwnTask], Any]], task: Any = TASK, clients: int = len(SIZES)) -> list[Any]:
    return in_lockstep(task, [(str(client), train(client)) for client in range(clients)])


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation": 2},
    "clipped": {"max_grad_norm": 0.05},
    "weighted": {"weights": True},
    "weighted and measured": {"weights": True, "collect": Collect(traces=True)},
    "masked": {"masks": True},
    "with a penalty": {"penalty": True},
    "measured": {"collect": Collect(MASKED, 2, True)},
    "measured, accumulated, masked": {"collect": Collect(traces=True), "gradient_accumulation": 3, "masks": True},
    "few steps": {"max_steps": 3},
    **{name: {"optimizer": name} for name in MAKERS},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_training_gives_what_it_gives_alone(variant: str, monkeypatch: pytest.MonkeyPatch):
    passes = list[int]()
    inner = lockstep.joined
    monkeypatch.setattr(lockstep, "joined", lambda together, parts: passes.append(len(parts)) or inner(together, parts))
    found = side_by_side(lambda client: training(client, **VARIANTS[variant]))
    assert max(passes) == len(SIZES)
    for client, got in enumerate(found):
        assert_same(got, training(client, **VARIANTS[variant])(TASK))


def test_the_second_time_it_gives_the_same_bits():
    one, two = (side_by_side(lambda client: training(client)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a.params[name], b.params[name]) for name in a.params)


def test_one_training_has_the_bits_that_it_has_alone():
    (found,) = side_by_side(lambda client: training(client), clients=1)
    alone = training(0)(TASK)
    assert all(torch.equal(found.params[name], alone.params[name]) for name in alone.params)


def dropping() -> TransformerTask:
    task = tiny_task("bert", dtype=torch.float64, num_classes=3)
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    task.dropout = 0.2
    return task


def test_with_dropout_too():
    task, before = dropping(), torch.get_rng_state()
    found = side_by_side(lambda client: training(client), task)
    assert torch.equal(torch.get_rng_state(), before) and not task.model.training
    for client, got in enumerate(found):
        assert_same(got, training(client)(task))
        assert (got.params[MASKED[0]] - training(client)(TASK).params[MASKED[0]]).abs().max() > 1e-3


def test_what_a_training_computes_itself_has_its_own_dropout():
    task = dropping()

    def losses(client: int) -> Callable[[Any], Any]:
        def own(task: Any) -> list[Tensor]:
            with task.training(Key(client)):
                fit(task, start(client), [batches(client)], TrainingOptions(), Key(9))  # another stream, for a while
                return [task.losses(TASK.params(), batch) for batch in batches(client)]

        return own

    for client, got in enumerate(side_by_side(losses, task)):
        with task.training(Key(client)):
            expected = [task.losses(TASK.params(), batch) for batch in batches(client)]
        torch.testing.assert_close(got, expected)


def test_the_work_of_each_is_counted_as_alone():
    def counted(client: int) -> Callable[[OwnTask], list[int]]:
        return lambda task: [training(client)(task), task.token_blocks][1]  # pyright: ignore[reportReturnType]

    tokens = [2 * sum(batch["input_ids"].numel() for batch in batches(client)) for client in range(len(SIZES))]
    assert side_by_side(counted) == [[2 * number, 2 * number] for number in tokens]


class Fails(Exception):
    pass


@pytest.mark.parametrize("error", [Fails, KeyboardInterrupt])
def test_if_one_raises_all_end(error: type[BaseException]):
    ended = list[int]()

    def train(client: int) -> Callable[[Any], Any]:
        def run(task: Any) -> Any:
            try:
                if client == 1:
                    raise error("here")
                return training(client)(task)
            finally:
                ended.append(client)

        return run

    before = threading.active_count()
    with pytest.raises(error, match="here"):
        side_by_side(train)
    assert ended == [1, 0]  # the third never began
    assert threading.active_count() == before


def test_if_a_joined_pass_raises_all_end(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> Any:
        raise Fails("in the pass")

    monkeypatch.setattr(lockstep, "joined", fails)
    before = threading.active_count()
    with pytest.raises(Fails, match="in the pass"):
        side_by_side(lambda client: training(client))
    assert threading.active_count() == before


def test_never_do_two_of_them_run_at_once():
    running = list[int]()

    def train(client: int) -> Callable[[Any], Any]:
        def begin(batch: Batch) -> Batch:
            running.append(client)
            assert len(running) == 1
            for _ in range(50):
                torch.rand(100, generator=Key(0).generator()).sum()  # lets another thread run, if there is one
            assert running.pop() == client
            return batch

        return lambda task: fit(task, start(client), [map(begin, batches(client))], TrainingOptions(), Key(0))

    assert len(side_by_side(train)) == len(SIZES)


def test_seconds_of_a_joined_pass_are_divided_by_tokens(monkeypatch: pytest.MonkeyPatch):
    """On a clock that moves in passes alone."""
    clock = [0.0]
    monkeypatch.setattr(Stopwatch, "_now", lambda self, *, wait=True: clock[0])
    inner = lockstep.joined

    def joined(together: Any, parts: Any) -> Any:
        clock[0] += 90.0
        return inner(together, parts)

    monkeypatch.setattr(lockstep, "joined", joined)

    def train(client: int) -> Callable[[OwnTask], float]:
        ids = torch.ones(client + 1, 8, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": ids, "labels": torch.zeros(client + 1, dtype=torch.long)}

        def run(task: OwnTask) -> float:
            fit(task, start(client), [[batch]], TrainingOptions(), Key(0))
            clock[0] += 7.0  # its own
            return task.watch.seconds()

        return run

    assert side_by_side(train, clients=2) == [30.0 + 7.0, 60.0 + 7.0]
