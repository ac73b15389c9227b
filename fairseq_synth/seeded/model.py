"""What --frozen-init, --store-frozen and --frozen-on-the-fly do to a model, at fairseq's seams.

Tensors are drawn in ``build_model``, right after they were frozen. A state dict leaves them out when it is made and
gets recipes in their place when it is loaded; recipes become tensors just before the modules read them, after fairseq
has renamed layers (--encoder-layers-to-keep) and this package has compared the digest.
"""

import logging
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor

from fairseq_synth.errors import UsageError
from fairseq_synth.freezing import record as records
from fairseq_synth.freezing.groups import tied_names
from fairseq_synth.seeded import storage
from fairseq_synth.seeded.linear import SeededLinear
from fairseq_synth.seeded.on_the_fly import take_matrices_away
from fairseq_synth.seeded.recipe import Recipe
from fairseq_synth.seeded.rules import recipes

logger = logging.getLogger(__name__)


def seed_model(model: "SeededMixin", cfg: Any) -> None:
    """Draw what is frozen, as ``cfg`` says. Raises UsageError for options that cannot work or have no effect."""
    seed = cfg.frozen_init
    _check(cfg)
    if seed is None:
        return
    names = list(model.frozen_parameters)  # type: ignore[attr-defined]
    model.frozen_recipes = recipes(model, names, seed)  # type: ignore[arg-type]
    model.frozen_seed, model.frozen_storage = seed, str(cfg.store_frozen)
    if cfg.frozen_on_the_fly:
        take_matrices_away(model, model.frozen_recipes, cfg.freeze)  # type: ignore[arg-type]
        model.frozen_on_the_fly = True
    parameters = dict(model.named_parameters())  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, recipe in model.frozen_recipes.items():
            if name in parameters:
                parameters[name].copy_(recipe.tensor())
    logger.info(f"--frozen-init {seed}: drew {len(names)} frozen tensors")


def _check(cfg: Any) -> None:
    seed = cfg.frozen_init
    if seed is not None and cfg.freeze is None:
        raise UsageError(f"--frozen-init {seed}: has no effect without --freeze; add it, or drop --frozen-init")
    if seed is not None and seed < 0:
        raise UsageError(f"--frozen-init {seed}: must be a whole number from 0 on")
    if seed is None and str(cfg.store_frozen) == "seed":
        raise UsageError("--store-frozen seed: needs --frozen-init SEED, which frozen tensors are drawn from; add it")
    if seed is None and cfg.frozen_on_the_fly:
        raise UsageError("--frozen-on-the-fly: needs a model trained with --frozen-init; drop it")


class SeededMixin:
    """For a fairseq model, before FreezingMixin."""

    frozen_seed: Optional[int] = None
    frozen_storage = "full"
    frozen_on_the_fly = False
    frozen_recipes: Dict[str, Recipe] = {}

    def train(self: Any, mode: bool = True) -> Any:
        if mode and self.frozen_on_the_fly:
            raise UsageError("--frozen-on-the-fly: is for generation and evaluation; drop it to train")
        return super().train(mode)  # type: ignore[misc]

    def state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As FreezingMixin's; with --store-frozen seed, an entry in place of the frozen tensors."""
        if self.frozen_on_the_fly:
            raise UsageError("--frozen-on-the-fly: the model holds no frozen matrices to save; drop it")
        state = super().state_dict(*args, **kwargs)  # type: ignore[misc]
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        if self.frozen_storage == "seed" and prefix + records.KEY in state:  # not in the midst of an average
            tied = {names[0]: names for names in tied_names(self)}
            storage.leave_out(state, self.frozen_recipes, tied, prefix)
        return state

    def left_out_names(self: Any) -> List[str]:
        """All names of what a checkpoint has a seed for, and the entries that say so."""
        if self.frozen_storage != "seed":
            return []
        names = [name for names in tied_names(self) if names[0] in self.frozen_recipes for name in names]
        return [*names, storage.KEY, records.KEY]

    def load_state_dict(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As FreezingMixin's. Raises UsageError for frozen tensors that are not those of --frozen-init."""
        state_dict = state_dict.copy()
        seed = storage.put_back(state_dict)
        if None not in (seed, self.frozen_seed) and seed != self.frozen_seed:
            raise UsageError(
                f"--frozen-init {self.frozen_seed}: the checkpoint's frozen tensors are drawn from seed {seed}; give "
                f"--frozen-init {seed}, or drop it to start from the checkpoint's"
            )
        pruned = _is_pruned(kwargs.get("model_cfg"))  # then layers have other numbers than in training
        if not pruned:
            self._check_shapes(state_dict)
        result = super().load_state_dict(state_dict, *args, **kwargs)  # type: ignore[misc]
        if not pruned:
            self._check_draws()
        return result

    def _check_shapes(self: Any, state_dict: Any) -> None:
        """Before anything is drawn."""
        parameters = dict(self.named_parameters())
        for name in storage.recipe_names(state_dict):
            file, model = state_dict[name].shape, tuple(getattr(parameters.get(name), "shape", ()))
            if name in parameters and file != model:
                raise UsageError(
                    f"the checkpoint draws {name} as {list(file)}, the model has {list(model)}: use the --arch, "
                    f"dimensions and dictionaries it was trained with"
                )

    def _load_from_state_dict(self: Any, state_dict: Any, prefix: str, *args: Any) -> None:
        """The first of all modules to see the state dict: recipes become tensors, but for SeededLinear."""
        modules = dict(self.named_modules())
        tensors: Dict[Recipe, Tensor] = {}
        for name in storage.recipe_names(state_dict):
            module, _, kind = name[len(prefix) :].rpartition(".")
            if kind != "weight" or not isinstance(modules.get(module), SeededLinear):
                recipe = state_dict[name]
                if recipe not in tensors:
                    tensors[recipe] = recipe.tensor()
                state_dict[name] = tensors[recipe]
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def _check_draws(self: Any) -> None:
        """A seed that does not give what was loaded would be a lie. Averages may have moved values by an ulp."""
        parameters = dict(self.named_parameters())
        for name, recipe in self.frozen_recipes.items():
            if name not in parameters:
                continue
            drawn, loaded = recipe.tensor(), parameters[name].detach().float().cpu()
            if not torch.allclose(drawn, loaded, rtol=1e-2, atol=1e-6):
                raise UsageError(
                    f"--frozen-init {self.frozen_seed}: {name} in the checkpoint is not what this seed draws; drop "
                    f"--frozen-init (and --store-frozen seed) to freeze the checkpoint's values"
                )


def _is_pruned(model_cfg: Any) -> bool:
    return any(getattr(model_cfg, f"{side}_layers_to_keep", None) for side in ("encoder", "decoder"))
