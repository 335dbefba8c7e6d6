"""The Flower ClientApp: hands a message's bytes to the resident client over its local socket, and the answer back. Nothing else.

Flower starts this as a new process for every message; it must not load torch, let alone a model.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

from .plain_http import refuse_plain_http
from .sockets import SocketError, ask

STYPE = "fibecfed.1"
"""How Flower's container of our bytes says what they are."""

RECORD, OPTIONS = "fibecfed", "fibecfed-options"

app = ClientApp()


def content(blob: bytes, **options: str | float) -> RecordDict:
    """Bytes as the content of a Flower message, untouched: an Array of our own type, which nothing converts."""
    array = Array(dtype="safetensors", shape=(len(blob),), stype=STYPE, data=blob)
    return RecordDict({RECORD: ArrayRecord({RECORD: array}), OPTIONS: ConfigRecord(dict(options))})


def blob_of(message: Message) -> bytes:
    """The bytes that `content` wrapped.

    Raises:
        ValueError: the message holds something else.
    """
    record = message.content.get(RECORD)
    array = record.get(RECORD) if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != STYPE:
        raise ValueError(f"got a message without bytes of type {STYPE!r}; use the same fibecfed on both sides")
    return array.data


@app.train()
@app.evaluate()
@app.query()
def relay(message: Message, context: Context) -> Message:
    """The resident client's answer, or an `error` as a sentence."""
    try:
        refuse_plain_http(bool(context.run_config.get("allow-plain-http", False)))
        timeout_s = float(message.content[OPTIONS]["timeout_s"])  # pyright: ignore[reportArgumentType, reportIndexIssue, reportCallIssue]
        answer = content(ask(socket_path(context), blob_of(message), timeout_s))
    except (SocketError, ValueError, KeyError) as error:
        answer = content(b"", error=str(error))
    return Message(answer, reply_to=message)


def socket_path(context: Context) -> str:
    """Where the resident client listens: `socket` of the SuperNode's --node-config.

    In Flower's own simulation the nodes have numbers alone; there it is `socket` of the run configuration with {} for the number.
    """
    own = context.node_config.get("socket")
    if own is not None:
        return str(own)
    pattern, number = context.run_config.get("socket"), context.node_config.get("partition-id")
    if pattern and number is not None:
        return str(pattern).format(number)
    raise ValueError("the SuperNode does not know the client's socket; start it with --node-config 'socket=\"fibecfed.sock\"'")
