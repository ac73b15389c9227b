"""examples/translation: rows of the table are trained once, scored and tabulated; refusals."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "examples" / "translation"
ENGLISH = ["a man walks", "two dogs run", "a child laughs"]
GERMAN = ["ein mann geht", "zwei hunde laufen", "ein kind lacht"]


def reproduce(*args, **environment):
    command = ["bash", str(FOLDER / "reproduce.sh"), *map(str, args)]
    environment = {**os.environ, "FAIRSEQ_SYNTH_PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    source = tmp_path_factory.mktemp("multi30k")
    for split in ("train", "valid", "test.2016"):
        (source / f"{split}.en").write_text("\n".join(ENGLISH) + "\n", encoding="utf-8")
        (source / f"{split}.de").write_text("\n".join(GERMAN) + "\n", encoding="utf-8")
    script, out = FOLDER / "prepare_multi30k.py", source / "data"
    subprocess.run([sys.executable, str(script), "--from", str(source), "--out", str(out)], check=True)
    return str(out / "bin")


def table(text):
    """Row -> column -> cell."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}


def test_rows_are_trained_once_and_tabulated(data, tmp_path):
    environment = {"DATA": data, "OUT": str(tmp_path), "UPDATES": "2", "AVERAGE": "", "SEEDS": "2",
                   "PRECISION": "fp32"}  # fmt: skip
    done = reproduce("fixed_random-normal", **environment)
    assert done.returncode == 0, done.stdout
    written = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    row = table(written)["fixed_random-normal"]
    assert row["seed"] == "2" and "words/s" not in row and "tok:none" in written
    assert {"valid ppl", "BLEU last", "chrF2 last"} < set(row) and int(row["parameters"].replace(",", "")) > 1e6
    folder = tmp_path / "updates2-tokens4096" / "seed2" / "fixed_random-normal"
    log = (folder / "train.log").read_text(encoding="utf-8")
    (run,) = map(json.loads, (tmp_path / "RESULTS.jsonl").read_text().splitlines())
    assert run["about"]["command"].startswith("UPDATES=2 SEED=2 PRECISION=fp32 bash examples/translation/train.sh")
    assert run["about"]["torch"] and run["about"]["hardware"] and run["options"]["seed"] == "2"
    assert "'synthesizer_init': normal" in log and "'seed': 2" in log
    assert reproduce("fixed_random-normal", **environment).returncode == 0
    assert (folder / "train.log").read_text(encoding="utf-8") == log
    (folder / "trained-2").unlink()
    mixed = reproduce("fixed_random-normal", **{**environment, "PRECISION": "bf16"})
    assert mixed.returncode and "was begun with PRECISION=fp32" in mixed.stdout


@pytest.mark.parametrize(
    "arguments, environment, says",
    [
        (["randm"], {}, "randm: no such row; the rows are dot_product transformer"),
        ([], {"UPDATES": "0"}, "UPDATES=0: must be a positive number"),
        ([], {"AVERAGE": "some"}, "AVERAGE=some: must be a number of epochs, or empty"),
        ([], {"SEEDS": "1,2"}, "SEEDS=1,2: must be numbers separated by spaces"),
        ([], {"DATA": "nowhere"}, "DATA=nowhere holds no fairseq data: first prepare_multi30k.py"),
    ],
)
def test_refused_in_one_line(data, tmp_path, arguments, environment, says):
    done = reproduce(*arguments, **{"DATA": data, "OUT": str(tmp_path / "out"), **environment})
    assert done.returncode and f"reproduce.sh: error: {says}" in done.stdout.splitlines()[-1], done.stdout
    assert not (tmp_path / "out").exists()


def test_a_failing_training_is_told(data, tmp_path):
    done = reproduce("random", DATA=data, OUT=str(tmp_path), UPDATES="1", MAX_TOKENS="2")
    assert done.returncode and "reproduce.sh: error: training random failed, see" in done.stdout
    assert not (tmp_path / "RESULTS.md").exists()
