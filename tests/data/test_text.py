from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from fibecfed.core.errors import UserError
from fibecfed.data.sources import TextSplit
from fibecfed.data.text import token_table
from fibecfed.data.tokenise import tokenise

ROWS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7), min_size=1, max_size=12)


@given(ROWS, st.data())
def test_a_batch_holds_the_examples_asked_for_padded_on_the_right_to_a_multiple_of_eight(rows, data):
    view = token_table(rows, list(range(len(rows))), pad_id=99).view()
    positions = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20))
    batch = view.batch(positions)
    longest = max(len(rows[i]) for i in positions)
    width = batch["input_ids"].shape[1]
    assert width % 8 == 0 and longest <= width < longest + 8
    assert batch["input_ids"].tolist() == [rows[i] + [99] * (width - len(rows[i])) for i in positions]
    assert batch["attention_mask"].tolist() == [[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in positions]
    assert batch["labels"].tolist() == positions
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


@given(ROWS, st.data())
def test_a_view_of_a_view_addresses_the_same_examples(rows, data):
    indices = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=10)))
    positions = torch.tensor(data.draw(st.lists(st.integers(0, len(indices) - 1), min_size=1, max_size=10)))
    view = token_table(rows, list(range(len(rows)))).view(indices).select(positions)
    assert view.labels.tolist() == indices[positions].tolist()
    assert view.lengths.tolist() == [len(rows[i]) for i in indices[positions]]
    first = rows[int(indices[positions[0]])]
    assert view.batch([0])["input_ids"][0, : len(first)].tolist() == first


@given(ROWS, st.data())
def test_rarity_is_the_mean_information_of_the_words_counted_on_the_view_alone(rows, data):
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12, unique=True))
    special = {0, 6}
    view = token_table(rows, [0] * len(rows), special_ids=sorted(special)).view(torch.tensor(indices))
    words = [[token for token in rows[i] if token not in special] for i in indices]
    count = Counter(token for row in words for token in row)
    total = sum(count.values())
    expected = [sum(-math.log(count[t] / total) for t in row) / len(row) if row else 0.0 for row in words]
    assert view.rarity.dtype == torch.float64
    assert view.rarity.tolist() == pytest.approx(expected, abs=1e-12)


def test_other_labels_replace_the_tables_own_in_a_view():
    table = token_table(torch.zeros(3, 2), [0, 1, 0])
    view = table.view(torch.tensor([2, 1]), torch.tensor([1, 1]))
    assert view.batch([0, 1])["labels"].tolist() == [1, 1]
    assert table.labels.tolist() == [0, 1, 0]


def test_no_positions_and_positions_beyond_the_end_are_refused():
    view = token_table([[1], [2]], [0, 1]).view()
    with pytest.raises(ValueError, match="no positions"):
        view.batch([])
    with pytest.raises(IndexError):
        view.batch([2])


def test_an_empty_view_has_empty_lengths_and_rarity():
    view = token_table([[1], [2]], [0, 1]).view(torch.zeros(0, dtype=torch.int64))
    assert len(view) == 0 and view.lengths.shape == (0,) and view.rarity.shape == (0,)


@pytest.mark.parametrize("pair", [False, True])
def test_a_batch_equals_what_the_tokenizer_makes_of_the_texts(tokenizer, pair):
    texts = ["a fine film", "bad", "an unforgettable, quietly moving story of two brothers " * 3]
    pairs = ["the second text is here", "yes", "short"] if pair else None
    split = TextSplit(texts, pairs, torch.tensor([0, 1, 0]), None)
    view = tokenise(tokenizer, split, 16).view()
    for positions in ([0, 1, 2], [1], [1, 0]):
        expected = tokenizer(
            [texts[i] for i in positions],
            None if pairs is None else [pairs[i] for i in positions],
            truncation="longest_first",
            max_length=16,
            padding="longest",
            pad_to_multiple_of=8,
            return_tensors="pt",
        )
        batch = view.batch(positions)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(batch[name], expected[name]), name
    assert view.lengths.max() == 16


def test_chunks_of_the_tokenizer_do_not_show(tokenizer, monkeypatch):
    split = TextSplit([f"text number {i} " * (1 + i % 3) for i in range(20)], None, torch.zeros(20, dtype=torch.int64), None)
    whole = tokenise(tokenizer, split, 32)
    monkeypatch.setattr("fibecfed.data.tokenise._CHUNK", 7)
    chunked = tokenise(tokenizer, split, 32)
    assert torch.equal(whole.ids, chunked.ids) and torch.equal(whole.offsets, chunked.offsets)


def test_special_tokens_do_not_count_as_words(tokenizer):
    split = TextSplit(["film", "film"], None, torch.tensor([0, 1]), None)
    assert tokenise(tokenizer, split, 8).view().rarity.tolist() == [0.0, 0.0]


def test_a_template_and_special_tokens_change_no_rarity():
    texts = [[10, 11], [10, 12, 13], [11]]
    plain = token_table(texts, [0, 1, 0])
    rows = [[2, 7, *text, 8, 7, 3] for text in texts]  # [CLS] and [SEP], and the template's words
    segments = torch.tensor([int(token >= 10) for row in rows for token in row], dtype=torch.uint8)
    dressed = replace(token_table(rows, [0, 1, 0], special_ids=[2, 3]), segments=segments)
    for name in ("rarity", "information"):
        torch.testing.assert_close(getattr(dressed.view(), name), getattr(plain.view(), name), rtol=0, atol=0)
    assert dressed.view(torch.tensor([2, 1])).added.tolist() == [5, 5] and plain.view().added.tolist() == [0, 0, 0]


def test_an_unknown_word_is_a_word_unless_its_token_ends_texts_too():
    split = TextSplit(["w1 w1 unheard"], None, torch.tensor([0]), None)
    tokenizer = fast_tokenizer(None)
    assert float(tokenise(tokenizer, split, 8).view().information) == pytest.approx(2 * math.log(3 / 2) + math.log(3))
    tokenizer.eos_token = "[UNK]"  # as GPT-2's
    assert float(tokenise(tokenizer, split, 8).view().information) == 0.0


def test_more_tokens_than_the_model_takes_are_refused(tokenizer):
    with pytest.raises(UserError, match="got 4096, expected at most 512"):
        tokenise(tokenizer, TextSplit(["a"], None, torch.tensor([0]), None), 4096)


def test_a_text_without_a_token_is_named():
    class Mute:
        model_max_length, model_input_names, pad_token_id, eos_token_id = 512, ["input_ids", "attention_mask"], None, 2
        all_special_ids = (2,)

        def __call__(self, texts, pairs, **options):
            return {"input_ids": [[5] * (len(text) - 1) for text in texts]}

    split = TextSplit(["abc", "x"], None, torch.tensor([0, 1]), None)
    with pytest.raises(UserError, match="'x' has no token"):
        tokenise(Mute(), split, 8)
    table = tokenise(Mute(), split.take([0]), 8)
    assert table.token_type_ids is None and table.pad_id == 2
    assert "token_type_ids" not in table.view().batch([0])


def fast_tokenizer(pair: str | None):
    """Words w0 .. w9 with [CLS] and [SEP] around them, or nothing at all."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(10))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    if pair is not None:
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.mark.parametrize(("pair", "between"), [("[CLS] $A [SEP] $B [SEP]", 3), (None, 14)])
def test_two_texts_never_run_together(pair: str | None, between: int):
    tokenizer = fast_tokenizer(pair)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")  # the separator stays
    tokenizer.add_tokens(["\n"])
    tokenizer.backend_tokenizer.normalizer = None
    split = TextSplit(["w1 w2"], ["w3"], torch.tensor([0]), None)
    ids = tokenise(tokenizer, split, 16).ids.tolist()
    assert ids.count(between) == 1 + (pair is not None) and ids[ids.index(6) + 1] == between
    alone = tokenise(tokenizer, TextSplit(["w1 w2"], None, torch.tensor([0]), None), 16).ids.tolist()
    assert 14 not in alone


@pytest.mark.parametrize("pair", ["[CLS] $A [SEP] $B [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]", None])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("max_length", [6, 7, 8, 11])
def test_a_batch_cut_further_is_what_the_tokenizer_makes_of_the_texts_at_that_length(pair, two: bool, max_length: int):
    sizes = [(1, 9), (9, 1), (4, 4), (5, 4), (4, 5), (2, 2), (9, 8), (3, 3)]
    first = [" ".join(f"w{n % 7}" if n else "unknown" for n in range(a)) for a, _ in sizes]
    second = [" ".join(f"w{(n + 3) % 10}" for n in range(b)) for _, b in sizes]
    split = TextSplit(first, second if two else None, torch.zeros(len(sizes), dtype=torch.int64), None)
    tokenizer = fast_tokenizer(pair)
    view = tokenise(tokenizer, split, 64).view()
    batch = view.batch(range(len(sizes)), max_length)
    expected = [
        tokenizer(*pair, truncation="longest_first", max_length=max_length)["input_ids"]
        for pair in (zip(first, second, strict=True) if two else zip(first))
    ]
    cut = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert cut == expected
    assert batch["input_ids"].shape[1] % 8 == 0
    if two and pair is not None:  # both texts are still there
        assert all(row.count(3) == pair.count("[SEP]") and row[-2] != 3 for row in cut)
    whole, same = view.batch([0, 1]), view.batch([0, 1], 64)
    assert all(torch.equal(whole[name], same[name]) for name in whole)
