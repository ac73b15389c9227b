"""``fairseq-synth results``: a table, learning curves and a page from the folders of trainings."""

import argparse
import os
import shutil
import sys
from typing import Any, List

from fairseq_synth import __version__
from fairseq_synth.errors import UsageError, printable
from fairseq_synth.files import whole_file

NAME = "results"
HELP = "a table of trainings: size, speed, perplexity, BLEU; learning curves; a page to send"
ORDER = 90


def register(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads what fairseq-train printed (RUN/train.log, or the only log in RUN; any --log-format), and "
        "what fairseq-generate (generate*.txt), fairseq-eval-lm (*.log) and sacrebleu --format json (*.json) left in "
        "RUN or in a folder below. Runs that differ in nothing but the seed share a row, with their spread."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a training, its log, or runs as .jsonl")
    parser.add_argument(
        "--format",
        choices=("markdown", "csv", "jsonl"),
        default="markdown",
        help="of the table; jsonl: a line for every run with all it takes to make table and curves again",
    )
    parser.add_argument("--out", metavar="FILE", help="write the table there (default: print it)")
    parser.add_argument(
        "--hide", nargs="+", action="extend", default=[], metavar="COLUMN", help="leave out words/s, 'valid ppl' ..."
    )
    parser.add_argument("--each", action="store_true", help="a row for every run, whatever their seeds")
    parser.add_argument("--curves", metavar="PNG", help="draw the learning curves")
    parser.add_argument("--html", metavar="FILE", help="write table, curves and differing options as one page")
    parser.add_argument("--title", metavar="TEXT", help="of the page (default: Results)")
    parser.add_argument(
        "--paired",
        action="store_true",
        help="test the BLEU of every run against the first by sacrebleu's paired bootstrap: column p, the largest of "
        "a row's seeds",
    )
    parser.add_argument(
        "--tokenize",
        metavar="NAME",
        help="score translations with this tokenizer of sacrebleu, none for text that is tokenized (default: the "
        "score that is there, or sacrebleu's 13a)",
    )


def run(args: argparse.Namespace) -> int:
    from fairseq_synth.inspection import tables
    from fairseq_synth.inspection.grouping import rows, without
    from fairseq_synth.inspection.records import as_jsonl

    _check(args)
    measured = _measure(args)
    found = without(rows(measured, args.each), args.hide)
    if args.format == "jsonl":
        text = as_jsonl(measured).rstrip("\n")
    elif args.format == "csv":
        text = tables.as_csv(found)
    else:
        terminal = args.out is None and sys.stdout.isatty()
        table = tables.markdown(found, shutil.get_terminal_size().columns if terminal else 0)
        text = "\n\n".join([table, "\n".join(f"- {printable(note, 1000)}" for note in tables.notes(found))])
    if args.out is None:
        print(text)
    else:
        _write(args.out, text + "\n")
    _draw(args, found)
    return 0


def _check(args: argparse.Namespace) -> None:
    from fairseq_synth.inspection.records import is_record

    if args.title is not None and args.html is None:
        raise UsageError(f"--title {args.title}: has an effect only with --html FILE")
    if args.curves is not None or args.html is not None:
        from fairseq_synth.inspection.figures import require_matplotlib

        require_matplotlib()
    for option in ("out", "curves", "html"):
        path = getattr(args, option)
        if path is not None and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise UsageError(f"--{option} {path}: the folder does not exist")
        if path is not None and os.path.isdir(path):
            raise UsageError(f"--{option} {path}: is a folder; give the name of a file in it")
    records = [path for path in args.runs if is_record(path)]
    if args.paired and records:
        raise UsageError(f"--paired: {records[0]} holds no translations; give the folders of the runs")
    if args.tokenize is not None:
        _check_tokenizer(args.tokenize)
    real = [os.path.realpath(path) for path in args.runs]
    for path, place in zip(args.runs, real):
        if real.count(place) > 1:
            raise UsageError(f"{path}: given more than once")


def _check_tokenizer(name: str) -> None:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise UsageError(f"--tokenize {name}: needs sacrebleu: pip install sacrebleu") from error
    known = sorted(BLEU.TOKENIZERS)
    if name not in known:
        raise UsageError(f"--tokenize {name}: sacrebleu has {', '.join(known)}")


def _measure(args: argparse.Namespace) -> List[Any]:
    from fairseq_synth.inspection.evaluations import evaluations
    from fairseq_synth.inspection.grouping import Measured
    from fairseq_synth.inspection.logs import read_run
    from fairseq_synth.inspection.records import is_record, read_records
    from fairseq_synth.inspection.significance import with_p_values

    found: List[Measured] = []
    for number, path in enumerate(args.runs, 1):
        if sys.stderr.isatty():
            print(f"reading {number} of {len(args.runs)}: {path}", file=sys.stderr)
        if is_record(path):
            found += read_records(path)
            continue
        run = read_run(path)
        found.append(Measured(run, evaluations(run.path, args.tokenize)))
    return with_p_values(found, args.tokenize) if args.paired else found


def _draw(args: argparse.Namespace, found: List[Any]) -> None:
    if args.curves is None and args.html is None:
        return
    from fairseq_synth.inspection import curves, figures
    from fairseq_synth.inspection.page import page

    figure = curves.curves_figure(found)
    if args.curves is not None:
        print(f"wrote {figures.save(figure, args.curves)}", file=sys.stderr)
    if args.html is not None:
        _write(args.html, page(args.title or "Results", found, figure, __version__))


def _write(path: str, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())
    print(f"wrote {path}", file=sys.stderr)
