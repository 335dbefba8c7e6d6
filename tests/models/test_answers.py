"""Answers as an objective: losses and gradients are transformers' own, per-example traces those of a loop, whatever the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from answering import CAUSAL, CausalFamily, alone, answer_model, answer_task, answers
from texts import noisy
from torch import Tensor
from torch.func import functional_call

from fibecfed.core.types import Batch, Params
from fibecfed.local.fisher import fisher_pass, per_example_fisher_trace
from fibecfed.local.spectrum import hessian_vector_product
from fibecfed.models import token_loss
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.answers import Answers
from fibecfed.models.heads import UnsupportedModel

pytestmark = pytest.mark.usefixtures("norms_in_float64")
SIDES = ("right", "left")


def own_loss(task: AdaptedModel, params: Params, batch: Batch, row: int) -> Tensor:
    """transformers' own loss of one text alone, which is the mean over its labelled tokens, times their number."""
    one = alone(batch, row)
    loss: Any = functional_call(task.model, dict(params), (), one, tie_weights=False).loss
    return loss * (one["labels"][:, 1:] >= 0).sum()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", CAUSAL)
def test_losses_are_transformers_own_for_each_text_alone(family: CausalFamily, side: str) -> None:
    task, batch = answer_task(family, torch.float64), answers(side=side)
    params = noisy(task)
    expected = torch.stack([own_loss(task, params, batch, row) for row in range(4)])
    torch.testing.assert_close(task.losses(params, batch).float(), expected.float(), rtol=1e-5, atol=0.0)
    assert len(expected.round(decimals=2).unique()) == 4


@pytest.mark.parametrize("normalise", ["token", "none", "mean", "length-bins"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", CAUSAL)
def test_fisher_traces_and_neurons_are_those_of_a_loop_over_texts(family: CausalFamily, side: str, normalise: Any) -> None:
    task, batch = answer_task(family, torch.float64), answers(side=side)
    params = {name: value.requires_grad_() for name, value in noisy(task).items()}
    power = {"token": 1, "none": 0, "mean": 2, "length-bins": 1}[normalise]
    traces, rows = [], {name: torch.zeros(len(value), dtype=torch.float64) for name, value in params.items()}
    for row, n in enumerate((3, 1, 7, 4)):
        gradients = torch.autograd.grad(own_loss(task, params, batch, row), list(params.values()))
        traces.append(sum(float(gradient.square().sum()) for gradient in gradients) / n**power)
        for name, gradient in zip(params, gradients, strict=True):
            rows[name] += gradient.detach().square().sum(1) / n**power / 4
    found = fisher_pass(task, params, [batch], normalise=normalise)
    torch.testing.assert_close(found.trace, torch.tensor(traces), rtol=1e-5, atol=0.0)
    for name, row in rows.items():
        torch.testing.assert_close(found.neurons.rows[name], row.float(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(per_example_fisher_trace(task, params, [batch], normalise=normalise), found.trace)


@pytest.mark.parametrize("limit", [1, 150, 2**22])
def test_a_few_rows_at_a_time_give_losses_and_gradients_of_all_at_once(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK", limit)
    draw = torch.Generator().manual_seed(0)
    weight, vectors = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((50, 8), (17, 8)))
    targets, outer = torch.randint(50, (17,), generator=draw), torch.rand(17, generator=draw, dtype=torch.float64)
    first, second = (vectors.clone().requires_grad_() for _ in range(2))
    found = token_loss.token_losses(lambda x: x @ weight.T, first, targets)
    logits = second @ weight.T
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found[:, 0], expected)
    assert torch.equal(found[:, 1] <= 0, logits.argmax(-1) == targets)
    (found[:, 0] * outer).sum().backward()
    (expected * outer).sum().backward()
    torch.testing.assert_close(first.grad, second.grad)
    assert not token_loss.token_losses(lambda x: x @ weight.T, vectors, targets).requires_grad


def test_no_labelled_token_gives_no_rows() -> None:
    task, batch = answer_task(), answers()
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    params = {name: value.requires_grad_() for name, value in noisy(task).items()}
    losses = task.losses(params, nothing)
    assert losses.tolist() == [0.0] * 4
    gradients = torch.autograd.grad(losses.sum(), list(params.values()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_curvature_is_that_of_the_plain_loss() -> None:
    task, batch = answer_task(dtype=torch.float64), answers()
    params = noisy(task)
    along = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=value.dtype) for name, value in params.items()
    }
    found: Any = hessian_vector_product(task.exact(), params, batch, along)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    exact = task.exact()

    def plain(p: Params) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row in range(4):
            one = alone(batch, row)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                logits: Any = functional_call(
                    exact.model, dict(p), (), {k: v for k, v in one.items() if k != "labels"}, tie_weights=False
                ).logits
            total = total + torch.nn.functional.cross_entropy(logits[0, :-1], one["labels"][0, 1:], ignore_index=-100, reduction="sum")
        return total / 4

    gradients = torch.autograd.grad(plain(leaves), list(leaves.values()), create_graph=True)
    product = sum((g * along[name]).sum() for name, g in zip(leaves, gradients, strict=True))
    expected = torch.autograd.grad(product, list(leaves.values()))
    for name, value in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-6, atol=1e-9)


def test_sums_are_those_of_every_labelled_token() -> None:
    task, batch = answer_task(dtype=torch.float64), answers()
    params = noisy(task)
    correct = 0
    for row in range(4):
        one = alone(batch, row)
        logits: Any = functional_call(task.model, dict(params), (), {"input_ids": one["input_ids"]}, tie_weights=False).logits
        labels = one["labels"][0, 1:]
        correct += int(((logits[0, :-1].argmax(-1) == labels) & (labels >= 0)).sum())
    sums = task.sums(params, batch)
    assert float(sums["token_nll"]) == pytest.approx(float(task.losses(params, batch).sum()), rel=1e-9)
    assert {name: int(sums[name]) for name in ("tokens", "correct_tokens", "examples")} == {
        "tokens": 15,
        "correct_tokens": correct,
        "examples": 4,
    }
    assert task.statistics.problem(sums) is None


class Unshifted(Answers):
    """Takes the scores at a token for those of the token itself."""

    def own_scores(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        return token_loss.token_losses(lambda x: x, logits[:, 1:].flatten(0, 1), input_ids[:, 1:].flatten())


def test_a_head_that_does_not_give_the_models_own_losses_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="does not reproduce its own"):
        AdaptedModel(answer_model("llama"), objective=Unshifted())
