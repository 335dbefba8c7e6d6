"""Curvature against dense Hessians, finite differences and polynomials whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, Params
from fibecfed.local.spectrum import (
    Spectrum,
    first_step_displacements,
    gradient_lipschitz,
    hessian_vector_product,
    lanczos,
    layer_curvature,
    layer_gap_ratio,
    plateau_ratio,
    spectrum,
)
from fibecfed.models.tiny import FAMILIES, Family, tiny_task
from fibecfed.models.transformer_task import TransformerTask

KEY = Key(0).fold("test")
pytestmark = pytest.mark.usefixtures("norms_in_float64")


class FunctionTask:
    """A loss given as a function of named tensors, with the layer of each."""

    device = torch.device("cpu")

    def __init__(self, losses: Callable[[Params, Batch], Tensor], layers: Mapping[str, int | None]) -> None:
        self.losses = losses
        self.layer_of = layers.__getitem__
        self.names = tuple(sorted(layers))
        self.num_layers = 1 + max(layer for layer in layers.values() if layer is not None)
        self.copies = 0

    def exact(self) -> FunctionTask:
        self.copies += 1
        return self


def small_task() -> Any:
    """Three residual blocks of two matrices each, a mixing of positions, and a head; 63 numbers."""

    def losses(params: Params, batch: Batch) -> Tensor:
        h = batch["x"]
        for layer in range(3):
            h = h + torch.tanh((h + h.mean(1, keepdim=True)) @ params[f"{layer}.a"].T) @ params[f"{layer}.b"].T
        return torch.nn.functional.cross_entropy(h.mean(1) @ params["head"].T, batch["labels"], reduction="none")

    return FunctionTask(losses, {f"{layer}.{factor}": layer for layer in range(3) for factor in "ab"} | {"head": None})


def small_params(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"{layer}.{factor}": (3, 3) for layer in range(3) for factor in "ab"} | {"head": (3, 3)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def small_batch() -> Batch:
    generator = torch.Generator().manual_seed(9)
    return {"x": torch.randn(5, 2, 3, generator=generator, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 1, 0])}


def text() -> Batch:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(6) < torch.tensor([6, 2, 4])[:, None]).long()
    return {
        "input_ids": torch.randint(3, 64, mask.shape, generator=generator) * mask,
        "attention_mask": mask,
        "labels": torch.tensor([1, 0, 1]),
    }


def tiny(family: Family) -> TransformerTask:
    """Layers made strong enough that the curvature between them is not all rounding."""
    task = tiny_task(family, dtype=torch.float64, hidden=8).exact()
    with torch.no_grad():
        for value in task.model.parameters():
            if value.ndim == 2:
                value.mul_(10)
    return task


def random_like(params: Params, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in params.items()}


def flat(tree: Params) -> Tensor:
    return torch.cat([tree[name].flatten() for name in sorted(tree)])


def gradient(task: Any, params: Params, batch: Batch) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    return dict(zip(leaves, torch.autograd.grad(task.losses(leaves, batch).mean(), list(leaves.values())), strict=True))


def dense_hessian(task: Any, params: Params, batch: Batch) -> Tensor:
    names = sorted(params)
    sizes = [params[name].numel() for name in names]

    def loss(vector: Tensor) -> Tensor:
        tree = {name: part.view(params[name].shape) for name, part in zip(names, vector.split(sizes), strict=True)}
        return task.losses(tree, batch).mean()

    hessian = torch.autograd.functional.hessian(loss, flat(params))
    assert isinstance(hessian, Tensor)
    return hessian


# Hessian-vector products


@pytest.mark.parametrize("family", FAMILIES)
def test_hessian_products_equal_central_differences_of_the_gradient(family: Family) -> None:
    task, batch = tiny(family), text()
    params = task.params()
    vector = random_like(params, 1)
    ahead = gradient(task, {name: params[name] + 1e-5 * vector[name] for name in params}, batch)
    behind = gradient(task, {name: params[name] - 1e-5 * vector[name] for name in params}, batch)
    product = hessian_vector_product(task, params, batch, vector)
    expected = (flat(ahead) - flat(behind)) / 2e-5
    torch.testing.assert_close(flat(product), expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))
    assert all(not tensor.requires_grad for tensor in product.values())


def test_hessian_products_are_of_the_mean_loss_and_a_part_left_out_of_the_vector_is_zero() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    dense = dense_hessian(task, params, batch)
    part = {"1.a": random_like(params, 3)["1.a"]}
    padded = {name: part.get(name, torch.zeros_like(value)) for name, value in params.items()}
    with torch.no_grad():
        torch.testing.assert_close(flat(hessian_vector_product(task, params, batch, part)), dense @ flat(padded))
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    torch.testing.assert_close(flat(hessian_vector_product(task, params, twice, part)), dense @ flat(padded))


def test_the_hessian_of_a_loss_that_is_linear_or_does_not_see_a_tensor_is_zero() -> None:
    task: Any = FunctionTask(lambda params, batch: (batch["x"] * params["a"]).sum(1), {"a": 0, "unused": 1})
    params = {"a": torch.ones(2), "unused": torch.ones(3)}
    product = hessian_vector_product(task, params, {"x": torch.ones(4, 2)}, params)
    assert {name: value.tolist() for name, value in product.items()} == {"a": [0, 0], "unused": [0, 0, 0]}


def test_half_precision_is_raised_to_float32() -> None:
    task: Any = FunctionTask(lambda params, batch: (params["a"] ** 3).sum() * batch["x"], {"a": 0})
    product = hessian_vector_product(task, {"a": torch.tensor([2.0], dtype=torch.bfloat16)}, {"x": torch.ones(1)}, {"a": torch.ones(1)})
    assert product["a"].dtype == torch.float32
    assert product["a"].tolist() == [12.0]


def test_unknown_names_and_gradients_that_are_not_finite_are_refused() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    with pytest.raises(ValueError, match=r"0\.c"):
        hessian_vector_product(task, params, batch, {"0.c": params["0.a"]})
    with pytest.raises(FloatingPointError, match=r"gradient of 0\.a is not finite"):
        hessian_vector_product(task, {**params, "head": params["head"] * math.nan}, batch, params)


# Curvature with one dimension per layer


def dense_layer_curvature(task: Any, params: Params, batch: Batch) -> Tensor:
    names, g = sorted(params), gradient(task, params, batch)
    columns = []
    for layer in range(task.num_layers):
        u = flat({name: g[name] if task.layer_of(name) == layer else torch.zeros_like(g[name]) for name in names})
        columns.append(u / u.norm() if u.norm() > 0 else u)
    u = torch.stack(columns, dim=1)
    return u.T @ dense_hessian(task, params, batch) @ u


def test_layer_curvature_equals_the_dense_hessian_between_unit_gradients() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    curvature = layer_curvature(task, params, batch)
    assert curvature.dtype == torch.float64
    assert torch.equal(curvature, curvature.T)
    torch.testing.assert_close(curvature, dense_layer_curvature(task, params, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_curvature_of_transformers_equals_the_dense_hessian(family: Family) -> None:
    task, batch = tiny(family), text()
    torch.testing.assert_close(layer_curvature(task, task.params(), batch), dense_layer_curvature(task, task.params(), batch))


def test_a_layer_without_gradient_has_a_row_and_column_of_zeros() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    params["1.a"], params["1.b"] = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    curvature = layer_curvature(task, params, batch)
    assert (curvature[1] == 0).all() and (curvature[:, 1] == 0).all()
    assert (curvature[[0, 2]][:, [0, 2]] != 0).all()


# Displacements and the Lipschitz constant


def test_displacements_are_as_long_as_the_first_step_of_adamw_and_as_random_as_their_key() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    params["1.b"] = torch.zeros(3, 3, dtype=torch.float64)  # as LoRA's B at the start: the gradient of 1.a is zero
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    task.losses(leaves, batch).mean().backward()
    torch.optim.AdamW(leaves.values(), lr=0.01, weight_decay=0).step()
    step = flat({name: leaves[name].detach() - params[name] for name in params}).norm()
    assert int((step / 0.01).square().round()) == 54  # 63 values, 9 without gradient
    displacements = first_step_displacements(task, params, batch, 0.01, KEY)
    assert len(displacements) == 3
    for displacement in displacements:
        assert {name: value.shape for name, value in displacement.items()} == {name: value.shape for name, value in params.items()}
        assert float(flat(displacement).norm()) == pytest.approx(float(step), rel=1e-4)
        assert (flat(displacement) != 0).all()
    again, other = (flat(first_step_displacements(task, params, batch, 0.01, key)[0]) for key in (KEY, KEY.fold("other")))
    assert torch.equal(flat(displacements[0]), again)
    assert not torch.equal(flat(displacements[0]), other)
    assert not torch.equal(flat(displacements[0]), flat(displacements[1]))


def test_the_lipschitz_constant_of_a_quadratic_is_zero() -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task: Any = FunctionTask(
        lambda params, batch: batch["x"] * (flat(params) @ matrix @ flat(params) + flat(params).sum()), {"a": 0, "b": 1}
    )
    params = {"a": torch.ones(4, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    batch = {"x": torch.tensor([1.0, 3.0], dtype=torch.float64)}
    displacements = [random_like(params, seed) for seed in range(3)]
    assert gradient_lipschitz(task, params, batch, displacements) < 1e-13


def test_the_lipschitz_constant_of_a_cubic_is_known() -> None:
    # F = sum p^3, so B(d) = 3 (p + d)^2 - 3 p^2 - 6 p d = 3 d^2, whatever p
    task: Any = FunctionTask(lambda params, batch: batch["x"] * (flat(params) ** 3).sum(), {"a": 0, "b": None})
    params = {"a": torch.tensor([0.5, -2.0], dtype=torch.float64), "b": torch.tensor([1.0], dtype=torch.float64)}
    displacements = [random_like(params, seed) for seed in range(3)]
    flats = [flat(displacement) for displacement in displacements]
    expected = max(float((3 * (flats[i] ** 2 - flats[j] ** 2)).norm() / (flats[i] - flats[j]).norm()) for i, j in ((0, 1), (0, 2), (1, 2)))
    batch = {"x": torch.ones(2, dtype=torch.float64)}
    assert gradient_lipschitz(task, params, batch, displacements) == pytest.approx(expected, rel=1e-12)
    assert gradient_lipschitz(task, params, batch, [displacements[0]] * 2) == 0
    with pytest.raises(ValueError, match="at least two"):
        gradient_lipschitz(task, params, batch, displacements[:1])
    with pytest.raises(ValueError, match="differ in"):
        gradient_lipschitz(task, params, batch, [{"a": params["a"]}, displacements[0]])


def test_the_lipschitz_constant_in_float32_is_that_of_float64() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    displacements = first_step_displacements(task, params, batch, 2e-3, KEY)
    low = gradient_lipschitz(task, {n: p.float() for n, p in params.items()}, {**batch, "x": batch["x"].float()}, displacements)
    assert low == pytest.approx(gradient_lipschitz(task, params, batch, displacements), rel=0.02)


# The spectrum as one probe sees it


def mass_above(values: Tensor, mass: Tensor, threshold: float) -> float:
    return float(mass[values > threshold].sum())


@pytest.mark.parametrize("family", [*FAMILIES, "small"])
def test_mass_above_a_threshold_equals_that_of_the_dense_eigendecomposition(family: Any) -> None:
    task: Any = small_task() if family == "small" else tiny(family)
    params, batch = (small_params(), small_batch()) if family == "small" else (task.params(), text())
    values, vectors = torch.linalg.eigh(dense_hessian(task, params, batch))
    sizes = [params[name].numel() for name in sorted(params)]
    given: list[Tensor] = []

    def matvec(vector: Tensor) -> Tensor:
        given.append(vector.clone())
        parts = zip(sorted(params), vector.split(sizes), strict=True)
        return flat(hessian_vector_product(task, params, batch, {name: part.view(params[name].shape) for name, part in parts}))

    # All steps at most: the Krylov space of a loss over so few examples ends long before.
    ritz, mass = lanczos(matvec, sum(sizes), 60 if family != "small" else sum(sizes), KEY)
    expected = (vectors.T @ given[0]) ** 2  # the first vector is the probe
    widest = torch.diff(values).argsort(descending=True)[:6]
    for threshold in ((values[widest] + values[widest + 1]) / 2).tolist():
        assert mass_above(ritz, mass, threshold) == pytest.approx(mass_above(values, expected, threshold), abs=1e-6)


# Both rules from one batch


def test_the_layer_gap_of_a_task_is_made_of_its_parts() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    found = spectrum(task, params, batch, "layer_gap", 1e-6, KEY)
    assert task.copies == 1
    values = torch.linalg.eigvalsh(dense_layer_curvature(task, params, batch)).tolist()
    assert found.eigenvalues == pytest.approx(values)
    assert found.lipschitz is not None
    assert found.ratio == layer_gap_ratio(values, found.lipschitz)
    # L_k shrinks with the length of the step, so that a very short one leaves a gap.
    assert found.ratio < 1
    assert found.gap == pytest.approx(values[round(3 * found.ratio)] - values[round(3 * found.ratio) - 1])
    assert found == spectrum(task, params, batch, "layer_gap", 1e-6, KEY)


def test_without_a_gap_wide_enough_all_layers_are_taken() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    found = spectrum(task, params, batch, "layer_gap", 1.0, KEY)
    assert (found.ratio, found.gap) == (1.0, None)


def test_the_plateau_of_a_task_is_made_of_its_ritz_values() -> None:
    task, params, batch = small_task(), small_params(), small_batch()
    dense = dense_hessian(task, params, batch)
    found = spectrum(task, params, batch, "plateau", 2e-3, KEY)
    ritz, mass = lanczos(dense.mv, len(dense), 30, KEY.fold("probe"))
    assert found == Spectrum(found.ratio, found.eigenvalues, None, None)
    assert found.ratio == pytest.approx(plateau_ratio(ritz, mass))
    assert found.eigenvalues == pytest.approx(tuple(ritz.tolist()), abs=1e-9)
    assert task.copies == 1


@pytest.mark.parametrize("rule", ["layer_gap", "plateau"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_transformers_that_train_with_fused_attention_have_a_spectrum(family: Family, rule: Any) -> None:
    task, batch = tiny_task(family, hidden=8), text()
    params = task.params()
    before = {name: value.clone() for name, value in params.items()}
    with torch.no_grad():
        found = spectrum(task, params, batch, rule, 2e-3, KEY)
    assert 0 <= found.ratio <= 1
    assert list(found.eigenvalues) == sorted(found.eigenvalues)
    assert all(map(math.isfinite, found.eigenvalues))
    assert len(found.eigenvalues) == 2 or rule == "plateau"
    assert all(torch.equal(params[name], before[name]) and not params[name].requires_grad for name in before)


def test_a_rule_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="layer_gap"):
        spectrum(small_task(), small_params(), small_batch(), "gap", 2e-3, KEY)  # pyright: ignore[reportArgumentType]
