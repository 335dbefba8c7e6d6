"""The source prompts of ATTEMPT: plain prompt tuning on the train parts of other tasks, once, kept in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .adapters.options import PromptAdapter
from .config import Config
from .core.errors import UserError
from .core.files import expanded, write_atomically
from .core.json_text import to_json
from .core.rng import Key
from .core.types import Batch
from .data.federated import federate
from .data.options import DataOptions
from .data.sources import TextDataset, load
from .data.tasks import TASKS
from .local.batches import shuffled_batches
from .local.optimise import fit
from .local.options import TrainingOptions
from .methods.catalogue import Preparation
from .methods.options import AttemptOptions
from .models.base_models import Source, build_task, sha256_of
from .models.objectives import ClassHead

logger = logging.getLogger(__name__)

ENVIRONMENT = "FIBECFED_CACHE"
DEFAULT = ("qnli", "sst2", "boolq", "subj")
OVERLAPPING = ({"sst2", "mr", "subj"}, {"sst2", "mpqa"})
"""Tasks that share texts, up to case and punctuation (of 2,000 test examples of mr 1,004 are in sst2's train part and 613 in subj's): one
never trains a prompt for another."""
PROMPT = "adapter.prompt"


@dataclass(frozen=True)
class SourceWork:
    """What one source prompt cost when it was trained, whether now or when it was put into the cache."""

    task: str
    seconds: float
    examples: int


def source_tasks(options: AttemptOptions, task: str | None) -> tuple[str, ...]:
    """The tasks that source prompts are trained on, for a run on `task` (None: the user's own files).

    Raises:
        UserError: one that is unknown, named twice, the run's own, or shares texts with it.
    """
    related = {task}.union(*(group for group in OVERLAPPING if task in group))
    if options.sources is None:
        return tuple(name for name in DEFAULT if name not in related)
    for name in options.sources:
        if name not in TASKS:
            raise UserError(f"method.sources: got {name!r}, expected names among {', '.join(TASKS)}")
        if name in related:
            raise UserError(f"method.sources: got {name!r} for a run on {task}, which it is or shares texts with; leave it out")
    if not options.sources or len(set(options.sources)) < len(options.sources):
        raise UserError(f"method.sources: got {', '.join(options.sources) or 'none'}, expected at least one name, and each once")
    return options.sources


def reject(config: Config) -> None:
    """As `source_tasks`."""
    options: Any = config.method
    source_tasks(options, config.data.task)


def prepare(config: Config, source: Source, tokenizer: Any, *, hidden: int, trial: bool) -> Preparation:
    """The source prompts of a run, as `source_prompts`."""
    options: Any = config.method
    prompts, works = source_prompts(config, source, tokenizer, hidden=hidden, trial=trial)
    asked = len(source_tasks(options, config.data.task))
    line = f"{asked}, of which {len(works)} in the cache; {options.source_steps} steps for each of the others"
    return Preparation(prompts, {"sources": [asdict(work) for work in works]} if works else {}, (("source prompts", line),))


def source_prompts(
    config: Config, source: Source, tokenizer: Any, *, hidden: int, trial: bool = False
) -> tuple[Tensor, tuple[SourceWork, ...]]:
    """The source prompts of a run, (sources, tokens, hidden), and what each cost.

    They do not depend on the seed of the run: one fixed budget for all seeds.

    Args:
        hidden: numbers of a token's embedding.
        trial: train and write nothing; a prompt that is not in the cache is zero.

    Raises:
        UserError: as for `source_tasks`; a task whose data cannot be had; a cache that cannot be written.
    """
    options: Any = config.method
    names = source_tasks(options, config.data.task)
    paths = {name: _folder() / "source-prompts" / f"{_digest(config, source, name)}.safetensors" for name in names}
    if not trial:
        for wait in (False, True):  # first those that no other process is training
            for name, path in paths.items():
                with _alone(path, wait) as may:
                    if may and not path.is_file():
                        logger.info("training the source prompt of %s, which is not in %s", name, path.parent)
                        _write(path, *_train(config, source, tokenizer, name))
    else:
        for name, path in paths.items():
            if not path.is_file():
                _texts(config, name)  # what cannot be read is rejected now, as it would be in the run
    nothing = torch.zeros(options.adapter.num_tokens, hidden), None
    found = [_read(path) or nothing for path in paths.values()]
    return torch.stack([prompt for prompt, _ in found]), tuple(work for _, work in found if work is not None)


@contextlib.contextmanager
def _alone(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process alone may write a prompt that is not there yet; waits until it may, or else asks once."""
    if path.is_file():
        yield False
        return
    lock = FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0)
    may = True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if wait:
            logger.info("waiting for another process that may be training %s", path)
        lock.acquire()
    except Timeout:
        may = False
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield may
    finally:
        lock.release()


def _folder() -> Path:
    return expanded(os.environ.get(ENVIRONMENT) or "~/.cache/fibecfed")


def _data(config: Config, name: str) -> DataOptions:
    return DataOptions(task=name, root=config.data.root, max_length=config.data.max_length, validation_fraction=0.0, max_test=1)


def _training(config: Config) -> TrainingOptions:
    """How a source prompt is trained: as the run, but for its own budget."""
    options: Any = config.method
    own = {"batch_size": options.source_batch_size, "learning_rate": options.source_learning_rate, "optimizer": "adamw", "dropout": 0.0}
    return config.training.model_copy(update=own)


def _digest(config: Config, source: Source, name: str) -> str:
    """A name for everything that decides the numbers of a source prompt."""
    options: Any = config.method
    weights = [sha256_of(path) for path in source.files] or [source.location, source.revision]
    facts = {
        "format": 2,
        "weights": weights,
        "data": _data(config, name).model_dump(exclude={"root"}),
        "tokens": options.adapter.num_tokens,
        "head": config.model.head,
        "steps": options.source_steps,
        "training": _training(config).model_dump(exclude={"device", "local_epochs"}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _key(name: str) -> Key:
    return Key(0).fold("source", name)


def _texts(config: Config, name: str) -> TextDataset:
    """A source task's texts.

    Raises:
        UserError: they cannot be had.
    """
    try:
        return load(_data(config, name), _key(name))
    except UserError as error:
        raise UserError(f"method.sources: {name} cannot be used: {error}") from error


def _train(config: Config, source: Source, tokenizer: Any, name: str) -> tuple[Tensor, SourceWork]:
    """Plain prompt tuning with a head of its own on all of a task's train part; the head is thrown away."""
    options: Any = config.method
    start, key, data = time.perf_counter(), _key(name), _data(config, name)
    held = federate(_texts(config, name), tokenizer, data, clients=1, partition="iid", key=key.fold("data"))
    training = _training(config)
    prompt = PromptAdapter(num_tokens=options.adapter.num_tokens)
    task = build_task(
        source,
        config.model,
        training,
        objective=ClassHead(len(held.classes("a source task"))),
        pad_token_id=tokenizer.pad_token_id,
        key=key,
        adapter=prompt,
    )

    def steps() -> Iterator[Batch]:
        left, epoch = options.source_steps, 0
        while left > 0:
            for batch in shuffled_batches(held.train, torch.arange(len(held.train)), training, key.fold("order", epoch)):
                if left > 0:
                    yield batch
                left -= 1
            epoch += 1

    try:
        trained = fit(task, task.init_params(key.fold("init")), [steps()], training, key.fold("dropout"))
    except FloatingPointError as error:
        raise UserError(
            f"method.source_learning_rate: got {training.learning_rate:g}, with which training on {name} diverged ({error}); lower it"
        ) from error
    return trained.params[PROMPT], SourceWork(name, time.perf_counter() - start, trained.examples)


def _read(path: Path) -> tuple[Tensor, SourceWork] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["work"])
            return file.get_tensor(PROMPT), SourceWork(**facts)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: got no source prompt that can be read ({error}); delete the file, and it is trained again") from error


def _write(path: Path, prompt: Tensor, work: SourceWork) -> None:
    try:
        write_atomically(path, save({PROMPT: prompt.contiguous()}, {"work": to_json(asdict(work))}))
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"${ENVIRONMENT}: {path} cannot be written ({error}); set it to a folder that can")
