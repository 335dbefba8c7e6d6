"""A look at the data before a run: what is likely to spoil it, as sentences. No text is shown in them, only names and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .federated import FederatedData
from .names import listed, look_alike, shown
from .text import TableExamples

FEW_IN_A_CLASS, FEW_ON_A_CLIENT = 10, 8
"""[C] Fewer training examples than these are said. A client with fewer than 8 does not fill one batch of the default size."""
CUT_SHARE, COPIES_SHARE, UNKNOWN_SHARE = 0.05, 0.01, 0.02
"""[C] Shares of truncated texts, of copies and of unknown tokens from which on they are said."""

_PARTS = ("train", "validation", "test")
_MISSING = {"na", "n/a", "nan", "none", "null", "#n/a", "nil", "?", "-", "unknown"}


def warnings(data: FederatedData, limit: int | None = None) -> tuple[str, ...]:
    """What a user should know of data before training on them, a sentence each, the weightiest first; () where nothing is amiss.

    It works on all data of a simulation (`federate`) and on those of one site of a federation across machines (`federate_one`), whose
    sentences speak of this site. A server, which has no examples (`absent`), gets none. It takes one pass over the tokens.

    Args:
        limit: the longest input of the model, tokens; None where it has no limit.
    """
    if not len(data.train):
        return ()
    one_site = len(data.clients) == 1
    return (
        *data.notes,
        *_truncated(data, limit),
        *_copies(data),
        *_tokens(data),
        *_names(data),
        *_classes(data, one_site),
        *(_site(data) if one_site else _clients(data)),
    )


def _all_parts(data: FederatedData) -> list[TableExamples]:
    return [part for name in _PARTS if len(part := getattr(data, name))]


def _truncated(data: FederatedData, limit: int | None) -> Iterator[str]:
    parts = _all_parts(data)
    if any(part.table.whole_lengths is None for part in parts):
        return  # made of tokens: there was no text to cut
    lengths = torch.cat([part.whole_lengths for part in parts])
    cut = int((lengths > data.max_length).sum())
    if cut <= CUT_SHARE * len(lengths):
        return
    half, most, longest = quantiles(lengths)
    side = "end" if parts[0].table.cut_side == "right" else "beginning"
    found = (
        f"{cut:,} of {len(lengths):,} texts are longer than {data.max_length} tokens, and are truncated at the {side} "
        f"(length in tokens: median {half:,}, 95 % up to {most:,}, maximum {longest:,})"
    )
    wanted = -(-most // 8) * 8
    if limit is None or wanted <= limit:
        yield f"{found}; set data.max_length = {wanted}, which takes more time and memory"
        return
    beyond = int((lengths > limit).sum())
    too_long = f"{beyond:,} are longer than the {limit:,} tokens that this model can read; split them, or choose a model that reads more"
    yield f"{found}; {too_long}" if data.max_length >= limit else f"{found}; set data.max_length = {limit}, the model's limit; {too_long}"


def quantiles(lengths: Tensor) -> tuple[int, int, int]:
    """The length that half, 95 % and all of some texts do not exceed."""
    ordered = lengths.sort().values
    return tuple(int(ordered[-(-len(ordered) * percent // 100) - 1]) for percent in (50, 95, 100))  # pyright: ignore[reportReturnType]


def _copies(data: FederatedData) -> Iterator[str]:
    pool, test = data.train.table, data.test.table
    if pool.digests is None or test.digests is None:
        return
    texts, counts = pool.digests.unique(return_counts=True)
    copies = len(pool) - len(texts)
    if copies > COPIES_SHARE * len(pool):
        yield f"{copies:,} of {len(pool):,} training texts are duplicates of others; remove them, or they get more weight than the rest"
    both = torch.stack([pool.digests, pool.digests if pool.labels is None else pool.labels]).unique(dim=1)[0]
    under = both.unique(return_counts=True)[1]
    torn = set(both.unique()[under > 1].tolist())
    rows = sum(count for text, count in zip(texts.tolist(), counts.tolist(), strict=True) if text in torn)
    if rows > COPIES_SHARE * len(pool):
        yield f"{rows:,} training texts have duplicates with another label; correct the labels, since nothing can be learned from these"
    shared = int(torch.isin(test.digests[data.test.indices], texts).sum())
    if shared:
        yield (
            f"{shared:,} of {len(data.test):,} test texts are also in the training data; remove them there, or the scores are higher than "
            "on new texts"
        )


def _tokens(data: FederatedData) -> Iterator[str]:
    words = unknown = without = 0
    for table in {id(part.table): part.table for part in _all_parts(data)}.values():
        added = torch.isin(table.ids, table.special_ids) if table.segments is None else table.segments == 0
        words += int((~added).sum())
        if table.unknown_id is not None:
            unknown += int(((table.ids == table.unknown_id) & ~added).sum())
        before = torch.cat([torch.zeros(1, dtype=torch.int64), (~added).cumsum(0)])
        without += int((before[table.offsets].diff() == 0).sum())
    if words and unknown > UNKNOWN_SHARE * words:
        yield (
            f"{100 * unknown / words:.0f} % of the tokens are unknown to the model's tokenizer, which cannot tell them apart; "
            "choose a model for the language of these texts"
        )
    if without:
        yield f"{without:,} texts have no token but special ones, so there is nothing for the model to read; remove them"


def _names(data: FederatedData) -> Iterator[str]:
    counts = _counted(data)
    for what, names, key in (("classes", data.label_names or (), "label"), ("clients", data.clients, "client")):
        groups = look_alike(names)
        told = [" and ".join(map(_apart, group)) for group in groups[:5]]
        if told:
            more = f", and {len(groups) - 5:,} more" if len(groups) > 5 else ""
            yield f"{what} that look alike: {'; '.join(told)}{more}; write each the same way in every row if they are one {key}"
    missing = [name for name in counts if name.casefold() in _MISSING]
    if missing:
        each = ", ".join(f"{shown(name)} ({counts[name]:,} training examples)" for name in missing[:5])
        yield f"classes whose names look like missing values: {each}; remove their rows if the label is missing there"


def _apart(name: str) -> str:
    """A name so that it can be told from one that looks the same."""
    return shown(name) if name.isascii() else f"{shown(name)} ({name[:40].encode('unicode_escape').decode()})"


def _counted(data: FederatedData) -> dict[str, int]:
    """Class -> training examples, by the labels as they were read; {} where there are no classes."""
    if data.label_names is None:
        return {}
    return dict(zip(data.label_names, data.class_counts("train").sum(axis=0).tolist(), strict=True))


def _classes(data: FederatedData, one_site: bool) -> Iterator[str]:
    counts = _counted(data)
    none = [name for name, number in counts.items() if not number]
    few = {name: number for name, number in counts.items() if 0 < number < FEW_IN_A_CLASS}
    if none:
        yield f"no training example in {len(none):,} of {len(counts):,} classes{' at this site' if one_site else ''}: {listed(none)}"
    if few:
        yield f"fewer than {FEW_IN_A_CLASS} training examples in {len(few):,} of {len(counts):,} classes: {_with_counts(few)}"


def _site(data: FederatedData) -> Iterator[str]:
    present = [name for name, number in _counted(data).items() if number]
    if len(present) == 1:
        yield f"every training example has the class {shown(present[0])}"
    if len(data.train) < FEW_ON_A_CLIENT:
        yield f"there are only {len(data.train)} training examples"
    for part in ("validation", "test"):
        if not len(getattr(data, part)):
            yield f"there is no {part} example: this client's model gets no {part} score"


def _clients(data: FederatedData) -> Iterator[str]:
    counts = dict(zip(data.clients, data.partition.counts["train"], strict=True))
    of = f"of {len(counts):,} clients"
    few = {name: int(row.sum()) for name, row in counts.items() if row.sum() < FEW_ON_A_CLIENT}
    if few:
        yield f"fewer than {FEW_ON_A_CLIENT} training examples on {len(few):,} {of}: {_with_counts(few)}"
    alone = [name for name, row in counts.items() if data.label_names and (row > 0).sum() == 1]
    if alone:
        yield f"training examples of a single class on {len(alone):,} {of}: {listed(alone)}"
    empty = [name for name in data.clients if not len(data.partition.indices["test"][name])]
    if empty:
        yield f"no test example on {len(empty):,} {of}, whose own models get no score: {listed(empty)}"


def _with_counts(counts: dict[str, int]) -> str:
    names: Sequence[str] = sorted(counts, key=lambda name: (counts[name], name))
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(f"{shown(name)} ({counts[name]:,})" for name in names[:5]) + more
