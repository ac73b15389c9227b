"""``fairseq-synth doctor``: the environment, what is patched in fairseq, and what will not work."""

import argparse
import textwrap
from typing import Optional

import fairseq_synth
from fairseq_synth.errors import reason
from fairseq_synth.errors.installation import fairseq_install
from fairseq_synth.inspection.environment import Finding, findings

NAME = "doctor"
HELP = "look at the installation: what is there, what is patched, what will not work"
ORDER = 60

WIDTH, INDENT = 80, 20


def register(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints what matters for a bug report. Exit status 1 if something will not work."


def run(args: argparse.Namespace) -> int:
    print(f"fairseq_synth {fairseq_synth.__version__}")
    problem = _setup_problem()
    found = list(findings())
    failed_already = {finding.topic for finding in found if finding.level == "FAIL"}
    if problem is not None and not failed_already & {"torch", "numpy", "fairseq"}:
        fix = f"in a new environment, {fairseq_install()}"
        found.append(Finding("FAIL", "fairseq_synth", f"does not load: {reason(problem)}", fix))
    for finding in found:
        _print(f"{finding.level:<5} {finding.topic:<14}", finding.text)
        if finding.fix:
            _print(" " * INDENT, f"fix: {finding.fix}")
    print()
    if problem is None:
        _print_fixes()
    else:
        print("Patched in fairseq: nothing, as it does not run.")
    print()
    levels = [finding.level for finding in found]
    failed, notes = levels.count("FAIL"), levels.count("note")
    print(f"{failed} will not work, {notes} to note" if failed else f"everything needed works, {notes} to note")
    return 1 if failed else 0


def _setup_problem() -> Optional[Exception]:
    """What stops fairseq, or this package in it."""
    try:
        fairseq_synth.setup()
    except Exception as error:
        return error
    return None


def _print_fixes() -> None:
    from fairseq_synth import compat

    reports = compat.describe()
    applied = [report for report in reports if report.applied]
    print(f"Patched in fairseq while it runs (its files stay as they are), {len(applied)} of {len(reports)}:")
    for report in applied:
        _print("  ", f"{report.name}: {report.reason}", hang=6)
    rest = [report.name for report in reports if not report.applied]
    if rest:
        _print("", "Not needed with these versions: " + ", ".join(rest), hang=6)


def _print(head: str, text: str, hang: int = INDENT) -> None:
    """At most WIDTH columns; long paths and words stay whole."""
    print(
        textwrap.fill(
            text, WIDTH, initial_indent=head, subsequent_indent=" " * hang, break_long_words=False,
            break_on_hyphens=False,
        )
    )  # fmt: skip
