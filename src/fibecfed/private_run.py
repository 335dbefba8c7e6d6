"""A run that is private for clients or for examples: its ledger, when it ends, and what its summary says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .build import Prepared
from .core.errors import RunFailed
from .core.files import RECORDS
from .core.json_text import to_json
from .core.records import EvalRecord, RoundRecord
from .core.rng import Key
from .core.trees import checksum
from .core.types import ClientId
from .engine.log import rounds_recorded
from .engine.pooled import MeanPool
from .engine.private_examples import ExampleRounds
from .engine.summed import SUMMED
from .engine.summing import SumPool, unmasked
from .privacy.example_plan import ExamplePlan
from .privacy.example_statement import example_statement
from .privacy.ledger import LEDGER, Ledger, epsilon_of_clients
from .privacy.statement import statement

Private: TypeAlias = MeanPool | ExampleRounds
CLIP_NORM = "clip_norm"


def private_of(prepared: Prepared, out: Path, key: Key, kept: Mapping[str, Any] | None, run: str | None = None) -> Private | None:
    """How answers are pooled where the run is private for clients, or what rounds may cost where it is for examples, with the ledger in
    the run's folder; None where nothing is protected.

    Args:
        key: of the run.
        kept: what the checkpoint holds of the ledger; None: there is none.
        run: as for `sums_of`.

    Raises:
        UserError: the ledger is not that of this run, or lacks something.
    """
    plan = prepared.privacy
    if plan is None:
        return None
    data = prepared.inputs.data
    held = to_json([data.checksum(), *data.clients])
    ledger = Ledger(out, plan.terms, kept=kept, recorded=rounds_recorded(out / RECORDS), data=held)
    if isinstance(plan, ExamplePlan):
        return ExampleRounds([(tuple(one.clients), one.times) for one in plan.asked], ledger)
    adaptive = plan.adaptive(None if kept is None else kept.get(CLIP_NORM))
    return MeanPool(data.clients, plan.size, key, plan.noise_multiplier, plan.clip_norm, ledger, sums_of(prepared, run), adaptive)


def kept_of(private: Private) -> dict[str, Any]:
    """What a checkpoint holds of a run's privacy."""
    adaptive = private.adaptive if isinstance(private, MeanPool) else None
    return private.ledger.mark() | ({} if adaptive is None else {CLIP_NORM: adaptive.norm})


def held_by(prepared: Prepared, private: Private | None, run: str | None) -> dict[str, Any]:
    """How the rounds of a run are held, as the arguments of `engine.loop.run` for it; `run` as for `sums_of`."""
    return {
        "pool": private if isinstance(private, MeanPool) else None,
        "examples": private if isinstance(private, ExampleRounds) else None,
        "sums": sums_of(prepared, run) if private is None else None,
    }


def sums_of(prepared: Prepared, run: str | None) -> SumPool | None:
    """How answers are summed where the server is to see no single one; None where it sees them.

    Args:
        run: name of a run across machines, whose answers are masked; None: it is simulated.
    """
    adding, cohorts = prepared.adding, prepared.cohorts
    if adding is None or cohorts is None:
        return None
    if run is None:
        return unmasked(adding, cohorts)
    keys = prepared.inputs.config.privacy  # what follows needs `cryptography`, which the extra flower brings
    if keys.helper_key is not None:
        from .engine.helping import Helped

        helper, start = bytes.fromhex(keys.helper_key), checksum(prepared.start())
        return SumPool(adding, cohorts, Helped(adding, cohorts, run, raw_keys(keys.pinned), helper, start))
    from .engine.masking import Masked

    return SumPool(adding, cohorts, Masked(adding, cohorts, run, raw_keys(keys.pinned)))


def raw_keys(pinned: Mapping[str, str]) -> dict[str, bytes]:
    """The bytes of keys in hexadecimal digits."""
    return {name: bytes.fromhex(key) for name, key in pinned.items()}


def scores_nothing(prepared: Prepared) -> bool:
    """Whether no model of the run is scored."""
    return (prepared.privacy is not None or prepared.cohorts is not None) and prepared.inputs.config.privacy.evaluation == "off"


def scores_with_noise(prepared: Prepared) -> bool:
    """Whether the models of the run are scored with noise."""
    return prepared.privacy is not None and prepared.privacy.evaluation == "noised"


def ends_after(pool: Private | None, completed: int, planned: int, scored: Sequence[ClientId] = ()) -> int:
    """After how many rounds a run ends, as far as is known after `completed`: where its budget cannot pay for the next one, now.

    Args:
        scored: clients that a noised evaluation before it is charged to.
    """
    if pool is None or completed == planned:
        return planned
    return planned if (pool.affords(completed, scored) if isinstance(pool, MeanPool) else pool.affords(completed)) else completed


def reject_nothing(pool: Private | None, completed: int) -> None:
    """A run that ends with no round completed has no model to save.

    Raises:
        RunFailed: it would.
    """
    if pool is not None and not completed:
        raise RunFailed(
            f"{pool.ledger.path}: the budget is spent (epsilon {pool.ledger.epsilon:.4g} of {pool.ledger.terms.budget}) before a round was "
            "completed; start a new run with a higher privacy.max_epsilon"
        )


def about(prepared: Prepared, pool: Private, rounds: int) -> dict[str, Any]:
    """What summary.json says of a run's privacy.

    Args:
        rounds: completed ones.
    """
    plan, ledger = prepared.privacy, pool.ledger
    assert plan is not None, "a ledger is made of a plan"
    of_examples = isinstance(plan, ExamplePlan)
    # a training that failed, or was repeated and ended otherwise, is in its client's ledger alone
    epsilon = max(ledger.epsilon, epsilon_of_clients(ledger.path.parent)) if of_examples else ledger.epsilon
    return {
        "unit": ledger.terms.unit,
        "epsilon": epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": plan.clip_norm,
        **({"clip_norm_last": pool.adaptive.norm} if isinstance(pool, MeanPool) and pool.adaptive else {}),
        "budget": plan.budget,
        "evaluation": plan.evaluation,
        **({} if prepared.cohorts is None else {"secure_aggregation": True}),
        "ended": "after its last round" if rounds == plan.rounds else f"stopped by its budget after {rounds} of {plan.rounds} rounds",
        "ledger": LEDGER,
        "statement": example_statement(plan, epsilon) if of_examples else statement(plan, epsilon, ledger.releases),
    }


def about_sums(prepared: Prepared, records: Sequence[RoundRecord | EvalRecord]) -> dict[str, Any]:
    """What summary.json says of secure aggregation.

    Args:
        records: of the run.
    """
    cohorts, rounds = prepared.cohorts, [record for record in records if isinstance(record, RoundRecord)]
    assert cohorts is not None
    return {
        "kind": "helper" if cohorts.helped else "pairs",
        "clients_per_round": cohorts.size,
        "least": cohorts.least,
        "colluders": cohorts.colluders,
        "dropouts": cohorts.dropouts,
        "beyond_range": sum(record.notes.get(SUMMED, {}).get("beyond_range", 0) for record in rounds),
        "evaluation": prepared.inputs.config.privacy.evaluation,
    }


def took_part(records: Sequence[RoundRecord | EvalRecord]) -> int:
    """Clients whose answer came into a sum."""
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    return len({client for record in rounds for client in record.cohort if client not in record.failures})
