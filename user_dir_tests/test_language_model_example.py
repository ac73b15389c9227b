"""examples/language_model: characters there and back, splits, refusals, the table of compare.sh."""

import gzip
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import USER_DIR, call_command
from fairseq.data import Dictionary, data_utils

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "language_model"
DATA = Path(os.environ.get("FAIRSEQ_SYNTH_DATA", str(ROOT.parent / "shared" / "data")))
BOOK = DATA / "lm" / "war-and-peace.txt.gz"

ODD = "a_b <0x20>\ttab \u00a0\u2028|\rx\x0c~ \u00e9\U0001d11e</s>  end\n\n leading\n"


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare_characters", str(FOLDER / "prepare_characters.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def binary(out, name):
    """The text in OUT/bin."""
    words = Dictionary.load(str(out / "bin" / "dict.txt"))
    lines = data_utils.load_indexed_dataset(str(out / "bin" / name), words)
    tokens = [words[int(i)] for k in range(len(lines)) for i in lines[k]]
    plain = {"_": " ", "</s>": "\n"}
    return "".join(chr(int(t[1:-1], 16)) if re.fullmatch("<0x.*>", t) else plain.get(t, t) for t in tokens)


def refusal(prepare, out, *args):
    """The error line; nothing may be left behind."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    with pytest.raises(SystemExit) as caught:
        prepare.main([*map(str, args), "--out", str(out)])
    assert before == (sorted(out.parent.iterdir()) if out.parent.is_dir() else None)
    message = str(caught.value)
    assert message.startswith("prepare_characters.py: error: ") and "\n" not in message
    return message


# ------------------------------------------------------------------------------------------- prepare_characters.py
def test_every_character_comes_back(prepare, tmp_path, capsys):
    text = ODD * 20 + "\u00df" + "x" * 9  # the last characters: test only, one of them new
    source, out = tmp_path / "text.gz", tmp_path / "new" / "out"
    source.write_bytes(gzip.compress(text.encode("utf-8-sig").replace(b"\n", b"\r\n")))
    prepare.main(["--from", str(source), "--out", str(out)])
    parts = [binary(out, name) for name in ("train", "valid", "test")]
    ends = [0, len(text) * 90 // 100, len(text) * 95 // 100, len(text)]
    for part, start, end in zip(parts, ends, ends[1:]):
        expected = text[start:end].replace("\u00df", "<unk>")
        assert part == expected if expected.endswith("\n") else part == expected + "\n"
    assert "<unk>: 0 of valid, 1 of test" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["bin", "text"]


def test_bytes_are_kept_as_they_are(prepare, tmp_path):
    source = tmp_path / "raw"
    source.write_bytes(bytes(range(256)))
    text = prepare.read_text(source, as_bytes=True)
    assert text.encode("latin-1") == bytes(range(256))
    tokens = [prepare.token(character) for character in text if character != "\n"]
    assert len(set(tokens)) == 255 and not any(re.search(r"\s", token) for token in tokens)


@pytest.mark.parametrize("text", ["abc\nde" * 3, "abcdefgh\n" * 9, "abc\n" * 20, "a" * 99])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_whole_blocks(prepare, text, size, tmp_path):
    cut = prepare.whole_blocks({"train": text}, size)["train"]
    assert text.startswith(cut)
    prepare.write_tokens(tmp_path / "text", cut)
    count = len((tmp_path / "text").read_text().replace("\n", " x ").split())  # what fairseq counts
    assert count and count % size == 0 and len(text) + 1 - count <= 2 * size


def test_embedded_text_needs_no_file(prepare):
    parts = prepare.split(prepare.read_text(None, as_bytes=False))
    assert len(parts["train"]) > 200_000 and len(parts["test"]) > 10_000


def test_bad_input_is_named(prepare, tmp_path):
    latin, broken, short = (tmp_path / name for name in ("latin", "broken.gz", "short"))
    latin.write_bytes("caf\u00e9 ".encode("latin-1") * 20)
    broken.write_bytes(gzip.compress(b"some text " * 20)[:-9])
    short.write_bytes(b"too short")
    out = tmp_path / "out"
    assert "nowhere: No such file" in refusal(prepare, out, "--from", tmp_path / "nowhere")
    assert "Is a directory" in refusal(prepare, out, "--from", tmp_path)
    assert "latin: not UTF-8 (byte 3)" in refusal(prepare, out, "--from", latin)
    assert "broken.gz: Compressed file ended" in refusal(prepare, out, "--from", broken)
    assert "9 characters: at least 20" in refusal(prepare, out, "--from", short)
    assert "--bytes: needs --from" in refusal(prepare, out, "--bytes")
    assert "exists already" in refusal(prepare, tmp_path)
    assert "--multiple-of 0: must be at least 1" in refusal(prepare, out, "--multiple-of", "0")
    assert "--multiple-of 900000000: the train text has" in refusal(prepare, out, "--multiple-of", "900000000")
    assert "File exists" in refusal(prepare, short / "out") or "Not a directory" in refusal(prepare, short / "out")
    broken.write_bytes(b"no gzip at all, but longer than twenty characters")
    assert "broken.gz: Not a gzipped file" in refusal(prepare, out, "--from", broken)


def test_a_failing_preprocess_leaves_nothing(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "fairseq-preprocess failed" in refusal(prepare, tmp_path / "out")


def test_the_book(prepare):
    if not BOOK.is_file():
        pytest.skip(f"no {BOOK} (FAIRSEQ_SYNTH_DATA names another folder)")
    parts = prepare.split(prepare.read_text(BOOK, as_bytes=False))
    assert {name: len(text) for name, text in parts.items()} == {"train": 2882944, "valid": 160164, "test": 160164}
    assert parts["train"].startswith('"Well, Prince')


# ------------------------------------------------------------------------------------------- compare.sh
def compare(*args, **environment):
    command = ["bash", str(FOLDER / "compare.sh"), *map(str, args)]
    environment = {**os.environ, "FAIRSEQ_SYNTH_PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_compare_is_a_script():
    subprocess.run(["bash", "-n", str(FOLDER / "compare.sh")], check=True)


def test_compare_refuses_bad_input(tmp_path):
    for args, environment, message in (
        (["a", "b"], {}, "compare.sh: error: one text at most, got 2"),
        ([], {"UPDATES": "many"}, "compare.sh: error: UPDATES=many: must be a positive number"),
        ([], {"SEEDS": "1 x"}, "compare.sh: error: SEEDS=1 x: must be a positive number"),
        ([], {"UPDATES": "5 6"}, "compare.sh: error: UPDATES=5 6: must be a positive number"),
        ([], {"UPDATES": "5"}, "compare.sh: error: UPDATES=5: 20 at least"),
        ([tmp_path / "nowhere"], {"OUT": str(tmp_path / "out")}, "nowhere: No such file"),
    ):
        done = compare(*args, **environment)
        assert done.returncode and message in done.stdout and done.stdout.count("\n") == 1, done.stdout
    assert not list(tmp_path.iterdir())


def test_table_of_finished_trainings(tmp_path):
    """Nothing is trained again. fairseq's port divides by targets that are not there and counts the ramp as span."""
    (tmp_path / "data").mkdir()
    for seed, name, spans in (
        (seed, name, spans)
        for seed in (1, 2)
        for name, spans in (
            ("port", {"avg_span": "45.5"}),
            ("adaptive", {"span_mean": "11.5", "span_layer_0": "3.2"}),
            ("memory", {"span_mean": "7"}),
            ("fixed", {}),
        )
    ):
        folder = tmp_path / f"run-seed{seed}-updates20" / name
        folder.mkdir(parents=True)
        (folder / "trained").touch()
        steps = [{"ups": ups, **spans} for ups in ("1", "4", "5", "4")]
        lines = ["x | INFO | fairseq_cli.train | num. shared model params: 1,234 (num. trained: 1,234)"]
        lines += [f"x | INFO | train_inner | {json.dumps(step)}" for step in steps]
        lines += [f"x | INFO | test | {json.dumps({'test_loss': loss})}" for loss in ("9", str(2.44 + seed / 10))]
        (folder / "train.log").write_text("\n".join(lines) + "\n")
    assert table_of(compare(OUT=str(tmp_path), UPDATES="20")) == {
        "port": ["1,234", "2.560", "13.5", "0.25", "-"],
        "adaptive": ["1,234", "2.540", "11.5", "0.25", "3"],
        "memory": ["1,234", "2.540", "7.0", "0.25", "-"],
        "fixed": ["1,234", "2.540", "512.0", "0.25", "-"],
    }
    both = table_of(compare(OUT=str(tmp_path), UPDATES="20", SEEDS="1 2"))
    assert both["adaptive"] == ["1,234", "2.590", "2.540-2.640", "11.5", "0.25", "3"]


def table_of(done):
    assert done.returncode == 0, done.stdout
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[-4:]}


# ------------------------------------------------------------------------------------------- README.md
README = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```", (FOLDER / "README.md").read_text(), re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
SMALL = {
    "text8": "--layers 1 --embed-dim 16 --ffn-embed-dim 16 --attention-heads 2",
    "wikitext-103": "--layers 1 --embed-dim 16 --persistent-memory 4 --attention-heads 2 --adaptive-cutoff 6,9",
    "lm1b": "--decoder-layers 1 --decoder-embed-dim 16 --decoder-ffn-embed-dim 16 --decoder-attention-heads 2 "
    "--adaptive-input-cutoff 6,9 --adaptive-softmax-cutoff 6,9",
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_commands_for_larger_texts(name, tmp_path, monkeypatch):
    """As written, but for the size of everything."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid", "test"):
        Path(split).write_text("a b c d e f g a b\nd c a b f e h i j a\n" * 160)
    prefixes = [a for split in ("train", "valid", "test") for a in (f"--{split}pref", split)]
    folder = next(c for c in README if c[0] == "fairseq-train" and c[1].startswith(f"data/{name}"))[1]
    call_command("preprocess", "--only-source", *prefixes, "--destdir", folder)
    for program in ("fairseq-train", "fairseq-eval-lm"):
        (command,) = [c for c in README if c[:2] == [program, folder]]
        words = [str(USER_DIR) if word == "fairseq_synth" else word for word in command[1:]]
        small = "--max-update 1 --num-workers 0 " + SMALL[name] if program == "fairseq-train" else ""
        log = call_command(program[len("fairseq-") :].replace("-", "_"), *words, "--cpu", *small.split())
    assert re.search(r"Loss \(base 2\): \d", log)
