"""Where the clients of a run are: in this process, or wherever something else with these methods reaches them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from .build import Prepared, most_workers
from .config import to_toml
from .core.files import CHECKPOINTS
from .core.statistics import Totals
from .core.trees import checksum
from .core.types import ClientId, Examples, Params, Round
from .engine.held import HeldStates
from .engine.private_examples import ExampleTraining
from .engine.runtime import ClientRuntime, States
from .engine.simulator import SideBySide, Simulator
from .engine.spawned import Launcher
from .engine.states import ClientStates, StatesAt
from .engine.transport import Transport
from .engine.workers import Workers
from .privacy.example_plan import ExamplePlan
from .privacy.examples import ClientLedgers
from .privacy.ledger import LEDGERS, SECRETS
from .privacy.plan import PrivacyPlan
from .saving import folder_names, save

Messages: TypeAlias = Callable[[Sequence[ClientId]], Mapping[ClientId, bytes]]
"""The encoded message to each of some clients, made when it is asked for."""

Summary: TypeAlias = Callable[[ClientId], Mapping[str, Any]]
"""What a client gets of the run's results."""

NOTHING_USED: tuple[float, tuple[ClientId, ...]] = 0.0, ()
"""Of `ClientManager.used`, where nothing of the run is in other processes."""


class ClientManager(Protocol):
    """The clients of one run."""

    @property
    def transport(self) -> Transport: ...

    @property
    def masked_run(self) -> str | None:
        """Name of the run for clients that mask what is summed; None: they are simulated, and masks would hide nothing."""
        ...

    def finish(
        self, messages: Messages, last: Round, shared: str, summary: Summary, header: Mapping[str, Any], adapters: bool
    ) -> Mapping[ClientId, str]:
        """Have each client that ever trained save its own adapter, unless it is the global one.

        Args:
            messages: the last broadcast to clients, of the round `last`.
            shared: checksum of the global adapter.
            summary, header: what each gets of the run, for its model card.
            adapters: False: nothing is saved.

        Returns:
            Checksum of each one's adapter.
        """
        ...

    @property
    def totals(self) -> Callable[[Params, Sequence[Examples], int], Sequence[Totals]] | None:
        """As for `Evaluator`."""
        ...

    def used(self) -> tuple[float, tuple[ClientId, ...]]:
        """Since it was asked last: CPU seconds of other processes of this run, and clients that were computed again since such a process
        had died."""
        ...

    def close(self) -> None:
        """No client is asked any more."""
        ...


Connect: TypeAlias = Callable[[Prepared, ClientStates | HeldStates, Path, int], ClientManager]
"""Reaches the clients of a run: from what it is made of, the store of states beside its checkpoints, its folder, and the number of rounds
completed before."""


@dataclass(frozen=True)
class InProcess:
    """All clients on this machine, in this process or in workers of it; their adapters go into the run's folder."""

    prepared: Prepared
    transport: Simulator
    states: ClientStates | HeldStates | StatesAt
    out: Path
    launcher: Launcher | None = None
    masked_run = None

    def finish(
        self, messages: Messages, last: Round, shared: str, summary: Summary, header: Mapping[str, Any], adapters: bool
    ) -> Mapping[ClientId, str]:
        """As `ClientManager.finish`."""
        digests = dict[ClientId, str]()
        folders = folder_names(self.prepared.inputs.data.clients)
        for client, blob in messages(list(self.states.clients())).items():
            own = self.personal_params(client, blob, last)
            digests[client] = checksum(own)
            if adapters and digests[client] != shared:
                folder = self.out / "clients" / folders[client]
                save(self.prepared, folder, client, own, summary(client), header, self.out / "global")
        return digests

    def personal_params(self, client: ClientId, message: bytes, last: Round) -> Params:
        """The model that a client has after the last broadcast."""
        return self.transport.runtime.personal_params(client, message, last)

    @property
    def totals(self) -> Callable[[Params, Sequence[Examples], int], Sequence[Totals]] | None:
        """As `ClientManager.totals`."""
        return self.transport.totals if isinstance(self.transport, Workers) and self.transport.shares_model else None

    def used(self) -> tuple[float, tuple[ClientId, ...]]:
        """As `ClientManager.used`."""
        return self.transport.used() if isinstance(self.transport, Workers) else NOTHING_USED

    def close(self) -> None:
        """As `ClientManager.close`."""
        if isinstance(self.transport, Workers):
            self.transport.close()
        if self.launcher is not None:
            self.launcher.close()


def in_process(
    prepared: Prepared, states: ClientStates | HeldStates | StatesAt, out: Path, completed: int, *, anew: bool = False
) -> InProcess:
    """Clients that are simulated in this process alone.

    Args:
        anew: whether clients of a private run begin new ledgers, though they took part before: where nothing is released.
    """
    return InProcess(prepared, Simulator(runtime_of(prepared, states, out, anew)), states, out)


def simulated(prepared: Prepared, states: ClientStates | HeldStates, out: Path, completed: int) -> InProcess:
    """Clients that are simulated here, in as many processes as `resources.workers` says, or with their passes joined as
    `resources.cohort_batch` says."""
    most, runtime, resources = most_workers(prepared), runtime_of(prepared, states, out), prepared.inputs.config.resources
    if resources.cohort_batch > 1:
        return InProcess(prepared, SideBySide(runtime, resources.cohort_batch), states, out)
    if most == 1:
        return InProcess(prepared, Simulator(runtime), states, out)
    kept = resources.activation_cache_mb * 2**20 if prepared.activation is not None else 0
    if resources.devices is not None:
        launcher = Launcher(orders(prepared, kept // most, out))
        return InProcess(prepared, Workers(runtime, most, at_once=True, keeps=bool(kept), start=launcher.start), states, out, launcher)

    def begin() -> None:
        if kept:
            prepared.task.keep_activations(kept // most)

    transport = Workers(runtime, most, at_once=resources.workers is not None, begin=begin, keeps=bool(kept))
    return InProcess(prepared, transport, states, out)


def orders(prepared: Prepared, cache: int, out: Path) -> list[dict[str, Any]]:
    """What a process of each device gets: the run's configuration there, and what model and data it must find.

    Args:
        cache: bytes of its activation cache.
        out: the run's folder.
    """
    config, found = prepared.inputs.config, list[dict[str, Any]]()
    resources = config.resources.model_copy(update={"devices": None, "workers": 1, "activation_cache_mb": 0})
    for device in config.resources.devices or ():
        training = config.training.model_copy(update={"device": device, "precision": prepared.task.precision})
        text = to_toml(config.model_copy(update={"training": training, "resources": resources}))
        order = {
            "config": text,
            "fingerprint": fingerprint(prepared),
            "cache": cache,
            "threads": config.resources.threads,
            "out": str(out.absolute()),
        }
        found.append(order)
    return found


def fingerprint(prepared: Prepared) -> str:
    """Tells whether two processes train the same tensors on the same texts."""
    data, digest = prepared.inputs.data, hashlib.sha256()
    for part in (data.train, data.validation, data.test):
        digest.update(part.lengths.numpy().tobytes())
        digest.update(part.table.ids.numpy().tobytes())
    digest.update(checksum(prepared.task.init_params(prepared.inputs.key)).encode())
    return digest.hexdigest()


def runtime_of(prepared: Prepared, states: States, out: Path, anew: bool = False) -> ClientRuntime:
    """What answers for the clients of a run in one process."""
    inputs = prepared.inputs
    size = inputs.config.evaluation.batch_size
    plan, key, examples = prepared.privacy, inputs.key.fold("run"), None
    clip_norm = plan.sent_norm if isinstance(plan, PrivacyPlan) else None
    if isinstance(plan, ExamplePlan):
        examples = ExampleTraining(ClientLedgers(plan.terms, _ledgers(prepared, out), anew))
    method, task = prepared.method, prepared.task
    return ClientRuntime(method, task, inputs.data.client, states, key, size, clip_norm, prepared.adding, examples)


def _ledgers(prepared: Prepared, out: Path) -> Callable[[ClientId], tuple[Path, Path]]:
    """Each client's own ledger, and its secret, which lies where nobody is given anything."""
    names = folder_names(prepared.inputs.data.clients)
    return lambda client: (out / LEDGERS / names[client], out / CHECKPOINTS / SECRETS / names[client])
