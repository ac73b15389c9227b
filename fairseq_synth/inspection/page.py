"""One HTML file with everything in it, to send to a colleague: no scripts, nothing is fetched."""

import base64
import html
import io
from typing import Any, Dict, List, Sequence

from fairseq_synth.inspection import tables
from fairseq_synth.inspection.grouping import Row, differing

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; }
.options td { white-space: normal; overflow-wrap: anywhere; text-align: left; } .options th { text-align: left; }
ul { font-size: 0.85rem; color: #444; padding-left: 1.2rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
@media print { body { margin: 0; } }
"""


def page(title: str, rows: Sequence[Row], figure: Any, version: str) -> str:
    notes = "".join(f"<li>{tables.shown(note)}</li>" for note in tables.notes(rows))
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style></head>
<body>
<h1>{html.escape(title)}</h1>
<div class="wide">{tables.as_html(rows)}</div>
<ul>{notes}</ul>
<h2>Learning curves</h2>
<img alt="loss by update, in validation and training" src="data:image/png;base64,{_inline(figure)}">
{_options(rows)}
<p><small>Made by fairseq-synth results {html.escape(version)}.</small></p>
</body>
</html>
"""


def _inline(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, dpi=130, format="png")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _options(rows: Sequence[Row]) -> str:
    """What differs between the rows; nothing for a single one."""
    found: Dict[str, List[str]] = differing(rows)
    if not found:
        return ""
    names = "".join(f"<th>{tables.shown(row.name)}</th>" for row in rows)
    lines = "".join(
        f"<tr><td>{tables.shown(name)}</td>" + "".join(f"<td>{tables.shown(v)}</td>" for v in values) + "</tr>\n"
        for name, values in found.items()
    )
    return (
        '<h2>Options that differ</h2>\n<div class="wide"><table class="options"><thead><tr><th>option</th>'
        f"{names}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
