"""Updates that are not what they must be; run as a program, `fibecfed client` of a client that sends them, one kind a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from fibecfed.core.wire import decode, encode
from fibecfed.deploy import client
from fibecfed.engine.flower.envelope import Reply, Request, packed, unpacked
from fibecfed.engine.runtime import frame, unframe
from fibecfed.methods.fibecfed import LocalLayers


def _update(change: Callable[[LocalLayers], LocalLayers]) -> Callable[[bytes], bytes]:
    def changed(payload: bytes) -> bytes:
        message, work = unframe(payload)
        return frame(encode(change(decode(LocalLayers, message))), work)

    return changed


def _first(message: LocalLayers, value: torch.Tensor) -> LocalLayers:
    return replace(message, shared={**message.shared, min(message.shared): value})


BAD = {
    "truncated": lambda payload: payload[: len(payload) // 2],
    "oversized": lambda payload: payload + bytes(2**24),
    "of another version": lambda payload: payload.replace(b'\\"version\\":1', b'\\"version\\":9'),
    "with unknown names": _update(lambda m: replace(m, shared={f"x{name}": value for name, value in m.shared.items()})),
    "of wrong shapes": _update(lambda m: _first(m, torch.zeros(3, 3))),
    "with NaN": _update(lambda m: _first(m, torch.full_like(m.shared[min(m.shared)], float("nan")))),
    "with 1e30": _update(lambda m: _first(m, torch.full_like(m.shared[min(m.shared)], 1e30))),
    "of a million examples": _update(lambda m: replace(m, num_samples=1_000_000)),
}
"""Kind -> the payload of a FibecFed client's answer in the tuning phase, made bad."""


def spoiled(answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A resident's `answer`, honest but for the updates of the tuning phase: round i has the i-th kind."""

    def bad(blob: bytes) -> bytes:
        request, reply = decode(Request, blob), answer(blob)
        if request.action != "train" or request.phase != "tune":
            return reply
        kind = list(BAD)[request.index % len(BAD)]
        told = decode(Reply, reply)
        return encode(replace(told, payload=packed(BAD[kind](unpacked(told.payload)))))

    return bad


@dataclass(frozen=True)
class Spoiler:
    """A resident whose answers are spoiled."""

    honest: Any
    begun: Any = None
    ended: Any = None

    def answer(self, blob: bytes) -> bytes:
        return spoiled(replace(self.honest, begun=self.begun, ended=self.ended).answer)(blob)


def main() -> None:
    from fibecfed.cli import main as command_line

    honest: Any = client._resident

    client._resident = lambda *args: Spoiler(honest(*args))  # pyright: ignore[reportAttributeAccessIssue]
    command_line()


if __name__ == "__main__":
    main()
