"""Attacks against slow references and on updates whose secret is planted."""

from __future__ import annotations

import pytest
import torch
from made import KEY, made_data, made_task
from torch import Tensor

from fibecfed.audit.attacks import (
    alignments,
    class_features,
    example_losses,
    guessed_shares,
    moved,
    own_words,
    tokens_of,
    within_classes,
    word_scores,
)
from fibecfed.audit.figures import MemberScores, auc


def drawn(params: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=draw) for name, tensor in params.items()}


def test_alignments_are_those_of_a_loop_over_examples() -> None:
    task, examples = made_task(layers=2), made_data().client("0").train
    params = task.init_params(KEY)
    updates = [drawn(params, seed) for seed in (1, 2)]
    updates = [{name: update[name] for name in sorted(params) if task.layer_of(name) != 0} for update in updates]
    expected = torch.zeros(2, len(examples), dtype=torch.float64)
    for place in range(len(examples)):
        leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in params.items()}
        names = list(updates[0])
        gradients = torch.autograd.grad(task.losses(leaves, examples.batch([place])).sum(), [leaves[name] for name in names])
        norm = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
        for row, update in enumerate(updates):
            dot = sum(float((gradient.double() * update[name]).sum()) for name, gradient in zip(names, gradients, strict=True))
            expected[row, place] = -dot / norm
    torch.testing.assert_close(alignments(task, params, updates, examples), expected, rtol=1e-4, atol=1e-5)


def test_losses_are_in_the_order_of_the_examples() -> None:
    task, examples = made_task(layers=2), made_data().client("1").train
    params = task.init_params(KEY)
    expected = torch.cat([task.losses(params, examples.batch([place])) for place in range(len(examples))]).double()
    torch.testing.assert_close(example_losses(task, params, examples), expected.detach(), rtol=1e-5, atol=1e-5)


def test_members_of_a_trained_update_are_found_and_those_of_none_are_not() -> None:
    task, data = made_task(layers=2), made_data(clients=2, examples=40)
    mine, others = data.client("0").train, data.client("1").train
    params = {name: tensor.requires_grad_(True) for name, tensor in task.init_params(KEY).items()}
    optimiser = torch.optim.Adam(list(params.values()), lr=0.05)
    before = {name: tensor.detach().clone() for name, tensor in params.items()}
    labels = torch.randint(2, (len(mine),), generator=torch.Generator().manual_seed(0))  # nothing but memory can learn them
    mine = mine.select(torch.arange(len(mine)), labels)
    for _ in range(60):
        optimiser.zero_grad()
        task.losses(params, mine.batch(range(len(mine)))).mean().backward()
        optimiser.step()
    update = {name: tensor.detach() - before[name] for name, tensor in params.items()}

    def area(change: dict[str, Tensor]) -> float:
        after = moved(before, change)
        own, rest = (example_losses(task, before, part) - example_losses(task, after, part) for part in (mine, others))
        found = auc(within_classes(own, rest, mine.labels, others.labels))
        assert found is not None
        return found.value

    assert area(update) > 0.65
    assert area({name: torch.zeros_like(tensor) for name, tensor in update.items()}) == 0.5


def test_shares_are_guessed_exactly_where_the_update_is_a_line_of_them() -> None:
    shares = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    features = 0.01 * shares + 3.0  # a constant that all classes share tells nothing
    for place in range(len(shares)):
        torch.testing.assert_close(guessed_shares(features, shares, place), shares[place])


def test_of_a_mean_the_shares_of_the_cohort_are_guessed_without_the_clients_own_update() -> None:
    shares = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    features = 0.01 * shares + 3.0
    for place in range(len(shares)):
        other = features.clone()
        other[place] = 7.0
        torch.testing.assert_close(guessed_shares(other, shares, place, features.mean(0)), shares.mean(0))


def test_a_guess_does_not_look_at_the_clients_own_shares() -> None:
    shares, features = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 3)
    other = shares.clone()
    other[2] = torch.tensor([1.0, 0.0, 0.0])
    assert torch.equal(guessed_shares(features, shares, 2), guessed_shares(features, other, 2))


def test_features_of_classes_are_the_heads_bias_or_what_texts_become() -> None:
    task, data = made_task(layers=2), made_data()
    params, texts = task.init_params(KEY), made_data().test
    (bias,) = (name for name in task.names if task.layer_of(name) is None and params[name].ndim == 1)
    change = torch.tensor([0.5, -0.5])
    assert torch.equal(class_features(task, params, {bias: change}, texts), change.double())
    (head,) = (name for name in task.names if task.layer_of(name) is None and params[name].ndim == 2)
    found = class_features(task, params, {head: torch.zeros_like(params[head])}, data.test)
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64))


def test_words_whose_embeddings_moved_the_first_block_are_found() -> None:
    task = made_task(layers=2)
    tokens = torch.arange(4, 24)
    names = [name for name in task.names if "lora_A" in name and task.layer_of(name) == 0]
    embedded = task.embed({"input_ids": tokens[None]})[0].detach()
    embedded = embedded - embedded.mean(0)
    update = {name: embedded[:2] * (place + 1) for place, name in enumerate(names)}
    scores = word_scores(task, update, tokens)
    assert scores is not None and scores[:2].min() > 0.999 > scores[2:].max()
    found = auc([MemberScores(scores[:2], scores[2:])])
    assert found is not None and found.value == 1.0
    later = [name for name in task.names if "lora_A" in name and task.layer_of(name) == 1]
    assert word_scores(task, {later[0]: embedded[:2]}, tokens) is None  # its inputs are no embeddings


def test_own_words_are_those_that_nobody_else_has() -> None:
    held = {"a": {1, 2, 3}, "b": {2, 4}, "c": {5}}
    own, others = own_words(held, {3, 6}, ["a"]) or pytest.fail("there are some")
    assert own.tolist() == [1] and others.tolist() == [4, 5, 6]
    assert own_words(held, {1, 2, 3}, ["a"]) is None


def test_tokens_are_counted_without_padding() -> None:
    examples = made_data().client("0").train
    expected = {token for place in range(len(examples)) for token in examples.batch([place])["input_ids"][0].tolist()}
    assert tokens_of(examples) <= expected and len(tokens_of(examples)) > 3
