"""Every scorer against its formula, and what the registry and the specs refuse."""

from argparse import Namespace

import pytest
import reference
import torch

from fairseq_synth.checks.case import EMBED_DIM, HEADS, Case, states
from fairseq_synth.errors import UsageError
from fairseq_synth.modules.positions import Positions, padding_layout, token_positions
from fairseq_synth.modules.scorers import SCORERS, AttentionConfig, Scorer, build_scorer, register_scorer
from fairseq_synth.modules.scorers.factorized_dense import resolve_factors
from fairseq_synth.modules.scorers.mixture import Mixture
from fairseq_synth.modules.scorers.spec import parse_spec

STEPS = 6


def small(name, **options):
    return build_scorer(name, AttentionConfig(EMBED_DIM, HEADS), Namespace(**options))


def formula(name, scorer, attention, x):
    """H x T x T logits of the reference for one sentence x (T x 1 x C)."""
    parameters = {k: v.tolist() for k, v in scorer.state_dict().items()}
    q = k = None
    if scorer.needs_keys:
        q = attention.split_heads(attention.q_proj(x))[0].tolist()
        k = attention.split_heads(attention.k_proj(x))[0].tolist()
    return getattr(reference, name)(parameters, x[:, 0].tolist(), q, k, HEADS)


def scored(attention, x, positions):
    q = k = None
    if attention.scorer.needs_keys:
        q = attention.split_heads(attention.q_proj(x)) * attention.scaling
        k = attention.split_heads(attention.k_proj(x))
        q = q[:, :, positions.start : positions.start + positions.queries]
        k = k[:, :, : positions.keys]
    rows = x[positions.start : positions.start + positions.queries]
    return attention.scorer(rows, q, k, positions)


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_logits_are_the_formula(name):
    assert hasattr(reference, name), f"scorer {name} has no reference: write its formula in reference.py"
    attention, x = Case(name, "encoder").attention(), states(STEPS, 1)
    expected = torch.tensor(formula(name, attention.scorer, attention, x), dtype=torch.float64)
    for start, queries, keys in ((0, STEPS, STEPS), (3, 1, 4), (2, 3, 5), (0, 1, 1)):
        got = scored(attention, x, Positions(start, queries, keys)).reshape(HEADS, queries, keys)
        assert torch.allclose(got, expected[:, start : start + queries, :keys], atol=1e-12)


@pytest.mark.parametrize("spec", ["random+dot_product", "dense+factorized_random", "dense+random+dot_product"])
def test_a_mixture_is_a_convex_sum_before_the_softmax(spec):
    attention, x = Case(spec, "encoder").attention(), states(STEPS, 1)
    parts = [formula(name, scorer, attention, x) for name, scorer in zip(spec.split("+"), attention.scorer.scorers)]
    expected = torch.tensor(reference.mixture(parts, attention.scorer.mixture_logits.tolist()))
    got = scored(attention, x, Positions(0, STEPS, STEPS)).reshape(HEADS, STEPS, STEPS)
    assert torch.allclose(got, expected.double(), atol=1e-6)  # alpha is a float32 softmax
    weights = attention.scorer.weights()
    assert torch.allclose(weights.sum(0), torch.ones(HEADS)) and weights.min() > 0


@pytest.mark.parametrize("options", [(), (("synthesizer_share_output", True),)])
@pytest.mark.parametrize("spec", [*sorted(SCORERS), "random+dot_product", "dense+random+dot_product+factorized_dense"])
def test_logits_are_a_matrix_or_what_makes_it(spec, options):
    attention, x = Case(spec, "encoder", options if "dense" in spec.split("+") else ()).attention(), states(12, 2)
    q = k = attention.split_heads(attention.k_proj(x) if "dot_product" in spec else x)
    for positions in (
        Positions(0, 12, 12),
        Positions(2, 7, 9),
        Positions(3, 2, 4, first=1),
        Positions(2, 8, 9, first=1),
    ):
        rows, end = slice(positions.start, positions.start + positions.queries), positions.first + positions.keys
        given = x[rows], q[:, :, rows], k[:, :, positions.first : end], positions
        terms, index = attention.scorer.logits(*given), torch.arange(positions.first, end).repeat(2, 1)
        rows_of = torch.arange(rows.start, rows.stop).repeat(2, 1)
        gathered = positions._replace(query_index=rows_of, key_index=index)  # which always makes the matrix
        expected = attention.scorer(*given[:3], gathered)
        expected = expected if terms.full().dim() == 4 else expected[0]
        got = terms.full()
        assert got.shape == expected.shape and torch.allclose(got, expected, atol=1e-12)
        if any(p.requires_grad for p in attention.scorer.parameters()):
            for a, b in zip(*(gradients(y, attention.scorer) for y in (got, expected))):
                assert torch.allclose(a, b, atol=1e-9)


def gradients(logits, scorer):
    return torch.autograd.grad(logits.pow(2).sum(), list(scorer.parameters()), retain_graph=True)


def test_long_logits_of_tokens_come_as_a_product():
    attention, x = Case("dense", "encoder").attention(), states(12, 2)
    assert attention.scorer.logits(x, None, None, Positions(0, 12, 12)).rows is not None
    assert attention.scorer.logits(x[:4], None, None, Positions(0, 4, 4)).rows is None  # smaller than rows and columns


def test_a_mixture_starts_with_equal_parts():
    config = AttentionConfig(EMBED_DIM, HEADS)
    mixture = Mixture(config, [build_scorer("random", config), build_scorer("dot_product", config)])
    assert torch.equal(mixture.weights(), torch.full((2, HEADS), 0.5))


def test_gathered_positions_equal_sliced_ones():
    index = torch.arange(STEPS).repeat(2, 1)
    for name in sorted(SCORERS):
        attention, x = Case(name, "encoder").attention(), states(STEPS, 2)
        sliced = scored(attention, x, Positions(0, STEPS, STEPS))
        gathered = scored(attention, x, Positions(0, STEPS, STEPS, index, index))
        assert torch.allclose(sliced.expand_as(gathered), gathered, atol=1e-12), name


def test_factorized_dense_reaches_every_column():
    """Tiling both factors, as a published port does, gives lcm(a, b) different columns only."""
    scorer = small("factorized_dense", max_length=16, factors="4,4")
    logits = scorer(states(1, 1).float(), None, None, Positions(0, 1, 16))
    assert len({round(v, 6) for v in logits[0, 0, 0].tolist()}) == 16


def test_shared_output_of_dense_is_one_matrix_for_all_heads():
    scorer = small("dense", max_length=9, share_output=True)
    shapes = {name: tuple(p.shape) for name, p in scorer.named_parameters()}
    assert shapes == {"hidden.weight": (EMBED_DIM, EMBED_DIM), "weight": (EMBED_DIM // HEADS, 9)}
    x = states(4, 1).float()
    hidden = torch.relu(x[:, 0] @ scorer.hidden.weight.t()).view(4, HEADS, -1)
    expected = torch.stack([hidden[:, h] @ scorer.weight[:, :4] for h in range(HEADS)])
    assert torch.allclose(scorer(x, None, None, Positions(0, 4, 4))[0], expected, atol=1e-6)


@pytest.mark.parametrize("init, low, high", [("glorot", 0.0, 0.2), ("normal", 0.9, 1.1)])
@pytest.mark.parametrize("name", ["random", "fixed_random", "factorized_random"])
def test_initial_maps_have_the_stated_scale(name, init, low, high):
    scorer = build_scorer(name, AttentionConfig(64, 8), Namespace(max_length=64, init=init))
    logits = scorer(None, None, None, Positions(0, 64, 64))
    assert low < logits.std().item() < high


def test_fixed_maps_come_from_their_seed_and_leave_the_global_generator_alone():
    def build(seed):
        return small("fixed_random", max_length=8, map_seed=seed).map

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(build(1), build(1)) and not torch.equal(build(1), build(2))
    assert torch.equal(torch.rand(3), expected)
    case = Case("fixed_random", "encoder", (("encoder_layers", 3),))
    maps = [layer.self_attn.scorer.map for layer in case.model().encoder.layers]
    assert not torch.equal(maps[0], maps[1])


@pytest.mark.parametrize(
    "length, factors, expected",
    [(256, None, (16, 16)), (12, None, (3, 4)), (12, (2, 6), (2, 6)), (7, (1, 7), (1, 7)), (2, None, (1, 2))],
)
def test_factors(length, factors, expected):
    assert resolve_factors(length, factors) == expected


def test_a_name_is_registered_once_and_cannot_look_like_a_spec():
    class Other(Scorer):
        pass

    for name in ("random", "a+b", "a*2", "a|b", "a:2", "a b", ""):
        with pytest.raises(ValueError, match="scorer"):
            register_scorer(name)(Other)
    assert register_scorer("random")(SCORERS["random"]) is SCORERS["random"]  # a second import


def test_specs():
    def names(spec, layers):
        return [tuple(layer.names) for layer in parse_spec(spec, layers, "--x")]

    assert names("random", 2) == [("random",)] * 2
    assert names(" random + dot_product ", 1) == [("random", "dot_product")]
    assert names("dot_product*2,random+dense", 3) == [("dot_product",)] * 2 + [("random", "dense")]
    assert names("dense*3", 3) == [("dense",)] * 3


def test_specs_by_heads():
    layers = parse_spec("dense:3|random+dot_product:5*2, random|dense|dot_product", 3, "--x", 8)
    assert layers[0] == layers[1] == (((("dense",), 3), (("random", "dot_product"), 5)),)
    assert [layer.counts(8) for layer in layers] == [(3, 5), (3, 5), (3, 3, 2)]
    stock, split = parse_spec("dot_product:8,dot_product|dense", 2, "--x", 8)
    assert stock.is_dot_product and not split.is_dot_product


@pytest.mark.parametrize(
    "spec, says",
    [
        ("randon", "did you mean random"),
        ("random+", "missing in 'random+'"),
        ("random,,dense", "missing between the commas"),
        ("random*x", "number of layers"),
        ("random*0", "number of layers"),
        ("random*3", "names 3 layers, but the model has 2"),
        ("random,dense,dense", "names 3 layers"),
        ("random+random", "twice"),
        ("random*9999999999999", "number of layers"),
        ("random*999999999", "names 999999999 layers"),
        ("random:x|dense:2", "number of heads"),
        ("random:0|dense:4", "number of heads"),
        ("random:1|dense", "for every scorer between '|', or for none"),
        ("random:1|dense:2", "names 3 heads, but the layer has 4"),
        ("random:5", "names 5 heads, but the layer has 4"),
        ("random|dense|random|dense|random", "5 scorers between '|' for 4 heads"),
        ("random||dense", "missing in 'random||dense'"),
    ],
)
def test_a_wrong_spec_names_the_option_and_the_fix(spec, says):
    with pytest.raises(UsageError, match=r"^--x ") as error:
        parse_spec(spec, 2, "--x", 4)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_token_positions_count_real_tokens():
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 1, 0, 1, 0]]).bool()
    assert token_positions(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 1, 2]]
    layout = padding_layout(mask)
    assert layout.order.tolist() == [[2, 3, 4, 0, 1], [0, 1, 2, 3, 4], [0, 2, 4, 1, 3]] and layout.between
    assert padding_layout(mask[1:2]) == (None, False)
    assert not padding_layout(mask[:2]).between


def test_positions_know_lengths_and_which_way_a_column_lies():
    pads = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    assert Positions(0, 4, 4, pads=pads).lengths.tolist() == [3, 4]
    assert Positions(0, 4, 4, pads=pads, before=torch.tensor([[2], [1]])).lengths.tolist() == [5, 5]
    assert Positions(0, 4, 4).lengths is None
    offsets = Positions(2, 1, 3, first=1).offsets(torch.device("cpu"))
    assert offsets.tolist() == [[-1, 0, 1]]
