"""Cross entropy from features, without the logits of all tokens.

The output layer, a float32 softmax, the loss and the gradients are computed for one chunk of tokens after the other.
The gradient of a sum of losses is known up to the factor that backward brings, a scalar; so it is computed together
with the loss, while the chunk's logits are still there. Two cases wait for backward, which makes the logits again:
losses per token, each with a factor of its own, and float16, where gradients need the factor (the loss scale) before
they are rounded.

Legend: n tokens, C model dim, V vocabulary.
"""

from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fairseq_synth.modules.products import autocast, autocast_dtype, is_faster, product

# bytes of a chunk's logits in float32. CPU: more leaves the caches; others: less starts too many kernels
CHUNK_BYTES = {"cpu": 32 * 2**20}
CHUNK_BYTES_ELSEWHERE = 64 * 2**20
FEWEST_TOKENS = 64  # of a chunk: the gradient of the weight (V x C) is read and written once per chunk


class Losses(NamedTuple):
    """loss, nll: sums over the tokens, or n losses each; correct: how many tokens are the likeliest, if asked for."""

    loss: Tensor
    nll: Tensor
    correct: Optional[Tensor]


class Problem(NamedTuple):
    """What is computed. faster: multiply as this package's Linear does, instead of as nn.Linear."""

    padding_idx: int
    smoothing: float = 0.0
    reduce: bool = True
    count_correct: bool = False
    faster: bool = False


def chunked_losses(
    features: Tensor, weight: Tensor, bias: Optional[Tensor], target: Tensor, problem: Problem
) -> Losses:
    """fairseq's (label-smoothed) cross entropy of ``features @ weight.t() + bias``; pads count 0.

    Args:
        features: n x C.
        weight: V x C.
        bias: V, or None.
        target: n.
    """
    dtype = _product_dtype(features)
    loss, nll, correct = _ChunkedLoss.apply(features, weight, bias, target, problem, dtype)
    return Losses(loss, nll, correct if problem.count_correct else None)


def _product_dtype(features: Tensor) -> torch.dtype:
    """Of the products: that of the features, or what autocast makes of it."""
    changes = autocast(features.device) and features.dtype != torch.float64
    return autocast_dtype(features.device) if changes else features.dtype


def chunk_tokens(vocabulary: int, device: str) -> int:
    """How many tokens make a chunk."""
    return max(FEWEST_TOKENS, CHUNK_BYTES.get(device, CHUNK_BYTES_ELSEWHERE) // (4 * vocabulary))


class _ChunkedLoss(torch.autograd.Function):
    """The arguments are those of _Work."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tuple[Tensor, Tensor, Tensor]:
        *tensors, problem, dtype = arguments
        wanted = ctx.needs_input_grad[:3]
        now = problem.reduce and dtype != torch.float16
        work = _Work(*arguments)
        results = work.run(wanted if now else (False, False, False), None)
        ctx.gradients, ctx.later = work.gradients if now else None, None
        if any(wanted) and not now:
            ctx.save_for_backward(*tensors)
            ctx.later = problem, dtype
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, *_: Any) -> Any:
        if ctx.later is not None:
            work = _Work(*ctx.saved_tensors, *ctx.later)
            work.run(ctx.needs_input_grad[:3], factor)
            return (*work.gradients, None, None, None)
        return (*(None if g is None else g * factor.to(g.dtype) for g in ctx.gradients), None, None, None)


class _Work:
    """One pass over all chunks. gradients: of features, weight and bias, where wanted."""

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Optional[Tensor],
        target: Tensor,
        problem: Problem,
        dtype: torch.dtype,
    ) -> None:
        self.features, self.target, self.problem, self.dtype = features, target, problem, dtype
        self.own_dtypes = (features.dtype, weight.dtype, None if bias is None else bias.dtype)
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        vocabulary = weight.size(0)
        self.each = problem.smoothing / max(1, vocabulary - 1)  # what smoothing gives to every symbol
        self.first = 1.0 - problem.smoothing - self.each  # and adds for the target
        self.step = chunk_tokens(vocabulary, features.device.type)
        self.multiply = _multiply(problem.faster, self.step, self.weight)
        self.totals: List[Optional[Tensor]] = [None, None, None]

    @property
    def gradients(self) -> Tuple[Optional[Tensor], ...]:
        return tuple(None if g is None else g.to(d) for g, d in zip(self.totals, self.own_dtypes))

    def run(self, wanted: Tuple[bool, ...], factor: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        """Loss, negative log-likelihood, number of correct tokens. factor: of the losses (none: 1); all, or n."""
        with torch.no_grad(), torch.autocast(self.features.device.type, enabled=False):
            return self._run(wanted, factor)

    def _run(self, wanted: Tuple[bool, ...], factor: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        target, rows = self.target, self._tokens_without_pads()
        if rows is not None:
            target = target.index_select(0, rows)
        dtypes = (self.features.dtype, self.sum_dtype, self.sum_dtype)
        operands: Any = zip((self.features, self.weight, self.bias), dtypes, wanted)
        self.totals = [torch.zeros_like(x, dtype=dtype) if want else None for x, dtype, want in operands]
        losses = self.features.new_zeros(2, *(() if self.problem.reduce else self.target.shape), dtype=self.sum_dtype)
        correct = target.new_zeros(())
        for start in range(0, target.size(0), self.step):
            part = slice(start, start + self.step)
            where = part if rows is None else rows[part]
            x = self.features[where].to(self.dtype)
            chunk = _Chunk(x, target[part], target[part].ne(self.problem.padding_idx), where)
            logits = self.multiply(x, self.weight, self.bias)
            if self.problem.count_correct:
                correct += (logits.argmax(1).eq(chunk.target) & chunk.valid).sum()
            log_probs = F.log_softmax(logits, 1, dtype=self.sum_dtype)
            found = self._losses(chunk, log_probs)
            if self.problem.reduce:
                losses += found.sum(1)
            else:
                losses[:, where] = found
            if any(wanted):
                given = factor if factor is None or factor.dim() == 0 else factor[where, None]
                self._add_gradients(chunk, log_probs, given)
        return losses[0], losses[1], correct

    def _tokens_without_pads(self) -> Optional[Tensor]:
        """Indices of the tokens that count; None: all, or unknown to the host."""
        if self.target.device.type != "cpu":
            return None  # to ask would make the host wait
        valid = self.target.ne(self.problem.padding_idx)
        return None if bool(valid.all()) else valid.nonzero()[:, 0]

    def _losses(self, chunk: "_Chunk", log_probs: Tensor) -> Tensor:
        """2 x n: loss and negative log-likelihood."""
        nll = -log_probs.gather(1, chunk.target[:, None])
        loss = self.first * nll
        if self.each:
            loss -= self.each * log_probs.sum(1, keepdim=True)
        return torch.cat([loss, nll], 1).masked_fill_(~chunk.valid[:, None], 0.0).t()

    def _add_gradients(self, chunk: "_Chunk", log_probs: Tensor, factor: Optional[Tensor]) -> None:
        """log_probs is changed. Rows of pads are left as they come where no total takes them."""
        at_logits = self._at_logits(chunk.target[:, None], log_probs.exp_(), factor)
        at_features, at_weight, at_bias = self.totals
        padded, pads = isinstance(chunk.where, slice), ~chunk.valid[:, None]  # indices: without pads
        if at_features is not None:
            found = self.multiply(at_logits, self.weight.t(), None)
            at_features[chunk.where] = (found.masked_fill_(pads, 0.0) if padded else found).to(at_features.dtype)
        if at_weight is not None:
            x = chunk.x.masked_fill(pads, 0.0) if padded else chunk.x
            if at_weight.dtype == self.dtype and self.multiply is F.linear:
                at_weight.addmm_(at_logits.t(), x)
            else:
                at_weight += self.multiply(at_logits.t(), x.t(), None)
        if at_bias is not None:
            counted = at_logits.masked_fill(pads, 0.0) if padded else at_logits
            at_bias += counted.sum(0, dtype=self.sum_dtype)

    def _at_logits(self, target: Tensor, probs: Tensor, factor: Optional[Tensor]) -> Tensor:
        """probs - each - (first at the target), times factor, in the products' dtype. probs is changed."""
        at_target = probs.gather(1, target) - (self.first + self.each)
        out = probs if self.dtype == probs.dtype else torch.empty_like(probs, dtype=self.dtype)
        if factor is None:
            torch.sub(probs, self.each, out=out)
        else:
            factor = factor.to(probs.dtype)
            at_target = at_target * factor
            torch.mul(probs.sub_(self.each), factor, out=out)
        return out.scatter_(1, target, at_target.to(self.dtype))


class _Chunk(NamedTuple):
    """x: n x C; target: n; valid: n, False at pads; where: which of all tokens, a slice, or indices without pads."""

    x: Tensor
    target: Tensor
    valid: Tensor
    where: Any


def _multiply(faster: bool, tokens: int, weight: Tensor) -> Callable[[Tensor, Tensor, Optional[Tensor]], Tensor]:
    """x (n x K), y (m x K), bias (m) -> n x m."""
    return product if faster and is_faster(tokens * weight.numel(), weight) else F.linear
