"""EXTENDING.md, to the letter: its files are written, its commands run, each in a process of its own."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, REPOSITORY

TEXT = (REPOSITORY / "fairseq_synth" / "EXTENDING.md").read_text()
FILES = dict(re.findall(r"^`(\S+\.py)`:\n\n```python\n(.*?)^```", TEXT, re.M | re.S))
COMMANDS = [shlex.split(b.replace("\\\n", " ")) for b in re.findall(r"^```bash\n(.*?)^```", TEXT, re.M | re.S)]
PROGRAMS = {"fairseq-synth": "fairseq_synth", "fairseq-train": "fairseq_cli.train",
            "fairseq-generate": "fairseq_cli.generate"}  # fmt: skip
CPU = ["--cpu", "--num-workers", "0", "--no-progress-bar"]
SMALL = [*CPU, "--max-update", "2", "--max-tokens", "200", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16",
         "--encoder-ffn-embed-dim", "24", "--decoder-ffn-embed-dim", "24"]  # fmt: skip
EXTRA = {"fairseq-synth": [], "fairseq-train": SMALL, "fairseq-generate": [*CPU, "--max-len-b", "5"]}


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """The package, what EXTENDING.md adds to it and puts beside it, and data."""
    root = tmp_path_factory.mktemp("extending")
    shutil.copytree(REPOSITORY / "fairseq_synth", root / "fairseq_synth", ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in FILES.items():
        (root / path).parent.mkdir(exist_ok=True)
        assert not (root / path).exists(), path
        (root / path).write_text(text)
    (root / "data-bin").mkdir()
    os.symlink(corpus, root / "data-bin" / "en-de")
    return root


def run(folder, *words):
    """The one command of the text that begins with these words and has these in it. Returns what it printed."""
    (command,) = [c for c in COMMANDS if c[0] == words[0] and set(words) <= set(c)]
    line = [sys.executable, "-m", PROGRAMS[command[0]], *command[1:], *EXTRA[command[0]]]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def test_every_command_is_run_below():
    assert len(COMMANDS) == 7 and len(FILES) == 5


def test_a_scorer_keeps_the_invariants(folder):
    assert "my_relative: all invariants hold" in run(folder, "fairseq-synth", "check", "my_relative")


def test_a_scorer_trains_and_translates_with_its_option(folder):
    log = run(folder, "fairseq-train", "my_relative+dot_product")
    assert "'synthesizer_clip': 8" in log and "done training" in log
    assert "Translated 13 sentences" in run(folder, "fairseq-generate")


def test_a_way_is_taken(folder):
    printed = run(folder, "fairseq-synth", "check", "--ways")
    assert "head_by_head" in printed and "all invariants hold" in printed


def test_a_model_trains(folder):
    log = run(folder, "fairseq-train", "my_deep_shallow")
    assert "(11): SynthEncoderLayer" in log and "done training" in log


def test_a_group_is_frozen(folder):
    log = run(folder, "fairseq-train", "distances")
    assert re.search(r"self attention +[\d,]+ +528 ", log), "4 layers of 4 heads with 2 * 16 + 1 distances"
    assert "done training" in log


def test_a_command_is_found(folder):
    printed = run(folder, "fairseq-synth", "architectures").split()
    assert "synth_transformer_tiny" in printed and all("synth_" in name for name in printed)
