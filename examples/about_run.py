#!/usr/bin/env python3
"""What a training was: `python about_run.py RUN COMMAND` writes RUN/run.json, which fairseq-synth results keeps.

COMMAND is what a reader has to type. A run that goes on keeps the file of its start.
"""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Dict, List, Optional


def version(*names: str) -> Optional[str]:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def hardware() -> str:
    """The GPU where GPU is set, else the processor with the threads of a training."""
    if os.environ.get("GPU"):
        import torch

        return torch.cuda.get_device_name(0)
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{names[0] if names else platform.machine()}, {threads} thread(s)"


def _cpuinfo() -> List[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def main(argv: List[str]) -> None:
    folder, command = Path(argv[0]), argv[1]
    about: Dict[str, Optional[str]] = {
        "command": command,
        "hardware": hardware(),
        "precision": os.environ.get("PRECISION"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "fairseq": version("fairseq", "fairseq-fixed"),
        "fairseq_synth": version("fairseq_synth"),
    }
    path = folder / "run.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        part.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
