"""--frozen-on-the-fly: a model whose frozen linear layers are SeededLinear, built without holding their weights."""

from typing import Any, Mapping

import torch
from torch import nn

from fairseq_synth.errors import UsageError
from fairseq_synth.freezing.groups import tied_names
from fairseq_synth.modules.products import Linear
from fairseq_synth.seeded.linear import SeededLinear
from fairseq_synth.seeded.recipe import Recipe

META = torch.device("meta")
PLAIN = (nn.Linear, Linear)


def drop_weights(layer: nn.Module) -> None:
    """Drop the weights of a layer that was just built, so that no more than one layer's are held at a time.

    Their shapes stay; :func:`take_matrices_away` gives room to those that a checkpoint will fill.
    """
    for module in layer.modules():
        if isinstance(module, nn.Linear) and type(module) in PLAIN:
            module.weight = nn.Parameter(torch.empty_like(module.weight, device=META))


def take_matrices_away(model: nn.Module, recipes: Mapping[str, Recipe], freeze: str) -> None:
    """A SeededLinear for each linear layer whose weight is frozen and its own. UsageError if there is none."""
    alone = {names[0] for names in tied_names(model) if len(names) == 1}
    modules = dict(model.named_modules())
    found = 0
    for path, module in modules.items():
        name = f"{path}.weight"
        if type(module) not in PLAIN:
            continue
        if name in recipes and name in alone:
            _replace(model, path, SeededLinear(recipes[name], module.bias, faster=type(module) is Linear))
            found += 1
        elif module.weight.device == META:
            module.weight = nn.Parameter(torch.empty_like(module.weight, device="cpu"))
    if not found:
        raise UsageError(f"--frozen-on-the-fly: --freeze {freeze} freezes no linear layer; drop it")


def _replace(model: Any, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
