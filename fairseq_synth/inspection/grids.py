"""Pictures with a panel for every layer (row) and head (column): attention to text, and maps of positions."""

from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from fairseq_synth.inspection.figures import new_figure
from fairseq_synth.inspection.findings import Map

WIDEST, LABELLED = 20.0, 48  # inches; tokens


def attention_figure(weights: Tensor, rows: Sequence[str], columns: Sequence[str], title: str) -> Any:
    """weights: layers x H x T x S; rows, columns: the tokens of queries and keys."""
    longest = max(len(rows), len(columns))
    cell = min(2.4, max(1.0, 0.13 * longest))
    figure, axes = _grid(weights.shape[:2], cell, title)
    image = None
    for (layer, head), panel in axes.items():
        image = panel.imshow(weights[layer, head].numpy(), vmin=0, vmax=float(weights.max()), cmap="Blues",
                             aspect="auto", interpolation="nearest")  # fmt: skip
    if longest <= LABELLED:
        _label(axes, rows, columns, 72 * figure.get_size_inches()[0] / (weights.size(1) + 1) / longest * 0.8)
    figure.colorbar(image, ax=list(axes.values()), label="attention (a row is one query)", shrink=0.6, pad=0.01)
    return figure


def maps_figure(found: Sequence[Map], length: int, title: str) -> Any:
    """What each map alone would pay attention to in a sentence of `length` tokens, against paying all tokens alike."""
    relative = torch.stack([relative_attention(m.logits, length, m.causal) for m in found])
    extent = max(float(relative[relative.isfinite()].abs().max()), 1e-3)
    figure, axes = _grid(relative.shape[:2], 1.5, title)
    image = None
    for (layer, head), panel in axes.items():
        image = panel.imshow(relative[layer, head].numpy(), vmin=-extent, vmax=extent, cmap="RdBu_r",
                             interpolation="nearest")  # fmt: skip
        panel.set_facecolor("#e0e0e0")
    rows = [found[layer].place.layer for layer, head in axes if head == 0]
    for layer, number in enumerate(rows):
        axes[layer, 0].set_ylabel(f"layer {number}", fontsize=8)
    figure.colorbar(image, ax=list(axes.values()), label="log2(attention / uniform attention)", shrink=0.6, pad=0.01)
    return figure


def relative_attention(logits: Tensor, length: int, causal: bool) -> Tensor:
    """log2 of softmax(logits) times the number of visible keys: 0 is uniform attention, 1 twice as much.

    logits: H x N x N. Returns H x length x length; NaN where a causal row cannot look.
    """
    logits = logits[:, :length, :length].float()
    future = torch.ones(length, length, dtype=torch.bool).triu(1) & causal
    weights = torch.softmax(logits.masked_fill(future, -torch.inf), dim=-1)
    visible = future.logical_not().sum(-1, keepdim=True)
    return (weights * visible).log2().masked_fill(future, torch.nan)


def _grid(shape: Sequence[int], cell: float, title: str) -> Tuple[Any, Dict[Tuple[int, int], Any]]:
    layers, heads = shape
    cell = min(cell, WIDEST / (heads + 1))
    figure = new_figure(max(4.5, cell * heads + 1.6), max(2.2, cell * layers + 0.9))
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(layers, heads, squeeze=False)
    axes = {(layer, head): panels[layer][head] for layer in range(layers) for head in range(heads)}
    for (layer, head), panel in axes.items():
        panel.set_xticks([])
        panel.set_yticks([])
        if layer == 0:
            panel.set_title(f"head {head}", fontsize=8)
        if head == 0:
            panel.set_ylabel(f"layer {layer}", fontsize=8)
    return figure, axes


def _label(axes: Dict[Tuple[int, int], Any], rows: Sequence[str], columns: Sequence[str], size: float) -> None:
    """Tokens beside the first column and below the last row."""
    size, bottom = min(7.0, max(3.0, size)), max(layer for layer, _ in axes)
    for (layer, head), panel in axes.items():
        if head == 0:
            panel.set_yticks(range(len(rows)), _printable(rows), fontsize=size)
        if layer == bottom:
            panel.set_xticks(range(len(columns)), _printable(columns), rotation=90, fontsize=size)
        panel.tick_params(length=0, pad=1)


def _printable(tokens: Sequence[str]) -> List[str]:
    """matplotlib reads $...$ as mathematics."""
    return [token.replace("$", r"\$") for token in tokens]
