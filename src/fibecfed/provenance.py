"""What a run began with, as the first line of its records says it: configuration, weights, data, versions and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .build import Prepared, data_warnings
from .config import Config, changed_settings, config_hash, leaves
from .core.errors import UserError
from .core.files import CONFIG, RECORDS
from .saving import versions, weight_files


def header_of(prepared: Prepared) -> dict[str, Any]:
    """The header of a new run's records."""
    config, data = prepared.inputs.config, prepared.inputs.data
    return {
        "configuration": config.model_dump(),
        "config_hash": config_hash(config),
        "commit": _commit(),
        **_conditions(prepared),
        **_inputs(prepared),
        "read": [] if _unseen(prepared) else list(data.read),
        "warnings": [] if _unseen(prepared) else list(data_warnings(prepared.inputs)),
        "metric": prepared.metric.name,
        "higher_is_better": prepared.metric.higher_is_better,
        "usual_metric": data.metric,
        **_object(prepared),
        "trainable": sum(value.numel() for value in prepared.task.params().values()),
    }


def _object(prepared: Prepared) -> dict[str, Any]:
    """What a method prints as that was given as an object; the configuration does not say what it is."""
    if prepared.inputs.config.method.model_dump()["kind"] != "custom" or " at 0x" in (printed := repr(prepared.method)):
        return {}  # what prints an address prints another one in each process
    return {"object": printed}


def _inputs(prepared: Prepared) -> dict[str, Any]:
    """What the configuration names and does not hold. A server whose clients are machines knows of no example."""
    data = prepared.inputs.data
    counted = {} if _unseen(prepared) else {"partition": data.partition.table(), "data": {"sha256": data.checksum()}}
    return {
        "model": {"published": prepared.inputs.source.published, "files": weight_files(prepared)},
        "labels": list(data.label_names or ()),
        **({"partition": {}} | counted),
    }


def _unseen(prepared: Prepared) -> bool:
    """Whether a run's records must not tell of its data: neither counts, nor warnings, nor a checksum by which guesses can be tried."""
    return prepared.privacy is not None and prepared.privacy.evaluation != "exact"


def reject_other_settings(config: Config, hashed: str | None, header: Mapping[str, Any], out: Path) -> None:
    """Another configuration than the run began with would end in the numbers of neither. Files may lie elsewhere by now.

    Args:
        hashed: `config_hash` of the configuration that the checkpoint was made with.

    Raises:
        UserError: the configuration, or the records, are others.
    """
    if hashed != header.get("config_hash"):
        raise UserError(f"{out / RECORDS}: these are not the records of the same run as the checkpoints; restore the file")
    if changed := changed_settings(config, header["configuration"]):
        way_out = "set it back, or start a new run"
        raise UserError(f"{out / CONFIG} is not the configuration of the checkpoint: {'; '.join(changed)}; {way_out}")


def reject_other_inputs(prepared: Prepared, header: Mapping[str, Any], out: Path) -> None:
    """Other weights or data than the run began with would end in the numbers of neither.

    Raises:
        UserError: they are others.
    """
    method, before = _object(prepared).get("object"), header.get("object")
    if method is not None and before is not None and method != before:
        differ = next((n for n, (a, b) in enumerate(zip(method, before, strict=False)) if a != b), 0)
        start = max(method.rfind(mark, 0, differ) for mark in "(, ") + 1
        got, expected = (text[start : start + 80] for text in (method, before))
        raise UserError(f"{out}: method: got {got}, expected {expected}, which the run began with; resume it with that one")
    found = _inputs(prepared)
    files = found["model"]["files"].values()
    if files and sorted(files) == sorted(header["model"]["files"].values()):
        found["model"] = header["model"]  # folder and files may have other names by now: their bytes tell
    known = [name for name in found if name in header]  # records of 0.1 have no checksum of the data
    now, then = (dict(leaves({name: table[name] for name in known})) for table in (found, header))
    for name in now | then:
        if now.get(name) != then.get(name):
            raise UserError(
                f"{out}: {name}: got {now.get(name)}, expected {then.get(name)}, which the run began with; "
                "put the files of the model and of the data back, or start a new run"
            )


def _conditions(prepared: Prepared) -> dict[str, Any]:
    """What has to be the same for the same bits."""
    return {
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "precision": prepared.task.precision,
        "device": str(prepared.task.device),
    }


def changed_conditions(prepared: Prepared, header: Mapping[str, Any]) -> list[str]:
    """A sentence for each condition that is another than when the run began."""
    now = _conditions(prepared)
    moved = prepared.inputs.config.data.path != header["configuration"]["data"].get("path")
    unknown = (
        "the data have another path than before, and records of version 0.1 have no checksum of them: only labels and counts were compared"
    )
    return [unknown] * (moved and "data" not in header) + [
        f"{name}: this run started with {header.get(name)} and is resumed with {now[name]}; the last bits of its numbers may differ"
        for name in now
        if header.get(name) != now[name]
    ]


def _commit() -> str | None:
    """Commit of the package's own checkout, with "+" where files differ from it; None outside of one."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else an environment inside another project's checkout
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
