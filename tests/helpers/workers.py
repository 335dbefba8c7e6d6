"""Workers that do what the folder of their job says instead of training; light, since each is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path


def _stopped(mark: Path, *_: object) -> None:
    mark.touch()
    os._exit(0)


def obedient(pipe: Connection) -> None:
    """`how.txt` in the parent folder of the job's folder: done, rejected, killed, killed-once, killed-at-N, brief or slow.

    The last is killed when N bytes of a long message are on their way.
    """
    try:
        while True:
            wanted = json.loads(pipe.recv_bytes())
            folder = Path(wanted["folder"])
            how = (folder.parent / "how.txt").read_text()
            with (folder.parent / "tries.txt").open("a") as tries:
                tries.write(f"{os.getpid()}\n")
            again = len((folder.parent / "tries.txt").read_text().splitlines()) > 1
            if how == "slow":
                signal.signal(signal.SIGTERM, partial(_stopped, folder.parent / "stopped.txt"))
            pipe.send_bytes(json.dumps({"kind": "round", "done": 1, "of": 2}).encode())
            if how == "killed" or (how == "killed-once" and not again):
                os.kill(os.getpid(), signal.SIGKILL)
            if how.startswith("killed-at-") and not again:
                text = json.dumps({"kind": "warning", "text": "x" * 2**20}).encode()
                sent = memoryview(struct.pack("!i", len(text)) + text)[: int(how.removeprefix("killed-at-"))]
                while sent:
                    sent = sent[os.write(pipe.fileno(), sent) :]
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "slow":
                time.sleep(60)
            if how == "brief":  # long enough that every worker gets one
                time.sleep(0.5)
            last = {
                "kind": "done",
                "summary": {
                    "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
                    "pid": os.getpid(),
                    "seconds": 1.0,
                    "evaluation": {"seconds": 0.0},
                },
            }
            if how == "refused":
                last = {"kind": "failed", "why": "refused", "reason": "no such backbone"}
            pipe.send_bytes(json.dumps(last).encode())
    except EOFError:
        os._exit(0)
