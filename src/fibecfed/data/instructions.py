"""Where prompts and answers come from: the user's files, a folder of prepared sets, or the hub."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import expanded
from ..core.rng import Key
from .answers import AnswerSplit, Cuts, Encoder
from .conversations import Conversation, Joined, Message, Rows, columns_of, rows_of
from .cuts import stratified_cut
from .instruction_sets import INSTRUCTION_SETS, InstructionSet
from .options import NO_TEMPLATE, DataOptions, template_text
from .rendering import Template, Unfit
from .sources import ENVIRONMENT, commit_of
from .user_files import read_table


@dataclass(frozen=True)
class AnswerDataset:
    """Examples with answers, as tokens; for `data.federated` what `sources.TextDataset` is for texts.

    Attributes:
        source: where it was read from.
        read: what was read from where, a sentence for each file or source.
        notes: what the reader has to be told about it: a sentence each.
        max_length: tokens that examples were cut to.
        cuts: what became of the examples, by part.
    """

    train: AnswerSplit
    test: AnswerSplit
    source: str
    read: tuple[str, ...]
    notes: tuple[str, ...]
    max_length: int
    cuts: dict[str, Cuts]

    label_names = None
    pair = False
    metric = None


def load(options: DataOptions, encoder: Encoder, key: Key) -> AnswerDataset:
    """The data set that `options` names.

    A file is read by its extension. A set is looked for in `data.root`, else in the folder $FIBECFED_DATA, then on the hub.

    Args:
        key: decides which examples of one file without `data.test_path` become the test set.

    Raises:
        UserError: anything about the files or the set that the user can fix.
    """
    if options.path is not None:
        return _own_files(options, encoder, expanded(options.path), key)
    found = find_set(str(options.task))
    paths = find_files(options)
    options = _of_set(options, found)
    if paths is None:
        return _hub(found, options, encoder)
    train, test = (_read(path, options, encoder) for path in paths)
    return _dataset(encoder, str(paths[0].parent), train, test)


def find_files(options: DataOptions) -> tuple[Path, Path] | None:
    """The training and test file of a set; None where it is to come from the hub.

    Raises:
        UserError: they are nowhere, or there is no such set.
    """
    found = find_set(str(options.task))
    environment = os.environ.get(ENVIRONMENT)
    if options.root is not None:
        root, origin = expanded(options.root), f"`data.root` = {options.root!r}"
    elif environment and not Path(environment).is_dir():
        raise UserError(f"${ENVIRONMENT} = {environment!r} is not a folder. Expected one with {found.name}/train.parquet; set or unset it.")
    elif environment and (found.hub is None or (Path(environment) / found.name / "train.parquet").is_file()):
        root, origin = Path(environment), f"${ENVIRONMENT} = {environment!r}"
    elif found.hub is None:
        raise UserError(f"data.task = {found.name!r}: {_by_hand(found)}; it is on no hub in this form")
    else:
        return None
    train, test = (root / found.name / f"{part}.parquet" for part in ("train", "test"))
    for path in (train, test):
        if not path.is_file():
            raise UserError(f"{path}: the file does not exist. Expected it in {origin}; {_by_hand(found)}")
    return train, test


def made_up_answers(options: DataOptions, encoder: Encoder, different: int) -> AnswerDataset:
    """So many examples as long as they may be, for estimates where the data lie elsewhere; all but a short prompt is answer.

    Raises:
        UserError: what stands before an answer leaves no room for it.
    """
    prompt, answer = "data " * (encoder.max_length // 16), "data " * encoder.max_length
    system = () if options.system is None else (Message("system", options.system),)
    turns = (*system, Message("user", prompt), Message("assistant", answer))
    example = Joined(prompt, answer) if encoder.template is None else Conversation(turns, (len(turns) - 1,))
    split = encoder.encode(Rows("examples as long as data.max_length", [example] * different, None, range(different), ""))
    return AnswerDataset(split, split, "synthetic", (), (), encoder.max_length, {})


def encoder_of(
    options: DataOptions, tokenizer: Any, stop_ids: tuple[int, ...], max_length: int, *, weighs_tokens: bool, bare: bool
) -> Encoder:
    """How the examples that `options` names become tokens; the rest as `Encoder` has it.

    Raises:
        UserError: there is no chat template.
    """
    template = None
    if options.chat_template != NO_TEMPLATE:
        try:
            template = Template(tokenizer, None if options.chat_template is None else template_text(options.chat_template))
        except Unfit as error:
            raise UserError(f"data.chat_template: {error}") from None
    return Encoder(tokenizer, template, stop_ids, max_length, options.loss_on == "all", weighs_tokens, bare)


def find_set(name: str) -> InstructionSet:
    """The row of `INSTRUCTION_SETS` called `name`.

    Raises:
        UserError: there is none; names the nearest one.
    """
    if name not in INSTRUCTION_SETS:
        near = difflib.get_close_matches(name, INSTRUCTION_SETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(INSTRUCTION_SETS)
        raise UserError(f"data.task: got {name!r}, expected one of {listed}.{hint} For your own file set `data.path` instead.")
    return INSTRUCTION_SETS[name]


def _of_set(options: DataOptions, found: InstructionSet) -> DataOptions:
    """The options under which the files of a set are read."""
    names = {
        name: DataOptions.model_fields[name].default for name in ("prompt_column", "completion_column", "messages_column", "text_column")
    }
    return options.model_copy(update={**names, "shape": found.shape, "system_column": "system" if found.system else None})


def _own_files(options: DataOptions, encoder: Encoder, path: Path, key: Key) -> AnswerDataset:
    rows = _read(path, options, encoder)
    if options.test_path is not None:
        return _dataset(encoder, str(path), rows, _read(expanded(options.test_path), options, encoder))
    split = encoder.encode(rows)
    rest, cut = stratified_cut(split.strata, round(options.test_fraction * len(split)), key.fold("test"), split.clients)
    if not len(cut):
        keep = "" if split.clients is None else f" and keep each of {len(set(split.clients)):,} clients in train"
        raise UserError(
            f"{path}: {len(split):,} examples are too few to hold out {options.test_fraction:g} of them as a test set{keep}; add rows, "
            "raise `data.test_fraction` or set `data.test_path`"
        )
    parts = split.take(rest), split.take(cut)
    notes = (*rows.notes, *split.notes)
    return AnswerDataset(*parts, str(path), (rows.about,), notes, encoder.max_length, {"all": split.cuts})


def _dataset(encoder: Encoder, source: str, train: Rows, test: Rows, read: Sequence[str] = ()) -> AnswerDataset:
    first, second = encoder.encode(train), encoder.encode(test)
    notes = (*train.notes, *first.notes, *test.notes, *second.notes)
    about = (*read, train.about, test.about)
    return AnswerDataset(first, second, source, about, notes, encoder.max_length, {"train": first.cuts, "test": second.cuts})


def _read(path: Path, options: DataOptions, encoder: Encoder) -> Rows:
    table = read_table(path, columns_of(options))
    joined = encoder.template is None
    return rows_of(str(path), options, table.names, table.values, joined=joined, about=table.about, notes=table.notes)


def _by_hand(found: InstructionSet) -> str:
    columns = "messages" if found.shape == "messages" else "prompt, completion"
    return (
        f"set `data.root` or ${ENVIRONMENT} to a folder with {found.name}/train.parquet and {found.name}/test.parquet (columns {columns}, "
        "system, client)"
    )


def _hub(found: InstructionSet, options: DataOptions, encoder: Encoder) -> AnswerDataset:
    import datasets

    prompt, completion = found.hub_columns
    options = options.model_copy(update={"prompt_column": prompt, "completion_column": completion, "system_column": None})
    parts, revision = [], options.revision
    for split in ("train", "test"):
        try:
            rows: Any = datasets.load_dataset(str(found.hub), found.hub_config, split=split, revision=options.revision)
        except Exception as error:  # whatever the client of the hub raises: no network, offline mode, a data set that moved
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"data.task = {found.name!r}: could not load {found.hub} from the hub ({reason}). {_by_hand(found)}, or connect this "
                "machine to the network and unset HF_HUB_OFFLINE."
            ) from error
        revision = commit_of(rows) or revision
        table = {name: list(rows[name]) for name in columns_of(options) if name in rows.column_names}
        source = f"{found.hub} ({split})"
        parts.append(rows_of(source, options, list(rows.column_names), table, joined=encoder.template is None))
    origin = f"hub: {found.hub}" + ("" if revision is None else f" at revision {revision}")
    return _dataset(encoder, origin, *parts, read=(origin,))
