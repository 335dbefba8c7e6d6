"""Tokenizers of pre-trained models: found, fit for batches, and in step with the model's table of embeddings."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.terminal import one_line
from .base_models import COUNT_FROM_PADDING, Source, as_user_error, load_config

logger = logging.getLogger(__name__)

_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "*.bpe*")
"""What tokenizers are saved as."""

_NO_TOKENIZER = (
    "model.name: {} has no tokenizer, expected its files (tokenizer.json or a vocabulary) beside the model's; write them with: "
    "python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('SOURCE').save_pretrained('FOLDER')\", where "
    "SOURCE is the model that this one was made of"
)


def load_tokenizer(source: Source, config: PretrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, which can pad.

    One without a padding token pads with its end-of-text token. One whose padding token has no row among the embeddings of `config`, as
    where a token was added to the tokenizer alone, pads with a token that has: padding is masked, so that any row will do. RoBERTa and
    its like, which count positions from their padding token, always pad with that.

    Raises:
        UserError: it cannot be had, knows no tokens, takes no plain texts, or has neither a padding nor an end-of-text token.
    """
    try:
        with as_user_error(source):
            tokenizer = AutoTokenizer.from_pretrained(source.location, **source.keywords())
    except UserError as error:
        folder = Path(source.location)
        if folder.is_dir() and not source.gguf_file and not any(any(folder.glob(pattern)) for pattern in _FILES):
            raise UserError(_NO_TOKENIZER.format(source.location)) from error
        raise
    # transformers makes a tokenizer of special tokens alone where a family's has no files
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) <= 2:
        raise UserError(_NO_TOKENIZER.format(source.location))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"model.name: the tokenizer of {source.published} has neither a padding nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("the tokenizer of %s has no padding token: its end-of-text token takes the place", one_line(source.published))
    _pad_within(tokenizer, config)
    try:
        tokenizer(["a text", "another one"], truncation="longest_first", max_length=8, padding=False)
    except Exception as error:  # tokenizers of pages, tables and speech ask for more than a text
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model.name: {source.published} cannot be used: its tokenizer does not accept plain texts: {first[:200]}"
        ) from error
    return tokenizer


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts its first token before a text, as programs do that read it from the model's files."""
    return tokenizer.bos_token_id is not None and list(tokenizer("a text", verbose=False)["input_ids"])[:1] == [tokenizer.bos_token_id]


def stop_ids(source: Source, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens at which the model's generation stops: those of its generation_config.json, else of its config.json, else its tokenizer's.

    Raises:
        UserError: there is none.
    """
    found: Any = None
    if not source.gguf_file:
        keywords = source.keywords()
        with contextlib.suppress(OSError, ValueError):
            found = GenerationConfig.from_pretrained(source.location, revision=keywords.get("revision", "main")).eos_token_id
        if found is None:
            found = GenerationConfig.from_model_config(load_config(source)).eos_token_id
    found = tokenizer.eos_token_id if found is None else found
    if found is None or tokenizer.eos_token is None:
        raise UserError(
            f"model.name: {source.published} has no end token, neither in its generation_config.json nor in its tokenizer, expected one, "
            "or it would never learn to stop; choose a model that has one"
        )
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def _pad_within(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig | None) -> None:
    rows, own = num_embeddings(config), getattr(config, "pad_token_id", None)
    if rows is None or config is None:
        return
    known = (own, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, 0)
    fit = (token for token in known if isinstance(token, int) and 0 <= token < min(rows, len(tokenizer)))
    number = next(fit, None)
    # another padding token would move the positions of a family that counts them from it
    moves = config.model_type in COUNT_FROM_PADDING and number == own
    padding: Any = tokenizer.pad_token_id
    if number is not None and (moves or padding >= rows):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(number)


def num_embeddings(config: PretrainedConfig | None) -> int | None:
    """Rows of the table of the tokens' embeddings; None where the configuration names no number."""
    rows = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
    return rows if isinstance(rows, int) and rows > 0 else None


def reject_unknown(ids: Tensor, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, published: str) -> None:
    """Reject tokens that the model has no embeddings for, as where they were added to its tokenizer alone.

    Raises:
        UserError: names the token, its number and the number of embeddings.
    """
    rows = num_embeddings(config)
    if rows is None or not len(ids) or int(ids.max()) < rows:
        return
    number = int(ids.max())
    token = tokenizer.convert_ids_to_tokens(number)
    raise UserError(
        f"model.name: the tokenizer of {published} makes the token {str(token)[:80]!r}, which has the number {number}, but the model has "
        f"{rows} embeddings, numbered from 0; load the model with transformers, call model.resize_token_embeddings({number + 1} or more) "
        "and save it again"
    )
