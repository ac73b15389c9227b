"""Shared fixtures: the plugin loaded once, one thread, a tiny corpus and the real commands run in this process."""

import contextlib
import importlib
import io
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny: threads only get in each other's way

import torch  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
USER_DIR = REPOSITORY / "fairseq_synth"
sys.path.insert(0, str(REPOSITORY))
sys.path.insert(0, str(REPOSITORY / "user_dir_tests"))
torch.set_num_threads(1)

from fairseq import checkpoint_utils  # noqa: E402

import fairseq_synth  # noqa: E402,F401
from fairseq_synth.errors import explain  # noqa: E402

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
WORDS = [f"w{i}" for i in range(30)]


def run_command(name, *args, cwd=None, check=True):
    """Run a fairseq command (train, generate, preprocess, ...) as a user would; returns the completed process."""
    command = [sys.executable, "-m", f"fairseq_cli.{name}", *map(str, args)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def call_command(name, *args):
    """The same without a new process: parse the arguments as the command does and call its main().

    Returns what it printed and logged. Exceptions come through.
    """
    module = importlib.import_module(f"fairseq_cli.{name}")
    stream, argv, root = io.StringIO(), sys.argv, logging.getLogger()
    handler, level = logging.StreamHandler(stream), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    sys.argv = [f"fairseq-{name}", *map(str, args)]
    vars(checkpoint_utils.save_checkpoint).pop("best", None)  # fairseq keeps the best loss on the function
    try:
        with contextlib.redirect_stdout(stream):
            module.cli_main()
    finally:
        sys.argv = argv
        root.removeHandler(handler)
        root.setLevel(level)
    return stream.getvalue()


def line_of(call, *arguments, **options):
    """The one line that a user sees for a call that must fail."""
    with pytest.raises(BaseException) as error:  # noqa: PT011  (fairseq wraps ours; explain() finds it)
        call(*arguments, **options)
    line = explain(error.value)
    assert line and line.isprintable(), f"{type(error.value).__name__}: {error.value}"
    return line


def write_corpus(folder, splits, seed=1, longest=8):
    """Copy with a twist: the target is the source reversed, every word renamed. Lengths 2 to `longest`."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, sentences in splits.items():
        with open(folder / f"{split}.src", "w") as src, open(folder / f"{split}.tgt", "w") as tgt:
            for _ in range(sentences):
                words = [rng.choice(WORDS) for _ in range(rng.randint(2, longest))]
                print(*words, file=src)
                print(*(w.replace("w", "v") for w in reversed(words)), file=tgt)
    return folder


def preprocess(text, out, *extra):
    """Binarise a corpus made by :func:`write_corpus`."""
    prefixes = [a for s in ("train", "valid", "test") for a in (f"--{s}pref", text / s)]
    call_command("preprocess", "--source-lang", "src", "--target-lang", "tgt", *prefixes, "--destdir", out,
                 "--joined-dictionary", *extra)  # fmt: skip
    return out


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Binarised: 300 training, 20 validation and 13 test sentences (13: no multiple of 8)."""
    root = tmp_path_factory.mktemp("corpus")
    return preprocess(write_corpus(root / "text", {"train": 300, "valid": 20, "test": 13}), root / "bin")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """One side of such a corpus, binarised for language models."""
    root = write_corpus(tmp_path_factory.mktemp("text"), {"train": 60, "valid": 10, "test": 10})
    prefixes = [a for s in ("train", "valid", "test") for a in (f"--{s}pref", root / f"{s}.src")]
    call_command("preprocess", "--only-source", *prefixes, "--destdir", root / "bin")
    return root / "bin"


SIZES = {"layers": 2, "embed-dim": 16, "ffn-embed-dim": 24, "attention-heads": 2}
TINY = [a for side in ("encoder", "decoder") for k, v in SIZES.items() for a in (f"--{side}-{k}", str(v))]


def train_args(data, save_dir, *extra, arch="synth_transformer", updates=2):
    """Arguments of a small and quick fairseq-train."""
    return [data, "--user-dir", USER_DIR, "--arch", arch, *TINY, "--share-all-embeddings", "--optimizer", "adam",
            "--lr", "0.01", "--max-tokens", "200", "--max-update", str(updates), "--save-dir", save_dir, "--cpu",
            "--no-progress-bar", "--no-epoch-checkpoints", "--num-workers", "0", *extra]  # fmt: skip


def generate_args(data, checkpoint, *extra):
    return [data, "--user-dir", USER_DIR, "--path", checkpoint, "--cpu", "--beam", "3", "--max-len-b", "12",
            "--no-progress-bar", "--num-workers", "0", *extra]  # fmt: skip
