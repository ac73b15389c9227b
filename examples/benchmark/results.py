"""Where the benchmark ran, and what it leaves behind: results.json, results.md, results.png."""

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import fairseq
import torch
from common import MODEL, Results, Section, Settings, texts

from fairseq_synth import compat
from fairseq_synth.errors import UsageError
from fairseq_synth.modules import products


def prepare(out: Path) -> None:
    """Refuse a folder that cannot be written before hours of measuring, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise UsageError(f"--out {out}: this folder cannot be written")


def describe(settings: Settings) -> Dict[str, Any]:
    """Hardware, versions and options: what a number needs to mean anything."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": gpu(settings),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq.__version__,
        "fairseq_fixes": sorted(compat.APPLIED),
        "size": settings.size,
        "device": settings.device,
        "dtype": settings.dtype_name,
        "threads": settings.threads,
        "clock": settings.clock_name,
        "onednn": products.ENABLED,
        "seed": settings.seed,
        "fewest_rounds": settings.rounds,
        "seconds_per_race": settings.seconds,
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def gpu(settings: Settings) -> Optional[str]:
    if settings.device == MODEL:
        return "model of an H100: computed, not measured"
    return torch.cuda.get_device_name() if settings.device == "cuda" else None


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def two_lines(facts: Dict[str, Any]) -> str:
    where = facts["gpu"] or f"{facts['processor']} ({facts['cores']} cores), {facts['threads']} thread(s)"
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "fairseq", "python"))
    products = "oneDNN for ours" if facts["onednn"] else "no oneDNN"
    return f"{where}, {facts['dtype']}, seed {facts['seed']}\n{versions}, {facts['clock']}, {products}"


def write(out: Path, facts: Dict[str, Any], sections: Sequence[Section], results: List[Results]) -> None:
    """Each file at once or not at all; the plot if it can be drawn."""
    content = {
        **facts,
        "sections": {s.name: {"title": s.title, "notes": s.notes, **s.options} for s in sections},
        "results": results,
    }
    _write_text(out / "results.json", json.dumps(content, indent=1) + "\n")
    _write_text(out / "results.md", markdown(facts, sections, results))
    written = ["results.json", "results.md"]
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
    else:
        matplotlib.use("Agg")
        plot(out / "results.png", two_lines(facts), sections, results)
        written.append("results.png")
    print(f"\nwritten to {out}: {', '.join(written)}")


def _write_text(target: Path, text: str) -> None:
    partial = target.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)


def markdown(facts: Dict[str, Any], sections: Sequence[Section], results: List[Results]) -> str:
    """The tables again, to paste into a README."""
    lines = [two_lines(facts).replace("\n", "; "), ""]
    for section in sections:
        titles = ["case", "", *(column.title for column in section.columns), "ratio", "quartiles"]
        lines += [f"### {section.title}", "", section.notes.replace("\n", " "), "", "| " + " | ".join(titles) + " |"]
        lines.append("|---|---|" + "---:|" * (len(titles) - 2))
        for result in (r for r in results if r["section"] == section.name):
            cells = [result["skipped"]] if "skipped" in result else texts(result, section)
            lines.append("| " + " | ".join([result["case"], result["name"], *cells]) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(path: Path, caption: str, sections: Sequence[Section], results: List[Results]) -> None:
    """One row per section: the ratio of every contender, a bar per case, with its quartiles."""
    import matplotlib.pyplot as plt

    drawn = [(s, [r for r in results if r["section"] == s.name and "ratio" in r]) for s in sections]
    drawn = [(s, rows) for s, rows in drawn if rows]
    if not drawn:
        return
    figure, axes = plt.subplots(len(drawn), 1, figsize=(10, 4 * len(drawn)), squeeze=False)
    for axis, (section, rows) in zip(axes[:, 0], drawn):
        _bars(axis, section, rows)
    inch = 1 / (4 * len(drawn))
    figure.suptitle(caption, fontsize=8, y=1 - 0.1 * inch)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 * inch))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axis: Any, section: Section, rows: List[Results]) -> None:
    names = list(dict.fromkeys(r["name"] for r in rows))
    cases = list(dict.fromkeys(r["case"] for r in rows))
    width = 0.8 / len(cases)
    for i, case in enumerate(cases):
        found = [r for r in rows if r["case"] == case]
        places = [names.index(r["name"]) + (i - (len(cases) - 1) / 2) * width for r in found]
        heights = [r["ratio"] for r in found]
        low, high = ([r.get(f"ratio_{end}", r["ratio"]) for r in found] for end in ("low", "high"))
        ends = [[h - x for h, x in zip(heights, low)], [x - h for h, x in zip(heights, high)]]
        axis.bar(places, heights, width, yerr=ends, label=case, error_kw={"linewidth": 0.8})
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    axis.set_ylabel("speed, stock = 1" + (", computed" if section.options.get("computed") else ""))
    axis.set_title(section.title, fontsize=10)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
