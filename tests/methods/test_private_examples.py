"""Neighbour runs: the same client with and without one example's gradients, and with all that is released frozen. What goes into each
noised release differs by at most its sensitivity, and nothing else that leaves the client or that it trains with differs at all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from answering import answer_task, answers
from made import KEY, TRAINING, made_data, made_method, made_options, made_task
from torch import Tensor

from fibecfed.core.method import ClientView, Received
from fibecfed.core.types import Batch, ClientData, Params
from fibecfed.core.wire import encode
from fibecfed.engine.loop import schedule
from fibecfed.engine.private_examples import why_not_by_example
from fibecfed.local import private as steps
from fibecfed.methods import catalogue, fibecfed_private

C, ROUNDS, EXAMPLES = 0.5, 3, 24
LAST = {"rule": "last", "value": 1}

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "ffa-lora": {"kind": "ffa-lora"},
    "fedsa-lora": {"kind": "fedsa-lora"},
    "fedprox": {"kind": "fedprox", "proximal": 1.0},
    "fedavgm": {"kind": "fedavgm"},
    "fedadam": {"kind": "fedadam"},
    "fedyogi": {"kind": "fedyogi"},
    "fedex-lora": {"kind": "fedex-lora"},
    "lora-finetune": {"kind": "lora-finetune"},
    "idpg": {"kind": "idpg", "adapter": {"num_tokens": 2, "size": 3}},
    "lpt": {"kind": "lpt", "adapter": {"num_tokens": 2, "size": 3}},
    "lora, then personal": {"kind": "lora", "finetune": True},
    "local": {"kind": "local"},
    "the head alone": {"kind": "lora", "depth": 0},
    "lora in the last block": {"kind": "lora", "depth": 1, "depth_rule": "last"},
    "fibecfed": {"layers": LAST, "score_after": 1, "curriculum": {"beta": 0.1}},
    "fibecfed, scored again, closing round": {
        "layers": LAST,
        "score_after": 1,
        "closing_round": True,
        "curriculum": {"rescore_every": 1, "fisher_over": "adapter"},
    },
    "fibecfed, random order and neurons": {"layers": LAST, "neurons": {"rule": "random"}, "curriculum": {"order": "random"}},
    "fibecfed, coverage, then personal": {"layers": LAST, "neurons": {"rule": "coverage"}, "finetune": True, "score_after": 0},
}


@dataclass
class Frozen:
    """What a client trains by: what goes into each release is kept; what comes out is drawn once, and given again in another run."""

    released: Sequence[Mapping[str, Tensor]] = ()
    clip_norm: float = C
    noise_norm: float = C
    inputs: list[dict[str, Tensor]] = field(default_factory=list)
    outputs: list[Mapping[str, Tensor]] = field(default_factory=list)
    drawn: int = 0
    draws: int = 0
    times: int = 0

    def epochs(self, units: int, batch_size: int, epochs: int) -> Sequence[Sequence[Tensor]]:
        self.times += epochs
        found = [KEY.fold("batches", self.drawn + epoch).permutation(units).split(batch_size) for epoch in range(epochs)]
        self.drawn += epochs
        return found

    def counts(self, bins: Tensor, number: int) -> Tensor:
        self.times += 1
        total = torch.bincount(bins[bins >= 0], minlength=number).double()
        return self.noised({"counts": total * C})["counts"].clamp(min=0) / C

    def one_of(self, sizes: Tensor) -> Tensor:
        self.draws += 1
        return torch.tensor([self.draws % int(size) for size in sizes])

    def noised(self, total: Params) -> dict[str, Tensor]:
        place = len(self.inputs)
        self.inputs.append({name: value.clone() for name, value in total.items()})
        if place < len(self.released):
            return dict(self.released[place])
        generator = KEY.fold("noise", place).generator()
        found = {name: value + C * torch.randn(value.shape, generator=generator) for name, value in total.items()}
        self.outputs.append(found)
        return found


class WithoutOne:
    """A task in which some texts have no gradient: its neighbour by zero-out."""

    def __init__(self, task: Any, texts: Sequence[Tensor]) -> None:
        self._task, self._texts = task, texts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def _kept(self, batch: Batch) -> Tensor:
        ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1)
        found = torch.ones(len(ids))
        for text in self._texts:
            if len(text) <= ids.shape[1]:
                found[(ids[:, : len(text)] == text).all(1) & (lengths == len(text))] = 0.0
        return found

    def losses(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        return self._task.losses(params, batch, embeddings) * self._kept(batch)

    def traced(self, params: Params, batch: Batch) -> Any:
        losses, tape = self._task.traced(params, batch)
        return losses * self._kept(batch), tape


class Answered:
    """Texts with answers of many lengths, as a client's training part."""

    def __init__(self, count: int) -> None:
        lengths = tuple(5 + number % 7 for number in range(count))
        self._table = answers(lengths, tuple(1 + number % 4 for number in range(count)))
        self.lengths, self.units, self.weight = self._table["attention_mask"].sum(1), None, count

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, positions: Sequence[int], max_length: int | None = None) -> Batch:
        return {name: value[list(positions)] for name, value in self._table.items()}


@dataclass(frozen=True)
class Seen:
    """One client's run: what went into releases, what came out, and what left the client."""

    inputs: list[dict[str, Tensor]]
    outputs: list[Mapping[str, Tensor]]
    messages: list[bytes]
    times: list[int]
    own: list[Params]


def run(method: Any, task: Any, data: ClientData, released: Sequence[Mapping[str, Tensor]] = ()) -> Seen:
    server, state = method.init(task, KEY), method.init_client(task, "a", KEY)
    private, messages, times, own = Frozen(released), list[bytes](), list[int](), list[Params]()
    phases = {phase.name: phase for phase in method.phases}
    for now in schedule(method):
        phase, before = phases[now.phase], private.times
        sent = phase.broadcast(server, now)
        view = ClientView("a", task, data, state, KEY.fold("round", now.number), private)
        update = phase.client_update(view, sent, now)
        state = update.state
        messages.append(encode(update.message))
        times.append(private.times - before)
        server = phase.aggregate(server, [Received("a", update.message)], now)
        own.append(method.personalise(phase.broadcast(server, now), state))
    return Seen(private.inputs, private.outputs, messages, times, own)


def neighbours(kind: str, number: int = 3, batch_size: int = 6, people: bool = False, answered: bool = False) -> tuple[Seen, Seen, Any]:
    options = METHODS[kind]
    training = TRAINING.model_copy(update={"batch_size": batch_size, "learning_rate": 0.1})
    method = made_method(**{"kind": "fibecfed", **options}, rounds=ROUNDS, clients=1, training=training)
    task, data = made_task(options=made_options(**{"kind": "fibecfed", **options})), made_data(clients=1, examples=EXAMPLES).client("0")
    theirs = [number]
    if answered:
        task, data = answer_task(), replace(data, train=Answered(EXAMPLES))
    if people:
        units = torch.arange(EXAMPLES) % 7
        data = replace(data, train=replace(data.train, table=replace(data.train.table, units=units[data.train.indices.argsort()])))
        theirs = [place for place, unit in enumerate(data.train.units.tolist()) if unit == int(data.train.units[number])]
        assert len(theirs) > 2
    one = data.train.batch(theirs)
    first = run(method, task, data)
    texts = [ids[: int(mask.sum())] for ids, mask in zip(one["input_ids"], one["attention_mask"], strict=True)]  # without padding
    return first, run(method, WithoutOne(task, texts), data, first.outputs), method


def norm(one: Params, other: Params) -> float:
    return float(torch.stack([(one[name] - other[name]).double().square().sum() for name in one]).sum().sqrt())


def distances(first: Seen, second: Seen) -> list[float]:
    """How far the inputs of each release are from each other, as a multiple of C."""
    assert len(first.inputs) == len(second.inputs)
    for one, other in zip(first.inputs, second.inputs, strict=True):
        assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    return [norm(one, other) / C for one, other in zip(first.inputs, second.inputs, strict=True)]


CASES = [(kind, "texts") for kind in METHODS] + [(kind, of) for kind in ("lora", "fibecfed") for of in ("people", "answers")]


@pytest.mark.parametrize(("kind", "of"), CASES)
def test_one_example_or_person_moves_each_release_by_its_sensitivity_at_most_and_nothing_else(kind: str, of: str) -> None:
    first, second, method = neighbours(kind, people=of == "people", answered=of == "answers")
    found = distances(first, second)
    assert 0 < max(found) <= 1 + 1e-5
    assert sum(distance > 1e-4 for distance in found) <= sum(first.times)  # each example is in so many sums, and no more
    assert first.messages == second.messages
    assert all(torch.equal(one[name], other[name]) for one, other in zip(first.own, second.own, strict=True) for name in one)
    earlier: dict[str, list[Any]] = {}
    for now, times in zip(schedule(method), first.times, strict=True):
        phase = next(phase for phase in method.phases if phase.name == now.phase)
        assert phase.sums is not None and times <= phase.sums(now, earlier.setdefault(now.phase, []))
        earlier[now.phase].append(now)


def test_every_method_that_is_offered_is_looked_at() -> None:
    data, offered = made_data(clients=1, examples=4).client("0"), set[str]()
    for kind in catalogue.CATALOGUE:
        method, task = made_method(kind, rounds=2, clients=1), made_task(2, made_options(kind))
        if why_not_by_example(method) is None:
            with contextlib.suppress(ValueError):  # what it trains is no linear map, which the task says
                task.traced(task.init_params(KEY), data.train.batch([0, 1]))
                offered.add(kind)
    looked_at = {options.get("kind", "fibecfed") for options in METHODS.values()}
    assert offered <= looked_at and {"lora", "fedex-lora", "lpt"} <= offered


# ---- planted faults


def test_a_gradient_that_is_not_clipped_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = steps.clipped_sum
    monkeypatch.setattr(steps, "clipped_sum", lambda task, params, moving, batch, clip: true(task, params, moving, batch, 1e9))
    first, second, _ = neighbours("lora")
    assert max(distances(first, second)) > 1.01


def test_a_curriculum_by_rank_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then an example that leaves the first ones lets another one in: two examples' gradients differ."""

    def fit(*args: Any, **named: Any) -> Any:
        if not scored:
            return true(*args, **named)
        rank, share = scored[-1].argsort().argsort(), named["among"].share
        return true(*args, **{**named, "among": steps.Among(rank < share * len(rank), share)})

    scored: list[Tensor] = []
    scores, true = fibecfed_private.traces, fibecfed_private.fit_private
    monkeypatch.setattr(fibecfed_private, "traces", lambda *args: scored.append(scores(*args)) or scored[-1])
    monkeypatch.setattr(fibecfed_private, "fit_private", fit)

    def caught(number: int) -> bool:
        scored.clear()
        first, second, _ = neighbours("fibecfed", number, EXAMPLES)
        moved = [distance for distance in distances(first, second) if distance > 1e-4]
        return len(moved) > sum(first.times) or max(moved) > 1 + 1e-3

    assert any(caught(number) for number in range(6))  # one that was not among the first ones itself


def test_a_divisor_by_those_who_took_part_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = fibecfed_private.Among
    monkeypatch.setattr(fibecfed_private, "Among", lambda taken, share: true(taken, max(0.1, float(taken.float().mean()))))

    def caught(number: int) -> bool:
        first, second, _ = neighbours("fibecfed", number, EXAMPLES)
        same = [one.keys() for one in first.inputs] == [one.keys() for one in second.inputs]
        return len(first.inputs) != len(second.inputs) or not same or first.messages != second.messages

    assert any(caught(number) for number in range(6))


def test_own_tensors_that_move_without_noise_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = fibecfed_private.fit_private

    def fit(task: Any, params: Any, examples: Any, options: Any, key: Any, private: Any, **named: Any) -> Any:
        found = true(task, params, examples, options, key, private, **named)
        name = next(name for name in sorted(found.params) if "lora_A" in name)
        leak = task.losses(params, examples.batch(range(len(examples)))).sum().detach()
        return replace(found, params={**found.params, name: found.params[name] + 1e-3 * leak})

    monkeypatch.setattr(fibecfed_private, "fit_private", fit)
    first, second, _ = neighbours("fibecfed")
    same = all(torch.equal(one[name], other[name]) for one, other in zip(first.own, second.own, strict=True) for name in one)
    assert not same
