"""``--device h100-model``: what a training step would take on an H100. Computed, not measured.

Forward and backward of whole models at real sizes, without the optimizer, by fairseq's label-smoothed cross entropy
(``chunks``: by this package's). kernel_meter.py says what is counted, and what is not. No batch holds pads, but
fairseq's encoder is told that there are some, so that it makes its mask.
"""

import gc
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import torch
from common import Column, Results, Section, Settings
from kernel_meter import RATES, Meter, measure, on_device, without_values
from models import SIZES, Size, arguments, build, dictionary, precision

from fairseq_synth.errors import UsageError

TRANSLATION, LANGUAGE_MODEL = "transformer", "transformer_lm"
CHUNKED = ["--criterion", "chunked_label_smoothed_cross_entropy"]
LEAST_LENGTH = 256  # of maps: the plugin's default
MEMORY = 2048
# what is answered to questions about values: the encoder has pads; the output layer is linear
ANSWERS: Dict[str, Any] = {"forward_scriptable": True, "_is_linear": True}


class Case(NamedTuple):
    """sentences x length, on the source and the target side. kind: TRANSLATION or LANGUAGE_MODEL."""

    kind: str
    size: Size
    sentences: int
    length: int


GPT = Size(12, 768, 3072, 12)
CASES: Dict[str, Case] = {
    "mini: 2+2 layers, d 128, 4 x 256 tokens": Case(TRANSLATION, Size(2, 128, 256, 4, symbols=1000), 4, 256),
    "base, 64 x 64 tokens": Case(TRANSLATION, SIZES["base"], 64, 64),
    "base, 4 x 1024 tokens": Case(TRANSLATION, SIZES["base"], 4, 1024),
    "base, 2 x 2048 tokens": Case(TRANSLATION, SIZES["base"], 2, 2048),
    "language model 12 x 768, 1 x 4096 tokens": Case(LANGUAGE_MODEL, GPT, 1, 4096),
    "language model 12 x 768, 1 x 8192 tokens": Case(LANGUAGE_MODEL, GPT, 1, 8192),
}
MEASURED: Dict[str, Tuple[str, ...]] = {
    "mini": tuple(CASES)[:1], "small": tuple(CASES)[1:3], "full": tuple(CASES)[1:],
}  # fmt: skip


def run(settings: Settings) -> Iterator[Results]:
    for name in MEASURED[settings.size]:
        if settings.wants(name):
            for result in compare(CASES[name], settings):
                yield {"case": name, "group": CASES[name].kind, **result}


def contenders(case: Case, settings: Settings) -> Dict[str, List[str]]:
    """name -> arguments of fairseq-train; stock first."""
    stock = stock_arguments(case, settings)
    found = {case.kind: stock, f"{case.kind}, chunks": [*stock, *CHUNKED]}
    for spec in settings.variants:
        found[spec] = our_arguments(case, spec, settings)
    sides = ("encoder", "decoder") if case.kind == TRANSLATION else ("decoder",)
    span = [part for side in sides for part in (f"--{side}-adaptive-span", str(case.length))]
    plain = our_arguments(case, "dot_product", settings)
    found["dot_product, span"] = [*plain, *span]
    found[f"dot_product, memory {MEMORY}"] = [*plain, "--persistent-memory", str(MEMORY)]
    return found


def stock_arguments(case: Case, settings: Settings) -> List[str]:
    if case.kind == TRANSLATION:
        return arguments(case.size, TRANSLATION, "DATA", settings)
    dim = str(case.size.embed_dim)
    return [*_language_model(case, settings), "--arch", LANGUAGE_MODEL, "--decoder-input-dim", dim,
            "--decoder-output-dim", dim]  # fmt: skip


def our_arguments(case: Case, spec: str, settings: Settings) -> List[str]:
    from fairseq_synth.modules.scorers.base import takers
    from fairseq_synth.modules.scorers.spec import parse_spec

    length = str(max(LEAST_LENGTH, case.length))
    maps = set(parse_spec(spec, 1, "--variants")[0].names).intersection(takers("max_length"))
    options = ["--synthesizer-max-length", length] if maps else []
    if case.kind == TRANSLATION:
        return [*arguments(case.size, spec, "DATA", settings), *options]
    model = ["--arch", "synth_transformer_lm", "--decoder-self-attention", spec, *options]
    return [*_language_model(case, settings), *model]


def _language_model(case: Case, settings: Settings) -> List[str]:
    size, length = case.size, str(case.length)
    sizes = (("layers", size.layers), ("embed-dim", size.embed_dim), ("ffn-embed-dim", size.ffn_embed_dim),
             ("attention-heads", size.heads))  # fmt: skip
    return ["DATA", "--task", "language_modeling", *(a for k, v in sizes for a in (f"--decoder-{k}", str(v))),
            "--share-decoder-input-output-embed", "--tokens-per-sample", length, "--max-target-positions", length,
            "--dropout", "0.1", "--optimizer", "adam", "--lr", "1e-5", "--max-tokens", length,
            "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--activation-fn", "relu",
            *precision(settings)]  # fmt: skip


def compare(case: Case, settings: Settings) -> Iterator[Results]:
    first: Results = {}
    for name, args in contenders(case, settings).items():
        try:
            result = {"name": name, **compute(case, args, settings)}
        except UsageError as error:
            yield {"name": name, "skipped": f"skipped: {error}"}
            continue
        first = first or result
        ratio, share = first["seconds"] / result["seconds"], result["peak_bytes"] / first["peak_bytes"]
        yield {**result, "ratio": ratio, "memory_share": share}


def compute(case: Case, args: List[str], settings: Settings) -> Results:
    gc.collect()  # what refers to itself stays alive until now, and is no part of the next one's memory
    with without_values():
        cfg, task, model = build(args, dictionary(case.size.symbols))
        model, criterion = on_device(model, settings.dtype).train(), task.build_criterion(cfg.criterion)
        batch = _batch(case)
        if hasattr(criterion, "check_model"):
            with Meter(ANSWERS):
                criterion.check_model(model)
        meter = measure(model, lambda: criterion(model, batch)[0].backward(), ANSWERS)
    slowest = {name: seconds for name, seconds in meter.by_kernel.most_common(8)}
    return {"seconds": meter.seconds, "peak_bytes": meter.peak, "kernels": meter.kernels, "waits": meter.questions,
            "slowest": slowest, "computed": True}  # fmt: skip


def _batch(case: Case) -> Dict[str, Any]:
    def tokens() -> torch.Tensor:
        return torch.empty(case.sentences, case.length, dtype=torch.long, device="cuda")

    lengths = torch.empty(case.sentences, dtype=torch.long, device="cuda")
    net_input = {"src_tokens": tokens(), "src_lengths": lengths}
    if case.kind == TRANSLATION:
        net_input["prev_output_tokens"] = tokens()
    return {"net_input": net_input, "target": tokens(), "ntokens": case.sentences * case.length,
            "nsentences": case.sentences}  # fmt: skip


SECTION = Section(
    "gpu_model",
    "A training step on an H100: computed, not measured",
    "Computed from the bytes and products of every kernel. MB: peak above the parameters.\n"
    "mem: that, stock = 1. ratio: speed against stock. Forward and backward only.",
    (
        Column("ms", "seconds", "{:.1f}", 1e3),
        Column("MB", "peak_bytes", "{:.0f}", 2**-20),
        Column("kernels", "kernels", "{:.0f}"),
        Column("mem", "memory_share"),
    ),
    run,
    {"rates": RATES, "cases": {name: case._asdict() for name, case in CASES.items()}, "computed": True},
)
