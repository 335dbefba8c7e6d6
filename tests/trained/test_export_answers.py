"""`fibecfed export` of models that write answers: the same scores and texts without fibecfed, names that others expect, or a sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import safetensors.torch
import torch
from answer_runs import save_chats, trained
from chats import CHATML, chat_tokenizer
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

import fibecfed
from fibecfed import cli
from fibecfed.trained.answers import load, load_reading
from fibecfed.trained.export_answers import modelfile
from fibecfed.trained.find import find


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    save_chats(folder)
    return folder


@pytest.fixture(scope="module")
def run(chats: Path) -> Path:
    return trained(chats, "run")


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["export", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def rejected(*arguments: str | Path, code: int = 2) -> str:
    found, _, said = call(*arguments)
    assert found == code, said
    return said


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    ids = tokenizer("list files and go home", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits


def merged_and_adapted(chats: Path, run: Path, out: Path, client: str | None = "c1") -> tuple[torch.Tensor, torch.Tensor]:
    own = [] if client is None else ["--client", client]
    assert call(run, *own, "--merged", out)[0] == 0
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    base: Any = AutoModelForCausalLM.from_pretrained(chats / "model", dtype=torch.float32)
    adapter = run / "global" if client is None else run / "clients" / client
    adapted = logits(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)
    return logits(AutoModelForCausalLM.from_pretrained(out), tokenizer), adapted


def test_merged_weights_give_the_adapters_logits_to_float32_rounding_and_its_texts(run: Path, chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merged, adapted = merged_and_adapted(chats, run, out)
    assert float((merged - adapted).abs().max()) < 1e-5 * float(adapted.abs().max())
    plain: Any = AutoModelForCausalLM.from_pretrained(chats / "model", dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    assert float((logits(plain, tokenizer) - adapted).abs().max()) > 1e-3 * float(adapted.abs().max())
    assert {value.dtype for value in safetensors.torch.load_file(out / "model.safetensors").values()} == {torch.float32}
    assert tokenizer.chat_template == CHATML and GenerationConfig.from_pretrained(out).eos_token_id == [3]
    model: Any = AutoModelForCausalLM.from_pretrained(out).eval()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "go home"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], do_sample=False, max_new_tokens=16)
    assert tuple(tokens[0, asked["input_ids"].shape[1] :].tolist()) == load(run, "c1").answer(["go home"], 16)[0].tokens


def test_the_card_of_merged_weights_holds_code_that_answers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "merged"
    assert call(run, "--merged", out)[0] == 0
    card = (out / "README.md").read_text()
    assert "# Merged model of the global model" in card and "merged into them that answers prompts" in card and "labels.json" not in card
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(out)
    printed: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *values: printed.append(" ".join(map(str, values))))
    exec(compile(code.replace("max_new_tokens=256", "max_new_tokens=16"), "card", "exec"), {})
    assert printed == [load(run).answer(["a prompt"], 16)[0].text]


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    save_chats(tmp_path, tied=True)
    run = trained(tmp_path, "run", federation={"rounds": 1})
    merged, adapted = merged_and_adapted(tmp_path, run, tmp_path / "out", None)
    assert float((merged - adapted).abs().max()) < 1e-5 * float(adapted.abs().max())
    names = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "lm_head.weight" not in names and "model.embed_tokens.weight" in names
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight


def vllm_module(name: str) -> tuple[str, bool]:
    """By the published rule of vLLM (`parse_fine_tuned_lora_name`): the module of a tensor, and whether it is its A."""
    parts = name.split(".")
    assert name.startswith("base_model.model.") and parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"), name
    return ".".join(parts[2:-2]), parts[-2] == "lora_A"


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_an_adapter_has_the_names_that_vllm_and_llama_cpp_expect(targets: str | None, chats: Path, tmp_path: Path) -> None:
    tables = {} if targets is None else {"model": {"target_modules": targets}}
    run = trained(chats, f"named-{targets}", federation={"rounds": 1}, **tables)
    out = tmp_path / "adapter"
    assert call(run, "--adapter", out)[0] == 0
    tensors = safetensors.torch.load_file(out / "adapter_model.safetensors")
    modules = dict(AutoModelForCausalLM.from_pretrained(chats / "model").named_modules())
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    pairs: dict[str, dict[bool, torch.Tensor]] = {}
    for name, value in tensors.items():
        module, is_a = vllm_module(name)
        pairs.setdefault(module, {})[is_a] = value
        # llama.cpp's converter looks the base tensor up under the name without lora_A or lora_B
        base = name.replace("base_model.model.", "").replace(".lora_A.weight", ".weight").replace(".lora_B.weight", ".weight")
        assert known.get_name(base, try_suffixes=(".weight",)), base
    assert len(pairs) == (4 if targets is None else 14)
    for module, pair in pairs.items():
        weight = modules[module].weight
        assert pair[True].shape == (2, weight.shape[1]) and pair[False].shape == (weight.shape[0], 2)
    table = json.loads((out / "adapter_config.json").read_text())
    assert table["base_model_name_or_path"] and table["r"] == 2 and table["lora_alpha"] and table["peft_type"] == "LORA"
    assert not table["modules_to_save"] and table["bias"] == "none" and not table["use_dora"]
    assert {"tokenizer.json", "generation_config.json", "chat_template.jinja"} <= {path.name for path in out.iterdir()}


def test_what_changes_base_weights_too_is_exported_merged_alone(chats: Path, tmp_path: Path) -> None:
    run = trained(chats, "delta", method={"kind": "fedex-lora"})
    assert (run / "global" / "delta.safetensors").is_file()
    assert "--adapter: the method fedex-lora changes the base model's weights as well" in rejected(run, "--adapter", tmp_path / "a")
    assert call(run, "--merged", tmp_path / "m")[0] == 0
    reading = load(run)
    ids = torch.tensor([reading.tokens("go home")])
    base: Any = AutoModelForCausalLM.from_pretrained(chats / "model", dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, run / "global").eval()
    with torch.no_grad():
        without = plain(ids).logits
        weights = dict(plain.named_parameters())
        for name, change in safetensors.torch.load_file(run / "global" / "delta.safetensors").items():
            weights[name] += change
        expected, merged = plain(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "m")(ids).logits
    scale = expected.abs().max()
    assert (without - expected).abs().max() > 1e-3 * scale  # it does something
    assert (merged - expected).abs().max() < 1e-5 * scale
    tokens = plain.generate(input_ids=ids, do_sample=False, max_new_tokens=12)
    assert tuple(tokens[0, ids.shape[1] :].tolist()) == reading.answer(["go home"], 12)[0].tokens


CONVERTER = """
import argparse, pathlib, sys
p = argparse.ArgumentParser(); p.add_argument("model"); p.add_argument("--outfile"); p.add_argument("--outtype"); a = p.parse_args()
assert (pathlib.Path(a.model) / "model.safetensors").is_file() and (pathlib.Path(a.model) / "tokenizer.json").is_file()
pathlib.Path(a.outfile).write_text("GGUF " + a.outtype)
"""


def test_every_file_of_the_tokenizer_comes_along_whatever_its_name(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "global" / "spiece.model").write_bytes(b"pieces")
    assert call(tmp_path / "run", "--merged", tmp_path / "merged")[0] == 0
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert (tmp_path / "merged" / "spiece.model").read_bytes() == b"pieces"
    assert {"tokenizer.json", "tokenizer_config.json", "model.safetensors"} <= names
    assert not names & {"adapter_config.json", "adapter_model.safetensors", "labels.json"}


def test_gguf_is_written_on_a_file_system_without_links(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    monkeypatch.setattr(os, "link", none)
    assert call(run, "--gguf", tmp_path / "x.gguf", "--llama-cpp", tmp_path / "llama.cpp")[0] == 0
    assert (tmp_path / "x.gguf").read_text() == "GGUF f32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama.cpp", "x.gguf"]


def test_gguf_is_made_by_the_converter_that_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    (tmp_path / "llama.cpp").mkdir()
    assert "--gguf: got no convert_hf_to_gguf.py in" in rejected(run, "--gguf", tmp_path / "x.gguf", "--llama-cpp", tmp_path / "llama.cpp")
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    code, out, said = call(run, "--gguf", tmp_path / "x.gguf", "--modelfile", tmp_path / "Modelfile")
    assert code == 0, said
    assert (tmp_path / "x.gguf").read_text() == "GGUF f32" and "x.gguf written (gguf)." in out
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./x.gguf\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "llama.cpp", "x.gguf"]
    assert "x.gguf exists already" in rejected(run, "--gguf", tmp_path / "x.gguf")
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text("import sys; print('no such architecture', file=sys.stderr); sys.exit(3)")
    assert "ended with code 3 and made no file: no such architecture" in rejected(run, "--gguf", tmp_path / "y.gguf", code=1)
    assert not (tmp_path / "y.gguf").exists()


def ollama(template: str, system: str | None, turns: list[tuple[str, str]]) -> str:
    """What Ollama makes of a template of this form: each pair of prompt and response in turn, the system message with the first."""
    text = template
    assert text.count("{{ if .System }}") == text.count("{{ if .Prompt }}") == 1
    parts = re.fullmatch(r"\{\{ if \.System \}\}(.*?)\{\{ end \}\}\{\{ if \.Prompt \}\}(.*?)\{\{ end \}\}(.*)", text, re.DOTALL)
    assert parts
    written = ""
    for number, (prompt, response) in enumerate(turns):
        written += parts[1].replace("{{ .System }}", system) if system is not None and not number else ""
        written += parts[2].replace("{{ .Prompt }}", prompt) + parts[3].replace("{{ .Response }}", response)
    return written


DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nbe kind<|im_end|>\n' }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "system", "expected"), [(None, None, None), (None, "be brief", "be brief"), (DEFAULT, None, "be kind")]
)
def test_a_modelfile_has_the_chat_template_as_ollama_writes_it(
    template: str | None, system: str | None, expected: str | None, chats: Path
) -> None:
    data = {name: value for name, value in (("chat_template", template), ("system", system)) if value is not None}
    run = trained(chats, f"ollama-{system}-{template is None}", federation={"rounds": 1}, data=data)
    reading = load_reading(find(run))
    text = modelfile(reading, "./model")
    found = re.fullmatch(r'FROM \./model\nTEMPLATE """(.*?)"""\n(?:SYSTEM """(.*?)"""\n)?(.*)', text, re.DOTALL)
    assert found and found[2] == expected
    assert found[3] == 'PARAMETER stop "<|im_end|>"\nPARAMETER temperature 0\n'
    turns = [("list files", "ls"), ("go home", "cd ~")]
    messages = [{"role": role, "content": said} for pair in turns for role, said in zip(("user", "assistant"), pair, strict=True)]
    messages = messages if system is None else [{"role": "system", "content": system}, *messages]
    assert ollama(found[1], found[2], turns) == reading.tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_modelfile_keeps_the_first_token_unless_the_tokenizer_writes_it_itself(tmp_path: Path) -> None:
    save_chats(tmp_path)
    tokenizer = chat_tokenizer(CHATML, bos_token="<|im_start|>")
    tokenizer.save_pretrained(tmp_path / "model")
    reading = load_reading(find(trained(tmp_path, "run", federation={"rounds": 1})))
    assert 'TEMPLATE """{{ if .System }}<|im_start|>system\n' in modelfile(reading, "./model")
    adding = chat_tokenizer("<s>" + CHATML)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    adding.save_pretrained(tmp_path / "model")
    reading = load_reading(find(trained(tmp_path, "adding", federation={"rounds": 1})))
    assert 'TEMPLATE """{{ if .System }}<|im_start|>system\n' in modelfile(reading, "./model")


def test_a_prompt_may_be_longer_than_the_examples_of_training(run: Path, chats: Path, tmp_path: Path) -> None:
    base = AutoTokenizer.from_pretrained(chats / "model").model_max_length
    assert call(run, "--merged", tmp_path / "merged")[0] == 0
    for folder in (run / "global", run / "clients" / "c1", tmp_path / "merged"):
        assert AutoTokenizer.from_pretrained(folder).model_max_length == base > 64


def test_load_model_is_a_text_generation_pipeline(run: Path) -> None:
    ask = fibecfed.load_model(run, "c1")
    prompts = ["go home", "list files and go home"]
    found = ask([[{"role": "user", "content": prompt}] for prompt in prompts], max_new_tokens=16, batch_size=2)
    expected = [one.text for one in load(run, "c1").answer(prompts, 16)]
    assert [one[0]["generated_text"][-1]["content"] for one in found] == expected


def test_what_has_no_such_form_is_a_sentence(run: Path, made: Callable[[str], Path], tmp_path: Path) -> None:
    assert "but export --onnx needs one that predicts classes" in rejected(run, "--onnx", tmp_path / "o")
    assert "but export --gguf needs one that writes answers" in rejected(made("lora"), "--gguf", tmp_path / "g")
    assert "--modelfile: got neither --merged nor --gguf" in rejected(run, "--modelfile", tmp_path / "Modelfile")
    assert not list(tmp_path.iterdir())
