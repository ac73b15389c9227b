"""Attention of every query to the W positions before it, at a cost of W per query, not of the whole memory.

Legend: B batch, H heads, G = B*H (batch first), T queries, W window, D head dim, N persistent vectors,
c queries of one chunk, L = W + c - 1 keys that a chunk can see.

A chunk's logits are a c x L matrix of which row i uses the columns i to i + W - 1: a band. Seen with a row stride of
L + 1 the band is a c x W matrix whose column u is the distance W - u. So position vectors are multiplied right into
the logits and out of them, and nothing is shifted or copied. What the backward pass keeps are the weights.
"""

import math
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_synth.modules.products import full_precision

# queries per chunk: a larger chunk has larger matrix products but computes more outside the band (measured)
CHUNK, LONG_CHUNK, LONG_WINDOW = 64, 128, 1024


class _Weights(NamedTuple):
    """Of one chunk. context: G x c x L; memory: G x c x N or None; both after the softmax, before dropout."""

    context: Tensor
    memory: Optional[Tensor]


def chunk_size(window: int) -> int:
    return CHUNK if window < LONG_WINDOW else LONG_CHUNK


def banded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    log_mask: Tensor,
    memory: Optional[Tuple[Tensor, Tensor]] = None,
    pads: Optional[Tensor] = None,
    dropout: float = 0.0,
    chunk: Optional[int] = None,
) -> Tensor:
    """softmax over the W distances (and the memory) of ``query . (key + position) + log_mask``, times ``value``.

    Args:
        query: G x T x D, scaled.
        key, value: G x (W + T - 1) x D. Query t sees the rows t to t + W - 1; row t + W - d is at distance d.
        position: W x D, from the farthest distance (row 0 is distance W) to the nearest, for all heads.
        log_mask: H x r, added to the r farthest distances; nearer ones have mask 1.
        memory: keys and values that all queries see, each H x N x D.
        pads: B x (W + T - 1), True at rows that nobody may see. A query that sees nothing gets zeros.
        dropout: on the weights.
        chunk: queries computed at once (default: by the window).

    Returns:
        G x T x D
    """
    memory_key, memory_value = (None, None) if memory is None else memory
    return _BandedAttention.apply(
        query,
        key,
        value,
        position,
        log_mask,
        memory_key,
        memory_value,
        pads,
        dropout,
        chunk or chunk_size(position.size(0)),
    )


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query, key, value, position, log_mask, memory_key, memory_value, pads, dropout: float, chunk: int
    ) -> Tensor:
        out = _empty_rows(query)
        keep_weights = any(ctx.needs_input_grad)
        weights: List[Tensor] = []
        for start in range(0, query.size(1), chunk):
            q, k = _chunk(query, key, start, chunk, position.size(0))
            p = _weights(q, k, position, log_mask, memory_key, _pads_chunk(pads, k, start))
            dropped, kept = _drop(p, dropout)
            y = torch.bmm(dropped.context, value[:, start : start + k.size(1)])
            if dropped.memory is not None:
                y += _per_head(dropped.memory, memory_value)
            out[:, start : start + chunk] = y
            if keep_weights:
                weights += [t for t in (*p, *kept) if t is not None]
        ctx.save_for_backward(query, key, value, position, log_mask, memory_key, memory_value, out, *weights)
        ctx.dropout, ctx.chunk = dropout, chunk
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor):
        query, key, value, position, log_mask, memory_key, memory_value, out, *weights = ctx.saved_tensors
        grads = _Gradients(query, key, value, position, log_mask, memory_key, memory_value)
        # sum over the keys of weight * d weight, which the softmax's derivative subtracts
        delta = (grad_out * out).sum(-1, keepdim=True)
        per_chunk = (1 if memory_key is None else 2) * (2 if ctx.dropout else 1)
        for index, start in enumerate(range(0, query.size(1), ctx.chunk)):
            saved = weights[index * per_chunk : (index + 1) * per_chunk]
            rows = slice(start, start + ctx.chunk)
            grads.add(start, grad_out[:, rows], delta[:, rows], saved, ctx.dropout)
        return (*grads.result(), None, None, None)


class _Gradients:
    """Gradients of everything, summed chunk by chunk."""

    def __init__(self, query, key, value, position, log_mask, memory_key, memory_value) -> None:
        self.query, self.key, self.value, self.position = query, key, value, position
        self.memory_key, self.memory_value = memory_key, memory_value
        self.d_query, self.d_key, self.d_value = _empty_rows(query), _zero_rows(key), _zero_rows(value)
        self.d_position = position.new_zeros(query.size(0), *position.shape)  # per head: the products are batched
        self.d_mask = torch.zeros_like(log_mask)
        self.d_memory: List[Tensor] = []  # of the keys, of the values
        if memory_key is not None:
            self.d_memory = [torch.zeros_like(memory_key), torch.zeros_like(memory_value)]

    def add(self, start: int, grad: Tensor, delta: Tensor, saved: List[Tensor], dropout: float) -> None:
        """grad: G x c x D, of the chunk's output; delta: G x c x 1; saved: what forward kept for the chunk."""
        q, k = _chunk(self.query, self.key, start, grad.size(1), self.position.size(0))
        columns = slice(start, start + k.size(1))
        count = 1 if self.memory_key is None else 2
        kept: List[Optional[Tensor]] = [*saved[count:]] or [None] * count
        p = saved[0]
        self.d_value[:, columns].baddbmm_(_dropped(p, kept[0], dropout).transpose(1, 2), grad)
        d_logits = torch.bmm(grad, self.value[:, columns].transpose(1, 2))
        d_logits = _softmax_backward(p, _dropped(d_logits, kept[0], dropout), delta)
        d_band = _band(d_logits, self.position.size(0))
        d_query = torch.bmm(d_logits, k)
        d_query.baddbmm_(d_band, self.position.expand(q.size(0), -1, -1))
        self.d_key[:, columns].baddbmm_(d_logits.transpose(1, 2), q)
        self.d_position.baddbmm_(d_band.transpose(1, 2), q)
        if self.d_mask.size(1):
            far = d_band[..., : self.d_mask.size(1)].sum(1, dtype=self.d_mask.dtype)
            self.d_mask += far.view(-1, *self.d_mask.shape).sum(0)
        if count == 2:
            d_query += self._add_memory(q, grad, delta, saved[1], kept[1], dropout)
        self.d_query[:, start : start + grad.size(1)] = d_query

    def _add_memory(self, q, grad, delta, p, kept, dropout: float) -> Tensor:
        heads = self.memory_key.size(0)
        self.d_memory[1] += _sum_batch(torch.bmm(_dropped(p, kept, dropout).transpose(1, 2), grad), heads)
        d_logits = _dropped(_per_head(grad, self.memory_value.transpose(1, 2)), kept, dropout)
        d_logits = _softmax_backward(p, d_logits, delta)
        self.d_memory[0] += _sum_batch(torch.bmm(d_logits.transpose(1, 2), q), heads)
        return _per_head(d_logits, self.memory_key)

    def result(self) -> Tuple[Optional[Tensor], ...]:
        d_position = self.d_position.sum(0)
        return (self.d_query, self.d_key, self.d_value, d_position, self.d_mask, *(self.d_memory or (None, None)))


# ---------------------------------------------------------------------------------------------- forward, one chunk
def _weights(q, k, position, log_mask, memory_key, pads: Optional[Tensor]) -> _Weights:
    logits = torch.bmm(q, k.transpose(1, 2))
    window, far = position.size(0), log_mask.size(1)
    band = _band(logits, window)
    band.baddbmm_(q, position.t().expand(q.size(0), -1, -1))
    if far:
        band[..., :far] += log_mask.to(logits.dtype).repeat(q.size(0) // log_mask.size(0), 1).unsqueeze(1)
    _hide_outside(logits, window)
    if pads is not None:
        # not -inf: a row without any visible key stays finite, and is set to zero below
        logits.masked_fill_(pads, torch.finfo(logits.dtype).min)
    if memory_key is None:
        p, p_memory = _softmax(logits), None
    else:
        both = _softmax(torch.cat([logits, _per_head(q, memory_key.transpose(1, 2))], dim=-1))
        p, p_memory = both.split([logits.size(-1), memory_key.size(1)], dim=-1)
    return _Weights(p if pads is None else p.masked_fill(pads, 0), p_memory)


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(full_precision(logits), dim=-1).to(logits.dtype)


def _softmax_backward(p: Tensor, d_p: Tensor, delta: Tensor) -> Tensor:
    return d_p.sub_(delta).mul_(p)


def _hide_outside(logits: Tensor, window: int) -> None:
    """-inf left and right of the band, in place."""
    steps = logits.size(1)
    if steps > 1:
        triangle = torch.ones(steps, steps - 1, dtype=torch.bool, device=logits.device)
        logits[..., : steps - 1].masked_fill_(triangle.tril(-1), -math.inf)
        logits[..., window:].masked_fill_(triangle.triu(), -math.inf)


def _drop(p: _Weights, dropout: float) -> Tuple[_Weights, List[Tensor]]:
    """Dropped weights and what was kept (bool), for context and memory on their own."""
    if not dropout:
        return p, []
    context = torch.empty_like(p.context, dtype=torch.bool).bernoulli_(1 - dropout)
    dropped = _dropped(p.context, context, dropout)
    if p.memory is None:
        return _Weights(dropped, None), [context]
    memory = torch.empty_like(p.memory, dtype=torch.bool).bernoulli_(1 - dropout)
    return _Weights(dropped, _dropped(p.memory, memory, dropout)), [context, memory]


def _dropped(p: Tensor, kept: Optional[Tensor], dropout: float) -> Tensor:
    return p if kept is None else p * kept * (1 / (1 - dropout))


# ---------------------------------------------------------------------------------------------- shapes
def _band(logits: Tensor, window: int) -> Tensor:
    """The band of G x c x L logits as G x c x W, sharing their storage: row i starts at column i."""
    groups, steps, keys = logits.shape
    return logits.as_strided((groups, steps, window), (steps * keys, keys + 1, 1))


def _chunk(query: Tensor, key: Tensor, start: int, chunk: int, window: int) -> Tuple[Tensor, Tensor]:
    q = query[:, start : start + chunk]
    return q, key[:, start : start + window + q.size(1) - 1]


def _pads_chunk(pads: Optional[Tensor], k: Tensor, start: int) -> Optional[Tensor]:
    """G x 1 x L, or None where everything is visible."""
    if pads is None:
        return None
    part = pads[:, start : start + k.size(1)]
    return part.repeat_interleave(k.size(0) // part.size(0), dim=0).unsqueeze(1)


def _per_head(x: Tensor, y: Tensor) -> Tensor:
    """x: G x c x n, y: H x n x m, the same for every sentence. Returns G x c x m."""
    return torch.bmm(x, y.repeat(x.size(0) // y.size(0), 1, 1))


def _sum_batch(x: Tensor, heads: int) -> Tensor:
    return x.view(-1, heads, *x.shape[1:]).sum(0)


def _empty_rows(like: Tensor) -> Tensor:
    """G x T x D, laid out T x G x D as the projections want it."""
    groups, rows, size = like.shape
    return like.new_empty(rows, groups, size).transpose(0, 1)


def _zero_rows(like: Tensor) -> Tensor:
    return _empty_rows(like).zero_()
