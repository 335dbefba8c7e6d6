"""Random moments that a failed test can be repeated with."""

from __future__ import annotations

import os
import random

VARIABLE = "FIBECFED_TEST_SEED"


def drawn() -> random.Random:
    """Another draw in each run of the tests; its seed is printed, which pytest shows where a test fails.

    What the seed decides is when a process is asked to die; how far it is by then, the machine decides.
    """
    seed = int(os.environ.get(VARIABLE) or random.SystemRandom().randrange(2**32))
    print(f"repeat with {VARIABLE}={seed}")
    return random.Random(seed)
