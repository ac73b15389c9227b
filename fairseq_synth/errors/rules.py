"""Known failures of fairseq and PyTorch, each translated to one line.

A rule takes an exception and returns the line, or None if the exception is about something else.
"""

import errno
import os
import pickle
import re
from typing import Callable, Iterator, List, Optional, Tuple

from .data_rules import DATA_RULES
from .frames import called, frames, raised_inside
from .text import printable


def _worker_usage_error(exc: BaseException) -> Optional[str]:
    """torch.multiprocessing reports a worker's exception as text only."""
    match = re.search(r"^fairseq_synth\.errors\.UsageError: (.+)$", str(exc), re.MULTILINE)
    return match.group(1) if match and type(exc).__name__ == "ProcessRaisedException" else None


def full_disk(exc: BaseException) -> Optional[str]:
    """torch.save hides it behind an error of its own, so the causes count."""
    for cause in causes(exc):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{cause.filename or 'a file'}: {DISK_IS_FULL}"
    return None


DISK_IS_FULL = "cannot be written, the disk is full (or the quota used up): make room"


def _unsafe_checkpoint(exc: BaseException) -> Optional[str]:
    text = str(exc)
    if "Weights only load failed" not in text:
        return None
    refused = r"(?:GLOBAL|unrecognized function|unsupported class|but got) (?:<[^']*')?([\w.]+)"
    found = re.search(refused, text)
    if found is None:
        return None
    return (
        f"checkpoint {_checkpoint_path(exc)} holds a pickled object that is not allowed "
        f"({found.group(1)}): such an object can run code while loading, so the file may be "
        "malicious; do not load it unless you made it"
    )


_UNREADABLE = (RuntimeError, EOFError, OSError, LookupError, ValueError, pickle.UnpicklingError)


def _corrupt_checkpoint(exc: BaseException) -> Optional[str]:
    """torch.load says this in a dozen ways: zip, legacy and safe loading fail differently."""
    inside = ("torch.serialization", "fairseq_synth.compat.plain_loading")
    if not isinstance(exc, _UNREADABLE) or not any(raised_inside(exc, module) for module in inside):
        return None
    reason = (str(exc).strip().splitlines() or ["no more input"])[0].split(". ")[0]
    path = _checkpoint_path(exc)
    size = f", {os.path.getsize(path)} bytes" if os.path.isfile(path) else ""
    return (
        f"checkpoint {path}{size}, cannot be read: it is truncated, corrupt or not a checkpoint "
        f"({type(exc).__name__}: {reason}); copy it again or use an earlier checkpoint"
    )


def _other_model(exc: BaseException) -> Optional[str]:
    match = re.match(r"Cannot load model parameters from checkpoint (.+?); please ensure", str(exc))
    if not match:
        return _state_mismatch(exc)
    for cause in causes(exc):  # fairseq hides the reason in the exception's context
        line = _state_mismatch(cause)
        if line is not None:
            return line
    return f"checkpoint {match.group(1)} does not fit the model; {_OTHER_MODEL_FIX}"


_OTHER_MODEL_FIX = "use the --arch, dimensions, layers and dictionaries it was trained with, or another --save-dir"


def _state_mismatch(exc: BaseException) -> Optional[str]:
    text = str(exc)
    if isinstance(exc, KeyError) and called(exc, "load_state_dict"):  # layers of 0.12.2
        first = f"{exc.args[0]} is missing from the file"
        return f"checkpoint {_checkpoint_path(exc)} does not fit the model: {first}; {_OTHER_MODEL_FIX}"
    model = re.match(r"Error\(s\) in loading state_dict for (\w+)", text)
    if not model:
        return None
    shapes = re.findall(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", text)
    differences = [f"{name} is {old} in the file, {new} in the model" for name, old, new in shapes]
    differences += [f"{name} is missing from the file" for name in _keys("Missing", text)]
    differences += [f"{name} is unknown to the model" for name in _keys("Unexpected", text)]
    more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
    first = differences[0] if differences else "tensors differ"
    return f"checkpoint {_checkpoint_path(exc)} does not fit {model.group(1)}: {first}{more}; {_OTHER_MODEL_FIX}"


def _keys(kind: str, text: str) -> List[str]:
    names = re.search(kind + r" key\(s\) in state_dict: (.+)", text)
    return re.findall(r'"([^"]+)"', names.group(1)) if names else []


def _too_long(exc: BaseException) -> Optional[str]:
    message = r"Size of sample #(\d+) is invalid \(=(.+)\) since max_positions=(.+), skip this"
    found = re.match(message, str(exc))
    if not found:
        return None
    # A pair reads (22, 22) or (np.int32(22), np.int32(22)), a single size 22.
    size, limit = ([int(n) for n in re.findall(r"\b\d+", text)] for text in found.groups()[1:])
    return (
        f"sentence {found.group(1)} has {_numbers(size)} tokens (end of sentence included), the "
        f"limit is {_numbers(limit)}: train with a larger --synthesizer-max-length or "
        "--max-source-positions and --max-target-positions, or leave such sentences out with "
        "--skip-invalid-size-inputs-valid-test"
    )


def _no_model_file(exc: BaseException) -> Optional[str]:
    found = re.match(r"Model file not found: (.+)", str(exc))
    return f"--path {found.group(1)}: no such checkpoint file; check the path" if found else None


def _no_split(exc: BaseException) -> Optional[str]:
    found = re.match(r"Dataset not found: (\S+) \((.+)\)", str(exc))
    if not found:
        return None
    split, folder = found.groups()
    names = sorted({name.split(".")[0] for name in _listing(folder) if name.endswith(".idx")})
    missing = [name for name in _listing(folder) if name.startswith(f"{split}.") and _half(folder, name)]
    if missing:
        return f"{os.path.join(folder, missing[0])}: its other half is missing; a split is two files, .bin and .idx"
    if split in names:
        return f"split '{split}' in {folder} is binarised, --dataset-impl says otherwise: leave that option out"
    has = ", ".join(names) or "none; run fairseq-preprocess"
    return f"split '{split}' is not in {folder}: choose one that is there ({has})"


def _no_data_folder(exc: BaseException) -> Optional[str]:
    if "Could not infer language pair" in str(exc):
        return "no <split>.<source>-<target>.* file in the data folder: give the one that fairseq-preprocess wrote"
    path = str(getattr(exc, "filename", None) or "")
    dictionary = re.match(r"dict\.(\w+\.)?txt$", os.path.basename(path))
    if not isinstance(exc, FileNotFoundError) or not (dictionary or raised_inside(exc, "fairseq.data.data_utils")):
        return None
    return (
        f"data folder: '{path}' does not exist; give the folder that fairseq-preprocess wrote, "
        "and the --source-lang and --target-lang it was written with"
    )


def _unknown_config_key(exc: BaseException) -> Optional[str]:
    if type(exc).__name__ not in ("ConfigKeyError", "ConfigAttributeError"):
        return None
    key = re.search(r"full_key: (\S+)", str(exc))
    first = str(exc).splitlines()[0]
    return f"unknown configuration key {key.group(1)} ({first}): check its spelling" if key else None


def _no_task(exc: BaseException) -> Optional[str]:
    """fairseq-validate has no default task."""
    missing = isinstance(exc, KeyError) and exc.args == (None,) and raised_inside(exc, "fairseq.options")
    return "--task is missing: pass the task the model was trained on, such as --task translation" if missing else None


def _context_window(exc: BaseException) -> Optional[str]:
    """fairseq-eval-lm subtracts it from --tokens-per-sample before anything else, and stumbles over what is left."""
    for frame in frames(exc):
        if frame.f_globals.get("__name__") != "fairseq_cli.eval_lm" or "cfg" not in frame.f_locals:
            continue
        cfg = frame.f_locals["cfg"]
        window, left = cfg.eval_lm.context_window, getattr(cfg.task, "tokens_per_sample", 1)
        if window and left <= 0:
            return f"--context-window {window}: must be less than --tokens-per-sample {left + window}"
    return None


def _already_clear(exc: BaseException) -> Optional[str]:
    """Messages of fairseq that need no translation, only freeing from the traceback."""
    clear = r"(Optimizer|Criterion) does not match; please reset|Unsupported optimizer: |--[a-z][a-z-]+ "
    return str(exc) if isinstance(exc, (ValueError, AssertionError)) and re.match(clear, str(exc)) else None


def _strange_checkpoint(exc: BaseException) -> Optional[str]:
    """Whatever else fails while a checkpoint is read, or a model is built from what it says."""
    for function, what in (
        ("load_checkpoint_to_cpu", "holds no checkpoint of fairseq, or options that fairseq does not understand"),
        ("load_model_ensemble_and_task", "the model that its options describe cannot be built or filled"),
    ):
        if isinstance(exc, Exception) and called(exc, function):
            first = (str(exc).strip().splitlines() or [""])[0]
            return (
                f"checkpoint {_checkpoint_path(exc)}: {what} ({type(exc).__name__}: {printable(first)}); is it the "
                f"right file, and are --task, --user-dir and --model-overrides those of its training?"
            )
    return None


RULES: Tuple[Callable[[BaseException], Optional[str]], ...] = (
    _worker_usage_error,
    full_disk,
    _unsafe_checkpoint,
    _corrupt_checkpoint,
    _other_model,
    _too_long,
    _no_model_file,
    _no_split,
    _no_data_folder,
    _unknown_config_key,
    _no_task,
    _context_window,
    _already_clear,
    *DATA_RULES,
    _strange_checkpoint,  # after those that know more
)


def causes(exc: BaseException) -> Iterator[BaseException]:
    """`exc` and the exceptions that led to it, the outermost first."""
    seen: List[BaseException] = []
    current: Optional[BaseException] = exc
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context


def _checkpoint_path(exc: BaseException) -> str:
    """The file being read, from the variables of fairseq's loading functions: no exception carries it."""
    for frame in frames(exc):
        if frame.f_globals.get("__name__", "").startswith("torch"):
            continue
        for name in ("local_path", "path", "filename"):
            value = frame.f_locals.get(name)
            if isinstance(value, str):
                return value
    return "(unknown file)"


def _numbers(values: List[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else " and ".join(map(str, values))


def _half(folder: str, name: str) -> bool:
    stem, ending = os.path.splitext(name)
    other = {".bin": ".idx", ".idx": ".bin"}.get(ending)
    return other is not None and not os.path.exists(os.path.join(folder, stem + other))


def _listing(folder: str) -> List[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []
