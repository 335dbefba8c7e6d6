"""Conversations from the columns of a table: prompts with completions, lists of messages, or plain text. Every row is checked, and a
mistake is named with its column and row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..core.errors import UserError
from .names import canonical, listed, shown
from .options import DataOptions
from .user_files import check_columns
from .values import Located, all_missing, clients_of, is_missing, reject_halves

ROLES = ("system", "user", "assistant")
CALLS = ("tool_calls", "function_call")
"""Keys of an assistant's message that calls a tool."""
READ = ("role", "content", "weight", *CALLS)
"""Keys of a message that are looked at."""
Shape: TypeAlias = Literal["prompt", "messages", "text"]
KEYS = (
    "`data.prompt_column`, `data.completion_column`, `data.messages_column`, `data.text_column`, `data.system_column` or "
    "`data.client_column`"
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; the role is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """What an example is made of.

    Attributes:
        messages: in order, a system message first or not at all.
        answers: which of them are to be learned, 0-based; each an assistant's.
    """

    messages: tuple[Message, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class Joined:
    """A prompt and what follows it, as they are written; plain text has an empty prompt."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Rows:
    """Examples of a file. Row i of every list belongs to the same example.

    Attributes:
        clients: the client each example belongs to; None without `data.client_column`.
        rows: 0-based rows of the source.
        about: what was read, as a sentence.
        notes: what the user has to be told about it, as sentences.
    """

    source: str
    examples: list[Conversation | Joined]
    clients: list[str] | None
    rows: Sequence[int]
    about: str
    notes: tuple[str, ...] = ()


def columns_of(options: DataOptions) -> tuple[str, ...]:
    """Every column that may be read, as names in a file are."""
    named = (options.prompt_column, options.completion_column, options.messages_column, options.text_column)
    return tuple(dict.fromkeys(canonical(name) for name in (*named, options.system_column, options.client_column) if name is not None))


def rows_of(
    source: str, options: DataOptions, names: Sequence[str], table: Mapping[str, list[Any]], *, joined: bool, about: str = "",
    notes: Sequence[str] = (),
) -> Rows:  # fmt: skip
    """Check columns that were read from anywhere.

    Args:
        source: names the place in errors.
        names: of all columns that are there.
        table: the values of those of `columns_of` that are.
        joined: prompts and completions are strings that are joined as they are, and no messages.
        about: how it was read, in a few words.
        notes: what the user has to be told about that.

    Raises:
        UserError: a column that is missing, columns of two shapes, a row that is not as it has to be, or no rows.
    """
    if not names:
        raise UserError(f"{source}: the file has no rows. Expected at least one example.")
    shape = _shape(source, options, names, table)
    texts = {
        "prompt": (options.prompt_column, options.completion_column),
        "messages": (options.messages_column,),
        "text": (options.text_column,),
    }[shape]
    texts = tuple(map(canonical, texts))
    client = None if options.client_column is None else canonical(options.client_column)
    system = None if options.system_column is None else canonical(options.system_column)
    check_columns(source, [name for name in (*texts, system, client) if name is not None], names, KEYS)
    if shape == "text" and not joined:
        raise UserError(
            f"{source}: got plain text in {shown(texts[0])}, which is trained on as it is, while the model would be asked by a chat "
            'template; set `data.chat_template` = "none"'
        )
    total = len(table[texts[0]])
    if not total:
        raise UserError(f"{source}: the file has no rows. Expected at least one example.")
    left_out: set[int] = set()
    for name in texts:
        empty = [row for row, value in enumerate(table[name]) if is_missing(value) or value == []]
        if empty and not options.skip_empty:
            raise UserError(all_missing(source, name, "answer" if shape == "prompt" and name == texts[1] else "text", empty, table[name]))
        left_out.update(empty)
    rows = [row for row in range(total) if row not in left_out]
    if not rows:
        raise UserError(f"{source}: none of the {total:,} rows has both a prompt and an answer. Expected at least one example.")
    place = Located(source, rows)
    held = {name: [table[name][row] for row in rows] for name in dict.fromkeys((*texts, *(n for n in (system, client) if n)))}
    reader = _Reader(place, options, joined)
    systems: list[Any] = [None] * len(rows) if system is None else held[system]
    examples: list[Conversation | Joined] = []
    for row in range(len(rows)):
        before = reader.system(row, system, systems[row])
        if shape == "prompt":
            examples.append(reader.prompt(row, before, texts, held[texts[0]][row], held[texts[1]][row]))
        elif shape == "messages":
            examples.append(reader.messages(row, before, texts[0], held[texts[0]][row]))
        else:
            examples.append(Joined("", reader.text(row, texts[0], held[texts[0]][row])))
    if reader.unread:
        notes = (*notes, f"{source}: of messages role and content alone are read, and not {listed(reader.unread)}")
    clients, told = (None, []) if client is None else clients_of(place, client, held[client])
    if left_out:
        numbers = listed(row + 1 for row in sorted(left_out))
        dropped = f"{len(left_out):,} of {total:,} rows are left out, which have no prompt or no answer: rows {numbers}"
        notes = (*notes, f"{source}: {dropped}")
    out = f"{len(left_out):,} of them" if left_out else "none"
    return Rows(
        source, examples, clients, rows, f"{source}: {total:,} rows{f', {about}' if about else ''}; {out} left out", (*notes, *told)
    )


def _shape(source: str, options: DataOptions, names: Sequence[str], table: Mapping[str, list[Any]]) -> Shape:
    """Which columns hold the examples; those that one shape needs and no other."""
    if options.shape != "auto":
        return options.shape
    prompt, completion, messages, text = map(
        canonical, (options.prompt_column, options.completion_column, options.messages_column, options.text_column)
    )
    found: list[Shape] = []
    if completion in names:
        found.append("prompt")
    if messages in names:
        found.append("messages")
    if len(found) > 1:
        first = [next((row + 1 for row, v in enumerate(table[name]) if not is_missing(v)), 1) for name in (completion, messages)]
        raise UserError(
            f"{source}: got examples of two shapes, {shown(completion)} (first in row {first[0]}) and {shown(messages)} (first in row "
            f'{first[1]}), expected one; remove the others, or set `data.shape` = "prompt" or "messages" to read one of them'
        )
    if found:
        return found[0]
    if text in names and prompt not in names:
        return "text"
    return "prompt"  # which check_columns then says what is missing of


@dataclass(frozen=True)
class _Reader:
    """Makes examples of single cells.

    Attributes:
        where: names the place of a cell in errors.
        unread: keys of messages that hold something and are not read, in order.
    """

    where: Located
    options: DataOptions
    joined: bool
    unread: dict[str, None] = field(default_factory=dict)

    def system(self, row: int, column: str | None, value: Any) -> str | None:
        """The system message of a row, which may have none."""
        if column is None or is_missing(value):
            return None
        return self.text(row, column, value)

    def text(self, row: int, column: str, value: Any) -> str:
        """A cell that holds text."""
        if not isinstance(value, str):
            raise UserError(f"{self.where(column, row)}: got {_kind(value)}, expected text. Is {shown(column)} the right column?")
        reject_halves(self.where, column, row, value)
        return value

    def prompt(self, row: int, system: str | None, columns: Sequence[str], prompt: Any, completion: Any) -> Conversation | Joined:
        """A prompt and its answer, both strings or both lists of messages."""
        prompt, completion = (_parsed(value) for value in (prompt, completion))
        if isinstance(prompt, list) != isinstance(completion, list):
            kinds = ["messages" if isinstance(value, list) else "text" for value in (prompt, completion)]
            raise UserError(
                f"{self.where(columns[1], row)}: got a prompt of {kinds[0]} and a completion of {kinds[1]}, expected both of one kind; "
                "write both as strings, or both as lists of messages"
            )
        if not isinstance(prompt, list):
            before, answer = self.text(row, columns[0], prompt), self.text(row, columns[1], completion)
            if self.joined:
                return Joined(before, answer)
            turns, answers = (Message("user", before),), (Message("assistant", answer),)
        else:
            turns, answers = self._turns(row, columns[0], prompt), self._turns(row, columns[1], completion)
            if wrong := next((turn for turn in answers if turn.role != "assistant"), None):
                raise UserError(
                    f"{self.where(columns[1], row)}: got a message of the role {wrong.role!r}, expected assistant alone; fix it"
                )
        return self._whole(row, columns[0], system, (*turns, *answers), len(answers))

    def messages(self, row: int, system: str | None, column: str, value: Any) -> Conversation:
        """A conversation, of which every answer is learned."""
        value = _parsed(value)
        if not isinstance(value, list):
            raise UserError(f"{self.where(column, row)}: got {_no_list(value)}, expected a list of messages with role and content; fix it")
        return self._whole(row, column, system, self._turns(row, column, value), None)

    def _whole(self, row: int, column: str, system: str | None, turns: tuple[Message, ...], last: int | None) -> Conversation:
        """Args: last: how many messages at the end are the answers; None: every assistant's is one."""
        if self.joined:
            raise UserError(f'{self.where(column, row)}: got messages with `data.chat_template` = "none", expected strings; set a template')
        if any(turn.role == "system" for turn in turns[1:]):
            raise UserError(f"{self.where(column, row)}: got a system message behind another message, expected it first; move it")
        has_own = bool(turns) and turns[0].role == "system"
        if has_own and system is not None:
            raise UserError(f"{self.where(column, row)}: got a system message here and in `data.system_column`, expected one; remove one")
        system = self.options.system if system is None else system
        if not has_own and system is not None:
            turns = (Message("system", system), *turns)
        places = range(len(turns)) if last is None else range(len(turns) - last, len(turns))
        answers = tuple(place for place in places if turns[place].role == "assistant")
        if not answers:
            raise UserError(
                f"{self.where(column, row)}: got a conversation without an assistant's message, so there is nothing to learn; add one"
            )
        return Conversation(turns, answers)

    def _turns(self, row: int, column: str, value: list[Any]) -> tuple[Message, ...]:
        found: list[Message] = []
        for number, one in enumerate(value, start=1):
            where = f"{self.where(column, row)}, message {number}"
            if not isinstance(one, Mapping):
                raise UserError(f"{where}: got {_kind(one)}, expected an object with role and content; fix it")
            self._check_others(where, one)
            for name in ("role", "content"):
                if not isinstance(one.get(name), str):
                    other = f" (it has {listed(one)})" if name not in one else ""
                    got = "no" if one.get(name) is None else f"{_kind(one[name])} as"
                    raise UserError(f"{where}: got {got} {name}{other}, expected text; fix it")
            role, content = one["role"], one["content"]
            if role not in ROLES:
                hint = "; what tools say cannot be learned from here" if role in ("tool", "function") else ""
                raise UserError(f"{where}: got the role {shown(role)}, expected one of {', '.join(ROLES)}{hint}; rename or remove it")
            if role == "assistant" and not content.strip():
                raise UserError(f"{where}: the answer is empty. Expected text; fill it in, or remove the row.")
            reject_halves(self.where, column, row, content)
            found.append(Message(role, content))
        return tuple(found)

    def _check_others(self, where: str, message: Mapping[str, Any]) -> None:
        """Reject keys that say what is to be learned and are not read; remember those that only are not read."""
        self.unread.update({str(name): None for name, value in message.items() if name not in READ and _named(value)})
        for name in CALLS:
            if _named(message.get(name)):
                raise UserError(
                    f"{where}: got {name}, which cannot be learned from here, expected content alone; write the call into content as the "
                    "model is to write it, or remove the row"
                )
        weight = message.get("weight")
        if message.get("role") == "assistant" and _named(weight) and weight != 1:
            raise UserError(
                f"{where}: got weight {shown(weight)}, expected none or 1, since every answer counts the same; remove the key, or leave "
                "out the messages from this one on"
            )


def _named(value: Any) -> bool:
    """Whether a key of a message holds something."""
    return not is_missing(value) and not (hasattr(value, "__len__") and not len(value))


def _kind(value: Any) -> str:
    """What a value is, without saying what is in it."""
    if isinstance(value, bool | int | float):
        return f"{shown(value)} (a number)"
    return {str: "text", list: "a list", dict: "an object", type(None): "nothing (null)"}.get(type(value), f"a {type(value).__name__}")


def _no_list(value: Any) -> str:
    """What stands where a list of messages is expected."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return _kind(value)
    try:
        json.loads(value)
    except ValueError as error:
        hint = ", with double quotes (json.dumps writes it)" if isinstance(error, json.JSONDecodeError) and "'" in value else ""
        return f"text that is no JSON{hint}: {error}"
    return _kind(value)


def _parsed(value: Any) -> Any:
    """A list of messages that was written as JSON, as CSV has it; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if all(isinstance(one, dict) and "role" in one for one in found) else value
