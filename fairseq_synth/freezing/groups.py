"""Which component a parameter belongs to, and what the words of ``--freeze`` select.

Groups follow Bogoychev 2021 ("Not all parameters are born equal", arXiv 2010.11859): embeddings, attention, ffn.
Names are matched by whole parts: ``encoder.layers.1`` never means layer 10.

Modules say themselves what they are, in two attributes:

    component      what their parameters count as, in the table and for --freeze: one component for each parameter, that
                   of the innermost module that says one. fairseq's own modules are known by their names (PARTS).
    freeze_group   one more word that selects their parameters, which stay part of their component: a scorer is part of
                   its attention, and ``--freeze scorer`` freezes nothing else.
"""

import difflib
import re
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Set, Tuple

import regex
from torch import nn

from fairseq_synth.errors import UsageError

# component -> names of the modules that hold it, for modules that do not say it themselves
PARTS: Dict[str, Set[str]] = {
    "self_attention": {"self_attn"},
    "cross_attention": {"encoder_attn"},
    "ffn": {"fc1", "fc2", "feed_forward"},
    "output": {"output_projection", "adaptive_softmax", "project_out_dim"},
    "embeddings": {"embed_tokens", "embed_positions", "positions", "project_in_dim"},
}
PATIENCE = 5  # seconds for one pattern on one name
# what a word of --freeze stands for, beside the components and freeze_groups that modules name
GROUPS: Dict[str, Set[str]] = {
    "embeddings": {"embeddings", "output"},
    "attention": {"self_attention", "cross_attention"},
    "ffn": {"ffn"},
    "self_attention": {"self_attention"},
    "cross_attention": {"cross_attention"},
    "queries_keys": {"queries_keys"},
    "scorer": {"scorer"},
    "output": {"output"},
    "layer_norm": {"layer_norm"},
    "span": {"span"},
}
# a row each in the log's table, in this order; components that only a module names come before "other"
COMPONENTS = ("embeddings", "output", "self_attention", "cross_attention", "ffn", "layer_norm", "span", "other")


class Membership(NamedTuple):
    """Of one parameter. component: its row of the table; groups: everything that selects it, the component included."""

    component: str
    groups: FrozenSet[str]


class Item(NamedTuple):
    """One word of ``--freeze``: its text, and whether a (name, groups) is meant."""

    text: str
    selects: Callable[[str, FrozenSet[str]], bool]


def memberships(model: nn.Module) -> Dict[str, Membership]:
    """Of every parameter; a tied tensor appears under each of its names."""
    stated: Dict[str, Tuple[Optional[str], FrozenSet[str]]] = {}  # module's path -> component, groups
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        component, groups = stated.get(path.rpartition(".")[0], (None, frozenset())) if path else (None, frozenset())
        component = _component_of_module(module) or component
        groups = groups | _groups_of_module(module)
        stated[path] = component, groups
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            full = f"{path}.{name}" if path else name
            own = component or _component_of_path(full)
            found[full] = Membership(own, groups | {own} | _groups_of_path(full))
    return found


def components(model: nn.Module) -> Dict[str, str]:
    """The component of every parameter."""
    return {name: of.component for name, of in memberships(model).items()}


def ordered(found: Set[str]) -> List[str]:
    """Components in the order of the table."""
    return [*(c for c in COMPONENTS[:-1] if c in found), *sorted(found - set(COMPONENTS)), *({"other"} & found)]


def _component_of_module(module: nn.Module) -> Optional[str]:
    return "layer_norm" if "LayerNorm" in type(module).__name__ else getattr(module, "component", None)


def _groups_of_module(module: nn.Module) -> Set[str]:
    """Its own word and those of the classes that it is made from: a scorer with one more is still a scorer."""
    said = [vars(module).get("freeze_group"), *(vars(cls).get("freeze_group") for cls in type(module).__mro__)]
    return {group for group in said if group}


def _component_of_path(path: str) -> str:
    parts = set(path.split("."))
    return next((component for component, modules in PARTS.items() if modules & parts), "other")


def _groups_of_path(path: str) -> Set[str]:
    """Query and key projections are ordinary linear layers, fairseq's too."""
    parts = path.split(".")
    inside = {"self_attn", "encoder_attn"} & set(parts)
    return {"queries_keys"} if inside and {"q_proj", "k_proj"} & set(parts) else set()


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
    groups = {name: of.groups for name, of in memberships(model).items()}
    known = set(GROUPS).union(*groups.values()) - {"other"}
    items = parse(freeze, known)
    for item in items:
        if not any(item.selects(name, of) for name, of in groups.items()):
            raise UsageError(_nothing(freeze, item.text, set().union(*groups.values()), list(groups)))
    chosen: List[str] = []
    for aliases in tied_names(model):
        inside = [name for name in aliases if any(item.selects(name, groups[name]) for item in items)]
        if inside and len(inside) < len(aliases):
            raise UsageError(_shared(freeze, inside[0], [name for name in aliases if name not in inside]))
        chosen += aliases[:1] if inside else ()
    if len(chosen) == len(tied_names(model)):
        raise UsageError(f"--freeze {freeze}: freezes every parameter, nothing is left to train; leave a group out")
    return chosen


def parse(freeze: str, known: Set[str]) -> List[Item]:
    """Words between commas or spaces; a comma inside braces belongs to its pattern. known: words that name groups.
    Raises UsageError."""
    words = [word for word in re.split(r"[\s,]+(?![^{]*\})", freeze) if word]
    if not words:
        raise UsageError(f"--freeze '{freeze}': names nothing; give groups such as attention,ffn, or drop --freeze")
    return [Item(word, _selector(freeze, word, known)) for word in words]


def _selector(freeze: str, word: str, known: Set[str]) -> Callable[[str, FrozenSet[str]], bool]:
    if word.startswith("re:"):
        try:
            pattern = regex.compile(re.compile(word[3:]).pattern)
        except re.error as error:
            raise UsageError(f"--freeze {freeze}: '{word[3:]}' is no regular expression: {error}") from error
        return lambda name, groups: _matches(freeze, pattern, name)
    path, _, last = word.rpartition(".")
    if last in known:
        meant = GROUPS.get(last, {last})
        return lambda name, groups: bool(meant & groups) and _below(name, path)
    return lambda name, groups: _below(name, word)


def _matches(freeze: str, pattern: Any, name: str) -> bool:
    """Raises UsageError for a pattern that would take for ever."""
    try:
        return pattern.fullmatch(name, timeout=PATIENCE) is not None
    except TimeoutError as error:
        raise UsageError(
            f"--freeze {freeze}: '{pattern.pattern}' does not come to an end on {name}: repeat nothing that repeats"
        ) from error


def _below(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(path + ".")


def _nothing(freeze: str, word: str, found: Set[str], names: List[str]) -> str:
    groups = [group for group, members in GROUPS.items() if members & found]
    groups += sorted(found - set(GROUPS) - set(COMPONENTS))
    if word.startswith("re:"):
        inside = regex.compile(word[3:])
        found_inside = any(inside.search(name, timeout=PATIENCE) for name in names)
        hint = f"; re:.*{word[3:]}.* matches inside of names" if found_inside else ""
        return f"--freeze {freeze}: '{word[3:]}' matches no parameter's whole name, such as {names[0]}{hint}"
    last = word.rpartition(".")[2]
    close = difflib.get_close_matches(last, groups, n=1) if last not in GROUPS else []
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"--freeze {freeze}: '{word}' matches no parameter of this model{hint}; there are the groups "
        f"{', '.join(groups)}, alone or below a module (decoder.ffn), modules (decoder.layers.1) and re:PATTERN"
    )


def _shared(freeze: str, name: str, others: List[str]) -> str:
    return (
        f"--freeze {freeze}: {name} is the same tensor as {', '.join(others)}; freeze them together "
        f"(--freeze {freeze},{','.join(others)}), or do not tie them"
    )
