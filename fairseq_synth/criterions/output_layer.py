"""The features that a model's decoder makes, and the linear layer that turns them into logits."""

import inspect
from typing import Any, Callable, List, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_synth.compat.training_seams import unwrapped
from fairseq_synth.criterions.chunked_loss import Losses
from fairseq_synth.errors import UsageError
from fairseq_synth.modules.products import Linear

TRY = 2  # rows of features that the output layer is tried with


class OutputLayer(NamedTuple):
    """logits = features @ weight.t() + bias. faster: by this package's Linear."""

    weight: Tensor
    bias: Optional[Tensor]
    faster: bool


def find_output_layer(decoder: nn.Module) -> OutputLayer:
    projection: Any = decoder.output_projection
    return OutputLayer(projection.weight, projection.bias, type(projection) is Linear)


def check(model: Any, criterion: str) -> None:
    """Raise UsageError unless the model's output layer is one linear layer, and its features can be asked for."""
    if _sharded(model):
        raise UsageError(f"--criterion {criterion}: not with --ddp-backend fully_sharded; take another backend")
    model = unwrapped(model)
    name, decoder = type(model).__name__, getattr(model, "decoder", None)
    instead = f"take --criterion {criterion.replace('chunked_', '')}"
    if getattr(decoder, "adaptive_softmax", None) is not None:
        raise UsageError(
            f"--criterion {criterion}: {name} has an adaptive softmax, which never makes all logits; leave out the "
            f"cutoff, or take --criterion adaptive_loss"
        )
    projection = getattr(decoder, "output_projection", None)
    if decoder is None or not _gives_features(model, decoder):
        raise UsageError(f"--criterion {criterion}: {name} has no features_only=True; {instead}")
    if not _is_linear(decoder, projection):
        raise UsageError(f"--criterion {criterion}: the output of {name} is not one linear layer; {instead}")


def _sharded(model: Any) -> bool:
    """Whether a wrapper holds only a part of the output layer on this worker."""
    while model is not None:
        if any("FullySharded" in kind.__name__ for kind in type(model).__mro__):
            return True
        model = getattr(model, "module", None)
    return False


def _gives_features(model: Any, decoder: Any) -> bool:
    """An encoder that is handed the same options must not meet this one."""
    taken = inspect.signature(model.forward).parameters
    passes_on = any(p.kind is p.VAR_KEYWORD for p in taken.values()) and not hasattr(model, "encoder")
    in_decoder = "features_only" in inspect.signature(decoder.forward).parameters
    return in_decoder and (passes_on or "features_only" in taken)


@torch.no_grad()
def _is_linear(decoder: Any, projection: Any) -> bool:
    """Tried, not asked for its class: layers that scale, mask or add to the logits look alike."""
    weight, bias = getattr(projection, "weight", None), getattr(projection, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not hasattr(decoder, "output_layer"):
        return False
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(TRY, 1, weight.size(1), generator=generator).to(weight)
    with torch.autocast(weight.device.type, enabled=False):
        expected = F.linear(features, weight, bias).float()
        found = decoder.output_layer(features)
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    allowed = tolerance * (expected.abs() + expected.std())
    return bool(((found.float() - expected).abs() <= allowed).all())


def losses_of(model: Any, net_input: Any, losses: Callable[[Tensor], Losses]) -> Losses:
    """``losses(features)`` of ``model(**net_input)``.

    They are computed inside the decoder's call, and the model returns the loss in place of the logits: so wrappers
    for data parallel training see all parameters used in the model's own forward.
    """
    found: List[Losses] = []

    def replace_logits(module: nn.Module, inputs: Any, output: Any) -> Any:
        found.append(losses(output[0]))
        return (found[0].loss, *output[1:])

    hook = unwrapped(model).decoder.register_forward_hook(replace_logits)
    try:
        output = model(**net_input, features_only=True)
    finally:
        hook.remove()
    return found[0]._replace(loss=output[0])
