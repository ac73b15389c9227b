"""``blocks``: softmax attention, forward and backward, in blocks of rows: what a causal row cannot see costs nothing.

The maths is that of ``whole``. Written out because autograd would multiply, mask and store both halves of every matrix,
and pass over them once more for each operation.

Legend: B batch, T queries, S keys, H heads, D head dim, E inner size of the logits, C = H * D; G groups: the matrices
of a batched product, one per sentence and head (B * H), or one per head (H) where logits are shared by the batch.
"""

from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fairseq_synth.modules.products import ENABLED, batch_product, full_precision
from fairseq_synth.modules.scorers.logits import Logits
from fairseq_synth.modules.weighted_sum.case import Answer, Case, Way

ROWS = 128 if ENABLED else 64  # of a block, about: smaller products would be slower than what they save
MOST_BLOCKS = 8


class Rules(NamedTuple):
    """start: slot of the first query; causal: row t sees the columns up to start + t; dropout: of the weights."""

    start: int = 0
    causal: bool = False
    dropout: float = 0.0


def takes(case: Case) -> bool:
    """The gradient cannot be differentiated again."""
    return case.plain and isinstance(case.logits, Logits)


def attend(case: Case) -> Answer:
    pads = None if case.causal else case.pads  # a causal row never reaches a pad at the right
    rules = Rules(case.start, case.causal, case.dropout)
    return block_attention(case.logits, case.value, rules, pads), None  # type: ignore[arg-type]


def block_attention(logits: Logits, value: Tensor, rules: Rules, pads: Optional[Tensor] = None) -> Tensor:
    """Values B x H x S x D -> T x B x C. pads: B x S, True at what no row may see.

    Logits that are nothing but an H x T x S bias make one product for the whole batch.
    """
    return _BlockAttention.apply(*logits, value, pads, rules)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Any, columns: Any, bias: Any, value: Tensor, pads: Any, rules: Rules) -> Tensor:
        logits, (batch, heads, keys, size) = Logits(rows, columns, bias), value.shape
        steps = (bias if rows is None else rows).size(-2)
        ctx.shared = rows is None and bias.dim() == 3 and pads is None
        ctx.blocks = _blocks(steps, keys, rules, value.is_cuda)
        values = _join(value, ctx.shared)
        out = value.new_empty(steps, batch, heads, size)
        by_group = out.permute(2, 0, 1, 3) if ctx.shared else _by_group(out)
        saved: List[Tensor] = []
        for first, last, end in ctx.blocks:
            scores = _scores(logits, (first, last, end), 1 if ctx.shared else batch, rules, pads)
            weights = torch.softmax(scores, dim=-1)
            kept = F.dropout(torch.ones_like(weights), rules.dropout) if rules.dropout else None
            batch_product(_dropped(weights, kept, value.dtype), _part(values, 0, end), out=_part(by_group, first, last))
            saved += [weights] if kept is None else [weights, kept]
        ctx.save_for_backward(rows, columns, values, *saved)
        ctx.rules, ctx.shape = rules, value.shape
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, columns, values, *saved = ctx.saved_tensors
        batch, heads, _, size = ctx.shape
        gradient = _join(gradient.view(-1, batch, heads, size).permute(1, 2, 0, 3), ctx.shared)
        trained = any(ctx.needs_input_grad[:3])
        # T x B x H x E, as a projection wants it
        for_rows = rows.new_empty(*rows.permute(2, 0, 1, 3).shape) if ctx.needs_input_grad[0] else None
        for_bias: Optional[Tensor] = None
        for_columns: Optional[Tensor] = None
        for_values: Optional[Tensor] = None
        # the last block first: it sees every key, and the others add to what it made
        for first, last, end in reversed(ctx.blocks):
            kept = saved.pop() if ctx.rules.dropout else None
            weights, block = saved.pop(), _part(gradient, first, last)
            if ctx.needs_input_grad[3]:
                for_values = _add(for_values, _dropped(weights, kept, block.dtype).transpose(1, 2), block)
            if not trained:
                continue
            of_weights = batch_product(block, _part(values, 0, end).transpose(1, 2))
            of_scores = _through_softmax(of_weights, weights, kept)
            if ctx.needs_input_grad[2]:
                for_bias = _put(for_bias, of_scores.view(-1, heads, last - first, end), first, *ctx.bias)
            of_scores = of_scores.to(values.dtype)
            if for_rows is not None:
                out = _part(_by_group(for_rows), first, last)
                batch_product(of_scores, _part(columns.flatten(0, 1), 0, end), out=out)
            if ctx.needs_input_grad[1]:
                for_columns = _add(for_columns, of_scores.transpose(1, 2), _part(rows.flatten(0, 1), first, last))
        for_rows = None if for_rows is None else for_rows.permute(1, 2, 0, 3)
        for_columns = None if for_columns is None else for_columns.view(columns.shape)
        for_value = None if for_values is None else _split(for_values, ctx.shape, ctx.shared)
        return for_rows, for_columns, for_bias, for_value, None, None


Block = Tuple[int, int, int]  # rows [first, last) see the columns [0, end)


def _blocks(steps: int, keys: int, rules: Rules, on_gpu: bool) -> List[Block]:
    count = 1
    if rules.causal and not on_gpu:  # where a kernel's launch costs more than what a block saves
        count = max(1, min(MOST_BLOCKS, round(steps / ROWS)))
    rows = -(-steps // count)
    blocks = [(first, min(first + rows, steps)) for first in range(0, steps, rows)]
    return [(first, last, rules.start + last if rules.causal else keys) for first, last in blocks]


def _scores(logits: Logits, block: Block, count: int, rules: Rules, pads: Optional[Tensor]) -> Tensor:
    """Masked logits of a block, in float32 at least: G x rows x end, a tensor of its own. count: G / H."""
    first, last, end = block
    bias: Any = None if logits.bias is None else logits.bias[..., first:last, :end]
    if logits.rows is None or logits.columns is None:
        scores = full_precision(bias).expand(count, *bias.shape[-3:]).clone(memory_format=torch.contiguous_format)
    else:
        rows, columns = _part(logits.rows.flatten(0, 1), first, last), _part(logits.columns.flatten(0, 1), 0, end)
        scores = full_precision(batch_product(rows, columns.transpose(1, 2))).view(count, -1, last - first, end)
        if bias is not None:
            scores.add_(bias)
    if rules.causal and last - first > 1:
        # adding takes a quarter of the time of masked_fill_
        future = torch.full((last - first, last - first), float("-inf"), dtype=scores.dtype, device=scores.device)
        scores[..., rules.start + first :].add_(future.triu_(1))
    if pads is not None:
        # the lowest number, not -inf: a row that sees only pads (it is one itself) stays finite
        scores.masked_fill_(pads[:, None, None, :end], torch.finfo(scores.dtype).min)
    return scores.flatten(0, 1)


def _dropped(weights: Tensor, kept: Optional[Tensor], dtype: torch.dtype) -> Tensor:
    return (weights if kept is None else weights * kept).to(dtype)


def _through_softmax(gradient: Tensor, weights: Tensor, kept: Optional[Tensor]) -> Tensor:
    """The gradient of the scores from that of the weights."""
    gradient = gradient.to(weights.dtype)
    if kept is not None:
        gradient = gradient.mul_(kept)
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


def _put(total: Optional[Tensor], of_scores: Tensor, first: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Rows from ``first`` on of a bias' gradient: summed over sentences that share it, 0 in the future."""
    if len(shape) == 3:
        of_scores = of_scores.sum(dim=0) if of_scores.size(0) > 1 else of_scores[0]
    rows, end = of_scores.shape[-2:]
    if (rows, end) == shape[-2:]:
        return of_scores.to(dtype)
    total = of_scores.new_empty(shape, dtype=dtype) if total is None else total
    block = total[..., first : first + rows, :]
    block[..., :end] = of_scores
    block[..., end:] = 0.0
    return total


def _add(total: Optional[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """total + x y, where x may have fewer rows than total."""
    if total is None:
        return batch_product(x, y)
    total[:, : x.size(1)].baddbmm_(x, y)
    return total


def _join(x: Tensor, shared: bool) -> Tensor:
    """B x H x S x D -> G x S x D, or H x S x B * D where one product does for the batch."""
    return x.permute(1, 2, 0, 3).flatten(2) if shared else x.flatten(0, 1)


def _split(x: Tensor, shape: torch.Size, shared: bool) -> Tensor:
    """The way back."""
    batch, heads, keys, size = shape
    return x.view(heads, keys, batch, size).permute(2, 0, 1, 3) if shared else x.view(shape)


def _by_group(x: Tensor) -> Tensor:
    """T x B x H x D -> G x T x D, a view."""
    return x.view(x.size(0), -1, x.size(3)).transpose(0, 1)


def _part(x: Tensor, first: int, end: int) -> Tensor:
    """x[:, first:end], without the operation where that is everything."""
    return x if end - first == x.size(1) else x[:, first:end]


WAY = Way("blocks", takes, attend)
