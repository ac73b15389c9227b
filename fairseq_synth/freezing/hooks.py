"""Two places of fairseq that must know what is frozen. Both do what they did for models without ``--freeze``."""

from typing import Any, Callable, Set

from fairseq.models.ema.ema import EMA
from fairseq.trainer import Trainer

from fairseq_synth.compat.patching import replace
from fairseq_synth.freezing.groups import tied_names
from fairseq_synth.freezing.model import bare_state, freezes


def install() -> None:
    replace(Trainer, "load_checkpoint", _resume_with_the_same_set)
    replace(EMA, "_step_internal", _keep_frozen)
    replace(EMA, "build_fp32_params", _tensors_only)


def _resume_with_the_same_set(stock: Callable) -> Callable:
    """Only the trainer knows whether the optimizer's state, which fits one frozen set, comes along."""

    def load_checkpoint(self: Any, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any) -> Any:
        model = freezes(self.get_model())
        if model is None or reset_optimizer:
            return stock(self, filename, reset_optimizer, *args, **kwargs)
        model.resumed_from = filename
        try:
            return stock(self, filename, reset_optimizer, *args, **kwargs)
        finally:
            model.resumed_from = None

    return load_checkpoint


def _keep_frozen(stock: Callable) -> Callable:
    """d x + (1 - d) x is not x in floating point: the average would drift away from what is frozen.

    ``skip_keys`` is fairseq's own list of what is copied, not averaged. Integers belong there, too.
    """

    def step(self: Any, new_model: Any, *args: Any, **kwargs: Any) -> None:
        model: Any = freezes(new_model)
        with bare_state():
            if model is not None:
                self.skip_keys = set(self.skip_keys) | _copied(model)
            stock(self, new_model, *args, **kwargs)

    return step


def _copied(model: Any) -> Set[str]:
    frozen = set(model.frozen_parameters)
    names = {alias for aliases in tied_names(model) if aliases[0] in frozen for alias in aliases}
    return names | {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}


def _tensors_only(stock: Callable) -> Callable:
    """The float32 copies of an average are averaged one by one, and saved as they are: the record has no place among
    them, nor has what a checkpoint leaves out (--store-frozen seed)."""

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        with bare_state():
            stock(self, *args, **kwargs)
        for name in getattr(freezes(self.model), "left_out_names", tuple)():
            self.fp32_params.pop(name, None)

    return build
