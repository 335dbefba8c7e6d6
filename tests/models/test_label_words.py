"""Label words: losses and scores of a language model at the place of the word, against its own call, one example at a time."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from texts import PAD, bits, noisy, save_backbone, save_tokenizer, sentences
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.local.fisher import fisher_pass, per_example_fisher_trace
from fibecfed.local.options import TrainingOptions
from fibecfed.models.base_models import add_lora, build_task, fills_masks, find, load_config
from fibecfed.models.export import save_adapter
from fibecfed.models.heads import UnsupportedModel
from fibecfed.models.kept import KeptWeights
from fibecfed.models.label_words import LabelWords, is_masked, language_head
from fibecfed.models.options import ModelOptions
from fibecfed.models.packaged import PACKAGED
from fibecfed.models.precision import store_frozen_maps_in_bf16
from fibecfed.models.tiny import FAMILIES, Family, tiny_config, tiny_model, tiny_task, tiny_words
from fibecfed.models.transformer_task import TransformerTask

KEY = Key(4).fold("words")
MASK = 4
LENGTHS = (6, 3, 5)


def prompts(mask: int | None, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Tensor]:
    """Random texts without token 4, and with a mask somewhere, elsewhere in each, if asked for."""
    texts = [torch.where(text == MASK, 3, text) for text in sentences(lengths, seed=seed)]
    if mask is not None:
        for row, text in enumerate(texts):
            text[(row + 1) % len(text)] = mask
    return texts


def batch_of(texts: Sequence[Tensor], pad: int, *, total: int | None = None, side: str = "right", classes: int = 3) -> dict[str, Tensor]:
    width = total or max(map(len, texts))
    ids = torch.full((len(texts), width), pad)
    seen = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, where], seen[row, where] = text, 1
    return {"input_ids": ids, "attention_mask": seen, "labels": torch.arange(len(texts)) % classes}


def language_model(config: PretrainedConfig, words: LabelWords) -> transformers.PreTrainedModel:
    """Random, with matrices four times as wide as usual, so that texts differ in their scores."""
    kind = AutoModelForCausalLM if words.mask_id is None else AutoModelForMaskedLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.mul_(4)
    return model


def one_by_one(model: Any, texts: Sequence[Tensor], words: LabelWords) -> Tensor:
    """log p of the whole vocabulary at the place of the word, by the model's own call on each text alone: the slow reference."""
    rows = []
    for text in texts:
        logits = model(input_ids=text[None], attention_mask=torch.ones_like(text[None])).logits[0]
        place = len(text) - 1 if words.mask_id is None else text.tolist().index(words.mask_id)
        rows.append(torch.log_softmax(logits[place].double(), dim=0))
    return torch.stack(rows)


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_scores_and_gradients_are_those_of_the_own_call_one_example_at_a_time(family: Family) -> None:
    words = tiny_words(family, 3)
    task, module = (make(family, words=words).to(torch.float64) for make in (tiny_model, tiny_model))
    task = TransformerTask(task, objective=words)
    texts = prompts(words.mask_id)
    batch = batch_of(texts, PAD[family])
    leaves = {name: value.requires_grad_() for name, value in task.params().items()}
    losses = task.losses(leaves, batch)
    expected = one_by_one(module.eval(), texts, words)
    of_labels = -expected[torch.arange(3), torch.tensor(words.token_ids)[batch["labels"]]]
    torch.testing.assert_close(losses, of_labels, rtol=1e-10, atol=1e-10)
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert own.keys() == leaves.keys()
    found = torch.autograd.grad(losses.sum(), list(leaves.values()))
    theirs = torch.autograd.grad(of_labels.sum(), [own[name] for name in leaves])
    assert all(value.abs().max() > 0 for value in theirs)
    torch.testing.assert_close(found, theirs, rtol=1e-8, atol=1e-10)
    of_words = expected[:, list(words.token_ids)]
    logits = task.logits(task.params(), batch)
    torch.testing.assert_close(logits - logits[:, :1], of_words - of_words[:, :1], rtol=1e-9, atol=1e-9)
    assert task.predict(task.params(), batch).tolist() == of_words.argmax(1).tolist()


ENCODER: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 130,
}  # fmt: skip
DECODER: dict[str, Any] = {**ENCODER, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW: dict[str, Any] = {**DECODER, "head_dim": 8, "sliding_window": 4}
DEBERTA: dict[str, Any] = {
    **ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0, "position_biased_input": False,
}  # fmt: skip
MODERN: dict[str, Any] = {
    **ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4, "local_attention": 4,
}  # fmt: skip
OTHERS: dict[str, Callable[[], PretrainedConfig]] = {
    "DistilBERT": lambda: transformers.DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "ELECTRA": lambda: transformers.ElectraConfig(**ENCODER, embedding_size=8),
    "XLM-RoBERTa": lambda: transformers.XLMRobertaConfig(**ENCODER, pad_token_id=1),
    "MPNet": lambda: transformers.MPNetConfig(**ENCODER),
    "DeBERTa-v2 and v3": lambda: transformers.DebertaV2Config(**DEBERTA, position_buckets=32, share_att_key=True),
    "ModernBERT": lambda: transformers.ModernBertConfig(**MODERN),
    "Mistral": lambda: transformers.MistralConfig(**WINDOW),
    "Qwen2": lambda: transformers.Qwen2Config(**DECODER),
    "Qwen3": lambda: transformers.Qwen3Config(**DECODER, head_dim=8),
    "Gemma 2": lambda: transformers.Gemma2Config(**WINDOW, final_logit_softcapping=0.5),
    "Phi-3": lambda: transformers.Phi3Config(**DECODER),
    "OPT": lambda: transformers.OPTConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=16, pad_token_id=0
    ),
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_score_the_words_as_their_own_call_does(family: str) -> None:
    config = OTHERS[family]()
    words = LabelWords((10, 20, 30), 5 if is_masked(config) else None)
    model = add_lora(language_model(config, words), ModelOptions(rank=2, head="label-words"), dropout=0.0, key=KEY)
    task = TransformerTask(model, objective=words)
    texts = prompts(words.mask_id and 5)
    texts = [torch.where((text == 5) & (torch.arange(len(text)) != (row + 1) % len(text)), 6, text) for row, text in enumerate(texts)]
    with torch.no_grad():
        expected = one_by_one(model, texts, words)
    batch = batch_of(texts, config.pad_token_id or 0, total=7, side="left")
    of_labels = -expected[torch.arange(3), torch.tensor(words.token_ids)].float()
    torch.testing.assert_close(task.losses(task.params(), batch), of_labels, rtol=1e-4, atol=1e-4)
    assert float(torch.pdist(expected).min()) > 0.01
    assert {task.layer_of(name) for name in task.names} == {0, 1}


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_its_side_and_what_stands_in_it_change_nothing(family: Family, side: str) -> None:
    words = tiny_words(family, 3)
    task = tiny_task(family, words=words, dtype=torch.float64)
    params, texts = noisy(task), prompts(words.mask_id)
    alone = torch.cat([task.logits(params, batch_of([text], PAD[family])) for text in texts])
    assert float(torch.pdist(alone).min()) > 1e-3
    batch = batch_of(texts, PAD[family], total=9, side=side)
    padding = batch["attention_mask"] == 0
    for filling in (PAD[family], MASK, 60):  # a mask in the padding is none
        batch["input_ids"] = torch.where(padding, filling, batch["input_ids"])
        torch.testing.assert_close(task.logits(params, batch), alone, rtol=1e-10, atol=1e-10)
    embeddings = task.embed(batch) + padding[..., None] * 3.0
    torch.testing.assert_close(task.losses(params, batch, embeddings), task.losses(params, batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_sees_one_position_of_each_example(family: Family) -> None:
    words = tiny_words(family)
    task = tiny_task(family, words=words)
    seen: list[tuple[int, ...]] = []
    base: Any = task.model.get_base_model()  # pyright: ignore[reportCallIssue]
    base.get_output_embeddings().register_forward_hook(lambda _module, args, _out: seen.append(tuple(args[0].shape)))
    task.losses(task.params(), batch_of(prompts(words.mask_id), PAD[family], classes=2))
    assert seen == [(3, 16)]


@pytest.mark.parametrize("count", [0, 2])
def test_an_example_without_one_mask_is_refused_by_its_row(count: int) -> None:
    task = tiny_task("bert", words=tiny_words("bert"))
    batch = batch_of(prompts(MASK), 0, classes=2)
    batch["input_ids"][1, :3] = torch.tensor([MASK] * count + [7] * (3 - count))
    with pytest.raises(ValueError, match=rf"expected one mask \(token 4\) in each example; got \[{count}\] in \[1\]"):
        task.losses(task.params(), batch)


def test_class_probabilities_as_targets_weigh_the_losses_of_the_words() -> None:
    task = tiny_task("llama", words=tiny_words("llama", 3))
    batch = batch_of(prompts(None), 0)
    each = torch.stack([task.losses(task.params(), {**batch, "labels": torch.full((3,), label)}) for label in range(3)], dim=1)
    targets = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.4, 0.6, 0.0]])
    torch.testing.assert_close(task.losses(task.params(), {**batch, "targets": targets}), (targets * each).sum(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_lora_is_trained_traced_and_drawn(family: Family) -> None:
    words = tiny_words(family, 3)
    task = tiny_task(family, words=words)
    batch = batch_of(prompts(words.mask_id), PAD[family])
    leaves = {name: value.requires_grad_() for name, value in noisy(task).items()}
    losses, tape = task.traced(leaves, batch)
    assert sorted(one.weight for one in tape.linears) == list(task.names)
    assert all("lora_" in name and task.layer_of(name) in (0, 1) for name in task.names)
    assert task.num_classes == 3
    start = task.init_params(KEY)
    assert all((value.abs().max() > 0) == ("lora_A" in name) for name, value in start.items())
    squared = []
    for row in range(3):
        gradients = torch.autograd.grad(losses[row], list(leaves.values()), retain_graph=True)
        squared.append(sum(float(g.double().square().sum()) for g in gradients))
    assert per_example_fisher_trace(task, noisy(task), [batch]).tolist() == pytest.approx(squared, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_fisher_under_the_models_own_labels_is_the_expectation_over_the_classes_words(family: Family) -> None:
    words = tiny_words(family, 3)
    task = tiny_task(family, words=words, dtype=torch.float64)
    batch, params = batch_of(prompts(words.mask_id), PAD[family]), noisy(task)
    chances = task.logits(params, batch).softmax(-1)
    torch.testing.assert_close(chances.sum(1), torch.ones(3, dtype=torch.float64))
    traces, rows = [], {name: torch.zeros(len(value), dtype=torch.float64) for name, value in params.items()}
    for row in range(3):
        trace = 0.0
        for label in range(3):
            leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
            loss = task.losses(leaves, {**batch, "labels": torch.full((3,), label)})[row]
            for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                trace += float(chances[row, label] * gradient.square().sum())
                rows[name] += chances[row, label] * gradient.square().sum(1) / 3
        traces.append(trace)
    found = fisher_pass(task, params, [batch], "model")
    assert found.trace.tolist() == pytest.approx(traces, rel=1e-5)
    for name, expected in rows.items():
        torch.testing.assert_close(found.neurons.rows[name], expected.float(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_the_head_and_the_embeddings_that_it_shares_stay_in_float32(family: Family, tmp_path: Path) -> None:
    words = tiny_words(family)
    task, exact = (built(saved_language_model(tmp_path, family), words, pad=PAD[family], precision=name) for name in ("bf16", "float32"))
    base: Any = task.model.get_base_model()  # pyright: ignore[reportCallIssue]
    assert {p.dtype for part in language_head(base) for p in part.parameters()} == {torch.float32}
    assert base.get_input_embeddings().weight.dtype == torch.float32
    assert any(p.dtype == torch.bfloat16 for p in base.parameters()) or family == "gpt2"
    params, batch = noisy(exact), batch_of(prompts(words.mask_id), PAD[family], classes=2)
    losses = task.losses(params, batch)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact.losses(params, batch), rtol=0.05, atol=0.05)
    torch.testing.assert_close(task.exact().losses(params, batch), exact.losses(params, batch), rtol=0.05, atol=0.05)


def test_storing_frozen_maps_in_bf16_changes_no_bit_of_what_a_language_model_computes() -> None:
    words = tiny_words("bert")
    plain, stored = (TransformerTask(tiny_model("bert", words=words), precision="bf16", objective=words) for _ in range(2))
    base: Any = stored.model.get_base_model()  # pyright: ignore[reportCallIssue]
    store_frozen_maps_in_bf16(stored.model, but=language_head(base))
    assert any(p.dtype == torch.bfloat16 for p in stored.model.parameters())
    params, batch = noisy(plain), batch_of(prompts(MASK), 0, classes=2)
    assert torch.equal(stored.losses(params, batch), plain.losses(params, batch))


# From a folder and back to one


def saved_language_model(folder: Path, family: Family, **sizes: Any) -> Path:
    place = folder / family
    language_model(tiny_config(family, **sizes), tiny_words(family)).save_pretrained(place)
    save_tokenizer(place)
    return place


def built(folder: Path, words: LabelWords, *, pad: int = 0, precision: str = "float32") -> TransformerTask:
    options = ModelOptions(name=str(folder), rank=2, head="label-words")
    training = TrainingOptions.model_validate({"device": "cpu", "precision": precision})
    return build_task(find(options), options, training, objective=words, pad_token_id=pad, key=KEY)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_loaded_by_peft_alone_scores_the_words_alike(family: Family, tmp_path: Path) -> None:
    words = tiny_words(family, 3)
    folder = saved_language_model(tmp_path, family)
    task = built(folder, words, pad=PAD[family])
    params, before = noisy(task), bits(task.model)
    about = {"labels": ["a", "b", "c"], "template": "{x} <mask>", "label_words": ["x", "y", "z"], "tokens": ["x", "y", "z"]}
    save_adapter(task, params, tmp_path / "adapter", base="org/model", revision=None, labels=about, card="A card.")
    assert bits(task.model) == before
    assert json.loads((tmp_path / "adapter" / "labels.json").read_text(encoding="utf-8")) == about
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["task_type"] == ("CAUSAL_LM" if words.mask_id is None else None) and not settings["modules_to_save"]
    kind = AutoModelForCausalLM if words.mask_id is None else AutoModelForMaskedLM
    loaded = PeftModel.from_pretrained(kind.from_pretrained(folder), str(tmp_path / "adapter")).eval()
    texts = prompts(words.mask_id)
    with torch.no_grad():
        expected = one_by_one(loaded, texts, words)
    found = task.losses(params, batch_of(texts, PAD[family]))
    torch.testing.assert_close(found, -expected[torch.arange(3), torch.tensor(words.token_ids)].float(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, task.losses(task.params(), batch_of(texts, PAD[family])), atol=0.01)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_weights_kept_in_memory_for_the_next_run_are_those_of_the_file(family: Family, tmp_path: Path) -> None:
    folder, words, kept = saved_language_model(tmp_path, family), tiny_words(family), KeptWeights()
    options, training = ModelOptions(name=str(folder), rank=2, head="label-words"), TrainingOptions(precision="float32", device="cpu")
    first, again = (build_task(find(options), options, training, objective=words, pad_token_id=0, key=KEY, weights=kept) for _ in range(2))
    assert bits(again.model) == bits(first.model)
    base: Any = again.model.get_base_model()  # pyright: ignore[reportCallIssue]
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight


def test_a_model_without_its_language_model_head_is_refused_in_a_sentence(tmp_path: Path) -> None:
    words = tiny_words("bert")
    with pytest.raises(UserError, match=r'model\.name: body has no language-model head: its file lacks cls\.predictions.*; or set "full"'):
        built(save_backbone(tmp_path / "body", "bert"), words)
    with pytest.raises(UserError, match=r"untied has no language-model head: its file lacks lm_head\.weight; expected"):
        built(save_backbone(tmp_path / "untied", "llama"), tiny_words("llama"))
    # GPT-2's shares its weight with the embeddings, which every file has
    assert built(save_backbone(tmp_path / "tied", "gpt2"), tiny_words("gpt2")).num_classes == 2


@pytest.mark.skipif(importlib.util.find_spec(PACKAGED["minilm"].module) is None, reason='not installed: pip install "fibecfed[demo]"')
def test_the_packaged_minilm_has_no_language_model_head() -> None:
    options = ModelOptions(name="minilm", head="label-words")
    with pytest.raises(UserError, match="all-MiniLM-L6-v2 has no language-model head"):
        build_task(find(options), options, TrainingOptions(), objective=LabelWords((5, 6), 103), pad_token_id=0, key=KEY)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PACKAGED["smollm2-135m"].module) is None, reason="SmolLM2 is not installed: make smollm2")
def test_the_packaged_smollm2_leans_to_the_right_word_before_any_training() -> None:
    from transformers import AutoTokenizer

    options = ModelOptions(name="smollm2-135m", head="label-words")
    source = find(options)
    tokenizer = AutoTokenizer.from_pretrained(source.location, **source.keywords())
    words = LabelWords(tuple(tokenizer(" terrible great")["input_ids"]), None)
    task = build_task(source, options, TrainingOptions(device="cpu"), objective=words, pad_token_id=0, key=KEY)
    texts = ["I hated every minute of it . It was", "A wonderful film that I loved . It was"]
    batch = batch_of([torch.tensor(tokenizer(text)["input_ids"]) for text in texts], 0, classes=2)
    logits = task.logits(task.init_params(KEY), batch)
    assert logits[0, 0] - logits[0, 1] > logits[1, 0] - logits[1, 1] + 1
    assert all("lora_" in name for name in task.names) and len(task.names) == 120


def test_a_family_without_a_language_model_is_refused(tmp_path: Path) -> None:
    folder = save_backbone(
        tmp_path / "seq2seq", transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )
    source = find(ModelOptions(name=str(folder)))
    with pytest.raises(UserError, match=r'seq2seq cannot be used with `model\.head` = "label-words": a t5 model has neither'):
        fills_masks(source, load_config(source))


def test_a_head_of_another_kind_is_refused() -> None:
    odd = nn.Module()
    odd.add_module("answer", nn.Linear(2, 2))
    with pytest.raises(UnsupportedModel, match=r"got the parts \['answer'\], expected a head among lm_head, cls, "):
        language_head(odd)
    config = transformers.GraniteConfig(**DECODER, logits_scaling=3.0)  # divides its scores, which is not known here
    words = LabelWords((10, 20), None)
    with pytest.raises(UnsupportedModel, match="pooling the last token and applying its head does not reproduce"):
        TransformerTask(add_lora(language_model(config, words), ModelOptions(head="label-words"), dropout=0.0, key=KEY), objective=words)
