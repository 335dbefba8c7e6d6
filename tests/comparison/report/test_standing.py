"""Targets, costs and ranks against slow references and planted answers."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from typing import Any

import pytest

from fibecfed.comparison.report import curves, overview
from fibecfed.comparison.report.conditions import conditions
from fibecfed.comparison.report.html import to_html
from fibecfed.comparison.report.results import ComparisonResults, Point, Run, SelectionRecord
from fibecfed.comparison.report.standing import costs_to, reached, spread, standings
from fibecfed.comparison.report.verdict import defeats, verdict
from fibecfed.core.clock import Network
from fibecfed.core.metrics import METRICS
from fibecfed.engine.baselines import own_majority

ACCURACY = METRICS["accuracy"]


def run(task: str, method: str, score: float | list[float], seed: int = 0, *, kind: str | None = None, **more: Any) -> Run:
    """A run evaluated after every round, each of which takes 10 bytes and 2 seconds."""
    curve = [0.5, *(score if isinstance(score, list) else [score])]
    points = tuple(Point(i, 10 * i, 2.0 * i, value, value) for i, value in enumerate(curve))
    fields: dict[str, Any] = {
        "task": task, "method": method, "seed": seed, "kind": kind or method, "points": points, "majority": 0.5, "worst_decile": None,
        "usual": None, "usual_personalised": None, "bytes_up": 5, "bytes_down": 5, "steps": 7, "examples": 56, "trainable": 3,
        "measured_s": 1.0, "clients": (), "selection": SelectionRecord(), "conditions": {"learning_rate": 0.1},
    }  # fmt: skip
    return Run(**{**fields, **more})


def compare(*runs: Run, **more: Any) -> ComparisonResults:
    return ComparisonResults("made", runs, Network(), **more)


def test_the_target_lies_four_fifths_of_the_way_to_the_best_methods_mean_over_seeds():
    found = standings(compare(run("t", "a", 0.8), run("t", "a", 0.9, 1), run("t", "b", 0.88))).targets["t"]
    assert (found.best, found.counted) == ("b", True)
    assert found.score == pytest.approx(0.5 + 0.8 * 0.38)


def test_a_task_within_five_points_of_the_majority_is_not_counted_unless_its_target_is_fixed():
    made = run("t", "a", 0.549), run("u", "a", 0.551)
    found = standings(compare(*made))
    assert [one.task for one in found.counted] == ["u"]
    fixed = standings(compare(*made, fixed_targets={"t": 0.52}))
    assert fixed.targets["t"].score == 0.52 and fixed.targets["t"].counted


def test_a_target_lies_above_what_clients_have_that_count_their_own_labels():
    made = run("t", "a", 0.8, prior=0.7), run("u", "a", 0.8, prior=0.76), run("v", "a", 0.8, prior=0.4)
    found = standings(compare(*made))
    assert [one.base for one in found.targets.values()] == [0.7, 0.76, 0.5]
    assert [one.score for one in found.targets.values()] == pytest.approx([0.7 + 0.08, 0.76 + 0.032, 0.5 + 0.24])
    assert [one.task for one in found.counted] == ["t", "v"]


def test_ablations_set_no_target_and_are_not_ranked():
    found = standings(compare(run("t", "fibecfed", 0.7), run("t", "layers", 0.9, kind="fibecfed"), run("t", "lora-long", 0.6, kind="lora")))
    assert found.targets["t"].best == "fibecfed"
    assert list(found.ranks) == ["fibecfed", "lora-long"]


def test_a_target_is_reached_at_the_first_evaluation_at_or_above_it_but_never_untrained():
    one = run("t", "a", [0.6, 0.7, 0.65, 0.8])
    assert [getattr(reached(one, score), "rounds", None) for score in (0.4, 0.7, 0.75, 0.9)] == [1, 2, 4, None]


def test_costs_are_medians_over_seeds_with_infinity_where_a_run_never_gets_there():
    runs = [run("t", "a", [0.6, 0.9]), run("t", "a", [0.9, 0.9], 1), run("t", "a", [0.6, 0.6], 2)]

    def rounds(point: Point) -> float:
        return point.rounds

    assert costs_to(runs, 0.9, rounds) == [2, 1, math.inf]
    targets = {"fixed_targets": {"t": 0.9}}
    assert standings(compare(*runs, **targets)).costs("t", "a", rounds) == (2, 1, math.inf)
    assert standings(compare(*runs[:1], *runs[2:], **targets)).costs("t", "a", rounds) == (math.inf, 2, math.inf)
    assert standings(compare(*runs, **targets)).costs("t", "b", rounds) is None


def test_who_is_first_is_decided_by_modelled_time_and_ties_are_shared():
    made = compare(run("t", "a", [0.6, 0.9]), run("t", "b", [0.9, 0.9]), run("t", "c", [0.9, 0.7]), run("t", "d", [0.6, 0.6]))
    found = standings(made)
    assert found.first("t") == ["b", "c"]
    assert found.reaches("t", "a") and not found.reaches("t", "d") and not found.reaches("t", "e")


def test_time_relative_to_fibecfed_is_a_geometric_mean_over_what_both_reach():
    made = compare(
        run("t", "fibecfed", [0.9]), run("t", "a", [0.5, 0.9]), run("u", "fibecfed", [0.5, 0.5, 0.9]), run("u", "a", [0.5] * 5 + [0.9]),
        run("v", "fibecfed", [0.6]), run("v", "a", [0.9]),
    )  # fmt: skip
    assert standings(made).relative_seconds("a") == pytest.approx(2.0)
    assert standings(made).relative_seconds("fibecfed") == pytest.approx(1.0)


def test_ranks_equal_those_counted_by_sorting_with_ties_sharing_their_places():
    draw = random.Random(0)
    for _ in range(50):
        scores = {name: draw.choice((0.1, 0.2, 0.3, 0.4)) for name in "abcdef"}
        found = standings(compare(*(run("t", name, score) for name, score in scores.items()))).ranks
        in_order = sorted(scores.values(), reverse=True)
        slow = {n: statistics.mean(i + 1 for i, value in enumerate(in_order) if value == score) for n, score in scores.items()}
        assert {name: rank.mean for name, rank in found.items()} == slow


def test_mean_ranks_average_over_tasks_and_skip_those_a_method_did_not_run_on():
    made = compare(
        run("t", "a", 0.9), run("t", "b", 0.8), run("t", "c", 0.8), run("u", "a", 0.6), run("u", "b", 0.7), run("u", "b", 0.9, 1),
        run("u", "a", 0.8, 1),
    )  # fmt: skip
    found = standings(made).ranks
    assert {name: (rank.mean, rank.tasks) for name, rank in found.items()} == {"a": (1.5, 2), "b": (1.75, 2), "c": (2.5, 1)}
    assert list(found) == ["a", "b", "c"]


def test_the_interval_is_a_point_where_every_task_and_seed_agrees_and_wide_where_they_do_not():
    agreed = [run(t, m, {"a": 0.9, "b": 0.8}[m], s) for t, m, s in itertools.product("tuv", "ab", range(3))]
    rank = standings(compare(*agreed)).ranks["a"]
    assert (rank.low, rank.high) == (1.0, 1.0)
    split = [run("t", "a", 0.9), run("t", "b", 0.8), run("u", "a", 0.7), run("u", "b", 0.8)]
    rank = standings(compare(*split)).ranks["a"]
    assert (rank.low, rank.high) == (1.0, 2.0)


def test_the_bootstrap_over_seeds_equals_all_equally_likely_draws_counted_out():
    """One task, three seeds: 27 draws. Every draw's rank is counted out and its quantiles compared."""
    a, b = [0.9, 0.5, 0.6], [0.7, 0.7, 0.7]
    made = compare(*(run("t", m, score, s) for m, scores in (("a", a), ("b", b)) for s, score in enumerate(scores)))
    wins = [sum(a[i] for i in draw) > sum(b[i] for i in draw) for draw in itertools.product(range(3), repeat=3)]
    assert 0.05 < statistics.mean(wins) < 0.95  # so both ends of the interval are seen
    found = standings(made).ranks["a"]
    assert (found.low, found.mean, found.high) == (1.0, 2.0, 2.0)


def test_a_spread_of_one_value_has_no_deviation_and_of_none_is_none():
    assert spread([]) is None
    assert spread([0.5]) == spread(iter([0.5])) and getattr(spread([0.5]), "deviation", 1) is None
    found = spread([0.2, 0.4])
    assert found is not None and found.mean == pytest.approx(0.3) and found.deviation == pytest.approx(math.sqrt(0.02))


def test_runs_without_test_examples_count_nowhere():
    made = compare(run("t", "a", math.nan), run("t", "a", 0.9, 1), run("t", "b", 0.8), run("u", "a", math.nan), run("u", "c", math.nan))
    found = standings(made)
    assert {name: (rank.mean, rank.tasks) for name, rank in found.ranks.items()} == {"a": (1.0, 1), "b": (2.0, 1)}
    assert list(found.targets) == ["t"] and found.targets["t"].best_score == 0.9
    assert spread([math.nan]) is None and standings(compare(run("t", "a", math.nan))).ranks == {}
    drawn = curves.curves(found, "t")
    assert drawn is not None and not any("nan" in drawing for drawing in drawn.drawings)


def test_the_last_bit_of_a_sum_breaks_no_tie_and_misses_no_target():
    assert statistics.fmean([0.7, 0.1]) < 0.4
    made = compare(
        *(run("t", "fibecfed", score, seed) for seed, score in enumerate((0.7, 0.1))), *(run("t", "a", 0.4, seed) for seed in range(2)),
    )  # fmt: skip
    found = standings(made)
    assert {name: rank.mean for name, rank in found.ranks.items()} == {"fibecfed": 1.5, "a": 1.5}
    assert not overview.losses(found).rows or overview.losses(found).rows[0][2].value == 0
    assert 0.5 + 0.8 * (0.9 - 0.5) > 0.82 and 0.85 - 0.8 < 0.05
    found = standings(compare(run("t", "a", [0.82, 0.9]), run("u", "a", 0.85, majority=0.8)))
    assert found.seconds("t", "a") == 2.0
    assert [one.task for one in found.counted] == ["t", "u"]


# ---- sentences


def said(*runs: Run, **more: Any) -> list[str]:
    return verdict(standings(compare(*runs, **more)))


def test_methods_are_compared_on_the_tasks_of_both_and_what_is_left_out_is_said():
    """voc ran on the one task where scores are high and messages small, lora on one that FibecFed did not run on."""
    small = {"bytes_up": 1_000_000, "bytes_down": 0}
    large = {"bytes_up": 3_000_000, "bytes_down": 0}
    runs = [
        run("t", "fibecfed", 0.95, **small), run("t", "lora", 0.9, **small), run("t", "voc", 0.93, **small),
        run("u", "fibecfed", 0.65, **large), run("u", "lora", 0.6, **large), run("v", "lora", 0.99, **large), run("v", "slw", 0.9, **large),
    ]  # fmt: skip
    rank, personalised, _, sent, race, *_, missing, partly = said(*runs)
    assert "mean rank 1.00" in rank and "place 1 of the 2 methods that ran on the same 2 tasks; next is lora with 2.50" in rank
    assert "80.0 % as a mean over tasks, 2.0 points above the best other (voc), over 1 task that both ran on." in personalised
    assert "It sends 2.0 MB per run, the fewest" in sent and "no method sends fewer" in sent
    assert race.startswith("It reaches the target on 2 of 2 counted tasks and is first, in modelled time, on 2;")
    assert missing == "All this leaves out 1 task on which fibecfed has no result: v."
    assert partly == "Compared only on those of its tasks that they have results on: slw, voc."
    found = standings(compare(*runs))
    (nowhere,) = defeats(found)
    assert nowhere == (
        "Nowhere on its 2 tasks: no method has a higher personalised score on any, no method has a higher global score on any, "
        "no method reaches a counted target earlier, no method sends fewer bytes in total."
    )
    assert "<b>2 of 2</b>" in to_html(found, ())
    whole = said(*runs[:2], run("u", "fibecfed", 0.65), run("u", "lora", 0.6))
    assert "place 1 of 2 methods over 2 tasks" in whole[0] and not any("leaves out" in line or "only" in line for line in whole)


def test_without_a_common_task_nothing_is_compared():
    apart = run("t", "fibecfed", 0.9), run("u", "lora", 0.8)
    assert said(*apart) == ["fibecfed and the other methods have no task in common, so they cannot be compared."]
    assert defeats(standings(compare(*apart))) == []
    (rank, *_) = said(*apart, run("t", "voc", 0.8), run("w", "fibecfed", 0.8))
    assert rank.endswith("over 2 tasks; no other method ran on all of them.")


def test_without_fibecfed_all_who_share_the_first_place_are_named():
    level = [run(task, method, 0.9) for task in "tu" for method in ("a", "b")]
    assert said(*level) == ["All 2 methods are level: mean rank 1.50 over 2 tasks."]
    assert said(*level, run("t", "c", 0.8), run("u", "c", 0.8)) == [
        "a and b share the first place: mean rank 1.50 of 3 methods over 2 tasks."
    ]
    assert said(run("t", "a", 0.9), run("t", "b", 0.8)) == ["a is first: mean rank 1.00 of 2 methods over 1 task."]
    apart = [run("t", "a", 0.9), run("t", "b", 0.8), run("u", "c", 0.9), run("t", "d", 0.7), run("v", "c", 0.9)]
    assert said(*apart)[-1].startswith("a and c share the first place: mean rank 1.00 of 4 methods each over the tasks that it ran on.")


def test_whose_scores_were_still_rising_at_the_end_is_said_of_all_runs():
    up, runs = {"rising": True}, [run("t", "fibecfed", 0.9), run("t", "lora", 0.8)]
    assert not any("getting better" in line for line in said(*runs))
    more = [run("t", "lora", 0.8, 1, **up), run("t", "lora", 0.8, 2, **up), run("t", "layers", 0.8, kind="fibecfed", **up)]
    sentence = "Still getting better when training ended, so that more rounds may bring more: lora (2 of 3 runs), layers (1 of 1 run)."
    assert said(*runs, *more)[-1] == sentence
    assert said(run("t", "a", 0.9, **up), run("t", "b", 0.8))[-1].endswith("a (1 of 1 run).")


def test_all_who_are_first_equally_often_are_named():
    made = [run(task, method, 0.9) for task in "tu" for method in ("fibecfed", "a", "b")]
    assert "of the others a, b are first most often, on 2 each." in said(*made)[4]
    assert "of the others a is first most often, on 2." in said(*made[:2], *made[3:5])[4]


def test_bytes_are_compared_by_kind_among_methods_of_whole_lora_and_not_with_clients_that_train_alone():
    def of(ours: int, **others: int) -> str:
        runs = [run("t", name, 0.8, kind=name.partition(" ")[0], bytes_up=size, bytes_down=0) for name, size in others.items()]
        return said(run("t", "fibecfed", 0.9, bytes_up=ours, bytes_down=0), *runs)[3]

    small = {"slora": 10, "hetlora": 10, "adapter": 10, "local": 1}
    close = of(1001, **small, **{"voc slow": 1000, "unknown": 20})
    assert "1.001 times the fewest of the 2 methods that train LoRA of one rank" in close and "(voc slow's), within 2 %" in close
    assert close.endswith("fewer are sent by adapter, hetlora, slora, unknown, voc slow.")
    assert "1.030 times the fewest" in (far := of(1030, lora=1000)) and "(lora's), not within 2 %" in far
    assert of(1000, lora=1000, local=1).endswith("both factors; no method sends fewer.")


def test_the_prior_is_each_clients_most_frequent_training_class_on_its_own_test_examples():
    spread_out = {"a": {"train": [5, 1], "test": [8, 2]}, "b": {"train": [1, 2], "test": [4, 6]}, "c": {"train": [0, 0], "test": [9, 9]}}
    assert own_majority([spread_out[name] for name in "ab"], ACCURACY) == own_majority(spread_out.values(), ACCURACY) == (8 + 6) / 20
    assert math.isnan(own_majority([], ACCURACY))


def test_the_verdict_names_tasks_on_which_nobody_is_above_the_clients_own_majority():
    made = [run(task, method, 0.8, prior=share) for task, share in (("near", 0.76), ("far", 0.6)) for method in ("fibecfed", "lora")]
    found = standings(compare(*made))
    assert found.targets["near"].prior == 0.76
    (line,) = [line for line in verdict(found) if "most frequent class" in line]
    assert "On 1 of 2 tasks no method" in line and "near (76.0 %)" in line and "far" not in line
    unknown = standings(compare(run("t", "fibecfed", 0.8), run("t", "lora", 0.7)))
    assert unknown.targets["t"].prior is None and not any("most frequent class" in line for line in verdict(unknown))


def test_a_higher_global_score_and_fewer_bytes_are_losses_too():
    def ends(task: str, method: str, own: float, server: float, size: int) -> Run:
        points = (Point(0, 0, 0.0, 0.5, 0.5), Point(1, 10, 2.0, own, server))
        return run(task, method, own, points=points, bytes_up=size, bytes_down=size)

    made = [ends("t", "fibecfed", 0.9, 0.7, 300), ends("t", "lora", 0.8, 0.75, 300), ends("t", "voc", 0.8, 0.8, 100)]
    made += [ends("u", "fibecfed", 0.9, 0.9, 300), ends("u", "lora", 0.8, 0.7, 280), ends("u", "local", 0.8, 0.7, 1)]
    found = standings(compare(*made))
    assert defeats(found) == [
        "Another method has the higher global score on 1 of 2 tasks: t (voc by 10.0 points, and 1 more).",
        "2 of 2 other methods send fewer bytes in total, the fewest voc: fibecfed sends 3.0 times as many.",
    ]
    table = overview.losses(found)
    t, u = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert [t[name].text for name in ("methods ahead", "ahead in global", "best in global", "global, ahead by")] == [
        "0",
        "2",
        "voc",
        "10.0",
    ]
    assert [t[name].text for name in ("sending fewer", "fewest bytes", "fibecfed's bytes relative to the smallest")] == ["1", "voc", "3.00"]
    assert [u[name].text for name in ("ahead in global", "sending fewer", "fewest bytes")] == ["0", "1", "lora"]


def test_nowhere_is_said_of_what_was_compared_only():
    points = (Point(0, 0, 0.0, 0.5, math.nan), Point(1, 10, 2.0, 0.52, math.nan))
    (nowhere,) = defeats(standings(compare(*(run("t", method, 0.52, points=points) for method in ("fibecfed", "local")))))
    assert nowhere == "Nowhere on its 1 task: no method has a higher personalised score on any."


def test_a_target_that_nobody_reaches_is_no_loss_to_anyone():
    made = [run(task, method, 0.9) for task in "tu" for method in ("fibecfed", "lora")]
    (nowhere,) = defeats(standings(compare(*made, fixed_targets={"t": 0.95})))
    assert nowhere.startswith("Nowhere on its 2 tasks") and "no method reaches a counted target earlier" in nowhere
    assert overview.losses(standings(compare(*made, fixed_targets={"t": 0.95}))).rows == ()
    slow = [run("u", "fibecfed", [0.5, 0.9]), run("u", "lora", 0.9), *made[:2]]
    assert defeats(standings(compare(*slow, fixed_targets={"t": 0.95})))[0] == (
        "It is not the first to the target on 1 of 1 counted task: u (lora first)."
    )


def test_settings_that_differ_between_methods_on_a_task_are_a_warning_of_the_verdict_that_names_them():
    def of(task: str, method: str, **settings: object) -> Run:
        return run(task, method, 0.8, conditions={"learning_rate": 0.1, "settings": {"federation.rounds": 20, "model.rank": 8, **settings}})

    same = [of(task, method, **{"data.max_length": {"t": 64, "u": 128}[task]}) for task in "tu" for method in ("fibecfed", "lora")]
    assert not any("like with like" in line for line in said(*same))
    other = of("t", "voc", **{"federation.rounds": 4, "training.precision": "bf16", "data.max_length": 64})
    assert said(*same, other)[0] == (
        "Not like with like: methods ran one task with different settings, federation.rounds on t (20: fibecfed, lora; 4: voc). "
        "Their scores and costs differ by that too."
    )
    ablation = run("t", "fast", 0.8, kind="fibecfed", conditions={"settings": {"federation.rounds": 4}})
    assert not any("like with like" in line for line in said(*same, ablation))
    assert "federation.rounds" in verdict(standings(compare(of("t", "a"), of("t", "b", **{"federation.rounds": 4}))))[0]


def test_runs_of_an_older_export_are_compared_by_their_conditions_as_texts():
    made = [run("t", method, 0.8, conditions={"federation": text}) for method, text in (("fibecfed", "4 rounds"), ("lora", "9 rounds"))]
    assert "federation on t (4 rounds: fibecfed; 9 rounds: lora)" in said(*made)[0]


def test_a_condition_names_whose_runs_it_is_of():
    def known(**of: str) -> str:
        runs = []
        for name, length in of.items():
            task, method = name.split("_")
            runs += [run(task, method, 0.8, seed, conditions={"data": f"{length} tokens"}) for seed in (0, 1)]
        return dict(conditions(compare(*runs)))["Data"]

    assert known(t_a="64", t_b="64", u_a="128") == "64 tokens: t (4 runs); 128 tokens: u (2 runs)"
    assert known(t_a="64", u_a="64", t_b="128") == "64 tokens: a (4 runs); 128 tokens: b (2 runs)"
    assert known(t_a="64", u_a="64", u_b="64", t_b="128") == "64 tokens: a, b on t, u (6 runs); 128 tokens: b on t (2 runs)"
    many = known(**{f"t{n}_a": "64" for n in range(9)}, u_a="128")
    assert many == "64 tokens: t0, t1, t2, t3, t4 and 4 more (18 runs); 128 tokens: u (2 runs)"
