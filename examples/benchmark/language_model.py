"""Section 4: language models over bytes: one update, and one decoded token, at context lengths up to 8,192.

Two layers of 256 dimensions, which shows what attention costs; the output layer is small. ``adaptive_span`` is the
sequential model: the same tokens as a stream of blocks, every head at a span of 256, the maximum span as long as the
others' context. The prefix of a decoding is put into the cache beforehand and is not timed.
"""

from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from common import Column, Results, Section, Settings, build_each, race
from models import build_for_generation, build_trainer, dictionary, precision, to_device

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.scorers import SCORERS
from fairseq_synth.modules.scorers.base import takers
from fairseq_synth.modules.scorers.spec import parse_spec
from fairseq_synth.modules.stream_memory import StreamMemory

STOCK, SPAN = "transformer_lm", "adaptive_span"
LENGTHS: Dict[str, Tuple[int, ...]] = {"mini": (32,), "small": (512,), "full": (512, 1024, 2048, 4096, 8192)}
LAYERS, DIM, FFN, HEADS, SYMBOLS = 2, 256, 1024, 4, 260
LEAST_TOKENS = {"mini": 64, "small": 1024, "full": 2048}  # of an update
MEAN_SPAN, BLOCK = 256, 512
ROWS, DECODED = 4, 16  # sentences and tokens of one turn of decoding
SHARE = 0.6  # of the memory that is free: what all models of a race may take


def run(settings: Settings) -> Iterator[Results]:
    for length in LENGTHS[settings.size]:
        for kind, compare in (("update", updates), ("decode", decodings)):
            case = f"{kind}, {length} tokens"
            if settings.wants(case):
                settings.seed_all()
                for result in compare(length, settings):
                    yield {"case": case, "group": kind, **result}


def arguments(name: str, length: int, settings: Settings) -> List[str]:
    """Of fairseq-train."""
    common = ["--optimizer", "adam", "--lr", "1e-5", "--max-tokens", str(length), "--seed", str(settings.seed),
              "--num-workers", "0", "--dropout", "0.1", *precision(settings)]  # fmt: skip
    if name == SPAN:
        span = min(MEAN_SPAN, length // 2)
        return ["DATA", "--task", "streaming_lm", "--arch", "adaptive_span_lm", "--layers", str(LAYERS),
                "--embed-dim", str(DIM), "--ffn-embed-dim", str(FFN), "--attention-heads", str(HEADS),
                "--attention-span", str(length), "--initial-span", str(span), "--fixed-span",
                "--tokens-per-sample", str(min(BLOCK, length)), *common]  # fmt: skip
    model = ["--arch", "transformer_lm", "--decoder-input-dim", str(DIM), "--decoder-output-dim", str(DIM)]
    if name != STOCK:
        model = ["--arch", "synth_transformer_lm", "--decoder-self-attention", name]
        if set(scorers_of(name)).intersection(takers("max_length")):
            model += ["--synthesizer-max-length", str(length)]
    sizes = [("layers", LAYERS), ("embed-dim", DIM), ("ffn-embed-dim", FFN), ("attention-heads", HEADS)]
    return ["DATA", "--task", "language_modeling", *model, *(a for k, v in sizes for a in (f"--decoder-{k}", str(v))),
            "--share-decoder-input-output-embed", "--tokens-per-sample", str(length),
            "--max-target-positions", str(length + DECODED), *common]  # fmt: skip


# ---------------------------------------------------------------------- updates
def updates(length: int, settings: Settings) -> Iterator[Results]:
    rows = max(1, LEAST_TOKENS[settings.size] // length)
    words, used, free = dictionary(SYMBOLS), 0.0, SHARE * free_memory(settings)

    def build(name: str) -> Callable[[], Any]:
        nonlocal used
        lasting, passing = training_memory(name, length, rows)
        refuse_beyond(free, used, lasting + passing, length)
        used += lasting
        trainer = build_trainer(arguments(name, length, settings), words)
        blocks = text(rows, length, min(BLOCK, length) if name == SPAN else length, words)
        return update(trainer, [to_device(b, settings.device) for b in blocks], stream=name == SPAN)

    runs, skipped = build_each([STOCK, *settings.variants, SPAN], build)
    yield from skipped
    for result in race(runs, settings):
        yield {**result, "tokens_per_second": rows * length / result["seconds"]}


def update(trainer: Any, blocks: List[Dict[str, Any]], stream: bool) -> Callable[[], Any]:
    def run() -> None:
        memory = StreamMemory()
        for block in blocks if stream else ():
            block["net_input"]["memory"] = memory
        trainer.train_step(blocks)

    return run


def text(rows: int, length: int, block: int, words: Any) -> List[Dict[str, Any]]:
    """Random bytes as fairseq's batches, cut into blocks."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(words.nspecial, len(words), (rows, length + 1), generator=generator)
    return [
        {
            "id": torch.arange(rows),
            "nsentences": rows,
            "ntokens": rows * block,
            "net_input": {
                "src_tokens": tokens[:, start : start + block].contiguous(),
                "src_lengths": torch.full((rows,), block),
            },
            "target": tokens[:, start + 1 : start + block + 1].contiguous(),
        }
        for start in range(0, length, block)
    ]


def refuse_beyond(free: float, used: float, needed: float, length: int) -> None:
    if used + needed > free:
        raise UsageError(f"{length} tokens need about {needed / 1e9:.0f} GB, more than is free beside the others")


def training_memory(name: str, length: int, rows: int) -> Tuple[float, float]:
    """Bytes, roughly: maps with gradient and Adam's two moments, which last; a few copies of the attention weights."""
    tokens = name == STOCK or any(SCORERS[scorer].depends_on == "tokens" for scorer in scorers_of(name))
    square = 4.0 * LAYERS * HEADS * length**2
    maps = sum({"random": 4, "fixed_random": 1}.get(scorer, 0) for scorer in scorers_of(name))
    return maps * square, 0.0 if name == SPAN else 3 * square * (rows if tokens else 1)


def scorers_of(name: str) -> List[str]:
    return [] if name in (STOCK, SPAN) else parse_spec(name, 1, "--variants")[0].names


def free_memory(settings: Settings) -> float:
    if settings.device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        with open("/proc/meminfo") as lines:
            return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8e9


# ---------------------------------------------------------------------- decoding
def decodings(length: int, settings: Settings) -> Iterator[Results]:
    words, prefix = dictionary(SYMBOLS), length - DECODED
    generator = torch.Generator().manual_seed(settings.seed)
    tokens = torch.randint(words.nspecial, len(words), (ROWS, length), generator=generator).to(settings.device)

    used, free = 0.0, SHARE * free_memory(settings)

    def build(name: str) -> Callable[[], Any]:
        nonlocal used
        needed = len({"random", "fixed_random"} & set(scorers_of(name))) * 4.0 * LAYERS * HEADS * length**2
        refuse_beyond(free, used, 2 * needed, length)  # drawing a map takes another
        used += needed
        _, model = build_for_generation(arguments(name, length, settings), words, settings)
        return decoding(model.decoder, tokens, filled(model.decoder, tokens[:, :prefix], name == SPAN), prefix)

    runs, skipped = build_each([STOCK, *settings.variants, SPAN], build)
    yield from skipped
    for result in race(runs, settings):
        yield {**result, "tokens_per_second": ROWS * DECODED / result["seconds"]}


@torch.no_grad()
def filled(decoder: Any, prefix: torch.Tensor, sequential: bool) -> Dict[str, Any]:
    """The cache after ``prefix`` (B x T): many tokens at a time, where fairseq's decoder takes one."""
    state: Dict[str, Any] = {}
    if sequential:
        for end in range(BLOCK, prefix.size(1) + BLOCK, BLOCK):
            decoder(prefix[:, :end], incremental_state=state)
        return state
    x, embeddings = None, decoder.embed_tokens(prefix)
    for start in range(0, prefix.size(1), BLOCK):
        x = embeddings[:, start : start + BLOCK].transpose(0, 1)
        mask = future(start, x)
        for layer in decoder.layers:
            x = layer(x, incremental_state=state, self_attn_mask=mask)[0]
    return state


def future(start: int, x: torch.Tensor) -> Optional[torch.Tensor]:
    """T x (start + T): row t sees the columns up to start + t."""
    steps = x.size(0)
    return x.new_full((steps, start + steps), float("-inf")).triu(start + 1)


def decoding(decoder: Any, tokens: torch.Tensor, state: Dict[str, Any], prefix: int) -> Callable[[], Any]:
    """The last DECODED tokens, one by one, always from the same state."""

    @torch.no_grad()
    def run() -> None:
        cache = {key: dict(value) for key, value in state.items()}
        for end in range(prefix + 1, prefix + DECODED + 1):
            decoder(tokens[:, :end], incremental_state=cache)

    return run


SECTION = Section(
    "language_model",
    "Language models over bytes: updates and decoding by context length",
    "tokens/s: of updates by fairseq's trainer, or decoded one by one, the cache full.\n"
    "ratio: speed against fairseq's transformer_lm.",
    (Column("tokens/s", "tokens_per_second", "{:.0f}"), Column("ms", "seconds", scale=1e3)),
    run,
    {"layers": LAYERS, "embed_dim": DIM, "ffn_embed_dim": FFN, "heads": HEADS, "symbols": SYMBOLS,
     "mean_span": MEAN_SPAN, "block": BLOCK, "decoded_rows": ROWS},
)  # fmt: skip
