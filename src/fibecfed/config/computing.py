"""Which ways of computing clients do not go together: each rule gives a sentence that begins with the key to change."""

from __future__ import annotations

from collections.abc import Iterator

from ..engine.options import FederationOptions, ResourceOptions
from ..methods.options import MethodOptions


def who_computes(federation: FederationOptions, resources: ResourceOptions, method: MethodOptions) -> list[str]:
    """Every contradiction, as sentences."""
    return [*_workers(federation, resources), *_cohort_batch(federation, resources, method)]


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
