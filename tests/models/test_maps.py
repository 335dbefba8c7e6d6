"""Linear maps that are used twice, for all examples at once, or not at all, against one backward pass per example in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from texts import noisy, padded, sentences
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, Params
from fibecfed.local.collect import Collect
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.base_models import add_lora
from fibecfed.models.options import ModelOptions
from fibecfed.models.transformer_task import TransformerTask

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
DEBERTA: dict[str, Any] = {
    **SIZES, "pooler_hidden_size": 16, "pooler_dropout": 0.0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
    "type_vocab_size": 0, "position_biased_input": False,
}  # fmt: skip
CASES: dict[str, tuple[Callable[[], PretrainedConfig], tuple[str, ...], tuple[str, ...]]] = {
    "DeBERTa-v3": (
        lambda: transformers.DebertaV2Config(**DEBERTA, position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm"),
        ("query_proj", "key_proj", "value_proj"),
        (),
    ),
    "DeBERTa-v2, maps of positions": (
        lambda: transformers.DebertaV2Config(**DEBERTA, position_buckets=8),
        ("pos_query_proj", "pos_key_proj", "value_proj"),
        (),
    ),
    "DeBERTa, maps of positions": (lambda: transformers.DebertaConfig(**DEBERTA), ("in_proj", "pos_proj", "pos_q_proj"), ()),
    "BERT with a new pooler": (lambda: transformers.BertConfig(**SIZES), ("query", "value"), ("bert.pooler.dense",)),
    "ERNIE with a new pooler": (lambda: transformers.ErnieConfig(**SIZES), ("query", "value"), ("ernie.pooler.dense",)),
    "Megatron-BERT with a new pooler": (lambda: transformers.MegatronBertConfig(**SIZES), ("query", "value"), ("bert.pooler.dense",)),
    "BERT with a map that is not used": (lambda: transformers.BertConfig(**SIZES), ("query", "value"), ("spare",)),
}


def made(case: str) -> tuple[TransformerTask, Params, Batch]:
    configured, targets, drawn = CASES[case]
    config = configured()
    config.num_labels = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        if "spare" in drawn:
            model.spare = torch.nn.Linear(4, 3)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.mul_(4)
    lora = add_lora(model, ModelOptions(rank=2, target_modules=targets), drawn=drawn, dropout=0.0, key=Key(0))
    task = TransformerTask(lora.double())
    return task, noisy(task), padded(sentences([6, 2, 4]), 0)


def one_by_one(task: TransformerTask, params: Params, batch: Batch) -> list[dict[str, torch.Tensor]]:
    """The gradient of each example alone in a batch of its own."""
    found = []
    for i in range(len(batch["labels"])):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss = task.losses(leaves, {name: value[i : i + 1] for name, value in batch.items()})[0]
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        found.append(dict(zip(leaves, gradients, strict=True)))
    return found


@pytest.mark.parametrize("case", CASES)
def test_per_example_gradients_equal_one_backward_pass_per_example(case: str) -> None:
    task, params, batch = made(case)
    each = one_by_one(task, params, batch)
    found = fisher_pass(task, params, [batch])
    traces = [sum(float(gradient.square().sum()) for gradient in gradients.values()) for gradients in each]
    torch.testing.assert_close(found.trace, torch.tensor(traces, dtype=torch.float32), rtol=1e-5, atol=1e-12)
    assert found.neurons.rows.keys() == set(task.names)
    for name in task.names:
        squared = torch.stack([gradients[name].square() for gradients in each]).mean(0)
        rows = squared.sum(1) if squared.ndim == 2 else squared
        torch.testing.assert_close(found.neurons.rows[name], rows.float(), rtol=1e-5, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        assert bool(rows.any()) != ("spare" in name)


@pytest.mark.parametrize("case", CASES)
def test_looking_at_the_maps_changes_no_loss_and_no_step(case: str) -> None:
    task, params, batch = made(case)
    traced, _ = task.traced(params, batch)
    torch.testing.assert_close(traced, task.losses(params, batch), rtol=1e-12, atol=0)
    options = TrainingOptions(learning_rate=0.01)
    plain, collecting = (fit(task, params, [[batch] * 2], options, Key(0), collect=collect) for collect in (None, Collect()))
    for name in task.names:
        torch.testing.assert_close(collecting.params[name], plain.params[name], rtol=1e-9, atol=1e-9)
        decayed = params[name] * (1 - options.learning_rate * options.weight_decay) ** 2
        assert torch.allclose(plain.params[name], decayed, rtol=1e-12, atol=0) == ("spare" in name)


def test_a_map_whose_rows_are_not_the_examples_is_refused_in_words() -> None:
    task, params, batch = made("BERT with a new pooler")
    layer: Any = task.model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default")
    flat = layer.register_forward_pre_hook(lambda _module, args: (args[0].flatten(0, 1),))
    back = layer.register_forward_hook(lambda _module, args, out: out.unflatten(0, (3, -1)))
    task.losses(params, batch)
    with pytest.raises(
        ValueError, match=r"layer\.0\.attention\.self\.query\.lora_A.*got an input of shape \(18, 16\), expected one row for each"
    ):
        task.traced(params, batch)
    flat.remove(), back.remove()
