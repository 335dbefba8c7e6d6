"""Taking a saved model elsewhere: its adapter, its merged weights for plain transformers, or ONNX."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from ..core.errors import RunFailed, UserError
from ..core.files import kind_of, new_folder, write_atomically, write_new
from ..core.json_text import to_json
from ..core.types import ClientId
from ..model_card import merged_card
from ..models.export import save_tokenizer
from ..models.onnx import onnx_logits, reject_without_onnx, save_onnx
from ..models.saved import save_plain
from ..reading import is_instruction
from ..snippet import Reading, about_labels, merged_snippet, onnx_snippet
from .answers import load_reading
from .export_answers import find_converter, modelfile, reject_forms, write_gguf, write_merged
from .find import FoundModel, find, note_on_base, reject_classes
from .model import load
from .plain import example, plain_model, reject_unmerged, separator

Form = Literal["adapter", "merged", "onnx", "gguf", "modelfile"]
_WAY_OUT = "take --adapter, or use `fibecfed predict`"
_TOLERANCE = 1e-5


def export(
    run: str | Path, client: ClientId | None, outs: Mapping[Form, Path], *, base: str | None = None, llama_cpp: Path | None = None
) -> tuple[str, ...]:
    """Write a model in some forms, each into a new folder or file.

    Args:
        llama_cpp: folder of llama.cpp, for GGUF; None: as the environment says.

    Returns:
        What the user has to be told.

    Raises:
        UserError: no such model, a folder that is in use, or a model that has no such form; nothing was written then.
        RunFailed: a folder could not be written; nothing is left of it.
    """
    found = find(run, client, base)
    for form, out in outs.items():
        _reject_used(form, out)
    if len({out.absolute() for out in outs.values()}) < len(outs):
        raise UserError(f"--{', --'.join(outs)}: got one name for two of them, expected a name for each; choose another one")
    if "onnx" in outs:
        reject_without_onnx()
    answers = is_instruction(found.config) or "gguf" in outs
    if answers:
        reject_forms(found, outs)
    elif outs.keys() - {"adapter"}:
        reject_unmerged(found, "export", _WAY_OUT)
    text = _modelfile(found, outs) if "modelfile" in outs else ""
    converter = find_converter(llama_cpp) if "gguf" in outs else None
    for form, out in outs.items():
        try:
            if form == "gguf":
                write_gguf(found, out, cast("Path", converter))
                continue
            if form == "modelfile":
                write_new(out, text.encode())
                continue
            with new_folder(out) as folder:
                if form == "adapter":
                    _copy(found, folder)
                elif answers:
                    write_merged(found, folder)
                else:
                    _whole(found, client, base, folder, onnx=form == "onnx")
        except OSError as error:
            raise RunFailed(f"--{form}: {error.filename or out} could not be written ({error.strerror}); nothing is left of it") from error
    notes = (found.note, note_on_base(found) if outs.keys() & {"merged", "gguf", "onnx"} else None)
    return tuple(note for note in notes if note is not None)


def _reject_used(form: Form, out: Path) -> None:
    kind = kind_of(out)
    if form in ("gguf", "modelfile") and (out.is_symlink() or kind is not None):
        raise UserError(f"--{form}: {out} exists already, and nothing is overwritten; choose another name")
    if out.is_symlink() or kind not in (None, "a folder") or (kind == "a folder" and any(out.iterdir())):
        raise UserError(f"--{form}: {out} exists already and is not an empty folder, and nothing is overwritten; choose another name")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--{form}: {out}: there is no folder {out.absolute().parent}; make it, or choose another name")


def _modelfile(found: FoundModel, outs: Mapping[Form, Path]) -> str:
    reject_classes(found, "export --modelfile")
    weights = outs.get("gguf", outs.get("merged"))
    if weights is None:
        raise UserError("--modelfile: got neither --merged nor --gguf, expected one of them for the weights; give it as well")
    place = os.path.relpath(weights.absolute(), outs["modelfile"].absolute().parent)
    return modelfile(load_reading(found), f"./{place}")


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
