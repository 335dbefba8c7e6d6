"""The logits of an example depend on the example alone: not on padding, its side, what stands in it, or on the rest of the batch."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import PAD, noisy, padded, sentences
from torch import Tensor

from fibecfed.models.tiny import FAMILIES, Family, tiny_task
from fibecfed.models.transformer_task import TransformerTask

pytestmark = pytest.mark.usefixtures("norms_in_float64")
EXACTLY = {"rtol": 1e-11, "atol": 1e-11}


@functools.cache
def made(family: Family) -> tuple[TransformerTask, dict[str, Tensor]]:
    """A task in float64 whose logits differ from text to text, and parameters that are not its own."""
    task = tiny_task(family, num_classes=3, dtype=torch.float64)
    with torch.no_grad():
        for value in task.model.parameters():
            if value.ndim == 2:
                value.mul_(5)
    return task, noisy(task)


def alone(task: TransformerTask, params: dict[str, Tensor], texts: list[Tensor]) -> Tensor:
    """The logits of each text in a batch of its own, without padding."""
    return torch.cat([task.logits(params, padded([text], 0)) for text in texts])


TEXTS = st.builds(
    lambda lengths, seed: sentences(lengths, seed=seed), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**32 - 1)
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, extra=st.integers(0, 5), side=st.sampled_from(["left", "right"]), as_embeddings=st.booleans(), seed=st.integers(0, 99))
def test_the_logits_of_an_example_do_not_depend_on_its_batch(
    family: Family, texts: list[Tensor], extra: int, side, as_embeddings: bool, seed: int
) -> None:
    task, params = made(family)
    batch = padded(texts, PAD[family], total=max(map(len, texts)) + extra, side=side)
    generator = torch.Generator().manual_seed(seed)
    anything = torch.randint(64, batch["input_ids"].shape, generator=generator)
    batch["input_ids"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], anything)  # what stands in the padding
    expected = alone(task, params, texts)
    if as_embeddings:
        embeddings = task.embed(batch)
        noise = torch.randn(embeddings.shape, generator=generator, dtype=torch.float64)
        embeddings = embeddings + noise * (1 - batch["attention_mask"])[..., None]
        losses = task.losses(params, batch, embeddings)
        torch.testing.assert_close(losses, task.losses(params, batch), **EXACTLY)
        expected_losses = torch.nn.functional.cross_entropy(expected, batch["labels"], reduction="none")
        torch.testing.assert_close(losses, expected_losses, **EXACTLY)
    else:
        torch.testing.assert_close(task.logits(params, batch), expected, **EXACTLY)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_differ_in_their_logits(family: Family) -> None:
    task, params = made(family)
    logits = alone(task, params, sentences([5, 5, 3]))
    assert float(torch.pdist(logits).min()) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_seen_tokens_do_not_depend_on_padding(family: Family) -> None:
    task, params = made(family)
    texts = sentences([4, 2])
    right, left = (padded(texts, PAD[family], total=6, side=side) for side in ("right", "left"))
    for on_the_right, on_the_left in zip(task.hidden_states(params, right), task.hidden_states(params, left), strict=True):
        seen = on_the_right[right["attention_mask"] == 1]
        torch.testing.assert_close(seen, on_the_left[left["attention_mask"] == 1], **EXACTLY)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_depend_on_padding(family: Family) -> None:
    task, params = made(family)
    texts, gradients = sentences([4, 2]), []
    for batch in (padded(texts, PAD[family]), padded(texts, PAD[family], total=9, side="left")):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        gradients.append(torch.autograd.grad(task.losses(leaves, batch).sum(), list(leaves.values())))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-10)
