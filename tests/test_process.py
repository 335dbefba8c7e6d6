"""A run from Python leaves the process as it found it: what a notebook has set stays set, whether the run ends well or not."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from saved import run_config, save_backbone, write_reviews

from fibecfed.config import to_toml

SCRIPT = """
import gc, io, json, logging, os, random, signal, sys, threading, warnings
import datasets, huggingface_hub.utils, numpy, peft, torch, transformers
from pathlib import Path

import fibecfed
from fibecfed import check, session

how, folder = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(2)
os.environ.update({"DISABLE_SAFETENSORS_CONVERSION": "0"} if how == "fails" else {"TOKENIZERS_PARALLELISM": "true"})
if how == "fails":
    huggingface_hub.utils.disable_progress_bars()
signal.signal(signal.SIGTERM, lambda *_: None)
warnings.simplefilter("error", category=SyntaxWarning)


def state():
    rng = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state().tolist()}
    return {
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        "gradients": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "attention": [
            getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "mem_efficient", "math", "cudnn")
        ],
        "bars": (transformers.utils.logging.is_progress_bar_enabled(), huggingface_hub.utils.are_progress_bars_disabled(),
                 datasets.are_progress_bars_disabled()),
        "verbosity": (transformers.utils.logging.get_verbosity(), huggingface_hub.utils.logging.get_verbosity(),
                      datasets.logging.get_verbosity()),
        "logging": [(name, logging.getLogger(name).level, logging.getLogger(name).handlers[:])
                    for name in ("", "transformers", "torch", "peft", "fibecfed")],
        "warnings": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "streams": (sys.stdout, sys.stderr),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "recursion": sys.getrecursionlimit(),
        "running": sorted(thread.name for thread in threading.enumerate()),
        "random": repr(rng),
    }


def used():
    seen.append((torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM")))
    if how == "fails" and len(seen) > 4:
        raise fibecfed.RunFailed("stopped by the test")


seen = []
before = state()
if how == "refused":
    try:
        fibecfed.run({"data": {"path": str(folder / "nothing.csv")}}, folder / "run")
    except fibecfed.UserError:
        pass
elif how == "fails":
    try:
        fibecfed.run(folder / "run.toml", folder / "run", lambda _: used())
    except fibecfed.RunFailed:
        pass
elif how == "check":
    from rich.console import Console
    check.report(fibecfed.load_config(folder / "run.toml").config, Console(file=io.StringIO()))
else:
    fibecfed.run(folder / "run.toml", folder / "run", lambda _: used())
after = state()
changed = [name for name in before if before[name] != after[name]]
print(json.dumps({"changed": {name: [repr(before[name])[:300], repr(after[name])[:300]] for name in changed}, "seen": seen}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("process")
    save_backbone(made / "backbone")
    write_reviews(made / "reviews.csv", 60)
    config = run_config(made, federation={"rounds": 2}, resources={"threads": 1}, training={"dropout": 0.1})
    (made / "run.toml").write_text(to_toml(config), encoding="utf-8")
    return made


@pytest.mark.parametrize("how", ["ends", "fails", "refused", "check"])
def test_a_run_leaves_the_process_as_it_found_it(how: str, folder: Path, tmp_path: Path) -> None:
    for name in ("run.toml", "reviews.csv", "backbone"):
        (tmp_path / name).symlink_to(folder / name)
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, how, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["changed"]
    if how in ("ends", "fails"):
        assert {threads for threads, _ in found["seen"]} == {1}  # so that there was something to put back


FAULTS = """
import json, resource, sys
import torch
from fibecfed.core.process import kept_memory


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        kept = [torch.ones(2**18) for _ in range(20)]  # 20 times 1 MiB, freed together
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


found = []
for _ in range(2):
    with kept_memory():
        faults()
        found.append(faults())
    found.append(faults())
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set")
@pytest.mark.parametrize("theirs", [False, True])
def test_freed_memory_is_kept_while_a_run_lasts_and_returned_afterwards(theirs: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    environment |= {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"} if theirs else {}  # a user's own setting stays
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, timeout=100, check=True)
    inside, after, again, last = json.loads(done.stdout)
    pages = 20 * 20 * 2**20 // 4096
    few = pages / 512  # of huge pages, where the system gives such
    assert after > few and last > few
    assert (inside > few and again > few) if theirs else max(inside, again) < min(after, last) / 5


HOLES = """
import json
import torch
from fibecfed.core.process import bound_freed_memory, kept_memory, resident_memory

with kept_memory():
    held = [torch.ones(2**18) for _ in range(200)]  # 200 times 1 MiB
    held = held[::2]  # holes of 1 MiB between what stays
    found = [resident_memory()]
    for most in (2**30, 2**20):
        bound_freed_memory(most)
        found.append(resident_memory())
print(json.dumps([*found, float(sum(one.sum() for one in held))]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 or newer counts what is free")
def test_no_more_freed_memory_is_kept_than_is_said() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", HOLES], env=environment, capture_output=True, text=True, timeout=100, check=True)
    before, much, little, held = json.loads(done.stdout)
    assert before - much < 2**20 and before - little > 80 * 2**20
    assert held == 100 * 2**18
