"""Terms that a model adds to its training loss, whatever criterion computes the rest.

Every criterion of fairseq returns its summed loss and the ``sample_size`` that the trainer divides gradients by (tokens
or, with --sentence-avg, sentences). Adding ``sample_size * term`` leaves ``mean loss + term``, with loss scaling,
``--update-freq`` and data parallelism taken care of. The reported loss, which a criterion logs itself, is unchanged.
"""

import logging
from typing import Any, Iterator, List, Optional

import torch
from fairseq.logging import metrics
from torch import Tensor

from fairseq_synth import training_log
from fairseq_synth.compat.training_seams import AFTER_LOSS, unwrapped
from fairseq_synth.modules.adaptive_span import adaptive_spans

logger = logging.getLogger(__name__)
# updates after which spans that are all where they started are reported
PATIENCE = 500


class AuxiliaryLossMixin:
    """For a fairseq model (before its base class): the span loss, and a warning if no span moves.

    The loss is ``span_loss_weight`` times the sum over layers of the mean span of the heads (arXiv 1905.07799,
    eq. 5, as the authors' code reads it). A model without learned spans is left alone.
    """

    span_loss_weight: float = 0.0
    _first_spans: Optional[List[List[float]]] = None
    _first_update = 0

    def auxiliary_loss(self) -> Optional[Tensor]:
        """The term, a scalar with gradient; None where there is none to add."""
        spans = adaptive_spans(self) if self.span_loss_weight else []  # type: ignore[arg-type]
        if not spans:
            return None
        return self.span_loss_weight * torch.stack([span.loss() for span in spans]).sum()

    def set_num_updates(self, num_updates: int) -> None:
        super().set_num_updates(num_updates)  # type: ignore[misc]
        if self.training:  # type: ignore[attr-defined]
            self._watch_spans(num_updates)

    def _watch_spans(self, num_updates: int) -> None:
        """Called before every update; looks at the first one and at the one PATIENCE updates later."""
        if self._first_spans is None:
            self._first_spans, self._first_update = list(_spans_of(self)), num_updates
        elif num_updates == self._first_update + PATIENCE and list(_spans_of(self)) == self._first_spans != []:
            logger.warning(
                f"no adaptive span has moved in {PATIENCE} updates: if they are at 0 the span loss or the data keeps "
                f"them there (lower --span-loss); otherwise raise --lr"
            )


def _spans_of(model: Any) -> Iterator[List[float]]:
    for span in adaptive_spans(model):
        yield span.spans().tolist()


def add_auxiliary_loss(model: Any, loss: Tensor, sample_size: Any) -> Tensor:
    """What every criterion's loss goes through; also the place where a training logs what the model has learned."""
    model = unwrapped(model)
    if not isinstance(model, AuxiliaryLossMixin) or not (model.training and torch.is_grad_enabled()):  # type: ignore
        return loss
    training_log.log_learned(model)  # type: ignore[arg-type]
    term = model.auxiliary_loss()
    if term is None:
        return loss
    metrics.log_scalar("span_loss", term.detach(), weight=1, priority=60, round=5)
    return loss + sample_size * term


if add_auxiliary_loss not in AFTER_LOSS:
    AFTER_LOSS.append(add_auxiliary_loss)
