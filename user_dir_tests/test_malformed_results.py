"""fairseq-synth results on logs and names that are damaged or hostile: a table, or one line."""

import csv
import io
import json
import os
import random

import pytest

from fairseq_synth.cli import main as synth_command
from fairseq_synth.inspection.logs import record

HEAD = "2024-01-01 00:00:00 | INFO | fairseq_cli.train | "
SIZE = HEAD + "num. shared model params: 1,234 (num. trained: 1,000)\n"


def line(kind, **numbers):
    prefix = "" if kind == "train_inner" else f"{kind}_"
    values = json.dumps({f"{prefix}{k}": v for k, v in numbers.items()})
    return f"2024-01-01 00:00:00 | INFO | {kind} | {values}\n"


GOOD = SIZE + line("train_inner", num_updates="1", loss="5") + line("valid", num_updates="2", loss="4", ppl="16")


def write(folder, text=GOOD):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.log").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    return str(folder)


def results(capsys, *arguments):
    """(status, what it printed, its one line of error)."""
    capsys.readouterr()
    status = synth_command(["results", *map(str, arguments)])
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if not line.startswith("wrote ")]
    assert len(errors) == (status != 0) and all(error.isprintable() for error in errors), errors
    return status, printed.out, "".join(errors)


def last(**numbers):
    return GOOD + line("valid", **{"num_updates": "3", **numbers})


LOGS = {
    "nan loss": last(loss="nan", ppl="nan"),
    "infinite loss": last(loss="inf", ppl="inf"),
    "huge loss": last(loss="1e9"),
    "minus infinity": last(loss="-inf"),
    "huge number": last(loss=10**400),
    "nan updates": last(num_updates="nan"),
    "infinite updates": last(num_updates="inf"),
    "negative updates": last(num_updates="-4"),
    "half": last(num_updates="2.5"),
    "list": last(loss=[1]),
    "text": last(loss="many"),
    "none": last(loss=None),
    "true": last(loss=True),
    "deep": GOOD + HEAD.replace("fairseq_cli.train", "valid") + '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
    "long line": GOOD + "x" * 3_000_000 + "\n" + line("valid", num_updates="4", loss="3"),
    "no end": GOOD + '2024 | INFO | valid | {"valid_loss": "3", "valid_num_upd',
    "bytes": GOOD.encode() + bytes(range(256)),
    "sizes": GOOD.replace("1,234", ",,,,"),
    "digits": SIZE.replace("1,234", "9" * 5000),
    "zero sizes": GOOD.replace("1,234", "0").replace("1,000", "0"),
    "nothing": "",
    "other": "hello\n",
    "repeated sizes": SIZE + GOOD,
    "wall": GOOD + line("train_inner", num_updates="9", wpb="inf", train_wall="nan"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOGS)
def test_a_damaged_log(kind, tmp_path, capsys):
    folder = write(tmp_path / "run", LOGS[kind])
    for arguments in ([], ["--format", "csv"], ["--html", tmp_path / "a.html"]):
        status, out, error = results(capsys, folder, *arguments)
        assert status in (0, 2) and (out or status == 2 or arguments), error
    assert not list(tmp_path.glob("*.part"))


def test_infinite_runs_share_a_row(tmp_path, capsys):
    """Mean and spread of what has none."""
    options = HEAD + "{'_name': None, 'common': {'seed': %d}}\n"
    folders = [
        write(tmp_path / f"run{i}", options % i + last(loss=loss, ppl=loss))
        for i, loss in enumerate(["inf", "nan", "-inf"])
    ]
    assert results(capsys, *folders)[0] == 0


@pytest.mark.parametrize("name", ["train.log", "other.log"])
def test_a_pipe_is_not_waited_for(name, tmp_path, capsys):
    os.mkfifo(tmp_path / name)
    assert "no training log" in results(capsys, tmp_path)[2]
    (tmp_path / "folder.log").mkdir()
    assert "no training log" in results(capsys, tmp_path)[2]


JSON = {"deep": "[" * 100_000, "list": '{"name": "BLEU", "signature": "s", "score": [1]}', "none": "null",
        "number": '{"name": "BLEU", "signature": "s", "score": "x"}', "bytes": "\udcff"}  # fmt: skip


@pytest.mark.parametrize("kind", JSON)
def test_damaged_evaluations(kind, tmp_path, capsys):
    folder = write(tmp_path / "run")
    (tmp_path / "run" / "bleu.json").write_bytes(JSON[kind].encode("utf-8", "surrogateescape"))
    (tmp_path / "run" / "eval.out").write_text(
        "Loss (base 2): 1.2.3, Perplexity: ..\nLoss (base 2): inf, Perplexity: inf\n"
    )
    assert results(capsys, folder)[0] == 0


NAMES = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@sum(1)", "a|b", "[x](http:evil)", "<img src=x>", "`code`",
         "back\\slash", "\x1b[31mred", "line\nbreak", "$\\frac{1", "a,b\"c", "\u202eright", "_under"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names(name, tmp_path, capsys):
    folder, other = write(tmp_path / name), write(tmp_path / "other")
    status, out, _ = results(capsys, folder, other, "--curves", tmp_path / "c.png", "--html", tmp_path / "p.html")
    assert status == 0 and out.replace("\n", "").isprintable()
    rows = [row for row in out.splitlines() if row.startswith("|")]
    cells = [len(row.replace("\\\\", "").replace("\\|", "").split("|")) for row in rows]
    assert len(rows) == 4 and len(set(cells)) == 1, out
    assert not any(sign in row.replace("\\" + sign, "") for row in rows for sign in "<[`")
    page = (tmp_path / "p.html").read_text()
    assert "<img src=x>" not in page and "\x1b" not in page
    _, out, _ = results(capsys, folder, other, "--format", "csv")
    table = list(csv.reader(io.StringIO(out)))
    assert len(table) == 3 and table[1][0][0] not in "=+-@" and all(cell.isprintable() for row in table for cell in row)


def test_outputs_that_cannot_be_written(tmp_path, capsys):
    folder = write(tmp_path / "run")
    (tmp_path / "out").mkdir()
    for option in ("--out", "--html", "--curves"):
        assert "is a folder" in results(capsys, folder, option, tmp_path / "out")[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_mutated_logs(tmp_path, capsys):
    """Seeded mutations: FAIRSEQ_SYNTH_MUTATIONS says how many."""
    rng = random.Random(11)
    for number in range(int(os.environ.get("FAIRSEQ_SYNTH_MUTATIONS", "200"))):
        content = bytearray(GOOD.encode())
        for _ in range(rng.randint(1, 12)):
            place = rng.randrange(len(content))
            cut = rng.choice([b"", b"nan", b"inf", b"1e999", b"-", b"{", b'"', b"\xff", b"\n", b"9" * 400, b"[[["])
            content[place : place + rng.choice([0, 1, 3, 40])] = cut
            content = content or bytearray(b"x")
        folder = write(tmp_path / "run", bytes(content))
        status, _, _ = results(capsys, folder, *rng.choice([[], ["--format", "csv"]]))
        assert status in (0, 2), (number, content)


def test_a_record_is_numbers():
    assert record(line("valid", num_updates="3", loss="inf")) == ("valid", {"num_updates": 3.0, "loss": float("inf")})
    assert record(line("valid", num_updates="nan")) == ("", {})
