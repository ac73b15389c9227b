"""--freeze: exactly which parameters every word selects, in every family of models; what is refused."""

from argparse import Namespace

import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY

from fairseq_synth.checks.case import dictionary
from fairseq_synth.errors import UsageError
from fairseq_synth.freezing import digest, frozen_names
from fairseq_synth.freezing.groups import GROUPS
from fairseq_synth.freezing.model import freeze_model
from fairseq_synth.freezing.report import counts, table
from fairseq_synth.models.sequential_lm import PRESETS as SEQUENTIAL
from fairseq_synth.models.transformer import PRESETS
from fairseq_synth.models.transformer_lm import PRESETS as LM_PRESETS
from fairseq_synth.training_log import trainable_percent

SIZES = {"embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 2}
SMALL = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in SIZES.items()}
SMALL_LM = {k: v for k, v in SMALL.items() if k.startswith("decoder")}
MIXED = {f"{side}_self_attention": "random+dot_product" for side in ("encoder", "decoder")}
SHORT = {"synthesizer_max_length": 8}
ALL_TIED, OUTPUT_TIED = {"share_all_embeddings": True}, {"share_decoder_input_output_embed": True}
# cut-offs that the dictionary of the tests is large enough for
BANDS = {"adaptive_input_cutoff": "8,12", "adaptive_softmax_cutoff": "8,12"}


def build(arch="synth_transformer", **options):
    torch.manual_seed(1)
    words = dictionary()
    task = Namespace(source_dictionary=words, target_dictionary=words)
    model = ARCH_MODEL_REGISTRY[arch]
    return model.build_model(model.defaults(**options) if arch in SEQUENTIAL else Namespace(**options), task)


def frozen(arch, freeze, **options):
    return sorted(frozen_names(build(arch, freeze=freeze, **options)))


def expand(side, layers, text):
    """Whole names from short ones, for every layer: 'fc1.weight' -> encoder.layers.0.fc1.weight, ..."""
    return [f"{side}.layers.{layer}.{name}" for layer in range(layers) for name in text.split()]


# ------------------------------------------------------------------ the lists
SELF = """self_attn.k_proj.weight self_attn.k_proj.bias self_attn.v_proj.weight self_attn.v_proj.bias
    self_attn.q_proj.weight self_attn.q_proj.bias self_attn.out_proj.weight self_attn.out_proj.bias
    self_attn.scorer.mixture_logits self_attn.scorer.scorers.0.map"""
CROSS = """encoder_attn.k_proj.weight encoder_attn.k_proj.bias encoder_attn.v_proj.weight encoder_attn.v_proj.bias
    encoder_attn.q_proj.weight encoder_attn.q_proj.bias encoder_attn.out_proj.weight encoder_attn.out_proj.bias"""
FFN = "fc1.weight fc1.bias fc2.weight fc2.bias"
NORMS = """self_attn_layer_norm.weight self_attn_layer_norm.bias final_layer_norm.weight final_layer_norm.bias"""
CROSS_NORM = "encoder_attn_layer_norm.weight encoder_attn_layer_norm.bias"
SEQUENTIAL_SELF = """self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight
    self_attn.out_proj.weight"""
SEQUENTIAL_FFN = "feed_forward.0.weight feed_forward.0.bias feed_forward.3.weight feed_forward.3.bias"
MEMORY = "self_attn.memory.key self_attn.memory.value"


def translation_lists(model):
    """group -> names, of an encoder-decoder whose self-attentions are all random+dot_product."""
    encoder, decoder = len(model.encoder.layers), len(model.decoder.layers)
    lists = {
        "self_attention": expand("encoder", encoder, SELF) + expand("decoder", decoder, SELF),
        "cross_attention": expand("decoder", decoder, CROSS),
        "ffn": expand("encoder", encoder, FFN) + expand("decoder", decoder, FFN),
        "layer_norm": expand("encoder", encoder, NORMS) + expand("decoder", decoder, f"{NORMS} {CROSS_NORM}"),
    }
    lists["attention"] = lists["self_attention"] + lists["cross_attention"]
    return lists


EMBEDDINGS = {
    "untied": ({}, ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
               ["decoder.output_projection.weight"]),
    "output_tied": (OUTPUT_TIED, ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"], None),
    "all_tied": (ALL_TIED, ["encoder.embed_tokens.weight"], None),
    "learned_positions": (
        {**ALL_TIED, "encoder_learned_pos": True, "decoder_learned_pos": True},
        ["encoder.embed_tokens.weight", "encoder.embed_positions.weight", "decoder.embed_positions.weight"],
        None,
    ),
}  # fmt: skip


def check_lists(arch, lists, **options):
    """Every group holds exactly its names, and together they hold every parameter, once."""
    for group, names in lists.items():
        if names is None:
            with pytest.raises(UsageError, match=rf"--freeze {group}: .*(is the same tensor as|matches no parameter)"):
                frozen(arch, group, **options)
        else:
            assert frozen(arch, group, **options) == sorted(names), group
    apart = [names for group, names in lists.items() if names and group not in ("attention", "output")]
    known = [name for names in apart for name in names]
    if "attention" in lists:
        known = [n for n in known if n not in lists["attention"]] + lists["attention"]
    assert sorted(known) == sorted(name for name, _ in build(arch, **options).named_parameters())


@pytest.mark.parametrize("tying", EMBEDDINGS)
@pytest.mark.parametrize("arch", PRESETS)
def test_groups_of_translation_models(arch, tying):
    options = {**SMALL, **MIXED, **SHORT, **EMBEDDINGS[tying][0]}
    lists = translation_lists(build(arch, **options))
    _, inputs, output = EMBEDDINGS[tying]
    check_lists(arch, {**lists, "embeddings": inputs + (output or []), "output": output, "span": None}, **options)


@pytest.mark.parametrize("tying", ["untied", "output_tied"])
@pytest.mark.parametrize("arch", [a for a in LM_PRESETS if not a.endswith("wiki103")])
def test_groups_of_language_models(arch, tying):
    options = {**SMALL_LM, "decoder_self_attention": "random+dot_product", **SHORT, **EMBEDDINGS[tying][0]}
    model = build(arch, **options)
    layers, output = len(model.decoder.layers), EMBEDDINGS[tying][2]
    inputs, norms = ["decoder.embed_tokens.weight"], expand("decoder", layers, NORMS)
    if arch == "synth_transformer_lm_gpt":  # pre-norm with a last one
        norms += ["decoder.layer_norm.weight", "decoder.layer_norm.bias"]
    lists = {"self_attention": expand("decoder", layers, SELF), "ffn": expand("decoder", layers, FFN),
             "layer_norm": norms, "embeddings": inputs + (output or []), "output": output,
             "cross_attention": None}  # fmt: skip
    lists["attention"] = lists["self_attention"]
    check_lists(arch, lists, **options)


def test_groups_of_the_adaptive_language_model():
    """Embeddings and softmax in bands, tied but for the logits of the bands."""
    options = {**SMALL_LM, **BANDS, "decoder_self_attention": "random+dot_product", **SHORT}
    layers = len(build("synth_transformer_lm_wiki103", **options).decoder.layers)
    embeddings = [f"decoder.embed_tokens.embeddings.{band}.{part}.weight" for band in range(3) for part in (0, 1)]
    embeddings.append("decoder.adaptive_softmax.head.class_proj.weight")
    lists = {"attention": expand("decoder", layers, SELF), "ffn": expand("decoder", layers, FFN),
             "layer_norm": expand("decoder", layers, NORMS), "embeddings": embeddings, "output": None}  # fmt: skip
    check_lists("synth_transformer_lm_wiki103", lists, **options)


SMALL_SEQUENTIAL = {"embed_dim": 16, "attention_heads": 2, "attention_span": 12}


@pytest.mark.parametrize("arch", SEQUENTIAL)
def test_groups_of_sequential_models(arch):
    all_attention = arch.startswith("all_attention")
    sizes = {"persistent_memory": 3} if all_attention else {"ffn_embed_dim": 24}
    bands = {"adaptive_cutoff": "8,12"} if arch.endswith("wiki103") else {}
    options = {**SMALL_SEQUENTIAL, **sizes, **bands}
    layers = len(build(arch, **options).decoder.layers)
    norms = NORMS if not all_attention else " ".join(NORMS.split()[:2])
    embeddings, output = ["decoder.embed_tokens.weight"], ["decoder.output_projection.weight",
                                                           "decoder.output_projection.bias"]  # fmt: skip
    if bands:  # as published: embeddings and softmax are tied, the projections of the bands too
        embeddings = [f"decoder.embed_tokens.embeddings.{band}.{part}.weight" for band in range(3) for part in (0, 1)]
        embeddings, output = [*embeddings, "decoder.adaptive_softmax.head.class_proj.weight"], None
    lists = {
        "attention": expand("decoder", layers, SEQUENTIAL_SELF),
        "span": expand("decoder", layers, "self_attn.span.span_ratio"),
        "ffn": expand("decoder", layers, MEMORY if all_attention else SEQUENTIAL_FFN),
        "layer_norm": expand("decoder", layers, norms),
        "embeddings": ["decoder.positions", *embeddings, *(output or [])],
        "output": output,
    }
    check_lists(arch, lists, **options)


def test_every_group_is_listed_above():
    listed = {"embeddings", "attention", "ffn", "self_attention", "cross_attention", "output", "layer_norm", "span"}
    assert set(GROUPS) == listed


def test_spans_and_memory_as_options():
    """Spans train unless named; persistent memory stands for the feed-forward layers, with them or instead."""
    options = {**SMALL, "encoder_layers": 1, "decoder_layers": 1, **SHORT, "persistent_memory": 3,
               "encoder_adaptive_span": 6}  # fmt: skip
    memory = expand("encoder", 1, MEMORY) + expand("decoder", 1, MEMORY)
    assert frozen("synth_transformer", "ffn", **options) == sorted(memory)
    assert frozen("synth_transformer", "span", **options) == ["encoder.layers.0.self_attn.span.span_ratio"]
    both = expand("encoder", 1, FFN) + expand("decoder", 1, FFN)
    assert frozen("synth_transformer", "ffn", keep_feed_forward=True, **options) == sorted(memory + both)
    attention = frozen("synth_transformer", "encoder.attention", **options)
    assert attention and not [name for name in attention if "span" in name or "memory" in name]


# ------------------------------------------------------------------ words
DEEP = {**SMALL, "encoder_layers": 12, "decoder_layers": 2, **SHORT}


def test_prefixes_and_modules_match_whole_parts():
    lower = frozen("synth_transformer", "encoder.layers.1", **DEEP)
    assert lower and all(name.startswith("encoder.layers.1.") for name in lower)
    assert not [name for name in lower if name.startswith(("encoder.layers.10.", "encoder.layers.11."))]
    assert frozen("synth_transformer", "encoder.layers.1.ffn", **DEEP) == sorted(
        f"encoder.layers.1.{name}" for name in FFN.split()
    )
    assert frozen("synth_transformer", "decoder.ffn", **DEEP) == sorted(expand("decoder", 2, FFN))
    one = "decoder.layers.0.fc1.weight"
    assert frozen("synth_transformer", one, **DEEP) == [one]


def test_patterns_match_whole_names():
    weights = [name for name in expand("encoder", 12, FFN) if name.endswith("weight")]
    assert frozen("synth_transformer", r"re:encoder\..*fc[12]\.weight", **DEEP) == sorted(weights)
    ten = [name for layer in (10, 11) for name in (f"encoder.layers.{layer}.fc1.bias",)]
    assert frozen("synth_transformer", r"re:encoder\.layers\.\d{2,3}\.fc1\.bias", **DEEP) == ten


def test_words_add_up_and_may_be_separated_by_spaces():
    ffn, cross = (frozen("synth_transformer", word, **DEEP) for word in ("ffn", "cross_attention"))
    for text in ("ffn,cross_attention", "cross_attention ffn", " ffn ,  cross_attention,ffn"):
        assert frozen("synth_transformer", text, **DEEP) == sorted(ffn + cross)


def test_both_sides_of_tied_embeddings_are_the_whole():
    words = "encoder.embeddings,decoder.embeddings"
    assert frozen("synth_transformer", words, **SMALL, **ALL_TIED) == ["encoder.embed_tokens.weight"]
    assert frozen("synth_transformer", "decoder.embeddings", **SMALL, **OUTPUT_TIED) == ["decoder.embed_tokens.weight"]


EVERYTHING = "embeddings,attention,ffn,layer_norm"
REFUSED = {
    "nothing": ("", ["--freeze ''", "names nothing", "attention,ffn"]),
    "typo": ("atention", ["--freeze atention", "did you mean attention?", "embeddings, attention, ffn"]),
    "typo_below": ("decoder.fnn", ["'decoder.fnn'", "did you mean ffn?"]),
    "group_of_other_models": ("span", ["--freeze span", "'span' matches no parameter", "self_attention"]),
    "one_word_of_two": ("ffn,encoder.cross_attention", ["'encoder.cross_attention' matches no parameter"]),
    "half_a_part": ("encoder.layer", ["'encoder.layer' matches no parameter"]),
    "layer_that_is_not": ("encoder.layers.6", ["'encoder.layers.6' matches no parameter"]),
    "pattern_without_match": ("re:encoder", ["'encoder' matches no parameter's whole name"]),
    "bad_pattern": ("re:fc(1", ["'fc(1' is no regular expression", "unterminated subpattern"]),
    "one_side_of_tied": ("encoder.embeddings", ["encoder.embed_tokens.weight is the same tensor as",
                                                "decoder.output_projection.weight", "(embeddings)"]),
    "tied_output": ("output", ["decoder.output_projection.weight is the same tensor as"]),
    "tied_by_pattern": (r"re:decoder\.output_projection.*", ["is the same tensor as encoder.embed_tokens.weight"]),
    "everything": (EVERYTHING, [f"--freeze {EVERYTHING}", "freezes every parameter", "leave a group out"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    words, parts = REFUSED[case]
    with pytest.raises(UsageError) as error:
        build(**SMALL, **ALL_TIED, freeze=words)
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in parts), line


def test_no_language_model_has_cross_attention():
    with pytest.raises(UsageError, match="cross_attention.* matches no parameter") as error:
        build("synth_transformer_lm", **SMALL_LM, freeze="cross_attention")
    assert "did you mean" not in str(error.value) and "cross_attention, output" not in str(error.value)


def test_everything_but_fixed_spans_is_everything():
    options = {**SMALL_SEQUENTIAL, "ffn_embed_dim": 24, "layers": 1, "fixed_span": True}
    with pytest.raises(UsageError, match="nothing is left to train"):
        build("adaptive_span_lm", **options, freeze=EVERYTHING)


def test_other_options_that_cannot_work():
    with pytest.raises(UsageError, match="--frozen-dropout remove: has no effect without --freeze"):
        build(**SMALL, frozen_dropout="remove")
    with pytest.raises(UsageError, match="--quant-noise-pq 0.1: rewrites weights"):
        build(**SMALL, freeze="ffn", quant_noise_pq=0.1)


def test_parameters_that_were_joined_cannot_be_frozen():
    """What --ddp-backend fully_sharded (fairscale) makes of a layer."""
    model = build(**SMALL)
    model.encoder.layers[0].register_parameter("flat_param_0", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(UsageError, match="--ddp-backend fully_sharded joins parameters"):
        freeze_model(model, Namespace(freeze="ffn", frozen_dropout="keep"))


# ------------------------------------------------------------------ table, digest
def test_the_table_counts_tied_tensors_once():
    model = build(**SMALL, **ALL_TIED, **SHORT, encoder_layers=1, decoder_layers=1, freeze="embeddings,ffn")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert counts(model)["embeddings"] == [24 * 16, 24 * 16] and sum(n for n, _ in counts(model).values()) == sum(
        sizes.values()
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable_percent(model) == pytest.approx(100 * trained / sum(sizes.values()))
    lines = table(model).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].split() == ["embeddings", "384", "384", "0.0"]
    assert lines[-1].split() == ["all", f"{sum(sizes.values()):,}", f"{sum(sizes.values()) - trained:,}",
                                 f"{trainable_percent(model):.1f}"]  # fmt: skip


def test_digest_sees_every_bit_name_type_and_shape():
    tensor = torch.arange(6, dtype=torch.float32)
    first = digest({"a": tensor, "b": torch.ones(2)})
    assert first == digest({"b": torch.ones(2), "a": tensor.clone()})
    assert digest({"a": tensor.view(2, 3).t().contiguous().t()}) == digest({"a": tensor.view(2, 3)})
    moved = tensor.clone()
    moved[3] = torch.nextafter(moved[3], moved[3] + 1)
    others = [{"a": moved, "b": torch.ones(2)}, {"a": tensor, "c": torch.ones(2)}, {"a": tensor},
              {"a": tensor.view(2, 3), "b": torch.ones(2)}, {"a": tensor.double(), "b": torch.ones(2)},
              {"a": -tensor, "b": torch.ones(2)}]  # fmt: skip
    digests = {digest(other) for other in others}
    assert len(digests) == len(others) and first not in digests


def test_half_precision_counts_as_the_float32_that_fairseq_stores():
    for kind in (torch.float16, torch.bfloat16):
        tensor = torch.randn(5).to(kind)
        assert digest({"a": tensor}) == digest({"a": tensor.float()})
        assert digest({"a": torch.full((5,), 0.1).to(kind)}) != digest({"a": torch.full((5,), 0.1)})


def test_digest_of_every_type_is_stable():
    """Written down once: a change of the definition makes every checkpoint's record wrong."""
    half, bfloat = torch.ones(2, dtype=torch.float16), torch.ones(3, dtype=torch.bfloat16)
    tensors = {"half": half, "bfloat": bfloat, "scalar": torch.tensor(0.5), "empty": torch.zeros(0, 2)}
    tensors["bool"] = torch.tensor([True, False])
    assert digest(tensors) == GOLDEN


GOLDEN = "08503c7ec0bdef40882a703f129257fdb4e29ccff31d44aee9985604ac903518"
