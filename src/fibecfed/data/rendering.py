"""From a conversation to the text that a model reads, and where in it the answers are: by the tokenizer's chat template, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateSyntaxError

from .conversations import Conversation, Joined, Message
from .names import shown


class Unfit(ValueError):
    """A conversation that a template cannot put into a text to be learned from; says why, and what to do, without the row."""


@dataclass(frozen=True)
class AnswerSpan:
    """Characters of an answer in a text.

    Attributes:
        start: where the generation prompt ends.
        content: where what the assistant said ends; the end of the turn follows.
        end: where the turn ends.
    """

    start: int
    content: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A text, and the answers in it."""

    text: str
    answers: tuple[AnswerSpan, ...]


class Template:
    """A chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        source: Jinja; None: the tokenizer's own.

    Raises:
        Unfit: there is none.
    """

    def __init__(self, tokenizer: Any, source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._special = tuple(tokenizer.all_special_tokens)
        if source is None and not getattr(tokenizer, "chat_template", None):
            raise Unfit(
                "the tokenizer has no chat template, as most base models have none; choose a model that follows instructions, or set "
                '`data.chat_template` to a template or a file with one, or to "none", which takes plain text as it is, and joins prompt '
                "and completion"
            )
        try:
            self._text([{"role": "user", "content": "a"}])
        except Unfit as error:
            if isinstance(error.__cause__, TemplateSyntaxError):
                raise Unfit(f"got a template that is no Jinja ({error.__cause__.message}, line {error.__cause__.lineno}); fix it") from None

    def of(self, conversation: Conversation) -> Rendered:
        """The text of a conversation; each answer begins where the text of what stands before it ends, with its generation prompt.

        Raises:
            Unfit: the template rejects the conversation, renders an earlier turn in another way once later ones follow, has no
                generation prompt, or leaves a message out.
        """
        turns = [{"role": one.role, "content": one.content} for one in conversation.messages]
        whole = self._text(turns)
        spans = []
        for place in conversation.answers:
            before, without = self._text(turns[:place], prompts=True), self._text(turns[:place])
            through = whole if place + 1 == len(turns) else self._text(turns[: place + 1])
            if not whole.startswith(through):
                raise Unfit(self._rewritten(place, through, whole))
            if not through.startswith(before):
                raise Unfit(self._rewritten(place, before, through))
            said, content = through[len(before) :], conversation.messages[place].content.strip()
            found = said.find(content)
            if found < 0:
                raise Unfit(f"the chat template does not hold the answer of message {place + 1} as it is written; choose another one")
            between = said[:found]
            if between.strip() and not place:
                raise Unfit(
                    "the conversation begins with an assistant's message, which answers nothing; put a user's message before it, or set "
                    "`data.system`"
                )
            if between.strip() and (before == without or any(token in between for token in self._special)):
                raise Unfit(
                    f"the chat template has no generation prompt: between what stands before message {place + 1} and its answer comes "
                    f"{shown(between)}, which a model would have to write itself; add an `add_generation_prompt` part to the template"
                )
            start = len(before)
            spans.append(AnswerSpan(start, start + found + len(content), len(through)))
        for place, one in enumerate(conversation.messages):
            if place not in conversation.answers and one.content.strip() not in whole:
                raise Unfit(f"the chat template does not hold message {place + 1} ({one.role}) as it is written; choose another one")
        return Rendered(whole, tuple(spans))

    def text(self, messages: Sequence[Message]) -> str:
        """The text of messages, as they are; see `prompt`."""
        return self._text([{"role": one.role, "content": one.content} for one in messages])

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that an answer to messages follows, generation prompt included.

        Raises:
            Unfit: the template rejects them.
        """
        return self._text([{"role": one.role, "content": one.content} for one in messages], prompts=True)

    def _text(self, turns: Sequence[dict[str, str]], prompts: bool = False) -> str:
        if not turns:
            return ""
        try:
            return self._tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=prompts, chat_template=self._source
            )
        except Exception as error:  # Jinja's, and whatever a template raises
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Unfit(
                f"the chat template rejects the conversation up to message {len(turns)}: {said[:200]}; fix the row or the template"
            ) from error

    def _rewritten(self, place: int, shorter: str, longer: str) -> str:
        at = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), min(len(shorter), len(longer)))
        kept = shorter[:at].count("\n") + 1
        return (
            f"the chat template writes what stands before the end of message {place + 1} in another way once more follows (line {kept} of "
            "the text), so that a model would be trained on another context than it answers in; choose a template that keeps earlier turns"
        )


def join(example: Joined, end: str) -> Rendered:
    """A prompt and its completion as they are, with the end token behind them unless it is there already."""
    text = example.prompt + example.completion
    whole = text if text.endswith(end) else text + end
    return Rendered(whole, (AnswerSpan(len(example.prompt), len(whole) - len(end), len(whole)),))
