"""No file runs code, whatever it says and however it is loaded.

FAIRSEQ_SYNTH_LONG_TESTS=1 runs every file by every way, not only those that differ.
"""

import os

import pytest
import torch
from conftest import call_command, train_args
from hostile import LM, PATHS, QUIET, Place, matrix, write

from fairseq_synth.errors import explain


@pytest.fixture(scope="module")
def place(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    text = corpus.parent / "text"
    splits = [a for split in ("train", "valid", "test") for a in (f"--{split}pref", text / f"{split}.tgt")]
    call_command("preprocess", "--only-source", *splits, "--destdir", root / "blocks", "--srcdict",
                 corpus / "dict.src.txt")  # fmt: skip
    call_command("train", *train_args(corpus, root / "mt", "--freeze", "ffn", updates=1))
    call_command("train", root / "blocks", "--task", "language_modeling", "--arch", "transformer_lm", *LM, *QUIET,
                 "--optimizer", "adam", "--lr", "0.01", "--max-tokens", "200", "--max-update", "1", "--save-dir",
                 root / "lm", "--no-epoch-checkpoints")  # fmt: skip
    return Place(corpus, root / "blocks", *(root / name / "checkpoint_last.pt" for name in ("mt", "lm")))


def outcome(path, place, file, out, capsys):
    """None for a file that was loaded, else the one line."""
    capsys.readouterr()
    try:
        PATHS[path](place, file, out)
    except SystemExit:
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]
    except Exception as error:
        line = explain(error)
        assert line and "\n" not in line, f"{type(error).__name__}: {error}"
        return line
    return None


LONG = os.environ.get("FAIRSEQ_SYNTH_LONG_TESTS", "0") not in ("", "0")


@pytest.mark.parametrize("kind, path", matrix(LONG))
def test_no_file_runs_code(kind, path, place, tmp_path, capsys):
    good = place.good_lm if path in ("with_language_model", "eval_lm") else place.good
    mark = tmp_path / "mark"
    file = write(kind, torch.load(good, weights_only=False), tmp_path / "file.pt", mark)
    line, problem = "", None
    try:
        line = outcome(path, place, file, tmp_path, capsys)
    except AssertionError as error:
        problem = error
    assert not mark.exists(), "code was run"
    assert problem is None, problem
    if "pick" in kind or kind == "old format":
        assert "not allowed" in line or "cannot be read" in line, line
    if kind == "interpolation" and path in ("generate", "inspect"):
        assert "${oc.env:HOME}" in line, line


@pytest.mark.parametrize("path", sorted(set(PATHS) - {"materialize", "with_language_model"}))
def test_the_good_file_is_loaded(path, place, tmp_path, capsys):
    """Otherwise nothing above would prove anything."""
    good = place.good_lm if path == "eval_lm" else place.good
    assert outcome(path, place, good, tmp_path, capsys) is None
