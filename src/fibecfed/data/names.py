"""Names that people typed: classes, clients, columns. How they are made alike, compared, and shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
"""Characters of no width. Inside a word some scripts and emoji need them; at its ends they are left over from a copy."""
_AT_THE_ENDS = re.compile(rf"^[\s{_INVISIBLE}]+|[\s{_INVISIBLE}]+$")
_INSIDE = re.compile(rf"[{_INVISIBLE}]+")
_BETWEEN_WORDS = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
_PLAIN = re.compile(r"[^\s'\",]+")

_QUOTES = " \t\"'`"

LONGEST = 80
"""Characters of a value that a message shows: values may be texts that are not to leave their owner."""


def canonical(name: str) -> str:
    r"""A name as it is used: composed Unicode (NFC), without spaces and characters of no width at its ends.

    >>> canonical(" cafe\u0301\u200b "), canonical("two words")
    ('café', 'two words')
    """
    if name.isascii():
        return name.strip()
    return _AT_THE_ENDS.sub("", unicodedata.normalize("NFC", name))


def look_alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of different names that a reader takes for one: they differ in case, spaces, hyphens, underscores, quotation marks around
    them or in how Unicode writes them. Sorted.

    >>> look_alike(["Positive", "positive", "neg", "POSITIVE "])
    [['POSITIVE ', 'Positive', 'positive']]
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        alike = _INSIDE.sub("", unicodedata.normalize("NFKC", name)).replace("_", " ")
        alike = _BETWEEN_WORDS.sub(" ", alike).strip(_QUOTES).casefold() or name
        groups.setdefault(alike, set()).add(name)
    return [sorted(group) for _, group in sorted(groups.items()) if len(group) > 1]


def shown(value: Any) -> str:
    r"""A value for a message: in quotes, characters that cannot be seen as escapes, cut after `LONGEST` characters.

    >>> shown("a\u00a0b"), shown("x" * 100) == repr("x" * 80)[:-1] + "...'"
    ("'a\\xa0b'", True)
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST else repr(value[:LONGEST])[:-1] + "...'"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def plain(name: str) -> str:
    """A name in a list of names: in quotes only where a reader could mistake where it begins or ends, or what it is made of."""
    return name if _PLAIN.fullmatch(name) and name.isprintable() and len(name) <= LONGEST else shown(name)


def listed(values: Iterable[Any], most: int = 5) -> str:
    """The first values of a list for a message, and how many more there are."""
    every = list(values)
    text = ", ".join(map(shown, every[:most]))
    return text if len(every) <= most else f"{text} and {len(every) - most:,} more"
