"""Text on its way to a terminal."""

from __future__ import annotations


def escaped(text: str) -> str:
    r"""A text in which what could steer a terminal or change the order of its letters is written out; line breaks stay.

    Names, errors and values in it may come from files and from other machines.

    >>> print(escaped("client \x1b[2J\u202eevil\nis late"))
    client \x1b[2J\u202eevil
    is late
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    r"""As `escaped`, with line breaks written out too: one line of a log, whatever a name in it holds.

    >>> print(one_line("client a\n2026-01-01 INFO all is well"))
    client a\n2026-01-01 INFO all is well
    """
    return escaped(text).replace("\n", "\\n")
