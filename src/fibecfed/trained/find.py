"""Which saved model of a run is meant, and where it lies."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config, load
from ..core.errors import UserError
from ..core.files import COMPARISON, CONFIG, RECORDS, SUMMARY, expanded, kind_of
from ..core.records import RoundRecord
from ..core.types import ClientId
from ..data.names import listed, shown
from ..engine.log import read_header, read_records
from ..models.own_adapters import TABLE, TENSORS
from ..reading import is_instruction
from ..saving import folder_names


@dataclass(frozen=True)
class FoundModel:
    """A saved model.

    Attributes:
        run: the run's folder.
        folder: of the adapter.
        client: whose it is; None: the global one.
        config: of the run.
        files: SHA-256 of the base model's weight files, by name; empty for a model of the hub.
        note: what the user has to be told; None: nothing.
    """

    run: Path
    folder: Path
    client: ClientId | None
    config: Config
    files: dict[str, str]
    note: str | None = None


def find(run: str | Path, client: ClientId | None = None, base: str | None = None) -> FoundModel:
    """The global model of a run, or that of one of its clients.

    Args:
        base: where the base model lies by now; None: where the run's configuration says.

    Raises:
        UserError: no run, one without such a model, or an unknown client.
    """
    run = expanded(run)
    _reject_other_folders(run)
    config = load(run / CONFIG, [] if base is None else [f"model.name={base}"]).config
    if not (run / SUMMARY).is_file():
        raise UserError(
            f"{run}: got a run that is not finished, expected one with its models, which are saved at its end; "
            f"finish it with: fibecfed resume {shlex.quote(str(run))}"
        )
    if not (run / "global").is_dir():
        raise UserError(
            f"{run}: got a run without adapters, expected {run / 'global'}; runs of a comparison keep none: train one by itself with: "
            f"fibecfed run {shlex.quote(str(run / CONFIG))} --out FOLDER"
        )
    header = read_header(run / RECORDS)
    files = header.get("model", {}).get("files", {})
    folder, note = run / "global", None
    if client is not None:
        folder, note = _of_client(run, client, header.get("partition", {}), config)
    _reject_incomplete(folder)
    return FoundModel(run, folder, client, config, files, note)


_OF_PEFT, _OWN = ("adapter_config.json", "adapter_model.safetensors"), (TABLE, TENSORS)
"""What an adapter's folder holds in PEFT's format; where the method trains something else than LoRA, in ours."""


def _reject_incomplete(folder: Path) -> None:
    is_own = any((folder / name).exists() for name in _OWN)
    lost = [name for name in (_OWN if is_own else _OF_PEFT) if not (folder / name).is_file()]
    if lost:
        raise UserError(
            f"{folder}: got an adapter without {' and '.join(lost)}, expected it as the run saved it; restore the folder from a backup"
        )


def _reject_other_folders(run: Path) -> None:
    if (run / CONFIG).is_file():
        return
    if (run / COMPARISON).is_file():
        raise UserError(f"{run}: got the folder of a comparison, expected that of a single run, as given to --out of `fibecfed run`")
    if (run / "labels.json").is_file():
        whole = run.resolve().parent
        whole, which = (whole, "") if run.resolve().name == "global" else (whole.parent, f" --client {shlex.quote(run.resolve().name)}")
        raise UserError(f"{run}: got the folder of an adapter, expected that of its run; give {whole}{which}")
    kind = kind_of(run)
    what = "nothing" if kind is None else f"a folder without {CONFIG}" if kind == "a folder" else kind
    raise UserError(f"{run}: got {what}, expected the folder of a run, as given to --out of `fibecfed run`")


def _of_client(run: Path, client: ClientId, partition: dict[str, object], config: Config) -> tuple[Path, str | None]:
    """The folder with a client's model; that of the global one where it is the client's too, with a note."""
    if config.federation.partition == "machines":
        raise UserError(
            f"--client: got {shown(client)}, but the clients of this run are machines, each of which keeps its own model; "
            "use it there, or leave --client out for the global model"
        )
    if client not in partition:
        raise UserError(f"--client: got {shown(client)}, {_nearest(client, list(partition))}")
    folder = run / "clients" / folder_names(partition)[client]
    if folder.is_dir():
        return folder, None
    rounds = (record for record in read_records(run / RECORDS)[1] if isinstance(record, RoundRecord))
    if not any(record.steps.get(client) for record in rounds):
        raise UserError(
            f"--client: got {shown(client)}, which never trained in this run and has no model of its own, expected one that took part; "
            "leave --client out for the global model"
        )
    return run / "global", f"client {client} has no model of its own: the global one, which is used, is also this client's"


def _nearest(client: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(client, known, n=3, cutoff=0.5)
    if near:
        return f"expected a client of the run; did you mean {listed(near)}?"
    return f"expected a client of the run: {listed(known, 20)}"


def reject_answers(found: FoundModel, what: str) -> None:
    """Reject a model that writes answers.

    Args:
        what: what needs classes.

    Raises:
        UserError: it is one.
    """
    if is_instruction(found.config):
        raise UserError(
            f"{found.run}: got a model that writes answers, but {what} needs one that predicts classes; ask it with: "
            f"fibecfed generate {shlex.quote(str(found.run))} PROMPT"
        )


def reject_classes(found: FoundModel, what: str) -> None:
    """Reject a model that predicts classes.

    Args:
        what: what needs answers.

    Raises:
        UserError: it is one.
    """
    if not is_instruction(found.config):
        raise UserError(
            f"{found.run}: got a model that predicts classes, but {what} needs one that writes answers; ask it with: "
            f"fibecfed predict {shlex.quote(str(found.run))} FILE"
        )


def note_on_base(found: FoundModel) -> str | None:
    """What is to be said of a base model that is another here than in training."""
    kind = found.config.model.quantization
    if kind is None:
        return None
    return f"the adapter was trained beside weights in {kind}, and stands beside those of full precision here; scores may differ a little"
