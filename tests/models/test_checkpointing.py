"""Gradient checkpointing: the same bits from less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from answering import CAUSAL, CausalFamily, answer_task, answers
from chats import chat_config, rows, save_chat_model, write_lines
from saved import adapter_files
from torch import Tensor

from fibecfed import session
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.local.fisher import fisher_pass
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.tiny import FAMILIES, tiny_task


def gradients(task: Any, params: dict[str, Tensor], batch: Any, trained: Any = None) -> list[Tensor]:
    leaves = {name: value.clone().requires_grad_(trained is None or name in trained) for name, value in params.items()}
    with task.training(Key(3)):
        return list(torch.autograd.grad(task.losses(leaves, batch).sum(), [leaf for leaf in leaves.values() if leaf.requires_grad]))


def moved(task: Any) -> dict[str, Tensor]:
    """Other tensors than stand in the module."""
    return {name: value + 0.05 * torch.ones_like(value) for name, value in task.params().items()}


@pytest.mark.parametrize("family", CAUSAL)
def test_gradients_and_fisher_information_have_the_same_bits(family: CausalFamily) -> None:
    task, batch = answer_task(family), answers()
    params = moved(task)
    plain = gradients(task, params, batch), fisher_pass(task, params, [batch]).trace
    task.recomputes_blocks = True
    assert all(torch.equal(a, b) for a, b in zip(plain[0], gradients(task, params, batch), strict=True))
    assert torch.equal(plain[1], fisher_pass(task, params, [batch]).trace)


@pytest.mark.parametrize("family", FAMILIES)
def test_so_they_have_in_a_classifier_of_which_the_upper_block_alone_is_trained(family: Any) -> None:
    task, batch = tiny_task(family), {"input_ids": answers()["input_ids"], "attention_mask": answers()["attention_mask"]}
    batch["labels"] = torch.tensor([0, 1, 1, 0])
    upper = [name for name in task.names if task.layer_of(name) != 0]
    plain = gradients(task, moved(task), batch, upper)
    task.recomputes_blocks = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(task, moved(task), batch, upper), strict=True))


def test_dropout_is_repeated_with_the_same_draws() -> None:
    model = answer_task("gpt2").model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    task = AdaptedModel(model, objective=answer_task("gpt2").objective, dropout=0.3)
    plain, without = gradients(task, moved(task), answers()), gradients(answer_task("gpt2"), moved(task), answers())
    assert not torch.equal(plain[0], without[0])
    task.recomputes_blocks = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(task, moved(task), answers()), strict=True))


def kept_bytes(task: AdaptedModel, batch: Any) -> int:
    """What the graph of a batch's losses holds."""
    sizes: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    leaves = {name: value.requires_grad_() for name, value in task.params().items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        losses = task.losses(leaves, batch)
    frozen = {p.untyped_storage().data_ptr() for p in task.model.parameters()}
    assert losses.requires_grad
    return sum(size for place, size in sizes.items() if place not in frozen)


def test_the_graph_keeps_less() -> None:
    task, batch = answer_task("llama", layers=6, hidden=32), answers()
    plain = kept_bytes(task, batch)
    task.recomputes_blocks = True
    assert kept_bytes(task, batch) < plain / 3


def test_a_run_has_the_bits_of_one_without(tmp_path: Path) -> None:
    save_chat_model(tmp_path / "model")
    write_lines(tmp_path / "rows.jsonl", rows())
    for name, on in (("a", False), ("b", True)):
        method = {"kind": "fibecfed", "score_after": 1, "layers": {"importance_clients": 2}}
        config = chat_config(tmp_path, method=method, model={"gradient_checkpointing": on})
        session.start(config, tmp_path / name)
    assert adapter_files(tmp_path / "a") == adapter_files(tmp_path / "b")
    with pytest.raises(UserError, match=r"model.gradient_checkpointing: got true with `resources.cohort_batch` = 2"):
        chat_config(tmp_path, method={"kind": "lora"}, model={"gradient_checkpointing": True}, resources={"cohort_batch": 2})
