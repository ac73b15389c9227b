"""Small models, and what several test files read from commands. Test files import from here, never from each other."""

import re
import socket
from argparse import Namespace

import torch
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture

from fairseq_synth.checks.case import dictionary
from fairseq_synth.models.encoder import FUSED_COPIES
from fairseq_synth.models.sequential_lm import PRESETS as SEQUENTIAL

# ---------------------------------------------------------------------- options of small models
SIZES = {"embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 2}
SMALL = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in SIZES.items()}
SMALL_LM = {k: v for k, v in SMALL.items() if k.startswith("decoder")}
SHORT = {"synthesizer_max_length": 8}
DOT = {f"{side}_self_attention": "dot_product" for side in ("encoder", "decoder")}
ALL_TIED, OUTPUT_TIED = {"share_all_embeddings": True}, {"share_decoder_input_output_embed": True}
# cut-offs that the dictionary of the tests is large enough for
BANDS = {"adaptive_input_cutoff": "8,12", "adaptive_softmax_cutoff": "8,12"}


# ---------------------------------------------------------------------- models
def task(symbols=20):
    words = dictionary(symbols)
    return Namespace(source_dictionary=words, target_dictionary=words)


def build(arch="synth_transformer", symbols=20, **options):
    torch.manual_seed(1)
    model = ARCH_MODEL_REGISTRY[arch]
    cfg = model.defaults(**options) if arch in SEQUENTIAL else Namespace(**options)
    return model.build_model(cfg, task(symbols))


def build_lm(**options):
    return build("synth_transformer_lm", **options)


def stock(symbols=20, **options):
    """fairseq's own transformer."""
    torch.manual_seed(1)
    args = Namespace(**options)
    base_architecture(args)
    return TransformerModel.build_model(args, task(symbols))


def own_state(model):
    """Without what fairseq 0.12.2 adds: copies for a fused kernel, and a buffer that nobody initialises."""
    unused = (*FUSED_COPIES, "_float_tensor")
    return {k: v for k, v in model.state_dict().items() if k.rsplit(".", 1)[-1] not in unused}


# ---------------------------------------------------------------------- commands
# arguments of fairseq-train for language models of every kind
LANGUAGE_MODELS = {
    "blocks": ["--task", "language_modeling", "--arch", "synth_transformer_lm", "--decoder-layers", "2",
               "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2",
               "--synthesizer-max-length", "32", "--weight-decay", "0.1", "--batch-size", "2"],
    "streams": ["--task", "streaming_lm", "--arch", "adaptive_span_lm", "--layers", "2", "--embed-dim", "16",
                "--ffn-embed-dim", "24", "--attention-heads", "2", "--attention-span", "32", "--batch-size", "2"],
    "all_attention": ["--task", "streaming_lm", "--arch", "all_attention_lm_enwik8_small", "--layers", "2",
                      "--embed-dim", "16", "--attention-heads", "2", "--attention-span", "32",
                      "--persistent-memory", "4", "--batch-size", "2"],
}  # fmt: skip


def torchrun():
    """Arguments for two processes that meet at a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return ("--nproc_per_node", 2, "--master_port", free.getsockname()[1])


def last_number(pattern, text):
    return float(re.findall(pattern, text)[-1])


def hypotheses(printed):
    """{sentence: (score, words)} of the H- lines."""
    lines = [line.split("\t") for line in printed.splitlines() if line.startswith("H-")]
    return {int(line[0][2:]): (float(line[1]), line[2]) for line in lines}


def half_layer_norm():
    """Whether this torch has float16 layer norms on a CPU."""
    try:
        torch.nn.LayerNorm(2).half()(torch.zeros(1, 2).half())
    except RuntimeError:
        return False
    return True
