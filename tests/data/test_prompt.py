"""Templates and label words: what the model reads, what is cut, and which words are rejected."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.data.federated import federate
from fibecfed.data.options import DataOptions
from fibecfed.data.prompt import Prompt, make_prompt, mistake_in, template_and_words, with_mask_last
from fibecfed.data.sources import TextSplit
from fibecfed.data.tasks import TASKS
from fibecfed.data.tokenise import tokenise

IT_WAS, BETWEEN = "{x} . It was <mask> .", "{a} ? <mask> , {b}"
WORDS = {
    "sst2": (IT_WAS, {"negative": "terrible", "positive": "great"}),
    "mr": (IT_WAS, {"negative": "terrible", "positive": "great"}),
    "movie-reviews": (IT_WAS, {"negative": "terrible", "positive": "great"}),
    "mpqa": (IT_WAS, {"negative": "terrible", "positive": "great"}),
    "subj": (IT_WAS, {"subjective": "subjective", "objective": "objective"}),
    "cola": (IT_WAS, {"unacceptable": "unacceptable", "acceptable": "acceptable"}),
    "trec": (
        "<mask> : {x}",
        {"ABBR": "Expression", "ENTY": "Entity", "DESC": "Description", "HUM": "Human", "LOC": "Location", "NUM": "Number"},
    ),
    "mrpc": (BETWEEN, {"not_equivalent": "No", "equivalent": "Yes"}),
    "rte": (BETWEEN, {"entailment": "Yes", "not_entailment": "No"}),
    "qnli": (BETWEEN, {"entailment": "Yes", "not_entailment": "No"}),
    "boolq": (BETWEEN, {"False": "No", "True": "Yes"}),
}
TEXT = "a film about two brothers , told with care and without haste . it is long , but it is good"


@functools.cache
def byte_level(trim_offsets: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's: bytes, words with the space before them, one token before the text, and one behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    corpus = [TEXT, "It was great . It was terrible . Yes , No"] * 5
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.Sequence([  # pyright: ignore[reportAttributeAccessIssue]
        processors.ByteLevel(trim_offsets=trim_offsets),
        processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def read_as(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encode(prompt: Prompt, tokenizer, texts: list[str], pairs: list[str] | None, max_length: int) -> list[list[int]]:
    """Token ids of each example as a table of the data holds them."""
    table = tokenise(tokenizer, TextSplit(texts, pairs, torch.zeros(len(texts), dtype=torch.int64), None), max_length, prompt)
    return [table.ids[start:stop].tolist() for start, stop in itertools.pairwise(table.offsets.tolist())]


def common_start(one: list[int], other: list[int]) -> list[int]:
    return [a for a, b in itertools.takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False))]


# Templates


def test_the_tasks_have_the_published_templates_and_words() -> None:
    assert WORDS.keys() == TASKS.keys()
    for name, (template, words) in WORDS.items():
        task = TASKS[name]
        assert (task.template, dict(zip(task.labels, task.label_words, strict=True))) == (template, words)
        assert mistake_in(template, task.pair) is None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (IT_WAS, "{x} . It was <mask>"),
        ("<mask> : {x}", "{x} : <mask>"),
        (BETWEEN, "{a} ? {b} , <mask>"),
        ("{x} Topic:<mask>", "{x} Topic: <mask>"),
        ("<mask> ! {a} - {b} .", "{a} - {b} ! <mask>"),
    ],
)
def test_for_a_model_that_reads_from_left_to_right_the_word_comes_last(template: str, expected: str) -> None:
    assert with_mask_last(template) == expected
    assert with_mask_last(expected) == expected


@pytest.mark.parametrize(
    ("template", "pair", "reason"),
    [
        ("{x} .", False, "with {x}, expected <mask>, {x}, each once"),
        ("no place", False, "with no placeholder"),
        ("{x} <mask> <mask>", False, "<mask>, <mask>, {x}, expected"),
        ("{x} {y} <mask>", False, "<mask>, {x}, {y}, expected"),
        ("{x} <mask>", True, "expected <mask>, {a}, {b}"),
        (BETWEEN, False, "expected <mask>, {x}"),
    ],
)
def test_a_template_without_its_placeholders_is_a_mistake(template: str, pair: bool, reason: str) -> None:
    assert reason in str(mistake_in(template, pair))


def test_words_follow_the_classes_whatever_their_order() -> None:
    options = DataOptions(task="rte")
    assert template_and_words(options, ("entailment", "not_entailment")) == (BETWEEN, ("Yes", "No"))
    assert template_and_words(options, ("not_entailment", "entailment")) == (BETWEEN, ("No", "Yes"))
    own = DataOptions(task="rte", template="{b} <mask> {a}", label_words=("True", "False"))
    assert template_and_words(own, ("entailment", "not_entailment")) == ("{b} <mask> {a}", ("True", "False"))
    mine = DataOptions(path="x.csv", template="{x} <mask>", label_words=("up", "down"))
    assert template_and_words(mine, ("a", "b"))[1] == ("up", "down")
    with pytest.raises(UserError, match=r"label_words: got 2: 'up', 'down', expected 3, one for each class in this order: 'a', 'b', 'c'"):
        template_and_words(mine, ("a", "b", "c"))
    with pytest.raises(UserError, match=r"data\.label_words: got none, expected 2"):
        template_and_words(options, ("yes", "no"))
    with pytest.raises(UserError, match=r"data\.template: got none"):
        template_and_words(DataOptions(path="x.csv", label_words=("up", "down")), ("a", "b"))


# Words


def test_a_word_is_one_token_with_the_space_before_it_where_the_vocabulary_has_such(tokenizer) -> None:
    masked = make_prompt(tokenizer, IT_WAS, ("terrible", "great"), masked=True)
    assert (masked.template, masked.tokens, masked.mask_id) == (IT_WAS, ("terrible", "great"), tokenizer.mask_token_id)
    causal = make_prompt(byte_level(), IT_WAS, ("terrible", "great"), masked=False)
    assert (causal.template, causal.tokens, causal.mask_id) == ("{x} . It was <mask>", ("Ġterrible", "Ġgreat"), None)
    assert causal.about(("bad", "good")) == {
        "labels": ["bad", "good"], "template": "{x} . It was <mask>", "label_words": ["terrible", "great"],
        "tokens": ["Ġterrible", "Ġgreat"],
    }  # fmt: skip


def test_words_that_cannot_stand_for_a_class_are_refused_with_their_pieces(tokenizer) -> None:
    with pytest.raises(
        UserError, match=r"'unforgettably' is 5 tokens of this model \('un', '##for', .*\), expected one; choose another word"
    ):
        make_prompt(tokenizer, IT_WAS, ("unforgettably", "great"), masked=True)
    with pytest.raises(UserError, match=r"'great' and 'Great' are the same token 'great' of this model; .*choose another word"):
        make_prompt(tokenizer, IT_WAS, ("great", "Great"), masked=True)
    with pytest.raises(UserError, match=r"'☃☃' is not in the vocabulary of this model \('\[UNK\]'\); choose another word"):
        make_prompt(tokenizer, IT_WAS, ("great", "☃☃"), masked=True)
    with pytest.raises(UserError, match="needs a tokenizer with a mask token; this model's has none"):
        make_prompt(byte_level(), IT_WAS, ("terrible", "great"), masked=True)


# What the model reads


def test_a_masked_model_reads_the_template_as_one_text(tokenizer) -> None:
    prompt = make_prompt(tokenizer, BETWEEN, ("Yes", "No"), masked=True)
    split = TextSplit(["is it good", "why"], ["it is", "because of it"], torch.tensor([0, 1]), None)
    table = tokenise(tokenizer, split, 32, prompt)
    for row, expected in enumerate(("is it good ? [MASK] , it is", "why ? [MASK] , because of it")):
        ids = table.view().batch([row])["input_ids"][0, : table.lengths[row]].tolist()
        assert ids == tokenizer(expected)["input_ids"]
    assert table.token_type_ids is not None and not table.token_type_ids.any()


@pytest.mark.parametrize("trim", [True, False])
def test_a_causal_model_reads_nothing_behind_the_template(trim: bool) -> None:
    tokenizer = byte_level(trim)
    prompt = make_prompt(tokenizer, IT_WAS, ("terrible", "great"), masked=False)
    (ids,) = encode(prompt, tokenizer, ["it is long"], None, 60)
    assert read_as(tokenizer, ids) == "<s>it is long . It was"
    assert [*ids, prompt.token_ids[1], 1] == tokenizer("it is long . It was great")["input_ids"]


def test_a_mask_in_a_text_is_taken_out_of_it(tokenizer) -> None:
    prompt = make_prompt(tokenizer, IT_WAS, ("terrible", "great"), masked=True)
    (ids,) = encode(prompt, tokenizer, ["a [MASK] film"], None, 32)
    assert ids == tokenizer("a  film . It was [MASK] .")["input_ids"]


@given(length=st.integers(8, 40), template=st.sampled_from([IT_WAS, "<mask> : {x}", "Review: {x}? So <mask>!"]), causal=st.booleans())
def test_only_the_text_is_cut_and_at_its_end(tokenizer, length: int, template: str, causal: bool) -> None:
    known = byte_level() if causal else tokenizer
    words = ("terrible", "great")
    prompt = make_prompt(known, template, words, masked=not causal)
    (whole,) = encode(prompt, known, [TEXT], None, 500)
    (other,) = encode(prompt, known, ["Zürich"], None, 500)  # shares nothing but the template
    before, after = (common_start(whole, other), common_start(whole[::-1], other[::-1])[::-1])
    if len(before) + len(after) >= length:
        with pytest.raises(UserError, match=rf"data\.max_length: got {length}, but the template alone takes {len(before) + len(after)}"):
            encode(prompt, known, [TEXT], None, length)
        return
    (cut,) = encode(prompt, known, [TEXT], None, length)
    text = whole[len(before) : len(whole) - len(after)]
    assert cut == before + text[: length - len(before) - len(after)] + after
    assert len(cut) == min(length, len(whole))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("words", [(3, 14), (14, 3), (9, 9), (12, 10)])
def test_of_two_texts_the_longer_one_is_cut_first(tokenizer, causal: bool, words: tuple[int, int]) -> None:
    known = byte_level(trim_offsets=False) if causal else tokenizer
    prompt = make_prompt(known, BETWEEN, ("Yes", "No"), masked=not causal)
    first, second = (" ".join(["is"] * count) for count in words)
    template = len(encode(prompt, known, ["is"], ["is"], 100)[0]) - 2
    (whole,) = encode(prompt, known, [first], [second], 100)
    assert len(whole) == template + sum(words)
    for room in (4, 7, 12):
        (cut,) = encode(prompt, known, [first], [second], template + room)
        other = tokenizer(first, second, truncation="longest_first", max_length=room + 3)  # the rule of tokenizers, and [CLS], [SEP] twice
        left, right = (" ".join(["is"] * other.sequence_ids(0).count(which)) for which in (0, 1))
        assert cut == encode(prompt, known, [left], [right], 100)[0]


def test_every_example_of_a_federation_is_in_its_template(tokenizer, made_dataset) -> None:
    prompt = make_prompt(tokenizer, IT_WAS, ("terrible", "great"), masked=True)
    data = federate(made_dataset(), tokenizer, DataOptions(task="sst2", max_length=14), clients=3, key=Key(0), prompt=prompt)
    for part in (data.train, data.validation, data.test):
        batch = part.batch(range(len(part)))
        assert ((batch["input_ids"] == tokenizer.mask_token_id).sum(1) == 1).all()
        assert int(part.lengths.max()) <= 14


def test_a_tokenizer_that_does_not_know_where_its_tokens_stand_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="needs a tokenizer that returns the offsets of its tokens"):
        make_prompt(Slow(), IT_WAS, ("a", "b"), masked=False)


def test_what_a_method_cuts_further_is_the_text_as_well(tokenizer) -> None:
    prompt = make_prompt(tokenizer, BETWEEN, ("Yes", "No"), masked=True)
    split = TextSplit(["is it good", TEXT], ["it is", TEXT], torch.tensor([0, 1]), None)
    cut = tokenise(tokenizer, split, 60, prompt).view().batch([0, 1], 14)
    for row in range(2):
        seen = cut["input_ids"][row][cut["attention_mask"][row] == 1].tolist()
        assert seen == encode(prompt, tokenizer, split.texts, split.pairs, 14)[row]
        assert len(seen) <= 14 and tokenizer.mask_token_id in seen
