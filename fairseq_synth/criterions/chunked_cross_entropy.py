"""``--criterion chunked_cross_entropy`` and ``chunked_label_smoothed_cross_entropy``.

The numbers of fairseq's criterions of these names, from logits that never stand in memory whole (chunked_loss.py).
Options, sample size and logging are fairseq's.
"""

import weakref
from typing import Any, Dict, Optional, Tuple

from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from torch import Tensor

from fairseq_synth.compat.training_seams import unwrapped
from fairseq_synth.criterions.chunked_loss import Losses, Problem, chunked_losses
from fairseq_synth.criterions.output_layer import check, find_output_layer, losses_of


class ChunkedMixin:
    """Before a criterion of fairseq: the model's output becomes the losses, which the criterion's methods return.

    Raises UsageError for models whose output layer is not one linear layer.
    """

    criterion_name = ""
    ignore_prefix_size = 0
    report_accuracy = False
    eps = 0.0
    _checked: Optional["weakref.ref[Any]"] = None

    def check_model(self, model: Any) -> None:
        """Raise UsageError for a model that this criterion cannot train."""
        check(model, self.criterion_name)
        self._checked = weakref.ref(unwrapped(model))

    def forward(self, model: Any, sample: Dict[str, Any], reduce: bool = True) -> Any:
        """As fairseq's."""
        if self._checked is None or self._checked() is not unwrapped(model):
            self.check_model(model)

        def call(**net_input: Any) -> Losses:
            return losses_of(model, net_input, lambda features: self._losses(model, features, sample, reduce))

        return super().forward(call, sample, reduce)  # type: ignore[misc]

    def _losses(self, model: Any, features: Tensor, sample: Dict[str, Any], reduce: bool) -> Losses:
        """features: B x T x C."""
        target = unwrapped(model).get_targets(sample, None)
        skipped = self.ignore_prefix_size
        features, target = features[:, skipped:], target[:, skipped:]
        layer = find_output_layer(unwrapped(model).decoder)
        padding = self.padding_idx  # type: ignore[attr-defined]
        problem = Problem(padding, self.eps, reduce, self.report_accuracy, layer.faster)
        features = features.reshape(-1, features.size(-1))
        return chunked_losses(features, layer.weight, layer.bias, target.reshape(-1), problem)


@register_criterion("chunked_cross_entropy", dataclass=CrossEntropyCriterionConfig)
class ChunkedCrossEntropy(ChunkedMixin, CrossEntropyCriterion):
    """fairseq's ``cross_entropy``."""

    criterion_name = "chunked_cross_entropy"

    def __init__(self, task: Any, sentence_avg: bool) -> None:
        super().__init__(task, sentence_avg)

    def compute_loss(self, model: Any, net_output: Losses, sample: Dict[str, Any], reduce: bool = True) -> Any:
        return net_output.loss, net_output.loss


@register_criterion("chunked_label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyCriterionConfig)
class ChunkedLabelSmoothedCrossEntropy(ChunkedMixin, LabelSmoothedCrossEntropyCriterion):
    """fairseq's ``label_smoothed_cross_entropy``."""

    criterion_name = "chunked_label_smoothed_cross_entropy"

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)

    def compute_loss(self, model: Any, net_output: Losses, sample: Dict[str, Any], reduce: bool = True) -> Any:
        if reduce:
            return net_output.loss, net_output.nll
        return net_output.loss[:, None], net_output.nll[:, None]  # the shape of fairseq's

    def compute_accuracy(self, model: Any, net_output: Losses, sample: Dict[str, Any]) -> Tuple[Any, Tensor]:
        counted = sample["target"][:, self.ignore_prefix_size :].ne(self.padding_idx).sum()
        return net_output.correct, counted
