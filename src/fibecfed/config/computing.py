"""Which ways of computing clients do not go together: each rule gives a sentence that begins with the key to change."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..engine.options import FederationOptions, ResourceOptions
from ..methods.options import MethodOptions
from .text import show


def who_computes(federation: FederationOptions, resources: ResourceOptions, method: MethodOptions, device: str) -> list[str]:
    """Every contradiction, as sentences.

    Args:
        device: `training.device`.
    """
    return [
        *_workers(federation, resources),
        *_cohort_batch(federation, resources, method),
        *_devices(federation, resources, method, device),
    ]


def _devices(federation: FederationOptions, resources: ResourceOptions, method: MethodOptions, device: str) -> Iterator[str]:
    names = resources.devices
    if names is None:
        return
    got = f"resources.devices: got {show(names)}"
    kinds = {name.partition(":")[0] for name in names}
    if not names or not all(re.fullmatch(r"cpu|mps|cuda:\d+", name) for name in names):
        yield f'{got}, expected a list of devices such as ["cuda:0", "cuda:1"]; fix it, or remove it to compute on `training.device`'
        return
    if len(kinds) > 1 or len({name for name in names if name != "cpu"}) < len([name for name in names if name != "cpu"]):
        yield f"{got}, expected devices of one kind, each once: on another kind a client's numbers would be others; fix it"
    if device != "auto":
        yield f'{got} with `training.device` = "{device}", expected one of them alone; remove one'
    for key, used in (("resources.workers", resources.workers is not None), ("resources.cohort_batch", resources.cohort_batch > 1)):
        if used:
            yield f"{got} with `{key}`, but each device has a worker that computes one client at a time; remove one"
    if federation.partition == "machines":
        yield f'{got} with `federation.partition` = "machines", where each machine has a `training.device` of its own; remove it'
    if method.model_dump()["kind"] == "custom":
        yield f"{got} with a method given as an object, which other processes cannot be given; set `training.device` instead"


def _workers(federation: FederationOptions, resources: ResourceOptions) -> Iterator[str]:
    if federation.partition == "machines" and (resources.workers or 1) > 1:
        yield (
            f'resources.workers: got {resources.workers} with `federation.partition` = "machines", where each client computes on a machine '
            "of its own; remove it"
        )


def _cohort_batch(federation: FederationOptions, resources: ResourceOptions, method: MethodOptions) -> Iterator[str]:
    size = resources.cohort_batch
    if size == 1:
        return
    if federation.partition == "machines":
        yield (
            f'resources.cohort_batch: got {size} with `federation.partition` = "machines", where each client computes on a machine of its '
            "own; set it to 1"
        )
    if (resources.workers or 1) > 1:
        yield (
            f"resources.cohort_batch: got {size} with `resources.workers` = {resources.workers}; passes of clients are joined in one "
            "process: set one of them to 1"
        )
    if federation.models_time:
        yield (
            f"resources.cohort_batch: got {size} with virtual time (`federation.schedule`, `federation.speeds` or `federation.links`), "
            "where clients are computed one by one as they are asked; set it to 1"
        )
    if not method.same_shapes:
        yield f'resources.cohort_batch: got {size} with `method.kind` = "{method.kind}", whose clients differ in rank; set it to 1'
