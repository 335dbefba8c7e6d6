"""A saved model that writes answers, loaded: from a prompt or a conversation to an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.options import positions_used
from ..core.errors import UserError
from ..core.process import threads
from ..core.streams import quiet_libraries
from ..core.types import ClientId
from ..data.conversations import ROLES, Message
from ..data.options import NO_TEMPLATE, template_text
from ..data.rendering import Template, Unfit
from ..models.answer_task import AnswerTask
from ..models.base_models import Source, load_config, num_positions
from ..models.base_models import find as find_source
from ..models.precision import choose_device
from ..models.saved import load_answer_task, saved_tokenizer
from ..models.tokenizers import stop_ids
from .find import FoundModel, find, reject_classes
from .model import reject_other_weights

MAX_NEW_TOKENS = 256
"""[C] Of an answer, where nothing else is said and the model has room for them."""
BATCH = 8
"""[C] Prompts that are answered together."""


@dataclass(frozen=True)
class WrittenAnswer:
    """What a model wrote.

    Attributes:
        tokens: new ones, with the end token.
        ended: whether it came to its end token; else it was stopped.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class ReadingPrompts:
    """How a model that a run saved reads prompts.

    Attributes:
        found: where it lies.
        source: its base model.
        tokenizer: of the adapter's folder.
        template: None: prompts are read as they are.
        stop_ids: tokens at which an answer ends.
        positions: tokens that the model reads and writes, at most; None: no limit.
    """

    found: FoundModel
    source: Source
    tokenizer: Any
    template: Template | None
    stop_ids: tuple[int, ...]
    positions: int | None

    def tokens(self, prompt: str | Sequence[Message]) -> list[int]:
        """A prompt, or a conversation that ends with a user's message, as the model was trained to read it.

        Raises:
            UserError: a conversation without a template, or one that the template rejects; nothing to read.
        """
        asked = prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""
        if not asked.strip():
            raise UserError("prompt: got an empty text, expected at least one character; write something")
        for text in [prompt] if isinstance(prompt, str) else [message.content for message in prompt]:
            if text.encode(errors="replace").decode() != text:
                raise UserError("prompt: got bytes or characters that are no UTF-8, expected whole characters; write it in UTF-8")
        if self.template is None:
            if not isinstance(prompt, str):
                raise UserError('prompt: got messages, but this run has `data.chat_template` = "none", expected a text; give one')
            ids = list(self.tokenizer(prompt, verbose=False)["input_ids"])
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids.pop()  # an answer follows
        else:
            try:
                text = self.template.prompt(self._conversation(prompt))
            except Unfit as error:
                raise UserError(f"prompt: {error}") from None
            ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids:
            raise UserError("prompt: got an empty text, expected at least one token; write something")
        return ids

    def _conversation(self, prompt: str | Sequence[Message]) -> list[Message]:
        messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        system = self.found.config.data.system
        if system is not None and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        return messages


@dataclass(frozen=True)
class AnsweringModel(ReadingPrompts):
    """A model that a run saved, ready to be asked.

    Attributes:
        task: base model and adapter.
    """

    task: AnswerTask

    def answer(self, prompts: Sequence[str | Sequence[Message]], max_new_tokens: int | None = None) -> list[WrittenAnswer]:
        """The answers to prompts, greedy: always the most likely next token.

        Args:
            max_new_tokens: of an answer, its end token included; None: `MAX_NEW_TOKENS`, or as many as there is room for.

        Raises:
            UserError: prompt and answer are longer than the model reads.
        """
        read = [self.tokens(prompt) for prompt in prompts]
        number = self._room(max(map(len, read), default=0), max_new_tokens)
        order = sorted(range(len(read)), key=lambda place: len(read[place]))
        found, params = dict[int, WrittenAnswer](), self.task.params()
        with threads(self.found.config.resources.threads), quiet_libraries():
            for start in range(0, len(order), BATCH):
                places = order[start : start + BATCH]
                rows = self.task.generate(params, [read[place] for place in places], stop_ids=self.stop_ids, max_new_tokens=number)
                found |= {place: self._answer(row) for place, row in zip(places, rows, strict=True)}
        return [found[place] for place in range(len(read))]

    def _room(self, longest: int, max_new_tokens: int | None) -> int:
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UserError(f"--max-new-tokens: got {max_new_tokens}, expected at least 1; raise it")
        if self.positions is None:
            return MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
        room = self.positions - longest
        if room < 1:
            raise UserError(
                f"prompt: got {longest:,} tokens, but the model reads {self.positions:,}, its answer included, expected at most "
                f"{self.positions - 1:,}; shorten it"
            )
        if max_new_tokens is not None and max_new_tokens > room:
            raise UserError(
                f"--max-new-tokens: got {max_new_tokens:,} behind a prompt of {longest:,} tokens, but the model reads "
                f"{self.positions:,} in all, expected at most {room:,}; lower it"
            )
        return min(MAX_NEW_TOKENS, room) if max_new_tokens is None else max_new_tokens

    def _answer(self, tokens: list[int]) -> WrittenAnswer:
        ended = bool(tokens) and tokens[-1] in self.stop_ids
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        return WrittenAnswer(text, tuple(tokens), ended)


def load(run: str | Path, client: ClientId | None = None, *, base: str | None = None, device: str = "auto") -> AnsweringModel:
    """Load the global model of a run on answers, or that of one of its clients.

    Args:
        base: where the base model lies by now; None: where the run's configuration says.
        device: as `training.device`.

    Raises:
        UserError: no such model, one that predicts classes, a base model that is missing or another than the run was trained on, or an
            adapter that is damaged.
    """
    reading = load_reading(find(run, client, base))
    with quiet_libraries():
        pad: Any = reading.tokenizer.pad_token_id
        task = load_answer_task(reading.source, reading.found.folder, pad_token_id=pad, device=choose_device(device))
    return AnsweringModel(**vars(reading), task=task)


def load_reading(found: FoundModel) -> ReadingPrompts:
    """All of a model that answers but its weights.

    Raises:
        UserError: as `load`.
    """
    reject_classes(found, "generate")
    source = find_source(found.config.model)
    reject_other_weights(found, source)
    with quiet_libraries():
        tokenizer = saved_tokenizer(source, found.folder)
        named = found.config.data.chat_template
        try:
            template = None if named == NO_TEMPLATE else Template(tokenizer, None if named is None else template_text(named))
        except Unfit as error:
            raise UserError(f"data.chat_template: {error}") from None
        positions = num_positions(load_config(source))
        taken = positions_used(getattr(found.config.method, "adapter", None))
        return ReadingPrompts(
            found, source, tokenizer, template, stop_ids(source, tokenizer), None if positions is None else positions - taken
        )


def messages_of(text: str) -> list[Message]:
    """A conversation that is written as JSON.

    Raises:
        UserError: it is none, or it does not end with a user's message.
    """
    expected = 'expected a JSON list of messages such as [{"role": "user", "content": "..."}]'
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--messages: got no JSON ({error}), {expected}; fix it") from None
    if not isinstance(table, list) or not table:
        raise UserError(f"--messages: got {'an empty list' if table == [] else type(table).__name__}, {expected}; fix it")
    messages = list[Message]()
    for number, one in enumerate(table, start=1):
        if not isinstance(one, dict) or set(one) != {"role", "content"} or not all(isinstance(value, str) for value in one.values()):
            raise UserError(f"--messages: message {number} is no object with the strings role and content, {expected}; fix it")
        if one["role"] not in ROLES or (one["role"] == "system" and number > 1):
            raise UserError(
                f"--messages: message {number} has the role {one['role'][:40]!r}, expected user or assistant, or system first; fix it"
            )
        messages.append(Message(one["role"], one["content"]))
    if messages[-1].role != "user":
        raise UserError(f"--messages: the last message is of the role {messages[-1].role}, expected user, whom the model answers; fix it")
    return messages
