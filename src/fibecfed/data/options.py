"""The table [data] of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..core.errors import UserError
from ..core.files import expanded
from ..core.options import Options
from .names import canonical

DEFAULT_MAX_LENGTH = 64
DEFAULT_MAX_LENGTH_PAIRS = 128
DEFAULT_MAX_LENGTH_ANSWERS = 1024
"""Tokens that an example is truncated to where `data.max_length` is not set."""

NO_TEMPLATE = "none"
"""As `data.chat_template`: a prompt and its answer are joined as they are."""


def template_text(value: str) -> str:
    """A chat template that is given by its text or its file: Jinja that makes a text of messages has braces.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if value == NO_TEMPLATE or "{" in value:
        return value
    try:
        text = expanded(value).read_text(encoding="utf-8")
        if "{" not in text:
            raise UserError(f"data.chat_template: {value} holds no template, expected Jinja, which has braces; name another file")
        return text
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"data.chat_template: got {value!r}, which cannot be read as a file ({said}), expected a Jinja template, a file with one, or "
            '"none"; fix the path'
        ) from None


class DataOptions(Options):
    """Which texts are used, and how they are split and truncated."""

    kind: Literal["classification", "instruction"] = Field(
        default="classification",
        description="classification: texts with a class each; instruction: prompts or conversations with answers that a causal language "
        "model is to give: docs/instruction-tuning.md.",
    )
    task: str | None = Field(
        default=None,
        description="A data set of `fibecfed list tasks`; set this or `path`, or neither if the clients are machines with their own data.",
    )
    path: str | None = Field(default=None, description="Your own CSV, TSV, JSON, JSON lines or parquet file; set this or `task`.")
    test_path: str | None = Field(
        default=None, description="File with the test examples; without it, `test_fraction` of `path` is held out."
    )
    text_column: str = Field(
        default="text", description="Column of the text, or of the first text of a pair; for instruction of plain text to continue."
    )
    pair_column: str | None = Field(default=None, description="Column of the second text, for sentence-pair tasks.")
    label_column: str = Field(default="label", description="Column of the label: strings or integers.")
    shape: Literal["auto", "prompt", "messages", "text"] = Field(
        default="auto",
        description="For instruction: prompt: columns of prompts and completions; messages: a column of conversations; text: one of plain "
        "text; auto: whichever the file has.",
    )
    prompt_column: str = Field(
        default="prompt", description="For instruction: column of the prompts, each a string or a list of messages with role and content."
    )
    completion_column: str = Field(default="completion", description="For instruction: column of the answers, likewise.")
    messages_column: str = Field(
        default="messages", description="For instruction: column of conversations, each a list of messages with role and content."
    )
    system_column: str | None = Field(default=None, description="For instruction: column of the system message of each example.")
    system: str | None = Field(
        default=None, description="For instruction: system message of every example that has none; without it the chat template decides."
    )
    loss_on: Literal["answers", "all"] = Field(
        default="answers", description="For instruction: predict the tokens of the answers alone, or of the whole text."
    )
    chat_template: str | None = Field(
        default=None,
        description="For instruction: chat template (Jinja), or a file with one; default: the tokenizer's own. none: prompt and completion "
        "are joined as they are.",
    )
    client_column: str | None = Field(
        default=None, description='Column with the client of each example; implies `federation.partition` = "column".'
    )
    labels: tuple[str, ...] | None = Field(
        default=None,
        description="The classes, in order; integer labels are 0-based indices into this list. Default: those of the training set, sorted.",
    )
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="Fraction of `path` held out as the test set, stratified by label.")
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Fraction of the training examples held out for validation, stratified by label."
    )
    max_train: int | None = Field(
        default=None, ge=1, description="Maximum number of training examples (validation not counted), sampled by the seed."
    )
    max_test: int | None = Field(default=None, ge=1, description="Maximum number of test examples, sampled by the seed.")
    max_length: int | None = Field(
        default=None,
        ge=4,
        description="Maximum length in tokens; longer examples are truncated. Default 64, for pairs 128, for instruction 1024.",
    )
    template: str | None = Field(
        default=None,
        description='For `model.head` = "label-words": prompt template with `{x}`, or `{a}` and `{b}` for a pair, and `<mask>` for the '
        "word. Default: the task's own.",
    )
    label_words: tuple[str, ...] | None = Field(
        default=None,
        description="Verbaliser: one word per class, in the same order, each a single token of the model. Default: the task's own.",
    )
    root: str | None = Field(
        default=None, description="Folder with <task>/train.parquet and test.parquet; default $FIBECFED_DATA, then the hub."
    )
    revision: str | None = Field(
        default=None, description="Commit or tag of a task's data set on the hub; pin it for reproducible results."
    )
    skip_empty: bool = Field(
        default=False,
        description="Skip rows of `path` and `test_path` without a text or label, and report their number, instead of rejecting the file.",
    )
    label_noise: float = Field(
        default=0.0, ge=0, lt=1, description="Fraction of the training labels replaced by another, random class; for experiments."
    )

    @field_validator("labels")
    @classmethod
    def _as_they_are_read(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Classes as those of a file are read."""
        return None if labels is None else tuple(map(canonical, labels))

    @model_validator(mode="after")
    def _one_source(self) -> DataOptions:
        if self.task is not None and self.path is not None:
            raise ValueError("set exactly one of `data.task` and `data.path`")
        if self.task is not None and self.test_path is not None:
            raise ValueError("`data.test_path` requires `data.path`; a task has its own test set")
        return self
