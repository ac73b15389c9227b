"""SynthAttention: multi-head attention whose logits come from a scorer.

Legend: B batch, T target/query length, S source/key length, t cached length, H heads, D head dim, C model dim.

What is cached between decoding steps: decoding_state.py.
"""

import math
from typing import Any, Dict, Optional, Tuple

import torch
from fairseq.modules.fairseq_dropout import FairseqDropout
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.adaptive_span import AdaptiveSpan
from fairseq_synth.modules.apply import Extra, attend, attend_shared
from fairseq_synth.modules.block_attention import Rules, block_attention
from fairseq_synth.modules.decoding_state import CachingAttention, Memory, State, as_memory, extend, forget
from fairseq_synth.modules.linear import autocast
from fairseq_synth.modules.persistent_memory import PersistentMemory
from fairseq_synth.modules.positions import Positions, token_positions
from fairseq_synth.modules.scorers.base import Scorer


class SynthAttention(CachingAttention):
    """fairseq's ``MultiheadAttention`` with a :class:`Scorer` in place of the query-key product.

    With the ``dot_product`` scorer it has the parameters, names, initialisation and outputs of fairseq's own.

    Args:
        embed_dim, num_heads: C and H.
        scorer: makes the logits; queries and keys are projected only if it needs them.
        dropout: on the attention weights. Where the logits are shared by the batch (random maps), so is the
            dropout mask, as in the authors' code.
        causal: position t sees positions <= t, always: a causal module applies its own mask, and ``attn_mask``
            (fairseq's future mask, which says the same) is not read.
        cross_attention: keys and values come from ``key`` (the encoder's output), not from ``query``.
        kdim: size of ``key`` in cross-attention (default: embed_dim).
        right_padded: the caller promises that no pad precedes a real token (this package's encoder and decoder
            see to it). Without the promise, padded batches take a path that works for pads anywhere.
        span: learned soft limit of how far each head looks, before and after; it multiplies any scorer. While
            decoding, what is beyond the largest of the layer is not kept.
        memory: persistent vectors in the same softmax as the context; every query sees them.
        attention_dim: H * D, the width of queries, keys and values (default: embed_dim).
        q_noise, qn_block_size: quantization noise on the projections, as in fairseq.

    Raises:
        UsageError: attention_dim is not a multiple of num_heads.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        scorer: Scorer,
        dropout: float = 0.0,
        causal: bool = False,
        cross_attention: bool = False,
        kdim: Optional[int] = None,
        right_padded: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        span: Optional[AdaptiveSpan] = None,
        memory: Optional[PersistentMemory] = None,
        attention_dim: Optional[int] = None,
    ):
        super().__init__()
        inner = attention_dim or embed_dim
        if inner % num_heads:
            raise UsageError(f"attention heads {num_heads}: must divide the attention dimension {inner}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, inner // num_heads
        self.scaling = self.head_dim**-0.5
        self.causal, self.cross_attention, self.right_padded = causal, cross_attention, right_padded
        self.dropout_module = FairseqDropout(dropout, module_name=self.__class__.__name__)
        kdim = embed_dim if kdim is None else kdim

        def projection(input_dim: int, output_dim: int = inner) -> nn.Module:
            return quant_noise(nn.Linear(input_dim, output_dim), q_noise, qn_block_size)

        # created and drawn in fairseq's order: with dot_product, one seed gives both the same weights
        if scorer.needs_keys:
            self.k_proj = projection(kdim)
        self.v_proj = projection(kdim)
        if scorer.needs_keys or memory is not None:
            self.q_proj = projection(embed_dim)
        self.out_proj = projection(inner, embed_dim)
        self._reset_parameters(gain=1 / math.sqrt(2) if kdim == embed_dim else 1.0)
        self.scorer, self.span, self.memory = scorer, span, memory

    def _reset_parameters(self, gain: float) -> None:
        for name in ("k_proj", "v_proj", "q_proj"):
            if hasattr(self, name):
                nn.init.xavier_uniform_(getattr(self, name).weight, gain=gain)
        out_proj: Any = self.out_proj  # a Linear, which quant_noise may have wrapped
        nn.init.xavier_uniform_(out_proj.weight)
        nn.init.zeros_(out_proj.bias)

    @property
    def max_length(self) -> Optional[int]:
        """N, or None where any length will do."""
        return self.scorer.max_length

    def forward(
        self,
        query: Tensor,
        key: Optional[Tensor] = None,
        value: Optional[Tensor] = None,
        key_padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[Dict[str, State]] = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Optional[Tensor] = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Args as fairseq's ``MultiheadAttention``; with an incremental state, ``query`` holds the new tokens only.

        query: T x B x C. key: S x B x kdim, for cross-attention (``value`` is taken to be the same, as in every
        fairseq layer). key_padding_mask: B x S (or B x T, of the new tokens), True at pads. attn_mask: T x S,
        added to the logits of a module that is not causal.

        Returns T x B x C, and the weights: H x B x T x S if ``need_head_weights``, their mean over heads
        B x T x S if ``need_weights``, else None. With an incremental state, S are the slots that are still cached.

        Raises UsageError for more tokens than the scorer's maximum length.
        """
        if before_softmax:
            raise ValueError("before_softmax=True is not supported: the logits are not returned")
        memory = self._remember(query, key, key_padding_mask, incremental_state, static_kv)
        positions = self._positions(query.size(0), memory, incremental_state is not None)
        q = self._heads(self.q_proj(query) * self.scaling) if hasattr(self, "q_proj") else None
        causal = self.causal and not self.cross_attention
        attn_mask = None if self.causal else attn_mask
        need_weights = need_weights or need_head_weights
        plain = attn_mask is None and not need_weights and self.memory is None
        if plain and positions.shared and query.size(0) > 1 and not autocast(query.device):
            return self.out_proj(self._attend_in_blocks(query, q, memory, positions, causal)), None
        logits = self.within_span(self.scorer(query, q, memory.key, positions), positions)
        extra = self._persistent(q)
        x, weights = attend(logits, memory, causal, self.dropout_module, attn_mask, extra)
        if not need_weights:
            return self.out_proj(x), None
        weights = weights.expand(query.size(1), -1, -1, -1).transpose(0, 1)
        return self.out_proj(x), weights if need_head_weights else weights.mean(dim=0)

    def _attend_in_blocks(
        self, query: Tensor, q: Optional[Tensor], memory: Memory, positions: Positions, causal: bool
    ) -> Tensor:
        """Many queries, no weights asked for, and every pad to the right of its sentence. Returns T x B x C."""
        logits = self.scorer.terms(query, q, memory.key, positions)
        if self.span is not None:
            bias = query.new_zeros(()) if logits.bias is None else logits.bias
            logits = logits._replace(bias=self.within_span(bias, positions))
        hidden = None if causal else memory.padding_mask  # a causal row never reaches a pad
        if hidden is not None and logits.rows is None and logits.bias is not None and logits.bias.dim() == 3:
            x = attend_shared(logits.bias, memory.value, hidden, self.dropout_module)
            if x is not None:
                return x
        module = self.dropout_module
        dropout = module.p if module.training or module.apply_during_inference else 0.0
        return block_attention(logits, memory.value, Rules(memory.start, causal, dropout), hidden)

    def within_span(self, logits: Tensor, positions: Positions) -> Tensor:
        """softmax(s) * m, renormalised, is softmax(s + log m)."""
        if self.span is None:
            return logits
        limit = self.span.log_mask(positions.distances(logits.device))  # H x (B) x T x S
        limit = limit if positions.shared else limit.transpose(0, 1)
        return (logits if positions.shared or logits.dim() == 4 else logits.unsqueeze(0)) + limit

    def _persistent(self, q: Optional[Tensor]) -> Optional[Extra]:
        if self.memory is None:
            return None
        if q is None:
            raise ValueError("persistent memory needs queries, and the attention lost its query projection")
        keys, values = self.memory()
        return Extra(torch.matmul(q, keys.to(q.dtype).transpose(-2, -1)), values)

    # ------------------------------------------------------------------ shapes and positions
    def _heads(self, x: Tensor) -> Tensor:
        """S x B x C -> B x H x S x D (a view)."""
        return x.view(x.size(0), x.size(1), self.num_heads, self.head_dim).permute(1, 2, 0, 3)

    def _positions(self, steps: int, memory: Memory, incremental: bool) -> Positions:
        """Rows and columns of the logits; refuses what lies beyond the scorer's maximum length."""
        limit, slots, mask = self.max_length, memory.value.size(2), memory.padding_mask
        start, end = memory.dropped + memory.start, memory.dropped + slots
        positions = Positions(start, steps, slots, first=memory.dropped)
        longest = max(end, start + steps)
        too_long = limit is not None and longest > limit
        trusted = self.right_padded and not incremental and not self.cross_attention
        if mask is not None and (too_long or not trusted):
            index = token_positions(mask, memory.tokens_before)
            rows = None if self.cross_attention else index[:, memory.start :]
            positions = Positions(start, steps, slots, rows, index)
            if too_long:  # pads may be what is too long
                longest = max(start + steps if self.cross_attention else 0, int(index.max()) + 1)
        if limit is not None and longest > limit:
            raise UsageError(
                f"--synthesizer-max-length {limit}: a sequence of {longest} tokens (end of sentence included) is "
                f"longer; train with a larger value, or shorten or skip the sequence"
            )
        return positions

    # ------------------------------------------------------------------ decoding state
    def _remember(
        self,
        query: Tensor,
        key: Optional[Tensor],
        padding_mask: Optional[Tensor],
        incremental_state: Optional[Dict[str, State]],
        static_kv: bool,
    ) -> Memory:
        """Project what is new, join it to what is cached, and store what later calls can reach."""
        mask = None if padding_mask is None else padding_mask.bool()
        if self.cross_attention:
            return self._remember_source(query, key, mask, incremental_state, static_kv)
        keys, values = self._project(query)
        if incremental_state is None:
            return Memory(None if keys is None else self._heads(keys), self._heads(values), mask, 0)
        state = extend(self._get_input_buffer(incremental_state), keys, values, mask)
        kept = state if self.span is None else forget(state, max(self.span.windows()))
        self._set_input_buffer(incremental_state, kept)
        return as_memory(state, self.num_heads, query.size(0))

    def _remember_source(
        self,
        query: Tensor,
        source: Optional[Tensor],
        mask: Optional[Tensor],
        incremental_state: Optional[Dict[str, State]],
        static_kv: bool,
    ) -> Memory:
        """The encoder's output does not change (static_kv): it is projected once, and the queries are counted."""
        state = self._get_input_buffer(incremental_state)
        start = state["prev_query"].size(1) if state else 0
        if not (state and static_kv):
            if source is None:
                raise ValueError("cross-attention needs `key`, the encoder's output")
            keys, values = (None if x is None else self._heads(x) for x in self._project(source))
            state = {"prev_key": keys, "prev_value": values, "prev_key_padding_mask": mask}
        if incremental_state is not None:
            answered = query.new_empty(query.size(1), start + query.size(0), 0)
            self._set_input_buffer(incremental_state, {**state, "prev_query": answered})
        return Memory(state["prev_key"], state["prev_value"], state["prev_key_padding_mask"], start)

    def _project(self, source: Tensor) -> Tuple[Optional[Tensor], Tensor]:
        """Keys, if the scorer needs them, and values: S x B x C."""
        return self.k_proj(source) if self.scorer.needs_keys else None, self.v_proj(source)
