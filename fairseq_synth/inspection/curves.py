"""Learning curves: the loss in training and validation, and the mean span where there is one."""

import math
from typing import Any, Callable, List, Optional, Sequence, Tuple

from fairseq_synth.errors import UsageError, printable
from fairseq_synth.inspection.figures import COLOURS, finish_axes, new_figure
from fairseq_synth.inspection.grouping import Row
from fairseq_synth.inspection.logs import Numbers, Run, bits

STYLES = ("-", "--", ":", "-.")
Panel = Tuple[str, str, Callable[[Run], List[Numbers]], Callable[[Numbers], Optional[float]]]
PANELS: Tuple[Panel, ...] = (
    ("validation", "loss (bits per token)", lambda run: run.valid, bits),
    ("training", "loss (bits per token)", lambda run: run.steps, bits),
    ("spans", "mean span (tokens)", lambda run: run.steps, lambda numbers: numbers.get("span_mean")),
)


def curves_figure(rows: Sequence[Row]) -> Any:
    """A panel each; a colour per row, a thin line per seed. Panels without numbers are left out."""
    panels = [panel for panel in PANELS if any(_points(m.run, panel)[0] for row in rows for m in row.members)]
    if not panels:
        raise UsageError("--curves, --html: no run has a number to draw: every loss is nan or infinite")
    figure = new_figure(4.6 * len(panels) + 0.4, 3.6 + 0.22 * len(rows))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for i, row in enumerate(rows):
            _draw(axes, row, panel, COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)])
        axes.set_title(panel[0], fontsize=10, loc="left")
        axes.set_xlabel("updates")
        axes.set_ylabel(panel[1])
        finish_axes(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False)
    return figure


def _draw(axes: Any, row: Row, panel: Panel, colour: str, style: str) -> None:
    shown = printable(row.name).replace("$", r"\$")  # no formula
    name = shown if len(row.seeds) == 1 else f"{shown} ({len(row.seeds)} seeds)"
    for i, measured in enumerate(row.members):
        x, y = _points(measured.run, panel)
        marker = "o" if len(x) == 1 else ""
        axes.plot(x, y, style, color=colour, linewidth=1.3, alpha=0.8, marker=marker, label=name if i == 0 else None)


def _points(run: Run, panel: Panel) -> Tuple[List[float], List[float]]:
    pairs = [(numbers["num_updates"], panel[3](numbers)) for numbers in panel[2](run)]
    known = [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]
    return [x for x, _ in known], [y for _, y in known]
