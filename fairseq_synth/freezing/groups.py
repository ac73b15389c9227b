"""Which component a parameter belongs to, and what the words of ``--freeze`` select.

Groups follow Bogoychev 2021 ("Not all parameters are born equal", arXiv 2010.11859): embeddings, attention, ffn.
Names are matched by whole parts: ``encoder.layers.1`` never means layer 10.
"""

import difflib
import re
from typing import Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from torch import nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.adaptive_span import AdaptiveSpan
from fairseq_synth.modules.persistent_memory import PersistentMemory

# component -> names of the modules that hold it; every parameter belongs to exactly one component
PARTS: Dict[str, Set[str]] = {
    "self_attention": {"self_attn"},
    "cross_attention": {"encoder_attn"},
    "ffn": {"fc1", "fc2", "feed_forward"},
    "output": {"output_projection", "adaptive_softmax", "project_out_dim"},
    "embeddings": {"embed_tokens", "embed_positions", "positions", "project_in_dim"},
}
# what a word of --freeze stands for
GROUPS: Dict[str, Set[str]] = {
    "embeddings": {"embeddings", "output"},
    "attention": {"self_attention", "cross_attention"},
    "ffn": {"ffn"},
    "self_attention": {"self_attention"},
    "cross_attention": {"cross_attention"},
    "output": {"output"},
    "layer_norm": {"layer_norm"},
    "span": {"span"},
}
# a row each in the log's table, in this order
COMPONENTS = ("embeddings", "output", "self_attention", "cross_attention", "ffn", "layer_norm", "span", "other")


class Item(NamedTuple):
    """One word of ``--freeze``: its text, and whether a (name, component) is meant."""

    text: str
    selects: Callable[[str, str], bool]


def components(model: nn.Module) -> Dict[str, str]:
    """The component of every parameter; a tied tensor appears under each of its names."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kind = _component_of_module(module)
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            path = f"{prefix}.{name}" if prefix else name
            found[path] = kind or _component_of_path(path)
    return found


def _component_of_module(module: nn.Module) -> Optional[str]:
    if isinstance(module, AdaptiveSpan):
        return "span"
    if isinstance(module, PersistentMemory):  # it does the work of the feed-forward sublayers
        return "ffn"
    return "layer_norm" if "LayerNorm" in type(module).__name__ else None


def _component_of_path(path: str) -> str:
    parts = set(path.split("."))
    return next((component for component, modules in PARTS.items() if modules & parts), "other")


def tied_names(model: nn.Module) -> List[Tuple[str, ...]]:
    """The names of every parameter, in the order of the model; more than one where tensors are shared."""
    names: Dict[int, List[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [tuple(aliases) for aliases in names.values()]


def select(model: nn.Module, freeze: str) -> List[str]:
    """The parameters that ``freeze`` names, each by its first name, in the order of the model.

    Raises UsageError for a word that selects nothing, for half of a shared tensor, and for all parameters.
    """
    kinds = components(model)
    items = parse(freeze)
    for item in items:
        if not any(item.selects(name, kind) for name, kind in kinds.items()):
            raise UsageError(_nothing(freeze, item.text, set(kinds.values())))
    chosen: List[str] = []
    for aliases in tied_names(model):
        inside = [name for name in aliases if any(item.selects(name, kinds[name]) for item in items)]
        if inside and len(inside) < len(aliases):
            raise UsageError(_shared(freeze, inside[0], [name for name in aliases if name not in inside]))
        chosen += aliases[:1] if inside else ()
    if len(chosen) == len(tied_names(model)):
        raise UsageError(f"--freeze {freeze}: freezes every parameter, nothing is left to train; leave a group out")
    return chosen


def parse(freeze: str) -> List[Item]:
    """Words between commas or spaces; a comma inside braces belongs to its pattern. Raises UsageError."""
    words = [word for word in re.split(r"[\s,]+(?![^{]*\})", freeze) if word]
    if not words:
        raise UsageError(f"--freeze '{freeze}': names nothing; give groups such as attention,ffn, or drop --freeze")
    return [Item(word, _selector(freeze, word)) for word in words]


def _selector(freeze: str, word: str) -> Callable[[str, str], bool]:
    if word.startswith("re:"):
        try:
            pattern = re.compile(word[3:])
        except re.error as error:
            raise UsageError(f"--freeze {freeze}: '{word[3:]}' is no regular expression: {error}") from error
        return lambda name, kind: pattern.fullmatch(name) is not None
    path, _, last = word.rpartition(".")
    if last in GROUPS:
        return lambda name, kind: kind in GROUPS[last] and _below(name, path)
    return lambda name, kind: _below(name, word)


def _below(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(path + ".")


def _nothing(freeze: str, word: str, kinds: Set[str]) -> str:
    groups = [group for group, members in GROUPS.items() if members & kinds]
    if word.startswith("re:"):
        return f"--freeze {freeze}: '{word[3:]}' matches no parameter's whole name, such as decoder.layers.0.fc1.weight"
    last = word.rpartition(".")[2]
    close = difflib.get_close_matches(last, groups, n=1) if last not in GROUPS else []
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"--freeze {freeze}: '{word}' matches no parameter of this model{hint}; there are the groups "
        f"{', '.join(groups)}, alone or below a module (decoder.ffn), modules (decoder.layers.1) and re:PATTERN"
    )


def _shared(freeze: str, name: str, others: List[str]) -> str:
    return (
        f"--freeze {freeze}: {name} is the same tensor as {', '.join(others)}; freeze all of its uses "
        f"(embeddings), or do not tie them"
    )
