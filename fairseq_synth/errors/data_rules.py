"""Failures over data, options and memory, each translated to one line. See :mod:`rules`."""

import os
import re
from typing import Any, Callable, Optional, Tuple

from .frames import called, frames, raised_inside
from .text import printable


def _line_counts(exc: BaseException) -> Optional[str]:
    if "Source and target must contain the same number of examples" not in str(exc):
        return None
    for frame in frames(exc):
        src, tgt = frame.f_locals.get("src"), frame.f_locals.get("tgt")
        if frame.f_code.co_name == "__init__" and src is not None and tgt is not None:
            split = _local(exc, "load_langpair_dataset", "split")
            return (
                f"split '{printable(split)}' has {len(src)} sentences in the source language and {len(tgt)} in the "
                f"target language: run fairseq-preprocess on files of as many lines"
            )
    return None


def _no_targets(exc: BaseException) -> Optional[str]:
    """A split without a target side can be translated, not learned from."""
    for function in ("train_step", "valid_step"):
        sample = _local(exc, function, "sample")
        if isinstance(sample, dict) and "net_input" in sample and sample.get("target", 0) is None:
            return (
                "the data has no target side, which training and validation need: give fairseq-preprocess both "
                "languages (the files <split>.<source>-<target>.<target>.bin and .idx)"
            )
    return None


def _foreign_token(exc: BaseException) -> Optional[str]:
    out_of_range = re.search(r"index out of range in self|Target \d+ is out of bounds", str(exc))
    if isinstance(exc, IndexError) and out_of_range and raised_inside(exc, "torch.nn.functional"):
        return (
            "the data holds a token that the model's vocabulary does not have: it was binarised with another "
            "dictionary; run fairseq-preprocess with the dictionaries of the model (--srcdict, --tgtdict)"
        )
    return None


def _no_text(exc: BaseException) -> Optional[str]:
    if not isinstance(exc, UnicodeDecodeError):
        return None
    for frame in frames(exc):
        for name in ("path", "filename", "f", "file"):
            value = frame.f_locals.get(name)
            found = value if isinstance(value, str) else getattr(value, "name", None)
            if isinstance(found, str) and os.path.isfile(found):
                return f"{printable(found)}: byte {exc.start} is not UTF-8 text; convert it (iconv -t UTF-8)"
    return None


def _dictionary(exc: BaseException) -> Optional[str]:
    known = r"Incorrect dictionary format|Duplicate word found when loading Dictionary|Incorrect encoding detected in"
    if not re.search(known, str(exc)) or not raised_inside(exc, "fairseq.data.dictionary"):
        return None
    path = next((f.f_locals["f"] for f in frames(exc)[::-1] if isinstance(f.f_locals.get("f"), str)), "the dictionary")
    return f"{printable(path)}: {printable(str(exc).splitlines()[0])}; give the file that fairseq-preprocess wrote"


def _memory(exc: BaseException) -> Optional[str]:
    found = re.search(r"you tried to allocate (\d+) bytes|Tried to allocate ([\d.]+ \w+)", str(exc))
    if not (isinstance(exc, MemoryError) or found):
        return None
    size = "" if not found else found.group(2) or f"{int(found.group(1)) / 2**30:,.1f} GiB"
    asked = f" ({size} more were asked for)" if size else ""
    return f"not enough memory{asked}: smaller batches (--max-tokens, --batch-size), lengths or dimensions need less"


def _other_kind_of_model(exc: BaseException) -> Optional[str]:
    """A model without encoder where one with is needed, or the other way round."""
    calls = isinstance(exc, (TypeError, AttributeError)) and any(
        called(exc, function)
        for function in ("inference_step", "valid_step", "train_step", "eval_dataloader", "eval_lm")
    )
    arguments = r"prev_output_tokens|src_lengths|src_tokens|has no attribute '(encoder|decoder)'"
    if calls and re.search(arguments, str(exc)):
        return (
            f"the model does not fit the task ({printable(str(exc).splitlines()[0])}): translation takes models with "
            f"an encoder and a decoder, language modeling those with a decoder alone; check --path, --task and --arch"
        )
    return None


def _unknown_architecture(exc: BaseException) -> Optional[str]:
    """fairseq's own message fails while it is made."""
    for frame in frames(exc):
        found = frame.f_locals
        if (
            frame.f_globals.get("__name__") == "fairseq.models"
            and "model_type" in found
            and found.get("model", 0) is None
        ):
            return (
                f"--arch (model._name) {printable(found['model_type'])}: no such architecture; fairseq-synth options "
                f"lists those of this plugin"
            )
    return None


def _wrong_type(exc: BaseException) -> Optional[str]:
    """A value of the wrong type, in a yaml file or after a key on the command line of hydra."""
    if type(exc).__name__ not in ("ValidationError", "ConfigValueError"):
        return None
    key = re.search(r"full_key: (\S+)", str(exc))
    first = printable(str(exc).splitlines()[0])
    return f"configuration key {key.group(1)}: {first}" if key else None


def _local(exc: BaseException, function: str, name: str) -> Any:
    """A variable of the innermost call of this function."""
    return next((f.f_locals[name] for f in frames(exc) if f.f_code.co_name == function and name in f.f_locals), None)


DATA_RULES: Tuple[Callable[[BaseException], Optional[str]], ...] = (
    _line_counts,
    _no_targets,
    _foreign_token,
    _no_text,
    _dictionary,
    _memory,
    _other_kind_of_model,
    _unknown_architecture,
    _wrong_type,
)
