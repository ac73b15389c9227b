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

import contextlib
import copy
import re
from typing import Any, Mapping, Tuple, Type

from fairseq.dataclass import FairseqDataclass
from omegaconf import DictConfig, open_dict
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

    def load_state_dict(self, state_dict: Any, strict: bool = True, model_cfg: Any = None, args: Any = None) -> Any:
        """As fairseq's, which would prune (--decoder-layers-to-keep) what was saved by a training with that option, and
        is pruned already."""
        if model_cfg is not None:
            model_cfg = _pruning_left_to_do(state_dict, model_cfg)
        return super().load_state_dict(state_dict, strict=strict, model_cfg=model_cfg, args=args)

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


def _pruning_left_to_do(state_dict: Mapping[str, Any], model_cfg: Any) -> Any:
    """The options with --*-layers-to-keep only where the state holds more layers than are kept.

    Beside a side that is still pruned, the other keeps all of its layers by name: fairseq drops those of a side that
    is not named.
    """
    sides = ("encoder", "decoder")
    kept = {side: getattr(model_cfg, f"{side}_layers_to_keep", None) for side in sides}
    counts = {side: len(str(keep).split(",")) for side, keep in kept.items() if keep}
    done = [side for side, count in counts.items() if count == _layers_in(state_dict, side)]
    if not done:
        return model_cfg
    model_cfg = copy.deepcopy(model_cfg)
    with open_dict(model_cfg) if isinstance(model_cfg, DictConfig) else contextlib.nullcontext():
        for side in done:
            every = ",".join(map(str, range(counts[side]))) if len(done) < len(counts) else None
            setattr(model_cfg, f"{side}_layers_to_keep", every)
    return model_cfg


def _layers_in(state_dict: Mapping[str, Any], side: str) -> int:
    found = (re.search(rf"(?:^|\.){side}\.layers\.(\d+)\.", name) for name in state_dict)
    return len({match.group(1) for match in found if match})


def limited_positions(stock: int, layers: nn.Module) -> int:
    """max_positions(): the smallest of fairseq's limit and every scorer's maximum length."""
    attentions = [m for m in layers.modules() if isinstance(m, SynthAttention)]
    return min([stock] + [a.max_length for a in attentions if a.max_length is not None])
