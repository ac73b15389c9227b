"""The learned soft mask of Sukhbaatar et al. 2019 ("Adaptive Attention Span in Transformers", eq. 2-4).

Legend: H heads, S maximum span, R ramp, z span in tokens, x distance.
"""

import math
from typing import Any, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.products import HALF

# heads whose windows differ by no more than this share their matrix products: measured, a group of its own costs
# a head as much as 128 more positions
SLACK, RELATIVE_SLACK = 128, 1 / 8
EDGE = 2.0**-40  # in place of a mask of 0 that has a gradient


class HeadGroup(NamedTuple):
    """Heads that are computed together, and how far back they look (in tokens)."""

    heads: Tuple[int, ...]
    window: int


class AdaptiveSpan(nn.Module):
    """One span per head: ``m_z(x) = clamp((R + z - x) / R, 0, 1)``, zero from the maximum span on.

    x is 0 for the nearest position that the head can attend to. The parameter is the ratio z/S, not z: the gradient
    then carries the factor S, without which spans learn S times too slowly at the common learning rate.

    The ratio is used clamped to [0, 1], and ``set_num_updates``, which fairseq calls on every module before each
    update, writes the clamped value back, as in the authors' code. A training loop without fairseq calls :meth:`clamp_`
    after each step. In a model of half precision (--fp16, --bf16) that would reach a copy only, while the optimizer's
    float32 values drift away: there the ratio may lie outside, and loses the gradient that leads farther out, no other.
    It is kept in float32 itself, as half precision would swallow small updates.

    Where the mask has a corner, at z + R and at z, its gradient is the authors' (that of torch's clamp): there a head
    at z = 0, where it starts, learns whether to look farther.

    Args:
        num_heads, max_span, ramp: H, S and R.
        initial_span: z at the start, in tokens.
        fixed: the spans stay where they start.

    Raises:
        UsageError: no room for the span or the ramp.
    """

    component = "span"  # for --freeze

    def __init__(
        self, num_heads: int, max_span: int, ramp: int = 32, initial_span: float = 0.0, fixed: bool = False
    ) -> None:
        super().__init__()
        if max_span < 1:
            raise UsageError(f"maximum attention span {max_span}: must be at least 1 token")
        if ramp < 1:
            raise UsageError(f"span ramp {ramp}: must be at least 1 token (the paper takes 32)")
        if not 0 <= initial_span <= max_span:
            raise UsageError(
                f"initial span {initial_span:g}: must be between 0 and the maximum attention span {max_span}; "
                f"lower it or raise the maximum"
            )
        self.max_span, self.ramp = max_span, ramp
        self.in_half_precision = False  # the model around it
        ratio = torch.full((num_heads,), initial_span / max_span)
        self.span_ratio = nn.Parameter(ratio, requires_grad=not fixed)

    def extra_repr(self) -> str:
        return f"heads={self.span_ratio.numel()}, max_span={self.max_span}, ramp={self.ramp}"

    def mask(self, distance: Tensor) -> Tensor:
        """distance: any shape, >= 0. Returns H x that shape, in [0, 1], float32 at least."""
        ratio = self._ratio().view(-1, *[1] * distance.dim())
        x = distance.to(ratio.dtype)
        soft = self._ramp_of(x, ratio).clamp(0, 1)
        return soft * (distance < self.max_span).to(soft.dtype)

    def _ramp_of(self, x: Tensor, ratio: Tensor) -> Tensor:
        """(R + z - x) / R."""
        return (self.ramp - x + ratio * self.max_span) / self.ramp

    def log_mask(self, distance: Tensor) -> Tensor:
        """log of :meth:`mask`, -inf where it is 0: softmax(s + log m) is softmax(s) * m, renormalised.

        While spans learn, the position at exactly z + R, whose mask is 0 but grows with z, has EDGE in place of 0: too
        little to be seen in the output, and the gradient, p (g - mean g) / m, is that of the mask's corner.
        """
        ratio = self._ratio().view(-1, *[1] * distance.dim())
        ramp = self._ramp_of(distance.to(ratio.dtype), ratio)
        learning = ratio.requires_grad and torch.is_grad_enabled()
        visible = ((ramp >= 0) if learning else (ramp > 0)) & (distance < self.max_span)
        mask = torch.where(visible, ramp, torch.ones_like(ramp)).clamp(0, 1)
        return (mask + EDGE * (mask == 0)).log().masked_fill(~visible, -math.inf)

    def spans(self) -> Tensor:
        """z of every head, in tokens (H, without gradient)."""
        return self._ratio().detach() * self.max_span

    def windows(self) -> List[int]:
        """Per head, how many of the nearest positions have a mask above 0, or have a gradient."""
        reach = _including_edge if self.span_ratio.requires_grad else math.ceil
        return [min(self.max_span, reach(z + self.ramp)) for z in self.spans().tolist()]

    def groups(self) -> List[HeadGroup]:
        return group_heads(self.windows())

    def loss(self) -> Tensor:
        """S * mean over heads of z/S: the mean span of the layer, in tokens (to be summed over layers)."""
        return self.max_span * self._ratio().mean()

    @torch.no_grad()
    def clamp_(self) -> None:
        self.span_ratio.clamp_(0, 1)

    def set_num_updates(self, num_updates: int) -> None:
        if not self.in_half_precision:
            self.clamp_()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.clamp_()  # the last update before a checkpoint has no next one to clamp it
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """.half() and its kin leave the ratio in float32."""
        exact = self.span_ratio.data
        super()._apply(fn, *args, **kwargs)
        self.in_half_precision = self.span_ratio.dtype in HALF
        if self.in_half_precision:
            self.span_ratio.data = exact.to(self.span_ratio.device, torch.float32)
        return self

    def _ratio(self) -> Tensor:
        return _ClampInwards.apply(self.span_ratio)


def adaptive_spans(model: nn.Module) -> List[AdaptiveSpan]:
    """The learned spans of a model, in the order of its layers (empty if all are fixed)."""
    return [m for m in model.modules() if isinstance(m, AdaptiveSpan) and m.span_ratio.requires_grad]


class _ClampInwards(torch.autograd.Function):
    """x.clamp(0, 1); beyond an end it drops the gradient that a descent would follow outwards, and no other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outwards = ((x < 0) & (gradient > 0)) | ((x > 1) & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0)


def _including_edge(z: float) -> int:
    return math.floor(z) + 1


def group_heads(windows: Sequence[int]) -> List[HeadGroup]:
    """Heads of similar window together, the longest first; no head pays for one much longer than itself."""
    groups: List[HeadGroup] = []
    for head in sorted(range(len(windows)), key=lambda h: -windows[h]):
        last = groups[-1] if groups else None
        if last is not None and last.window - windows[head] <= SLACK + last.window * RELATIVE_SLACK:
            groups[-1] = HeadGroup(tuple(sorted((*last.heads, head))), last.window)
        else:
            groups.append(HeadGroup((head,), windows[head]))
    return groups
