"""SynthAttention: multi-head attention whose logits come from a scorer.

Legend: B batch, T target/query length, S source/key length, t cached length, H heads, D head dim, C model dim.

What is cached between decoding steps: cache.py. How the values are summed: weighted_sum/.
"""

import math
from typing import Any, Dict, List, Optional, Tuple

from fairseq.modules.fairseq_dropout import FairseqDropout
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.adaptive_span import AdaptiveSpan
from fairseq_synth.modules.cache import Cached, CachingAttention, State, as_cached, extend, forget
from fairseq_synth.modules.incremental_state import ANSWERED, KEYS, PADS, VALUES
from fairseq_synth.modules.persistent_memory import PersistentMemory
from fairseq_synth.modules.positions import Positions, token_positions
from fairseq_synth.modules.scorers.base import Scorer
from fairseq_synth.modules.weighted_sum.case import Case, Persistent
from fairseq_synth.modules.weighted_sum.choose import weighted_sum


class SynthAttention(CachingAttention):
    """fairseq's ``MultiheadAttention`` with a :class:`Scorer` in place of the query-key product.

    With the ``dot_product`` scorer it has the parameters, names, initialisation and outputs of fairseq's own.

    Args:
        embed_dim, num_heads: C and H.
        scorer: makes the logits; queries and keys are projected only for the heads that need them.
        dropout: on the attention weights. Where the logits are shared by the batch (random maps), so is the
            dropout mask, as in the authors' code.
        causal: position t sees positions <= t, always: a causal module applies its own mask. ``attn_mask`` (fairseq's
            future mask, which says the same) is not read, but that it is given says that pads may stand anywhere.
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
        # the heads that have keys, and those that have queries
        self.key_heads = scorer.key_heads()
        self.query_heads = list(range(num_heads)) if memory is not None else self.key_heads
        kdim = embed_dim if kdim is None else kdim

        def projection(input_dim: int, output_dim: int = inner) -> nn.Module:
            return quant_noise(nn.Linear(input_dim, output_dim), q_noise, qn_block_size)

        # created and drawn in fairseq's order: with dot_product, one seed gives both the same weights
        self.k_proj = projection(kdim, len(self.key_heads) * self.head_dim) if self.key_heads else None
        self.v_proj = projection(kdim)
        self.q_proj = projection(embed_dim, len(self.query_heads) * self.head_dim) if self.query_heads else None
        self.out_proj = projection(inner, embed_dim)
        self._reset_parameters(gain=1 / math.sqrt(2) if kdim == embed_dim else 1.0)
        self.scorer, self.span, self.memory = scorer, span, memory

    def _reset_parameters(self, gain: float) -> None:
        for module in (self.k_proj, self.v_proj, self.q_proj):
            if module is not None:
                nn.init.xavier_uniform_(module.weight, gain=gain)  # type: ignore[arg-type]
        out_proj: Any = self.out_proj  # a Linear, which quant_noise may have wrapped
        nn.init.xavier_uniform_(out_proj.weight)
        nn.init.zeros_(out_proj.bias)

    @property
    def max_length(self) -> Optional[int]:
        """N, or None where any length will do."""
        return self.scorer.max_length

    @property
    def window(self) -> Optional[int]:
        """How many tokens a query can reach, itself included; None: any number."""
        return None if self.span is None else max(self.span.windows())

    def projections(self) -> List[str]:
        """The names of those that a query's own input goes through, values first."""
        return ["v_proj", *(name for name in ("q_proj", "k_proj") if getattr(self, name) is not None)]

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
        case = self.case(query, key, key_padding_mask, incremental_state, static_kv, attn_mask)
        case = case._replace(need_weights=need_weights or need_head_weights)
        x, weights = weighted_sum(case)
        if weights is None or not case.need_weights:
            return self.out_proj(x), None
        weights = weights.expand(query.size(1), -1, -1, -1).transpose(0, 1)
        return self.out_proj(x), weights if need_head_weights else weights.mean(dim=0)

    def case(
        self,
        query: Tensor,
        key: Optional[Tensor] = None,
        key_padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[Dict[str, State]] = None,
        static_kv: bool = False,
        attn_mask: Optional[Tensor] = None,
    ) -> Case:
        """The weighted sum that :meth:`forward` has to compute, with its arguments: logits, spans included, values, and
        what is visible."""
        cached = self._remember(query, key, key_padding_mask, incremental_state, static_kv)
        trusted = self.right_padded and incremental_state is None and attn_mask is None
        positions = self._positions(query.size(0), cached, trusted)
        q = None if self.q_proj is None else self.split_heads(self.q_proj(query) * self.scaling)
        logits = self.scorer.logits(query, self.of_key_heads(q), cached.key, positions)
        if self.span is not None:
            logits = logits.plus(self.span_limit(positions, query))
        dropout = self.dropout_module
        return Case(
            logits,
            cached.value,
            cached.start,
            self.causal and not self.cross_attention,
            cached.pads,
            cached.pads is None or positions.shared,
            mask=None if self.causal else attn_mask,
            memory=self._persistent(q),
            dropout=dropout.p if dropout.training or dropout.apply_during_inference else 0.0,
        )

    def span_limit(self, positions: Positions, like: Tensor) -> Tensor:
        """softmax(s) * m, renormalised, is softmax(s + log m). Returns log m: (B x) H x T x S, on like's device."""
        if self.span is None:
            raise ValueError("this attention has no span")
        limit = self.span.log_mask(positions.distances(like.device))  # H x (B) x T x S
        return limit if positions.shared else limit.transpose(0, 1)

    def of_key_heads(self, q: Optional[Tensor]) -> Optional[Tensor]:
        """Queries of all heads that have some -> of those that have keys, too. B x h x T x D."""
        if q is None or len(self.key_heads) == len(self.query_heads):
            return q
        return q[:, self.key_heads] if self.key_heads else None

    def _persistent(self, q: Optional[Tensor]) -> Optional[Persistent]:
        if self.memory is None:
            return None
        if q is None:
            raise ValueError("persistent memory needs queries, and the attention lost its query projection")
        keys, values = self.memory()
        return Persistent(q @ keys.to(q.dtype).transpose(-2, -1), values)

    # ------------------------------------------------------------------ shapes and positions
    def split_heads(self, x: Tensor) -> Tensor:
        """S x B x h*D -> B x h x S x D (a view)."""
        return x.view(x.size(0), x.size(1), -1, self.head_dim).permute(1, 2, 0, 3)

    def _positions(self, steps: int, cached: Cached, trusted: bool) -> Positions:
        """Rows and columns of the logits; refuses what lies beyond the scorer's maximum length."""
        limit, slots, pads = self.max_length, cached.value.size(2), cached.pads
        start, end = cached.dropped + cached.start, cached.dropped + slots
        known = {"pads": pads, "before": cached.tokens_before}
        positions = Positions(start, steps, slots, first=cached.dropped, **known)  # type: ignore[arg-type]
        longest = max(end, start + steps)
        too_long = limit is not None and longest > limit
        if pads is not None and (too_long or not trusted or self.cross_attention):
            index = token_positions(pads, cached.tokens_before)
            rows = None if self.cross_attention else index[:, cached.start :]
            positions = Positions(start, steps, slots, rows, index, **known)  # type: ignore[arg-type]
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
    ) -> Cached:
        """Project what is new, join it to what is cached, and store what later calls can reach."""
        pads = None if padding_mask is None else padding_mask.bool()
        if self.cross_attention:
            return self._remember_source(query, key, pads, incremental_state, static_kv)
        keys, values = self._project(query)
        if incremental_state is None:
            return Cached(None if keys is None else self.split_heads(keys), self.split_heads(values), pads, 0)
        state = extend(self._get_input_buffer(incremental_state), keys, values, pads)
        self._set_input_buffer(incremental_state, forget(state, self.window))
        return as_cached(state, self.num_heads, len(self.key_heads), query.size(0))

    def _remember_source(
        self,
        query: Tensor,
        source: Optional[Tensor],
        pads: Optional[Tensor],
        incremental_state: Optional[Dict[str, State]],
        static_kv: bool,
    ) -> Cached:
        """The encoder's output does not change (static_kv): it is projected once, and the queries are counted."""
        state = self._get_input_buffer(incremental_state)
        start = state[ANSWERED].size(1) if state else 0
        if not (state and static_kv):
            if source is None:
                raise ValueError("cross-attention needs `key`, the encoder's output")
            keys, values = (None if x is None else self.split_heads(x) for x in self._project(source))
            state = {KEYS: keys, VALUES: values, PADS: pads}
        if incremental_state is not None:
            answered = query.new_empty(query.size(1), start + query.size(0), 0)
            self._set_input_buffer(incremental_state, {**state, ANSWERED: answered})
        return Cached(state[KEYS], state[VALUES], state[PADS], start)

    def _project(self, source: Tensor) -> Tuple[Optional[Tensor], Tensor]:
        """Keys, if the scorer needs them, and values: S x B x C."""
        return None if self.k_proj is None else self.k_proj(source), self.v_proj(source)
