"""Taking a model that writes answers elsewhere: merged weights for transformers and vLLM, GGUF for llama.cpp, a Modelfile for Ollama."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from ..core.errors import RunFailed, UserError
from ..core.files import expanded, move_new, write_atomically
from ..data.conversations import Message
from ..data.names import shown
from ..data.rendering import Unfit
from ..model_card import merged_card
from ..models.export import DELTA_FILE, save_generation, tokenizer_files
from ..models.saved import can_merge, merged_answers, save_plain
from ..models.tokenizers import adds_bos
from .answers import ReadingPrompts, load_reading
from .find import FoundModel, reject_classes

CONVERTER, WHERE = "convert_hf_to_gguf.py", "LLAMA_CPP"
"""llama.cpp's program that makes GGUF of a folder of transformers, and the environment variable with llama.cpp's folder."""


_BESIDE = "the tokenizer has the chat template that was trained with, generation_config.json the tokens at which answers end"


def reject_forms(found: FoundModel, forms: Collection[str]) -> None:
    """Reject forms that a model has not.

    Raises:
        UserError: ONNX of one that writes answers, GGUF of one that predicts classes, or an adapter that is not all of what was trained.
    """
    if "gguf" in forms:
        reject_classes(found, "export --gguf")
    elif "onnx" in forms:
        raise UserError(f"{found.run}: got a model that writes answers, but export --onnx needs one that predicts classes; take --merged")
    if not can_merge(found.folder) and (wanted := sorted({"merged", "gguf", "adapter", "modelfile"} & {*forms})):
        raise UserError(
            f"--{wanted[0]}: got an adapter of the method {found.config.method.model_dump()['kind']}, which is no part of the weights and "
            "which vLLM and llama.cpp do not know; ask it with `fibecfed generate`, or as its model card says"
        )
    if "adapter" in forms and (found.folder / DELTA_FILE).is_file():
        raise UserError(
            f"--adapter: the method {found.config.method.model_dump()['kind']} changes the base model's weights as well, which vLLM and "
            "llama.cpp would leave out of an adapter in silence; take --merged"
        )


def write_merged(found: FoundModel, folder: Path) -> None:
    """Weights with the adapter merged into them, tokenizer with its chat template, the tokens at which answers end, and a card."""
    reading = load_reading(found)
    save_plain(merged_answers(reading.source, found.folder, pad_token_id=reading.tokenizer.pad_token_id), folder)
    for path in tokenizer_files(found.folder):
        shutil.copyfile(path, folder / path.name)
    save_generation(folder, reading.stop_ids, reading.tokenizer.pad_token_id)
    card = found.folder / "README.md"
    code = _code(reading.template is not None, found.config.data.system)
    text = merged_card(card.read_text(encoding="utf-8") if card.is_file() else "", code, onnx=False, beside=_BESIDE)
    write_atomically(folder / "README.md", text.encode())


def _code(chats: bool, system: str | None) -> str:
    messages = [] if system is None else [{"role": "system", "content": system}]
    asked = repr([*messages, {"role": "user", "content": "a prompt"}]) if chats else repr("a prompt")
    answer = '[0]["generated_text"]' + ('[-1]["content"]' if chats else "")
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            'ask = pipeline("text-generation", model=".", dtype="float32")',
            f"print(ask({asked}, do_sample=False, max_new_tokens=256{'' if chats else ', return_full_text=False'}){answer})",
        ]
    )


def find_converter(folder: Path | None) -> Path:
    """llama.cpp's converter, in a folder that was given, in `$LLAMA_CPP`, or on the path.

    Raises:
        UserError: it is not there.
    """
    named = folder or (expanded(os.environ[WHERE]) if os.environ.get(WHERE) else None)
    found = shutil.which(CONVERTER) if named is None else named / CONVERTER
    if found is None or not Path(found).is_file():
        where = f"${WHERE} or the path" if named is None else str(named)
        raise UserError(
            f"--gguf: got no {CONVERTER} in {where}, which llama.cpp brings along; get llama.cpp (https://github.com/ggml-org/llama.cpp), "
            f"install its requirements.txt, and name its folder with --llama-cpp or ${WHERE}; --merged needs nothing"
        )
    return Path(found)


def write_gguf(found: FoundModel, out: Path, converter: Path) -> None:
    """A GGUF file in float32, by llama.cpp's converter, from merged weights that are removed again.

    Raises:
        RunFailed: the converter failed.
    """
    out = out.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
        merged, made = Path(place) / "merged", Path(place) / "made.gguf"
        merged.mkdir()
        write_merged(found, merged)
        command = [sys.executable, str(converter), str(merged), "--outfile", str(made), "--outtype", "f32"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not made.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise RunFailed(f"--gguf: {converter} ended with code {done.returncode} and made no file: {said[:300]}")
        move_new(made, out)


def modelfile(reading: ReadingPrompts, weights: str) -> str:
    """An Ollama Modelfile: where the weights are, the chat template as Ollama writes it, the tokens at which answers end.

    Args:
        weights: folder or file, as seen from the Modelfile.

    Raises:
        UserError: the chat template cannot be written so.
    """
    template, system = _template(reading)
    lines = [f"FROM {weights}", f'TEMPLATE """{template}"""']
    lines += [] if system is None else [f'SYSTEM """{system}"""']
    lines += [f"PARAMETER stop {_quoted(reading.tokenizer.convert_ids_to_tokens(token))}" for token in reading.stop_ids]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


_S, _U, _A = "fibecfedSYSTEM", "fibecfedPROMPT", "fibecfedANSWER"


def _template(reading: ReadingPrompts) -> tuple[str, str | None]:
    """Ollama's form of the chat template, and the system message; found by rendering a conversation of marks."""
    if reading.template is None:
        return "{{ .Prompt }}{{ .Response }}", None
    write = reading.template
    system, user, answer = Message("system", _S), Message("user", _U), Message("assistant", _A)
    try:
        first, asked, whole = write.text([system, user]), write.prompt([system, user]), write.text([system, user, answer])
        alone, own = write.prompt([user]), reading.found.config.data.system
        again = write.text([system, user, answer, user, answer])
    except Unfit as error:
        raise UserError(f"--modelfile: {error}; write a Modelfile by hand") from None
    before, _, rest = first.partition(_S)
    turn = again[len(whole) :].partition(_U)[0]  # what begins a user's message
    between = rest.partition(_U)[0].removesuffix(turn)
    end, opens = first.partition(_U)[2], asked[len(first) :]
    closes = whole[len(asked) :].partition(_A)[2]
    made = f"{before}{_S}{between}{turn}{_U}{end}{opens}"
    if made != asked or again != f"{whole}{turn}{_U}{end}{opens}{_A}{closes}":
        raise UserError("--modelfile: the chat template writes a message in another way once others precede it; write a Modelfile by hand")
    bos = (reading.tokenizer.bos_token or "") if adds_bos(reading.tokenizer) else ""  # which Ollama then writes itself
    usual = alone.removesuffix(f"{turn}{_U}{end}{opens}").removeprefix(bos)
    before = before.removeprefix(bos)
    if own is None and usual:
        if not (usual.startswith(before) and usual.endswith(between)):
            raise UserError(f"--modelfile: the chat template begins a conversation with {shown(usual)}; write a Modelfile by hand")
        own = usual[len(before) : len(usual) - len(between)]
    text = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{between}{{{{ end }}}}"
    return f"{text}{{{{ if .Prompt }}}}{turn}{{{{ .Prompt }}}}{end}{{{{ end }}}}{opens}{{{{ .Response }}}}{closes}", own
