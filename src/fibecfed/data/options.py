"""The table [data] of a configuration."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from ..core.options import Options
from .names import canonical

DEFAULT_MAX_LENGTH = 64
DEFAULT_MAX_LENGTH_PAIRS = 128
"""Tokens an example is cut to where `data.max_length` is not set."""


class DataOptions(Options):
    """Which labelled text is used, and how it is cut."""

    task: str | None = Field(
        default=None, description="One of `fibecfed list tasks`; either this or `path`, or neither where the clients are machines."
    )
    path: str | None = Field(default=None, description="Your own CSV, TSV, JSON, JSON lines or parquet file; either this or `task`.")
    test_path: str | None = Field(default=None, description="A file with the test examples; without it `test_fraction` is cut from `path`.")
    text_column: str = Field(default="text", description="Column of the (first) text.")
    pair_column: str | None = Field(default=None, description="Column of the second text, for tasks on pairs.")
    label_column: str = Field(default="label", description="Column of the label: strings or integers.")
    client_column: str | None = Field(
        default=None, description='Column that names the client an example belongs to; sets `federation.partition` = "column" by itself.'
    )
    labels: tuple[str, ...] | None = Field(
        default=None,
        description="The classes, in order; integer labels are 0-based indices into this list. Default: those found in train, sorted.",
    )
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of `path` that becomes the test set, stratified by label.")
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the training examples kept for validation, stratified."
    )
    max_train: int | None = Field(
        default=None, ge=1, description="Maximum number of training examples (validation not counted), drawn from the seed."
    )
    max_test: int | None = Field(default=None, ge=1, description="Maximum number of test examples, drawn from the seed.")
    max_length: int | None = Field(default=None, ge=4, description="Tokens an example is truncated to. Default 64, for pairs 128.")
    template: str | None = Field(
        default=None,
        description='For `model.head` = "label-words": the text as `{x}`, or a pair as `{a}` and `{b}`, and the word as `<mask>`. '
        "Default: the task's own.",
    )
    label_words: tuple[str, ...] | None = Field(
        default=None,
        description="Verbalizer: one word per class, in their order, each a single token of the model. Default: the task's own.",
    )
    root: str | None = Field(
        default=None, description="Folder with <task>/train.parquet and test.parquet; default $FIBECFED_DATA, then the hub."
    )
    revision: str | None = Field(
        default=None, description="Commit or tag of a task's data set on the hub; pin it for results that can be repeated."
    )
    skip_empty: bool = Field(
        default=False,
        description="Leave out the rows of `path` and `test_path` without a text or label, and count them, instead of refusing them.",
    )
    label_noise: float = Field(
        default=0.0, ge=0, lt=1, description="Fraction of the training labels replaced by another class; for experiments."
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
            raise ValueError("`data.test_path` goes with `data.path`; a task brings its own test set")
        return self
