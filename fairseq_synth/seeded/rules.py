"""By which rule each frozen parameter is drawn.

Those of Bogoychev 2021 (Marian's ordinary initialisation): matrices Glorot-uniform, U(+-sqrt(6 / (in + out))), biases
zero, embeddings U(+-sqrt(3 / dim)), whose rows have length 1 on average and are multiplied by sqrt(dim) when looked up,
as fairseq does too. Layer norms are the identity. fairseq's own initialisation differs in three places: query, key and
value projections get the gain 1/sqrt(2), embeddings (and an untied output matrix, here a matrix like any other) come
from a normal distribution, and the biases of linear layers that fairseq leaves to PyTorch are not zero.

What the paper does not have starts as it does without --frozen-init, drawn from the stream of the seed: maps of random
scorers by --synthesizer-init, persistent vectors, relative positions, and what starts constant (mixtures, spans).
"""

import math
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.models.sequential_decoder import SequentialDecoder
from fairseq_synth.modules.persistent_memory import PersistentMemory
from fairseq_synth.modules.scorers.base import Scorer
from fairseq_synth.modules.scorers.factorized_random import FactorizedRandomScorer
from fairseq_synth.modules.scorers.random import RandomScorer
from fairseq_synth.seeded.recipe import Recipe, Rule

# (module that holds the parameter, module that holds that one, name of the parameter in its module)
Owner = Tuple[nn.Module, Optional[nn.Module], str]


def recipes(model: nn.Module, names: List[str], seed: int, map_init: str = "glorot") -> Dict[str, Recipe]:
    """name -> recipe. Raises UsageError for a parameter that no rule covers."""
    owners = _owners(model)
    parameters = dict(model.named_parameters())
    found = {}
    for name in names:
        tensor = parameters[name]
        rule = _rule(owners[id(tensor)], tensor.detach(), map_init)
        if rule is None:
            raise UsageError(
                f"--frozen-init {seed}: there is no rule for drawing {name}; leave it out of --freeze, or drop "
                f"--frozen-init to freeze it as fairseq initialises it"
            )
        found[name] = Recipe(seed, name, tuple(tensor.shape), rule)
    return found


def _owners(model: nn.Module) -> Dict[int, List[Owner]]:
    """id of a parameter -> where it is used; tied ones in several places."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: Dict[int, List[Owner]] = {}
    for path, module in modules.items():
        parent = modules.get(path.rpartition(".")[0]) if path else None
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append((module, parent, name))
    return found


def _rule(owners: List[Owner], tensor: Tensor, map_init: str) -> Optional[Rule]:
    for module, parent, _ in owners:
        if isinstance(module, nn.Embedding):  # also where an output projection shares it
            return _embedding(module, parent, tensor)
    module, _, name = owners[0]
    if isinstance(module, (RandomScorer, FactorizedRandomScorer)):
        return _map(module, tensor, map_init)
    if isinstance(module, PersistentMemory):
        return Rule("normal", 1 / (module.key_scale if name == "key" else module.value_scale))
    if isinstance(module, SequentialDecoder):
        return Rule("normal", 1.0)
    if name == "bias":
        return Rule("constant", 0.0)
    if not isinstance(module, nn.Linear):  # whose values may not be there yet
        if _constant(tensor):
            return Rule("constant", tensor.flatten()[0].item())
        if tensor.dim() < 2:
            return None
    return Rule("uniform", _glorot_bound(module, tensor))


def _embedding(module: nn.Embedding, parent: Any, tensor: Tensor) -> Rule:
    # the sequential language models without adaptive bands look embeddings up unscaled
    unscaled = isinstance(parent, SequentialDecoder) and parent.embedding_scale == 1.0
    return Rule("uniform", math.sqrt(3.0) if unscaled else math.sqrt(3.0 / tensor.size(1)), module.padding_idx)


def _map(module: nn.Module, tensor: Tensor, init: str) -> Rule:
    """As init_map() does it, for maps H x N x M."""
    heads, rows, columns = tensor.shape
    if init == "glorot":
        return Rule("uniform", math.sqrt(6.0 / (columns * (rows + heads))))
    variance = columns**-0.5 if isinstance(module, FactorizedRandomScorer) else 1.0
    return Rule("normal", math.sqrt(variance))


def _glorot_bound(module: nn.Module, tensor: Tensor) -> float:
    """Scorers keep one matrix per head; a convolution's receptive field counts into both fans."""
    if isinstance(module, Scorer):
        return math.sqrt(6.0 / (tensor.size(-2) + tensor.size(-1)))
    field = tensor[0, 0].numel()
    return math.sqrt(6.0 / ((tensor.size(0) + tensor.size(1)) * field))


def _constant(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool(torch.all(tensor == tensor.flatten()[0]))
