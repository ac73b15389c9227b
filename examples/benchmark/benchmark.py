#!/usr/bin/env python3
"""Speed and memory of this plugin beside stock fairseq, measured in one process, in turns.

    python examples/benchmark/benchmark.py                    a minute or two
    python examples/benchmark/benchmark.py --full             every size
    python examples/benchmark/benchmark.py --only attention --variants random,dense

Prints tables; writes them to --out as results.json, results.md and, where matplotlib is installed, results.png.
README.md beside this file says what every figure means.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Sequence

HERE = Path(__file__).resolve().parent
SECTIONS = ("attention", "training", "loss", "generation", "language_model", "span_attention", "frozen",
            "flash_attention")  # fmt: skip
MODEL, MODEL_SECTION = "h100-model", "gpu_model"  # a device that is computed, and the one section for it
# without them glibc returns every large buffer to the system and gets it back cleared: half of the time on a CPU
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind: Any, least: float) -> Any:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: a number of at least {least} is needed")
        return value

    return parse


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=("mini", "small", "full"), default="small", help="mini: seconds, to see that it runs")
    add("--full", dest="size", action="store_const", const="full", help="the same as --size full")
    add("--only", metavar="A,B", help=f"sections: {', '.join(SECTIONS)}")
    add("--cases", metavar="A,B", help="cases whose title contains one of these, for example 'base' or '16 x 64'")
    add("--variants", metavar="A,B", help="scorers and mixtures (default: every registered one, random+dot_product)")
    add("--import", dest="modules", metavar="FILE", action="append", default=[], help="registers your own scorers")
    add("--threads", type=number(int, 1), default=1)
    add("--dtype", choices=("float32", "bfloat16", "float16"), help=f"default: float32; {MODEL}: float16")
    add("--device", choices=("cpu", "cuda", MODEL), default="cpu", help=f"{MODEL}: computed, not measured")
    add("--seed", type=number(int, 0), default=1)
    add("--rounds", type=number(int, 1), help="fewest rounds of a race (default: 5; mini: 2)")
    add("--seconds", type=number(float, 0), help="about what one race takes (default: small 2, full 10, mini 0)")
    add("--out", type=Path, default=HERE / "work", help="folder of the results (default: %(default)s)")
    return parser


def settle(threads: int) -> None:
    """Start again with the environment that malloc and OpenMP read once, at the beginning."""
    wanted = {**MALLOC, "OMP_NUM_THREADS": str(threads)}
    if any(os.environ.get(k) != v for k, v in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def choose(text: Optional[str], known: Sequence[str], option: str) -> List[str]:
    from fairseq_synth.errors import UsageError

    if text is None:
        return list(known)
    chosen = [part.strip() for part in text.split(",")]
    for part in chosen:
        if part not in known:
            raise UsageError(f"{option} {part}: not one of {', '.join(known)}")
    return chosen


def import_file(path: str) -> None:
    from fairseq_synth.errors import UsageError

    if not os.path.isfile(path):
        raise UsageError(f"--import {path}: no such file")
    sys.path.insert(0, str(Path(path).resolve().parent))
    importlib.import_module(Path(path).stem)


def choose_variants(text: Optional[str]) -> List[str]:
    from fairseq_synth.modules.scorers import scorer_names
    from fairseq_synth.modules.scorers.spec import parse_spec

    if text is None:
        return [*sorted(scorer_names(), key=lambda name: name != "random"), "random+dot_product"]
    variants = [part.strip() for part in text.split(",")]
    for spec in variants:
        parse_spec(spec, 1, "--variants")
    return variants


def build_settings(args: argparse.Namespace) -> Any:
    import torch
    from common import Settings

    from fairseq_synth.errors import UsageError

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here; leave it out to measure the CPU")
    dtype = args.dtype or ("float16" if args.device == MODEL else "float32")
    if args.device == "cpu" and dtype == "float16":
        raise UsageError("--dtype float16: nothing trains in it on a CPU; take bfloat16, or --device cuda")
    for path in args.modules:
        import_file(path)
    seconds = {"mini": 0.0, "small": 2.0, "full": 10.0}[args.size] if args.seconds is None else args.seconds
    rounds = (2 if args.size == "mini" else 5) if args.rounds is None else args.rounds
    cases = tuple(part.strip() for part in args.cases.split(",")) if args.cases else ()
    return Settings(args.size, args.device, dtype, args.threads, args.seed, seconds, rounds,
                    tuple(choose_variants(args.variants)), cases)  # fmt: skip


def measure(section: Any, settings: Any) -> List[Dict[str, Any]]:
    """Run one section, printing its table as it grows."""
    from common import print_case, print_heading, print_means, print_result

    print_heading(section)
    results: List[Dict[str, Any]] = []
    for result in section.run(settings):
        if not results or results[-1]["case"] != result["case"]:
            print_case(result["case"], section)
        print_result(result, section)
        results.append({"section": section.name, **result})
    print_means(results)
    return results


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = build_parser().parse_args(argv)
    if argv is None:
        settle(args.threads)
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    if args.device == MODEL and not load_absent_device():
        return 2
    import logging

    import torch

    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    import fairseq_synth  # noqa: F401  (registers everything)
    from fairseq_synth.errors import UsageError

    try:
        return run(args)
    except UsageError as error:
        print(f"benchmark.py: error: {error}", file=sys.stderr)
        return 2


def load_absent_device() -> bool:
    """Before torch is imported. Says in one line why it cannot be."""
    from absent_device import CannotLoad, load_device

    try:
        load_device()
    except CannotLoad as error:
        print(f"benchmark.py: error: --device {MODEL}: {error}", file=sys.stderr)
        return False
    return True


def run(args: argparse.Namespace) -> int:
    import results as output

    from fairseq_synth.errors import UsageError

    names = choose(args.only, available(args.device), "--only")
    settings = build_settings(args)
    output.prepare(args.out)
    facts = output.describe(settings)
    print(output.two_lines(facts))
    sections = [importlib.import_module(name).SECTION for name in names]
    results: List[Dict[str, Any]] = []
    for section in sections:
        results += measure(section, settings)
    if not results:
        raise UsageError(f"--cases {args.cases}: no case of {', '.join(names)} at --size {args.size} is called so")
    output.write(args.out, facts, sections, results)
    return 0


def available(device: str) -> List[str]:
    if device == MODEL:
        return [MODEL_SECTION]
    return [name for name in SECTIONS if (HERE / f"{name}.py").exists()]


if __name__ == "__main__":
    sys.exit(main())
