"""Components frozen at their initial values: which parameters they are, and proof that they do not move."""

from typing import List

from torch import nn

from fairseq_synth.freezing.digest import digest

__all__ = ["digest", "frozen_names"]


def frozen_names(model: nn.Module) -> List[str]:
    """State-dict names of what ``--freeze`` froze, in the order of the model's parameters; tied tensors once.

    A tied tensor goes by the first of its names (of shared embeddings: ``encoder.embed_tokens.weight``). Empty for
    a model without ``--freeze``.
    """
    return list(getattr(model, "frozen_parameters", ()))
