"""Taking a saved model elsewhere: its adapter, its merged weights for plain transformers, or ONNX."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..core.errors import RunFailed, UserError
from ..core.files import kind_of, new_folder, write_atomically
from ..core.json_text import to_json
from ..core.types import ClientId
from ..model_card import merged_card
from ..models.export import save_tokenizer
from ..models.onnx import onnx_logits, reject_without_onnx, save_onnx
from ..models.saved import save_plain
from ..snippet import Reading, about_labels, merged_snippet, onnx_snippet
from .find import FoundModel, find, reject_answers
from .model import load
from .plain import example, plain_model, reject_unmerged, separator

Form = Literal["adapter", "merged", "onnx"]
_WAY_OUT = "take --adapter, or use `fibecfed predict`"
_TOLERANCE = 1e-5


def export(run: str | Path, client: ClientId | None, outs: Mapping[Form, Path], *, base: str | None = None) -> tuple[str, ...]:
    """Write a model in some forms, each into a new folder.

    Returns:
        What the user has to be told.

    Raises:
        UserError: no such model, a folder that is in use, or a model that has no such form; nothing was written then.
        RunFailed: a folder could not be written; nothing is left of it.
    """
    found = find(run, client, base)
    for form, out in outs.items():
        _reject_used(form, out)
    if "onnx" in outs:
        reject_without_onnx()
    if outs.keys() - {"adapter"}:
        reject_answers(found, "export --merged")
        reject_unmerged(found, "export", _WAY_OUT)
    for form, out in outs.items():
        try:
            with new_folder(out) as folder:
                if form == "adapter":
                    _copy(found, folder)
                else:
                    _whole(found, client, base, folder, onnx=form == "onnx")
        except OSError as error:
            raise RunFailed(f"--{form}: {error.filename or out} could not be written ({error.strerror}); nothing is left of it") from error
    return () if found.note is None else (found.note,)


def _reject_used(form: Form, out: Path) -> None:
    kind = kind_of(out)
    if out.is_symlink() or kind not in (None, "a folder") or (kind == "a folder" and any(out.iterdir())):
        raise UserError(f"--{form}: {out} exists already and is not an empty folder, and nothing is overwritten; choose another name")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--{form}: {out}: there is no folder {out.absolute().parent}; make it, or choose another name")


def _copy(found: FoundModel, folder: Path) -> None:
    for path in sorted(found.folder.iterdir()):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def _whole(found: FoundModel, client: ClientId | None, base: str | None, folder: Path, *, onnx: bool) -> None:
    """Weights, tokenizer, names of the classes and card."""
    model = load(found.run, client, base=base, device="cpu")
    plain: Any = plain_model(model, "export", _WAY_OUT)
    reading = Reading(model.pair, separator(model))
    about = about_labels(model.labels, model.max_length, reading)
    write_atomically(folder / "labels.json", (to_json(about, ensure_ascii=False) + "\n").encode())
    save_tokenizer(model.tokenizer, folder, model.max_length)
    if onnx:
        batch = dict(example(model))
        save_onnx(plain, batch, folder)
        difference = (onnx_logits(folder, batch).softmax(-1) - plain(**batch).logits.softmax(-1)).abs().max()
        if difference > _TOLERANCE:
            raise UserError(f"--onnx: the file gives probabilities that differ by {difference:.1g} from the model's; take --merged")
        write_atomically(folder / "config.json", plain.config.to_json_string().encode())
    else:
        save_plain(plain, folder)
    card = (found.folder / "README.md").read_text(encoding="utf-8") if (found.folder / "README.md").is_file() else ""
    code = onnx_snippet(reading) if onnx else merged_snippet(reading, model.max_length)
    write_atomically(folder / "README.md", merged_card(card, code, onnx=onnx).encode())
