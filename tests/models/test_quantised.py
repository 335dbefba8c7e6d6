"""Base models in 4 and 8 bit: the function of the dequantised model, to the bit, and a fraction of its memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import chat_config, save_chat_model, save_chats_and_reviews
from saved import run_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig

from fibecfed.build import prepare
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.core.task import DELTA
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.sensitivity import layer_sensitivity
from fibecfed.local.spectrum import hessian_vector_product
from fibecfed.models import quantised
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.lora import add_lora
from fibecfed.models.options import ModelOptions
from fibecfed.models.quantised import frozen_size, quantise

packed_maps = pytest.importorskip("fibecfed.models.packed_maps", reason="needs the extra qlora")
KINDS = ("nf4", "int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chats_and_reviews(tmp_path_factory.mktemp("quantised"))


def dequantised(model: nn.Module) -> nn.Module:
    """A copy with the numbers that the packed weights stand for in plain linear maps."""
    plain = copy.deepcopy(model)
    for path, module in list(plain.named_modules()):
        if isinstance(module, packed_maps.NF4Map | packed_maps.Int8Map):
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None).requires_grad_(False)
            linear.weight.data = module.unpacked().float()
            if module.bias is not None:
                linear.bias = module.bias
            plain.set_submodule(path, linear)
    return plain


def noisy(task: Any) -> dict[str, Tensor]:
    draw = Key(5).generator()
    return {name: (value + 0.1 * torch.randn(value.shape, generator=draw)) for name, value in task.init_params(Key(0)).items()}


def losses_and_gradients(task: Any, params: dict[str, Tensor], batch: Any, dropout: Key | None = None) -> list[Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    losses = task.losses(leaves, batch)
    return [losses, *torch.autograd.grad(losses.sum(), list(leaves.values()))]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answers", [True, False], ids=["answers", "classes"])
def test_losses_and_gradients_are_those_of_the_dequantised_model_to_the_bit(answers: bool, kind: str, precision: str, folder: Path) -> None:
    make = chat_config if answers else run_config
    model = {"quantization": kind, "target_modules": "all-linear"}
    prepared = prepare(make(folder, model=model, training={"precision": precision}, method={"kind": "lora"}))
    task, batch = prepared.task, prepared.inputs.data.train.batch([0, 1, 2, 3])
    plain = type(task)(dequantised(task.model), objective=task.objective, precision=precision)  # pyright: ignore[reportArgumentType]
    params, before = noisy(task), {name: value.clone() for name, value in task.model.named_parameters()}
    task.sums(params, batch)  # without gradients, in evaluation mode
    found, wanted = losses_and_gradients(task, params, batch), losses_and_gradients(plain, params, batch)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in found[1:])
    assert all(torch.equal(value, before[name]) for name, value in task.model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_what_methods_measure_is_that_of_the_dequantised_model(kind: str, folder: Path) -> None:
    prepared = prepare(chat_config(folder, model={"quantization": kind}))
    task, batch = prepared.task, prepared.inputs.data.train.batch([0, 1, 2, 3])
    plain = AdaptedModel(dequantised(task.model), objective=task.objective)
    params = noisy(task)
    ours, theirs = (fisher_pass(one, params, [batch]).trace for one in (task, plain))
    assert torch.equal(ours, theirs)
    assert torch.equal(*(layer_sensitivity(one, params, [batch]) for one in (task, plain)))
    ours, theirs = (hessian_vector_product(one.exact(), params, batch, params) for one in (task, plain))
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5) for name in params)
    assert any(value.abs().max() > 0 for value in ours.values())


def test_one_row_gives_what_it_gives_in_a_batch(folder: Path) -> None:
    prepared = prepare(chat_config(folder, model={"quantization": "int8"}))
    task, data = prepared.task, prepared.inputs.data.train
    params = noisy(task)
    together = task.losses(params, data.batch([0, 1, 2, 3]))
    alone = torch.cat([task.losses(params, data.batch([row])) for row in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "share"), [("nf4", 0.135), ("int8", 0.26)])
def test_frozen_maps_take_little_memory(kind: Any, share: float) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=512
    )
    model = AutoModelForCausalLM.from_config(config)
    values, size = frozen_size(model.requires_grad_(False))
    maps = sum(module.weight.nbytes for path, module in model.named_modules() if isinstance(module, nn.Linear) and path != "lm_head")
    assert (values, size) == (sum(p.numel() for p in model.parameters()), 4 * values)
    quantise(model, kind)
    after = frozen_size(model)
    assert after[0] == values
    assert after[1] - (size - maps) < share * maps  # all but the maps is as large as before


@pytest.mark.parametrize("kind", KINDS)
def test_maps_that_store_their_weight_the_other_way_round_are_turned(kind: Any) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=64, n_positions=32, attn_pdrop=0.0, resid_pdrop=0.0))
    x, first = torch.randn(3, 64), model.transformer.h[0].mlp.c_fc
    wanted = first(x)
    adapted = add_lora(model, ModelOptions(rank=2), dropout=0.0, key=Key(0), draws_head=False) if quantise(model, kind) is None else None
    found = model.transformer.h[0].mlp.c_fc(x)
    assert type(model.transformer.h[0].mlp.c_fc).__name__ in ("NF4Map", "Int8Map") and adapted is not None
    assert (found - wanted).norm() < 0.12 * wanted.norm()


def test_nothing_can_be_added_to_packed_weights(folder: Path) -> None:
    task = prepare(chat_config(folder, model={"quantization": "nf4"})).task
    (pair, *_) = task.low_rank()
    assert task.adapted_weights() == {}
    params = task.init_params(Key(0))
    with pytest.raises(KeyError, match="unknown"):
        task.losses({**params, pair.weight + DELTA: torch.zeros(16, 16)}, {})


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ({"kind": "fedex-lora"}, '`method.kind` = "fedex-lora", which adds to the frozen weights'),
        ({"kind": "slora"}, '`method.kind` = "slora", which adds to the frozen weights'),
        ({"aggregation": "exact"}, '`method.aggregation` = "exact", which adds to the frozen weights'),
        ({"kind": "p-tuning-v2"}, '`method.kind` = "p-tuning-v2", whose adapter is not LoRA'),
    ],
)
def test_methods_that_need_the_weights_themselves_are_refused(method: dict[str, Any], what: str, folder: Path) -> None:
    with pytest.raises(UserError, match=f'model.quantization: got "int8" with {what}'):
        run_config(folder, method=method, model={"quantization": "int8"})


def test_without_the_package_it_is_refused_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    config = chat_config(folder, model={"quantization": "nf4"}, data={"path": str(folder / "none.jsonl")})
    with pytest.raises(UserError, match=r'model.quantization: got "nf4", .*run in a clone of fibecfed: pip install \S*\[qlora\]'):
        prepare(config)


def test_a_file_that_is_quantised_already_is_refused(folder: Path, tmp_path: Path) -> None:
    save_chat_model(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace("{", '{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true},', 1))
    with pytest.raises(UserError, match=r"model.name: the file of model is quantised .bitsandbytes., expected a model in full precision"):
        prepare(chat_config(folder, model={"name": str(tmp_path / "model")}))
