"""The short way of a decoding step: it equals the general way, and is taken where it may be."""

import copy

import pytest
import torch
from builders import build_lm
from fairseq.modules import FairseqDropout
from fairseq.sequence_generator import SequenceGenerator

from fairseq_synth.checks.case import Case, dictionary, tokens
from fairseq_synth.decoding import plain_modules
from fairseq_synth.decoding.cross_attention import CrossAttention, CrossAttentionStep
from fairseq_synth.decoding.self_attention import ROWS, SelfAttentionStep
from fairseq_synth.decoding.sentences import follow_order, rows_of
from fairseq_synth.decoding.step import DecodingStep
from fairseq_synth.models import decoder as models
from fairseq_synth.modules import incremental_state
from fairseq_synth.modules.cache import ROOM, CachingAttention, Slots
from fairseq_synth.modules.incremental_state import SENTENCES, STEP
from fairseq_synth.modules.products import Linear
from fairseq_synth.modules.scorers import SCORERS

SPECS = sorted(SCORERS) + ["random+dot_product", "random+factorized_random", "dense+fixed_random+dot_product"]
SPAN = (("decoder_adaptive_span", 4), ("span_ramp", 1))
OPTIONS = [
    (),
    SPAN,
    (("decoder_normalize_before", True), ("layernorm_embedding", True), ("decoder_learned_pos", True)),
    (("persistent_memory", 3),),
    (("persistent_memory", 3), ("keep_feed_forward", True), *SPAN),
    (("no_token_positional_embeddings", True), ("activation_fn", "gelu"), ("share_all_embeddings", True)),
    (("decoder_attention_dim", 8),),
    (("encoder_embed_dim", 8), ("no_scale_embedding", True)),
]
BEAM = 3
# of two sentences with three hypotheses each: within the sentences, then the first of them is finished
ORDERS = [[2, 0, 0, 3, 5, 4], [0, 1, 2, 3, 4, 5], [2, 1, 1, 4, 4, 4], [3, 5, 4], [1, 1, 0], [2, 2, 2]]
# no beam search does this: other numbers of rows, rows of another sentence, sentences that change places
OTHERS = [
    [[0, 4], [1, 1, 0, 0, 1], [4, 3, 2, 1, 0]],
    [[3, 4, 5, 0, 1, 2], [1, 0, 2]],
    [[0, 1, 2, 3, 4, 0], [5, 4, 3]],
]


@pytest.fixture
def taken(monkeypatch):
    """How often each short way was taken, and how often a module was asked instead."""
    count = {"step": 0, "self": 0, "asked": 0, "cross": 0}
    places = ((DecodingStep, "__call__", "step"), (SelfAttentionStep, "__call__", "self"))
    for cls, name, key in (*places, (SelfAttentionStep, "_ask", "asked"), (CrossAttentionStep, "__call__", "cross")):
        monkeypatch.setattr(cls, name, counting(getattr(cls, name), count, key))
    return count


def counting(own, count, key):
    def counted(*args, **kwargs):
        count[key] += 1
        return own(*args, **kwargs)

    return counted


@torch.no_grad()
def decode(model, orders=ORDERS, change=None, beam=BEAM):
    """Logits and mean attention of every step of a search that follows ``orders``."""
    source = tokens((7, 4), pad_left=True)
    encoder_out = model.encoder(source, source.ne(1).sum(1))
    rows = torch.arange(2).repeat_interleave(beam)
    encoder_out, state, outs = model.encoder.reorder_encoder_out(encoder_out, rows), {}, []
    target = torch.randint(4, 24, (2 * beam, 11), generator=torch.Generator().manual_seed(7))
    for t in range(len(orders) + 3):
        if t > 1 and t - 2 < len(orders):
            order = torch.tensor(orders[t - 2])
            model.decoder.reorder_incremental_state_scripting(state, order)
            encoder_out, target = model.encoder.reorder_encoder_out(encoder_out, order), target[order]
        if change is not None:
            change(t, target)
        logits, extra = model.decoder(target[:, : t + 1], encoder_out, incremental_state=state)
        outs.append((logits, extra["attn"][0], *extra["inner_states"]))
    return outs, state


def in_general(model, **options):
    """The same in fairseq's way, every hypothesis with its own copy of the encoder's output."""
    model.decoder.short_steps = False
    try:
        return decode(model, **options)[0]
    finally:
        model.decoder.short_steps = True


def assert_equal(got, expected, atol=1e-9):
    for a, b in zip(got, expected):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert (x is None and y is None) or (x.shape == y.shape and torch.allclose(x, y, atol=atol))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_short_way_equals_the_general_one(spec, options, taken):
    case = Case(spec, "decoder", options)
    model = case.model()
    got, _ = decode(model)
    steps, named = len(got), dict(options)
    asked = 2 * steps if "persistent_memory" in named else 2  # the first step has nothing cached
    cross = 0 if "decoder_attention_dim" in named else 2 * (steps - 1)  # not fairseq's own attention
    assert taken == {"step": steps, "self": 2 * steps, "asked": asked, "cross": cross}
    assert_equal(got, in_general(model))


@pytest.mark.parametrize("orders", OTHERS)
@pytest.mark.parametrize("short", [True, False])
def test_rows_may_go_anywhere(orders, short, monkeypatch):
    model = Case("random+dot_product", "decoder").model()
    with monkeypatch.context() as patch:  # fairseq's own leaves rows where they are if their number stays
        patch.setattr(CrossAttention, "reorder_incremental_state", CachingAttention.reorder_incremental_state)
        expected = in_general(model, orders=orders)
    if not short:
        monkeypatch.setattr(models, "can_step", lambda *args: False)
    assert_equal(decode(model, orders)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
def test_language_models(spec, taken):
    options = {"decoder_layers": 2, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_attention_heads": 2}
    model = build_lm(**options, decoder_self_attention=spec).eval()
    batch, state = tokens((9, 9, 9)), {}
    got = torch.cat([model.decoder(batch[:, : t + 1], incremental_state=state)[0] for t in range(9)], dim=1)
    assert taken["step"] == 9 and taken["asked"] == 2
    assert torch.allclose(got, model(batch)[0], atol=1e-5)


@pytest.mark.parametrize("spec", ["random", "random+dot_product"])
def test_other_attention_to_the_encoder_is_asked(spec, taken):
    model = Case(spec, "cross").model()
    got, _ = decode(model)
    assert taken["step"] == len(got) and not taken["cross"]
    assert_equal(got, in_general(model))


def test_many_rows_of_a_map(taken):
    """More than are normalised at a time; the map ends before they do."""
    attention = Case("random", "decoder", (("synthesizer_max_length", ROWS + 5),)).attention()
    x, state, step = torch.randn(ROWS + 5, 2, 16).double(), {}, SelfAttentionStep(attention, 2)
    with torch.no_grad():
        full = attention(x, need_weights=False)[0]
        got = torch.stack([step(row, state) for row in x])
        assert torch.allclose(got, full, atol=1e-9) and taken["asked"] == 1
        with pytest.raises(Exception, match=f"a sequence of {ROWS + 6} tokens"):
            step(x[0], state)


def test_tokens_of_any_number_may_follow():
    attention = Case("random+dot_product", "decoder", SPAN).attention()
    x, state, step = torch.randn(11, 2, 16).double(), {}, SelfAttentionStep(attention, 2)
    outs, t = [], 0
    with torch.no_grad():
        for chunk in (1, 1, 3, 1, 1, 2, 1, 1):
            new = x[t : t + chunk]
            out = step(new[0], state).unsqueeze(0) if chunk == 1 else attention(new, incremental_state=state)[0]
            outs.append(out)
            t += chunk
        assert torch.allclose(torch.cat(outs), attention(x, need_weights=False)[0], atol=1e-9)


# ------------------------------------------------------------------------------------------- where it may not be taken
def test_pads_take_the_general_way(taken):
    """Beams that fairseq has given up may hold pads; from then on the cache knows of pads."""

    def pad(t, target):
        if t == 3:
            target[1, t] = 1

    model = Case("random+dot_product", "decoder").model()
    got, state = decode(model, change=pad)
    assert taken["step"] == len(got) - 1 and taken["asked"] == 2 * (len(got) - 3)
    assert_equal(got, in_general(model, change=pad))


def retain_dropout(model):
    for module in model.modules():
        if isinstance(module, FairseqDropout):
            module.apply_during_inference = True


BLOCKERS = {
    "training": lambda model: model.decoder.layers[1].self_attn.train(),
    "retained dropout": retain_dropout,
    "hook on a layer": lambda model: model.decoder.layers[0].register_forward_hook(lambda *a: None),
    "wrapped layer": lambda model: setattr(model.decoder.layers[0], "forward", model.decoder.layers[0].forward),
    "subclass": lambda model: setattr(model.decoder.layers[0], "__class__", Changed),
}


class Changed(models.SynthDecoderLayer):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("name", BLOCKERS)
def test_a_decoder_that_is_not_plain(name, taken):
    model = Case("random", "decoder").model()
    expected = in_general(model)
    BLOCKERS[name](model)
    got, state = decode(model)
    assert taken["step"] == 0 and state[STEP] is None
    assert_equal(got, expected)


def test_autocast_takes_the_general_way(taken):
    model = Case("random", "decoder").model().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = decode(model)[1]
    assert taken["step"] == 0 and state[STEP] is None


def test_gradients_take_the_general_way(taken):
    model, state = Case("dot_product", "decoder").model(), {}
    source, target = tokens((4, 4)), tokens((3, 3), seed=9)
    encoder_out = model.encoder(source, source.ne(1).sum(1))
    steps = [model.decoder(target[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(3)]
    torch.cat(steps, dim=1).sum().backward()
    assert taken["step"] == 0
    assert all(p.grad is not None for p in model.decoder.layers.parameters())


@pytest.mark.parametrize("part", ["self_attn", "self_attn.v_proj", "encoder_attn", "fc1"])
def test_hooks_are_called_at_every_step(part):
    model, calls = Case("random", "decoder").model(), []
    expected = in_general(model)
    model.decoder.layers[1].get_submodule(part).register_forward_hook(lambda *a: calls.append(1))
    got, _ = decode(model)
    assert len(calls) == len(got)
    assert_equal(got, expected)


# ------------------------------------------------------------------------------------------- whole searches
def search(models_, words, **options):
    source = tokens(pad_left=True)
    source[:, -1] = words.eos()
    torch.manual_seed(5)
    generator = SequenceGenerator(models_, words, max_len_b=8, **options)
    found = generator.generate(models_, {"net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}})
    return [[(h["tokens"].tolist(), h["positional_scores"], h["attention"]) for h in hypos] for hypos in found]


@pytest.mark.parametrize("count, options", [(1, {"beam_size": 4}), (2, {"beam_size": 3}), (1, {"beam_size": 1})])
def test_searches_find_the_same(count, options, taken, monkeypatch):
    models_ = [Case(spec, "decoder").model() for spec in ("random+dot_product", "dense")[:count]]
    got = search(models_, dictionary(), **options)
    assert taken["step"] > 8
    for model in models_:
        model.decoder.short_steps = False
    steps = taken["step"]
    expected = search(models_, dictionary(), **options)
    assert taken["step"] == steps
    for a, b in zip(sum(got, []), sum(expected, [])):
        assert a[0] == b[0]
        assert torch.allclose(a[1], b[1], atol=1e-5) and torch.allclose(a[2], b[2], atol=1e-5)


def test_another_search_sees_other_weights():
    """Nothing that was prepared for one search is left for the next."""
    model = Case("random+fixed_random", "decoder").model()
    before, _ = decode(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after, _ = decode(model)
    assert not torch.allclose(before[-1][0], after[-1][0], atol=1e-3)
    assert_equal(after, in_general(model))


def test_bfloat16():
    model = Case("random+dot_product", "decoder").model().to(torch.bfloat16)
    got = decode(model)[0]
    assert all(x.dtype == torch.bfloat16 for x in got[-1])
    assert_equal([g[:1] for g in got], [g[:1] for g in in_general(model)], atol=0.1)


# ------------------------------------------------------------------------------------------- its parts
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("spec, side, options", [("random+dot_product", "decoder", SPAN), ("dense", "cross", ())])
def test_everything_in_the_state_is_declared(spec, side, options, short):
    model = Case(spec, side, options).model()
    model.decoder.short_steps = short
    _, state = decode(model)
    declared = {entry.key for entry in incremental_state.ATTENTION}
    for key, entry in state.items():
        if key not in {entry.key for entry in incremental_state.DECODER}:
            assert key.endswith(".attn_state") and set(entry) <= declared, entry
    source = tokens()
    out = set(model.encoder(source, source.ne(1).sum(1)))
    stock = {"encoder_out", "encoder_padding_mask", "encoder_embedding", "encoder_states", "fc_results", "src_tokens"}
    assert out - stock - {"src_lengths"} == {entry.key for entry in incremental_state.ENCODER_OUT}


def test_slots_leave_older_slots_alone():
    first = torch.randn(3, 2, 4)
    with torch.no_grad():
        one = Slots.of(first).append(torch.ones(2, 4))
        assert one.buffer.size(0) == ROOM and torch.equal(one.vectors[:3], first)
        two, other = one.append(torch.full((2, 4), 2.0)), one.append(torch.full((1, 2, 4), 3.0))
        assert two.buffer is one.buffer and other.buffer is not one.buffer
        assert float(two.vectors[-1].mean()) == 2 and float(other.vectors[-1].mean()) == 3 and len(one) == 4
        left = two.drop(4).index_select(0, torch.tensor([1, 1, 0]))
        assert left.dropped == 4 and left.vectors.shape == (1, 3, 4) and left.buffer.size(0) == ROOM
        for _ in range(2 * ROOM):
            left = left.append(torch.zeros(3, 4))
        assert len(left) == 2 * ROOM + 1 and float(left.vectors[0].mean()) == 2


def test_rows_follow_their_sentences():
    owner = rows_of(2, 3, torch.device("cpu"))
    assert follow_order(torch.tensor([2, 0, 0, 3, 5, 4]), owner) == (None, owner)
    sentences, kept = follow_order(torch.tensor([3, 5, 4]), owner)
    assert sentences.tolist() == [1] and kept.tolist() == [[0, 0, 0]]
    for order in ([1, 3, 4], [0, 1], [5, 0, 1, 2, 3, 4]):
        sentences, kept = follow_order(torch.tensor(order), owner)
        assert sentences.tolist() == [i // 3 for i in order] and kept.tolist() == [[i] for i in range(len(order))]


def test_the_encoders_output_is_reordered_where_sentences_change():
    model, source = Case("random", "decoder").model(), tokens(pad_left=True)
    out = model.encoder(source, source.ne(1).sum(1))
    beams = model.encoder.reorder_encoder_out(out, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert model.encoder.reorder_encoder_out(beams, torch.tensor([1, 1, 2, 3, 5, 4])) is beams
    fewer = model.encoder.reorder_encoder_out(beams, torch.tensor([4, 5, 0]))
    assert fewer[SENTENCES][0].tolist() == [2, 2, 0]
    assert torch.equal(fewer["encoder_out"][0], out["encoder_out"][0][:, [2, 2, 0]])


def test_what_comes_from_a_sentence_is_held_once():
    model = Case("random", "decoder").model()
    _, state = decode(model, ORDERS[:1])
    attention = model.decoder.layers[0].encoder_attn
    assert attention._get_input_buffer(state)["prev_key"].size(0) == 2
    _, state = decode(model, [[0, 1, 2, 3, 4, 0]])  # across sentences: every row on its own
    assert attention._get_input_buffer(state)["prev_key"].size(0) == 6


@pytest.mark.parametrize("packing", [1, 1 << 30])
def test_products_for_a_search(packing, monkeypatch):
    monkeypatch.setattr(plain_modules, "WORTH_PACKING", packing)
    modules = [Linear(512, size) for size in (256, 512)]
    single, joined = plain_modules.linear(modules[1], 8), plain_modules.linears(modules, 8)
    for rows in (8, 3, 1):
        x = torch.randn(rows, 512)
        with torch.no_grad():
            for got, module in zip([single(x), *joined(x)], [modules[1], *modules]):
                assert torch.allclose(got, torch.nn.functional.linear(x, module.weight, module.bias), atol=1e-5)
    assert plain_modules.linear(copy.deepcopy(modules[0]), None) is not modules[0]
