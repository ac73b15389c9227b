"""Spec strings: what ``--encoder-self-attention`` and its sisters accept.

random                      a scorer, in every layer
random+dot_product          a learned mixture, in every layer
random:2|dot_product:6      by heads: here for eight; without numbers they are shared out evenly
dot_product*2,random*4      layer by layer, from the bottom: here for six layers

``,`` binds least, then ``|``, then ``+``.
"""

import difflib
from typing import Any, List, NamedTuple, Optional, Tuple

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.scorers.base import SCORERS, AttentionConfig, Scorer, build_scorer, scorer_names
from fairseq_synth.modules.scorers.heads import Heads, shared_out
from fairseq_synth.modules.scorers.mixture import Mixture


class Group(NamedTuple):
    """Heads of one kind. names: one scorer, or those of a mixture; heads: how many, None where that is not said."""

    names: Tuple[str, ...]
    heads: Optional[int] = None


class LayerSpec(NamedTuple):
    """The scorers of one layer."""

    groups: Tuple[Group, ...]

    @property
    def names(self) -> List[str]:
        """All scorers in it."""
        return [name for group in self.groups for name in group.names]

    @property
    def is_dot_product(self) -> bool:
        """Whether it is what fairseq has, and nothing else."""
        return self.names == ["dot_product"]

    def counts(self, heads: int) -> Tuple[int, ...]:
        """Heads of every group."""
        given = tuple(group.heads for group in self.groups if group.heads is not None)
        return given or shared_out([str(group) for group in self.groups], heads)


def parse_spec(spec: str, layers: int, option: str, heads: Optional[int] = None) -> List[LayerSpec]:
    """The scorers of each layer. heads: of every layer (default: not compared with the spec's numbers).

    Raises UsageError, naming ``option``, for an unknown scorer, an empty entry, a bad count, heads that do not add up,
    or a list that does not name exactly ``layers`` layers.
    """
    entries = [_parse_entry(entry.strip(), option, spec) for entry in str(spec).split(",")]
    if len(entries) == 1 and "*" not in str(spec):
        entries = [(entries[0][0], layers)]
    total = sum(count for _, count in entries)
    if total != layers:  # before a list is made: its length is anybody's
        raise UsageError(
            f"{option} {spec}: names {total} layers, but the model has {layers}; the counts must add up to {layers}"
        )
    for layer, _ in entries:
        _check_heads(layer, heads, option, spec)
    return [layer for layer, count in entries for _ in range(count)]


def _parse_entry(entry: str, option: str, spec: str) -> Tuple[LayerSpec, int]:
    groups, star, count = entry.partition("*")
    if star and not _is_count(count):
        raise UsageError(f"{option} {spec}: '{entry}' wants a number of layers (1 or more) after '*'")
    parsed = LayerSpec(tuple(_parse_group(group.strip(), entry, option, spec) for group in groups.split("|")))
    return parsed, int(count) if star else 1


def _parse_group(text: str, entry: str, option: str, spec: str) -> Group:
    mixture, colon, count = text.partition(":")
    if colon and not _is_count(count):
        raise UsageError(f"{option} {spec}: '{text}' wants a number of heads (1 or more) after ':'")
    names = tuple(name.strip() for name in mixture.split("+"))
    for name in names:
        _check_name(name, names, mixture, entry, option, spec)
    return Group(names, int(count) if colon else None)


def _is_count(text: str) -> bool:
    text = text.strip()
    return text.isdecimal() and len(text) < 10 and int(text) > 0


def _check_name(name: str, names: Tuple[str, ...], mixture: str, entry: str, option: str, spec: str) -> None:
    if not name:
        where = f"in '{entry}'" if entry else "between the commas"
        raise UsageError(f"{option} '{spec}': a scorer is missing {where}; choose from {', '.join(scorer_names())}")
    if name not in SCORERS:
        close = difflib.get_close_matches(name, scorer_names(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"{option} {spec}: unknown scorer '{name}'{hint}; choose from {', '.join(scorer_names())}")
    if names.count(name) > 1:
        raise UsageError(f"{option} {spec}: '{name}' stands twice in the mixture '{mixture}'; name it once")


def _check_heads(layer: LayerSpec, heads: Optional[int], option: str, spec: str) -> None:
    given = [group.heads for group in layer.groups]
    if None in given and any(count is not None for count in given):
        raise UsageError(f"{option} {spec}: a number of heads after ':' for every scorer between '|', or for none")
    if heads is None:
        return
    if given[0] is not None and sum(count or 0 for count in given) != heads:
        total = sum(count or 0 for count in given)
        raise UsageError(
            f"{option} {spec}: names {total} heads, but the layer has {heads}; they must add up to {heads}"
        )
    if len(given) > heads:
        raise UsageError(
            f"{option} {spec}: {len(given)} scorers between '|' for {heads} heads; each needs one at least"
        )


def build_layer(layer: LayerSpec, attention: AttentionConfig, options: Any = None) -> Scorer:
    """The scorer of one layer: the one named, a mixture, or different ones in different heads."""
    if len(layer.groups) == 1:
        return _build_group(layer.groups[0].names, attention, options)
    counts = layer.counts(attention.num_heads)
    groups = zip(layer.groups, counts)
    return Heads(attention, [_build_group(group.names, attention.of_heads(n), options) for group, n in groups])


def _build_group(names: Tuple[str, ...], attention: AttentionConfig, options: Any) -> Scorer:
    scorers = [build_scorer(name, attention, options) for name in names]
    return scorers[0] if len(scorers) == 1 else Mixture(attention, scorers)
