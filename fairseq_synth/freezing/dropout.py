"""Dropout inside frozen parts: on, as in the model without ``--freeze``, unless ``--frozen-dropout remove``.

A dropout belongs to the parameters that it works between: that on attention weights to its attention, that after the
activation to both feed-forward matrices, that on the embeddings to them. The dropout before a residual connection
serves attention and feed-forward alike, so it belongs to the whole layer, layer norms included.
"""

from typing import Any, Iterator, List, Tuple

from fairseq.modules import FairseqDropout
from torch import nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.span_attention import SpanAttention

EMBEDDINGS = ("embed_tokens", "embed_positions", "layernorm_embedding", "project_in_dim")


def switch_off(model: nn.Module, freeze: str) -> List[str]:
    """Set dropout to 0 where all its parameters are frozen; returns the modules concerned.

    Raises UsageError if there is no such dropout.
    """
    found = []
    for name, holder, attribute, owners in list(_dropouts(model)):
        if getattr(holder, attribute) > 0 and _all_frozen(owners):
            setattr(holder, attribute, 0.0)
            found.append(name)
    if not found:
        raise UsageError(
            f"--frozen-dropout remove: no dropout of this model lies inside --freeze {freeze} (a frozen attention, "
            f"feed-forward, embedding or whole layer with a dropout above 0); drop the option"
        )
    return found


def _dropouts(model: nn.Module) -> Iterator[Tuple[str, Any, str, List[nn.Module]]]:
    """(name, module with the probability, its attribute, modules whose parameters it works between)."""
    for path, module in model.named_modules():
        if isinstance(module, SpanAttention):
            yield path, module, "dropout", [module]
        for name, child in module.named_children():
            if isinstance(child, (FairseqDropout, nn.Dropout)) and name != "embedding_dropout":
                yield f"{path}.{name}", child, "p", _owners(name, module)


def _owners(name: str, parent: Any) -> List[nn.Module]:
    if name == "activation_dropout_module":
        return [parent.fc1, parent.fc2]
    if name == "dropout_module" and hasattr(parent, "embed_tokens"):
        return [m for m in (getattr(parent, n, None) for n in EMBEDDINGS) if isinstance(m, nn.Module)]
    return [parent]


def _all_frozen(owners: List[nn.Module]) -> bool:
    """The few numbers of a learned span do not count."""
    inner = [m for owner in owners for m in owner.modules()]
    spans = {id(p) for m in inner if getattr(m, "component", None) == "span" for p in m.parameters()}
    parameters = [p for owner in owners for p in owner.parameters() if id(p) not in spans]
    return bool(parameters) and not any(p.requires_grad for p in parameters)
