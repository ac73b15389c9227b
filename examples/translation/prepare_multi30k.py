#!/usr/bin/env python3
"""Multi30k (English-German captions) for fairseq-train: text, dictionary, binary files.

    python prepare_multi30k.py --from DIR --out work/data     (files that are already here)
    python prepare_multi30k.py --download --out work/data     (from the public data set)

DIR holds either {train,valid,test.2016}.{en,de}[.gz], cut with BPE (`@@ `) already, or the raw
{train,val,test_2016_flickr}.{en,de}[.gz], for which a sentencepiece model is learned. Writes

    OUT/text/{train,valid,test}.{en,de}   what fairseq-preprocess read
    OUT/bin                               the first argument of fairseq-train
    OUT/pieces.model, OUT/reference.de    raw input only: the model, the test set as it was

OUT appears when everything is in it, or not at all.
"""

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Dict, List, NoReturn, Optional, Sequence, Tuple

URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
LANGUAGES = ("en", "de")
BPE_NAMES = {"train": "train", "valid": "valid", "test": "test.2016"}
RAW_NAMES = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
PIECES = 10000
Corpus = Dict[Tuple[str, str], List[str]]  # (split, language) -> sentences


def fail(message: str) -> NoReturn:
    sys.exit(f"prepare_multi30k.py: error: {message}")


def find(folder: Path, name: str) -> Optional[Path]:
    """The plain or the gzipped file of that name."""
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    return found[0] if found else None


def read_lines(path: Path) -> List[str]:
    """Only newlines end a line: captions contain other separators of Unicode."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        fail(f"cannot read {path}: {error}")
    return lines[:-1] if lines[-1] == "" else lines


def choose_names(folder: Path) -> Dict[str, str]:
    if not folder.is_dir():
        fail(f"--from {folder}: no such folder")
    return BPE_NAMES if find(folder, "valid.en") or find(folder, "test.2016.en") else RAW_NAMES


def read_corpus(folder: Path) -> Tuple[Corpus, bool]:
    """All six files, and whether they are cut with BPE already."""
    names = choose_names(folder)
    wanted = {(s, lang): f"{name}.{lang}" for s, name in names.items() for lang in LANGUAGES}
    paths = {key: find(folder, name) for key, name in wanted.items()}
    missing = [wanted[key] for key, path in paths.items() if path is None]
    if missing:
        fail(f"--from {folder}: no {', '.join(missing)} (nor .gz of it)")
    corpus = {key: read_lines(path) for key, path in paths.items() if path is not None}
    check(corpus, names)
    return corpus, names is BPE_NAMES


def check(corpus: Corpus, names: Dict[str, str]) -> None:
    for split, name in names.items():
        english, german = (len(corpus[split, language]) for language in LANGUAGES)
        if english != german:
            fail(f"{name}.en has {english} lines and {name}.de {german}: they are no pair")
        if not english:
            fail(f"{name}.en and {name}.de are empty")


def download(folder: Path) -> None:
    for name in RAW_NAMES.values():
        for language in LANGUAGES:
            file = f"{name}.{language}.gz"
            print(f"downloading {file}", flush=True)
            try:
                with urllib.request.urlopen(f"{URL}/{file}", timeout=60) as answer:
                    (folder / file).write_bytes(answer.read())
            except (urllib.error.URLError, OSError) as error:
                fail(f"--download: {URL}/{file}: {error} (no network? then --from DIR)")


def cut(corpus: Corpus, out: Path) -> Corpus:
    """Learns sentencepiece on both languages and applies it."""
    import sentencepiece

    both = [line for language in LANGUAGES for line in corpus["train", language]]
    print(f"learning sentencepiece on {len(both):,} sentences", flush=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(both),
        model_prefix=str(out / "pieces"),
        vocab_size=PIECES,
        model_type="bpe",
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "pieces.model"))
    return {key: [" ".join(row) for row in model.encode(rows, out_type=str)] for key, rows in corpus.items()}


def write_lines(path: Path, lines: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def preprocess(out: Path, workers: int) -> None:
    """fairseq-preprocess of the environment this script runs in."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess"]
    command += ["--source-lang", "en", "--target-lang", "de", "--joined-dictionary"]
    for split in ("train", "valid", "test"):
        command += [f"--{split}pref", str(out / "text" / split)]
    command += ["--destdir", str(out / "bin"), "--workers", str(workers)]
    print("fairseq-preprocess", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:])
        fail("fairseq-preprocess failed, see above")


def build(corpus: Corpus, is_bpe: bool, out: Path, workers: int) -> None:
    if not is_bpe:
        write_lines(out / "reference.de", corpus["test", "de"])
        corpus = cut(corpus, out)
    (out / "text").mkdir()
    for (split, language), lines in corpus.items():
        write_lines(out / "text" / f"{split}.{language}", lines)
    preprocess(out, workers)


def prepare(source: Optional[Path], out: Path, workers: int) -> None:
    """Everything in a temporary folder beside OUT, renamed at the end."""
    if out.exists():
        fail(f"--out {out}: exists already; remove it or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=str(out.parent)))
    try:
        folder = source
        if folder is None:
            folder = temporary / "download"
            folder.mkdir()
            download(folder)
        corpus, is_bpe = read_corpus(folder)
        result = temporary / "result"
        result.mkdir()
        build(corpus, is_bpe, result, workers)
        result.rename(out)
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)
    sizes = ", ".join(f"{len(corpus[split, 'en']):,} {split}" for split in BPE_NAMES)
    print(f"{out}: {sizes} sentence pairs, {'BPE as given' if is_bpe else 'sentencepiece'}")


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Prepare Multi30k for fairseq-train.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="source", type=Path, metavar="DIR", help="folder with the text")
    source.add_argument("--download", action="store_true", help="get the raw text (needs a network)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--workers", type=int, default=1, help="processes of fairseq-preprocess")
    args = parser.parse_args(argv)
    prepare(args.source, args.out, args.workers)


if __name__ == "__main__":
    main()
