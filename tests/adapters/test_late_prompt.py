"""A prompt inserted at the middle layer: the lower half without it, the upper half called by hand block by block."""

from __future__ import annotations

import pytest
import torch
from adapted import SMALL, TOKENS, adapted
from texts import PAD, noisy, padded, sentences
from torch import Tensor

from fibecfed.adapters.late_prompt import _opened
from fibecfed.core.errors import UserError
from fibecfed.models.tiny import FAMILIES, Family, tiny_task

pytestmark = pytest.mark.usefixtures("norms_in_float64")
(TEXT,) = sentences([5])


def upper_half(task, params: dict[str, Tensor], lower: Tensor, family: Family) -> list[Tensor]:
    """The outputs of the blocks from the middle on, at the text's tokens; `lower` (T, hidden) is what the middle block gets."""
    causal = family in ("gpt2", "llama")
    vector = lower[-1] if causal else lower[0]
    low = (vector @ params["adapter.down.weight"].T + params["adapter.down.bias"]).clamp(min=0)
    prompts = (low @ params["adapter.up.weight"].T + params["adapter.up.bias"]).view(TOKENS, -1)
    hidden, length = torch.cat([prompts, lower])[None], TOKENS + len(lower)
    later = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else torch.zeros(length, length, dtype=torch.bool)
    keywords = {"attention_mask": torch.zeros(1, 1, length, length, dtype=torch.float64).masked_fill(later, -torch.inf)}
    if family == "llama":
        keywords["position_embeddings"] = task.model.model.rotary_emb(hidden, position_ids=torch.arange(length)[None])
    outputs = []
    for block in task._network.blocks[len(task._network.blocks) // 2 :]:
        hidden = block(hidden, **keywords)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        outputs.append(hidden[0, TOKENS:])
    return outputs


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_below_the_middle_there_is_no_prompt_and_above_it_stands_before_the_text(family: Family, layers: int) -> None:
    task = adapted(family, "late prompt", layers=layers)
    params, middle = noisy(task), layers // 2
    first = 2 if family == "roberta" else 0
    plain = task.model.base_model(input_ids=TEXT[None], output_hidden_states=True, position_ids=torch.arange(first, first + 5)[None])
    states = task.hidden_states(params, padded([TEXT], PAD[family], total=7))
    for number in range(middle):
        torch.testing.assert_close(states[number][0, :5], plain.hidden_states[number + 1][0], rtol=1e-6, atol=1e-7)  # llama: angles
    for state, expected in zip(states[middle:], upper_half(task, params, states[middle - 1][0, :5], family), strict=True):
        torch.testing.assert_close(state[0, :5], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lower_half_builds_no_graph(family: Family) -> None:
    task = adapted(family, "late prompt", layers=4)
    leaves = {name: value.requires_grad_() for name, value in noisy(task).items()}
    states = task.hidden_states(leaves, padded([TEXT], PAD[family]))
    assert [state.requires_grad for state in states] == [False, False, True, True]


def test_a_model_of_one_block_gets_its_prompt_at_the_input() -> None:
    task = adapted("gpt2", "late prompt", layers=1)
    params = noisy(task)
    lower = task.model.base_model.wte(TEXT) + task.model.base_model.wpe.weight[:5]
    (state,) = task.hidden_states(params, padded([TEXT], 0))
    torch.testing.assert_close(state[0], upper_half(task, params, lower.detach(), "gpt2")[0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_plain_attention_gives_the_same_as_the_fused_kernels(family: Family) -> None:
    task = tiny_task(family, adapter=SMALL["late prompt"])  # in float32: in float64 LLaMA's plain attention cannot mask a whole row
    params, batch = noisy(task), padded([TEXT, TEXT[:3]], PAD[family], total=6, side="left")
    fused = task.logits(params, batch)
    task.model.set_attn_implementation("eager")
    torch.testing.assert_close(task.logits(params, batch), fused, rtol=1e-4, atol=1e-5)


def test_prompts_see_the_text_or_in_a_causal_model_only_those_before_them() -> None:
    closed = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    closed[..., 2:] = True
    closed[..., 3] = False  # padding
    both = _opened(closed, 2, causal=False)[0, 0].int().tolist()
    assert both == [[1, 1, 1, 0]] * 4
    text = torch.tensor([[[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]], dtype=torch.bool)
    assert _opened(text, 2, causal=True)[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_attention_without_a_mask_for_each_token_is_refused() -> None:
    with pytest.raises(UserError, match="a late prompt needs the attention called sdpa or eager"):
        _opened(None, 2, causal=False)
