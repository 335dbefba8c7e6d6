"""`fibecfed helper`: takes the masks off the sums of a federation across machines. It has no data, and runs until it is stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import Config, common
from ..core.errors import UserError
from ..engine.flower.helper import OF_THE_MODEL, ResidentHelper
from ..engine.flower.sockets import SocketError, listening, serve
from ..engine.helped import HelpedSums
from ..engine.helping import Helping
from ..privacy.cohorts import cohorts_of
from ..privacy.options import HELPER
from ..private_run import raw_keys
from ..saving import versions
from ..secure import identity as pinned_key
from ..secure.helper import Limits
from . import client
from .client import ClientArguments, connected, federation_config, logged, moved_in, writable
from .status import IDLE, Status

COMMAND = "fibecfed helper"


def run(options: ClientArguments, say: Callable[[str], None]) -> None:
    """Answer until interrupted.

    Args:
        options: its name must be the helper's.

    Raises:
        UserError: whatever the user can fix; nothing was answered then.
    """
    config, say = federation_config(options), logged(say)
    limits = limits_of(config)
    with contextlib.ExitStack() as held:
        _, identity, status = moved_in(options, None, "helper", say, held)
        resident = resident_helper(config, limits, identity, options.folder, say, status)
        try:
            with listening(options.socket) as server:
                say(f"helper: listening at {options.socket} (process {os.getpid()}); it adds up masks of at least {limits.least} clients")
                status.update(doing=IDLE, since=time.time())
                with connected(options, say, status):
                    serve(server, resident.answer, say)
        except SocketError as error:
            raise UserError(f"--socket: {error}") from None


def show_key(options: ClientArguments) -> str:
    """The line that pins the helper's key, as `client.show_key` gives it for a client; before a new key, the file of what it answers.

    Raises:
        UserError: whatever the user can fix.
    """
    with writable(options.folder):
        if not (options.folder / pinned_key.KEY).exists():
            HelpedSums.begin(options.folder)
    return client.show_key(options, COMMAND)


def resident_helper(
    config: Config, limits: Limits, identity: str, folder: Path, say: Callable[[str], None], status: Status
) -> ResidentHelper:
    """The helper, with its pinned key and what it has answered.

    Raises:
        UserError: the key is lost, or not the pinned one, or the file of what it has answered is missing or damaged.
    """
    pinned = config.privacy.keys_by_name
    helping = Helping(pinned_key.own(folder, HELPER, pinned, COMMAND), raw_keys(config.privacy.pinned), limits, HelpedSums(folder))
    return ResidentHelper(identity, own_keys(config), versions(), helping, say, status.begun, status.ended)


def limits_of(config: Config) -> Limits:
    """What a sum must be, by this machine's copy of the configuration.

    Raises:
        UserError: it asks for no helper, or its cohorts are too small.
    """
    options, federation = config.privacy, config.federation
    if not options.helped:
        raise UserError(
            f'privacy.secure_aggregation: got "{options.secure_aggregation}", expected "helper", without which a federation has none; take '
            "the file of the federation"
        )
    cohorts = cohorts_of(options, min(federation.cohort_size(federation.clients), federation.clients))
    assert cohorts is not None
    return Limits(cohorts.least, cohorts.colluders, 64 if options.unit == "client" else 32)


def own_keys(config: Config) -> Mapping[str, Any]:
    """What the helper must have in common with the server: all but the model, which it does not have."""
    return {name: value for name, value in common(config, "").items() if name not in OF_THE_MODEL}
