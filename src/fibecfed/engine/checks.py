"""What an answer must be before it is used.

Everything it is compared with comes from the server's side, never from other clients' answers, so that a wrong one cannot make right
ones look wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import Phase, Work
from ..core.statistics import Statistics, Totals
from ..core.types import Round
from ..core.wire import decode, field_kinds, tensors_of
from .failures import Counted
from .options import FederationOptions
from .runtime import BothScored, Scored, named, not_finite, unframe

OVERHEAD_BYTES = 2**20
"""What an answer may take beside its tensors, for names and plain fields."""

MAX_SUMS_BYTES = 2**24
"""Of the answer to an evaluation: two confusion matrices of a thousand classes, or four of 700."""

MOST = 2**40
"""Steps or examples that a client may count: sums over eight million such clients still fit into 64 bits."""

LARGEST = 1e100
"""A loss or seconds of a client: sums over clients, and products with a number of examples, stay finite."""

_PLAIN = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
"""What can be computed with everywhere."""


class Refused(Exception):
    """An answer that must not be aggregated; the text says what of it, what was got and what was expected."""


@dataclass(frozen=True)
class Expected:
    """What the server expects of every answer in one round, made by `expected`.

    Attributes:
        up: class of the message.
        like: field -> tensors whose names, shapes and dtypes an answer must have. A field that is not there must only be finite.
        sent: field -> the tensors that were sent, for the fields that an answer has too.
        max_bytes: length of the whole answer.
        usual_bytes: length of the tensors that it must have.
        problem: the phase's own check.
    """

    up: type
    like: Mapping[str, Mapping[str, Tensor]]
    sent: Mapping[str, Mapping[str, Tensor]]
    max_bytes: int
    usual_bytes: int
    problem: Callable[[Any], str | None]


def expected(phase: Phase[Any, Any, Any, Any], server: Any, broadcast: Any, now: Round) -> Expected:
    """What answers to `broadcast` must look like: as the phase's template, or else as the broadcast, or else as the server's state."""
    down, state = tensors_of(broadcast), tensors_of(server)
    template = {} if phase.template is None else tensors_of(phase.template(server, now))
    kinds = field_kinds(phase.up)
    sent, kept = (
        {field: tensors for field, tensors in table.items() if field_kinds(type(value))[field] == kinds.get(field)}
        for value, table in ((broadcast, down), (server, state))
    )
    # tensors that the server has none of yet say nothing about those to come
    like = {**{field: tensors for field, tensors in kept.items() if tensors}, **sent} if phase.template is None else template
    largest, usual = sum(map(_bytes_of, (down, state, template))), _bytes_of(like)
    own = phase.problem
    return Expected(phase.up, like, sent, OVERHEAD_BYTES + largest, usual, lambda message: None if own is None else own(server, message))


def _bytes_of(table: Mapping[str, Mapping[str, Tensor]]) -> int:
    return sum(tensor.nbytes for tensors in table.values() for tensor in tensors.values())


def checked(reply: bytes, expect: Expected, tolerance: FederationOptions, declared: int | None, copy: bool = True) -> tuple[Any, Work]:
    """The message and the work of a reply.

    Args:
        declared: training examples that the client named before; None if it has not yet.
        copy: as for `core.wire.decode`.

    Raises:
        Refused: it must not be aggregated.
        WireError: it is not a message of the class and wire version expected.
    """
    if len(reply) > expect.max_bytes:
        raise Refused(f"a reply of {len(reply)} bytes, expected at most {expect.max_bytes}")
    encoded, work = unframe(reply)
    message = decode(expect.up, encoded, copy)
    unlike = _unlike(message, expect.like) or not_finite(message)
    if unlike is None and tolerance.on_excess == "clip":
        message = _nearer(message, expect, tolerance.max_update_norm)
    problem = (
        unlike
        or _bad_work(work)
        or _bad_number_of_examples(message, tolerance.max_samples, declared)
        or _too_far(message, expect, tolerance.max_update_norm)
        or expect.problem(message)
    )
    if problem is not None:
        raise Refused(problem)
    return message, work


def checked_sums(reply: bytes, statistics: Statistics, most: int, known: Counted | None) -> Scored:
    """The sums of an evaluation.

    Args:
        statistics: of the task.
        most: examples that a part may have; 0 = no limit.
        known: examples of each kind in the client's first answer to an evaluation; None if it has not answered one yet.

    Raises:
        Refused: they are not the task's sums, or cannot be those of this client's data.
        WireError: it is not a message of the class and wire version expected.
    """
    if len(reply) > MAX_SUMS_BYTES:
        raise Refused(f"a reply of {len(reply)} bytes, expected at most {MAX_SUMS_BYTES}")
    scored = decode(Scored, reply)
    _check_sums(scored, statistics, most, known, "in its first evaluation")
    return scored


def checked_both_sums(reply: bytes, statistics: Statistics, most: int, known: Counted | None) -> BothScored:
    """As `checked_sums`, of both models, which are scored on the same examples.

    Raises:
        Refused, WireError: as there.
    """
    if len(reply) > MAX_SUMS_BYTES:
        raise Refused(f"a reply of {len(reply)} bytes, expected at most {MAX_SUMS_BYTES}")
    both = decode(BothScored, reply)
    _check_sums(both.own, statistics, most, known, "in its first evaluation")
    _check_sums(both.of_global, statistics, most, counted(both.own, statistics), "with its own model")
    return both


def _check_sums(scored: Scored, statistics: Statistics, most: int, known: Counted | None, when: str) -> None:
    like = {"test": statistics.zero, "validation": statistics.zero}
    problem = _unlike(scored, like) or _bad_sums("test", scored.test, statistics, most)
    problem = problem or _bad_sums("validation", scored.validation, statistics, most)
    if problem is None and known is not None:
        parts = zip(("test", "validation"), counted(scored, statistics), known, strict=True)
        found = [(field, now, then) for field, now, then in parts if now != then]
        problem = _other_examples(*found[0], statistics, when) if found else None
    if problem is not None:
        raise Refused(problem)


def counted(scored: Scored, statistics: Statistics) -> Counted:
    """Examples of each kind in the test part and in the validation part."""
    return statistics.counted(scored.test), statistics.counted(scored.validation)


def _bad_sums(field: str, sums: Totals, statistics: Statistics, most: int) -> str | None:
    limit, option = (min(most, MOST), " (federation.max_samples)") if most else (MOST, "")
    for name, total in sorted(sums.items()):
        if total.is_floating_point():
            if not bool((total.abs() <= LARGEST).all()):  # NaN is not either
                return f"{named(field, name)} has a sum that is not finite or above {LARGEST:g}, expected an ordinary number"
        elif bool((total < 0).any()):
            return f"{named(field, name)} has a count of {int(total.min())}, expected at least 0"
    if (number := sum(statistics.counted(sums))) > limit:
        return f"{field} counts {number} examples, expected at most {limit}{option}"
    problem = statistics.problem(sums)
    return None if problem is None else f"{field} {problem}"


def _other_examples(field: str, now: tuple[int, ...], then: tuple[int, ...], statistics: Statistics, when: str) -> str:
    place = next(place for place, (a, b) in enumerate(zip(now, then, strict=True)) if a != b)
    return f"{field} counts {now[place]} examples of {statistics.kind(place)}, expected {then[place]} as {when}"


def num_samples(message: Any) -> int | None:
    """The number of training examples that a message names; None where its class has no such field."""
    return message.num_samples if field_kinds(type(message)).get("num_samples") == "scalar" else None


def _unlike(message: Any, like: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    for field, tensors in tensors_of(message).items():
        wanted = like.get(field)
        if wanted is None:
            if strange := [name for name in sorted(tensors) if tensors[name].dtype not in _PLAIN]:
                return f"{named(field, strange[0])} of its update has dtype {_dtype(tensors[strange[0]])}, expected one to compute with"
            continue
        if unknown := sorted(tensors.keys() - wanted.keys()):
            return f"{field} of its update has {len(unknown)} unknown tensors ({_some(unknown)}), expected {len(wanted)} of known names"
        if missing := sorted(wanted.keys() - tensors.keys()):
            return f"{field} of its update lacks {len(missing)} tensors ({_some(missing)}), expected {len(wanted)}"
        for name in sorted(tensors):
            got, want = tensors[name], wanted[name]
            if got.dtype != want.dtype:
                return f"{named(field, name)} of its update has dtype {_dtype(got)}, expected {_dtype(want)}"
            if got.ndim != want.ndim or any(size != a for size, a in zip(got.shape, want.shape, strict=True) if a):
                return f"{named(field, name)} of its update has shape {tuple(got.shape)}, expected {_shape(want)}"
    return None


def _bad_work(work: Work) -> str | None:
    if not (0 <= work.loss <= LARGEST and 0 <= work.compute_s <= LARGEST):
        return f"its loss is {work.loss} and its seconds {work.compute_s}, expected finite numbers of at least 0"
    if max(work.steps, work.examples) > MOST:
        return f"it counts {work.steps} steps on {work.examples} examples, expected at most {MOST}"
    return None


def _bad_number_of_examples(message: Any, most: int, declared: int | None) -> str | None:
    count = num_samples(message)
    if count is None:
        return None
    if not 1 <= count <= min(most or MOST, MOST):
        return f"num_samples is {count}, expected at least 1 and at most " + (f"{most} (federation.max_samples)" if most else f"{MOST}")
    if declared is not None and count != declared:
        return f"num_samples is {count}, expected {declared} as in its first answer"
    return None


def _nearer(message: Any, expect: Expected, most: float) -> Any:
    """The message with its update scaled down to the norm `most`, if it is larger and there is a limit."""
    if not most or _too_far(message, expect, most) is None:
        return message
    far: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    for field, tensors in tensors_of(message).items():
        for name, tensor in tensors.items() if field in expect.sent else ():
            base = _compared(tensor, expect.sent[field].get(name), expect.like.get(field, {}).get(name))
            base = torch.zeros((), dtype=torch.float64) if base is None else base.detach().double().cpu()
            far[field, name] = base, tensor.detach().double().cpu() - base
    largest = max(float(part.abs().max()) for _, part in far.values() if part.numel())
    factor = most * (1 - 2**-20) / (largest * math.sqrt(math.fsum(float((part / largest).square().sum()) for _, part in far.values())))
    kinds, changed = field_kinds(type(message)), dict[str, Any]()
    for field, tensors in tensors_of(message).items():
        if field in expect.sent:
            part = {name: (far[field, name][0] + factor * far[field, name][1]).to(tensor) for name, tensor in tensors.items()}
            changed[field] = part if kinds[field] == "tensors" else part[""]
    return replace(message, **changed)


def _too_far(message: Any, expect: Expected, most: float) -> str | None:
    if not most:
        return None
    square, worst, worst_name = 0.0, -1.0, ""
    for field, tensors in tensors_of(message).items():
        if field not in expect.sent:
            continue
        for name, tensor in sorted(tensors.items()):
            part = _difference(tensor, expect.sent[field].get(name), expect.like.get(field, {}).get(name))
            square += part
            if part > worst:
                worst, worst_name = part, named(field, name)
    if square <= most**2:
        return None
    return (
        f"its update differs from what it was sent by {math.sqrt(square):.4g} (L2 norm, most of it in {worst_name}), "
        f"expected at most {most:g} (federation.max_update_norm)"
    )


def _compared(tensor: Tensor, *others: Tensor | None) -> Tensor | None:
    """The first of `others` of the same shape."""
    return next((other for other in others if other is not None and other.shape == tensor.shape), None)


def _difference(tensor: Tensor, *others: Tensor | None) -> float:
    """The squared L2 norm of the difference to the first of `others` of the same shape; to 0 if there is none."""
    known = _compared(tensor, *others)
    difference = tensor.to("cpu", torch.float64) - (0.0 if known is None else known.to("cpu", torch.float64))
    return float(difference.square().sum())


def _some(names: list[str]) -> str:
    shown = ", ".join(name if len(name) <= 80 else f"{name[:77]}..." for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def _shape(tensor: Tensor) -> str:
    sizes = ["any" if size == 0 else str(size) for size in tensor.shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
