"""State dicts without their frozen tensors: one entry says how to draw them.

The entry ``frozen_seed`` is a dict of plain types, kept as a tensor like the record of what is frozen (whose digest
covers the drawn tensors):

    stream    1, the version of the generator's stream and of the recipes
    seed      what --frozen-init said
    tensors   name -> [shape, kind, value, zero row, casts], see Recipe
    aliases   other name of a tied tensor -> its name in ``tensors``
"""

import logging
import math
import os
from typing import Any, Dict, List, Mapping, MutableMapping, Optional, Sequence

from fairseq_synth.errors import UsageError, printable
from fairseq_synth.freezing import record as records
from fairseq_synth.seeded.recipe import Recipe, from_json, recipe_of

logger = logging.getLogger(__name__)
KEY = "frozen_seed"
STREAM = 1


def leave_out(
    state: MutableMapping[str, Any], draws: Mapping[str, Recipe], tied: Mapping[str, Sequence[str]], prefix: str = ""
) -> None:
    """Replace the tensors that ``draws`` give by one entry. tied: name -> all names of that tensor."""
    found: Dict[str, Recipe] = {}
    for name, draw in draws.items():
        recipe = recipe_of(state[prefix + name], draw)
        if recipe is None:  # loaded from another model's checkpoint; nothing is lost
            logger.warning(f"--store-frozen seed: {name} is not what its seed draws, so it is stored in full")
        else:
            found[name] = recipe
    if not found:
        return
    for name in found:
        for alias in tied[name]:
            del state[prefix + alias]
    aliases = {alias: name for name in found for alias in tied[name] if alias != name}
    tensors = {name: recipe.to_json() for name, recipe in found.items()}
    seed = next(iter(found.values())).seed
    state[prefix + KEY] = records.encode({"stream": STREAM, "seed": seed, "tensors": tensors, "aliases": aliases})


def put_back(state: MutableMapping[str, Any]) -> Optional[int]:
    """Put a recipe where a tensor was left out. Returns the seed, None for a state dict that leaves nothing out.

    Raises UsageError for an entry that cannot be read or that a later version wrote, and for tensors that the record
    does not name (nothing would prove them) or that no memory could hold. Nothing is drawn here.
    """
    entry = entry_of(state)
    if entry is None:
        return None
    del state[KEY]
    if entry.get("stream") != STREAM:
        raise UsageError(
            f"the checkpoint's frozen tensors are drawn by stream {printable(entry.get('stream'), 20)}, this version "
            f"of fairseq_synth knows stream {STREAM}: use the version that wrote it, or its fairseq-synth materialize"
        )
    try:
        recipes = {name: from_json(entry["seed"], name, values) for name, values in entry["tensors"].items()}
        for recipe in recipes.values():
            _check_recipe(recipe)
        _check_proof(recipes, state)
        recipes.update({alias: recipes[name] for alias, name in entry["aliases"].items()})
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(error) from error
    _check_memory(recipes)
    state.update(recipes)
    return int(entry["seed"])


def entry_of(state: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """The entry, None for a state dict without. Raises UsageError for one that cannot be read."""
    if KEY not in state:
        return None
    try:
        return records.unpack(state[KEY])
    except ValueError as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> UsageError:
    return UsageError(f"the checkpoint's entry {KEY} is damaged ({printable(error, 60)}): copy the file again")


def _check_recipe(recipe: Recipe) -> None:
    """Raises ValueError for what no tensor has."""
    rule, numbers = recipe.rule, (*recipe.shape, recipe.seed)
    if not all(type(number) is int and number >= 0 for number in numbers) or not recipe.shape:
        raise ValueError(f"shape {list(recipe.shape)[:8]}, seed {recipe.seed}")
    if not isinstance(rule.value, (int, float)) or not math.isfinite(rule.value):
        raise ValueError(f"{rule.kind} of {rule.value}")
    if rule.zero_row is not None and not (type(rule.zero_row) is int and 0 <= rule.zero_row < recipe.shape[0]):
        raise ValueError(f"zero row {rule.zero_row}")


def _check_proof(recipes: Mapping[str, Recipe], state: Mapping[str, Any]) -> None:
    """The digest covers what the record names, and nothing else."""
    record = records.held(state)
    if record is None:
        raise UsageError(f"the checkpoint says how to draw its frozen tensors, but holds no digest ({records.KEY})")
    unproved = sorted(set(recipes) - set(record["names"]))
    if unproved:
        raise UsageError(
            f"the checkpoint's entry {KEY} draws {printable(unproved[0])}, which its record of frozen parameters does "
            f"not name: the file was changed; copy it again"
        )


def _check_memory(recipes: Mapping[str, Recipe]) -> None:
    """They are drawn in float32, beside a model of that size."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = 2 * 4 * sum(math.prod(recipe.shape) for recipe in set(recipes.values()))
    if size > memory:
        raise UsageError(
            f"the checkpoint's frozen tensors take {size / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f} GiB "
            f"of memory: the entry {KEY} is damaged, or meant for a larger machine"
        )


def materialized(state: Mapping[str, Any], verify: bool = True) -> Dict[str, Any]:
    """A state dict with every tensor in place. Raises UsageError where the digest is another."""
    full = dict(state)
    if put_back(full) is None:
        return full
    tensors: Dict[Recipe, Any] = {}  # tied names share one
    for name, value in full.items():
        if isinstance(value, Recipe):
            if value not in tensors:
                tensors[value] = value.tensor()
            full[name] = tensors[value]
    record = records.held(full)
    if verify and record is not None:
        records.verify(record, full)
    return full


def recipe_names(state: Mapping[str, Any]) -> List[str]:
    return [name for name, value in state.items() if isinstance(value, Recipe)]
