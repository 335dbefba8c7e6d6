"""The built wheel, in an environment that holds nothing else: does it bring all that it needs?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from fibecfed.models.tiny import tiny_config

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("good", "bad", "film", "plot", "great", "dull", "fine", "poor")


def clean_environment() -> dict[str, str]:
    """The caller's, without what would let the outer environment's packages in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False)


def save_tiny_model(folder: Path) -> None:
    """A random BERT of two layers and a tokenizer of a few words, as a folder of a published model."""
    AutoModelForSequenceClassification.from_config(tiny_config("bert")).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)  # fmt: skip


def save_reviews(file: Path, examples: int = 400) -> None:
    """Two words and a label a line; the first word says the label."""
    lines = [f"{WORDS[n % 2]} {WORDS[2 + n % 6]} {WORDS[2 + n % 5]},{('positive', 'negative')[n % 2]}" for n in range(examples)]
    file.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def fibecfed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `fibecfed` of an environment into which nothing but the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("fibecfed-*.whl")
    made = run(sys.executable, "-m", "venv", folder / "empty", cwd=folder)
    assert made.returncode == 0, made.stderr
    python = folder / "empty" / "bin" / "python"
    reached = run(
        python, "-m", "pip", "download", "-qq", "--no-deps", "-c", ROOT / "constraints.txt", "-d", folder / "probe", "typer", cwd=folder
    )
    if reached.returncode != 0:
        pytest.skip(f"pip reaches no package registry here: {reached.stderr.strip()[-300:]}")
    installed = run(python, "-m", "pip", "install", "-qq", "--no-compile", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "empty" / "bin" / "fibecfed"


@pytest.mark.slow
def test_the_installed_wheel_writes_a_configuration_and_finds_no_mistake_in_it(fibecfed: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_reviews(tmp_path / "reviews.csv")
    written = run(fibecfed, "init", "--out", "own.toml", cwd=tmp_path)
    assert written.returncode == 0, written.stdout + written.stderr
    checked = run(fibecfed, "check", "own.toml", "data.path=reviews.csv", "model.name=model", "federation.clients=10", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_the_installed_wheel_refuses_a_misspelt_key_with_the_nearest_right_one(fibecfed: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_reviews(tmp_path / "reviews.csv")
    assert run(fibecfed, "init", "--out", "own.toml", cwd=tmp_path).returncode == 0
    checked = run(fibecfed, "check", "own.toml", "data.path=reviews.csv", "model.name=model", "federation.cleints=10", cwd=tmp_path)
    assert checked.returncode == 2
    assert "federation.clients" in checked.stdout + checked.stderr
