"""Fisher information of single examples and of neurons, from one forward and backward pass a batch.

The empirical Fisher information of one example s, diagonal [S], is F(s) = g * g elementwise, g = grad_P log p(y | x; P). Two sums of
it are used:

- its trace, ||g||^2: the difficulty of the example [S];
- its sum over each neuron, a neuron being one output row of a trained tensor [C], averaged over the examples [S: neuron-wise aggregated].

In both the square is inside the sum over examples: (sum_s g(s))^2, the square of a batch gradient, is another number.

With x (batch, token, d_in) the input of a trained linear map and e (batch, token, d_out) the gradient of the *summed* losses at its
output, the gradient of example s is sum_t e[s, t] x[s, t]^T for the weight and sum_t e[s, t] for the bias: no loop over examples, no
vmap.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.classification import Classification, classification
from ..core.task import Tape, Task, TracedLinear
from ..core.trees import moved, placed
from ..core.types import Batch, Params
from .tokens import Normalise, information_scale


def _wide(tensor: Tensor) -> Tensor:
    """float32 where it was narrower; (batch, d) becomes (batch, 1, d), (batch, head, token, d) and the like (batch, head x token, d)."""
    tensor = tensor.detach()
    tensor = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return tensor.unsqueeze(1) if tensor.ndim == 2 else tensor.flatten(1, -2)


def example_gradients(
    linear: TracedLinear, output_gradient: Tensor
) -> tuple[Float[Tensor, "batch d_out d_in"], Float[Tensor, "batch d_out"] | None]:
    """Each example's own gradient of a weight and, if it is trained, of its bias.

    Args:
        linear: the linear map, with its input (batch, token, d_in) or (batch, d_in).
        output_gradient: gradient of the summed losses at its output, shaped like the output.

    Returns:
        sum_t e[s, t, o] x[s, t, i] and sum_t e[s, t, o] (None without a trained bias), float32 or better.
    """
    x, e = _wide(linear.input), _wide(output_gradient)
    return torch.bmm(e.transpose(1, 2), x), None if linear.bias is None else e.sum(1)


@dataclass(frozen=True)
class Squares:
    """Sums of squared per-example gradient entries of one batch, float32 or better; nothing is divided by anything.

    Attributes:
        trace: ||g(s)||^2 of each example over the tensors asked for, shape (batch,).
        rows: for every tensor asked for the sum over the examples of each output row's squares, shape (d_out,).
        columns: for every lora_B among them the same for each of its columns, one a rank, shape (r,).
    """

    trace: Tensor
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]


def is_lora_b(weight: str) -> bool:
    """Whether a tensor is the second factor of LoRA, whose columns are its ranks."""
    return "lora_B" in weight


def _weight_squares(weight: str, x: Tensor, e: Tensor, neurons: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(trace (batch,), rows (d_out,), columns (d_in,) of a lora_B) of one weight; x is (batch, token, d_in), e (batch, token, d_out).
    Without `neurons` the trace alone."""
    if x.shape[1] == 1 and not is_lora_b(weight):  # rank one: the gradient itself (a head's, d_out x d_in) is never needed
        by_row = e[:, 0].square() * x[:, 0].square().sum(-1, keepdim=True)
        return by_row.sum(1), by_row.sum(0) if neurons else None, None
    # One bmm a weight, the narrow side (the rank) first, so that the sums run along the contiguous wide one: for 24 LoRA matrices of
    # 8 x 384 and 32 examples of 32 tokens 2.9 ms on one thread, where einsum took 6.8 and stacking all into one bmm 24.7.
    if e.shape[-1] <= x.shape[-1]:
        squared = torch.bmm(e.transpose(1, 2), x).square_()  # (batch, d_out, d_in)
        by_row = squared.sum(2)
        return by_row.sum(1), by_row.sum(0) if neurons else None, squared.sum((0, 1)) if neurons and is_lora_b(weight) else None
    squared = torch.bmm(x.transpose(1, 2), e).square_()  # (batch, d_in, d_out)
    by_column = squared.sum(2)
    return by_column.sum(1), squared.sum((0, 1)) if neurons else None, by_column.sum(0) if neurons and is_lora_b(weight) else None


def squares(
    tape: Tape,
    output_gradients: Sequence[Tensor | None],
    scale: float = 1.0,
    trace_over: Collection[str] | None = None,
    rows_of: Collection[str] | None = None,
    each: Tensor | None = None,
) -> Squares:
    """Sums of squared per-example gradients of one batch, in one bmm a weight.

    The gradients of a map that is used more than once in a pass (DeBERTa's, for tokens and for relative positions) are added before they
    are squared.

    Args:
        tape: the trained linear maps of the forward pass.
        output_gradients: gradient of the summed losses at each map's output, in the tape's order; None where no loss depends on it.
        scale: factor on the gradients, so its square on the sums. After the backward pass of a *mean* over b examples it must be b.
        trace_over: names of the tensors whose squares add up to the trace; None = all.
        rows_of: names of the tensors whose rows and columns are wanted; None = all.
        each: a factor on each example's gradient, shape (batch,); None = 1.

    Raises:
        ValueError: another number of gradients than maps, or no maps.
    """
    if not tape.linears or len(output_gradients) != len(tape.linears):
        raise ValueError(
            f"got {len(output_gradients)} output gradients for {len(tape.linears)} linear maps; expected one each, at least one"
        )
    factor = scale * scale
    traces: list[Tensor] = []
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}

    def wanted(name: str, among: Collection[str] | None) -> bool:
        return among is None or name in among

    def collect(name: str, trace: Tensor, row: Tensor | None) -> None:
        if row is not None:
            rows[name] = row * factor
        if wanted(name, trace_over):
            traces.append(trace)

    if each is not None:
        output = tape.linears[0].output
        each = moved(each, output.device, torch.promote_types(output.dtype, torch.float32))
    for linear, x, e in uses(tape, output_gradients):
        e = e if each is None else e * each.to(e)[:, None, None]
        trace, row, column = _weight_squares(linear.weight, x, e, wanted(linear.weight, rows_of))
        collect(linear.weight, trace, row)
        if column is not None:
            columns[linear.weight] = column * factor
        if linear.bias is not None:
            by_row = e.sum(1).square()
            collect(linear.bias, by_row.sum(1), by_row.sum(0) if wanted(linear.bias, rows_of) else None)
    if not traces:
        first = tape.linears[0].output
        return Squares(torch.zeros(len(first), device=first.device), rows, columns)
    return Squares(torch.stack(traces).sum(0) * factor, rows, columns)


def uses(tape: Tape, output_gradients: Sequence[Tensor | None]) -> Iterator[tuple[TracedLinear, Tensor, Tensor]]:
    """Each map once, with its inputs and output gradients: those of several uses one after the other, as if they were tokens."""
    by_weight: dict[str, list[tuple[TracedLinear, Tensor | None]]] = {}
    for linear, gradient in zip(tape.linears, output_gradients, strict=True):
        by_weight.setdefault(linear.weight, []).append((linear, gradient))
    for each in by_weight.values():
        linear = each[0][0]
        found = [(_wide(use.input), _wide(gradient)) for use, gradient in each if gradient is not None]
        if not found:
            found = [(_wide(linear.input), torch.zeros_like(_wide(linear.output)))]
        inputs, gradients = zip(*found, strict=True)
        yield (linear, inputs[0], gradients[0]) if len(found) == 1 else (linear, torch.cat(inputs, 1), torch.cat(gradients, 1))


@dataclass(frozen=True)
class Neurons:
    """Fisher information of neurons: the mean over examples of what `Squares` sums. Float32, on the CPU.

    Attributes:
        rows: of every trained tensor, one number an output row, shape (d_out,).
        columns: of every lora_B, one number a rank, shape (r,).
    """

    rows: dict[str, Tensor]
    columns: dict[str, Tensor]

    def only(self, names: Collection[str]) -> Neurons:
        """That of these tensors alone: a client keeps no more than it uses."""
        rows, columns = ({name: value for name, value in of.items() if name in names} for of in (self.rows, self.columns))
        return Neurons(rows, columns)


class NeuronSums:
    """Sums over the examples seen so far, from which `mean` makes `Neurons`. Batches of unequal size weigh by their examples."""

    def __init__(self) -> None:
        self.num_examples = 0
        self._rows: dict[str, Tensor] = {}
        self._columns: dict[str, Tensor] = {}

    def add(self, new: Squares) -> None:
        """Count one more batch.

        Raises:
            ValueError: it traced other tensors than those before.
        """
        first = self.num_examples == 0
        self._rows = dict(new.rows) if first else _sum(self._rows, new.rows)
        self._columns = dict(new.columns) if first else _sum(self._columns, new.columns)
        self.num_examples += new.trace.shape[0]

    def mean(self) -> Neurons:
        """The sums over the number of examples.

        Raises:
            ValueError: no example was seen.
        """
        if self.num_examples == 0:
            raise ValueError("no example was seen: the mean of no numbers is not defined")
        return Neurons(self._mean_of(self._rows), self._mean_of(self._columns))

    def _mean_of(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: (total / self.num_examples).to("cpu", torch.float32) for name, total in totals.items()}


def _sum(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    if a.keys() != b.keys():
        raise ValueError(f"the two have different tensors: {sorted(a.keys() ^ b.keys())[:5]}")
    return {name: a[name] + b[name] for name in a}


def momentum(old: Neurons | None, new: Neurons, gamma: float) -> Neurons:
    """gamma old + (1 - gamma) new [S: momentum; C: gamma = 0.9]; `new` where there is no old.

    Raises:
        ValueError: the two hold other tensors.
    """
    if old is None:
        return new
    parts = []
    for before, after in ((old.rows, new.rows), (old.columns, new.columns)):
        if before.keys() != after.keys():
            raise ValueError(f"the Fisher information before and now is of other tensors: {sorted(before.keys() ^ after.keys())[:5]}")
        parts.append({name: gamma * before[name] + (1.0 - gamma) * after[name] for name in after})
    return Neurons(*parts)


@dataclass(frozen=True)
class FisherPass:
    """What one pass over the examples finds.

    Attributes:
        trace: difficulty d(s) = tr F(s) of each example in input order, float32 on the CPU, shape (examples,).
        neurons: Fisher information of the neurons, mean over these examples.
        num_examples: how many there were.
    """

    trace: Tensor
    neurons: Neurons
    num_examples: int


def fisher_pass(
    task: Task,
    params: Params,
    batches: Iterable[Batch],
    labels: Literal["true", "model"] = "true",
    over: Literal["all", "adapter"] = "all",
    names: Collection[str] | None = None,
    normalise: Normalise = "token",
) -> FisherPass:
    """Traces of the examples and Fisher information of the neurons, in one forward and backward pass a batch.

    Args:
        task: model with its trainable tensors.
        params: where the gradients are taken; not written, and need not require gradients.
        batches: tokenised examples with `labels`; padding has no part in the result.
        labels: "true": g of the example's own label [S: empirical]. "model" [C]: the expectation sum_y p(y | x) ||grad log p(y | x)||^2
            over the model's own distribution of the classes, exact, in one pass per class. It holds for the neurons as well. The
            gradient is that of `task.losses`; with words for classes it is thus of the word's probability in the whole vocabulary.
        over: "adapter" leaves tensors of no layer (the head) out of the trace [C]; the neurons are of all tensors in either case.
        names: the trainable tensors that count, in traces; None = all. No gradient is computed below them.
        normalise: by what the information of an answer of n labelled tokens is divided, in traces and neurons alike: "token" and
            "length-bins" n, "mean" n^2, "none" nothing [C]. Of examples with a class it changes nothing.

    Raises:
        ValueError: no batches, or an unknown `labels` or `over`.
        UserError: `labels` = "model" and a task that predicts no classes.
        FloatingPointError: a loss or a sum of squares that is not finite; names batch and tensor.
    """
    if labels not in ("true", "model"):
        raise ValueError(f"labels = {labels!r}; expected 'true' or 'model'")
    if over not in ("all", "adapter"):
        raise ValueError(f"over = {over!r}; expected 'all' or 'adapter'")
    trainable = frozenset(task.names if names is None else names)
    trace_over = frozenset(name for name in trainable if over == "all" or task.layer_of(name) is not None)
    classes = classification(task, 'labels = "model"', 'set "true"') if labels == "model" else None
    leaves = {name: tensor.detach().requires_grad_(name in trainable) for name, tensor in placed(params, task.device).items()}
    traces: list[Tensor] = []
    sums, finite = NeuronSums(), _Finite()
    for index, batch in enumerate(batches):
        if classes is None:
            found = _batch_squares(task, leaves, batch, trace_over, None, index, finite, information_scale(batch, normalise))
        else:
            found = _expected_squares(classes, leaves, batch, trace_over, index, finite)
        traces.append(found.trace)
        sums.add(found)
    if not traces:
        raise ValueError("no batches: there is nothing to take the Fisher information of")
    finite.check()
    return FisherPass(torch.cat(traces).to("cpu", torch.float32), sums.mean(), sums.num_examples)


def per_example_fisher_trace(
    task: Task,
    params: Params,
    batches: Iterable[Batch],
    labels: Literal["true", "model"] = "true",
    over: Literal["all", "adapter"] = "all",
    normalise: Normalise = "token",
) -> Float[Tensor, " examples"]:
    """tr F(s) = ||grad_P log p(y | x; P)||^2 of each example, float32, in input order: its difficulty [S].

    Arguments and errors as those of `fisher_pass`.
    """
    return fisher_pass(task, params, batches, labels, over, normalise=normalise).trace


class _Finite:
    """Whether the losses and squares of all batches are finite. Read once, at the end: a GPU would be waited for each time."""

    def __init__(self) -> None:
        self._batches: list[tuple[int, list[tuple[str, int]]]] = []
        self._found: list[Tensor] = []

    def add(self, batch: int, losses: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Look at a batch."""
        self._batches.append((batch, [(name, len(row)) for name, row in rows.items()]))
        (bad_loss, position), of_rows = _first_not_finite(losses), _first_not_finite(torch.cat(list(rows.values())))
        loss = losses.index_select(0, position)
        self._found.append(torch.cat([bad_loss, position, loss, *of_rows]))  # in the dtype of the losses, whatever device has it

    def check(self) -> None:
        """Raise FloatingPointError for the first batch of which something is not finite."""
        for (batch, tensors), (bad_loss, position, loss, bad_row, place) in zip(
            self._batches, torch.stack(self._found).tolist() if self._found else [], strict=True
        ):
            if bad_loss:
                raise FloatingPointError(f"batch {batch}: the loss of its example {int(position)} is {loss}; expected a finite number")
            if bad_row:
                ends = itertools.accumulate(size for _, size in tensors)
                name = next(name for (name, _), end in zip(tensors, ends, strict=True) if place < end)
                raise FloatingPointError(
                    f"batch {batch}, tensor {name}: its squared gradients are not finite; look for divergence in the training before"
                )


def _first_not_finite(values: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a number of a vector is not finite, and the place of the first one; each as a tensor of one number."""
    found = (~torch.isfinite(values)).byte().max(0, keepdim=True)
    return found.values, found.indices


def _batch_squares(
    task: Task,
    leaves: Params,
    batch: Batch,
    trace_over: Collection[str] | None,
    weights: Tensor | None,
    index: int,
    finite: _Finite,
    each: Tensor | None = None,
) -> Squares:
    """Squares of one batch at its labels; each example's times its weight, by weighting its loss with the square root."""
    losses, tape = task.traced(leaves, batch)
    tape = Tape(tuple(linear for linear in tape.linears if linear.output.requires_grad))
    total = losses.sum() if weights is None else (losses * weights.sqrt()).sum()
    gradients = torch.autograd.grad(total, [linear.output for linear in tape.linears], allow_unused=True)
    found = squares(tape, gradients, trace_over=trace_over, each=each)
    finite.add(index, losses.detach(), found.rows)
    return found


def _expected_squares(
    task: Classification, leaves: Params, batch: Batch, trace_over: Collection[str] | None, index: int, finite: _Finite
) -> Squares:
    """sum_y p(y | x) times the squares at label y: the classes are labels of the same examples, so their squares add up.

    p is over the classes: a language model's over their words, which in its whole vocabulary have a small fraction of the mass.
    """
    weights = task.logits(leaves, batch).softmax(-1)
    parts = []
    for label in range(task.num_classes):
        labelled = {**batch, "labels": torch.full_like(batch["labels"], label)}
        parts.append(_batch_squares(task, leaves, labelled, trace_over, weights[:, label], index, finite))
    total = parts[0]
    for part in parts[1:]:
        total = Squares(total.trace + part.trace, _sum(total.rows, part.rows), _sum(total.columns, part.columns))
    return total
