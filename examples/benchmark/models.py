"""Whole models in this process, built as fairseq-train builds them, and a synthetic corpus for them.

The corpus: sentence pairs of log-normal length, 25 tokens on average and 4 to 100, targets about as long as their
sources, 10,000 symbols in one dictionary. The symbols are random: speed does not depend on them.
"""

import random
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from common import Settings
from fairseq import options, tasks
from fairseq.data import Dictionary, FairseqDataset, LanguagePairDataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer

STOCK = "transformer"


class Size(NamedTuple):
    """layers: of each side; tokens: of a batch; batches: in one turn."""

    layers: int
    embed_dim: int
    ffn_embed_dim: int
    heads: int
    symbols: int = 10_000
    tokens: int = 2048
    batches: int = 1


SIZES: Dict[str, Size] = {
    "mini": Size(1, 16, 24, 2, symbols=50, tokens=120),
    "tiny": Size(4, 128, 256, 4),
    "256": Size(4, 256, 1024, 4),
    "base": Size(6, 512, 2048, 8),
}
MEASURED: Dict[str, Tuple[str, ...]] = {"mini": ("mini",), "small": ("tiny",), "full": ("tiny", "256", "base")}


def title(name: str, size: Size) -> str:
    return f"{name}: {size.layers}+{size.layers} layers, d {size.embed_dim}"


def dictionary(symbols: int) -> Dictionary:
    words = Dictionary()
    for i in range(symbols - len(words)):
        words.add_symbol(f"w{i}")
    return words


def arguments(size: Size, name: str, data: str, settings: Settings) -> List[str]:
    """Of fairseq-train. name: STOCK, or the scorers of every self-attention."""
    sides = [a for side in ("encoder", "decoder") for k, v in
             (("layers", size.layers), ("embed-dim", size.embed_dim), ("ffn-embed-dim", size.ffn_embed_dim),
              ("attention-heads", size.heads)) for a in (f"--{side}-{k}", str(v))]  # fmt: skip
    model = ["--arch", STOCK]
    if name != STOCK:
        model = ["--arch", "synth_transformer", "--encoder-self-attention", name, "--decoder-self-attention", name]
    return [data, "--task", "translation", "-s", "src", "-t", "tgt", *model, *sides, "--share-all-embeddings",
            "--dropout", "0.1", "--optimizer", "adam", "--lr", "1e-5", "--criterion", "label_smoothed_cross_entropy",
            "--label-smoothing", "0.1", "--max-tokens", str(size.tokens), "--seed", str(settings.seed),
            "--num-workers", "0", *precision(settings)]  # fmt: skip


def precision(settings: Settings) -> List[str]:
    flags = [] if settings.device == "cuda" else ["--cpu"]
    return flags + {"float32": [], "bfloat16": ["--bf16"], "float16": ["--fp16"]}[settings.dtype_name]


def build(args: Sequence[str], words: Dictionary) -> Tuple[Any, Any, Any]:
    """What fairseq-train makes of its arguments: config, task and model."""
    with tempfile.TemporaryDirectory() as folder:
        for language in ("src", "tgt"):
            words.save(str(Path(folder) / f"dict.{language}.txt"))
        words.save(str(Path(folder) / "dict.txt"))
        given = [folder if a == "DATA" else a for a in args]
        parsed = options.parse_args_and_arch(options.get_training_parser(), input_args=given)
        cfg = convert_namespace_to_omegaconf(parsed)
        task = tasks.setup_task(cfg.task)
    torch.manual_seed(cfg.common.seed)
    return cfg, task, task.build_model(cfg.model)


def build_trainer(args: Sequence[str], words: Dictionary) -> Trainer:
    cfg, task, model = build(args, words)
    return Trainer(cfg, task, model, task.build_criterion(cfg.criterion))


def build_for_generation(args: Sequence[str], words: Dictionary, settings: Settings) -> Tuple[Any, Any]:
    """Task and model as fairseq-generate prepares them."""
    cfg, task, model = build(args, words)
    model.to(device=settings.device, dtype=settings.dtype).eval()
    model.prepare_for_inference_(cfg)
    return task, model


# ---------------------------------------------------------------------- corpus
def lengths(count: int, seed: int, longest: int = 100) -> List[int]:
    chance = random.Random(seed)
    return [max(4, min(longest, round(chance.lognormvariate(3.1, 0.5)))) for _ in range(count)]


def pairs(words: Dictionary, count: int, seed: int, longest: int = 100) -> LanguagePairDataset:
    """Source and target sentences, end of sentence included."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def sentence(length: int) -> torch.Tensor:
        tokens = torch.randint(words.nspecial, len(words), (length,), generator=generator)
        tokens[-1] = words.eos()
        return tokens

    sources = lengths(count, seed, longest)
    targets = [max(4, min(longest, round(n * chance.uniform(0.8, 1.25)))) for n in sources]
    source, target = (Sentences([sentence(n) for n in sizes]) for sizes in (sources, targets))
    return LanguagePairDataset(source, source.sizes, words, target, target.sizes, words, shuffle=False)


class Sentences(FairseqDataset):
    def __init__(self, tokens: List[torch.Tensor]) -> None:
        import numpy

        self.tokens, self.sizes = tokens, numpy.array([len(t) for t in tokens])

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.tokens[index]

    def __len__(self) -> int:
        return len(self.tokens)


def training_batches(size: Size, words: Dictionary, task: Any, settings: Settings) -> List[Dict[str, Any]]:
    """Batches of fairseq's making, sentences of like length together; of a whole epoch, evenly spaced ones."""
    longest = 100 if size.tokens >= 1000 else 20
    data = pairs(words, 40 * size.tokens * size.batches // longest, settings.seed, longest)
    made = task.get_batch_iterator(data, max_tokens=size.tokens, seed=settings.seed).next_epoch_itr(shuffle=False)
    batches = sorted(made, key=lambda batch: batch["net_input"]["src_tokens"].size(1))
    step = len(batches) / size.batches
    return [batches[int((i + 0.5) * step)] for i in range(size.batches)]


def generation_batch(size: Size, words: Dictionary, sentences: int, settings: Settings) -> Dict[str, Any]:
    """Sentences of like length, as fairseq-generate would group them: the middle of eight batches."""
    data = pairs(words, 8 * sentences, settings.seed)
    order = sorted(range(len(data)), key=lambda i: int(data.src_sizes[i]))
    batch = data.collater([data[i] for i in order[4 * sentences : 5 * sentences]])
    return to_device(batch, settings.device)


def to_device(batch: Dict[str, Any], device: str) -> Dict[str, Any]:
    from fairseq.utils import move_to_cuda

    return move_to_cuda(batch) if device == "cuda" else batch


def generation_options(beam: int, length: int) -> Namespace:
    """All hypotheses get ``length`` tokens and an end of sentence: equal work for every model."""
    return Namespace(beam=beam, max_len_a=0, max_len_b=length, min_len=length)
