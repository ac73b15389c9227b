"""--frozen-init and --store-frozen in models: initial distributions, state dicts with a seed, what is refused."""

import copy
import math
from argparse import Namespace

import pytest
import torch
from builders import BANDS, SHORT, SMALL, SMALL_LM, build
from fairseq.models import ARCH_MODEL_REGISTRY

from fairseq_synth.checks.case import tokens
from fairseq_synth.errors import UsageError
from fairseq_synth.freezing import frozen_names, record
from fairseq_synth.freezing.groups import tied_names
from fairseq_synth.modules.scorers import SCORERS, Logits, MapOptions, Scorer
from fairseq_synth.modules.scorers.maps import map_rule
from fairseq_synth.seeded import storage
from fairseq_synth.seeded.linear import SeededLinear
from fairseq_synth.seeded.rules import recipes

TWO = {"encoder_layers": 2, "decoder_layers": 2}
ALL = r"re:.*(?<!decoder\.layers\.1\.self_attn_layer_norm\.weight)"  # one tensor must be left to train
SEQUENTIAL = {"layers": 2, "embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 2, "attention_span": 8}


def synth(freeze="ffn,embeddings", frozen_init=7, **options):
    return build(**{**SMALL, **TWO, **SHORT, **options}, freeze=freeze, frozen_init=frozen_init)


def seeded(**options):
    return synth(store_frozen="seed", **options)


def parameters(model):
    return dict(model.named_parameters())


def assert_same(one, other):
    assert one.keys() == other.keys()
    names = [name for name in one if not name.endswith("_float_tensor")]  # 0.12.2 never initialises it
    assert [name for name in names if not torch.equal(one[name], other[name])] == []


# ---------------------------------------------------------------------- initial values
def wide(**options):
    """Large enough to tell distributions apart."""
    sizes = {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in (("embed_dim", 64), ("ffn_embed_dim", 96))}
    return synth(freeze=ALL, **{**SMALL, **sizes, "synthesizer_max_length": 40, **options})


def assert_uniform(tensor, bound):
    assert tensor.abs().max() < bound and tensor.abs().max() > 0.97 * bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_matrices_biases_and_norms():
    found = parameters(wide())
    assert_uniform(found["encoder.layers.0.fc1.weight"], math.sqrt(6 / 160))
    assert_uniform(found["encoder.layers.1.fc2.weight"], math.sqrt(6 / 160))
    assert_uniform(found["decoder.layers.0.encoder_attn.q_proj.weight"], math.sqrt(6 / 128))  # no gain of 1/sqrt(2)
    biases = [tensor for name, tensor in found.items() if name.endswith(".bias")]
    assert len(biases) > 20 and not any(tensor.any() for tensor in biases)
    norms = [t for name, t in found.items() if "layer_norm.weight" in name and "layers.1.self_attn_layer" not in name]
    assert norms and all(bool((tensor == 1).all()) for tensor in norms)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings(tied):
    """Rows of length 1 on average, as in Marian and fairseq; an output matrix of its own is a matrix."""
    model = wide(share_all_embeddings=tied)
    table = model.encoder.embed_tokens.weight
    assert not table[1].any() and table[2:].all()
    assert_uniform(torch.cat([table[:1], table[2:]]), math.sqrt(3 / 64))
    assert model.encoder.embed_scale == 8
    output = model.decoder.output_projection.weight
    if tied:
        assert output is table
    else:
        assert_uniform(output, math.sqrt(6 / (64 + output.size(0)))) and output[1].any()


def test_learned_positions_have_a_zero_row_too():
    table = wide(encoder_learned_pos=True).encoder.embed_positions.weight
    assert not table[1].any() and table[2:].all()


def by_hand(name, init):
    """What init_map() and the scorers' own initialisation say, for 40 positions, 2 heads of 32, rank 5."""
    if name.endswith("map"):
        return math.sqrt(6 / (40 * 42)) if init == "glorot" else 1.0
    if name.endswith(("left", "right")):
        return math.sqrt(6 / (5 * 42)) if init == "glorot" else 5**-0.25
    return {"weight": math.sqrt(6 / (32 + 40)), "weight_a": math.sqrt(6 / 37), "weight_b": math.sqrt(6 / 40)}[
        name.rsplit(".", 1)[-1]
    ]


@pytest.mark.parametrize(
    "scorer, init",
    [
        ("random", "glorot"),
        ("random", "normal"),
        ("factorized_random", "glorot"),
        ("factorized_random", "normal"),
        ("dense", "glorot"),
        ("factorized_dense", "glorot"),
    ],
)
def test_scorers_start_as_they_do_without_a_seed(scorer, init):
    options = {"synthesizer_init": init} if "random" in scorer else {}
    spec = {f"{side}_self_attention": scorer for side in ("encoder", "decoder")}
    if scorer == "factorized_random":
        options["synthesizer_rank"] = 5
    model = wide(**spec, **options)
    found = {n: t for n, t in parameters(model).items() if ".scorer." in n and ".hidden" not in n and t.any()}
    assert found
    for name, tensor in found.items():
        if init == "normal":
            assert tensor.std().item() == pytest.approx(by_hand(name, init), rel=0.06)
            assert tensor.max() > 2 * tensor.std()
        else:
            assert_uniform(tensor, by_hand(name, init))


class OwnScorer(Scorer):
    """A user's: one logit per distance. ``rule`` says how it starts."""

    depends_on = "positions"
    Options = MapOptions

    def __init__(self, attention, options):
        super().__init__(attention, options)
        self.init = str(options.init)
        self.by_distance = torch.nn.Parameter(torch.empty(attention.num_heads, 1, 2 * options.max_length))

    def rule(self, name):
        return map_rule(self.init, *self.by_distance.shape)

    def logits(self, x, q, k, positions):
        index = positions.offsets(self.by_distance.device) + self.max_length
        return Logits(bias=self.by_distance[:, 0][:, index])


class SilentScorer(OwnScorer):
    """Does not say how it starts."""

    def reset_parameters(self):
        torch.nn.init.normal_(self.by_distance)

    def rule(self, name):
        return None


@pytest.mark.parametrize("init", ["normal", "glorot"])
def test_a_scorer_of_a_users_own_starts_alike_with_a_seed(init, monkeypatch):
    monkeypatch.setitem(SCORERS, "own", OwnScorer)
    options = {"encoder_self_attention": "own", "synthesizer_init": init, "synthesizer_max_length": 64}
    spread = [
        parameters(model)["encoder.layers.0.self_attn.scorer.by_distance"].std().item()
        for model in (build(**SMALL, **options), build(**SMALL, **options, freeze="scorer", frozen_init=1))
    ]
    assert spread[0] == pytest.approx(spread[1], rel=0.15)


def test_a_scorer_that_does_not_say_how_it_starts_is_not_guessed(monkeypatch):
    monkeypatch.setitem(SCORERS, "silent", SilentScorer)
    with pytest.raises(UsageError, match="no rule for drawing encoder.layers.0.self_attn.scorer.by_distance"):
        build(**SMALL, encoder_self_attention="silent", freeze="scorer", frozen_init=1)


def test_mixtures_start_even_and_spans_where_they_are():
    model = wide(encoder_self_attention="dense+dot_product", encoder_adaptive_span=10)
    found = parameters(model)
    assert not found["encoder.layers.0.self_attn.scorer.mixture_logits"].any()
    assert not found["encoder.layers.0.self_attn.span.span_ratio"].any()


def test_persistent_vectors():
    spec = {f"{side}_self_attention": "dot_product" for side in ("encoder", "decoder")}
    memory = wide(persistent_memory=50, synthesizer_max_length=256, **spec).encoder.layers[0]
    key, value = memory.self_attn.memory()
    assert key.std().item() == pytest.approx(1, rel=0.06) and value.std().item() == pytest.approx(1, rel=0.06)


def test_sequential_models():
    """Unscaled embeddings and relative positions keep their unit variance."""
    sizes = {**SEQUENTIAL, "embed_dim": 128, "attention_span": 64}
    found = parameters(build("adaptive_span_lm", freeze=ALL, frozen_init=1, **sizes))
    assert found["decoder.positions"].std().item() == pytest.approx(1, rel=0.06)
    table = found["decoder.embed_tokens.weight"]
    assert not table[1].any() and table[2:].std().item() == pytest.approx(1, rel=0.06)
    assert_uniform(found["decoder.layers.0.self_attn.q_proj.weight"], math.sqrt(6 / 256))


def test_adaptive_bands():
    bands = {"adaptive_input": True, "tie_adaptive_weights": True, **BANDS, "adaptive_input_factor": 2.0,
             "adaptive_softmax_factor": 2.0}  # fmt: skip
    model = build("synth_transformer_lm", **SMALL_LM, **SHORT, **bands, freeze="embeddings", frozen_init=1)
    first, second = (band[0].weight for band in list(model.decoder.embed_tokens.embeddings)[:2])
    assert not first[1].any() and first.abs().max() < math.sqrt(3 / 16)
    assert second.all() and second.abs().max() < math.sqrt(3 / 8) and second.abs().max() > 0.8 * math.sqrt(3 / 8)


def test_every_frozen_tensor_comes_from_the_seed_alone():
    one, two, other = synth(), synth(encoder_layers=3), synth(frozen_init=8)
    torch.manual_seed(99)
    names = frozen_names(one)
    assert all(torch.equal(parameters(one)[n], parameters(two)[n]) for n in names)
    random = [n for n in names if n.endswith("weight")]
    assert random and not any(torch.equal(parameters(one)[n], parameters(other)[n]) for n in random)


def test_what_trains_starts_as_without_a_seed():
    drawn, plain = parameters(synth()), parameters(synth(frozen_init=None))
    frozen = set(frozen_names(synth()))
    assert frozen and all(torch.equal(drawn[name], plain[name]) == (name not in frozen) for name in drawn
                          if not name.endswith("bias") or name not in frozen)  # fmt: skip


def test_what_no_rule_covers_is_refused():
    model = synth()
    model.strange = torch.nn.Parameter(torch.arange(3.0))
    with pytest.raises(UsageError, match="there is no rule for drawing strange; give its module a method"):
        recipes(model, ["strange"], 3)


# ---------------------------------------------------------------------- options
@pytest.mark.parametrize(
    "options, line",
    [
        ({"freeze": None}, "--frozen-init 7: has no effect without --freeze; add it, or drop --frozen-init"),
        ({"frozen_init": -1}, "--frozen-init -1: must be a whole number from 0 on"),
        ({"frozen_init": None, "store_frozen": "seed"}, "--store-frozen seed: needs --frozen-init SEED"),
        ({"frozen_init": None, "frozen_on_the_fly": True}, "--frozen-on-the-fly: needs a model trained with"),
        (
            {"freeze": "embeddings", "share_all_embeddings": True, "frozen_on_the_fly": True},
            "--frozen-on-the-fly: --freeze embeddings freezes no linear layer",
        ),
    ],
)
def test_refused_options(options, line):
    with pytest.raises(UsageError) as error:
        synth(**options)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


# ---------------------------------------------------------------------- state dicts
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_all_embeddings": True},
        {"share_decoder_input_output_embed": True},
        {"freeze": "attention"},
        {"freeze": ALL, "encoder_self_attention": "random+dot_product"},
    ],
)
def test_the_state_dict_lacks_what_the_seed_gives_and_loads(options):
    full, model = synth(**options).state_dict(), seeded(**options)
    state = model.state_dict()
    frozen = set(frozen_names(model))
    left_out = {name for names in tied_names(model) if names[0] in frozen for name in names}
    assert set(full) - set(state) == left_out and set(state) - set(full) == {storage.KEY}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    for target in (seeded(**options), synth(**{**options, "freeze": None, "frozen_init": None})):
        for parameter in target.parameters():
            parameter.data.fill_(0.5)
        target.load_state_dict(state)
        assert_same({n: t for n, t in target.state_dict().items() if n in full and n != record.KEY and n in state},
                    {n: t for n, t in full.items() if n in state and n != record.KEY})  # fmt: skip
        assert_same(parameters(target), parameters(synth(**options)))


@pytest.mark.parametrize("arch, options", [
    ("synth_transformer_lm", {**SMALL_LM, **SHORT, "decoder_layers": 2}),
    ("adaptive_span_lm", SEQUENTIAL),
])  # fmt: skip
def test_language_models(arch, options):
    def model(**more):
        return build(arch, **options, freeze="ffn,embeddings", frozen_init=3, **more)

    state = model(store_frozen="seed").state_dict()
    assert not any("embed_tokens" in name for name in state) and storage.KEY in state
    assert_same(storage.materialized(state), model().state_dict())
    target = model(store_frozen="seed")
    target.load_state_dict(state)
    assert_same(parameters(target), parameters(model()))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision(half):
    """The file says how its tensors were rounded: a model in float32 that loads it gets the rounded values."""
    trained = seeded().to(half)
    state, full = trained.state_dict(), synth().to(half).state_dict()
    assert_same(storage.materialized(state), full)
    loaded = seeded()
    loaded.load_state_dict(state)
    assert torch.equal(loaded.encoder.layers[0].fc1.weight, full["encoder.layers.0.fc1.weight"].float())
    again = loaded.state_dict()  # in float32, of rounded values
    assert "encoder.layers.0.fc1.weight" not in again
    assert torch.equal(storage.materialized(again)["encoder.layers.0.fc1.weight"], loaded.encoder.layers[0].fc1.weight)


def pruned(state, **options):
    """fairseq wants both sides named, and prunes what it loads by the names in the file."""
    keep = {"encoder_layers_to_keep": "0,2", "decoder_layers_to_keep": "0,1"}
    model = seeded(encoder_layers=3, **keep, **options)
    model.load_state_dict(state, model_cfg=Namespace(arch="synth_transformer", **keep))
    return model


def test_pruned_layers_keep_their_own_weights():
    """--encoder-layers-to-keep renames layers after the frozen tensors were put back."""
    model = seeded(encoder_layers=3)
    for on_the_fly in (False, True):
        kept = pruned(model.state_dict(), frozen_on_the_fly=on_the_fly)
        assert len(kept.encoder.layers) == 2
        assert torch.equal(kept.encoder.layers[1].fc1.weight, model.encoder.layers[2].fc1.weight)


def test_saving_after_pruning_loses_nothing(caplog):
    model = seeded(encoder_layers=3)
    kept = pruned(model.state_dict())
    state = kept.state_dict()
    assert "encoder.layers.1.fc1.weight is not what its seed draws, so it is stored in full" in caplog.text
    assert torch.equal(state["encoder.layers.1.fc1.weight"], model.encoder.layers[2].fc1.weight)
    assert "encoder.layers.0.fc1.weight" not in state
    assert_same({n: t for n, t in storage.materialized(state).items() if n in parameters(kept)}, parameters(kept))


def refusal(state, **options):
    with pytest.raises(UsageError) as error:
        seeded(**options).load_state_dict(state)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_seed_is_refused():
    line = refusal(seeded(frozen_init=5).state_dict())
    assert line.startswith("--frozen-init 7: the checkpoint's frozen tensors are drawn from seed 5; give")


def test_a_changed_seed_in_the_file_is_refused():
    def change(**changes):
        state = seeded().state_dict()
        entry = {**record.decode(state[storage.KEY]), **changes}
        state[storage.KEY] = record.encode(entry)
        return refusal(state, frozen_init=changes.get("seed", 7))

    assert "frozen tensors (ffn,embeddings) are not those that were saved: SHA-256" in change(seed=8)
    assert "drawn by stream 2, this version of fairseq_synth knows stream 1" in change(stream=2)
    assert "entry frozen_seed is damaged" in change(tensors={"a": [1]})
    assert "entry frozen_seed is damaged" in change(aliases={"a": "b"})
    state = seeded().state_dict()
    state[storage.KEY][7] += 1
    assert "entry frozen_seed is damaged" in refusal(state)
    state = seeded().state_dict()
    del state[record.KEY]
    assert "holds no digest" in refusal(state)


def test_a_full_checkpoint_of_other_values_is_refused():
    """They would be saved as a seed that does not give them."""
    state = synth(frozen_init=None).state_dict()
    line = refusal(state)
    assert line.startswith("--frozen-init 7: ") and "in the checkpoint is not what this seed draws" in line
    seeded().load_state_dict(synth().state_dict())
    average = {n: t * (1 + 2e-7) if t.is_floating_point() else t for n, t in synth().state_dict().items()}
    del average[record.KEY]
    loaded = seeded()
    loaded.load_state_dict(average)  # as fairseq's script leaves it
    assert "encoder.layers.0.fc1.weight" in loaded.state_dict()  # and so it is kept


def test_a_copy_saves_alike():
    model = seeded()
    assert_same(copy.deepcopy(model).state_dict(), model.state_dict())


# ---------------------------------------------------------------------- on the fly
@pytest.mark.parametrize("freeze", ["ffn", "attention", "encoder.ffn,decoder.attention,embeddings"])
@pytest.mark.parametrize("stored", ["seed", "full"])
def test_on_the_fly_gives_the_same_numbers(freeze, stored):
    options = {"share_decoder_input_output_embed": True, "encoder_self_attention": "random,dot_product"}
    model = synth(freeze=freeze, store_frozen=stored, **options).eval()
    light = synth(freeze=freeze, frozen_on_the_fly=True, **options)
    light.load_state_dict(model.state_dict())
    light.eval()
    seeds = [module for module in light.modules() if isinstance(module, SeededLinear)]
    assert seeds and sum(p.numel() for p in light.parameters()) < sum(p.numel() for p in model.parameters())
    source, target = tokens((7, 3)), tokens((5, 4))
    lengths = torch.tensor([7, 3])
    with torch.no_grad():
        assert torch.equal(model(source, lengths, target)[0], light(source, lengths, target)[0])


def test_on_the_fly_does_not_train_or_save():
    light = seeded(frozen_on_the_fly=True)
    with pytest.raises(UsageError, match="--frozen-on-the-fly: is for generation and evaluation; drop it to train"):
        light.train()
    with pytest.raises(UsageError, match="--frozen-on-the-fly: the model holds no frozen matrices to save"):
        light.state_dict()


def test_on_the_fly_is_built_without_the_matrices(monkeypatch):
    """No more than one layer's weights exist while the model is built."""
    from fairseq_synth.models import decoder, encoder, layers

    held = []
    wrap = layers.wrap

    def count(layer, cfg):
        held.append(sum(p.numel() for p in layer.parameters() if p.device.type != "meta" and p.dim() > 1))
        wrapped = wrap(layer, cfg)
        held.append(sum(p.numel() for p in wrapped.parameters() if p.device.type != "meta" and p.dim() > 1))
        return wrapped

    for module in (encoder, decoder):
        monkeypatch.setattr(module, "wrap", count)
    spec = {f"{side}_self_attention": "dot_product" for side in ("encoder", "decoder")}
    model = seeded(freeze="ffn", frozen_on_the_fly=True, **{**spec, "synthesizer_max_length": 256})
    assert len(held) == 8 and all(held[::2]) and not any(held[1::2])
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_architectures_of_this_package_take_the_options():
    for arch in ("synth_transformer_tiny", "synth_transformer_lm_gpt", "all_attention_lm_enwik8"):
        fields = ARCH_MODEL_REGISTRY[arch].defaults.__dataclass_fields__
        assert {"frozen_init", "store_frozen", "frozen_on_the_fly"} <= set(fields)
