"""One decoding step of a SynthAttention: its ``forward`` for a single new token per row, by fewer operations.

Legend: B rows (hypotheses), t slots up to this token, H heads, D head dim, C model dim.
"""

import math
from typing import Any, Dict, Optional, Sequence

import torch
from torch import Tensor

from fairseq_synth.decoding import plain_modules
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.cache import Slots, forget
from fairseq_synth.modules.incremental_state import KEYS, PADS, VALUES
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.products import full_precision

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
        logits = _logits(self.attention, x.expand(count, *x.shape), None, None, positions)
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(self.start + 1)
        return _softmax(logits.masked_fill(future, -math.inf), x.dtype)


class SelfAttentionStep:
    """Where the module is more than plain, has no cache yet or one with pads, the module itself is asked."""

    def __init__(self, attention: SynthAttention, rows: int):
        self.attention = attention
        self.key = attention._get_full_incremental_state_key("attn_state")
        self.plain = (
            type(attention) is SynthAttention
            and attention.memory is None
            and plain_modules.all_plain(m for m in attention.modules() if not isinstance(m, torch.nn.Linear))
        )
        if not self.plain:
            return
        self.heads, self.key_heads, scorer = attention.num_heads, len(attention.key_heads), attention.scorer
        self.rows = SharedRows(attention) if scorer.depends_on == "positions" and not scorer.needs_keys else None
        projections = [getattr(attention, name) for name in attention.projections()]
        self.project_in = plain_modules.linears(projections, rows)
        self.project_out = plain_modules.linear(attention.out_proj, rows)
        self.limit = float("inf") if attention.max_length is None else attention.max_length
        self.window = attention.window

    def __call__(self, x: Tensor, incremental_state: Dict[str, Any]) -> Tensor:
        """x: B x C. Returns B x C."""
        state = incremental_state.get(self.key)
        if not (self.plain and state and state[PADS] is None):
            return self._ask(x, incremental_state)
        cached: Slots = state[VALUES]
        position = cached.dropped + len(cached)
        if position >= self.limit:
            return self._ask(x, incremental_state)
        value, *asked = self.project_in(x)
        values = cached.append(value)
        state = {**state, VALUES: values}
        if asked:
            state[KEYS] = state[KEYS].append(asked[1])
        weights = self._weights(x, asked, state, position)
        incremental_state[self.key] = forget(state, self.window)
        vectors = values.vectors
        vectors = vectors.view(len(values), -1, vectors.size(2) // self.heads).transpose(0, 1)  # B H x t x D
        weights = weights.expand(x.size(0), self.heads, -1).reshape(-1, 1, len(values))
        return self.project_out(torch.bmm(weights, vectors).view(x.size(0), -1))

    def _weights(self, x: Tensor, asked: Sequence[Tensor], state: Dict[str, Any], position: int) -> Tensor:
        """(B x) H x t. asked: query and key of the heads that have keys."""
        values: Slots = state[VALUES]
        if self.rows is not None:
            return self.rows.at(position, values.dropped, x)
        q = k = None
        if asked:
            q = (asked[0] * self.attention.scaling).view(x.size(0), self.key_heads, 1, -1)
            k = state[KEYS].heads(self.key_heads)
        positions = Positions(position, 1, len(values), first=values.dropped, before=values.dropped)
        return _softmax(_logits(self.attention, x.unsqueeze(0), q, k, positions), x.dtype).squeeze(-2)

    def _ask(self, x: Tensor, incremental_state: Dict[str, Any]) -> Tensor:
        query = x.unsqueeze(0)
        return self.attention(query, query, query, None, incremental_state, need_weights=False)[0][0]


def _logits(attention: SynthAttention, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], at: Positions) -> Tensor:
    """(B x) H x T x S, spans included."""
    logits = attention.scorer.logits(x, q, k, at)
    return (logits if attention.span is None else logits.plus(attention.span_limit(at, x))).full()


def _softmax(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.softmax(full_precision(logits), dim=-1).to(dtype)
