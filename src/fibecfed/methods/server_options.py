"""The table [method.server]."""

from __future__ import annotations

from pydantic import Field

from ..core.options import Options


class ServerOptions(Options):
    """`method.server`: the server optimiser of the aggregations fedavgm, fedadam and fedyogi."""

    learning_rate: float | None = Field(
        default=None, gt=0, description="[C] eta, server learning rate. Default: 1 with fedavgm, 0.01 with fedadam and fedyogi."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] beta_1, server momentum.")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="[S] beta_2 of fedadam and fedyogi, for the second moment.")
    tau: float = Field(default=1e-3, gt=0, description="[S] tau of fedadam and fedyogi: the larger, the less adaptive their steps.")
