"""Prices by shape are those of the models of that shape."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fibecfed.comparison.runner import price as pricing
from fibecfed.comparison.runner.options import Comparison
from fibecfed.comparison.runner.plan import job
from fibecfed.comparison.runner.price import price, price_comparison
from fibecfed.comparison.runner.read import load
from fibecfed.core.errors import UserError
from fibecfed.models.shapes import Shape, config_of, shape_of

PAPER = load(Path(__file__).parents[3] / "configs" / "compare-paper.toml", ["methods=lora"])


@pytest.mark.parametrize(
    ("name", "millions", "layers", "hidden"), [("FacebookAI/roberta-large", 354, 24, 1024), ("huggyllama/llama-7b", 6607, 32, 4096)]
)
def test_published_models_have_their_published_sizes(name: str, millions: int, layers: int, hidden: int) -> None:
    shape = shape_of(config_of(name, PAPER.architecture[name]))
    assert (round(shape.values / 1e6), shape.layers, shape.hidden) == (millions, layers, hidden)
    assert shape.block_values < shape.values


@pytest.mark.parametrize(("family", "method"), [("llama", "fibecfed"), ("bert", "lora")])
def test_sizes_are_those_of_a_model_of_the_shape(family: str, method: str, compared: Callable[..., Comparison]) -> None:
    config = job(compared(), Path(), "reviews", method, 0).config
    shape = Shape(family, 6, 768, 4, 0, 0)  # pyright: ignore[reportArgumentType]
    found = pricing._extrapolated(config, shape, 2)
    real = pricing._prepared(config, pricing._small(config, shape, 6, 768, 2), 2)
    assert round(found.values) == sum(value.numel() for value in real.task.params().values())
    for phase, sizes in zip(pricing.plan_traffic(real), found.sizes, strict=True):
        assert sizes == pytest.approx((phase.down[1], phase.up[1]), rel=0.01)


def test_a_price_is_the_sum_over_tasks_and_seeds(compared: Callable[..., Comparison]) -> None:
    shape = Shape("bert", 4, 128, 4, 10**6, 10**6)
    found = price(compared("base.data.max_train=80", "seeds=0,1,2"), "lora", shape)
    # 2 of 4 clients a round with 20 examples each: 5 batches of 4, 2 epochs, 2 rounds, 3 seeds
    assert found.steps == 3 * 2 * 2 * 2 * 5
    assert found.bytes == pytest.approx(3 * 2 * 2 * (found.bytes_down + found.bytes_up), rel=1e-4)


def test_the_papers_comparison_is_priced_for_both_models_without_their_weights() -> None:
    console = Console(file=io.StringIO(), width=200)
    price_comparison(PAPER.model_copy(update={"tasks": ("sst2",)}), console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    # LoRA of rank 8 on query and value, a dense head and its last map: 24 x 2 x 16 x 1024 + 1024 x 1024 + 1024 + 2 x 1024 + 2
    assert "FacebookAI/roberta-large: roberta, 24 layers" in text and "1,838,082" in text
    assert "huggyllama/llama-7b: llama, 32 layers" in text and f"{32 * 2 * 16 * 4096 + 2 * 4096:,}" in text
    assert "adapter and head" in text and "trained values" not in text  # of which a method may train a part
    assert "weights 13.2 GB in bf16" in text and "tuning comes on top: 6 to 8 runs" in text
    assert text.rstrip().endswith("Nothing was trained or written.")


def test_what_cannot_be_priced_says_why(compared: Callable[..., Comparison]) -> None:
    with pytest.raises(UserError, match=r'architecture\."x": .*expected `model_type`'):
        config_of("x", {"hidden_size": 3})
    with pytest.raises(UserError, match="got a mpnet model, but only bert"):
        shape_of(config_of("x", {"model_type": "mpnet"}))
    nowhere = compared("base.model.name=nobody/nothing")
    with pytest.raises(UserError, match=r'write its shapes into \[architecture\."nobody/nothing"\]'):
        price_comparison(nowhere, Console(file=io.StringIO()))


def test_a_model_of_another_family_says_how_it_can_be_priced(compared: Callable[..., Comparison]) -> None:
    other = compared("methods=lora").model_copy(update={"architecture": {"x": {"model_type": "mpnet"}}})
    with pytest.raises(UserError, match=r'only bert, .*; to price it like one of them, write its sizes into \[architecture\."x"\]'):
        price_comparison(other, Console(file=io.StringIO()))


def test_a_reason_that_ends_with_a_full_stop_gets_no_second_one(
    compared: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(source: object) -> object:
        raise UserError("no connection and no cached files.")

    monkeypatch.setattr(pricing, "load_config", offline)
    with pytest.raises(UserError, match=r"cached files\. To price it without its files"):
        price_comparison(compared("methods=lora"), Console(file=io.StringIO()))


def test_one_run_is_one_run(compared: Callable[..., Comparison]) -> None:
    console = Console(file=io.StringIO(), width=200)
    price_comparison(compared("methods=lora"), console)
    assert "M values; 1 run\n" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
