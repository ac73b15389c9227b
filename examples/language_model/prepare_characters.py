#!/usr/bin/env python3
"""A text as characters for fairseq-train: 90% training, 5% validation, 5% test, in this order (--parts: others).

    python prepare_characters.py --from FILE[.gz] --out work/data     (UTF-8; --bytes: any file, a byte is a character)
    python prepare_characters.py --out work/data                      (the documentation inside CPython; no download)

Writes OUT/text/{train,valid,test}, what fairseq-preprocess read, and OUT/bin, the first argument of fairseq-train.
One token per character: a space is `_`; `_` itself and other white space are spelt out (a tab is `<0x09>`); a newline
is the end of a line, fairseq's `</s>`, which also ends a split that is cut in the middle of a line. In UTF-8 text
`\\r\\n` is one newline, and a byte order mark is left out. `--multiple-of N` leaves out the last tokens of a split, so
that it can be cut into whole blocks: fairseq's truncated_bptt_lm drops the others, and would be measured on less text.

OUT appears when everything is in it, or not at all.
"""

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Dict, NoReturn, Optional, Sequence

PARTS = (90, 5, 5)  # percent for training, validation, test
SHORTEST = 20  # below, a split would be empty


def fail(message: str) -> NoReturn:
    sys.exit(f"prepare_characters.py: error: {message}")


def read_text(source: Optional[Path], as_bytes: bool) -> str:
    if source is None:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    try:
        data = source.read_bytes()
        if source.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("latin-1") if as_bytes else data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        fail(f"--from {source}: not UTF-8 (byte {error.start}); for one character per byte: --bytes")
    except (OSError, EOFError, zlib.error) as error:
        fail(f"--from {source}: {getattr(error, 'strerror', None) or error}")


def token(character: str) -> str:
    """Without white space, at which fairseq would cut it."""
    if character == " ":
        return "_"
    return f"<{ord(character):#04x}>" if character == "_" or character.isspace() else character


def split(text: str, parts: Sequence[int] = PARTS) -> Dict[str, str]:
    if len(text) < SHORTEST:
        fail(f"a text of {len(text)} characters: at least {SHORTEST} are needed")
    ends = [len(text) * sum(parts[:i]) // 100 for i in range(len(parts) + 1)]
    return {name: text[a:b] for name, a, b in zip(("train", "valid", "test"), ends, ends[1:])}


def read_parts(value: str) -> Sequence[int]:
    parts = [int(part) for part in value.split(",") if part.isdecimal() and len(part) < 3]
    if len(parts) not in (2, 3) or 0 in parts or sum(parts) != 100 or value.count(",") != len(parts) - 1:
        fail(
            f"--parts {value}: must be percents of training, validation and test that add up to 100, as 90,5,5 or 90,10"
        )
    return parts


def whole_blocks(texts: Dict[str, str], size: int) -> Dict[str, str]:
    """The splits without what is beyond a multiple of ``size`` tokens."""
    cut = {}
    for name, text in texts.items():
        ends = range(tokens(text) // size * size, 0, -size)
        # a cut in the middle of a line leaves room for the end of that line
        parts = (text[:end] if text[:end].endswith("\n") else text[: end - 1] for end in ends)
        whole = next((part for part in parts if tokens(part) % size == 0), "")
        if not whole:
            fail(f"--multiple-of {size}: the {name} text has {tokens(text)} tokens; lower it or take a longer text")
        cut[name] = whole
    return cut


def tokens(text: str) -> int:
    """With the end of the last line."""
    return len(text) + (text[-1:] not in ("", "\n"))


def write_tokens(path: Path, text: str) -> None:
    names = {character: token(character) for character in set(text)}
    lines = text.split("\n")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines[:-1] if lines[-1] == "" else lines:
            file.write(" ".join([names[character] for character in line]) + "\n")


def preprocess(out: Path) -> None:
    """fairseq-preprocess of the environment this script runs in."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", "--destdir", str(out / "bin")]
    for path in sorted((out / "text").iterdir()):
        command += [f"--{path.name}pref", str(path)]
    print("fairseq-preprocess", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:])
        fail("fairseq-preprocess failed, see above")


def prepare(source: Optional[Path], out: Path, as_bytes: bool, multiple: int = 1, parts: Sequence[int] = PARTS) -> None:
    """Everything in a temporary folder beside OUT, renamed at the end."""
    if out.exists():
        fail(f"--out {out}: exists already; remove it or name another folder")
    texts = whole_blocks(split(read_text(source, as_bytes), parts), multiple)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=str(out.parent)))
    except OSError as error:
        fail(f"--out {out}: {error.strerror}")
    try:
        result = temporary / "result"  # mkdtemp's folder is closed to others
        (result / "text").mkdir(parents=True)
        for name, text in texts.items():
            write_tokens(result / "text" / name, text)
        preprocess(result)
        result.rename(out)
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)
    known = set(texts["train"])
    sizes = ", ".join(f"{len(text):,} {name}" for name, text in texts.items())
    print(f"{out}: {sizes} characters, {len(known)} different")
    unknown = {name: sum(c not in known for c in text) for name, text in texts.items() if name != "train"}
    if any(unknown.values()):
        print("not in the training text, hence <unk>: " + ", ".join(f"{n} of {name}" for name, n in unknown.items()))


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Prepare a text as characters for fairseq-train.")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="text, plain or .gz (default: CPython's documentation)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--bytes", action="store_true", help="one character per byte, whatever the encoding")
    parser.add_argument("--multiple-of", type=int, default=1, metavar="N", help="cut every split to a multiple of N")
    parser.add_argument("--parts", default="90,5,5", metavar="PERCENTS", help="training, validation[, test] (90,5,5)")
    args = parser.parse_args(argv)
    if args.multiple_of < 1:
        fail(f"--multiple-of {args.multiple_of}: must be at least 1")
    if args.bytes and args.source is None:
        fail("--bytes: needs --from")
    prepare(args.source, args.out, args.bytes, args.multiple_of, read_parts(args.parts))


if __name__ == "__main__":
    main()
