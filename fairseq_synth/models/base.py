"""What every model of this package shares: options, limits, frozen parts and terms of the loss.

class MyModelBase(SynthModel, SomeFairseqModel):
    defaults = MyConfig                     # its dataclass, with SpanOptions and FreezingOptions
    sides = ("decoder",)                    # the attentions that it has

    @classmethod
    def build_model(cls, args, task):
        cfg = cls.config(args)              # checked
        return finish_model(cls(...), cfg)

register_presets(MyModelBase, {"my_model": {}, "my_model_big": {"decoder_layers": 12}})
"""

from typing import Any, Tuple, Type

from fairseq.dataclass import FairseqDataclass
from torch import nn

from fairseq_synth.auxiliary_loss import AuxiliaryLossMixin
from fairseq_synth.freezing.model import FreezingMixin, freeze_model
from fairseq_synth.models.config import SIDES, ResolvedConfig, nested_config
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.seeded.model import SeededMixin, seed_model


class SynthModel(SeededMixin, FreezingMixin, AuxiliaryLossMixin):
    """For a fairseq model, before its base class."""

    defaults: Type[FairseqDataclass]
    sides: Tuple[str, ...] = SIDES

    @classmethod
    def config(cls, args: Any) -> ResolvedConfig:
        """The checked config. Raises UsageError for options that cannot work or have no effect."""
        return nested_config(args, cls.defaults, cls.sides)


def finish_model(model: Any, cfg: Any) -> Any:
    """What is left to do when a model of this package has been built: span loss, --freeze, --frozen-init."""
    model.span_loss_weight = cfg.span_loss
    freeze_model(model, cfg)
    seed_model(model, cfg)
    return model


def limited_positions(stock: int, layers: nn.Module) -> int:
    """max_positions(): the smallest of fairseq's limit and every scorer's maximum length."""
    attentions = [m for m in layers.modules() if isinstance(m, SynthAttention)]
    return min([stock] + [a.max_length for a in attentions if a.max_length is not None])
