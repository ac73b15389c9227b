"""examples/translation: data preparation on toy files and, where there is some, real data."""

import gzip
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "translation"
DATA = Path(os.environ.get("FAIRSEQ_SYNTH_DATA", str(ROOT.parent / "shared" / "data")))

ENGLISH = ["a man plays the gui@@ tar .", "two dogs run .", "a child laughs ."]
GERMAN = ["ein mann spielt gitarre .", "zwei hun@@ de laufen .", "ein kind lacht ."]
NAMES = {"bpe": ("train", "valid", "test.2016"), "raw": ("train", "val", "test_2016_flickr")}


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare_multi30k", str(FOLDER / "prepare_multi30k.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path, lines):
    data = "".join(line + "\n" for line in lines).encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def toy(folder, kind="bpe", suffix=""):
    folder.mkdir()
    for name in NAMES[kind]:
        write(folder / f"{name}.en{suffix}", ENGLISH)
        write(folder / f"{name}.de{suffix}", GERMAN)
    return folder


def run(prepare, source, out):
    prepare.main(["--from", str(source), "--out", str(out)])


def refusal(prepare, source, out):
    """The error line; nothing may be left behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(SystemExit) as caught:
        run(prepare, source, out)
    assert sorted(out.parent.iterdir()) == before
    message = str(caught.value)
    assert message.startswith("prepare_multi30k.py: error: ") and "\n" not in message
    return message


def test_bpe_text_goes_through_as_it_is(prepare, tmp_path):
    run(prepare, toy(tmp_path / "in"), tmp_path / "out")
    assert (tmp_path / "out" / "text" / "test.en").read_text().splitlines() == ENGLISH
    english, german = ((tmp_path / "out" / "bin" / f"dict.{c}.txt").read_bytes() for c in ("en", "de"))
    assert english == german and b"gui@@ " in english
    assert (tmp_path / "out" / "bin" / "test.en-de.de.bin").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("how", ["--from", "--download"])
def test_raw_text_is_cut_with_sentencepiece(prepare, tmp_path, monkeypatch, how):
    source = toy(tmp_path / "in", "raw", ".gz")
    urls = []

    def answer(url, timeout):
        urls.append(url)
        return (source / url.rsplit("/", 1)[1]).open("rb")

    monkeypatch.setattr(prepare.urllib.request, "urlopen", answer)
    arguments = [how] if how == "--download" else [how, str(source)]
    prepare.main([*arguments, "--out", str(tmp_path / "out")])
    if how == "--download":
        assert len(urls) == 6 and f"{prepare.URL}/test_2016_flickr.de.gz" in urls
    pieces = (tmp_path / "out" / "text" / "test.de").read_text("utf-8").splitlines()
    assert ["".join(row.split()).replace("▁", " ").strip() for row in pieces] == GERMAN
    assert (tmp_path / "out" / "reference.de").read_text().splitlines() == GERMAN
    assert (tmp_path / "out" / "pieces.model").exists()


def test_unicode_line_separators_do_not_split_a_sentence(prepare, tmp_path):
    folder = toy(tmp_path / "in")
    write(folder / "train.en", ["a\u2028b", "c\x85d", "e"])
    corpus, _ = prepare.read_corpus(folder)
    assert len(corpus["train", "en"]) == 3


def test_missing_files_are_named(prepare, tmp_path):
    folder = toy(tmp_path / "in", suffix=".gz")
    (folder / "train.de.gz").unlink()
    assert "no train.de " in refusal(prepare, folder, tmp_path / "out")
    assert "no such folder" in refusal(prepare, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "no train.en, train.de, val.en" in refusal(prepare, tmp_path / "empty", tmp_path / "out")


def test_pairs_of_unequal_length_are_refused(prepare, tmp_path):
    folder = toy(tmp_path / "in")
    write(folder / "valid.de", GERMAN[:2])
    assert "valid.en has 3 lines and valid.de 2" in refusal(prepare, folder, tmp_path / "out")


def test_empty_broken_and_foreign_files_are_refused(prepare, tmp_path):
    folder = toy(tmp_path / "in", suffix=".gz")
    for language in ("en", "de"):
        write(folder / f"test.2016.{language}.gz", [])
    assert "are empty" in refusal(prepare, folder, tmp_path / "out")
    data = (folder / "train.en.gz").read_bytes()
    (folder / "train.en.gz").write_bytes(data[: len(data) // 2])
    assert "cannot read" in refusal(prepare, folder, tmp_path / "out")
    (folder / "train.en.gz").unlink()
    (folder / "train.en").write_bytes(b"\xff\xfe latin\n")
    assert "cannot read" in refusal(prepare, folder, tmp_path / "out")


def test_an_existing_output_is_kept(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    assert "exists already" in refusal(prepare, toy(tmp_path / "in"), tmp_path / "out")


def test_download_without_network_is_one_line(prepare, tmp_path, monkeypatch):
    def unreachable(url, timeout):
        raise prepare.urllib.error.URLError("unreachable")

    monkeypatch.setattr(prepare.urllib.request, "urlopen", unreachable)
    with pytest.raises(SystemExit, match="no network"):
        prepare.main(["--download", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder, is_bpe", [("multi30k-bpe", True), ("multi30k", False)])
def test_real_multi30k_is_complete(prepare, folder, is_bpe):
    if not (DATA / folder).is_dir():
        pytest.skip(f"no real data: {DATA / folder} (set FAIRSEQ_SYNTH_DATA)")
    corpus, found = prepare.read_corpus(DATA / folder)
    sizes = {split: len(corpus[split, "de"]) for split in ("train", "valid", "test")}
    assert sizes == {"train": 29000, "valid": 1014, "test": 1000} and found == is_bpe


@pytest.mark.parametrize(
    "script, arguments, variables, message",
    [
        ("train.sh", [], {}, "one name is needed"),
        ("train.sh", ["a/b"], {}, "a name has no slash"),
        ("train.sh", ["random"], {"UPDATES": "lots"}, "UPDATES=lots: must be a positive number"),
        ("train.sh", ["random"], {"DATA": "/nowhere"}, "DATA=/nowhere holds no fairseq data"),
        ("evaluate.sh", [], {}, "one name is needed"),
        ("evaluate.sh", ["random"], {"CKPT": "/nowhere"}, "first train.sh random"),
    ],
)
def test_scripts_refuse_in_one_line(tmp_path, script, arguments, variables, message):
    environment = dict(os.environ, FAIRSEQ_SYNTH_PYTHON=sys.executable, **variables)
    done = subprocess.run(
        ["bash", str(FOLDER / script), *arguments],
        env=environment,
        cwd=str(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and message in done.stderr and len(done.stderr.splitlines()) == 1
