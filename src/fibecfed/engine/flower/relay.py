"""The Flower ClientApp: hands a message's bytes to the resident client over its local socket, and the answer back. Nothing else.

Flower starts this as a new process for every message; it must not load torch, let alone a model.
"""

from __future__ import annotations

import secrets

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

from ...core.files import expanded
from .plain_http import reject_plain_http
from .sockets import SocketError, ask

STYPE = "fibecfed.2"
"""How Flower's container of our bytes says what they are."""

RECORD, OPTIONS = "fibecfed", "fibecfed-options"

_LONGEST_S = 1e7
"""Longest timeout; sockets take no larger one everywhere."""

_MARK, _PART = 16, 4 * 2**20
"""Bytes of a mark, and at most of what follows one: Flower itself cuts an Array into pieces of 5 * 2**20."""

app = ClientApp()


def content(blob: bytes, **options: str | float) -> RecordDict:
    """Bytes as the content of a Flower message, untouched: Arrays of our own type, which nothing converts.

    Flower stores parts of messages by the hash of their bytes, and what two messages share may be deleted with the one at the moment at
    which the other is stored, which is then lost (flwr 1.41). So no two messages share anything: a newly drawn mark precedes the bytes of
    every part and lies beside the options.
    """
    mark = secrets.token_bytes(_MARK)
    parts = [blob[start : start + _PART] for start in range(0, len(blob), _PART)] or [b""]
    arrays = {f"{i:08}": Array(dtype="safetensors", shape=(len(part),), stype=STYPE, data=mark + part) for i, part in enumerate(parts)}
    return RecordDict({RECORD: ArrayRecord(arrays), OPTIONS: ConfigRecord({**options, "mark": mark.hex()})})


def blob_of(message: Message) -> bytes:
    """The bytes that `content` wrapped.

    Raises:
        ValueError: the message holds something else.
    """
    record = message.content.get(RECORD)
    arrays = [record[key] for key in sorted(record)] if isinstance(record, ArrayRecord) else []
    if not arrays or any(array.stype != STYPE or len(array.data) < _MARK for array in arrays):
        raise ValueError(f"got a message without bytes of type {STYPE!r}; use the same fibecfed on both sides")
    return b"".join(array.data[_MARK:] for array in arrays)


@app.train()
@app.evaluate()
@app.query()
def relay(message: Message, context: Context) -> Message:
    """The resident client's answer, or an `error` as a sentence."""
    try:
        reject_plain_http(context.node_config, "start the SuperNode with allow-plain-http=true in its --node-config")
        answer = content(ask(socket_path(context), blob_of(message), _timeout_s(message)))
    except (SocketError, ValueError) as error:
        answer = content(b"", error=str(error))
    return Message(answer, reply_to=message)


def _timeout_s(message: Message) -> float:
    options = message.content.get(OPTIONS)
    seconds = options.get("timeout_s") if isinstance(options, ConfigRecord) else None
    if not isinstance(seconds, float) or not 0 < seconds <= _LONGEST_S:
        raise ValueError(f"got {str(seconds)[:80]} as timeout_s, expected a number of seconds; use the same fibecfed on both sides")
    return seconds


def socket_path(context: Context) -> str:
    """Where the resident client listens: `socket` of the SuperNode's --node-config.

    In Flower's own simulation the nodes have numbers alone; there it is `socket` of the run configuration with {} for the number.
    """
    own = context.node_config.get("socket")
    if own is not None:
        return str(expanded(str(own)))
    pattern, number = context.run_config.get("socket"), context.node_config.get("partition-id")
    if pattern and number is not None:
        return str(expanded(str(pattern).format(number)))
    raise ValueError("the SuperNode does not know the client's socket; start it with --node-config 'socket=\"fibecfed.sock\"'")
