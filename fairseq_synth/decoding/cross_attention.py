"""fairseq's attention to the encoder, with a short way for the steps of a beam search.

Legend: B sentences, X hypotheses of each, S source length, H heads, D head dim, C = H * D.
"""

import math
from typing import Any, Optional, Tuple

import torch
from fairseq import utils
from fairseq.modules import MultiheadAttention
from torch import Tensor

from fairseq_synth.decoding import plain_modules
from fairseq_synth.decoding.sentences import follow_order, rows_of
from fairseq_synth.modules.incremental_state import KEYS, OWNERS, PADS, VALUES


class CrossAttention(MultiheadAttention):
    """``MultiheadAttention``; where keys and values are cached and one query per hypothesis comes, the same by fewer
    operations: all hypotheses of a sentence in one product, and no checks. short_steps: whether that may be."""

    short_steps = True

    def forward(
        self,
        query: Tensor,
        key: Optional[Tensor],
        value: Optional[Tensor],
        key_padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[Any] = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Optional[Tensor] = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """As in fairseq."""
        step = query.size(0) == 1 and static_kv and attn_mask is None and not before_softmax
        if not (step and self.can_step(incremental_state)):
            out = super().forward(
                query, key, value, key_padding_mask, incremental_state, need_weights, static_kv, attn_mask,
                before_softmax, need_head_weights,
            )  # fmt: skip
            self._note_owners(query.size(1), incremental_state)
            return out
        x, weights = CrossAttentionStep(self)(query[0], incremental_state)
        if not (need_weights or need_head_weights):
            return x.unsqueeze(0), None
        weights = weights.permute(1, 0, 2, 3).flatten(1, 2).unsqueeze(2)  # H x B X x 1 x S
        return x.unsqueeze(0), weights if need_head_weights else weights.mean(dim=0)

    def _note_owners(self, rows: int, incremental_state: Optional[Any]) -> None:
        state = self._get_input_buffer(incremental_state)
        if KEYS in state and rows != state[KEYS].size(0):
            sentences = state[KEYS].size(0)
            state[OWNERS] = rows_of(sentences, rows // sentences, state[KEYS].device)

    def rows_per_sentence(self, incremental_state: Any) -> Optional[int]:
        """X; None before there is a state."""
        state = self._get_input_buffer(incremental_state)
        return (state[OWNERS].size(1) if OWNERS in state else 1) if KEYS in state else None

    def reorder_incremental_state(self, incremental_state: Any, new_order: Tensor) -> Any:
        """As fairseq's; where rows share a sentence, only the sentences that are left are kept."""
        state = self._get_input_buffer(incremental_state)
        if OWNERS not in state:
            return super().reorder_incremental_state(incremental_state, new_order)
        sentences, owner = follow_order(new_order, state[OWNERS])
        if sentences is not None:
            entries = {name: entry for name, entry in state.items() if name != OWNERS}
            state = {k: None if v is None else v.index_select(0, sentences) for k, v in entries.items()}
            self._set_input_buffer(incremental_state, {**state, OWNERS: owner})
        return incremental_state

    def can_step(self, incremental_state: Optional[Any]) -> bool:
        """Whether :class:`CrossAttentionStep` may go on from here."""
        plain = self.bias_k is None and not self.add_zero_attn and not self.dropout_module.apply_during_inference
        if not (plain and self.short_steps) or self.training or incremental_state is None or torch.is_grad_enabled():
            return False
        return KEYS in self._get_input_buffer(incremental_state)


class CrossAttentionStep:
    """One decoding step, once keys and values are cached. rows: of the search that it serves; None: of no search."""

    def __init__(self, attention: CrossAttention, rows: Optional[int] = None):
        self.key = attention._get_full_incremental_state_key("attn_state")
        self.scaling = attention.scaling
        self.cached: Any = None  # the keys that the rest was made from
        self.project_query = plain_modules.linear(attention.q_proj, rows)
        self.project_out = plain_modules.linear(attention.out_proj, rows)

    def has_keys(self, incremental_state: Any) -> bool:
        """Whether keys and values are there."""
        return KEYS in incremental_state.get(self.key, ())

    def __call__(self, x: Tensor, incremental_state: Any) -> Tuple[Tensor, Tensor]:
        """x: B X x C, one query per hypothesis. Returns B X x C, and the weights B x H x X x S."""
        state = incremental_state[self.key]
        if self.cached is not state[KEYS]:  # a new search, or sentences have left
            self.cached = state[KEYS]
            self._prepare(state[VALUES], state.get(PADS))
        sentences, heads, slots, size = self.cached.shape
        queries = self.project_query(x).view(sentences, -1, heads, size).transpose(1, 2)
        queries = queries.reshape(sentences * heads, -1, size)
        if self.mask is None:
            logits = torch.bmm(queries, self.keys)
        else:
            logits = torch.baddbmm(self.mask, queries, self.keys)
        weights = utils.softmax(logits, dim=-1).to(logits.dtype)  # fairseq's, as in the general way
        attended = torch.bmm(weights, self.values).view(sentences, heads, -1, size)
        attended = attended.transpose(1, 2).reshape(x.size(0), -1)
        return self.project_out(attended), weights.view(sentences, heads, -1, slots)

    def _prepare(self, values: Tensor, pads: Optional[Tensor]) -> None:
        """What all steps share: scaled keys (B H x D x S), values (B H x S x D), and -inf at pads (B H x 1 x S)."""
        self.keys = (self.cached * self.scaling).flatten(0, 1).transpose(1, 2)
        self.values, self.mask = values.flatten(0, 1), None
        if pads is not None and bool(pads.any()):
            at_pads = values.new_zeros(pads.shape).masked_fill(pads.bool(), -math.inf)
            self.mask = at_pads.repeat_interleave(values.size(1), dim=0).unsqueeze(1)
