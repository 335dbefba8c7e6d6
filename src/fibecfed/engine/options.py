"""The tables [federation], [evaluation] and [resources] of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.options import Options

CLIENT_NAME = r"[\w.@-]{1,64}"
"""What the name of a client on another machine must match."""

EXPECTED_NAME = "expected at most 64 letters, digits, `_`, `-`, `.` and `@`"


class FederationOptions(Options):
    """Who holds the data, and how often they are asked."""

    clients: int = Field(default=50, ge=1, description='K. With partition = "column" it is read from the data.')
    client_names: tuple[str, ...] | None = Field(
        default=None,
        description='With partition = "machines": the names of the clients. Without it: those of the first K machines that answer.',
    )
    clients_per_round: int = Field(default=5, ge=1, description="m, drawn anew each round.")
    rounds: int = Field(default=40, ge=1, description="T, rounds of tuning.")
    partition: Literal["dirichlet", "iid", "shards", "column", "machines"] = Field(
        default="dirichlet", description='How examples are spread over the clients; "machines": each client is a machine with its own data.'
    )
    alpha: float = Field(default=1.0, gt=0, description="Concentration of the class priors of a client; small = one-sided clients.")
    size_alpha: float = Field(default=5.0, gt=0, description="Concentration of the clients' sizes.")
    shards_per_client: int = Field(
        default=2, ge=1, description='For partition = "shards": runs of examples sorted by label that a client gets.'
    )
    on_failure: Literal["stop", "drop"] = Field(
        default="stop",
        description="A client that fails, is late or sends an update that is refused stops the run, or is left out of the round.",
    )
    quorum: float = Field(
        default=0.0, ge=0, le=1, description="Share of the clients asked whose answers a round needs; 0 = one client's answer will do."
    )
    round_attempts: int = Field(
        default=1, ge=1, description="Cohorts that a round may ask, one after the other, until one reaches the quorum; then the run stops."
    )
    round_timeout_s: float = Field(
        default=0.0,
        ge=0,
        description="Seconds after which a client is late, in a round or an evaluation; 0 = no limit. Between machines only.",
    )
    exclude_after: int = Field(
        default=0,
        ge=0,
        description="Refused updates in a row after which a client takes no part in the rest of the run; 0 = never. "
        "Its own state goes on from them: nothing tells it.",
    )
    max_samples: int = Field(
        default=0, ge=0, description="Training examples that a client may say it has, or its update is refused; 0 = no limit."
    )
    max_update_norm: float = Field(
        default=0.0,
        ge=0,
        description="L2 norm that the difference between the tensors a client was sent and those it sends back may have, "
        "or its update is refused; 0 = no limit.",
    )


class EvaluationOptions(Options):
    """When and how the models are scored."""

    every: int = Field(
        default=5, ge=1, description="Rounds between evaluations; there is one before the first and one after the last in any case."
    )
    batch_size: int = Field(default=64, ge=1, description="Examples a forward pass.")


class ResourceOptions(Options):
    """What the run may take of the machine."""

    threads: int = Field(default=1, ge=1, le=1024, description="Processor threads a process.")
    client_memory_mb: int = Field(default=1024, ge=1, description="Memory for client states; beyond it they lie on disk.")
    checkpoint_every: int = Field(default=1, ge=1, description="Rounds between checkpoints.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Checkpoints kept; older ones are removed.")
