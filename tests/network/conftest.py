"""A federation of three sites in network namespaces, started once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from namespaces import why_not

ROUNDS = 21
TIMEOUT_S = 40


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("flwr", reason="needs Flower: make test-network")
    if reason := why_not():
        pytest.skip(reason)
    from sites import Sites
    from tiny_federation import NAMES, make_tiny

    here = Sites(tmp_path_factory.mktemp("n"))
    try:
        make_tiny(here.folder, every=99, here=here, rank=256, timeout_s=TIMEOUT_S, rounds=ROUNDS, clients_per_round=3)
        here.link()
        for name in NAMES:
            here.key(name)
            here.register(name)
        here.clients()
        yield here
    finally:
        here.close()
