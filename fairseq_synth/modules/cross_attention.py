"""fairseq's attention to the encoder, with a short way for the steps of a beam search.

Legend: B sentences, X hypotheses of each, S source length, H heads, D head dim, C = H * D.
"""

from typing import Any, Optional, Tuple

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor


class CrossAttention(MultiheadAttention):
    """``MultiheadAttention``; where keys and values are cached and one query per hypothesis comes, the same by fewer
    operations: all hypotheses of a sentence in one product, and no checks."""

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
        state = self._get_input_buffer(incremental_state) if self._is_step(incremental_state, static_kv, query) else {}
        if "prev_key" not in state or attn_mask is not None or before_softmax:
            return super().forward(
                query, key, value, key_padding_mask, incremental_state, need_weights, static_kv, attn_mask,
                before_softmax, need_head_weights,
            )  # fmt: skip
        x, weights = self._step(query, state)
        if not (need_weights or need_head_weights):
            return x, None
        weights = weights.permute(1, 0, 2, 3).flatten(1, 2).unsqueeze(2)  # H x B X x 1 x S
        return x, weights if need_head_weights else weights.mean(dim=0)

    def _is_step(self, incremental_state: Optional[Any], static_kv: bool, query: Tensor) -> bool:
        plain = self.bias_k is None and not self.add_zero_attn and not self.training
        return incremental_state is not None and static_kv and plain and query.size(0) == 1

    def _step(self, query: Tensor, state: Any) -> Tuple[Tensor, Tensor]:
        """query: 1 x B X x C. Returns the output, and the weights B x H x X x S."""
        keys, values, mask = state["prev_key"], state["prev_value"], state.get("prev_key_padding_mask")
        queries = self.q_proj(query).view(keys.size(0), -1, self.num_heads, self.head_dim).transpose(1, 2)
        logits = torch.matmul(queries * self.scaling, keys.transpose(2, 3))
        if mask is not None:
            logits = logits.masked_fill(mask[:, None, None, :].to(torch.bool), float("-inf"))
        weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(logits.dtype)  # as in fairseq
        x = torch.matmul(self.dropout_module(weights), values)  # B x H x X x D
        return self.out_proj(x.transpose(1, 2).reshape(query.shape)), weights
