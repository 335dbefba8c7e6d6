"""What does not go with privacy for clients, as a sentence each, and what `check` says of a plan."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest

from fibecfed.config import Config, from_table, to_toml
from fibecfed.core.errors import UserError
from fibecfed.privacy.gaussian import epsilon_of, noise_for
from fibecfed.privacy.options import PrivacyOptions
from fibecfed.privacy.plan import plan_of
from fibecfed.privacy.statement import plan_lines, rounded_up

UNIT = {"unit": "client", "noise_multiplier": 1.0}
EXAMPLE = {"unit": "example", "noise_multiplier": 1.0}


def config(privacy: dict[str, Any], **tables: Any) -> Config:
    federation = {"on_failure": "drop", **tables.pop("federation", {})}
    return from_table({"data": {"task": "sst2"}, "method": {"kind": "lora"}, **tables, "federation": federation, "privacy": privacy})


@pytest.mark.parametrize(
    ("privacy", "tables", "sentence"),
    [
        ({"noise_multiplier": 1.0}, {}, 'privacy.noise_multiplier: got 1.0 with `privacy.unit` = "none", so that nothing is protected'),
        ({"max_epsilon": 8.0}, {}, 'privacy.max_epsilon: got 8.0 with `privacy.unit` = "none"'),
        ({"unit": "client"}, {}, "privacy.noise_multiplier: got neither, expected it or `privacy.epsilon`"),
        ({**UNIT, "epsilon": 8.0}, {}, "privacy.noise_multiplier: got 1.0 and `privacy.epsilon` = 8.0"),
        ({"unit": "client", "epsilon": 8.0, "max_epsilon": 4.0}, {}, "privacy.max_epsilon: got 4.0, expected at least `privacy.epsilon`"),
        ({**UNIT, "noise_multiplier": -1.0}, {}, "privacy.noise_multiplier: got -1.0, expected a number, at least 0.001"),
        ({**UNIT, "noise_multiplier": math.nan}, {}, "privacy.noise_multiplier: .*nan"),
        ({**UNIT, "noise_multiplier": math.inf}, {}, "privacy.noise_multiplier: .*inf"),
        ({**UNIT, "clip_norm": 0.0}, {}, "privacy.clip_norm: got 0.0, expected a number, above"),
        ({**UNIT, "delta": 1.0}, {}, "privacy.delta: got 1.0, expected a number, above 0 and below 1"),
        ({**UNIT, "delta": math.nan}, {}, "privacy.delta: .*nan"),
        ({**UNIT, "unit": "person"}, {}, 'privacy.unit: got "person", expected one of "none", "client", "example"'),
        (EXAMPLE, {"federation": {"round_attempts": 2}}, "federation.round_attempts: got 2 with .* clients take part in turn"),
        (EXAMPLE, {"federation": {"exclude_after": 2}}, "federation.exclude_after: got 2 with .* clients take part in turn"),
        (EXAMPLE, {"federation": {"schedule": "over-select"}}, 'federation.schedule: got "over-select" with `privacy.unit` = "example"'),
        ({**EXAMPLE, "unit_column": "who"}, {}, "privacy.unit_column: got 'who' without `data.path`"),
        ({**UNIT, "unit_column": "who"}, {}, "privacy.unit_column: got 'who' with .* which protects all that a client holds"),
        ({**EXAMPLE, "secure_aggregation": "pairs"}, {}, 'privacy.secure_aggregation: got "pairs" with'),
        (EXAMPLE, {"training": {"dropout": 0.1}}, "training.dropout: got 0.1 with"),
        (EXAMPLE, {"training": {"class_weights": "balanced"}}, "training.class_weights: got 'balanced' with .* weigh the same"),
        (EXAMPLE, {"data": {"kind": "instruction", "task": "nl2bash"}}, 'training.objective: got "token" with .* set "example"'),
        ({**EXAMPLE, "evaluation": "noised"}, {}, 'privacy.evaluation: got "noised" with `privacy.unit` = "example"'),
        ({**EXAMPLE, "clipping": "adaptive"}, {}, 'privacy.clipping: got "adaptive" with `privacy.unit` = "example"'),
        ({"secure_aggregation": True, "evaluation": "noised"}, {}, 'privacy.evaluation: got "noised" with `privacy.unit` = "none"'),
        ({**UNIT, "secure_aggregation": True, "clipping": "adaptive"}, {}, 'privacy.clipping: got "adaptive" with .* no single client'),
        ({**UNIT, "clip_quantile": 0.3}, {}, 'privacy.clip_quantile: got 0.3 with `privacy.clipping` = "fixed"'),
        ({**UNIT, "clipping": "adaptive", "clip_quantile": 1.0}, {}, "privacy.clip_quantile: got 1.0, expected a number"),
        (UNIT, {"federation": {"on_failure": "stop"}}, 'federation.on_failure: got "stop" with `privacy.unit` = "client"'),
        (UNIT, {"federation": {"quorum": 0.5}}, "federation.quorum: got 0.5 with `privacy.unit`"),
        (UNIT, {"federation": {"exclude_after": 2}}, "federation.exclude_after: got 2 with `privacy.unit`"),
        (UNIT, {"federation": {"round_attempts": 2}}, "federation.round_attempts: got 2 with `privacy.unit`"),
        (UNIT, {"federation": {"max_update_norm": 2.0}}, "federation.max_update_norm: got 2.0 with .* clipped instead"),
        (UNIT, {"federation": {"schedule": "over-select"}}, 'federation.schedule: got "over-select" with `privacy.unit`'),
        (UNIT, {"federation": {"links": {"latency_ms": 3.0}}}, "federation.links: got a model of time with `privacy.unit`"),
        (UNIT, {"evaluation": {"save": "best"}, "data": {"path": "x"}}, 'evaluation.save: got "best" with `privacy.unit`'),
        (UNIT, {"evaluation": {"patience": 3}, "data": {"path": "x"}}, "evaluation.patience: got 3 with `privacy.unit`"),
        (UNIT, {"resources": {"cohort_batch": 2}}, "resources.cohort_batch: got 2 with `privacy.unit`"),
        (UNIT, {"tracking_by_client": True}, "tracking_by_client: got true with `privacy.unit`"),
        (UNIT, {"method": {"kind": "custom"}}, 'method.kind: got "custom" with `privacy.unit`'),
    ],
)
def test_it_is_rejected_in_a_sentence(privacy: dict[str, Any], tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config(privacy, **tables)


def test_noise_or_epsilon_is_enough() -> None:
    assert config(UNIT).privacy.budget is None
    assert config({"unit": "client", "epsilon": 4.0}).privacy.budget == 4.0


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("budget", [None, 3.0, 5.0, 9.0])
def test_a_plan_counts_noised_evaluations(every: int, budget: float | None) -> None:
    """Against a ledger by client, kept the obvious way."""
    options = PrivacyOptions(unit="client", noise_multiplier=2.0, max_epsilon=budget, delta=1e-3, evaluation="noised")
    evaluated = sorted({*range(every, 13, every), 12})
    plan = plan_of(options, 5, 2, 12, evaluated)
    assert plan is not None
    spent, rounds = dict.fromkeys(range(5), 0), 0
    for number in range(12):
        cohort = [(2 * number + place) % 5 for place in (0, 1)]
        if budget is not None and any(epsilon_of((spent[k] + 1) / 4, 1e-3) > budget for k in cohort):
            break
        spent |= {k: spent[k] + 1 for k in cohort}
        rounds += 1
        if rounds in evaluated and (budget is None or epsilon_of((max(spent.values()) + 1) / 4, 1e-3) <= budget):
            spent = {k: times + 1 for k, times in spent.items()}
    assert plan.affordable == rounds and plan.epsilon(rounds) == epsilon_of(max(spent.values()) / 4, 1e-3)


def test_adaptive_clipping_needs_a_cohort_that_its_count_means_something_in() -> None:
    options = PrivacyOptions(unit="client", noise_multiplier=2.0, clipping="adaptive")
    with pytest.raises(
        UserError, match=r'privacy\.clipping: got "adaptive" with 20 clients per round and noise of 2, expected at least 24'
    ):
        plan_of(options, 40, 20, 3)
    plan = plan_of(options, 60, 60, 3)
    assert plan is not None and plan.sent_norm == 100.0 and plan.epsilon(3) == epsilon_of(3 / 4, 1e-5)
    told = dict(plan_lines(plan, 100))
    assert told["clip norm"] == "from 0.1 towards the norm that 50% of updates are within; its count costs 6.1% more noise"


def test_an_epsilon_pays_for_the_evaluations_too() -> None:
    plan = plan_of(PrivacyOptions(unit="client", epsilon=4.0, evaluation="noised"), 10, 5, 8, [4, 8])
    assert plan is not None and 3.99 < plan.epsilon(8) <= 4.0 and plan.affordable == 8 and plan.scored == (4, 8)
    assert plan.noise_multiplier == pytest.approx(noise_for(4.0, 1e-5, 4 + 2))
    assert (
        dict(plan_lines(plan, 100))["released"] == "8 noised means of 100 numbers; 2 noised evaluations, which every client is charged for"
    )


def test_a_plan_says_what_it_costs_and_whether_it_can_learn() -> None:
    options = PrivacyOptions(unit="client", noise_multiplier=2.0, max_epsilon=8.0)
    plan = plan_of(options, 50, 5, 40)
    assert plan is not None and plan.most_rounds == 4 and plan.epsilon(40) == pytest.approx(4.3772, abs=1e-4) and plan.affordable == 40
    told = dict(plan_lines(plan, 37_634))
    assert told["takes part"].startswith("4 of 40 rounds at most, 5 of 50 clients")
    assert told["epsilon"] == "4.378 for every client after 40 rounds; budget 8 holds for 40"
    assert told["noise to signal"].startswith(
        "at least 77.6 to 1: the model will not learn. 1 to 1 needs 388 clients per round, or 6 numbers"
    )
    few = plan_of(options, 50, 50, 10)
    assert few is not None and dict(plan_lines(few, 1538))["noise to signal"] == "at least 1.57 to 1"


def test_a_budget_ends_a_plan_before_the_first_client_would_pass_it() -> None:
    plan = plan_of(PrivacyOptions(unit="client", noise_multiplier=2.0, max_epsilon=2.5), 50, 5, 40)
    assert plan is not None and plan.epsilon(plan.affordable) <= 2.5 < plan.epsilon(plan.affordable + 1)
    assert f"ends the run after {plan.affordable} of 40 rounds" in dict(plan_lines(plan, 10))["epsilon"]


def test_an_epsilon_is_never_shown_below_itself() -> None:
    assert (rounded_up(1.0), rounded_up(1.0001), rounded_up(0.9999)) == ("1.000", "1.001", "1.000")


DIGITS = {name: name * 64 for name in "abcde"}


@pytest.mark.parametrize(
    ("keys", "federation", "sentence"),
    [
        ({}, {}, r"privacy.keys: got 0 keys for 5 clients \(federation.clients\), expected one for each"),
        ({**DIGITS, "f": "f" * 64}, {}, "privacy.keys: got 6 keys for 5 clients"),
        (DIGITS, {"client_names": ["a", "b", "c", "d", "x"]}, "privacy.keys: got no key of client x, expected one for each"),
        ({**DIGITS, "a": "00"}, {}, "privacy.keys: got 'a' = '00', expected a client's name and 64 hexadecimal digits"),
        ({**DIGITS, "a": "b" * 64}, {}, "privacy.keys: got one key for two names, expected one for each client"),
    ],
)
def test_every_client_of_machines_has_a_pinned_key(keys: dict[str, str], federation: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        pinning(keys, **federation)


def test_true_and_false_are_what_they_were_called_before() -> None:
    for value, name in ((True, "pairs"), (False, "none"), ("helper", "helper")):
        assert PrivacyOptions(secure_aggregation=value).secure_aggregation == name  # pyright: ignore[reportArgumentType]


def test_false_with_another_mistake_is_no_second_one() -> None:
    with pytest.raises(UserError) as told:
        config({**EXAMPLE, "secure_aggregation": False}, training={"dropout": 0.1})
    assert "secure_aggregation" not in str(told.value)


def helped(keys: dict[str, str], **federation: Any) -> Config:
    tables = {"partition": "machines", "clients": 5, "max_samples": 9, **federation}
    table = {"data": {"labels": ["x", "y"]}, "method": {"kind": "lora"}, "federation": tables}
    return from_table({**table, "privacy": {"secure_aggregation": "helper", "keys": keys}})


def test_the_helpers_key_is_beside_those_of_the_clients() -> None:
    made = helped({**DIGITS, "helper": "f" * 64})
    assert made.privacy.pinned == DIGITS and made.privacy.helper_key == "f" * 64 and from_table(tomllib.loads(to_toml(made))) == made
    assert pinning(DIGITS).privacy.helper_key is None


@pytest.mark.parametrize(
    ("keys", "federation", "sentence"),
    [
        (DIGITS, {}, 'privacy.keys: got no key of the helper, expected an entry "helper"; add the line that `fibecfed helper --show-key`'),
        ({**DIGITS, "helper": "a" * 64}, {}, "privacy.keys: got one key for two names"),
        (
            {**DIGITS, "helper": "0"},
            {},
            "privacy.keys: got 'helper' = '0', expected .* 64 .* digits; copy the line that `fibecfed helper --show-key`",
        ),
        ({"helper": "f" * 64}, {}, "privacy.keys: got 0 keys for 5 clients"),
        (
            {**DIGITS, "helper": "f" * 64},
            {"client_names": ["a", "b", "c", "d", "helper"]},
            'federation.client_names: got "helper" with .* that is the name of the helper, which holds no data',
        ),
    ],
)
def test_a_helper_is_pinned_and_no_client(keys: dict[str, str], federation: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        helped(keys, **federation)


def test_across_machines_a_sum_is_kept_after_every_round() -> None:
    table = {
        "data": {"labels": ["x", "y"]},
        "method": {"kind": "lora"},
        "federation": {"partition": "machines", "clients": 5, "max_samples": 9},
    }
    privacy = {"secure_aggregation": True, "keys": DIGITS}
    from_table({**table, "privacy": privacy, "resources": {"checkpoint_every": 1}})
    from_table({**table, "resources": {"checkpoint_every": 2}})
    with pytest.raises(
        UserError, match=r"resources\.checkpoint_every: got 2 with `privacy.secure_aggregation` across machines, where a round"
    ):
        from_table({**table, "privacy": privacy, "resources": {"checkpoint_every": 2}})


def test_pinned_keys_are_a_table_and_written_again() -> None:
    made = pinning(DIGITS)
    assert made.privacy.pinned == DIGITS and from_table(tomllib.loads(to_toml(made))) == made


def pinning(keys: dict[str, str], **federation: Any) -> Config:
    tables = {"partition": "machines", "clients": 5, "max_samples": 9, **federation}
    table = {"data": {"labels": ["x", "y"]}, "method": {"kind": "lora"}, "federation": tables}
    return from_table({**table, "privacy": {"secure_aggregation": True, "keys": keys}})
