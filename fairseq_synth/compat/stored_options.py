"""What a checkpoint's plain data can make fairseq do: options are evaluated, interpolated and looked up by name."""

import re
import sys
from argparse import Namespace
from typing import Any, Callable, Dict, Iterable

import torch
from fairseq import checkpoint_utils
from fairseq.logging import meters

from fairseq_synth.errors import UsageError, printable

from .literals import literal
from .patching import replace

# ${oc.env:NAME} and its kin, unlike ${model.encoder_embed_dim}
_RESOLVER = re.compile(r"\$\{[^{}]*:")
# Options of models that say how large one is; below these limits they may say what they like. Only these: fairseq's
# older models keep the options of the whole training beside them.
_SIZE = re.compile(
    r"(?:(?:encoder|decoder)_)?(layers|(?:ffn_)?embed_dim|attention_heads|attention_dim|input_dim|output_dim|hidden_size)"
    r"|persistent_memory|synthesizer_(?:max_length|rank)"
)
FREE_LAYERS, FREE_SIZE = 100, 2**13
SEED = "frozen_seed"


def evaluate_literals_only() -> bool:
    """fairseq calls eval() on options, those stored in a checkpoint too: plain data runs code (every version).

    Of utils.eval_str_list (adaptive_softmax_cutoff ...), eval_str_dict, and in some 20 models, optimizers and
    criterions (fconv's encoder_layers, wav2vec's conv_feature_layers). A module's own name comes before the builtin:
    their `eval` becomes the evaluation of literals, wherever the functions were imported to.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "fairseq" and module is not None:
            vars(module)["eval"] = literal
    return True


def refuse_stored_interpolation() -> bool:
    """Options stored in a checkpoint are interpolated: ${oc.env:NAME} reads the environment (every version).

    fairseq stores resolved options, so none of its own files asks a resolver for anything.
    """
    replace(checkpoint_utils, "_upgrade_state_dict", _refuse_resolvers)
    return True


def refuse_stored_sizes() -> bool:
    """A model is built as large as a checkpoint's options say: a billion layers fill the memory (every version).

    What is built must be in the file: no more layers than tensors, no dimension beyond the largest there.
    """
    replace(checkpoint_utils, "_upgrade_state_dict", _refuse_sizes)
    return True


def restore_known_meters() -> bool:
    """The meters of a checkpoint are made by name: a file may name any function of that module (every version)."""
    replace(meters.MetersDict, "load_state_dict", _check_meters)
    return True


def _refuse_resolvers(stock: Callable) -> Callable:
    def upgrade(state: Any) -> Any:
        for name in ("args", "cfg"):
            for text in _texts(_plain(state.get(name))):
                if _RESOLVER.search(text):
                    raise UsageError(
                        f"the checkpoint's options ask for {printable(text)}: an option of a file must not read the "
                        f"environment; do not load it unless you made it"
                    )
        return stock(state)

    return upgrade


def _refuse_sizes(stock: Callable) -> Callable:
    def upgrade(state: Any) -> Any:
        options = _plain(state.get("cfg"))
        options = options.get("model") if isinstance(options, dict) else state.get("args")
        options = vars(options) if isinstance(options, Namespace) else options
        if isinstance(options, dict):
            _check_sizes(options, state["model"])
        return stock(state)

    return upgrade


def _check_sizes(options: Dict[Any, Any], weights: Dict[str, Any]) -> None:
    """Raises UsageError, naming the option. Frozen tensors that a file leaves out are bounded where they are drawn."""
    largest = max([n for t in weights.values() if isinstance(t, torch.Tensor) for n in t.shape] + [FREE_SIZE])
    limits = {"layers": max(len(weights), FREE_LAYERS), "size": largest if SEED not in weights else sys.maxsize}
    for name, value in options.items():
        kind = _SIZE.fullmatch(str(name))
        if not kind or not isinstance(value, (int, float)):
            continue
        limit = limits["layers" if kind.group(1) == "layers" else "size"]
        if value > limit:
            raise UsageError(
                f"the checkpoint's options say {printable(name, 60)} {printable(value, 30)}, but nothing in it is that "
                f"large ({limit:,}): it is damaged, or made to fill the memory"
            )


def _plain(options: Any) -> Any:
    """Interpolations as the text they are."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(options, resolve=False) if OmegaConf.is_config(options) else options


def _texts(value: Any) -> Iterable[str]:
    """Every text in nested options, without recursion: the nesting is the file's."""
    left, seen = [value], set()
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, (dict, list, tuple, Namespace)) and id(value) not in seen:
            seen.add(id(value))
            value = vars(value) if isinstance(value, Namespace) else value
            left += [*value.keys(), *value.values()] if isinstance(value, dict) else value


def _check_meters(stock: Callable) -> Callable:
    def load_state_dict(self: Any, state_dict: Any) -> None:
        for entry in state_dict:
            found = vars(meters).get(entry[2]) if isinstance(entry[2], str) else None
            if not (isinstance(found, type) and issubclass(found, meters.Meter)):
                raise UsageError(
                    f"the checkpoint's meters name {printable(entry[2], 60)}, which is no meter of fairseq"
                )
        stock(self, state_dict)

    return load_state_dict
