"""What a resident process makes of a request: its reply, whatever came in and whatever went wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from ...core.wire import WireError, decode, encode
from ...secure.signed import Misled
from ..failures import printable
from ..runtime import NoAnswer
from .envelope import Reply, Request, packed

RUN = re.compile(r"[0-9a-f]{16}")
"""Name of a run; it becomes the name of a folder at a client."""

Outcome: TypeAlias = tuple[str, str, bytes]
"""Status, reason and payload of a reply."""


def reply_to(
    blob: bytes,
    name: str,
    handle: Callable[[Request], Outcome],
    say: Callable[[str], None],
    begun: Callable[[Request], None],
    ended: Callable[[Request, str, int, int], None],
    told: Callable[[str, str], str] = lambda status, reason: reason,
) -> bytes:
    """The bytes of a `Reply` to those of a `Request`.

    Args:
        name: of the process.
        say, begun, ended: as of `resident.Resident`.
        told: of a status and its reason, what the server gets of the latter.
    """
    try:
        request = decode(Request, blob)
    except WireError as error:
        return encode(Reply("refused", str(error), "", "", name, 0, packed(b"")))
    begun(request)
    status, reason, payload = handle(request)
    where = f"{request.phase[:40]} round {request.index}: " if request.phase else ""
    say(printable(f"{request.action[:40]}: {where}{status}" + (f" ({reason})" if reason else "")))
    reply = encode(Reply(status, told(status, reason), request.action, request.run, name, request.number, packed(payload)))
    ended(request, status, len(blob), len(reply))
    return reply


def of_no_run(request: Request) -> Outcome | None:
    """Whether a request is of no run that can be; None: it is of one."""
    if RUN.fullmatch(request.run):
        return None
    return "refused", f"got {request.run[:40]!r} as the name of a run, expected 16 hexadecimal digits", b""


def not_for(request: Request, name: str) -> Outcome | None:
    """Whether a request is for another process; None: it is for this one, or for whoever is here."""
    if request.action != "hello" and request.client != name:
        return "refused", f"the request is for {request.client[:80]!r}, and this is {name!r}", b""
    return None


def outcome_of(work: Callable[[], Outcome]) -> Outcome:
    """What work ends in; no failure ends the process, nor is it hidden from the server."""
    try:
        return work()
    except Misled as error:
        return "refused", str(error), b""
    except (NoAnswer, WireError) as error:
        return "failed", str(error), b""
    except Exception as error:  # a bug or a full disk here
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", b""
