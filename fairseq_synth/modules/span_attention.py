"""SpanAttention: every head looks back as far as its own learned span, over blocks of one stream.

Legend: B batch, T queries (the block), t remembered positions, H heads, D head dim, C model dim, S maximum span,
W window of a group of heads, N persistent vectors.

Sukhbaatar et al. 2019 (arXiv 1905.07799, eq. 1-5; arXiv 1907.01470, eq. 6-9). A query sees positions strictly before
its own. What lies before the start of the stream is masked (the paper attends to zero vectors there), so that a
sentence means the same alone, left-padded or after a longer padding; the very first query sees no context and gets
zeros from it.

One or many new tokens may arrive per call of incremental decoding; what no head can reach any more is dropped.
"""

from typing import Any, Dict, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.adaptive_span import AdaptiveSpan, HeadGroup
from fairseq_synth.modules.cache import CachingAttention, State
from fairseq_synth.modules.incremental_state import KEYS, PADS, VALUES
from fairseq_synth.modules.persistent_memory import PersistentMemory
from fairseq_synth.modules.weighted_sum.banded import banded_attention


class _Context(NamedTuple):
    """Keys and values of some heads. key, value: rows x B*h x D, the last row just before the last query."""

    key: Tensor
    value: Tensor
    pads: Optional[Tensor]  # B x rows


class SpanAttention(CachingAttention):
    """Multi-head attention to the past with relative position vectors, adaptive spans and persistent memory.

    Time and memory follow the sum of the heads' spans: heads of similar span form a group, and each group projects
    and attends to no more positions than it can reach. Projections have no biases.

    Args:
        embed_dim, num_heads: C and H.
        span: the learned spans.
        dropout: on the attention weights, of context and persistent memory alike.
        memory: persistent vectors in the same softmax (default: none).
        attention_dim: H * D, the width of queries, keys and values (default: embed_dim).

    Raises:
        UsageError: attention_dim is not a multiple of num_heads.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        span: AdaptiveSpan,
        dropout: float = 0.0,
        memory: Optional[PersistentMemory] = None,
        attention_dim: Optional[int] = None,
    ) -> None:
        super().__init__()
        inner = attention_dim or embed_dim
        if inner % num_heads:
            raise UsageError(f"--attention-heads {num_heads}: must divide the attention dimension {inner}")
        self.num_heads, self.head_dim = num_heads, inner // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.q_proj = nn.Linear(embed_dim, inner, bias=False)
        self.k_proj = nn.Linear(embed_dim, inner, bias=False)
        self.v_proj = nn.Linear(embed_dim, inner, bias=False)
        self.out_proj = nn.Linear(inner, embed_dim, bias=False)
        self.span = span
        self.memory = memory

    @property
    def reach(self) -> int:
        """How many past positions the farthest-looking head can use."""
        return self.span.groups()[0].window

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        past: Optional[Tensor] = None,
        pads: Optional[Tensor] = None,
        incremental_state: Optional[Dict[str, State]] = None,
    ) -> Tensor:
        """
        Args:
            x: T x B x C, the block.
            positions: at least W x D; row i is the vector of distance i + 1.
            past: t x B x C, the states just before the block (not together with incremental_state).
            pads: B x (t + T), or B x T in incremental decoding; True at pads. None: no pads.
            incremental_state: decode from cached keys and values.

        Returns:
            T x B x C
        """
        memory = None if self.memory is None else self.memory()
        cached = None if incremental_state is None else self._append(x, pads, incremental_state)
        past = x[:0] if past is None else past.to(x.dtype)
        known = past.size(0) + x.size(0) if cached is None else cached.key.size(2)
        weights = self._weights_by_head()
        total: Any = 0
        for group in self.span.groups():
            heads = _Heads(group, weights)
            rows = min(group.window, max(1, known - 1)) + x.size(0) - 1  # as far as there is anything to see
            context = self._project(past, x, pads, heads, rows) if cached is None else cached.of(heads, rows)
            total = total + self._attend(x, context, positions, heads, memory)
        return total

    def _attend(self, x: Tensor, context: _Context, positions: Tensor, heads: "_Heads", memory) -> Tensor:
        """One group of heads. Returns T x B x C, its share of the output."""
        steps, batch = x.shape[:2]
        window = context.key.size(0) - steps + 1
        query = F.linear(x, heads.weight("q") * self.scaling)
        y = banded_attention(
            query.view(steps, -1, self.head_dim).transpose(0, 1),
            context.key.transpose(0, 1),
            context.value.transpose(0, 1),
            positions[:window].flip(0).to(query.dtype),
            self._log_mask(heads, window),
            None if memory is None else tuple(t[heads.select].to(query.dtype) for t in memory),
            context.pads,
            self.dropout if self.training else 0.0,
        )
        return F.linear(y.transpose(0, 1).reshape(steps, batch, -1), heads.weight("out"))

    def _weights_by_head(self) -> Dict[str, Any]:
        """The projections and their slices per head: D x C each, of the output projection C x D. Taken apart once,
        so that their gradients are put together once."""
        weights: Dict[str, Any] = {}
        for name, dim in (("q", 0), ("k", 0), ("v", 0), ("out", 1)):
            weight = getattr(self, f"{name}_proj").weight
            weights[name] = weight, weight.unflatten(dim, (self.num_heads, -1)).unbind(dim), dim
        return weights

    def _log_mask(self, heads: "_Heads", window: int) -> Tensor:
        """h x r: the distances from the window's far end to where every head of the group has mask 1."""
        nearest = int(self.span.spans()[heads.select].min())
        far = torch.arange(window - 1, min(nearest, window) - 1, -1, device=self.span.span_ratio.device)
        return self.span.log_mask(far)[heads.select]

    def _project(self, past: Tensor, x: Tensor, pads: Optional[Tensor], heads: "_Heads", rows: int) -> _Context:
        """Keys and values of the last ``rows`` positions before the last query, zeros where the stream begins."""
        inside = x[-1 - rows : -1]
        before = past[max(0, past.size(0) - rows + inside.size(0)) :]
        missing = rows - inside.size(0) - before.size(0)
        key, value = (self._join(before, inside, missing, heads.weight(name)) for name in "kv")
        if pads is not None:
            pads = pads[:, pads.size(1) - 1 - rows + missing : -1]
        return _Context(key, value, _join_missing(pads, missing, x.size(1), rows, key))

    def _join(self, before: Tensor, inside: Tensor, missing: int, weight: Tensor) -> Tensor:
        """rows x B*h x D. Apart, because the past needs no gradient: nothing is computed for it."""
        parts = [F.linear(part, weight) for part in (before, inside) if part.size(0)]
        if missing:
            # in the type of the others: under autocast the input's is another
            parts.insert(0, (parts or [inside])[0].new_zeros(missing, inside.size(1), weight.size(0)))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1).unflatten(1, (-1, self.head_dim))

    # ------------------------------------------------------------------ decoding state
    def _append(self, x: Tensor, pads: Optional[Tensor], incremental_state: Dict[str, State]) -> "_Cache":
        """Project the new tokens, join them to what is cached, and store what the next token can still reach."""
        state = self._get_input_buffer(incremental_state)
        key, value = (self._heads(projection(x)) for projection in (self.k_proj, self.v_proj))
        if state:
            old = state[PADS]
            if pads is not None or old is not None:
                pads = _visible(x.size(1), x.size(0), x) if pads is None else pads
                old = _visible(x.size(1), state[KEYS].size(2), x) if old is None else old
                pads = torch.cat([old, pads], dim=1)
            key = torch.cat([state[KEYS], key], dim=2)
            value = torch.cat([state[VALUES], value], dim=2)
        reach = self.reach
        kept = {
            KEYS: key[:, :, -reach:],
            VALUES: value[:, :, -reach:],
            PADS: None if pads is None else pads[:, -reach:],
        }
        self._set_input_buffer(incremental_state, kept)
        return _Cache(key, value, pads)

    def _heads(self, x: Tensor) -> Tensor:
        """T x B x C -> B x H x T x D."""
        return x.view(x.size(0), x.size(1), self.num_heads, self.head_dim).permute(1, 2, 0, 3)


class _Cache(NamedTuple):
    """Keys and values of all heads, up to the newest token: B x H x t x D; pads: B x t or None."""

    key: Tensor
    value: Tensor
    pads: Optional[Tensor]

    def of(self, heads: "_Heads", rows: int) -> _Context:
        batch, _, slots, size = self.key.shape
        known = min(rows, slots - 1)
        key, value = (
            _pad_rows(x[:, heads.select, slots - 1 - known : -1].permute(2, 0, 1, 3).flatten(1), rows - known)
            for x in (self.key, self.value)
        )
        pads = None if self.pads is None else self.pads[:, slots - 1 - known : -1]
        pads = _join_missing(pads, rows - known, batch, rows, key)
        return _Context(key.view(rows, -1, size), value.view(rows, -1, size), pads)


class _Heads:
    """A group of heads and its part of the projections; all heads without a copy."""

    def __init__(self, group: HeadGroup, weights: Dict[str, Any]) -> None:
        self.index, self.weights = list(group.heads), weights
        self.all = len(self.index) == len(weights["q"][1])
        self.select: Any = slice(None) if self.all else self.index

    def weight(self, name: str) -> Tensor:
        """h*D x C; of the output projection C x h*D."""
        whole, by_head, dim = self.weights[name]
        return whole if self.all else torch.cat([by_head[h] for h in self.index], dim=dim)


def _pad_rows(x: Tensor, missing: int) -> Tensor:
    """Zeros before the first row."""
    return F.pad(x, (0, 0) * (x.dim() - 1) + (missing, 0)) if missing else x


def _join_missing(pads: Optional[Tensor], missing: int, batch: int, rows: int, like: Tensor) -> Optional[Tensor]:
    """B x known rows (or None) -> B x all rows, the missing ones True; None where all is visible."""
    if not missing:
        return pads
    known = _visible(batch, rows - missing, like) if pads is None else pads
    return F.pad(known, (missing, 0), value=True)


def _visible(batch: int, rows: int, like: Tensor) -> Tensor:
    return torch.zeros(batch, rows, dtype=torch.bool, device=like.device)
