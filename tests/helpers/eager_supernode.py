"""Run as a program, Flower's SuperNode that asks for messages every 0.2 s; of itself it rests for 3 s after each question."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

REST_S = 0.2


def main() -> None:
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    assert start_client_internal.time is time
    eager = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, REST_S))})
    start_client_internal.time = eager  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(flower_supernode())


if __name__ == "__main__":
    main()
