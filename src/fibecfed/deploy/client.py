"""`fibecfed client`: one client of a federation across machines, loaded once, answering over a local socket until it is stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ..build import Prepared, prepare
from ..config import Config, common, load
from ..core.errors import UserError
from ..core.files import read_table, write_atomically
from ..core.json_text import to_json
from ..core.process import kept_memory, threads
from ..core.terminal import one_line
from ..core.types import ClientId, Params
from ..engine.checkpoint import run_lock
from ..engine.flower.resident import Place, Resident
from ..engine.flower.sockets import SocketError, listening, serve
from ..engine.helping import GivenSums
from ..engine.masking import OwnSums
from ..engine.options import CLIENT_NAME, EXPECTED_NAME
from ..engine.private_examples import ExampleTraining
from ..engine.runtime import PrivateExamples
from ..engine.summing import ClientSums
from ..inspection import show
from ..privacy.example_plan import ExamplePlan
from ..privacy.examples import ClientLedgers
from ..privacy.options import HELPER
from ..privacy.plan import PrivacyPlan
from ..private_run import raw_keys, scores_nothing
from ..reading import only
from ..saving import checksum_of_files, save, versions
from ..secure import identity as pinned_key
from .check import data_sections, site_sections, states_kept
from .metrics import HOST, served
from .status import IDLE, Status
from .superlink import SuperLink, checked, expires_soon, expiry
from .supernode import SuperNode, node_config, program

logger = logging.getLogger(__name__)

ABOUT = "client.json"
_ADVICE = (
    "restore it from a backup, or remove it and start again with the client's --name: a run that is under way then rejects it until "
    "`fibecfed resume`"
)


@dataclass(frozen=True)
class ClientArguments:
    """What a client says for itself.

    Attributes:
        config: the federation's configuration, the same file on every machine.
        overrides: `key=value` for keys that each machine sets for itself: where its data lies, its threads, its device.
        socket: where relays find it.
        folder: for its states and its own model.
        name: its stable name; None: the one it had before, else a new one.
        link: where the server is, for a SuperNode of its own; None: somebody starts one beside it.
        metrics_port: where Prometheus can ask on this machine; None: nowhere.
    """

    config: Path
    overrides: Sequence[str]
    socket: Path
    folder: Path
    name: str | None
    link: SuperLink | None = None
    metrics_port: int | None = None


def run(options: ClientArguments, say: Callable[[str], None], console: Console) -> None:
    """Load data and model, show what they are like, then answer until interrupted.

    Raises:
        UserError: whatever the user can fix; nothing was answered then.
    """
    config, say = federation_config(options), logged(say)
    with contextlib.ExitStack() as held:
        name, identity, status = moved_in(options, config, "client {name}", say, held)
        _check_key(options, config, name)  # before what takes long
        held.enter_context(threads(config.resources.threads))
        held.enter_context(kept_memory())
        began = time.perf_counter()
        prepared = prepare(config, read_data=only(name))
        data = prepared.inputs.data
        show(data_sections(prepared), console)
        say(
            f"client {name}: loaded {prepared.inputs.source.published} in {time.perf_counter() - began:.1f} s; {len(data.train)} training, "
            f"{len(data.validation)} validation and {len(data.test)} test examples"
        )
        resident = replace(_resident(prepared, name, identity, options.folder, say), begun=status.begun, ended=status.ended)
        try:
            with listening(options.socket) as server:
                say(f"client {name}: listening at {options.socket} (process {os.getpid()})")
                examples = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
                status.update(doing=IDLE, since=time.time(), examples=examples)
                with connected(options, say, status):
                    serve(server, resident.answer, say)
        except SocketError as error:
            raise UserError(f"--socket: {error}") from None


def moved_in(
    options: ClientArguments, config: Config | None, title: str, say: Callable[[str], None], held: contextlib.ExitStack
) -> tuple[ClientId, str, Status]:
    """Name, identity and status of what lives in a folder, which is held from now on, with its metrics where they are asked for.

    Args:
        config: as for `who`.
        title: what it is called when it speaks; `{name}` stands for its name.

    Raises:
        UserError: the connection cannot be made as it is asked for, or the folder is another one's, in use or not writable.
    """
    ends = None if options.link is None else look_at(options.link, options.socket, say)
    with writable(options.folder):
        held.enter_context(run_lock(options.folder))
        name, identity = who(options, config)
        status = Status(options.folder, superlink=options.link and options.link.address, certificate_ends=ends)
        status.update(name=name, connected=None if options.link is None else False)
    if options.metrics_port is not None:
        port = held.enter_context(served(status, options.metrics_port))
        say(f"{title.format(name=name)}: metrics at http://{HOST}:{port}/metrics")
    return name, identity, status


def look_at(link: SuperLink, client_socket: Path, say: Callable[[str], None]) -> float | None:
    """Find mistakes before data and model are loaded; when the server's certificate ends, where that can be seen.

    Raises:
        UserError: one that the user or the server's operator can fix.
    """
    checked(link)
    program("flower-supernode")
    node_config(client_socket, link.plain_http)
    end, away = expiry(link)
    if away is not None:
        say(f"{link.address} cannot be reached now ({away}); this client keeps trying")
    if (warning := expires_soon(end, time.time())) is not None:
        say(warning)
    return end


@contextlib.contextmanager
def connected(options: ClientArguments, say: Callable[[str], None], status: Status) -> Iterator[None]:
    """Inside, the client's own SuperNode runs, where it has one."""
    if options.link is None:
        yield
        return
    node = SuperNode(
        options.link,
        options.socket,
        options.folder,
        say,
        changed=lambda connected, restarts: status.update(connected=connected, restarts=restarts),
        ends=lambda end: None if end is None else status.update(certificate_ends=end),
    )
    node.start()
    try:
        yield
    except KeyboardInterrupt:
        if node.problem is not None:
            raise UserError(node.problem) from None
        raise
    finally:
        node.stop()


def logged(say: Callable[[str], None]) -> Callable[[str], None]:
    """As `say`, and the same in the log."""

    def both(text: str) -> None:
        logger.info("%s", one_line(text), extra={"shown": True})
        say(text)

    return both


def try_out(options: ClientArguments, console: Console) -> None:
    """Show what data and model are like on this machine, and whether the server can be reached; nothing is sent or written.

    Raises:
        UserError: whatever the user can fix.
    """
    config = federation_config(options)
    name = _name(options, config, _known(options)) or "this client"
    _check_key(options, config, name)
    if options.link is not None:
        look_at(options.link, options.socket, lambda text: console.print(Text(text)))
    with threads(config.resources.threads):
        show(site_sections(prepare(config, read_data=only(name), trial=True)), console)
    console.print(Text("This client can take part. Nothing was sent or written."))


def federation_config(options: ClientArguments) -> Config:
    """The federation's configuration, with what this machine sets for itself.

    Raises:
        UserError: it has a mistake, or is of no federation across machines.
    """
    config = load(options.config, options.overrides).config
    if config.federation.partition != "machines":
        raise UserError(
            f'{options.config}: federation.partition: got "{config.federation.partition}", expected "machines"; take the file of the '
            "federation, which `fibecfed flower init` wrote"
        )
    return config


def _resident(prepared: Prepared, name: ClientId, identity: str, folder: Path, say: Callable[[str], None]) -> Resident:
    inputs, private = prepared.inputs, prepared.privacy

    def save_own(where: Path, params: Params, summary: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        save(prepared, where, name, params, summary, header)

    return Resident(
        name=name,
        identity=identity,
        method=prepared.method,
        task=prepared.task,
        data=inputs.data.client(name),
        key=inputs.key.fold("run"),
        evaluation_batch_size=inputs.config.evaluation.batch_size,
        config=common(inputs.config, checksum_of_files(inputs.source)),
        versions=versions(),
        folder=folder,
        keep_states=states_kept(inputs.config),
        save=save_own,
        say=say,
        clip_norm=private.sent_norm if isinstance(private, PrivacyPlan) else None,
        scored=not scores_nothing(prepared),
        sums=_sums(prepared, name, folder),
        examples=_by_example(private) if isinstance(private, ExamplePlan) else None,
    )


def _by_example(plan: ExamplePlan) -> Callable[[Place], PrivateExamples]:
    return lambda place: ExampleTraining(ClientLedgers(plan.terms, place))


def _check_key(options: ClientArguments, config: Config, name: ClientId) -> None:
    """With secure aggregation: the key by which others know this client must be there.

    Raises:
        UserError: it is lost, or not the pinned one.
    """
    if config.privacy.summed:
        pinned_key.own(options.folder, name, config.privacy.pinned)


def _sums(prepared: Prepared, name: ClientId, folder: Path) -> ClientSums | None:
    """A client's part of masked sums; None without secure aggregation."""
    adding, cohorts, keys = prepared.adding, prepared.cohorts, prepared.inputs.config.privacy
    if adding is None or cohorts is None:
        return None
    identity, pinned = pinned_key.own(folder, name, keys.pinned), raw_keys(keys.pinned)
    if keys.helper_key is not None:
        return GivenSums(name, identity, pinned, bytes.fromhex(keys.helper_key), adding, cohorts)
    return OwnSums(name, identity, pinned, adding, cohorts)


def show_key(options: ClientArguments, command: str = pinned_key.CLIENT) -> str:
    """The line that pins this client's key, which is made where there is none. The configuration is not looked at: it may lack keys.

    Args:
        command: as for `secure.identity.made`.

    Raises:
        UserError: whatever the user can fix.
    """
    with writable(options.folder):
        name, _ = who(options, None)
        return f'"{name}" = "{pinned_key.public(pinned_key.made(options.folder, command))}"'


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Inside, a folder that cannot be written is a sentence.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield
    except OSError as error:
        raise UserError(f"--folder: {folder} cannot be written ({error.filename}: {error.strerror}); choose another one") from None


def _known(options: ClientArguments) -> dict[str, Any]:
    """What the client's folder says of it; empty before its first start."""
    path = options.folder / ABOUT
    before = read_table(path, _ADVICE) if path.is_file() else {}
    if before and not all(isinstance(before.get(key), str) for key in ("name", "identity")):
        raise UserError(f"{path}: got other keys or values, expected a name and an identity, both strings; {_ADVICE}")
    return before


def _name(options: ClientArguments, config: Config | None, before: Mapping[str, Any]) -> ClientId | None:
    """The client's name, of --name or of its folder; None: one is still to be drawn."""
    name = before.get("name") if options.name is None else options.name
    if before and name != before["name"]:
        raise UserError(f"--name: got {name!r}, but {options.folder} is that of client {before['name']!r}; choose another --folder")
    if name is not None and not re.fullmatch(CLIENT_NAME, name):
        raise UserError(f"--name: got {name!r}, {EXPECTED_NAME}; choose another one")
    if config is not None and config.privacy.helped and name == HELPER:
        raise UserError(f"--name: got {name!r}, which is the name of the helper (privacy.secure_aggregation); choose another one")
    names = None if config is None else config.federation.client_names
    if names is not None and name not in names:
        raise UserError(f"--name: got {name!r}, expected one of federation.client_names: {', '.join(names)}; say which one this is")
    return name


def who(options: ClientArguments, config: Config | None) -> tuple[ClientId, str]:
    """Name and identity of this client: those of its folder, or new ones that are written there."""
    before = _known(options)
    name = _name(options, config, before) or f"client-{secrets.token_hex(4)}"
    if not before:
        before = {"name": name, "identity": secrets.token_hex(8)}
        write_atomically(options.folder / ABOUT, (to_json(before) + "\n").encode())
    return name, before["identity"]
