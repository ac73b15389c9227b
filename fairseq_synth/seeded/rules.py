"""By which rule each frozen parameter is drawn.

Those of Bogoychev 2021 (Marian's ordinary initialisation): matrices Glorot-uniform, U(+-sqrt(6 / (in + out))), biases
zero, embeddings U(+-sqrt(3 / dim)), whose rows have length 1 on average and are multiplied by sqrt(dim) when looked up,
as fairseq does too. Layer norms are the identity. fairseq's own initialisation differs in three places: query, key and
value projections get the gain 1/sqrt(2), embeddings (and an untied output matrix, here a matrix like any other) come
from a normal distribution, and the biases of linear layers that fairseq leaves to PyTorch are not zero.

What the paper does not have starts as it does without --frozen-init, drawn from the stream of the seed, by the rule
that its module states (a method ``rule(name)``): scorers, persistent vectors, relative positions. What starts constant
needs no rule.
"""

import math
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.initial import ZEROS, Rule
from fairseq_synth.seeded.recipe import Recipe

Use = Tuple[nn.Module, str]  # the module that holds a parameter, and its name there


def recipes(model: nn.Module, names: List[str], seed: int) -> Dict[str, Recipe]:
    """name -> recipe. Raises UsageError for a parameter that no rule covers."""
    uses, parameters = _uses(model), dict(model.named_parameters())
    found = {}
    for name in names:
        tensor = parameters[name]
        rule = _rule(uses[id(tensor)], tensor.detach())
        if rule is None:
            raise UsageError(
                f"--frozen-init {seed}: there is no rule for drawing {name}; give its module a method rule(name), "
                f"leave it out of --freeze, or drop --frozen-init to freeze it as it is initialised"
            )
        found[name] = Recipe(seed, name, tuple(tensor.shape), rule)
    return found


def _uses(model: nn.Module) -> Dict[int, List[Use]]:
    """id of a parameter -> where it is used; tied ones in several places."""
    found: Dict[int, List[Use]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append((module, name))
    return found


def _rule(uses: List[Use], tensor: Tensor) -> Optional[Rule]:
    stated = [module.rule(name) for module, name in uses if hasattr(module, "rule")]  # type: ignore[operator]
    rule = next((rule for rule in stated if rule is not None), None)
    if rule is not None:
        return rule
    for module, _ in uses:
        if isinstance(module, nn.Embedding):  # also where an output projection shares it
            return Rule("uniform", math.sqrt(3.0 / tensor.size(1)), module.padding_idx)
    module, name = uses[0]
    if name == "bias":
        return ZEROS
    if isinstance(module, nn.Linear):  # whose values may not be there yet
        return Rule("uniform", _glorot_bound(tensor))
    if _constant(tensor):
        return Rule("constant", tensor.flatten()[0].item())
    if stated or tensor.dim() < 2:  # where a module states rules, but none for this parameter, none is guessed
        return None
    return Rule("uniform", _glorot_bound(tensor))


def _glorot_bound(tensor: Tensor) -> float:
    """A convolution's receptive field counts into both fans."""
    field = tensor[0, 0].numel()
    return math.sqrt(6.0 / ((tensor.size(0) + tensor.size(1)) * field))


def _constant(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool(torch.all(tensor == tensor.flatten()[0]))
