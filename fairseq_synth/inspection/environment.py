"""What the Python environment has, and what will not work in it. Nothing here needs fairseq to be importable."""

import importlib
import os
import shutil
import sys
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

OLDEST, FAIRSEQ_ENDS = (3, 8), (3, 11)  # fairseq 0.12.2 cannot be imported from Python 3.11 on


class Finding(NamedTuple):
    """level: ok, note (something optional is missing or slow) or FAIL (something will not work)."""

    level: str
    topic: str
    text: str
    fix: str = ""


def explain_import(error: BaseException) -> str:
    """Why fairseq cannot be imported, in one line with the fix."""
    first = (str(error).strip().splitlines() or [""])[0]
    hiding = _hiding()
    if hiding:
        return f"{hiding} hides a module of Python's own, so that fairseq cannot be imported ({first}): rename it"
    if isinstance(error, ModuleNotFoundError) and error.name == "fairseq":
        return f"fairseq is not installed in {sys.executable}: {_install()}"
    if "mutable default" in first and sys.version_info >= FAIRSEQ_ENDS:
        version = _version(sys.version_info)
        return f"fairseq 0.12.2 cannot run on Python {version}: pip uninstall fairseq, then {_install()}"
    if isinstance(error, ModuleNotFoundError):
        return f"fairseq needs {error.name}, which is not installed: pip install {error.name}"
    return f"fairseq cannot be imported ({type(error).__name__}: {first}): in a new environment, {_install()}"


def _hiding() -> Optional[str]:
    """A user's file of the name of a standard module: the folder of the script comes first in sys.path."""
    library = os.path.realpath(os.path.dirname(os.__file__))
    standard = getattr(sys, "stdlib_module_names", None) or [name[:-3] for name in os.listdir(library)]  # Python < 3.10
    for folder in sys.path:
        place = os.path.realpath(folder or os.getcwd())
        if place.startswith(library) or not os.path.isdir(place):
            continue
        for name in standard:
            path = os.path.join(place, f"{name}.py")
            loaded = getattr(sys.modules.get(name), "__file__", None)
            if os.path.isfile(path) and os.path.realpath(loaded or path) == path:
                return path
    return None


def _install() -> str:
    wanted = "fairseq-fixed" if sys.version_info >= FAIRSEQ_ENDS else "'pip<24.1' and then fairseq==0.12.2"
    return f"pip install {wanted}"


def _version(version: Any) -> str:
    return ".".join(map(str, version[:3]))


def findings() -> Iterator[Finding]:
    """One after the other, as they are found."""
    for check in (_python, _torch, _numpy, _gpu, _fairseq, _extensions, _commands, _user_dir, _processor):
        yield from check()
    yield from _optional()


def _python() -> Iterator[Finding]:
    text = f"{_version(sys.version_info)}, {sys.executable}"
    old = sys.version_info < OLDEST
    yield Finding("FAIL" if old else "ok", "Python", text, f"use Python {_version(OLDEST)} or later" if old else "")


def _torch() -> Iterator[Finding]:
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
    import numpy
    import torch

    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        yield Finding("FAIL", "numpy", f"{numpy.__version__} and torch disagree: {error}", "pip install 'numpy<2'")
    else:
        yield Finding("ok", "numpy", numpy.__version__)


def _gpu() -> Iterator[Finding]:
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
    import fairseq

    kinds = [f"{name} {version}" for name, version in map(distribution, ("fairseq", "fairseq-fixed")) if version]
    origin = " and ".join(kinds) or "not installed by pip"
    text = f"{fairseq.__version__} ({origin}), {os.path.dirname(fairseq.__file__)}"
    if len(kinds) > 1:
        yield Finding("FAIL", "fairseq", text + ": one overwrites the other", f"pip uninstall both, then {_install()}")
    else:
        yield Finding("ok", "fairseq", text)


def distribution(name: str) -> Tuple[str, Optional[str]]:
    """(name, its version or None)."""
    from importlib import metadata  # which needs much of Python: explain_import runs where not all of it is there

    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        return name, None


def _extensions() -> Iterator[Finding]:
    """What fairseq compiles; without it, the first batch fails."""
    needed = ("fairseq.data.data_utils_fast", "fairseq.data.token_block_utils_fast")
    broken = [name for name in needed if not importable(name)]
    if broken:
        text = f"fairseq was not compiled ({', '.join(broken)}): no data can be batched"
        fix = f"with a C compiler and Python's headers, {_install()} --force-reinstall"
        yield Finding("FAIL", "extensions", text, fix)
    else:
        yield Finding("ok", "extensions", "compiled")


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


def _commands() -> Iterator[Finding]:
    """The commands of this environment, not another one's of the same name."""
    here = os.path.dirname(sys.executable)
    found = shutil.which("fairseq-train")
    if found is None:
        beside = os.path.exists(os.path.join(here, "fairseq-train"))
        fix = f"activate the environment, or put {here} first in PATH" if beside else _install()
        yield Finding("FAIL", "commands", "fairseq-train is not in PATH", fix)
    elif os.path.realpath(os.path.dirname(found)) != os.path.realpath(here):
        text = f"fairseq-train is {found}, of another environment than this Python"
        yield Finding("FAIL", "commands", text, f"activate the environment, or put {here} first in PATH")
    else:
        yield Finding("ok", "commands", found)


def _user_dir() -> Iterator[Finding]:
    """Where ``--user-dir fairseq_synth`` leads from the current folder: there first, then beside fairseq."""
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
