"""Two cases in which frozen parameters would silently take the gradients of others along."""

from typing import Any

import torch
from torch import Tensor, nn


def keep_gradients(model: nn.Module) -> None:
    """Install what a model with frozen parameters needs; call after freezing.

    - ``--checkpoint-activations``: fairseq's checkpointing computes gradients only if an *input* of the layer needs
      one. Above frozen embeddings none does, and the layer's own parameters would not train.
    - ``--encoder-layerdrop`` and ``--decoder-layerdrop``: where every layer was dropped, nothing that trains may be
      left, and fairseq's backward pass would fail instead of doing nothing.
    """
    model.register_forward_hook(_connect_output)
    for layer in model.modules():
        if hasattr(layer, "precheckpoint_forward") and any(p.requires_grad for p in layer.parameters()):
            layer.register_forward_pre_hook(_connect_input)


def _connect_input(layer: nn.Module, inputs: Any) -> Any:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if not torch.is_grad_enabled() or any(x.requires_grad for x in tensors):
        return None
    return (inputs[0].detach().requires_grad_(), *inputs[1:])


def _connect_output(model: nn.Module, inputs: Any, output: Any) -> Any:
    x = output[0]
    if not (model.training and torch.is_grad_enabled()) or x.requires_grad:
        return None
    trained = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    return (x + 0 * trained.sum().to(x.dtype), *output[1:])
