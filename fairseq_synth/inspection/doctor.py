"""``fairseq-synth doctor``: the environment, what is patched in fairseq, and what will not work."""

import argparse
import textwrap
from typing import Any

WIDTH, INDENT = 80, 20


def register(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="look at the installation: what is there, what is patched, what will not work",
        description="Prints what matters for a bug report. Exit status 1 if something will not work.",
    )
    command.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    from fairseq_synth import __version__
    from fairseq_synth.inspection.environment import findings

    print(f"fairseq_synth {__version__}")
    levels = []
    for finding in findings():
        levels.append(finding.level)
        _print(f"{finding.level:<5} {finding.topic:<14}", finding.text)
        if finding.fix:
            _print(" " * INDENT, f"fix: {finding.fix}")
    print()
    _print_fixes()
    print()
    failed, notes = levels.count("FAIL"), levels.count("note")
    print(f"{failed} will not work, {notes} to note" if failed else f"everything needed works, {notes} to note")
    return 1 if failed else 0


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
