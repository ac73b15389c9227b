"""What an attention remembers between decoding steps, through fairseq's incremental-state API.

Legend: B batch, S keys, t cached length, H heads, D head dim.

The cache of :class:`~fairseq_synth.modules.attention.SynthAttention` (batch first, so that a beam reorder is an
index_select on dimension 0). One or many new tokens may arrive per call; nothing else survives between calls.
    prev_value             B x H x t x D
    prev_key               B x H x t x D    only for scorers that need keys
    prev_key_padding_mask  B x t, or None   True at pads
    prev_query             B x t x 0        cross-attention only: its shape counts the queries already answered
    prev_dropped           B x n x 0        adaptive span only: its shape counts the slots dropped before the cache
    prev_dropped_pads      B, or None       how many of them were pads
"""

from typing import Any, Callable, Dict, NamedTuple, Optional, Union

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from torch import Tensor, nn

State = Dict[str, Any]


class Memory(NamedTuple):
    """What the queries attend to. key, value: B x H x S x D; padding_mask: B x S or None; start: first query slot.

    dropped: how many slots stood before these, and are out of every head's reach; dropped_pads: how many of them
    were pads (B), or None where none was.
    """

    key: Optional[Tensor]
    value: Tensor
    padding_mask: Optional[Tensor]
    start: int
    dropped: int = 0
    dropped_pads: Optional[Tensor] = None

    @property
    def tokens_before(self) -> Union[int, Tensor]:
        """How many tokens of every sentence were dropped: a number, or B x 1."""
        return self.dropped if self.dropped_pads is None else self.dropped - self.dropped_pads.unsqueeze(1)


def append(state: State, new: Memory) -> Memory:
    """What is cached, and behind it what is new."""
    if not state:
        return new
    cached, dropped = state["prev_value"], state.get("prev_dropped")
    return Memory(
        None if new.key is None else torch.cat([state["prev_key"], new.key], dim=2),
        torch.cat([cached, new.value], dim=2),
        _join_masks(state["prev_key_padding_mask"], new.padding_mask, cached, new.value),
        cached.size(2),
        0 if dropped is None else dropped.size(1),
        state.get("prev_dropped_pads"),
    )


def _join_masks(old: Optional[Tensor], new: Optional[Tensor], cached: Tensor, value: Tensor) -> Optional[Tensor]:
    if new is not None and new.size(1) > value.size(2):  # some callers pass the mask of the whole prefix
        return new[:, new.size(1) - cached.size(2) - value.size(2) :]
    if old is None and new is None:
        return None
    old = cached.new_zeros(cached.shape[::2], dtype=torch.bool) if old is None else old
    new = value.new_zeros(value.shape[::2], dtype=torch.bool) if new is None else new
    return torch.cat([old, new], dim=1)


def as_state(memory: Memory, window: Optional[int] = None) -> State:
    """The state to store; with a window (in tokens), without what no later query reaches."""
    if window is not None:
        memory = _drop(memory, window - 1)  # the next query itself is one token of the window
    state = {"prev_value": memory.value, "prev_key_padding_mask": memory.padding_mask}
    if memory.key is not None:
        state["prev_key"] = memory.key
    if window is not None:
        state["prev_dropped"] = memory.value.new_empty(memory.value.size(0), memory.dropped, 0)
        state["prev_dropped_pads"] = memory.dropped_pads
    return state


def _drop(memory: Memory, tokens: int) -> Memory:
    """Drop slots at the left until a sentence would lose one of its last ``tokens`` tokens."""
    mask, pads = memory.padding_mask, memory.dropped_pads
    slots = _droppable(memory, tokens)
    if mask is not None:
        gone = mask[:, :slots].sum(dim=1)
        pads, mask = gone if pads is None else pads + gone, mask[:, slots:]
    return Memory(
        None if memory.key is None else memory.key[:, :, slots:],
        memory.value[:, :, slots:],
        mask,
        memory.start,
        memory.dropped + slots,
        pads,
    )


def _droppable(memory: Memory, tokens: int) -> int:
    slots = memory.value.size(2)
    if memory.padding_mask is None or slots <= tokens:
        return max(0, slots - tokens)
    real = memory.padding_mask.logical_not()
    from_here_on = real.flip(1).long().cumsum(dim=1).flip(1)  # real tokens of the sentence, this one included
    needed = (real & (from_here_on <= tokens)).any(dim=0)
    return int(needed.long().cumsum(dim=0).eq(0).sum())


@with_incremental_state
class CachingAttention(nn.Module):
    """Base of the attentions: one state per module, a dict of tensors (or None) whose dimension 0 is the batch."""

    get_incremental_state: Callable[..., Any]  # both from the decorator
    set_incremental_state: Callable[..., Any]

    def reorder_incremental_state(self, incremental_state: Dict[str, State], new_order: Tensor):
        """Called by beam search: keep the rows ``new_order`` of everything that is cached."""
        state = self._get_input_buffer(incremental_state)
        if state:
            state = {k: None if v is None else v.index_select(0, new_order) for k, v in state.items()}
            self._set_input_buffer(incremental_state, state)
        return incremental_state

    # fairseq's decoder layer calls these two by name
    def _get_input_buffer(self, incremental_state: Optional[Dict[str, State]]) -> State:
        return self.get_incremental_state(incremental_state, "attn_state") or {}

    def _set_input_buffer(self, incremental_state: Dict[str, State], buffer: State):
        return self.set_incremental_state(incremental_state, "attn_state", buffer)
