"""The table [privacy] of a configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..core.options import Options, entries_of
from .gaussian import MOST_NOISE

LEAST_NOISE = 1e-3
MOST_EPSILON = 1e6
"""Beyond these nothing is protected."""


HELPER = "helper"
"""The helper's name: of its key under [privacy.keys], and of its SuperNode."""


def _named(value: Any) -> Any:
    """`true` and `false` as earlier versions had them."""
    return {True: "pairs", False: "none"}[value] if isinstance(value, bool) else value


SecureAggregation = Annotated[Literal["none", "helper", "pairs"], BeforeValidator(_named)]

Keys = Annotated[tuple[str, ...], BeforeValidator(entries_of)]
"""Names with a text each: a table, or its entries as strings "name = text"."""


class PrivacyOptions(Options):
    """Differential privacy: what it protects and how much noise is added; docs/privacy.md."""

    unit: Literal["none", "client", "example"] = Field(
        default="none",
        description='Whose data is protected: "none"; "client": all that a client holds, from everybody but the server; "example": each '
        "training example, from everybody but its client, the server included.",
    )
    unit_column: str | None = Field(
        default=None,
        description='With `unit` = "example": the column of `data.path` that names the person an example is of. All training '
        "examples of one person at a client then count as one: an epoch uses one of them.",
    )
    noise_multiplier: float | None = Field(
        default=None,
        ge=LEAST_NOISE,
        le=MOST_NOISE,
        description="z, standard deviation of the noise on a sum, of updates or of a step's gradients, over the clip norm. Either this or "
        "`epsilon`.",
    )
    epsilon: float | None = Field(
        default=None, gt=0, le=MOST_EPSILON, description="The guarantee after all rounds, from which the noise multiplier is computed."
    )
    clip_norm: float = Field(
        default=0.1,
        gt=1e-30,
        lt=1e30,
        description="C, L2 norm to which each client's update is scaled down (over all shared tensors), or each example's gradient (over "
        "all trained ones).",
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description='"fixed": C is clip_norm in every round. "adaptive": it begins there and follows the quantile clip_quantile of the '
        "updates' norms, by a count that is noised with the sum; for cohorts of 50 and more.",
    )
    clip_quantile: float = Field(
        default=0.5, gt=0, lt=1, description='With clipping = "adaptive": the share of updates that is to be within C and so not clipped.'
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="Probability with which the guarantee may fail; at most 1 over the number of clients, or of training examples of one.",
    )
    max_epsilon: float | None = Field(
        default=None,
        gt=0,
        le=MOST_EPSILON,
        description="The budget: a run ends before the round that would pass it. Default: `epsilon`, if that is set.",
    )
    participation: Literal["cyclic"] = Field(
        default="cyclic",
        description="Who takes part in a round: every client once in K/m rounds, in an order drawn from the seed.",
    )
    evaluation: Literal["off", "noised", "exact"] = Field(
        default="off",
        description='"off": nothing is scored. "noised": shares of right and wrong answers with noise, each evaluation charged to all '
        'clients that it asks like a round. "exact": scores and counts are computed as without privacy, outside of the guarantee: for '
        "experiments on data that need no protection.",
    )

    secure_aggregation: SecureAggregation = Field(
        default="none",
        description='"pairs": the server gets nothing of the clients\' updates but their sum; each is masked, and the clients take the '
        'masks off the sum together. "helper": a further process takes them off, which must not work with the server. In a simulation the '
        "same sum is computed without masks.",
    )
    range: float = Field(
        default=0.5,
        gt=1e-30,
        lt=1e30,
        description="With secure_aggregation: the largest change of a number that is not cut off; 24 to 30 bits are spread over it.",
    )
    min_clients: int = Field(
        default=4, ge=2, description="With secure_aggregation: clients that a sum must be of; smaller cohorts are rejected."
    )
    colluders: int = Field(
        default=1, ge=0, description="With secure_aggregation: clients of a cohort that may work with the server and learn no more by it."
    )
    dropouts: int = Field(
        default=1, ge=0, description="With secure_aggregation: clients that a round may lose; with more it fails, and nothing is revealed."
    )

    keys: Keys = Field(
        default=(),
        description="With secure_aggregation across machines: the public key of every client, as `fibecfed client --show-key` prints it, "
        "and of the helper, as `fibecfed helper --show-key` does: a table of names with 64 hexadecimal digits each. Copied by hand, so "
        "that no server can put its own in their place.",
    )

    @property
    def summed(self) -> bool:
        """Whether the server gets sums alone."""
        return _named(self.secure_aggregation) != "none"  # a table with another mistake is looked at as it was written

    @property
    def helped(self) -> bool:
        """Whether a helper takes the masks off."""
        return self.secure_aggregation == "helper"

    @property
    def keys_by_name(self) -> dict[str, str]:
        """Every entry of `keys`."""
        return {name: key for entry in self.keys for name, _, key in [entry.rpartition(" = ")]}

    @property
    def pinned(self) -> dict[str, str]:
        """Name of a client -> its public key, 64 hexadecimal digits."""
        return {name: key for name, key in self.keys_by_name.items() if not (self.helped and name == HELPER)}

    @property
    def helper_key(self) -> str | None:
        """The helper's public key; None: there is none."""
        return self.keys_by_name.get(HELPER) if self.helped else None

    @property
    def budget(self) -> float | None:
        """The epsilon that must not be passed; None: the planned rounds alone are the limit."""
        return self.epsilon if self.max_epsilon is None else self.max_epsilon
