"""What it takes to make a tensor again, or any rows of it: a seed, a name, a shape and a rule."""

import math
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from fairseq_synth.modules.initial import Rule
from fairseq_synth.seeded import generator

KINDS = ("uniform", "normal", "constant")
PRECISIONS = ("float16", "bfloat16", "float32", "float64")


class Recipe(NamedTuple):
    """A tensor that can be drawn at will. ``name`` selects its stream.

    casts: element types that the float32 draw goes through, the last one being the tensor's own.
    """

    seed: int
    name: str
    shape: Tuple[int, ...]
    rule: Rule
    casts: Tuple[str, ...] = ("float32",)

    def rows(self, start: int, stop: int, device: Optional[torch.device] = None) -> Tensor:
        """Rows ``start`` .. ``stop - 1`` (along the first dimension) of :meth:`tensor`."""
        size = math.prod(self.shape[1:])
        out = torch.empty((stop - start) * size, dtype=torch.float32, device=device or torch.device("cpu"))
        kind, value, zero = self.rule
        if kind == "constant":
            out.fill_(value)
        else:
            draw = generator.uniform if kind == "uniform" else generator.normal
            draw(self.seed, self.name, value, start * size, out)
        out = out.view(stop - start, *self.shape[1:])
        if zero is not None and start <= zero < stop:
            out[zero - start] = 0
        for cast in self.casts:
            out = out.to(getattr(torch, cast))
        return out

    def tensor(self, device: Optional[torch.device] = None) -> Tensor:
        return self.rows(0, self.shape[0], device)

    def detach(self) -> Tensor:
        """Lets a recipe stand in a state dict where only its digest is wanted."""
        return self.tensor()

    def to_json(self) -> List[Any]:
        """What :func:`from_json` reads; seed and name are kept beside it."""
        return [list(self.shape), *self.rule, list(self.casts)]


def from_json(seed: int, name: str, entry: List[Any]) -> Recipe:
    """Raises ValueError for an entry that this version cannot draw."""
    shape, kind, value, zero_row, casts = entry
    if kind not in KINDS or not set(casts) <= set(PRECISIONS):
        raise ValueError(f"unknown recipe {kind} {casts}")
    return Recipe(int(seed), name, tuple(shape), Rule(kind, value, zero_row), tuple(casts))


def recipe_of(tensor: Tensor, draw: Recipe) -> Optional[Recipe]:
    """The recipe that gives exactly ``tensor``, None if there is none: ``draw`` in the tensor's precision, or through
    half precision (a model in float32 may hold what a checkpoint in half precision held)."""
    if tuple(tensor.shape) != draw.shape:
        return None
    tensor, own = tensor.detach().cpu(), str(tensor.dtype).replace("torch.", "")
    for casts in ((own,), ("float16", own), ("bfloat16", own)):
        found = draw._replace(casts=casts)
        if torch.equal(found.tensor(), tensor):
            return found
    return None
