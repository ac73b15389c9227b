"""fairseq-synth results: runs kept as lines of JSON, several metrics, the paired bootstrap."""

import csv
import io
import json
import random

import pytest

from fairseq_synth.cli import main
from fairseq_synth.inspection.records import read_records

WORDS = "a man rides his red bike down the long street near some old trees".split()


def write_log(folder, seed, losses, **options):
    folder.mkdir(parents=True)
    options = {"dropout": 0.1, "data": "/home/someone/data-bin/en-de", "save_dir": str(folder), **options}
    lines = [f"x | INFO | fairseq_cli.train | {{'_name': None, 'common': {{'seed': {seed}}}, 'model': {options}}}"]
    lines.append("x | INFO | fairseq_cli.train | num. shared model params: 1,234 (num. trained: 1,000)")
    for i, loss in enumerate(losses, 1):
        step = {"epoch": i, "loss": loss, "nll_loss": loss, "wpb": 50, "train_wall": 2, "wall": 90 * i,
                "num_updates": 20 * i}  # fmt: skip
        lines.append("x | INFO | train_inner | " + json.dumps({k: str(v) for k, v in step.items()}))
        valid = {"epoch": i, "valid_nll_loss": str(loss + 1), "valid_num_updates": str(20 * i)}
        lines.append("x | INFO | valid | " + json.dumps(valid))
    (folder / "train.log").write_text("\n".join(lines) + "\n")
    return folder


def write_translations(folder, errors, seed=0):
    """60 sentences; in this share of them two words have changed places."""
    folder.mkdir(exist_ok=True)
    truth, noise = random.Random(5), random.Random(seed)
    with open(folder / "generate.txt", "w") as file:
        for number in range(60):
            words = truth.choices(WORDS, k=12)
            file.write(f"T-{number}\t{' '.join(words)}\n")
            if noise.random() < errors:
                words[4], words[7] = words[7], words[4]
            file.write(f"H-{number}\t-1\t{' '.join(words)}\n")


def results(capsys, *arguments):
    assert main(["results", *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def table(capsys, *arguments):
    return list(csv.DictReader(io.StringIO(results(capsys, *arguments, "--format", "csv"))))


@pytest.fixture
def runs(tmp_path):
    """Two seeds of one model and one of another, with scores."""
    found = []
    for name, seed, dropout in (("one", 1, 0.1), ("one", 2, 0.1), ("two", 1, 0.2)):
        run = write_log(tmp_path / f"seed{seed}" / name, seed, [5.0, 4.0, 3.5 + seed], dropout=dropout)
        write_translations(run / "last", 0.1 if name == "one" else 0.5, seed)
        found.append(run)
    (found[0] / "run.json").write_text(json.dumps({"command": "fairseq-train data-bin", "torch": "2.13"}))
    return found


def test_the_record_makes_the_same_table(runs, tmp_path, capsys):
    record = tmp_path / "kept" / "runs.jsonl"
    record.parent.mkdir()
    results(capsys, *runs, "--format", "jsonl", "--out", record)
    text = record.read_text()
    assert len(text.splitlines()) == 3 and str(tmp_path) not in text and "/home/someone" not in text
    assert json.loads(text.splitlines()[0])["about"] == {"command": "fairseq-train data-bin", "torch": "2.13"}
    for arguments in ([], ["--hide", "words/s"], ["--each"]):
        assert results(capsys, record, *arguments) == results(capsys, *runs, *arguments)
    (first, _) = table(capsys, record)
    assert first["model"] == "one" and first["seed"] == "1 2" and first["words/s"] == "500"
    assert first["minutes"] == "4.5" and float(first["BLEU last"]) > 80


def test_the_record_keeps_curves_and_what_is_infinite(tmp_path, capsys):
    run = write_log(tmp_path / "r", 1, [5.0] * 299 + [float("inf")])
    record = tmp_path / "r.jsonl"
    results(capsys, run, "--format", "jsonl", "--out", record)
    (read,) = read_records(str(record))
    assert [numbers["num_updates"] for numbers in read.run.valid] == [20 * i for i in range(1, 301)]
    assert read.run.valid[-1]["nll_loss"] == float("inf") and "Infinity" not in record.read_text()
    assert len(read.run.steps) == 100 and read.run.steps[-1]["num_updates"] == 6000


def test_every_metric_of_sacrebleu_is_a_column(runs, capsys):
    scores = [{"name": name, "score": score, "signature": f"{name}|x"} for name, score in (("BLEU", 41), ("chrF2", 64))]
    (runs[0] / "last" / "scores.json").write_text(json.dumps(scores))
    (runs[0] / "last" / "ter.json").write_text(json.dumps({"name": "TER", "score": 40.5, "signature": "TER|x"}))
    (row,) = table(capsys, runs[0])
    assert (row["BLEU last"], row["chrF2 last"], row["TER last"]) == ("41", "64", "40.5")
    assert "- chrF2: chrF2|x" in results(capsys, runs[0])


def test_the_paired_bootstrap_tells_chance_from_difference(runs, tmp_path, capsys):
    """Two seeds of equal quality and half as good a model; the first row is compared with nothing."""
    pytest.importorskip("sacrebleu.significance")
    like = write_log(tmp_path / "three", 1, [5.0], dropout=0.3)
    write_translations(like / "last", 0.1, seed=9)
    rows = {row["model"]: row for row in table(capsys, *runs, like, "--paired")}
    assert rows["one"]["p last"] == ""
    assert float(rows["two"]["p last"]) < 0.01 < 0.1 < float(rows["three"]["p last"])
    assert "paired bootstrap of BLEU against the first row" in results(capsys, *runs, "--paired")


def refused(capsys, *arguments):
    assert main(["results", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


def test_what_cannot_be_compared_is_refused(runs, tmp_path, capsys):
    pytest.importorskip("sacrebleu.significance")
    record = tmp_path / "r.jsonl"
    results(capsys, *runs, "--format", "jsonl", "--out", record)
    assert "holds no translations" in refused(capsys, record, "--paired")
    bare = write_log(tmp_path / "bare", 1, [5.0])
    assert "has no translations" in refused(capsys, bare, runs[0], "--paired")
    (runs[2] / "last" / "generate.txt").write_text("T-0\ta b\nH-0\t-1\ta b\n")
    assert "translates other sentences than the first run" in refused(capsys, *runs, "--paired")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[" * 10**5, '{"record": 2}', "no json", '{"record": 1, "run": 3}']
)
def test_a_damaged_record_is_one_line(content, tmp_path, capsys):
    record = tmp_path / "r.jsonl"
    record.write_text(content)
    assert str(record) in refused(capsys, record)


def test_every_part_of_a_record_may_be_wrong(runs, tmp_path, capsys):
    """A stranger's file: another type in each place ends in one line or changes nothing that is read."""
    whole = json.loads(results(capsys, runs[0], "--format", "jsonl"))
    record = tmp_path / "r.jsonl"
    tried = 0
    for name in whole:
        for value in (None, 3, "x", [], {}, [3], ["x"], {"x": 3}, [[]]):
            record.write_text(json.dumps({**whole, name: value}))
            status = main(["results", str(record), "--format", "csv"])
            error = capsys.readouterr().err.strip()
            assert status in (0, 2) and len(error.splitlines()) == (status > 0), (name, value, error)
            tried += 1
    assert tried == 90
