"""Tokenizers: which are rejected, what they pad with, and tokens that the model has no embeddings for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from saved import run_config, write_reviews
from texts import noisy, padded, save_backbone, save_tokenizer, sentences
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fibecfed.build import prepare
from fibecfed.core.errors import UserError
from fibecfed.models.base_models import Source, find, load_config
from fibecfed.models.options import ModelOptions
from fibecfed.models.tiny import Family, tiny_config
from fibecfed.models.tokenizers import load_tokenizer, reject_unknown


def source_of(folder: Path) -> Source:
    return find(ModelOptions(name=str(folder)))


def with_token(folder: Path, added: int, **special: str) -> PreTrainedTokenizerFast:
    """The folder's tokenizer with so many more tokens, and then those given: what `add_tokens` leaves without `resize_token_embeddings`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(f"filler{n}") for n in range(added)])
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def run_on(folder: Path, **tables: Any) -> Any:
    write_reviews(folder / "reviews.csv", 24)
    return run_config(folder, **{"data": {"max_length": 16}, "federation": {"clients": 2}, **tables})


# What they pad with


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_of_text(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", "gpt2")
    save_tokenizer(folder, pad=None, eos_token="[END]")
    tokenizer = load_tokenizer(source_of(folder))
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[END]", 2)
    save_tokenizer(folder)
    assert load_tokenizer(source_of(folder)).pad_token == "[PAD]"


def test_a_tokenizer_with_neither_is_refused(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", "gpt2")
    save_tokenizer(folder, pad=None)
    with pytest.raises(UserError, match="the tokenizer of model has neither a padding nor an end-of-text token"):
        load_tokenizer(source_of(folder))


@pytest.mark.parametrize(("family", "pads_with"), [("gpt2", 0), ("llama", 0), ("bert", 0), ("roberta", 1)])
def test_a_padding_token_without_an_embedding_is_replaced_by_one_that_has(family: Family, pads_with: int, tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "backbone", family)
    save_tokenizer(folder, pad=None, eos_token="[END]")
    added = with_token(folder, 64, pad_token="[NEW]")
    assert added.pad_token_id >= 64  # the model has 64 embeddings
    source = source_of(folder)
    # the model's own padding token, which RoBERTa counts its positions from
    assert load_tokenizer(source, load_config(source)).pad_token_id == pads_with
    task = prepare(run_on(tmp_path)).task
    params = noisy(task)
    texts = sentences([4, 2])
    for side in ("right", "left"):
        together = task.logits(params, padded(texts, pads_with, total=6, side=side))  # pyright: ignore[reportArgumentType]
        alone = torch.cat([task.logits(params, padded([text], pads_with)) for text in texts])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_family_that_counts_positions_from_its_padding_token_keeps_it(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path, "roberta")
    save_tokenizer(folder, pad=None, eos_token="[END]")
    source = source_of(folder)
    assert load_config(source).pad_token_id == 1
    assert load_tokenizer(source).pad_token_id == 2
    assert load_tokenizer(source, load_config(source)).pad_token_id == 1


# Tokens without an embedding


def test_a_token_of_a_text_that_has_no_embedding_is_refused_by_its_name_and_number(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "backbone", "gpt2")
    tokenizer = with_token(folder, 64)
    tokenizer.add_tokens(["film"])
    tokenizer.add_tokens(["scene"])
    tokenizer.save_pretrained(folder)
    number = tokenizer.convert_tokens_to_ids("scene")
    with pytest.raises(UserError) as error:
        prepare(run_on(tmp_path))
    text = str(error.value)
    assert f"the token 'scene', which has the number {number}, but the model has 64 embeddings" in text
    assert f"model.resize_token_embeddings({number + 1} or more)" in text


def test_tokens_that_no_text_has_may_lack_an_embedding(tmp_path: Path) -> None:
    with_token(save_backbone(tmp_path / "backbone", "gpt2"), 64)
    assert prepare(run_on(tmp_path)).task.num_layers == 2


def test_the_last_token_of_the_table_is_known_and_a_long_one_is_cut(tmp_path: Path) -> None:
    config = tiny_config("gpt2")
    tokenizer = with_token(save_backbone(tmp_path, "gpt2"), 60, additional_special_tokens=["long" * 50])  # pyright: ignore[reportArgumentType]
    number = tokenizer.convert_tokens_to_ids("long" * 50)
    config.vocab_size = number + 1
    reject_unknown(torch.tensor([number]), tokenizer, config, "mine")
    config.vocab_size = number
    with pytest.raises(UserError) as error:
        reject_unknown(torch.tensor([3, number]), tokenizer, config, "mine")
    assert "long" * 20 + "'" in str(error.value)


# What is no tokenizer


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "llama"])
def test_a_folder_without_a_tokenizer_is_refused_with_the_command_that_writes_one(family: Family, tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", family)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError) as error:
        load_tokenizer(source_of(folder))
    text = str(error.value)
    assert text.startswith(f"model.name: {folder} has no tokenizer, expected its files")
    other = tmp_path / "source"
    save_tokenizer(save_backbone(other, family))
    command = text.split('python -c "')[1].split('"')[0]
    exec(command.replace("SOURCE", str(other)).replace("FOLDER", str(folder)), {})
    assert len(load_tokenizer(source_of(folder))) == 11


def test_a_tokenizer_that_takes_no_plain_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(save_backbone(tmp_path / "model", "bert"))

    def reject(*_: Any, **__: Any) -> None:
        raise ValueError("Words must be of type `List[str]`.\nAnd more.")

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", reject)
    with pytest.raises(UserError) as error:
        load_tokenizer(source)
    assert (
        str(error.value)
        == "model.name: model cannot be used: its tokenizer does not accept plain texts: Words must be of type `List[str]`."
    )
