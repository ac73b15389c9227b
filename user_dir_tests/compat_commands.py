"""The real commands on a tiny corpus, as test_compat.py and test_errors.py need them."""

import functools
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from conftest import call_command as call  # noqa: F401  (the tests take it from here)

USER_DIR = Path(__file__).resolve().parent.parent / "fairseq_synth"
# (sentences, shortest, longest) per split. None of the sizes is a multiple of 8 but train's.
SPLITS = {
    "train": (32, 1, 12),
    "valid": (13, 1, 12),
    "five": (5, 1, 12),
    "large": (1003, 1, 12),
    "empty": (0, 1, 1),
    "long": (9, 20, 30),
}
# What fairseq-preprocess calls the test sets it is given.
SUBSETS = {"five": "test", "large": "test1", "empty": "test2", "long": "test3"}
MAX_POSITIONS = 18
SIZES = [
    *("--encoder-layers", 1, "--encoder-embed-dim", 16, "--encoder-ffn-embed-dim", 16),
    *("--decoder-layers", 1, "--decoder-embed-dim", 16, "--decoder-ffn-embed-dim", 16),
    *("--encoder-attention-heads", 2, "--decoder-attention-heads", 2, "--dropout", 0),
]
LANGUAGE_MODEL_SIZES = [
    *("--decoder-layers", 1, "--decoder-embed-dim", 16, "--decoder-ffn-embed-dim", 16),
    *("--decoder-input-dim", 16, "--decoder-output-dim", 16, "--decoder-attention-heads", 2),
]


class Result(NamedTuple):
    """What a command did: exit status, both streams in one text, and standard error alone."""

    status: int
    text: str
    errors: str

    @property
    def last_error_line(self):
        return self.errors.strip().splitlines()[-1]


def run(command, *arguments, launcher=(), plugin=True):
    """Run a fairseq command in a process of its own; `launcher` are the arguments of torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Set by pytest or by the plugin in this process; the command must do without them.
    for name in ("PYTHONWARNINGS", "LOGLEVEL", "HYDRA_FULL_ERROR"):
        environment.pop(name, None)
    launch = ("torch.distributed.run", *launcher, "-m") if launcher else ()
    line = [sys.executable, "-m", *launch, f"fairseq_cli.{command}", *arguments]
    line += ["--user-dir", USER_DIR] if plugin else []
    done = subprocess.run(
        [str(word) for word in line],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Result(done.returncode, done.stdout + done.stderr, done.stderr)


def succeed(command, *arguments, **options):
    """The output of `run`; an AssertionError that shows it when the command fails."""
    result = run(command, *arguments, **options)
    if result.status != 0:
        raise AssertionError(f"fairseq-{command} failed:\n{result.text[-4000:]}")
    return result.text


def train_arguments(data, save_dir, *extra, updates=1):
    """A stock transformer without dropout, trained by plain SGD so that equal gradients show."""
    return [
        *(data, "--arch", "transformer", *SIZES, "--save-dir", save_dir, "--cpu"),
        *("--max-source-positions", MAX_POSITIONS, "--max-target-positions", MAX_POSITIONS),
        *("--optimizer", "sgd", "--lr", 0.1, "--max-update", updates, "--no-epoch-checkpoints"),
        *("--num-workers", 0, "--no-progress-bar", *extra),
    ]


def generate_arguments(data, checkpoint, split, *extra):
    return [
        *(data, "--path", checkpoint, "--gen-subset", SUBSETS[split], "--cpu", "--beam", 1),
        *("--max-len-b", 5, "--max-sentences", 64, "--num-workers", 0, "--no-progress-bar", *extra),
    ]


def weights(checkpoint):
    """The model of a checkpoint, as a dictionary of tensors."""
    return torch.load(checkpoint, map_location="cpu")["model"]


def hypotheses(text):
    """How many sentences fairseq-generate translated."""
    return len(set(re.findall(r"^H-(\d+)\t", text, re.MULTILINE)))


@functools.lru_cache(maxsize=None)
def workplace(root):
    """Binarised corpora and one-update checkpoints, built once per test run below `root`."""
    data, blocks = Path(root, "pairs"), Path(root, "blocks")
    _write_text(Path(root))
    tests = ",".join(str(Path(root, split)) for split in SUBSETS)
    _preprocess(data, "-s", "de", "-t", "en", "--joined-dictionary", *_prefixes(root, "", tests))
    mono = ",".join(str(Path(root, f"{split}.de")) for split in ("large", "empty"))
    _preprocess(blocks, "--only-source", *_prefixes(root, ".de", mono))
    bleu = ("--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 5}')  # numpy in the file
    call("train", *train_arguments(data, Path(root, "mt"), "--max-sentences", 8, *bleu))
    call("train", *language_model_arguments(blocks, Path(root, "lm")))
    return Path(root)


def language_model_arguments(data, save_dir):
    return [
        *(data, "--task", "language_modeling", "--arch", "transformer_lm", *LANGUAGE_MODEL_SIZES),
        *("--tokens-per-sample", 16, "--max-sentences", 4, "--max-update", 1, "--cpu"),
        *("--optimizer", "sgd", "--lr", 0.1, "--save-dir", save_dir, "--no-epoch-checkpoints"),
        *("--num-workers", 0, "--no-progress-bar"),
    ]


def _prefixes(root, suffix, tests):
    train, valid = (f"{Path(root, split)}{suffix}" for split in ("train", "valid"))
    return "--trainpref", train, "--validpref", valid, "--testpref", tests


def _preprocess(folder, *arguments):
    call("preprocess", "--destdir", folder, *arguments)


def _write_text(root):
    rng = random.Random(3)
    for split, (sentences, shortest, longest) in SPLITS.items():
        with open(root / f"{split}.de", "w") as source, open(root / f"{split}.en", "w") as target:
            for _ in range(sentences):
                words = [rng.choice("abcdefgh") for _ in range(rng.randint(shortest, longest))]
                print(*words, file=source)
                print(*reversed(words), file=target)
