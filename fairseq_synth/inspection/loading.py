"""A model from its checkpoint alone: without the data it was trained on, unless text is to be read."""

import copy
import os
import re
from argparse import Namespace
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from fairseq import checkpoint_utils, models, utils
from fairseq.data import Dictionary, data_utils
from torch import Tensor, nn

from fairseq_synth.errors import UsageError, explain
from fairseq_synth.seeded import storage


class Opened(NamedTuple):
    """A checkpoint and the model it holds, on the CPU and in evaluation mode.

    source, target: dictionaries; the same object in a language model. Without data they only have the right size.
    """

    path: str
    state: Dict[str, Any]
    cfg: Any
    model: nn.Module
    source: Dictionary
    target: Dictionary

    @property
    def arch(self) -> str:
        return architecture(self.cfg)


def open_checkpoint(
    path: str, text: bool = False, data: Optional[str] = None, user_dir: Optional[str] = None
) -> Opened:
    """Build the model that ``path`` describes and load its weights.

    text: it will read text, with the dictionaries in ``data`` (default: the folder it was trained on); otherwise it
    gets stand-ins for them. user_dir: a plugin to import before.

    Raises UsageError for a file that is missing, unreadable, no fairseq checkpoint, or of an unknown architecture.
    """
    if user_dir is not None:
        _import_plugin(user_dir)
    state = read_checkpoint(path)
    cfg = state["cfg"]
    source, target = read_dictionaries(cfg, data) if text else _stand_ins(state)
    try:
        with torch.random.fork_rng(devices=[]):
            model = _build(cfg, source, target)
        if not text:
            _trust_dictionary(model, state["model"])
        model.load_state_dict(dict(state["model"]), strict=True, model_cfg=cfg.model)  # type: ignore[call-arg]
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path}: the model cannot be built: {reason(error)}") from error
    return Opened(path, state, cfg, model.eval(), source, target)


def read_checkpoint(path: str) -> Dict[str, Any]:
    """The file's content, with ``cfg`` for every age of checkpoint. Raises UsageError.

    Frozen tensors that the file only holds a seed for are drawn and verified; that seed is then ``stored_seed``.
    """
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such checkpoint file; check the path")
    nothing = f"{path}: holds no model; give a checkpoint that fairseq-train wrote"
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(path)
    except (KeyError, TypeError, AttributeError) as error:  # while it was brought up to date
        raise UsageError(nothing) from error
    except Exception as error:
        raise UsageError(f"{path}: cannot be read: {reason(error)}") from error
    if not isinstance(state.get("model"), dict) or state.get("cfg") is None:
        raise UsageError(nothing)
    entry = storage.entry_of(state["model"])
    state["stored_seed"] = None if entry is None else entry.get("seed")
    state["model"] = storage.materialized(state["model"])
    return state


def _import_plugin(folder: str) -> None:
    if not os.path.isdir(folder):
        raise UsageError(f"--user-dir {folder}: no such folder")
    utils.import_user_module(Namespace(user_dir=folder))


def architecture(cfg: Any) -> str:
    """--arch. fairseq's older models keep their options as a Namespace."""
    return str(getattr(cfg.model, "_name", None) or getattr(cfg.model, "arch", None))


def reason(error: BaseException) -> str:
    """One line."""
    return explain(error) or f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _build(cfg: Any, source: Dictionary, target: Dictionary) -> nn.Module:
    known = {*models.MODEL_REGISTRY, *models.ARCH_MODEL_REGISTRY}
    if architecture(cfg) not in known:
        raise UsageError(
            f"architecture {architecture(cfg)}: neither fairseq nor this plugin has it; give the folder of the plugin "
            f"it comes from with --user-dir"
        )
    cfg = copy.deepcopy(cfg)
    for name in ("encoder_embed_path", "decoder_embed_path"):  # files of the training: the weights are here
        if getattr(cfg.model, name, None):
            setattr(cfg.model, name, None)
    task = Namespace(source_dictionary=source, target_dictionary=target, dictionary=source, args=cfg.task, cfg=cfg.task)
    return models.build_model(cfg.model, task, from_checkpoint=True)


# ---------------------------------------------------------------------- dictionaries
def read_dictionaries(cfg: Any, data: Optional[str]) -> Tuple[Dictionary, Dictionary]:
    """The dictionaries of a training, in its own folder or in ``data``. Raises UsageError where they are not."""
    data = data or (utils.split_paths(getattr(cfg.task, "data", None) or "") or ["."])[0]
    names = ["dict.txt"] * 2
    if hasattr(cfg.task, "source_lang"):
        inferred = data_utils.infer_language_pair(data) if os.path.isdir(data) else (None, None)
        languages = (cfg.task.source_lang or inferred[0], cfg.task.target_lang or inferred[1])
        names = [f"dict.{language or 'source'}.txt" for language in languages]
    for name in names:
        if not os.path.isfile(os.path.join(data, name)):
            raise UsageError(
                f"{os.path.join(data, name)} does not exist: give the folder with the dictionaries of the training "
                f"with --data"
            )
    loaded = [Dictionary.load(os.path.join(data, name)) for name in names]
    return loaded[0], loaded[0] if names[0] == names[1] else loaded[1]


def _stand_ins(state: Dict[str, Any]) -> Tuple[Dictionary, Dictionary]:
    sizes = [_vocabulary(state["model"], side) for side in ("encoder", "decoder")]
    if sizes[1] is None:  # another plugin's names: the real ones, then
        return read_dictionaries(state["cfg"], None)
    target = _stand_in(sizes[1])
    return target if sizes[0] in (None, sizes[1]) else _stand_in(sizes[0]), target


def _vocabulary(weights: Dict[str, Tensor], side: str) -> Optional[int]:
    """Rows of the embeddings, adaptive ones together; otherwise of the output matrix."""
    kinds = (r"embed_tokens\.weight", r"embed_tokens\.embeddings\.\d+\.0\.weight", r"output_projection\.weight")
    for kind in kinds:
        rows = [tensor.size(0) for name, tensor in weights.items() if re.fullmatch(rf"{side}\.{kind}", name)]
        if rows:
            return sum(rows)
    return None


def _stand_in(size: Any) -> Dictionary:
    dictionary = Dictionary()
    for i in range(int(size) - len(dictionary)):
        dictionary.add_symbol(f"word{i}")
    return dictionary


def _trust_dictionary(model: nn.Module, weights: Dict[str, Tensor]) -> None:
    """The sequential models refuse another dictionary by its fingerprint; a stand-in takes the checkpoint's."""
    for name, buffer in model.named_buffers():
        if name.endswith(".vocabulary") and name in weights:
            buffer.copy_(weights[name])
