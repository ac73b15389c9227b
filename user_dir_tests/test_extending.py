"""EXTENDING.md, to the letter: its files are written, its commands run, each in a process of its own."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, REPOSITORY, call_command, write_corpus

TEXT = (REPOSITORY / "fairseq_synth" / "EXTENDING.md").read_text()
FILES = dict(re.findall(r"^`(\S+\.py)`:\n\n```python\n(.*?)^```", TEXT, re.M | re.S))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
PROGRAMS = {"fairseq-synth": "fairseq_synth", "fairseq-train": "fairseq_cli.train",
            "fairseq-generate": "fairseq_cli.generate"}  # fmt: skip
CPU = ["--cpu", "--num-workers", "0", "--no-progress-bar"]
SIZES = {side: [f"--{side}-embed-dim", "16", f"--{side}-ffn-embed-dim", "24"] for side in ("encoder", "decoder")}
EXTRA = {
    "fairseq-synth": [],
    "fairseq-train": [*CPU, "--max-update", "2", "--max-tokens", "200", *SIZES["encoder"]],
    "fairseq-generate": [*CPU, "--max-len-b", "5"],
}


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
    text = write_corpus(root / "text", {"train": 60, "valid": 10})
    prefixes = ("--trainpref", text / "train.src", "--validpref", text / "valid.src")
    call_command("preprocess", "--only-source", *prefixes, "--destdir", root / "data-bin" / "text")
    return root


def run(folder, *words):
    """The first command of the text that begins with these words and has these in it. Returns what it printed."""
    command = next(c for c in COMMANDS if c[0] == words[0] and set(words) <= set(c))
    more = SIZES["decoder"] if "--share-all-embeddings" in command else []
    line = [sys.executable, "-m", PROGRAMS[command[0]], *command[1:], *EXTRA[command[0]], *more]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def test_every_command_is_run_below():
    assert len(COMMANDS) == 8 and len(FILES) == 5


def test_a_scorer_keeps_the_invariants(folder):
    assert "my_relative: all invariants hold" in run(folder, "fairseq-synth", "check", "my_relative")


def test_a_scorer_trains_and_translates_with_its_option(folder):
    log = run(folder, "fairseq-train", "my_relative+dot_product")
    assert "'synthesizer_clip': 8" in log and "done training" in log
    assert "Translated 13 sentences" in run(folder, "fairseq-generate")


def test_a_way_is_taken(folder):
    assert "dot_product: all invariants hold" in run(folder, "fairseq-synth", "check", "dot_product")
    assert re.search(r"^evaluation +head_by_head$", run(folder, "fairseq-synth", "check", "--ways"), re.M)


def test_a_model_trains(folder):
    log = run(folder, "fairseq-train", "masked_lm")
    assert "span_layer_1" in log and "mixture_encoder_1_self_random" in log and "done training" in log
    assert float(re.search(r"span_loss[ =]([\d.]+)", log).group(1)) >= 0


def test_a_group_is_frozen(folder):
    log = run(folder, "fairseq-train", "distances")
    assert re.search(r"self attention +[\d,]+ +528 ", log), "4 layers of 4 heads with 2 * 16 + 1 distances"
    assert "done training" in log


def test_a_command_is_found(folder):
    printed = run(folder, "fairseq-synth", "architectures").split()
    assert "synth_transformer_tiny" in printed and all("synth_" in name for name in printed)
