"""State dicts without their frozen tensors: one entry says how to draw them.

The entry ``frozen_seed`` is a dict of plain types, kept as a tensor like the record of what is frozen (whose digest
covers the drawn tensors):

    stream    1, the version of the generator's stream and of the recipes
    seed      what --frozen-init said
    tensors   name -> [shape, kind, value, zero row, casts], see Recipe
    aliases   other name of a tied tensor -> its name in ``tensors``
"""

import logging
from typing import Any, Dict, List, Mapping, MutableMapping, Optional, Sequence

from fairseq_synth.errors import UsageError
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

    Raises UsageError for an entry that cannot be read, or that a later version wrote.
    """
    entry = _decode(state.pop(KEY, None))
    if entry is None:
        return None
    if entry.get("stream") != STREAM:
        raise UsageError(
            f"the checkpoint's frozen tensors are drawn by stream {entry.get('stream')}, this version of fairseq_synth "
            f"knows stream {STREAM}: use the version that wrote it, or its fairseq-synth materialize"
        )
    try:
        recipes = {name: from_json(entry["seed"], name, values) for name, values in entry["tensors"].items()}
        recipes.update({alias: recipes[name] for alias, name in entry["aliases"].items()})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from error
    if records.KEY not in state:
        raise UsageError(f"the checkpoint says how to draw its frozen tensors, but holds no digest ({records.KEY})")
    state.update(recipes)
    return int(entry["seed"])


def _decode(value: Any) -> Optional[Dict[str, Any]]:
    try:
        return records.decode(value)
    except UsageError as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> UsageError:
    return UsageError(f"the checkpoint's entry {KEY} is damaged ({error}): copy the file again")


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
    record = records.decode(full.get(records.KEY))
    if verify and record is not None:
        records.verify(record, full)
    return full


def recipe_names(state: Mapping[str, Any]) -> List[str]:
    return [name for name, value in state.items() if isinstance(value, Recipe)]
