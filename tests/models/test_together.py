"""Passes over batches of several clients against a pass for each, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import adapted
from every_family import config_of_run, quiet, save_tiny
from hypothesis import given
from hypothesis import strategies as st
from saved import write_reviews
from texts import PAD, noisy, padded, sentences
from torch import Tensor

from fibecfed.build import prepare
from fibecfed.config import Config
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.core.types import Batch
from fibecfed.local.collect import Collect, Collected
from fibecfed.local.gradients import Gradients, Wanted, alone, joined
from fibecfed.models.dropout import each_from_its_own
from fibecfed.models.heads import UnsupportedModel
from fibecfed.models.tiny import FAMILIES, Family, tiny_task, tiny_words
from fibecfed.models.together import by_length
from fibecfed.models.together import joined as one_batch
from fibecfed.models.transformer_task import TransformerTask

LENGTHS = ((5, 9), (3, 7), (16, 2))


def made(family: Family = "bert", **more: Any) -> TransformerTask:
    return tiny_task(family, **{"dtype": torch.float64, "num_classes": 3, **more})


def batches(family: Family = "bert", lengths: Sequence[Sequence[int]] = LENGTHS, **more: Any) -> list[Batch]:
    return [padded(sentences(each, seed=seed), PAD[family], **more) for seed, each in enumerate(lengths)]


def ask(task: Any, batch: Batch, seed: int, *, trained: Any = None, traced: bool = True, **more: Any) -> Wanted:
    """A client with tensors of its own."""
    params = noisy(task, seed)
    leaves = [params[name].requires_grad_() for name in sorted(task.names if trained is None else trained)]
    return Wanted(params, leaves, batch, torch.mean, Collected(Collect(traces=True)).needed() if traced else None, **more)


def asked(task: Any, found: Sequence[Batch], **more: Any) -> list[Wanted]:
    return [ask(task, batch, seed, **more) for seed, batch in enumerate(found)]


def assert_same(got: Gradients, expected: Gradients) -> None:
    def close(a: Tensor, b: Tensor, what: str) -> None:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12, msg=lambda text: f"{what}: {text}")

    close(got.losses, expected.losses, "losses")
    for place, (a, b) in enumerate(zip(got.of_leaves, expected.of_leaves, strict=True)):
        close(a, b, f"leaf {place}")
    assert [linear.weight for linear in got.tape.linears] == [linear.weight for linear in expected.tape.linears]
    for linear, a, own, b in zip(got.tape.linears, got.at_outputs, expected.tape.linears, expected.at_outputs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert len(linear.input) == len(own.input) == len(a)
            for mine, theirs, what in ((a, b, "gradient"), (linear.input, own.input, "input")):
                short = theirs if theirs.ndim == 2 else theirs[:, : mine.shape[1]]
                rows = mine if mine.ndim == 2 else mine[:, : short.shape[1]]
                if what == "gradient":
                    close(rows, short, f"{linear.weight}, {what}")
                    assert mine.ndim == 2 or not mine[:, short.shape[1] :].any()  # where the joined batch has padding


@pytest.mark.parametrize("lengths", [LENGTHS, ((5, 9), (3,), (4, 8, 6)), ((7,), (7,))], ids=["as many rows", "other numbers", "one length"])
@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_joined_pass_gives_each_client_the_gradients_of_its_own(family: Family, traced: bool, lengths: Any):
    task = made(family)
    wanted = asked(task, batches(family, lengths), traced=traced)
    for got, one in zip(joined(task.together(), wanted), wanted, strict=True):
        assert_same(got, alone(task, one))


@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_does_with_words_for_classes(family: Family):
    task = made(family, words=tiny_words(family, 3))
    found = batches(family)
    for batch in found if family in ("bert", "roberta") else ():
        ids: Any = batch["input_ids"]
        ids[ids == 4] = 5
        ids[:, 1] = 4
    wanted = asked(task, found)
    for got, one in zip(joined(task.together(), wanted), wanted, strict=True):
        assert_same(got, alone(task, one))


@pytest.mark.parametrize("part", ["lora_B", "lora_A", "layer.1.", "score", "classifier"])
def test_what_a_client_leaves_untrained_is_its_own_as_well(part: str):
    task = made("llama" if part == "score" else "bert")
    wanted = asked(task, batches(), trained=[name for name in task.names if part in name])
    for got, one in zip(joined(task.together(), wanted), wanted, strict=True):
        assert_same(got, alone(task, one))


def test_weights_and_penalties_are_of_each_client():
    task = made()
    found = [{**batch, "weights": torch.tensor([0.5, float(seed)])} for seed, batch in enumerate(batches())]
    wanted = []
    for seed, batch in enumerate(found):
        one = ask(task, batch, seed, apart=True)
        leaf, weights = one.leaves[0], batch["weights"]
        wanted.append(replace(one, objective=partial(_weighted, weights=weights, penalty=lambda a=leaf, b=seed: a.square().sum() * b)))
    for got, one in zip(joined(task.together(), wanted), wanted, strict=True):
        assert_same(got, alone(task, one))


def _weighted(losses: Tensor, weights: Tensor, penalty: Any) -> Tensor:
    return (losses * weights).sum() / weights.sum() + penalty()


def test_a_loss_that_is_not_finite_stays_its_clients_own():
    task = made()
    wanted = asked(task, batches())
    with torch.no_grad():
        wanted[1].leaves[-1].fill_(float("nan"))
    first, bad, last = joined(task.together(), wanted)
    assert not bad.losses.isfinite().any()
    assert_same(first, alone(task, wanted[0]))
    assert_same(last, alone(task, wanted[2]))


def test_nothing_is_left_in_the_module():
    task = made()
    joined(task.together(), asked(task, batches()))
    wrong = asked(task, [{**batch, "input_ids": batch["input_ids"] + 1000} for batch in batches()])
    with pytest.raises(IndexError):
        joined(task.together(), wrong)
    assert not any("forward" in vars(module) or module._forward_hooks for module in task.model.modules())
    assert task.model.training is False


# Which are joined


def groups(task: TransformerTask, wanted: Sequence[Wanted]) -> list[list[int]]:
    return task.together().groups(wanted)


def test_only_batches_that_are_alike_are_joined():
    task = made()
    same = batches(lengths=[(6, 8)] * 4)
    wanted = asked(task, same)
    assert groups(task, wanted) == [[0, 1, 2, 3]]
    other = ask(task, {**same[1], "targets": torch.eye(3)[:2]}, 1)
    assert groups(task, [wanted[0], other, *wanted[2:]]) == [[0, 2, 3], [1]]
    assert groups(task, [wanted[0], ask(task, same[1], 1, trained=task.names[:5]), *wanted[2:]]) == [[0, 2, 3], [1]]
    assert groups(task, [wanted[0], ask(task, same[1], 1, apart=True), *wanted[2:]]) == [[0, 2, 3], [1]]


def test_what_is_added_to_frozen_weights_must_be_the_same():
    task = made()
    weight, frozen = next(iter(task.adapted_weights().items()))
    wanted = asked(task, batches(lengths=[(6, 8)] * 3))
    for delta, expected in ((0.0, [[0, 1, 2]]), (1.0, [[0, 2], [1]])):
        with_deltas = [
            replace(one, params={**one.params, f"{weight}.delta": torch.full_like(frozen, 0.1 + delta * (place == 1))})
            for place, one in enumerate(wanted)
        ]
        assert groups(task, with_deltas) == expected
    for got, one in zip(joined(task.together(), with_deltas[::2]), with_deltas[::2], strict=True):
        assert_same(got, alone(task, one))


def test_an_adapter_that_is_no_linear_map_is_never_joined():
    task = adapted("bert", "prompt")
    assert task.together().unjoined == ("adapter.prompt",)
    assert groups(task, asked(task, batches(lengths=[(6, 8)] * 2), traced=False)) == [[0], [1]]
    assert made().together().unjoined == ()


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 64)), min_size=1, max_size=6), st.integers(0, 300))
def test_batches_are_joined_so_that_they_take_the_least(shapes: list[tuple[int, int]], cost: int):
    def tokens(cut: Sequence[Sequence[int]]) -> int:
        return sum(cost + max(shapes[i][1] for i in group) * sum(shapes[i][0] for i in group) for group in cut)

    found = by_length(shapes, cost)
    assert sorted(itertools.chain(*found)) == list(range(len(shapes)))
    assert tokens(found) == min(map(tokens, partitions(list(range(len(shapes))))))
    assert by_length(shapes, None) == [list(range(len(shapes)))]


def partitions(places: list[int]) -> list[list[list[int]]]:
    if not places:
        return [[]]
    first, found = places[0], []
    for cut in partitions(places[1:]):
        found += [[[first], *cut], *([*cut[:i], [first, *cut[i]], *cut[i + 1 :]] for i in range(len(cut)))]
    return found


def test_a_joined_batch_is_padded_as_its_fields_want_it():
    a = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2).long(), "labels": torch.tensor([[5, 6]])}
    b = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3).long(), "labels": torch.tensor([[-100, 8, 9]])}
    found = one_batch([a, b], pad_id=1)
    assert found["input_ids"].tolist() == [[5, 6, 1], [7, 8, 9]]
    assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert found["labels"].tolist() == [[5, 6, -100], [-100, 8, 9]]
    c = {**a, "targets": torch.rand(1, 2), "labels": torch.tensor([1])}
    d = {**b, "targets": torch.rand(1, 2), "labels": torch.tensor([0])}
    found = one_batch([c, d], pad_id=1)
    assert found["targets"].shape == (2, 2) and found["labels"].tolist() == [1, 0]


# Dropout


def dropping(family: Family, attention: str = "sdpa") -> TransformerTask:
    """A task whose dropouts all have a rate."""
    task = made(family)
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.2)
    task.dropout = 0.2
    task.model.set_attn_implementation(attention)  # pyright: ignore[reportCallIssue]
    return task


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_draws_for_each_client_what_it_draws_alone(family: Family, attention: str):
    task = dropping(family, attention)
    found = batches(family, ((8, 5), (3, 8), (8, 2)))
    together = task.together()
    wanted = [replace(one, stream=together.stream(Key(place))) for place, one in enumerate(asked(task, found))]
    before, passes = torch.get_rng_state(), []
    for _ in range(2):  # a stream goes on where it stood
        passes.append(joined(together, wanted))
    assert torch.equal(torch.get_rng_state(), before) and not task.model.training
    for place, one in enumerate(wanted):
        with task.training(Key(place)):
            first, second = alone(task, one), alone(task, one)
        assert not torch.equal(first.losses, second.losses)
        assert_same(passes[0][place], first)
        assert_same(passes[1][place], second)


def test_with_dropout_batches_of_one_length_are_joined():
    task = dropping("bert")
    together = task.together()
    wanted = [replace(one, stream=together.stream(Key(0))) for one in asked(task, batches(lengths=((8, 5), (9, 8), (8, 2))))]
    assert together.groups(wanted) == [[0, 2], [1]]


def test_a_draw_for_all_examples_at_once_is_rejected():
    task = made()
    streams: Any = [task.together().stream(Key(0)), task.together().stream(Key(1))]
    assert streams == [None, None]  # no dropout, no stream
    task.dropout = 0.5
    streams = [task.together().stream(Key(0)), task.together().stream(Key(1))]
    with pytest.raises(UnsupportedModel, match="at random for all examples"), each_from_its_own(streams, [1, 1]):
        torch.rand(())
    with pytest.raises(UnsupportedModel, match=r"shape \(1, 4\) for all 2 examples"), each_from_its_own(streams, [1, 1]):
        torch.nn.functional.dropout(torch.ones(1, 4), 0.5)
    with each_from_its_own(streams, [1, 1]):
        torch.nn.functional.dropout(torch.ones(1, 4), 0.0)


# Outputs of lower blocks


def test_kept_outputs_of_lower_blocks_change_no_bit_and_serve_only_what_is_the_same_for_all():
    task, plain = made("bert", layers=4), made("bert", layers=4)
    assert task.keep_activations(2**22) is not None and task.lower_blocks is not None
    upper = [name for name in task.names if (task.layer_of(name) or 0) > 1 or task.layer_of(name) is None]
    base = noisy(task)
    for same in (True, False):
        found = task.lower_blocks.found
        for _ in range(12):
            wanted = []
            for seed, batch in enumerate(batches()):
                own = noisy(task, seed)
                params = {name: own[name].clone() if name in upper or not same else base[name].clone() for name in task.names}
                wanted.append(Wanted(params, [params[name].requires_grad_() for name in upper], batch, torch.mean))
            for got, expected in zip(joined(task.together(), wanted), joined(plain.together(), wanted), strict=True):
                assert torch.equal(got.losses, expected.losses)
                assert all(torch.equal(a, b) for a, b in zip(got.of_leaves, expected.of_leaves, strict=True))
        assert (task.lower_blocks.found > found) == same


# Other families


def family_task(family: str, folder: Path, **more: Any) -> TransformerTask:
    with quiet():
        save_tiny(family, folder / "backbone")
        write_reviews(folder / "reviews.csv", 24)
        config = config_of_run(folder, "lora")
        table = config.model_dump()
        table["resources"]["cohort_batch"] = 2
        table["training"] |= more
        return prepare(Config.model_validate(table)).task  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "family", ["bloom", "deberta-v2", "deepseek_v3", "distilbert", "gemma2", "modernbert", "mpnet", "opt", "phimoe", "qwen2"]
)
def test_families_are_joined_or_rejected_before_training(family: str, dropout: float, tmp_path: Path):
    try:
        task = family_task(family, tmp_path, dropout=dropout)
    except UserError as error:
        assert "cannot be used with `resources.cohort_batch`: " in str(error), error
        assert (family, dropout) in REJECTED
        return
    assert (family, dropout) not in REJECTED
    wanted = asked(
        task, [padded(sentences(lengths, seed=seed, vocab=11), 0, num_classes=2) for seed, lengths in enumerate(((6, 4), (3, 5)))]
    )
    for got, one in zip(joined(task.together(), wanted), wanted, strict=True):
        expected = alone(task, one)
        torch.testing.assert_close(got.losses, expected.losses, rtol=1e-4, atol=1e-5)
        for a, b in zip(got.of_leaves, expected.of_leaves, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


REJECTED = (("phimoe", 0.1),)
"""It draws which experts to use for all examples at once."""
