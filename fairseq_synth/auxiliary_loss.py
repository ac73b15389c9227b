"""Add a term to the training loss of any likelihood criterion, from inside the model.

``cross_entropy`` and ``label_smoothed_cross_entropy`` put weights that sum to 1 on the log-probabilities of every
target token. So the sum of the gradient at the log-probabilities is minus the number of target tokens, times
whatever the trainer scales the loss with. :func:`attach` hands that number on to the term: the trainer's division by
the number of tokens then leaves ``mean loss + term``, with loss scaling, ``--update-freq`` and data parallelism
taken care of, and the reported loss unchanged. With ``--sentence-avg`` the term's weight is tokens per sentence.
``adaptive_loss`` works on logits, whose gradients sum to zero: :func:`attach_to_logits` finds the scale in those of
the targets.
"""

import logging
from typing import Any, Iterator, List, Optional

import torch
from fairseq.logging import metrics
from torch import Tensor, nn

from fairseq_synth.inspection.scalars import log_learned
from fairseq_synth.modules.adaptive_span import AdaptiveSpan

logger = logging.getLogger(__name__)
# updates after which spans that are all where they started are reported
PATIENCE = 500


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, term: Tensor) -> Tensor:
        ctx.dtype = term.dtype
        return log_probs.view_as(log_probs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return grad, -grad.sum(dtype=torch.float32).to(ctx.dtype)


def attach(log_probs: Tensor, term: Tensor) -> Tensor:
    """``log_probs`` unchanged; its gradient adds ``term`` (a scalar) to the mean loss per token."""
    return _Attach.apply(log_probs, term)


class _AttachToLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, valid: Tensor, term: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target, valid)
        ctx.dtype = term.dtype
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        logits, target, valid = ctx.saved_tensors
        # cross entropy: the gradient at the target's logit is scale * (p - 1)
        missing = (1 - logits.float().softmax(-1).gather(1, target[:, None])[:, 0])[valid].sum()
        scale = -grad.float().gather(1, target[:, None])[:, 0][valid].sum() / missing.clamp(min=1e-20)
        return grad, None, None, (scale * valid.sum()).to(ctx.dtype)


def attach_to_logits(logits: Tensor, target: Tensor, valid: Tensor, term: Tensor) -> Tensor:
    """:func:`attach` for summed cross entropy. logits: n x V; target: n; valid: n, False at pads."""
    return _AttachToLogits.apply(logits, target, valid, term)


def adaptive_spans(model: nn.Module) -> List[AdaptiveSpan]:
    """The learned spans of a model, in the order of its layers (empty if all are fixed)."""
    return [m for m in model.modules() if isinstance(m, AdaptiveSpan) and m.span_ratio.requires_grad]


class SpanLossMixin:
    """For a fairseq model (before its base class): the span loss, the spans in the log, a warning if none moves.

    The loss is ``span_loss_weight`` times the sum over layers of the mean span of the heads (arXiv 1905.07799,
    eq. 5, as the authors' code reads it). A model without learned spans is left alone.
    """

    span_loss_weight: float = 0.0
    _first_spans: Optional[List[List[float]]] = None
    _first_update = 0

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        probs = super().get_normalized_probs(net_output, log_probs, sample)  # type: ignore[misc]
        term = self._span_term() if log_probs else None
        return probs if term is None else attach(probs, term)

    def watch_adaptive_softmax(self, softmax: nn.Module, padding_idx: int) -> None:
        """Join the span loss to ``--criterion adaptive_loss`` too, which calls the adaptive softmax itself."""

        def join(module: nn.Module, inputs: Any, output: Any) -> Any:
            term = self._span_term()
            if term is None:
                return None
            (head, *tails), targets = output
            valid = inputs[1].reshape(-1).ne(padding_idx)
            return [attach_to_logits(head, targets[0], valid, term), *tails], targets

        softmax.register_forward_hook(join)

    def _span_term(self) -> Optional[Tensor]:
        """The weighted loss, None where there is none to add; logs the spans and the rest of what is learned."""
        if not (self.training and torch.is_grad_enabled()):  # type: ignore[attr-defined]
            return None  # before looking for the spans: decoding asks at every step
        log_learned(self)  # type: ignore[arg-type]
        spans = adaptive_spans(self)  # type: ignore[arg-type]
        if not spans:
            return None
        log_spans(spans)
        if not self.span_loss_weight:
            return None
        term = self.span_loss_weight * torch.stack([span.loss() for span in spans]).sum()
        metrics.log_scalar("span_loss", term.detach(), weight=1, priority=60, round=5)
        return term

    def set_num_updates(self, num_updates: int) -> None:
        super().set_num_updates(num_updates)  # type: ignore[misc]
        if self.training:  # type: ignore[attr-defined]
            self._watch(num_updates)

    def _watch(self, num_updates: int) -> None:
        """Called before every update; looks at the first one and at the one PATIENCE updates later."""
        if self._first_spans is None:
            self._first_spans, self._first_update = list(_values(self)), num_updates
        elif num_updates == self._first_update + PATIENCE and list(_values(self)) == self._first_spans != []:
            logger.warning(
                f"no adaptive span has moved in {PATIENCE} updates: if they are at 0 the span loss or the data keeps "
                f"them there (lower --span-loss); otherwise raise --lr"
            )


def log_spans(spans: List[AdaptiveSpan]) -> None:
    """Mean and maximum over all heads and the mean of every layer, in tokens, into fairseq's log and TensorBoard."""
    tokens = torch.stack([span.spans() for span in spans])
    metrics.log_scalar("span_mean", tokens.mean(), weight=1, priority=50, round=2)
    metrics.log_scalar("span_max", tokens.max(), weight=1, priority=51, round=2)
    for layer, mean in enumerate(tokens.mean(1)):
        metrics.log_scalar(f"span_layer_{layer}", mean, weight=1, priority=1000 + layer, round=1)


def _values(model: Any) -> Iterator[List[float]]:
    for span in adaptive_spans(model):
        yield span.spans().tolist()
