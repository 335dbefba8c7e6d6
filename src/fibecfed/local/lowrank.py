"""Low-rank maps as matrices: the product that LoRA adds to a frozen weight, and the best low-rank form of a matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.task import LowRank
from ..core.types import Params


def product(params: Params, pair: LowRank) -> Float[Tensor, "d_out d_in"]:
    """scaling B A, float64: what the adapter adds to the weight."""
    return pair.scaling * (params[pair.b].double() @ params[pair.a].double())


def best_factors(
    matrix: Float[Tensor, "d_out d_in"], rank: int, scaling: float
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    """A and B with scaling B A = the best approximation of `matrix` of that rank (Eckart and Young 1936), float64.

    With the singular value decomposition U S V^T they are A = (S / scaling)^0.5 V^T and B = U (S / scaling)^0.5, cut to the first `rank`
    singular values: both factors get the same fraction of each. The entry of largest size in each column of U is made positive, so that the
    answer does not hang on the sign a library chooses. What is beyond the matrix' own size is 0.
    """
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    sign = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True)))
    root = (s / scaling).sqrt()
    a, b = (root[:, None] * vt * sign.T)[:rank], (u * sign * root)[:, :rank]
    missing = rank - a.shape[0]
    if missing > 0:
        a, b = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))
    return a, b
