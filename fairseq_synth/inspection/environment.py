"""What the Python environment has, and what will not work in it. Works where torch, numpy or fairseq do not."""

import importlib
import os
import shutil
import sys
from importlib import metadata
from typing import Iterator, List, NamedTuple, Optional, Tuple

from fairseq_synth.errors.installation import cause_and_fix, fairseq_install, version_text

OLDEST = (3, 8)


class Finding(NamedTuple):
    """level: ok, note (something optional is missing or slow) or FAIL (something will not work)."""

    level: str
    topic: str
    text: str
    fix: str = ""


def findings() -> Iterator[Finding]:
    """One after the other, as they are found."""
    for check in (_python, _torch, _numpy, _gpu, _fairseq, _extensions, _commands, _user_dir, _processor):
        yield from check()
    yield from _optional()


def _python() -> Iterator[Finding]:
    text = f"{version_text(sys.version_info)}, {sys.executable}"
    old = sys.version_info < OLDEST
    yield Finding("FAIL" if old else "ok", "Python", text, f"use Python {version_text(OLDEST)} or later" if old else "")


def import_error(module: str) -> Optional[Exception]:
    """What stops it from being imported, None if nothing does."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return error
    return None


def _loaded(module: str) -> bool:
    """Where it is not, the check of its name has said why."""
    return sys.modules.get(module) is not None


def _failed(module: str, error: Exception) -> Finding:
    return Finding("FAIL", module, *cause_and_fix(error, module))


def _torch() -> Iterator[Finding]:
    error = import_error("torch")
    if error is not None:
        yield _failed("torch", error)
        return
    import torch

    parts = torch.__version__.split("+")[0].split(".")
    yield Finding("ok", "torch", torch.__version__)
    if os.environ.get("FAIRSEQ_SYNTH_TRUST") == "1":
        yield Finding("note", "checkpoints", "FAIRSEQ_SYNTH_TRUST=1: code in a checkpoint may run", "unset it")
    elif (int(parts[0]), int(parts[1])) < (2, 10):
        hole = "CVE-2025-32434" if int(parts[1]) < 6 or int(parts[0]) < 2 else "CVE-2026-24747"
        text = f"a file can run code in this torch ({hole}): fairseq_synth reads files of plain data itself"
        yield Finding("note", "checkpoints", text, "pip install 'torch>=2.10' where Python and fairseq allow it")


def _numpy() -> Iterator[Finding]:
    error = import_error("numpy")
    if error is not None:
        yield _failed("numpy", error)
        return
    import numpy

    try:
        if _loaded("torch"):
            importlib.import_module("torch").zeros(1).numpy()
    except RuntimeError as error:
        yield Finding("FAIL", "numpy", f"{numpy.__version__} and torch disagree: {error}", "pip install 'numpy<2'")
    else:
        yield Finding("ok", "numpy", numpy.__version__)


def _gpu() -> Iterator[Finding]:
    if not _loaded("torch"):
        return
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(i).total_memory / 2**30
            bf16 = "" if torch.cuda.is_bf16_supported() else "; no bfloat16"
            yield Finding("ok", "GPU", f"{i}: {torch.cuda.get_device_name(i)}, {memory:.0f} GiB{bf16}")
        return
    if shutil.which("nvidia-smi") is None:
        text, fix = "none: trainings need --cpu", ""
    elif torch.version.cuda is None:
        text, fix = "this torch is built without CUDA", "install torch for your CUDA, as pytorch.org says"
    else:
        text, fix = (
            f"torch for CUDA {torch.version.cuda} sees no GPU",
            "update the driver; look at CUDA_VISIBLE_DEVICES",
        )
    yield Finding("note", "GPU", text, fix)


def _fairseq() -> Iterator[Finding]:
    error = import_error("fairseq")
    if error is not None:
        yield _failed("fairseq", error)
        return
    import fairseq

    kinds = [f"{name} {version}" for name, version in map(distribution, ("fairseq", "fairseq-fixed")) if version]
    origin = " and ".join(kinds) or "not installed by pip"
    text = f"{fairseq.__version__} ({origin}), {os.path.dirname(fairseq.__file__)}"
    if len(kinds) > 1:
        fix = f"pip uninstall both, then {fairseq_install()}"
        yield Finding("FAIL", "fairseq", text + ": one overwrites the other", fix)
    else:
        yield Finding("ok", "fairseq", text)


def distribution(name: str) -> Tuple[str, Optional[str]]:
    """(name, its version or None)."""

    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        return name, None


def _extensions() -> Iterator[Finding]:
    """What fairseq compiles; without it, the first batch fails."""
    if not _loaded("fairseq"):
        return
    needed = ("fairseq.data.data_utils_fast", "fairseq.data.token_block_utils_fast")
    broken = [name for name in needed if import_error(name) is not None]
    if broken:
        text = f"fairseq was not compiled ({', '.join(broken)}): no data can be batched"
        fix = f"with a C compiler and Python's headers, {fairseq_install()} --force-reinstall"
        yield Finding("FAIL", "extensions", text, fix)
    else:
        yield Finding("ok", "extensions", "compiled")


def _commands() -> Iterator[Finding]:
    """The commands of this environment, not another one's of the same name."""
    here = os.path.dirname(sys.executable)
    found = shutil.which("fairseq-train")
    if found is None:
        beside = os.path.exists(os.path.join(here, "fairseq-train"))
        fix = f"activate the environment, or put {here} first in PATH" if beside else fairseq_install()
        yield Finding("FAIL", "commands", "fairseq-train is not in PATH", fix)
    elif os.path.realpath(os.path.dirname(found)) != os.path.realpath(here):
        text = f"fairseq-train is {found}, of another environment than this Python"
        yield Finding("FAIL", "commands", text, f"activate the environment, or put {here} first in PATH")
    else:
        yield Finding("ok", "commands", found)


def _user_dir() -> Iterator[Finding]:
    """Where ``--user-dir fairseq_synth`` leads from the current folder: there first, then beside fairseq."""
    if not _loaded("fairseq"):
        return
    import fairseq

    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    beside = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(fairseq.__file__))), "fairseq_synth")
    found: List[str] = [path for path in (os.path.abspath("fairseq_synth"), beside) if os.path.exists(path)]
    if not found:
        text = "`--user-dir fairseq_synth` is not found from this folder"
        yield Finding("note", "user-dir", text, f"give --user-dir {ours}")
    elif os.path.realpath(found[0]) != os.path.realpath(ours):
        text = f"`--user-dir fairseq_synth` is {found[0]}, but Python imports {ours}"
        yield Finding("FAIL", "user-dir", text, f"give --user-dir {ours}, or remove one of the two")
    else:
        yield Finding("ok", "user-dir", f"`--user-dir fairseq_synth` is {found[0]}")


def _processor() -> Iterator[Finding]:
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding("ok", "CPU", f"{os.cpu_count()} cores, OMP_NUM_THREADS {threads or 'not set'}")
    if not _loaded("torch"):
        return
    import torch

    names = [name for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_") if name not in os.environ]
    if names and sys.platform == "linux" and not torch.cuda.is_available():
        fix = "export " + " ".join(f"{name}=4000000000" for name in names)
        yield Finding("note", "memory", "training on a CPU spends up to half its time returning memory", fix)


# what it is for -> packages, any of which will do
OPTIONAL = (
    ("pictures (plot, results --html)", ("matplotlib",)),
    ("--tensorboard-logdir", ("tensorboard", "tensorboardX")),
    ("BLEU of translations", ("sacrebleu",)),
    ("--bpe sentencepiece", ("sentencepiece",)),
)


def _optional() -> Iterator[Finding]:
    for purpose, packages in OPTIONAL:
        found = [f"{name} {version}" for name, version in map(distribution, packages) if version]
        if found:
            yield Finding("ok", packages[0], found[0])
        else:
            yield Finding("note", packages[0], f"missing: no {purpose}", f"pip install {packages[0]}")
