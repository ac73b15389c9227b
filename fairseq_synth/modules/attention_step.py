"""One decoding step of a SynthAttention: its ``forward`` for a single new token per row, by fewer operations.

Legend: B rows (hypotheses), t slots up to this token, H heads, D head dim, C model dim.
"""

import math
from typing import Any, Dict, Optional, Sequence

import torch
from torch import Tensor

from fairseq_synth.modules import direct
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.decoding_state import Slots
from fairseq_synth.modules.positions import Positions

ROWS = 32  # of a map that are normalised at a time


class SharedRows:
    """The attention weights where they depend on nothing but the position: rows of a normalised map."""

    def __init__(self, attention: SynthAttention):
        self.attention, self.start = attention, 0
        self.rows: Sequence[Tensor] = ()  # H x columns each, those from start on

    def at(self, position: int, first: int, x: Tensor) -> Tensor:
        """The weights that a token pays to the slots from ``first`` to itself: H x t. x: B x C, an input."""
        if not self.start <= position < self.start + len(self.rows):
            self.start = position // ROWS * ROWS
            self.rows = self._normalised(x).unbind(1)
        return self.rows[position - self.start].narrow(1, first, position + 1 - first)

    def _normalised(self, x: Tensor) -> Tensor:
        limit = self.attention.max_length
        count = ROWS if limit is None else min(ROWS, limit - self.start)
        positions = Positions(self.start, count, self.start + count)
        logits = self.attention.scorer(x.expand(count, *x.shape), None, None, positions)
        future = torch.ones(logits.shape[1:], dtype=torch.bool, device=x.device).triu(self.start + 1)
        return _softmax(self.attention.within_span(logits, positions).masked_fill(future, -math.inf), x.dtype)


class SelfAttentionStep:
    """Where the module is more than plain, has no cache yet or one with pads, the module itself is asked."""

    def __init__(self, attention: SynthAttention, rows: int):
        self.attention = attention
        self.key = attention._get_full_incremental_state_key("attn_state")
        self.plain = (
            type(attention) is SynthAttention
            and attention.memory is None
            and direct.all_plain(m for m in attention.modules() if not isinstance(m, torch.nn.Linear))
        )
        if not self.plain:
            return
        self.heads, self.scaling, scorer = attention.num_heads, attention.scaling, attention.scorer
        self.rows = None if scorer.uses_tokens or scorer.needs_keys else SharedRows(attention)
        projections = ["v_proj", "q_proj", "k_proj"] if scorer.needs_keys else ["v_proj"]
        self.project_in = direct.linears([getattr(attention, name) for name in projections], rows)
        self.project_out = direct.linear(attention.out_proj, rows)
        self.limit = float("inf") if attention.max_length is None else attention.max_length
        self.window = None if attention.span is None else max(attention.span.windows())

    def __call__(self, x: Tensor, incremental_state: Dict[str, Any]) -> Tensor:
        """x: B x C. Returns B x C."""
        state = incremental_state.get(self.key)
        if not (self.plain and state and state["prev_key_padding_mask"] is None):
            return self._ask(x, incremental_state)
        cached: Slots = state["prev_value"]
        position = cached.dropped + len(cached)
        if position >= self.limit:
            return self._ask(x, incremental_state)
        value, *asked = self.project_in(x)
        values = cached.append(value)
        keys = state["prev_key"].append(asked[1]) if asked else None
        if self.rows is None:
            q = (asked[0] * self.scaling).view(x.size(0), self.heads, 1, -1) if asked else None
            k = None if keys is None else keys.heads(self.heads)
            weights = self._weights(x, q, k, Positions(position, 1, len(values), first=values.dropped))
        else:
            weights = self.rows.at(position, values.dropped, x)
        self._store(incremental_state, state, keys, values)
        vectors = values.vectors
        vectors = vectors.view(len(values), -1, vectors.size(2) // self.heads).transpose(0, 1)  # B H x t x D
        weights = weights.expand(x.size(0), self.heads, -1).reshape(-1, 1, len(values))
        return self.project_out(torch.bmm(weights, vectors).view(x.size(0), -1))

    def _ask(self, x: Tensor, incremental_state: Dict[str, Any]) -> Tensor:
        query = x.unsqueeze(0)
        return self.attention(query, query, query, None, incremental_state, need_weights=False)[0][0]

    def _weights(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        """(B x) H x t."""
        logits = self.attention.scorer(x.unsqueeze(0), q, k, positions)
        return _softmax(self.attention.within_span(logits, positions), x.dtype).squeeze(-2)

    def _store(self, incremental_state: Dict[str, Any], state: Any, keys: Optional[Slots], values: Slots) -> None:
        excess = 0 if self.window is None else max(0, len(values) - self.window + 1)
        state = {**state, "prev_value": values.drop(excess) if excess else values}
        if keys is not None:
            state["prev_key"] = keys.drop(excess) if excess else keys
        incremental_state[self.key] = state


def _softmax(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """In float32 at least, as everywhere."""
    half = dtype in (torch.float16, torch.bfloat16)
    return torch.softmax(logits, dim=-1, dtype=torch.float32 if half else None).to(dtype)
