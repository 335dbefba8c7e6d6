"""Losses and gradients of a task against those of its module's own call, and of the saved adapter loaded by PEFT alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from texts import PAD, inputs, noisy, padded, save_backbone, sentences
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, Params
from fibecfed.local.options import TrainingOptions
from fibecfed.models.base_models import build_task, find
from fibecfed.models.export import save_adapter
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions
from fibecfed.models.tiny import FAMILIES, Family, tiny_model, tiny_task
from fibecfed.models.transformer_task import TransformerTask

ENCODERS: tuple[Family, ...] = ("bert", "roberta")
DECODERS: tuple[Family, ...] = ("gpt2", "llama")
SHAPES = [(1, 5), (4, 7), (8, 16)]


def full_batch(family: Family, rows: int = 4, tokens: int = 7) -> Batch:
    return padded(sentences([tokens] * rows), PAD[family])


def with_gradients(logits: Tensor, batch: Batch, leaves: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    losses = cross_entropy(logits, batch["labels"], reduction="none")
    return losses, dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True))


def of_module(module: nn.Module, batch: Batch, logits: Callable[[Any], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and gradients of a module's trainable parameters, as anyone would compute them."""
    return with_gradients(logits(module), batch, {name: p for name, p in module.named_parameters() if p.requires_grad})


def of_task(task: TransformerTask, params: Params, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    losses = task.losses(leaves, batch)
    return losses, dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True))


def own_logits(batch: Batch) -> Callable[[Any], Tensor]:
    return lambda module: module(**inputs(batch)).logits


def head_after_pooling(batch: Batch) -> Callable[[Any], Tensor]:
    """What a decoder's own call computes, but with the head on the last token alone instead of on each, of which the last is taken."""

    def logits(module: Any) -> Tensor:
        base = module.get_base_model()
        body = getattr(base, base.base_model_prefix)
        return base.score(body(**inputs(batch)).last_hidden_state[:, -1])

    return logits


def assert_same_bits(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert found[1].keys() == expected[1].keys()
    assert torch.equal(found[0], expected[0])
    assert [name for name, value in found[1].items() if not torch.equal(value, expected[1][name])] == []


def assert_close(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]], relative: float) -> None:
    """Each tensor's largest error is at most `relative` of its largest value."""
    assert found[1].keys() == expected[1].keys()
    for ours, theirs in [(found[0], expected[0]), *((value, expected[1][name]) for name, value in found[1].items())]:
        assert ((ours - theirs).abs().max() <= relative * theirs.abs().max()).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ENCODERS)
def test_losses_and_gradients_of_an_encoder_are_those_of_its_own_call_bit_for_bit(family: Family, shape: tuple[int, int]) -> None:
    batch, task = full_batch(family, *shape), tiny_task(family, num_classes=3)
    own = of_module(tiny_model(family, num_classes=3).eval(), batch, own_logits(batch))
    assert_same_bits(of_task(task, task.params(), batch), own)
    assert all(value.abs().max() > 0 for value in own[1].values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", DECODERS)
def test_losses_and_gradients_of_a_decoder_are_those_of_its_own_modules_bit_for_bit(family: Family, shape: tuple[int, int]) -> None:
    batch, task = full_batch(family, *shape), tiny_task(family, num_classes=3)
    own = of_module(tiny_model(family, num_classes=3).eval(), batch, head_after_pooling(batch))
    assert_same_bits(of_task(task, task.params(), batch), own)
    assert all(value.abs().max() > 0 for value in own[1].values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("family", DECODERS)
def test_losses_and_gradients_of_a_decoder_are_those_of_its_own_call_up_to_rounding(
    family: Family, dtype: torch.dtype, relative: float, shape: tuple[int, int]
) -> None:
    # The own call applies the head to all tokens before it takes the last one: a product of another shape, summed in another order.
    batch, task = full_batch(family, *shape), tiny_task(family, num_classes=3, dtype=dtype)
    own = of_module(tiny_model(family, num_classes=3).to(dtype).eval(), batch, own_logits(batch))
    assert_close(of_task(task, task.params(), batch), own, relative)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_padding_on_the_right_losses_and_gradients_are_those_of_the_own_call_up_to_rounding(family: Family) -> None:
    batch, task = padded(sentences([7, 2, 5]), PAD[family]), tiny_task(family, num_classes=3, dtype=torch.float64)
    own = of_module(tiny_model(family, num_classes=3).double().eval(), batch, own_logits(batch))
    assert_close(of_task(task, task.params(), batch), own, 1e-6 if family == "llama" else 1e-13)  # LLaMA's norm rounds to float32


def test_the_second_text_of_a_pair_is_told_apart_as_in_the_own_call() -> None:
    plain, task = full_batch("bert"), tiny_task("bert", num_classes=3)
    batch = {**plain, "token_type_ids": torch.tensor([0, 0, 0, 1, 1, 1, 1]).expand(4, 7)}
    own = of_module(tiny_model("bert", num_classes=3).eval(), batch, own_logits(batch))
    assert_same_bits(of_task(task, task.params(), batch), own)
    assert not torch.equal(own[0], task.losses(task.params(), plain))


def trained(family: Family, folder: Path, head: str) -> tuple[TransformerTask, dict[str, Tensor], PeftModel]:
    """A task on a saved backbone, parameters far from its start, and the same adapter loaded by PEFT on the same folder."""
    place = str(save_backbone(folder / "backbone", family))
    options = ModelOptions.model_validate({"name": place, "rank": 2, "head": head})
    training = TrainingOptions(precision="float32", device="cpu")
    task = build_task(find(options), options, training, objective=ClassHead(3), pad_token_id=PAD[family], key=Key(3))
    params = noisy(task)
    save_adapter(task, params, folder / "adapter", base="org/model", revision=None, labels=("a", "b", "c"), card="A card.")
    plain = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3, pad_token_id=PAD[family])
    return task, params, PeftModel.from_pretrained(plain, str(folder / "adapter"), is_trainable=True).eval()


@pytest.mark.parametrize("head", ["full", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_loaded_by_peft_alone_has_the_same_losses_and_gradients_head_included(
    family: Family, head: str, tmp_path: Path
) -> None:
    task, params, loaded = trained(family, tmp_path, head)
    batch = full_batch(family)
    found = of_task(task, params, batch)
    theirs = of_module(loaded, batch, own_logits(batch) if family in ENCODERS else head_after_pooling(batch))
    assert set(found[1]) <= set(theirs[1])  # PEFT trains all of a saved head again
    assert_same_bits(found, (theirs[0], {name: theirs[1][name] for name in found[1]}))
    assert not torch.allclose(found[0], task.losses(task.params(), batch), atol=0.01)
    padding = padded(sentences([7, 2, 5]), PAD[family])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs(padding)).logits, task.logits(params, padding), rtol=1e-5, atol=1e-5)


def test_the_part_of_a_head_that_is_drawn_and_frozen_is_saved_with_the_adapter(tmp_path: Path) -> None:
    task, params, loaded = trained("roberta", tmp_path, "last")
    assert {name for name in task.names if task.layer_of(name) is None} == {
        f"base_model.model.classifier.modules_to_save.default.out_proj.{kind}" for kind in ("weight", "bias")
    }
    name = "base_model.model.classifier.modules_to_save.default.dense.weight"
    assert name not in params
    assert torch.equal(dict(loaded.named_parameters())[name], dict(task.model.named_parameters())[name])
