"""Spec strings: what ``--encoder-self-attention`` and its sisters accept.

random                      a scorer, in every layer
random+dot_product          a learned mixture, in every layer
dot_product*2,random*4      layer by layer, from the bottom: here for six layers
"""

import difflib
from typing import List, Tuple

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.mixture import Mixture
from fairseq_synth.modules.scorers import SCORERS, Scorer, ScorerConfig, build_scorer, scorer_names

LayerSpec = Tuple[str, ...]  # the names of one layer's scorers


def parse_spec(spec: str, layers: int, option: str) -> List[LayerSpec]:
    """The scorers of each layer.

    Raises UsageError, naming ``option``, for an unknown scorer, an empty entry, a bad count, or a list that does
    not name exactly ``layers`` layers.
    """
    entries = [_parse_entry(entry.strip(), option, spec) for entry in str(spec).split(",")]
    if len(entries) == 1 and "*" not in str(spec):
        return [entries[0][0]] * layers
    parsed = [names for names, count in entries for _ in range(count)]
    if len(parsed) != layers:
        raise UsageError(
            f"{option} {spec}: names {len(parsed)} layers, but the model has {layers}; "
            f"the counts must add up to {layers}"
        )
    return parsed


def _parse_entry(entry: str, option: str, spec: str) -> Tuple[LayerSpec, int]:
    names, star, count = entry.partition("*")
    if star and not (count.strip().isdigit() and int(count) > 0):
        raise UsageError(f"{option} {spec}: '{entry}' wants a number of layers (1 or more) after '*'")
    parsed = tuple(name.strip() for name in names.split("+"))
    for name in parsed:
        if not name:
            where = f"in '{entry}'" if entry else "between the commas"
            raise UsageError(f"{option} '{spec}': a scorer is missing {where}; choose from {', '.join(scorer_names())}")
        if name not in SCORERS:
            close = difflib.get_close_matches(name, scorer_names(), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UsageError(f"{option} {spec}: unknown scorer '{name}'{hint}; choose from {', '.join(scorer_names())}")
        if parsed.count(name) > 1:
            raise UsageError(f"{option} {spec}: '{name}' stands twice in the mixture '{names}'; name it once")
    return parsed, int(count) if star else 1


def build_layer(names: LayerSpec, config: ScorerConfig) -> Scorer:
    """The scorer of one layer: the one named, or a mixture."""
    scorers = [build_scorer(name, config) for name in names]
    return scorers[0] if len(scorers) == 1 else Mixture(scorers, config.num_heads)
