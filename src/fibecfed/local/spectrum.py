"""Curvature of one client's loss, and the rules that read from it how many layers to aggregate globally.

[S] (arXiv 2410.00131, abstract and published summaries) says only that the number of layers is chosen "losslessly". Both rules here are
[C]: `layer_gap` looks at the Hessian with one dimension per layer, `plateau` at its whole spectrum. On LoRA the second is ill-posed (nearly
all spectral mass sits at eigenvalue 0, so that its answer hangs on rounding) and is kept for comparison.

Every derivative is taken of the *mean* loss over one batch, in float32 or better. Give these functions `task.exact()`: the fused attention
kernels have no second derivatives. `spectrum` does so itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.rng import Key
from ..core.task import Task
from ..core.trees import first_not_finite, num_values, placed
from ..core.types import Batch, Params


@dataclass(frozen=True)
class Spectrum:
    """What one client found out about its curvature.

    Attributes:
        ratio: r_k in [0, 1], the fraction of layers to aggregate globally.
        eigenvalues: ascending, nat a squared unit of the parameters: those of `layer_curvature` (layer_gap), or Ritz values (plateau).
        lipschitz: L_k of layer_gap; None for plateau.
        gap: lambda_(m+1) - lambda_m that layer_gap stopped at; None for plateau and where no gap was wide enough.
    """

    ratio: float
    eigenvalues: tuple[float, ...]
    lipschitz: float | None
    gap: float | None


def spectrum(task: Task, params: Params, batch: Batch, rule: Literal["layer_gap", "plateau"], learning_rate: float, key: Key) -> Spectrum:
    """r_k by one of the two rules, with what it was read from. [C]

    layer_gap: the eigenvalues of `layer_curvature`, L_k by `gradient_lipschitz` over `first_step_displacements`, then `layer_gap_ratio`.
    plateau: `lanczos` with 30 steps over all trainable tensors, head included, then `plateau_ratio`.

    Args:
        task: the model as it trains. Its `exact()` copy is made here, once, and let go in the end.
        batch: one batch of the client; all curvature is that of its mean loss.
        learning_rate: of the client's AdamW; it sets the length of the displacements (layer_gap alone).
        key: stream of the displacements or of the Lanczos probe.

    Raises:
        ValueError: a rule of another name.
        FloatingPointError: a gradient or Hessian product that is not finite.
    """
    if rule not in ("layer_gap", "plateau"):
        raise ValueError(f'got rule = {rule!r}; expected "layer_gap" or "plateau"')
    exact = task.exact()
    if rule == "plateau":
        leaves, gradients = _mean_gradient(exact, params, batch, create_graph=True)
        ritz, mass = lanczos(
            lambda vector: _flatten(_product(leaves, gradients, _unflatten(vector, leaves))),
            num_values(leaves.values()),
            num_steps=30,
            key=key.fold("probe"),
        )
        return Spectrum(plateau_ratio(ritz, mass), tuple(ritz.tolist()), None, None)
    eigenvalues = tuple(torch.linalg.eigvalsh(layer_curvature(exact, params, batch)).tolist())
    displacements = first_step_displacements(exact, params, batch, learning_rate, key.fold("displacements"))
    lipschitz = gradient_lipschitz(exact, params, batch, displacements)
    m = _first_gap(eigenvalues, lipschitz)
    gap = None if m is None else eigenvalues[m] - eigenvalues[m - 1]
    return Spectrum(layer_gap_ratio(eigenvalues, lipschitz), eigenvalues, lipschitz, gap)


def hessian_vector_product(task: Task, params: Params, batch: Batch, vector: Params) -> dict[str, Tensor]:
    """H v, with H the Hessian of the mean loss over the batch with respect to the task's trainable tensors.

    By backward through the graph of the gradient (Pearlmutter, 1994), exact up to rounding. Frozen weights that `params` replaces count
    as constants.

    Args:
        task: a task whose kernels have second derivatives: `task.exact()`.
        params: where H is taken.
        vector: v by name; a trainable tensor that is not named counts as zero, and saves its part of the work.

    Returns:
        One tensor for each of `task.names`, float32 or better, detached.

    Raises:
        ValueError: a name in `vector` that the task does not train.
        FloatingPointError: a gradient or product that is not finite.
    """
    _check_names(task, vector, complete=False)
    leaves, gradients = _mean_gradient(task, params, batch, create_graph=True)
    return _product(leaves, gradients, vector)


def layer_curvature(task: Task, params: Params, batch: Batch) -> Float[Tensor, "layers layers"]:
    """C(l, j) = u_l^T H u_j, the Hessian of the mean loss with one dimension per layer. [C]

    u_l is the gradient inside layer l, scaled to length 1, and zero elsewhere; where the gradient inside a layer is zero, so are its row
    and column. The head is in no layer. Costs L Hessian-vector products on one graph.

    Returns:
        C, float64 on the CPU, shape (L, L), index 0 = the block next to the embeddings; symmetrised as (C + C^T) / 2, which changes
        rounding alone.

    Raises:
        FloatingPointError: a gradient or product that is not finite.
    """
    leaves, gradients = _mean_gradient(task, params, batch, create_graph=True)
    directions = [
        _unit({name: gradients[name].detach() for name in leaves if task.layer_of(name) == layer}) for layer in range(task.num_layers)
    ]
    curvature = torch.zeros(task.num_layers, task.num_layers, dtype=torch.float64)
    for j, direction in enumerate(directions):
        product = _product(leaves, gradients, direction)
        for layer, other in enumerate(directions):
            curvature[layer, j] = sum(float(_double(other[name]).flatten() @ _double(product[name]).flatten()) for name in other)
    return (curvature + curvature.T) / 2


def first_step_displacements(task: Task, params: Params, batch: Batch, learning_rate: float, key: Key) -> tuple[dict[str, Tensor], ...]:
    """Three random displacements of all trainable tensors, as long as the client's first AdamW step. [C]

    AdamW's first step is -learning_rate g / (|g| + epsilon), a sign vector but for entries near epsilon, so that its length is
    learning_rate sqrt(number of values whose gradient on `batch` is not zero); weight decay is left out. Directions are uniform on the
    sphere over all trainable tensors, drawn from `key`. Where the whole gradient is zero the displacements are zero.

    Raises:
        FloatingPointError: a gradient that is not finite.
    """
    leaves, gradients = _mean_gradient(task, params, batch, create_graph=False)
    length = learning_rate * math.sqrt(sum(int(torch.count_nonzero(gradient)) for gradient in gradients.values()))
    displacements = []
    for index in range(3):
        normal = torch.randn(num_values(leaves.values()), generator=key.fold(index).generator(), dtype=torch.float64)
        displacements.append(_unflatten(normal * (length / normal.norm()), leaves))
    return tuple(displacements)


def gradient_lipschitz(task: Task, params: Params, batch: Batch, displacements: Sequence[Params]) -> float:
    """L_k, how fast the gradient leaves its linear model: the largest ||B(d1) - B(d2)|| / ||d1 - d2|| over pairs of displacements. [C]

    B(d) = grad F(P + d) - grad F(P) - H d with F the mean loss over the batch; 0 for a quadratic F. Norms are Euclidean over all trainable
    tensors. A pair of equal displacements says nothing and is left out.

    Raises:
        ValueError: fewer than two displacements, or names in one that are not those of `task.names`.
        FloatingPointError: a gradient that is not finite.
    """
    if len(displacements) < 2:
        raise ValueError(f"got {len(displacements)} displacements; expected at least two, to compare pairs of them")
    for displacement in displacements:
        _check_names(task, displacement, complete=True)
    leaves, gradients = _mean_gradient(task, params, batch, create_graph=True)
    at_start = _flatten(gradients)
    residuals = []
    for displacement in displacements:
        moved = {name: leaf.detach() + displacement[name].to(leaf) for name, leaf in leaves.items()}
        _, at_moved = _mean_gradient(task, {**params, **moved}, batch, create_graph=False)
        # What was added after rounding, so that float32 does not enter as curvature.
        added = {name: moved[name] - leaf.detach() for name, leaf in leaves.items()}
        residuals.append((_flatten(added), _flatten(at_moved) - at_start - _flatten(_product(leaves, gradients, added))))
    pairs = [((d1 - d2).norm(), (b1 - b2).norm()) for (d1, b1), (d2, b2) in combinations(residuals, 2)]
    return max((float(difference / distance) for distance, difference in pairs if distance > 0), default=0.0)


def layer_gap_ratio(eigenvalues: Sequence[float], lipschitz: float) -> float:
    """r_k = m / L at the first gap lambda_(m+1) - lambda_m > 4 L_k; 1 where there is none. [C]

    >>> layer_gap_ratio([0.0, 0.1, 0.2, 1.0, 9.0], lipschitz=0.125)
    0.6

    Args:
        eigenvalues: lambda_1 .. lambda_L, ascending.
        lipschitz: L_k of `gradient_lipschitz`.

    Raises:
        ValueError: no eigenvalues, eigenvalues that do not ascend or are not finite, or an L_k that is negative or not finite.
    """
    m = _first_gap(eigenvalues, lipschitz)
    return 1.0 if m is None else m / len(eigenvalues)


def lanczos(
    matvec: Callable[[Float[Tensor, " dim"]], Float[Tensor, " dim"]], dim: int, num_steps: int, key: Key
) -> tuple[Float[Tensor, " ritz"], Float[Tensor, " ritz"]]:
    """Stochastic Lanczos quadrature: the spectral measure of a symmetric matrix as one random probe sees it.

    With v a Rademacher probe of length 1 and H = sum_i lambda_i x_i x_i^T, the measure puts mass <x_i, v>^2 on lambda_i; its mean over
    probes is 1/dim on each eigenvalue. The Ritz values and masses are the Gauss quadrature of that measure: exact for polynomials up to
    degree 2 num_steps - 1, and the measure itself once the Krylov space is exhausted. Each new vector is orthogonalised twice against all
    earlier ones. Needs num_steps vectors of length dim in float64. (Golub and Meurant 2010; Ghorbani et al., ICML 2019.)

    Args:
        matvec: v -> H v; it is given float64 vectors on the CPU.
        dim: length of the vectors.
        num_steps: steps, at most `dim` of which are taken; fewer where the Krylov space ends earlier.
        key: stream of the probe.

    Returns:
        (ritz, mass): Ritz values ascending, and the mass on each, both float64; the masses sum to 1.

    Raises:
        ValueError: `dim` or `num_steps` below 1.
        FloatingPointError: a product that is not finite.
    """
    if dim < 1 or num_steps < 1:
        raise ValueError(f"got dim = {dim} and num_steps = {num_steps}; expected both to be at least 1")
    num_steps = min(num_steps, dim)
    probe = torch.randint(0, 2, (dim,), generator=key.generator()).double() * 2 - 1
    basis = torch.zeros(num_steps, dim, dtype=torch.float64)
    basis[0] = probe / math.sqrt(dim)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for k in range(num_steps):
        image = _double(matvec(basis[k]))
        if not torch.isfinite(image).all():
            raise FloatingPointError(f"the product of Lanczos step {k} is not finite; expected a finite Hessian at these parameters")
        diagonal.append(float(basis[k] @ image))
        for _ in range(2):
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        residual = float(image.norm())
        rounding = torch.finfo(torch.float64).eps * math.sqrt(dim) * max(map(abs, diagonal + off_diagonal))
        if k + 1 == num_steps or residual <= rounding:
            break
        off_diagonal.append(residual)
        basis[k + 1] = image / residual
    beside = torch.diag(torch.tensor(off_diagonal, dtype=torch.float64), 1)
    ritz, vectors = torch.linalg.eigh(torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + beside + beside.T)
    return ritz, vectors[0] ** 2


def plateau_ratio(
    ritz: Float[Tensor, " ritz"],
    mass: Float[Tensor, " ritz"],
    first_step: float = 0.01,
    tolerance: float = 0.005,
    quiet_steps: int = 3,
    max_halvings: int = 60,
) -> float:
    """The fraction of spectral mass above the first threshold at which that share stands still. [C]

    mass(t) = mass on Ritz values strictly above t. t goes up from 0 in equal steps until mass(t) changed by less than `tolerance` in
    `quiet_steps` consecutive steps; the answer is mass(t) there. If mass(t) falls below half of mass(0) first, the step is halved and t
    starts from 0 again. A step shorter than the smallest positive Ritz value over `quiet_steps` answers mass(0), so the search ends by
    itself; after `max_halvings` halvings, when the step is far below rounding, the answer is mass(0) as well. So it lies between half of
    mass(0) and mass(0).

    On LoRA the answer hangs on the sign of a value that is 0 up to rounding: kept for comparison.

    Args:
        ritz: Ritz values.
        mass: mass on each; sums to 1.
        first_step: the first step as a fraction of the largest absolute Ritz value.
        tolerance, quiet_steps: what standing still means.
        max_halvings: halvings of the step, at most.

    Raises:
        ValueError: shapes that differ, no values, or values that are not finite.
    """
    if ritz.shape != mass.shape or ritz.numel() == 0 or not (torch.isfinite(ritz).all() and torch.isfinite(mass).all()):
        raise ValueError(
            f"got shapes {tuple(ritz.shape)} and {tuple(mass.shape)}; expected one finite mass for each finite Ritz value, at least one"
        )

    def above(threshold: float) -> float:
        return float(mass[ritz > threshold].sum())

    at_zero = above(0.0)
    step = first_step * float(ritz.abs().max())
    for _ in range(max_halvings + 1):
        previous, quiet, count = at_zero, 0, 0
        while quiet < quiet_steps:
            count += 1
            now = above(count * step)
            if now < at_zero / 2:
                break
            quiet = quiet + 1 if abs(previous - now) < tolerance else 0
            previous = now
        else:
            return previous
        step /= 2
    return at_zero


def _first_gap(eigenvalues: Sequence[float], lipschitz: float) -> int | None:
    """m, 1-based: the first with lambda_(m+1) - lambda_m > 4 L_k."""
    if not eigenvalues or not all(map(math.isfinite, eigenvalues)) or list(eigenvalues) != sorted(eigenvalues):
        raise ValueError(f"got eigenvalues {list(eigenvalues)}; expected at least one, finite and ascending")
    if not (lipschitz >= 0 and math.isfinite(lipschitz)):
        raise ValueError(f"got L_k = {lipschitz}; expected a finite number, 0 or above")
    for m in range(1, len(eigenvalues)):
        if eigenvalues[m] - eigenvalues[m - 1] > 4 * lipschitz:
            return m
    return None


def _mean_gradient(task: Task, params: Params, batch: Batch, create_graph: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trainable tensors as leaves in float32 or better, and the mean loss's gradient there; both by `task.names`."""
    params = placed(params, task.device)
    leaves = {
        name: params[name].detach().to(torch.promote_types(params[name].dtype, torch.float32)).requires_grad_() for name in task.names
    }
    with torch.enable_grad():
        loss = task.losses({**params, **leaves}, batch).mean()
        gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True)
    named = dict(zip(leaves, gradients, strict=True))
    _check_finite(named, "gradient")
    return leaves, named


def _product(leaves: dict[str, Tensor], gradients: dict[str, Tensor], vector: Params) -> dict[str, Tensor]:
    """H v from a gradient that kept its graph, which stays usable."""
    # A gradient that does not depend on the parameters carries no graph: its rows of H are zero.
    rows = [name for name in vector if gradients[name].requires_grad]
    if not rows:
        return {name: torch.zeros_like(leaf, requires_grad=False) for name, leaf in leaves.items()}
    products = torch.autograd.grad(
        [gradients[name] for name in rows],
        list(leaves.values()),
        grad_outputs=[vector[name].detach().to(gradients[name]) for name in rows],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    named = dict(zip(leaves, products, strict=True))
    _check_finite(named, "Hessian product")
    return named


def _unit(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """`part` scaled to length 1; as it is if it is zero."""
    norm = math.sqrt(sum(float(_double(tensor).square().sum()) for tensor in part.values()))
    return part if norm == 0 else {name: tensor / norm for name, tensor in part.items()}


def _flatten(tree: Params) -> Float[Tensor, " dim"]:
    """One float64 vector on the CPU, in sorted order of names."""
    return torch.cat([_double(tree[name]).flatten() for name in sorted(tree)])


def _unflatten(vector: Float[Tensor, " dim"], like: Params) -> dict[str, Tensor]:
    """The inverse of `_flatten`, in the shapes, dtypes and on the devices of `like`."""
    names = sorted(like)
    parts = vector.split([like[name].numel() for name in names])
    return {name: part.view(like[name].shape).to(like[name]) for name, part in zip(names, parts, strict=True)}


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _check_names(task: Task, vector: Params, complete: bool) -> None:
    wrong = vector.keys() ^ set(task.names) if complete else vector.keys() - set(task.names)
    if wrong:
        raise ValueError(f"the vector and the task differ in {sorted(wrong)[:5]}; expected tensors named as in task.names")


def _check_finite(tree: Params, what: str) -> None:
    name = first_not_finite(tree)
    if name is not None:
        raise FloatingPointError(f"the {what} of {name} is not finite; expected finite derivatives at these parameters")
