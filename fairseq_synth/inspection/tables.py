"""A table of results as Markdown, CSV or HTML."""

import csv
import html
import io
import math
import re
from typing import Dict, List, Sequence

from fairseq_synth.errors import printable
from fairseq_synth.inspection.grouping import P_VALUE, Row
from fairseq_synth.inspection.logs import PORT_LOSS

# columns that are the same in all runs of a row
COUNTS = ("parameters", "trainable", "updates")


def header(rows: Sequence[Row]) -> List[str]:
    """Names of the columns: those that some row has."""
    found = dict.fromkeys(column for row in rows for column in row.values)
    counts = [column for column in COUNTS if column in found]
    first = [column for column in ("minutes", "words/s", "valid ppl", "valid bits") if column in found]
    return ["model", *counts, "seed", *first, *(column for column in found if column not in (*counts, *first))]


def cells(row: Row, columns: Sequence[str]) -> List[str]:
    fixed = {"model": row.name, "seed": ", ".join(row.seeds)}
    return [fixed[c] if c in fixed else _cell(c, row) for c in columns]


def _cell(column: str, row: Row) -> str:
    value = row.values.get(column)
    if value is None:
        return "-"
    text = number(column, value.mean)
    if value.spread is not None and (column not in COUNTS or value.spread):
        text += f" ± {number(column, value.spread)}"
    return text if value.runs == len(row.members) else f"{text} ({value.runs} of {len(row.members)})"


def number(column: str, value: float) -> str:
    if column in (*COUNTS, "words/s", "minutes"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if column.split()[0] in ("bits", P_VALUE) or column == "valid bits" else f"{value:.2f}"


def markdown(rows: Sequence[Row], width: int = 0) -> str:
    """Numbers to the right; readable as it stands. With a width, as many tables as it takes to stay within it."""
    table = list(zip(*(cells(row, header(rows)) for row in rows)))
    columns = [[_escaped(text) for text in (name, *column)] for name, column in zip(header(rows), table)]
    parts: List[List[List[str]]] = [[]]
    for column in columns[1:]:
        if width and parts[-1] and _width([columns[0], *parts[-1], column]) > width:
            parts.append([])
        parts[-1].append(column)
    return "\n\n".join(_markdown([list(line) for line in zip(columns[0], *part)]) for part in parts)


def _escaped(text: str) -> str:
    """Names of folders are a stranger's: no cell ends early, and nothing becomes a link, HTML or code."""
    return re.sub(r"([\\|<\[`])", r"\\\1", printable(text))


def _width(columns: List[List[str]]) -> int:
    return sum(max(map(len, column)) + 3 for column in columns) + 1


def _markdown(table: List[List[str]]) -> str:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["| " + " | ".join(_align(i, text, widths[i]) for i, text in enumerate(line)) + " |" for line in table]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _align(place: int, text: str, width: int) -> str:
    return text.ljust(width) if place == 0 else text.rjust(width)


def as_csv(rows: Sequence[Row]) -> str:
    """Full precision; beside each measured column its spread and the number of runs."""
    columns = header(rows)
    names: List[str] = []
    for column in columns:
        measured = column not in (*COUNTS, "model", "seed")
        names += [column, f"{column} spread", f"{column} runs"] if measured else [column]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_no_formula(name) for name in names])
    for row in rows:
        line = _plain(row)
        writer.writerow([_no_formula(line.get(name, "")) for name in names])
    return file.getvalue().rstrip("\n")


def _no_formula(text: str) -> str:
    """A spreadsheet runs what begins with one of these signs, unless it is a number."""
    text = printable(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(row: Row) -> Dict[str, str]:
    line = {"model": row.name, "seed": " ".join(row.seeds)}
    for column, value in row.values.items():
        line[column] = _exact(value.mean)
        if column not in COUNTS:
            line[f"{column} spread"] = "" if value.spread is None else _exact(value.spread)
            line[f"{column} runs"] = str(value.runs)
    return line


def _exact(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.6g}"


def as_html(rows: Sequence[Row]) -> str:
    columns = header(rows)
    head = "".join(f"<th>{shown(column)}</th>" for column in columns)
    body = ["".join(f"<td>{shown(text)}</td>" for text in cells(row, columns)) for row in rows]
    return f"<table><thead><tr>{head}</tr></thead><tbody><tr>" + "</tr>\n<tr>".join(body) + "</tr></tbody></table>"


def shown(text: str) -> str:
    """Text of a page."""
    return html.escape(printable(text, 10_000))


def notes(rows: Sequence[Row]) -> List[str]:
    """What the reader must know to trust the numbers."""
    found = []
    if any(len(row.seeds) > 1 for row in rows):
        found.append("± is the sample standard deviation over runs that differ in nothing but the seed.")
    if any(len(row.seeds) == 1 for row in rows):
        found.append("A row with one seed has no spread: small differences between such rows mean nothing.")
    found += _signatures(rows)
    port = [row.name for row in rows if row.members[0].run.options.get("criterion") == PORT_LOSS]
    if port:
        found.append(f"The losses of {', '.join(port)} are too low by 1/(tokens per block): {PORT_LOSS} counts a token "
                     f"of each block that it does not predict.")  # fmt: skip
    if any("words/s" in row.values for row in rows):
        found.append("words/s: target tokens per second of training steps, validation and saving left out.")
    return found


def _signatures(rows: Sequence[Row]) -> List[str]:
    """A line for every metric and signature; with several of one metric, whose it is."""
    signatures: Dict[str, Dict[str, List[str]]] = {}
    for row in rows:
        for score in (s for m in row.members for e in m.evaluations for s in e.scores):
            signatures.setdefault(score.metric, {}).setdefault(score.signature, []).append(row.name)
    found = []
    for metric, rows_of in signatures.items():
        for signature, names in rows_of.items():
            whose = "" if len(rows_of) == 1 else f" of {', '.join(dict.fromkeys(names))}"
            found.append(f"{metric}{whose}: {signature}")
        if len(rows_of) > 1:
            found.append(f"{metric} of different signatures cannot be compared.")
    return found
