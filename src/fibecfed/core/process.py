"""What is set for the whole process while something runs, and put back afterwards: the process may be somebody's notebook."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

import torch


@contextlib.contextmanager
def threads(number: int) -> Generator[None]:
    """Inside, torch computes with `number` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def environment(name: str, value: str, *, replace: bool = True) -> Generator[None]:
    """Inside, the environment variable `name` has this value; without `replace`, a value of the user's stays."""
    before = os.environ.get(name)
    if before is None or replace:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
