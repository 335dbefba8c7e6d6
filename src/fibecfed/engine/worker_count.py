"""How many processes a run may compute its clients in."""

from __future__ import annotations

import sys

import torch

from ..core.errors import UserError
from ..core.process import cores
from .options import ResourceOptions


def most_workers(resources: ResourceOptions, device: torch.device, clients: int, *, by_itself: bool = True) -> int:
    """How many processes a run may compute its clients in; 1: in its own alone.

    Args:
        device: what it computes on.
        clients: how many there are.
        by_itself: whether several may be used that were not asked for.

    Raises:
        UserError: more were asked for than this machine can serve.
    """
    if resources.devices is not None:
        return len(resources.devices)
    asked, found = resources.workers, cores() // resources.threads
    able = sys.platform == "linux" and device.type == "cpu"
    if asked is None:
        return max(1, min(found, clients)) if able and by_itself else 1
    if asked > 1 and not able:
        where = f'`training.device` = "{device.type}"' if sys.platform == "linux" else "this system"
        why = "whose memory and time processes would share" if sys.platform == "linux" else "where processes cannot be forked safely"
        raise UserError(f"resources.workers: got {asked}, expected 1 on {where}, {why}; set it to 1, with the same results")
    if asked > max(1, found):
        each = f" over `resources.threads` = {resources.threads}" if resources.threads > 1 else ""
        raise UserError(
            f"resources.workers: got {asked}, expected at most {max(1, found)}, the CPU cores that this process may use{each}; lower it, "
            "with the same results"
        )
    return asked
