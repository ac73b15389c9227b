"""Pictures of spans and mixture weights. matplotlib is an optional extra, and no window is ever opened."""

from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Tuple

from fairseq_synth.errors import UsageError
from fairseq_synth.files import whole_file

if TYPE_CHECKING:  # learning curves need no torch
    from fairseq_synth.inspection.findings import MixtureWeights, Spans

# Okabe and Ito's colours: told apart by colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LARGE_SPAN = 100  # above this limit the axis is logarithmic, as in the paper's figure
DPI = 130


def require_matplotlib() -> None:
    """Raises UsageError where it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "pictures need matplotlib, which is not installed: pip install 'fairseq-synth[plot]', or pip install "
            "matplotlib"
        ) from error


def new_figure(width: float, height: float) -> Any:
    """A figure in inches that belongs to nobody's pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str) -> str:
    """Written whole or not at all. Returns the path."""
    with whole_file(path) as file:
        figure.savefig(file, dpi=DPI, format="png")
    return path


def spans_figure(found: Sequence["Spans"], title: str) -> Any:
    """One panel per group of attentions; a bar per head, layer by layer, as in figure 4 of arXiv 1905.07799."""
    groups = grouped(found)
    heads = max(sum(len(s.tokens) for s in spans) + len(spans) for spans in groups.values())
    figure = new_figure(min(14.0, max(7.2, 1.2 + 0.11 * heads)), 0.6 + 3.4 * len(groups))
    figure.suptitle(title, fontsize=11)
    for axes, (name, spans) in zip(_panels(figure, len(groups)), groups.items()):
        _draw_spans(axes, spans)
        every = [tokens for s in spans for tokens in s.tokens]
        axes.set_title(f"{name}: mean {sum(every) / len(every):,.1f}, max {max(every):,.1f}", fontsize=9, loc="left")
    return figure


def _draw_spans(axes: Any, spans: List["Spans"]) -> None:
    limit, left, centres = max(s.longest for s in spans), 0.0, []
    for i, layer in enumerate(spans):
        heads = len(layer.tokens)
        if i % 2:
            axes.axvspan(left - 1, left + heads, color="#f2f2f2", zorder=0)
        places = [left + head for head in range(heads)]
        axes.bar(places, layer.tokens, width=0.8, color=COLOURS[0], zorder=2)
        closed = [place for place, tokens in zip(places, layer.tokens) if tokens == 0]
        axes.scatter(closed, [0] * len(closed), marker="x", s=16, color=COLOURS[1], zorder=4, clip_on=False)
        mean = sum(layer.tokens) / heads
        axes.plot([left - 0.5, left + heads - 0.5], [mean, mean], color="black", linewidth=1.2, zorder=3)
        centres.append(left + (heads - 1) / 2)
        left += heads + 1
    _span_axis(axes, limit)
    axes.set_xticks(centres, [str(s.place.layer) for s in spans])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1, left - 1)
    axes.set_xlabel(f"layer (0 is the bottom); one bar per head, {len(spans[0].tokens)} heads in a layer")
    _span_legend(axes)
    finish_axes(axes)


def _span_axis(axes: Any, limit: int) -> None:
    axes.set_ylabel("span (tokens)")
    axes.axhline(limit, color="#777777", linestyle="--", linewidth=1, zorder=1)
    if limit <= LARGE_SPAN:
        axes.set_ylim(0, limit * 1.1)
        return
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    decades = [10**power for power in range(len(str(limit))) if 10**power < limit / 2]
    ticks = [0, *decades, limit]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_ylim(0, limit * 1.3)


def _span_legend(axes: Any) -> None:
    axes.plot([], [], color="black", linewidth=1.2, label="mean of the layer")
    axes.plot([], [], color="#777777", linestyle="--", linewidth=1, label="limit")
    axes.scatter([], [], marker="x", s=16, color=COLOURS[1], label="span 0")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False, borderpad=0)


def mixtures_figure(found: Sequence["MixtureWeights"], title: str) -> Any:
    """Weights through depth: a line per scorer (mean over heads), a point per head."""
    groups = grouped(found)
    figure = new_figure(6.4, 0.6 + 2.8 * len(groups))
    figure.suptitle(title, fontsize=11)
    for axes, (name, layers) in zip(_panels(figure, len(groups)), groups.items()):
        scorers = sorted({scorer for layer in layers for scorer in layer.scorers})
        for i, scorer in enumerate(scorers):
            shift = 0.04 * (i - (len(scorers) - 1) / 2)  # the points of two scorers mirror each other
            _draw_weights(axes, layers, scorer, COLOURS[i % len(COLOURS)], shift)
        axes.set_title(f"{name}: weight of each scorer's logits", fontsize=9, loc="left")
        axes.set_xticks([layer.place.layer for layer in layers])
        axes.set_xlabel("layer (0 is the bottom); points are heads, the line is their mean")
        axes.set_ylabel("weight")
        axes.set_ylim(0, 1)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        finish_axes(axes)
    return figure


def _draw_weights(axes: Any, layers: List["MixtureWeights"], scorer: str, colour: str, shift: float) -> None:
    places, means = [], []
    for layer in layers:
        if scorer in layer.scorers:
            heads, place = layer.weights[layer.scorers.index(scorer)], layer.place.layer + shift
            axes.scatter([place] * len(heads), heads, s=14, color=colour, alpha=0.6, linewidths=0)
            places.append(place)
            means.append(sum(heads) / len(heads))
    axes.plot(places, means, color=colour, marker="_", label=scorer)


def grouped(found: Sequence[Any]) -> Dict[str, List[Any]]:
    """By `Place.group`, in order of appearance."""
    groups: Dict[str, List[Any]] = {}
    for item in found:
        groups.setdefault(item.place.group, []).append(item)
    return groups


def _panels(figure: Any, rows: int) -> Tuple[Any, ...]:
    return tuple(figure.subplots(rows, 1, squeeze=False)[:, 0])


def finish_axes(axes: Any) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
