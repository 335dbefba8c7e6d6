"""The tables [federation], [evaluation] and [resources] of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.options import Options


class FederationOptions(Options):
    """Who holds the data, and how often they are asked."""

    clients: int = Field(default=50, ge=1, description='K. With partition = "column" it is read from the data.')
    clients_per_round: int = Field(default=5, ge=1, description="m, drawn anew each round.")
    rounds: int = Field(default=40, ge=1, description="T, rounds of tuning.")
    partition: Literal["dirichlet", "iid", "shards", "column"] = Field(
        default="dirichlet", description="How examples are spread over the clients."
    )
    alpha: float = Field(default=1.0, gt=0, description="Concentration of the class priors of a client; small = one-sided clients.")
    size_alpha: float = Field(default=5.0, gt=0, description="Concentration of the clients' sizes.")
    shards_per_client: int = Field(
        default=2, ge=1, description='For partition = "shards": runs of examples sorted by label that a client gets.'
    )
    on_failure: Literal["stop", "drop"] = Field(
        default="stop", description="A client whose loss or update is not finite stops the run, or is left out of the round."
    )


class EvaluationOptions(Options):
    """When and how the models are scored."""

    every: int = Field(
        default=5, ge=1, description="Rounds between evaluations; there is one before the first and one after the last in any case."
    )
    batch_size: int = Field(default=64, ge=1, description="Examples a forward pass.")


class ResourceOptions(Options):
    """What the run may take of the machine."""

    threads: int = Field(default=1, ge=1, description="Processor threads a process.")
    client_memory_mb: int = Field(default=1024, ge=1, description="Memory for client states; beyond it they lie on disk.")
    checkpoint_every: int = Field(default=1, ge=1, description="Rounds between checkpoints.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Checkpoints kept; older ones are removed.")
