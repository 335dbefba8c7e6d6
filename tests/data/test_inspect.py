"""What is wrong with planted data is said, what is right is not, and no text ever is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from texts import WORDS, save_tokenizer
from transformers import AutoTokenizer

from fibecfed.core.rng import Key
from fibecfed.data.federated import FederatedData, absent, federate, federate_one
from fibecfed.data.inspect import quantiles, warnings
from fibecfed.data.options import DataOptions
from fibecfed.data.planted import planted_federation
from fibecfed.data.sources import TextDataset, TextSplit

NAMES = ("neg", "pos")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory):
    """A tokenizer of eight words, each one token, with nothing around a text."""
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def text(number: int, length: int = 5) -> str:
    """A text of so many words that no other number has."""
    return " ".join(WORDS[(number // 8**place) % 8] for place in range(length))


def split(texts: Sequence[str], labels: Sequence[int] | None = None, clients: Sequence[str] | None = None) -> TextSplit:
    numbers = [row % 2 for row in range(len(texts))] if labels is None else labels
    return TextSplit(list(texts), None, torch.tensor(list(numbers)), None if clients is None else list(clients))


def dataset(train: TextSplit, test: TextSplit, names: tuple[str, ...] = NAMES, **more) -> TextDataset:
    return TextDataset(train, test, names, False, None, "made", **more)


TRAIN, TEST = split([text(n) for n in range(100)]), split([text(n) for n in range(100, 140)])


def spread(words, found: TextDataset, clients: int = 2, **options) -> FederatedData:
    kind = "iid" if found.train.clients is None else "column"
    return federate(found, words, DataOptions(path="a.csv", **options), clients=clients, partition=kind, key=Key(0))


def test_sound_data_get_no_warning(words):
    assert warnings(spread(words, dataset(TRAIN, TEST)), 512) == ()
    assert warnings(federate_one(dataset(TRAIN, TEST), words, DataOptions(path="a.csv"), "site", Key(0)), 512) == ()
    assert warnings(absent(("a", "b"), NAMES)) == ()


def test_data_made_of_tokens_have_nothing_to_be_cut_or_copied():
    assert not any("truncated" in said or "duplicates" in said for said in warnings(planted_federation(3, 20, Key(0))))


@pytest.mark.parametrize(
    ("lengths", "max_length", "limit", "said"),
    [
        (
            [5] * 60 + [20] * 40,
            8,
            512,
            ["40 of 140 texts are longer than 8 tokens", "truncated at the end", "median 5, 95 %"],
        ),
        ([5] * 60 + [20] * 40, 8, 512, ["maximum 20", "set data.max_length = 24"]),
        ([5] * 60 + [20] * 40, 8, None, ["set data.max_length = 24"]),
        ([5] * 60 + [30] * 40, 8, 16, ["set data.max_length = 16, the model's limit", "40 are longer than the 16 tokens", "split them"]),
        ([5] * 60 + [30] * 40, 16, 16, ["40 of 140", "40 are longer than the 16 tokens that this model can read"]),
    ],
)
def test_texts_that_are_cut_are_counted_with_their_lengths_before(words, lengths, max_length, limit, said):
    train = split([text(n, length) for n, length in enumerate(lengths)])
    (found,) = warnings(spread(words, dataset(train, TEST), max_length=max_length), limit)
    for part in said:
        assert part in found
    assert (limit != max_length) == ("set data.max_length" in found)


def test_a_few_cut_texts_are_no_warning_and_lengths_before_the_cut_are_the_tokenizers(words):
    train = split([text(n, 30 if n < 4 else 5) for n in range(100)])
    data = spread(words, dataset(train, TEST), max_length=8)
    assert warnings(data, 512) == ()
    assert sorted(torch.cat([data.train.whole_lengths, data.validation.whole_lengths]).tolist()) == [5] * 96 + [30] * 4
    assert int(data.train.lengths.max()) == 8


def test_a_tokenizer_that_cuts_at_the_left_says_beginning(words):
    words.truncation_side = "left"
    try:
        data = spread(words, dataset(split([text(n, 9) for n in range(100)]), TEST), max_length=8)
    finally:
        words.truncation_side = "right"
    assert "are truncated at the beginning" in warnings(data)[0]


def test_copies_are_counted_within_train_and_between_train_and_test(words):
    train = split([text(n % 60) for n in range(100)], [n % 60 % 2 for n in range(100)])
    test = split([text(n) for n in (0, 1, 2, *range(100, 130))])
    copies, shared = warnings(spread(words, dataset(train, test)))
    assert copies.startswith("40 of 100 training texts are duplicates of others")
    assert shared.startswith("3 of 33 test texts are also in the training data")


def test_copies_under_two_labels_are_told(words):
    train = split([text(n) for n in range(98)] + [text(0), text(0)], [n % 2 for n in range(98)] + [1, 1])
    copies, torn = warnings(spread(words, dataset(train, TEST)))
    assert copies.startswith("2 of 100") and torn.startswith("3 training texts have duplicates with another label")
    # noise on purpose is no fault of the data
    noisy = spread(words, dataset(split([text(n % 60) for n in range(120)]), TEST), label_noise=0.3)
    assert not any("another label" in said for said in warnings(noisy))


def test_pairs_are_copies_only_where_both_texts_are_alike(words):
    def pairs(first: list[str], second: list[str]) -> TextSplit:
        return TextSplit(first, second, torch.arange(len(first)) % 2, None)

    one = [text(0)] * 100
    two = [text(n) for n in range(100)]
    found = TextDataset(pairs(one, two), pairs([text(0)] * 30, [text(n) for n in range(200, 230)]), NAMES, True, None, "made")
    assert warnings(spread(words, found)) == ()


def test_unknown_tokens_and_texts_without_any_are_counted(words):
    strange = split([f"{text(n)} {'xyz ' * (5 if n % 2 else 0)}" for n in range(100)])
    (said,) = warnings(spread(words, dataset(strange, TEST)))
    assert said.startswith("2") and "% of the tokens are unknown" in said


def test_a_text_of_special_tokens_alone_is_counted(tokenizer):
    texts = [f"a film with the number {n}" for n in range(100)]
    (said,) = warnings(spread(tokenizer, dataset(split([*texts, "\u200b", "\u2060"]), split([f"a plot of {n}" for n in range(40)]))))
    assert said.startswith("2 texts have no token but special ones")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("neg", "Neg"), "classes that look alike: 'Neg' and 'neg'"),
        (("very good", "very\u00a0good"), "classes that look alike: 'very good' and 'very\\xa0good'"),
        (("not_ok", "not ok"), "classes that look alike: 'not ok' and 'not_ok'"),
        (("NA", "pos"), "classes whose names look like missing values: 'NA' (45 training examples)"),
    ],
)
def test_names_that_look_alike_or_missing_are_shown_in_quotes(words, names, said):
    (found,) = warnings(spread(words, dataset(TRAIN, TEST, names)))
    assert found.startswith(said)


@pytest.mark.parametrize("names", [("-1", "1"), ("1-2", "12"), ("a", "b"), ("good", "not good"), ("C", "C++")])
def test_names_that_differ_in_earnest_are_not_shown(words, names):
    assert warnings(spread(words, dataset(TRAIN, TEST, names))) == ()


def test_thin_classes_and_clients_are_named_with_their_counts(words):
    sites = ["big"] * 80 + ["thin"] * 6 + ["alone"] * 14
    labels = [n % 2 for n in range(83)] + [2] * 3 + [0] * 14
    train = split([text(n) for n in range(100)], labels, sites)
    test = split([text(n) for n in range(100, 140)], [n % 2 for n in range(40)], ["big"] * 40)
    data = spread(words, dataset(train, test, ("a", "b", "rare", "absent")), validation_fraction=0.0)
    assert warnings(data) == (
        "no training example in 1 of 4 classes: 'absent'",
        "fewer than 10 training examples in 1 of 4 classes: 'rare' (3)",
        "fewer than 8 training examples on 1 of 3 clients: 'thin' (6)",
        "training examples of a single class on 1 of 3 clients: 'alone'",
        "no test example on 2 of 3 clients, whose own models get no score: 'alone', 'thin'",
    )


def test_one_site_speaks_of_itself(words):
    train = split([text(n) for n in range(6)], [0] * 6)
    data = federate_one(dataset(train, TEST, ("a", "b")), words, DataOptions(path="a.csv"), "site", Key(0))
    assert warnings(data) == (
        "no training example in 1 of 2 classes at this site: 'b'",
        "fewer than 10 training examples in 1 of 2 classes: 'a' (5)",
        "every training example has the class 'a'",
        "there are only 5 training examples",
    )


def test_what_the_reader_noticed_comes_first(words):
    found = dataset(TRAIN, TEST, ("a", "A"), notes=("a note",))
    assert warnings(spread(words, found))[0] == "a note"


def test_no_text_is_ever_shown(words):
    secret = "confidential "
    train = split([secret * (3 + n % 9) for n in range(100)], [n % 3 for n in range(100)], [f"c{n % 20}" for n in range(100)])
    data = spread(words, dataset(train, split([secret] * 5, [0] * 5, ["c1"] * 5), ("x", "X", "y")), max_length=8)
    said = warnings(data)
    assert len(said) > 5 and not any("confid" in sentence for sentence in said)


def test_quantiles_are_lengths_that_occur():
    assert quantiles(torch.arange(1, 101)) == (50, 95, 100)
    assert quantiles(torch.tensor([7])) == (7, 7, 7)
