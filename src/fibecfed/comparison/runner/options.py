"""The tables of a comparison's file. Light to import."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Lt
from pydantic import Field

from ...core.options import Options


class TuningOptions(Options):
    """The table [tuning]: the learning rate that each method is compared at, found by the same number of trials for all."""

    trials: int = Field(
        default=0,
        ge=0,
        description="Learning rates tried per method, centred on that of its own paper; odd. 0 = no search: all use the rate of [base].",
    )
    factor: float = Field(default=3.0, gt=1, description="Ratio of one learning rate to the next lower one.")
    tasks: tuple[str, ...] = Field(
        default=("sst2", "rte"), description="A learning rate is scored by the mean over these tasks' validation sets."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the trials.")
    extend: bool = Field(default=True, description="If the best rate is the lowest or highest, try one more beyond it.")


class WorkerOptions(Options):
    """The table [resources]: what the comparison may take of the machine."""

    teraflops: float | None = Field(
        default=None,
        gt=0,
        description="Computing speed of the machine that the runs are for, 10^12 operations per second; 100 is a third of an A100's peak. "
        "Default: `fibecfed check` measures this machine.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Worker processes, each with base.resources.threads. Default: one per core, or one per GPU if the runs use GPUs.",
    )
    devices: tuple[str, ...] | None = Field(
        default=None,
        description='GPUs that the runs are made on, such as ["cuda:0", "cuda:2"], a worker process each. Default: all that torch sees, '
        "where the runs use GPUs.",
    )


class ComparisonOptions(Options):
    """A comparison: every method on every task with every seed, under the same conditions."""

    methods: tuple[str, ...] = Field(description='Names of `fibecfed list methods` or of [method.<name>] tables, or "all".')
    tasks: tuple[str, ...] = Field(description='Names of `fibecfed list tasks` or of [task.<name>] tables, or "all".')
    seeds: tuple[Annotated[int, Ge(0), Lt(2**63)], ...] = Field(default=(0,), description="Each method runs on each task once per seed.")
    base: dict[str, Any] = Field(default={}, description="Configuration that all runs share.")
    task: dict[str, dict[str, Any]] = Field(default={}, description="[task.<name>]: overrides [base] in the runs on that task.")
    method: dict[str, dict[str, Any]] = Field(default={}, description="[method.<name>]: overrides both in the runs of that method.")
    architecture: dict[str, dict[str, Any]] = Field(
        default={},
        description="[architecture.<model>]: a model's configuration, from which `fibecfed check` estimates costs without its weights.",
    )
    tuning: TuningOptions = TuningOptions()
    resources: WorkerOptions = WorkerOptions()

    def kind(self, method: str) -> str:
        """`method.kind` of a method's runs: its name, unless its table says another."""
        return self.method.get(method, {}).get("method", {}).get("kind", method)
