"""examples/frozen: the text in pieces, refusals, a row trained and scored, the table."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from fairseq.data import Dictionary, data_utils

FOLDER = REPOSITORY / "examples" / "frozen"


def study(*args, **environment):
    command = ["bash", str(FOLDER / "study.sh"), *map(str, args)]
    environment = {**os.environ, "FAIRSEQ_SYNTH_PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pieces(*args):
    command = [sys.executable, str(FOLDER / "prepare_pieces.py"), *map(str, args)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    words = "the cat sat on a mat and saw two dogs run far away from home".split()
    lines = [" ".join(words[(i * k) % len(words)] for k in range(1, 9)) for i in range(400)]
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_text_comes_back(book, tmp_path):
    done = pieces("--from", book, "--out", tmp_path / "data", "--size", "40")
    assert done.returncode == 0, done.stdout
    words = Dictionary.load(str(tmp_path / "data" / "bin" / "dict.txt"))
    lines = data_utils.load_indexed_dataset(str(tmp_path / "data" / "bin" / "train"), words)
    first = words.string(lines[0]).replace(" ", "").replace("\u2581", " ").strip()
    assert first == book.read_text(encoding="utf-8").splitlines()[0]
    assert len(words) <= 40 + 4


def test_bad_input_is_named(book, tmp_path):
    for done, message in (
        (pieces("--from", book, "--out", tmp_path), f"prepare_pieces.py: error: --out {tmp_path}: exists already"),
        (pieces("--from", book, "--out", tmp_path / "x", "--size", "9000"), "prepare_pieces.py: error: --size 9000: "),
        (study(), "study.sh: error: nothing: the first argument is translation or language_model"),
        (study("language_model", "ffm"), "study.sh: error: ffm: a row is nothing, or embeddings, attention and ffn"),
        (study("translation", UPDATES="0"), "study.sh: error: UPDATES=0: must be a positive number"),
    ):
        assert done.returncode and message in done.stdout.splitlines()[-1], done.stdout
    assert not list(tmp_path.iterdir())


def test_rows_are_trained_once_and_tabulated(book, tmp_path):
    environment = {"TEXT": str(book), "PIECES": "40", "UPDATES": "2", "OUT": str(tmp_path)}
    done = study("language_model", "attention+ffn", "nothing", **environment)
    assert done.returncode == 0, done.stdout
    table = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in done.stdout.splitlines()}
    assert table["frozen"] == ["trainable %", "epochs", "valid ppl", "test ppl"]
    assert table["nothing"][:2] == ["100.0", "1"] and float(table["nothing"][3]) > 1
    assert float(table["attention+ffn"][0]) < 20
    log = tmp_path / "language_model-updates2-seed1" / "nothing" / "train.log"
    before = log.stat().st_mtime_ns
    assert study("language_model", "nothing", **environment).returncode == 0
    assert log.stat().st_mtime_ns == before
