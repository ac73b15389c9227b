"""Places of fairseq's training where others may step in: fairseq has none there.

The lists hold what is called at each of them, in the order of registration. Where a list is empty, fairseq does what
it does without this package. A model may be wrapped (DistributedDataParallel and its kin): see :func:`unwrapped`.
"""

import contextlib
import inspect
from typing import Any, Callable, ContextManager, Dict, List, Optional, Tuple

from torch import Tensor, nn

from .patching import replace

# (trainer, name of the checkpoint file, whether its optimizer state is left alone) -> entered while it is loaded
AROUND_LOADING: List[Callable[[Any, str, bool], ContextManager]] = []

# (moving average, model) -> entered while the average takes a step towards the model (--ema-decay)
AROUND_AVERAGE_STEP: List[Callable[[Any, Any], ContextManager]] = []

# (moving average) -> entered while its float32 copies are made (--ema-fp32)
AROUND_AVERAGE_COPY: List[Callable[[Any], ContextManager]] = []

# (model, loss of a batch, sample size) -> the loss to go on with. The loss is a tensor of one element, summed over the
# batch; it will be divided by the sample size. Called in training and validation; what is logged stays as it is.
AFTER_LOSS: List[Callable[[Any, Tensor, Any], Tensor]] = []


def unwrapped(model: Any) -> Any:
    """The model inside fairseq's wrappers for data parallel training, which are modules themselves."""
    while isinstance(model, nn.Module) and hasattr(model, "module"):
        model = model.module
    return model


def step_in_around_loading() -> bool:
    """Nothing tells a model that the optimizer state of its checkpoint will be loaded, too.

    All fairseq versions: `Trainer.load_checkpoint` alone knows. A frozen set must be the one that the optimizer was
    made for.
    """
    from fairseq.trainer import Trainer

    def stepping_in(stock: Callable) -> Callable:
        def load_checkpoint(self: Any, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any) -> Any:
            with _all(AROUND_LOADING, self, filename, reset_optimizer):
                return stock(self, filename, reset_optimizer, *args, **kwargs)

        return load_checkpoint

    replace(Trainer, "load_checkpoint", stepping_in)
    return True


def step_in_around_averages() -> bool:
    """A moving average (--ema-decay) drifts away from frozen weights, and averages what is no weight.

    All fairseq versions: d x + (1 - d) x is not x in floating point, and every entry of a state dict is averaged.
    """
    from fairseq.models.ema.ema import EMA

    def around_step(stock: Callable) -> Callable:
        def step(self: Any, new_model: Any, *args: Any, **kwargs: Any) -> None:
            with _all(AROUND_AVERAGE_STEP, self, new_model):
                stock(self, new_model, *args, **kwargs)

        return step

    def around_copy(stock: Callable) -> Callable:
        def build_fp32_params(self: Any, *args: Any, **kwargs: Any) -> None:
            with _all(AROUND_AVERAGE_COPY, self):
                stock(self, *args, **kwargs)

        return build_fp32_params

    replace(EMA, "_step_internal", around_step)
    replace(EMA, "build_fp32_params", around_copy)
    return True


def step_in_after_loss() -> bool:
    """A model cannot add a term to its loss: criterions ask it for different things, or for nothing.

    All fairseq versions: masked_lm never calls get_normalized_probs, adaptive_loss neither. Every criterion is a
    module, so a forward hook on each sees the loss of every batch.
    """
    from fairseq.criterions import FairseqCriterion

    def with_hook(stock: Callable) -> Callable:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            stock(self, *args, **kwargs)
            self.register_forward_hook(_pass_loss_on, with_kwargs=True)

        return __init__

    replace(FairseqCriterion, "__init__", with_hook)
    return True


def _pass_loss_on(criterion: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], output: Any) -> Optional[Any]:
    """None leaves the output as it is: of criterions that return something else, and of losses of single tokens."""
    if not AFTER_LOSS or not isinstance(output, tuple) or len(output) != 3:
        return None
    loss, sample_size, logging_output = output
    given = inspect.signature(criterion.forward).bind(*args, **kwargs).arguments
    if not isinstance(loss, Tensor) or loss.numel() != 1 or "model" not in given or not given.get("reduce", True):
        return None
    for step_in in AFTER_LOSS:
        loss = step_in(given["model"], loss, sample_size)
    return loss, sample_size, logging_output


@contextlib.contextmanager
def _all(seam: List[Callable[..., ContextManager]], *args: Any) -> Any:
    with contextlib.ExitStack() as stack:
        for step_in in seam:
            stack.enter_context(step_in(*args))
        yield
