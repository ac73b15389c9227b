"""What an attention remembers between decoding steps, through fairseq's incremental-state API.

One or many new tokens may arrive per call. The keys, their shapes and writers: incremental_state.py. A beam reorder is
an ``index_select(0, order)`` of every entry.

Legend: B batch, S keys, t cached length, H heads, D head dim, C = H * D.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from torch import Tensor, nn

from fairseq_synth.modules.incremental_state import DROPPED_PADS, KEYS, PADS, VALUES

State = Dict[str, Any]
ROOM = 16  # slots: buffers hold a multiple of it


class Cached(NamedTuple):
    """What the queries attend to. key: B x h x S x D, of the heads that need keys; value: B x H x S x D; pads: B x S or
    None; start: first query slot.

    dropped: how many slots stood before these, and are out of every head's reach; dropped_pads: how many of them
    were pads (B), or None where none was.
    """

    key: Optional[Tensor]
    value: Tensor
    pads: Optional[Tensor]
    start: int
    dropped: int = 0
    dropped_pads: Optional[Tensor] = None

    @property
    def tokens_before(self) -> Union[int, Tensor]:
        """How many tokens of every sentence were dropped: a number, or B x 1."""
        return self.dropped if self.dropped_pads is None else self.dropped - self.dropped_pads.unsqueeze(1)


class Slots:
    """One vector per slot and row, t x B x C, in a buffer with room behind them; ``dropped`` slots stood before.

    Appending writes what is new into the room. It never changes an older Slots: where another has grown into the
    room, where none is left, and where gradients may be asked for, everything is copied.
    """

    def __init__(self, buffer: Tensor, first: int, end: int, dropped: int, filled: List[int]):
        self.buffer, self.first, self.end, self.dropped = buffer, first, end, dropped
        self._filled = filled  # up to where the buffer is in use: shared by all Slots in it

    @classmethod
    def of(cls, vectors: Tensor, dropped: int = 0) -> "Slots":
        return cls(vectors, 0, vectors.size(0), dropped, [vectors.size(0)])

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def vectors(self) -> Tensor:
        """t x B x C."""
        return self.buffer.narrow(0, self.first, self.end - self.first)

    def heads(self, count: int) -> Tensor:
        """B x H x t x D (a view)."""
        vectors = self.vectors
        return vectors.view(*vectors.shape[:2], count, -1).permute(1, 2, 0, 3)

    def append(self, new: Tensor) -> "Slots":
        """new: T x B x C, or B x C for a single slot."""
        steps = new.size(0) if new.dim() == 3 else 1
        end = self.end + steps
        if torch.is_grad_enabled():
            return Slots.of(torch.cat([self.vectors, new.view(steps, *new.shape[-2:])]), self.dropped)
        if end > self.buffer.size(0) or self._filled[0] != self.end:
            return self._moved(self.vectors, steps).append(new)
        self.buffer.narrow(0, self.end, steps).copy_(new)
        self._filled[0] = end
        return Slots(self.buffer, self.first, end, self.dropped, self._filled)

    def drop(self, slots: int) -> "Slots":
        """Without the first ones."""
        return Slots(self.buffer, self.first + slots, self.end, self.dropped + slots, self._filled)

    def index_select(self, dim: int, order: Tensor) -> "Slots":
        """The rows ``order``, as of a tensor whose dimension 0 is the batch; with room for the next slot."""
        if dim != 0:
            raise ValueError(f"rows are dimension 0, not {dim}")
        if torch.is_grad_enabled():
            return Slots.of(self.vectors.index_select(1, order), self.dropped)
        return self._moved(self.vectors, 1, order)

    def _moved(self, vectors: Tensor, more: int, order: Optional[Tensor] = None) -> "Slots":
        """The same in a buffer of its own, with room for at least ``more`` slots."""
        length, rows = vectors.size(0), vectors.size(1) if order is None else order.numel()
        capacity = -(-(length + more) // ROOM) * ROOM
        buffer = vectors.new_empty(capacity, rows, vectors.size(2))
        if order is None:
            buffer[:length] = vectors
        else:
            torch.index_select(vectors, 1, order, out=buffer[:length])
        return Slots(buffer, 0, length, self.dropped, [length])


def extend(state: State, key: Optional[Tensor], value: Tensor, pads: Optional[Tensor]) -> State:
    """The state with what is new behind what is cached. key, value: T x B x C; pads: B x T, or None."""
    if not state:
        state = {VALUES: Slots.of(value), PADS: pads}
        return state if key is None else {**state, KEYS: Slots.of(key)}
    joined = _join_pads(state[PADS], pads, len(state[VALUES]), value)
    state = {**state, VALUES: state[VALUES].append(value), PADS: joined}
    return state if key is None else {**state, KEYS: state[KEYS].append(key)}


def as_cached(state: State, heads: int, key_heads: int, queries: int) -> Cached:
    """What the last ``queries`` slots attend to."""
    values, keys = state[VALUES], state.get(KEYS)
    return Cached(
        None if keys is None else keys.heads(key_heads),
        values.heads(heads),
        state[PADS],
        len(values) - queries,
        values.dropped,
        state.get(DROPPED_PADS),
    )


def _join_pads(old: Optional[Tensor], new: Optional[Tensor], cached: int, value: Tensor) -> Optional[Tensor]:
    steps, batch = value.shape[:2]
    if new is not None and new.size(1) > steps:  # some callers pass the mask of the whole prefix
        return new[:, new.size(1) - cached - steps :]
    if old is None and new is None:
        return None
    old = value.new_zeros(batch, cached, dtype=torch.bool) if old is None else old
    new = value.new_zeros(batch, steps, dtype=torch.bool) if new is None else new
    return torch.cat([old, new], dim=1)


def forget(state: State, window: Optional[int]) -> State:
    """Drop slots at the left that no later query reaches: beyond ``window`` tokens (None: no limit), the query itself
    included."""
    pads = state[PADS]
    slots = 0 if window is None else _droppable(pads, len(state[VALUES]), window - 1)
    if not slots:
        return state
    kept = {name: entry.drop(slots) if isinstance(entry, Slots) else entry for name, entry in state.items()}
    if pads is not None:
        gone, before = pads[:, :slots].sum(dim=1), state.get(DROPPED_PADS)
        kept.update({PADS: pads[:, slots:], DROPPED_PADS: gone if before is None else before + gone})
    return kept


def _droppable(pads: Optional[Tensor], slots: int, tokens: int) -> int:
    """How many of the first slots can go while every sentence keeps its last ``tokens`` tokens."""
    if pads is None or slots <= tokens:
        return max(0, slots - tokens)
    real = pads.logical_not()
    from_here_on = real.flip(1).long().cumsum(dim=1).flip(1)  # real tokens of the sentence, this one included
    needed = (real & (from_here_on <= tokens)).any(dim=0)
    return int(needed.long().cumsum(dim=0).eq(0).sum())


@with_incremental_state
class CachingAttention(nn.Module):
    """Base of the attentions: one state per module, a dict of tensors (or Slots, or None) with a row per sentence."""

    get_incremental_state: Callable[..., Any]  # all from the decorator
    set_incremental_state: Callable[..., Any]
    _get_full_incremental_state_key: Callable[[str], str]

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
