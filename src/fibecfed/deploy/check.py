"""`fibecfed check` of a federation across machines, whose data this machine does not hold; and what a client says of the data it does."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from .. import check
from ..answers_shown import answers_sections
from ..build import Prepared, prepare
from ..config import Config
from ..core.clock import Network
from ..core.process import threads
from ..core.units import duration
from ..effort import plan_effort
from ..engine.flower.pace import ASKS_EVERY_S, FLOWER_S, network_seconds
from ..estimate import measure
from ..inspection import Section, as_table, data_section, show, warnings_section
from ..reading import assumed, max_length
from ..rehearsal import rehearse
from ..tracking.sinks import reject_missing

LINKS = ((Network(), 0.0), (Network(1.0, 1.0, 200.0), 0.01))
"""[C] What the seconds of a round are shown for, with the fraction of packets lost: that which a report assumes, and a slow one."""

EXAMPLES = 1000
"""[C] Training examples of each client that steps and time are estimated for."""


def report(config: Config, console: Console) -> None:
    """Prints what a federation would train, send and take, as far as that is known without the clients' data.

    Raises:
        UserError: a mistake that only shows when the model is read.
    """
    reject_missing(config.tracking)
    with threads(config.resources.threads):
        show(_sections(prepare(config, read_data=assumed(EXAMPLES), trial=True)), console)
    console.print(Text("The configuration is valid. Nothing was trained or written."))


def data_sections(prepared: Prepared) -> Iterator[Section]:
    """What a client has read, and what is likely to spoil it."""
    yield data_section(prepared)
    yield from answers_sections(prepared)
    yield from warnings_section(prepared)


def site_sections(prepared: Prepared) -> Iterator[Section]:
    """What `fibecfed client --check` shows: the client's data, and what a training step takes on its machine."""
    yield from data_sections(prepared)
    batch_size = min(prepared.inputs.config.training.batch_size, len(prepared.inputs.data.train))
    effort, pace = plan_effort(prepared), measure(prepared)
    scored = len(prepared.inputs.data.test) + len(prepared.inputs.data.validation)
    evaluating = pace.evaluation.of(effort.evaluations * (scored / max(1, effort.predicted)))
    rows = [
        (
            "time",
            f"{1000 * pace.step_seconds(effort):.0f} ms a training step of {batch_size} texts, {duration(evaluating)} an evaluation",
        ),
        ("memory", f"about {decimal(rehearse(prepared))} at the peak"),
    ]
    yield "This machine", as_table(("", ""), rows)


def states_kept(config: Config) -> int:
    """How many of its states a client keeps, so that it can go back with the server to a checkpoint."""
    return config.resources.keep_checkpoints * config.resources.checkpoint_every + 2


def _sections(prepared: Prepared) -> Iterator[Section]:
    config = prepared.inputs.config
    params = prepared.task.init_params(prepared.inputs.key)
    yield check.model_section(prepared, params)
    yield "Data and clients", as_table(("", ""), _clients(config))
    yield check.messages_section(prepared)
    yield from check.privacy_section(prepared)
    yield from check.sums_section(prepared)
    yield "Estimates, on a machine like this one", as_table(("", ""), _estimates(prepared))


def _clients(config: Config) -> list[tuple[str, ...]]:
    options = config.federation
    names = options.client_names or sorted(config.privacy.pinned)
    who = f"{options.clients}: {', '.join(names)}" if names else f"the first {options.clients} that answer"
    return [
        ("clients", who),
        ("learned", f"classes: {', '.join(config.data.labels or ())}" if config.data.kind == "classification" else "answers to prompts"),
        ("data", "on the clients, not read here; each shows what it has read when it starts, or with: fibecfed client --check"),
        ("assumed below", f"{EXAMPLES:,} training examples at each client, of {max_length(config)} tokens, the longest (data.max_length)"),
    ]


def _estimates(prepared: Prepared) -> list[tuple[str, ...]]:
    config, data = prepared.inputs.config, prepared.inputs.data
    params = prepared.task.init_params(prepared.inputs.key)
    effort, pace = plan_effort(prepared), measure(prepared)
    together = min(config.federation.cohort_size(len(data.clients)), len(data.clients))  # they train at the same time
    seconds, step_ms = pace.seconds(effort)[0] / together, 1000 * pace.step_seconds(effort)
    size = sum(value.nbytes for value in params.values())
    kept, state = states_kept(config), check.state_bytes(prepared, size)
    return [
        ("optimiser steps", f"about {effort.steps:,} of all clients together"),
        (
            "time",
            f"about {duration(seconds)} for training, without network and evaluations; a step takes {step_ms:.0f} ms here",
        ),
        *_ways(prepared),
        ("memory of a client", f"about {decimal(rehearse(prepared))} at the peak"),
        ("disk of a client", f"about {decimal(kept * state + size)}: up to {kept} states of {decimal(state)} or more, and its own adapter"),
        ("disk of the server", f"about {decimal((config.resources.keep_checkpoints + 1) * size)}: checkpoints and the global adapter"),
    ]


def _ways(prepared: Prepared) -> list[tuple[str, ...]]:
    """Seconds of the largest round's messages on their way, over links of several kinds."""
    largest = max(check.plan_traffic(prepared), key=lambda traffic: traffic.down.most + traffic.up.most)
    down, up = largest.down.most, largest.up.most
    clients = prepared.inputs.config.federation.cohort_size(len(prepared.inputs.data.clients))
    rows: list[tuple[str, ...]] = []
    for link, loss in LINKS:
        seconds = duration(network_seconds(down, up, link, loss, clients))
        lost = f" and {loss:.0%} of the packets lost" if loss else ""
        about = f"about {seconds} a round, at {link.latency_ms:g} ms in each direction{lost}"
        rows.append((f"network, {link.up_mbit:g}/{link.down_mbit:g} Mbit/s", about))
    pauses = f"a SuperNode asks every {ASKS_EVERY_S:g} s, and starts a process for each message"
    return [*rows, ("Flower", f"about {duration(FLOWER_S)} a round beside these: {pauses}")]
