"""The parts of FedAvg: which tensors, which examples, how long, against what, and the server's rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made import KEY, LENGTH, TRAINING, client_view, federation, made_data, made_method, made_task, names_of_layers, same

from fibecfed.core.types import Round
from fibecfed.methods.aggregation import Mean
from fibecfed.methods.parts import EVERYTHING, NOTHING, Competence, GrowingLength, Names, SelfEvolution, ShortFirst

TASK, DATA = made_task(2), made_data()
HEAD = names_of_layers(TASK, [None])


def tune(index: int, rounds: int) -> Round:
    return Round("tune", index, rounds, index)


def reached(kind: str, **options):
    """A federation after its last round, and what it started from."""
    world = federation(made_method(kind, rounds=3, **options), TASK, DATA)
    before = world.server.params
    return world, before, world.finish()


def test_names_are_chosen_by_what_they_hold():
    names = ["x.lora_B", "x.lora_A", "head"]
    assert EVERYTHING.of(names) == sorted(names) and NOTHING.of(names) == []
    assert Names(only=("lora_A", "head")).of(names) == ["head", "x.lora_A"]
    assert Names(without=("lora_A",)).of(names) == ["head", "x.lora_B"]
    assert Names(only=("lora",), without=("_B",)).of(names) == ["x.lora_A"]


# ---- ffa-lora, fedsa-lora


def test_ffas_a_never_moves_and_never_travels_while_b_and_the_head_do_both():
    world, before, steps = reached("ffa-lora")
    start = TASK.init_params(KEY.fold("run", "init"))
    down = world.method.phases[0].broadcast(world.server, steps[-1].now)
    assert {name for name in TASK.names if "lora_A" not in name} == set(down.shared)
    assert all(not torch.equal(down.shared[name], before[name]) for name in down.shared)
    for client in world.states.clients():
        model = world.method.personalise(down, world.state(client))
        frozen = [name for name in TASK.names if "lora_A" in name]
        assert frozen and all(torch.equal(model[name], start[name]) for name in frozen)


@pytest.mark.parametrize("head", ["stays", "travels"])
def test_fedsa_sends_a_alone_and_trains_both(head: str):
    world, before, steps = reached("fedsa-lora", head=head)
    down = world.method.phases[0].broadcast(world.server, steps[-1].now)
    assert set(down.shared) == {name for name in TASK.names if "lora_A" in name} | (HEAD if head == "travels" else set())
    a_client = next(iter(world.states.clients()))
    model = world.method.personalise(down, world.state(a_client))
    assert set(model) == set(TASK.names) and all(not torch.equal(model[name], before[name]) for name in TASK.names)


# ---- voc


def test_competence_is_platanios_square_root():
    part = Competence(0.01, 0.9)
    for t in range(40):
        expected = min(1.0, math.sqrt(t * (1 - 0.01**2) / (0.9 * 40) + 0.01**2))
        assert part.competence(tune(t, 40)) == pytest.approx(expected, abs=1e-12)
    assert part.competence(tune(0, 40)) == pytest.approx(0.01)
    assert part.competence(tune(36, 40)) == pytest.approx(1.0) and part.num_examples(73, tune(36, 40), 8) == 73


def test_voc_trains_on_the_examples_whose_rarity_has_a_cdf_within_the_competence():
    train, part = DATA.train, Competence(0.01, 0.9)
    difficulty = train.information
    rank = np.argsort(np.argsort(difficulty.numpy(), kind="stable"), kind="stable") + 1
    for t in (0, 3, 7):
        expected = set(np.flatnonzero(rank / len(train) <= part.competence(tune(t, 10))).tolist())
        assert set(part.positions(train, tune(t, 10), 4).tolist()) == expected or len(expected) < 4
    assert len(part.positions(train, tune(0, 10), 4)) == 4  # at least one batch
    assert len(part.positions(train, tune(9, 10), 4)) == len(train)


def test_information_is_the_sum_over_words_that_rarity_is_the_mean_of():
    train = DATA.client("1").train
    words = train.lengths - 1  # all but the start token
    torch.testing.assert_close(train.information, train.rarity * words)


# ---- slw, shortformer


def test_lengths_of_the_warm_up_grow_by_multiples_of_the_step_to_whole_texts():
    part = GrowingLength(8, 8, 0.3, 64)
    assert [part.max_length(tune(t, 40)) for t in range(14)] == [8, 8, 16, 16, 24, 24, 32, 40, 40, 48, 48, 56, None, None]
    assert GrowingLength(8, 8, 0.3, 8).max_length(tune(0, 10)) is None  # texts are no longer than that


def test_lengths_of_the_two_stages():
    assert [ShortFirst(16, 0.5).max_length(tune(t, 6)) for t in range(6)] == [16, 16, 16, None, None, None]


@pytest.mark.parametrize(
    ("kind", "options", "lengths"),
    [("slw", {"step": 4, "share": 1.0}, [8, 8, 8, 8]), ("shortformer", {}, [3, 3, None, None])],
)
def test_a_client_sees_texts_of_the_rounds_length(monkeypatch, kind, options, lengths):
    world = federation(made_method(kind, rounds=4, **options), TASK, DATA)
    seen = []
    original = TASK.losses

    def losses(params, batch, embeddings=None):
        seen.append(int(batch["attention_mask"].sum(1).max()))
        return original(params, batch, embeddings)

    monkeypatch.setattr(TASK, "losses", losses)
    phase = world.method.phases[0]
    for t, limit in enumerate(lengths):
        seen.clear()
        phase.client_update(client_view(world, "1", t), phase.broadcast(world.server, tune(t, 4)), tune(t, 4))
        longest = int(DATA.client("1").train.lengths.max())
        assert max(seen) == (longest if limit is None else limit) and longest > 8
    assert longest <= LENGTH


# ---- self-evolution


def test_self_evolution_smooths_and_doubles_the_examples_below_the_median():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])  # probabilities of the truth: 0.9, 0.4, 0.3, 0.8; median 0.6
    made = SelfEvolution(0.5, 0.1, 2.0).smoothed(p, labels)
    expected = [[1, 0], [0.1 * 0.6, 0.9 + 0.1 * 0.4], [0.9 + 0.1 * 0.3, 0.1 * 0.7], [0, 1]]
    np.testing.assert_allclose(made["targets"].numpy(), expected, atol=1e-15)
    assert made["weights"].tolist() == [1, 2, 2, 1]


def test_self_evolution_begins_in_the_second_half_with_the_model_the_client_received():
    part = SelfEvolution(0.5, 0.1, 2.0)
    assert [part.passes(tune(t, 5)) for t in range(5)] == [0, 0, 0, 1, 1]
    task = made_task(2)
    params = task.init_params(KEY)
    train = DATA.client("1").train
    assert part.beside(task, params, train, tune(0, 5)) == {}
    p = task.logits(params, train.batch(list(range(len(train))))).softmax(-1)
    made = part.beside(task, params, train, tune(4, 5))
    expected = part.smoothed(p, train.labels)
    torch.testing.assert_close(made["targets"], expected["targets"])
    assert torch.equal(made["weights"], expected["weights"])


def test_targets_smoothed_by_the_present_answer_are_only_a_factor_on_the_gradient():
    """Why the answers of the round's start are taken."""
    logits = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([2])
    one_hot = torch.nn.functional.one_hot(label, 3).double()
    target = 0.9 * one_hot + 0.1 * logits.detach().softmax(-1)
    (smoothed,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), logits)
    (plain,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, label), logits)
    torch.testing.assert_close(smoothed, 0.9 * plain)


def test_a_run_of_self_evolution_is_plain_in_its_first_half_and_not_in_its_second():
    plain = [step.server.params for step in federation(made_method("lora"), TASK, DATA).run()]
    other = [step.server.params for step in federation(made_method("self-evolution"), TASK, DATA).run()]
    assert [same(a, b) for a, b in zip(plain, other, strict=True)] == [True, True, False, False]


def test_a_method_is_made_of_the_parts_its_options_ask_for():
    method = made_method("voc", training=TRAINING, start=0.2)
    assert method.curriculum == Competence(0.2, 0.9) and method.aggregation == Mean() and method.shared == EVERYTHING
    assert made_method("slw").curriculum == GrowingLength(8, 8, 0.3, LENGTH)
