"""Conversations as tokens: which of them are to be predicted, what is cut, and what is left out because nothing is left to learn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from .conversations import Conversation, Joined, Rows
from .names import listed, shown
from .rendering import Rendered, Template, Unfit, join
from .text import TokenTable

_CHUNK = 2048  # texts handed to the tokenizer at once: bounds the memory of its Python lists


@dataclass(frozen=True)
class Cuts:
    """What became of the examples of a part, by their number.

    Attributes:
        prompts, answers: that `data.max_length` cuts in the prompt, so that nothing is learned from them, or in the answer alone.
        dropped: left out, since no token is left to learn.
        without_end: kept, whose last answer has lost its end token.
    """

    prompts: int = 0
    answers: int = 0
    dropped: int = 0
    without_end: int = 0


@dataclass(frozen=True)
class AnswerSplit:
    """Examples as tokens; for `data.federated` what `sources.TextSplit` is for texts.

    Attributes:
        clients: the client each example belongs to; None without `data.client_column`.
        notes: what the user has to be told, as sentences.
        plain: they are plain text, without prompts.
    """

    table: TokenTable
    clients: list[str] | None
    cuts: Cuts = Cuts()
    notes: tuple[str, ...] = ()
    plain: bool = False

    labels = None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def strata(self) -> Tensor:
        """All are one stratum. Int64, shape (examples,)."""
        return torch.zeros(len(self), dtype=torch.int64)

    def take(self, rows: Sequence[int] | np.ndarray) -> AnswerSplit:
        """The examples at `rows`, in that order."""
        picked = np.asarray(rows, dtype=np.int64)
        clients = None if self.clients is None else [self.clients[i] for i in picked]
        return replace(self, table=self.table.take(torch.from_numpy(picked)), clients=clients)


@dataclass(frozen=True)
class Encoder:
    """How conversations become tokens.

    Attributes:
        template: None: prompts and completions are joined as they are.
        stop_ids: tokens at which the model's generation stops.
        max_length: tokens that an example is cut to, at its end.
        everything: predict every token, and not the answers' alone.
        weighs_tokens: as `TokenTable` has it.
        bare: make them with empty prompts too, as `TokenTable.bare`.
    """

    tokenizer: Any
    template: Template | None
    stop_ids: tuple[int, ...]
    max_length: int
    everything: bool = False
    weighs_tokens: bool = False
    bare: bool = False

    def encode(self, rows: Rows) -> AnswerSplit:
        """The tokens of examples.

        Raises:
            UserError: a row that the template cannot take, an answer that does not end in a token at which the model stops, or no
                example with anything left to learn.
        """
        ids: list[int] = []
        learned: list[bool] = []
        lengths: list[int] = []
        whole: list[int] = []
        digests: list[int] = []
        kept: list[int] = []
        cut: dict[str, list[int]] = {"prompt": [], "answer": [], "end": [], "merged": [], "special": []}
        for place, text, tokens, marked, merged in self._texts(rows):
            row = rows.rows[place] + 1
            left = tokens[: self.max_length], marked[: self.max_length]
            if merged:
                cut["merged"].append(row)
            if self._holds_special(rows.examples[place]):
                cut["special"].append(row)
            if sum(left[1]) < sum(marked):
                cut["answer" if any(left[1]) else "prompt"].append(row)
            if not any(left[1]):
                continue
            if len(tokens) > len(left[0]) and left[0][-1] not in self.stop_ids:
                cut["end"].append(row)
            ids += left[0]
            learned += left[1]
            lengths.append(len(left[0]))
            whole.append(len(tokens))
            digests.append(int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), signed=True))
            kept.append(place)
        if not kept:
            raise UserError(
                f"{rows.source}: none of the {len(rows.examples):,} examples has a token of its answer within data.max_length = "
                f"{self.max_length}; raise it"
            )
        table = TokenTable(
            ids=torch.tensor(ids, dtype=torch.int32),
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths).cumsum(0)]),
            labels=None,
            token_type_ids=None,
            pad_id=int(self.tokenizer.pad_token_id),
            special_ids=torch.tensor(sorted(set(self.tokenizer.all_special_ids)), dtype=torch.int32),
            whole_lengths=torch.tensor(whole, dtype=torch.int64),
            digests=torch.tensor(digests, dtype=torch.int64),
            learned=torch.tensor(learned, dtype=torch.bool),
            weighs_tokens=self.weighs_tokens,
            bare=self._bare(rows, kept) if self.bare else None,
        )
        clients = None if rows.clients is None else [rows.clients[place] for place in kept]
        cuts = Cuts(len(cut["prompt"]), len(cut["answer"]), len(rows.examples) - len(kept), len(cut["end"]))
        plain = all(isinstance(one, Joined) and not one.prompt for one in rows.examples)
        return AnswerSplit(table, clients, cuts, tuple(self._told(rows, cut)), plain)

    def _bare(self, rows: Rows, kept: Sequence[int]) -> TokenTable:
        """The examples at `kept` with empty prompts; of one that is cut other tokens may be left than of the whole."""
        examples = [_without_prompt(rows.examples[place]) for place in kept]
        return replace(self, bare=False).encode(replace(rows, examples=examples, rows=[rows.rows[place] for place in kept])).table

    def _texts(self, rows: Rows) -> Iterator[tuple[int, str, list[int], list[bool], bool]]:
        """Of each example its place, text, tokens, which of them are learned, and whether a token holds the border of an answer."""
        joins = self.template is None
        for start in range(0, len(rows.examples), _CHUNK):
            places = range(start, min(start + _CHUNK, len(rows.examples)))
            rendered = [self._rendered(rows, place) for place in places]
            encoded = self.tokenizer(
                [one.text for one in rendered],
                add_special_tokens=joins,  # a template writes its own
                padding=False,
                truncation=False,
                return_attention_mask=False,
                return_offsets_mapping=True,
                verbose=False,  # else it warns of texts that are longer than the model takes
            )
            for place, one, ids, offsets in zip(places, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
                    raise UserError(
                        f"{self._where(rows, place)}: the text begins with {shown(self.tokenizer.bos_token)} twice, expected it once; "
                        "remove it from the chat template or from the texts"
                    )
                if joins and len(ids) > 1 and ids[-1] == ids[-2] == self.tokenizer.eos_token_id:
                    ids, offsets = ids[:-1], offsets[:-1]  # the tokenizer has added one as well
                marked, merged = self._marked(rows, place, one, ids, offsets)
                yield place, one.text, ids, marked, merged

    def _rendered(self, rows: Rows, place: int) -> Rendered:
        example = rows.examples[place]
        if not isinstance(example, Conversation):
            return join(example, self.tokenizer.eos_token)
        assert self.template is not None
        try:
            return self.template.of(example)
        except Unfit as error:
            raise UserError(f"{self._where(rows, place)}: {error}") from None

    def _marked(
        self, rows: Rows, place: int, one: Rendered, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
    ) -> tuple[list[bool], bool]:
        """Which tokens are to be predicted: of answers those up to the first end token behind what was said; never the first of a text."""
        marked, merged, last = [False] * len(ids), False, 0
        for number, span in enumerate(one.answers, start=1):
            inside = [i for i, (a, b) in enumerate(offsets) if a < span.end and b > span.start and b > a]
            stop = next((i for i in inside if offsets[i][0] >= span.content and ids[i] in self.stop_ids), None)
            if stop is None:
                raise UserError(f"{self._where(rows, place)}: {self._no_end(number, one.text[span.content : span.end])}")
            for i in inside:
                if i <= stop:
                    marked[i] = True
            merged |= bool(inside) and offsets[inside[0]][0] < span.start
            last = stop
        if self.everything or not one.answers[0].start:
            marked = [i <= last for i in range(len(ids))]
        marked[0] = False
        return marked, merged

    def _no_end(self, number: int, behind: str) -> str:
        stops = ", ".join(shown(self.tokenizer.convert_ids_to_tokens(token)) for token in self.stop_ids)
        return (
            f"behind answer {number} comes {shown(behind)}, expected a token at which the model stops ({stops}), or it would never learn "
            "to; choose a model or `data.chat_template` whose answers end in such a token"
        )

    def _holds_special(self, example: Any) -> bool:
        contents = [one.content for one in example.messages] if isinstance(example, Conversation) else [example.prompt]
        return any(token in content for content in contents for token in self.tokenizer.all_special_tokens)

    def _where(self, rows: Rows, place: int) -> str:
        return f"{rows.source}, row {rows.rows[place] + 1} (the first row of data is 1)"

    def _told(self, rows: Rows, cut: dict[str, list[int]]) -> Iterator[str]:
        """Sentences on what was not taken as it is; nothing is cut without a word."""
        of, limit = f"of {len(rows.examples):,} examples", f"data.max_length = {self.max_length}"
        sentences = {
            "prompt": f"are left out, since {limit} cuts them before anything that is to be learned; raise it to keep them",
            "answer": f"lose the end of an answer to {limit}, and do not teach the model to stop there; raise it to keep them whole",
            "merged": "have a token over the border of prompt and answer, which is learned, and which the prompt alone does not begin; end "
            "prompts before a space",
            "special": "hold a special token of the tokenizer in their texts, which the model takes for one; remove it if not meant so",
        }
        for what, sentence in sentences.items():
            if cut[what]:
                yield f"{rows.source}: {len(cut[what]):,} {of} {sentence} (rows {listed(cut[what])})"


def _without_prompt(example: Conversation | Joined) -> Conversation | Joined:
    """The same answers; a user has said nothing, while the system message stays."""
    if isinstance(example, Joined):
        return replace(example, prompt="")
    return replace(example, messages=tuple(replace(one, content="") if one.role == "user" else one for one in example.messages))
