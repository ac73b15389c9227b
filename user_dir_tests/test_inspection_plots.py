"""fairseq-synth plot: what it finds in a model, and that the pictures are there."""

import builtins

import numpy as np
import pytest
import torch
from conftest import USER_DIR, call_command, train_args, write_corpus

pytest.importorskip("matplotlib")
from fairseq_synth.cli import main  # noqa: E402
from fairseq_synth.inspection import figures, findings, reading  # noqa: E402
from fairseq_synth.inspection.capture import captured, span_weights  # noqa: E402
from fairseq_synth.inspection.grids import relative_attention  # noqa: E402
from fairseq_synth.inspection.loading import open_checkpoint  # noqa: E402
from fairseq_synth.modules.adaptive_span import AdaptiveSpan  # noqa: E402
from fairseq_synth.modules.persistent_memory import PersistentMemory  # noqa: E402
from fairseq_synth.modules.places import Place, place_of  # noqa: E402
from fairseq_synth.modules.span_attention import SpanAttention  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"
LINES = "w1 w2 w3\n\nw4 w5 w6 w7 w8\nw9 w9\n"


@pytest.fixture(scope="module")
def translation(corpus, tmp_path_factory):
    """Mixture and spans in the encoder, a factorized map in the decoder, fairseq's own cross-attention."""
    folder = tmp_path_factory.mktemp("translation")
    call_command("train", *train_args(corpus, folder, "--encoder-adaptive-span", "20", "--encoder-self-attention",
                                      "random+dot_product", "--decoder-self-attention", "factorized_random",
                                      "--synthesizer-max-length", "16"))  # fmt: skip
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def stock(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    call_command("train", *train_args(corpus, folder, arch="transformer"))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """A sequential language model with persistent memory; its data folder is its own."""
    folder = write_corpus(tmp_path_factory.mktemp("stream"), {"train": 40, "valid": 8})
    prefixes = [a for s in ("train", "valid") for a in (f"--{s}pref", folder / f"{s}.src")]
    call_command("preprocess", "--only-source", *prefixes, "--destdir", folder / "bin")
    sizes = {"layers": 2, "embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 2, "attention-span": 200,
             "initial-span": 5, "persistent-memory": 3, "tokens-per-sample": 8, "batch-size": 4, "max-update": 2,
             "lr": 0.01, "optimizer": "adam", "num-workers": 0}  # fmt: skip
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    call_command("train", folder / "bin", "--user-dir", USER_DIR, "--task", "streaming_lm", "--arch",
                 "adaptive_span_lm", *options, "--cpu", "--save-dir", folder / "c")  # fmt: skip
    return folder / "c" / "checkpoint_last.pt"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.src"
    path.write_text(LINES)
    return path


def plot(checkpoint, out, *options):
    return main(["plot", str(checkpoint), "--out", str(out), *map(str, options)])


def pictures(folder):
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(PNG) and path.stat().st_size > 5000, path
    assert not list(folder.glob("*.part"))
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------------- pictures
def test_everything_of_a_translation_model(translation, tmp_path, capsys):
    assert plot(translation, tmp_path / "new" / "out") == 0
    made = {"spans.png", "mixture.png", "map-encoder-self-random.png", "map-decoder-self-factorized_random.png"}
    assert pictures(tmp_path / "new" / "out") == {*made, "maps.npz"}
    assert len(capsys.readouterr().out.splitlines()) == 5
    maps = np.load(tmp_path / "new" / "out" / "maps.npz")
    weights = open_checkpoint(str(translation)).model.state_dict()
    factors = [weights[f"decoder.layers.1.self_attn.scorer.{side}"] for side in ("left", "right")]
    np.testing.assert_allclose(maps["decoder.self.1.factorized_random"], factors[0] @ factors[1].transpose(1, 2))


def test_spans_of_a_stream_model(stream, tmp_path):
    assert plot(stream, tmp_path) == 0
    assert pictures(tmp_path) >= {"spans.png"}


def test_bars_are_the_spans():
    found = [findings.Spans(Place("decoder", "self", i), [3.0, 0.0, 500.0], 1000, 32, True) for i in range(2)]
    figure = figures.spans_figure(found, "title")
    (axes,) = figure.axes
    bars = [bar for container in axes.containers for bar in container]
    assert [bar.get_height() for bar in bars] == [3, 0, 500] * 2
    assert axes.get_yscale() == "symlog" and [t.get_text() for t in axes.get_xticklabels()] == ["0", "1"]
    assert "mean 167.7, max 500.0" in axes.get_title(loc="left")


def test_relative_attention():
    """A map without preferences is uniform; ln 2 more on one of two visible keys makes that 4/3 of uniform."""
    logits = torch.zeros(1, 4, 4)
    logits[0, 1, 0] = np.log(2)
    relative = relative_attention(logits, 3, causal=True)
    assert relative.shape == (1, 3, 3) and bool(relative[0].isnan().equal(torch.ones(3, 3).triu(1).bool()))
    torch.testing.assert_close(relative[0, 1, :2], torch.tensor([4 / 3, 2 / 3]).log2())
    assert bool((relative[0, 2] == 0).all())


# ---------------------------------------------------------------------- attention to text
def test_attention_of_every_layer_and_head(translation, text, tmp_path, capsys):
    target = tmp_path / "text.tgt"
    target.write_text("v3 v2 v1\nv8 v7 v6 v5 v4 v3\nv9\n")
    assert plot(translation, tmp_path / "out", "--text", text, "--target", target, "--lines", 2) == 0
    assert "the first 2 of 3 lines" in capsys.readouterr().err
    assert pictures(tmp_path / "out") >= {
        f"attention-{i}-{kind}.png" for i in (1, 2) for kind in ("encoder-self", "decoder-self", "cross")
    }
    found = np.load(tmp_path / "out" / "attention-2.npz")
    assert list(found["source"]) == ["w4", "w5", "w6", "w7", "w8", "</s>"]
    assert list(found["target"]) == ["</s>", "v8", "v7", "v6", "v5", "v4", "v3"]
    assert found["encoder_self"].shape == (2, 2, 6, 6) and found["cross"].shape == (2, 2, 7, 6)
    for kind in ("encoder_self", "decoder_self", "cross"):
        np.testing.assert_allclose(found[kind].sum(-1), 1, rtol=1e-5)
    assert (np.triu(found["decoder_self"], 1) == 0).all()


def test_hooks_see_what_the_model_uses(translation):
    """The weights times the values give each attention's output; nothing stays behind on the model."""
    opened = open_checkpoint(str(translation), text=True)
    model, inputs, outputs = opened.model, {}, {}
    attentions = {name: m for name, m in model.named_modules() if name.endswith(("self_attn", "encoder_attn"))}
    source, previous = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[2, 8, 9]])
    before = model(source, torch.tensor([4]), previous)[0]
    handles = [
        m.register_forward_hook(
            lambda m, args, kwargs, out, name=name: (inputs.update({name: kwargs}), outputs.update({name: out[0]}))[0],
            with_kwargs=True,
        )
        for name, m in attentions.items()
    ]
    with torch.no_grad(), captured(model) as caught:
        torch.testing.assert_close(model(source, torch.tensor([4]), previous)[0], before)
    for handle in handles:
        handle.remove()
    assert len(caught) == len(attentions) == 6
    for name, attention in attentions.items():
        value = attention.v_proj(inputs[name]["value"])[:, 0].view(-1, 2, 8).transpose(0, 1)
        y = (caught[place_of(name)] @ value).transpose(0, 1).reshape(-1, 16)
        torch.testing.assert_close(attention.out_proj(y), outputs[name][:, 0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in attentions.values())
    assert not any(getattr(m, "skip_embed_dim_check", False) for m in attentions.values())


def test_all_heads_of_the_stock_model(stock, text, tmp_path, capsys):
    assert plot(stock, tmp_path / "a") == 2
    assert "nothing to plot" in capsys.readouterr().err and not (tmp_path / "a").exists()
    assert plot(stock, tmp_path / "out", "--text", text) == 0
    found = np.load(tmp_path / "out" / "attention-1.npz")
    for kind in ("encoder_self", "decoder_self", "cross"):
        weights = found[kind]
        assert weights.shape[:2] == (2, 2) and not np.allclose(weights[:, 0], weights[:, 1]), "heads differ"
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert sorted(p.name[:11] for p in (tmp_path / "out").glob("*.npz")) == [f"attention-{i}" for i in (1, 2, 3)]


@pytest.mark.parametrize("memory", [0, 3])
def test_span_weights_are_those_of_the_attention(memory):
    torch.manual_seed(0)
    span = AdaptiveSpan(2, max_span=20, ramp=3)
    span.span_ratio.data = torch.tensor([0.05, 0.3])
    attention = SpanAttention(8, 2, span, memory=PersistentMemory(2, memory, 4) if memory else None).double()
    x, positions = torch.randn(9, 1, 8).double(), torch.randn(20, 4).double()
    weights = span_weights(attention, x[:, 0], positions).double()
    value = attention.v_proj(x)[:, 0].view(9, 2, 4).transpose(0, 1)
    y = weights @ value
    if memory:
        left = 1 - weights.sum(-1, keepdim=True)
        assert bool((left > 0).all())
        query = attention.q_proj(x)[:, 0].view(9, 2, 4).transpose(0, 1) * attention.scaling
        keys, values = attention.memory()
        y = y + left * torch.softmax(query @ keys.transpose(1, 2), -1) @ values
    expected = attention(x, positions)[:, 0]
    torch.testing.assert_close(attention.out_proj(y.transpose(0, 1).reshape(9, 8)), expected, rtol=1e-5, atol=1e-6)
    assert not weights.triu().any() and bool((weights[0, 8, :4] < 1e-6).all())


def test_a_stream_model_reads_text(stream, text, tmp_path):
    assert plot(stream, tmp_path / "out", "--text", text, "--lines", 1) == 0
    found = np.load(tmp_path / "out" / "attention-1.npz")
    assert list(found["target"]) == ["</s>", "w1", "w2", "w3"] and found["decoder_self"].shape == (2, 2, 4, 4)


@pytest.mark.parametrize("arch", ["synth_transformer_lm", "transformer_lm"])
def test_a_block_model_reads_text(stream, text, tmp_path, arch):
    data = stream.parent.parent / "bin"
    sizes = {"layers": 2, "embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 2}
    options = [word for name, value in sizes.items() for word in (f"--decoder-{name}", str(value))]
    call_command("train", data, "--user-dir", USER_DIR, "--task", "language_modeling", "--arch", arch, *options,
                 "--tokens-per-sample", "8", "--batch-size", "4", "--max-update", "1", "--optimizer", "adam", "--lr",
                 "0.01", "--num-workers", "0", "--cpu", "--save-dir", tmp_path / "c")  # fmt: skip
    assert plot(tmp_path / "c" / "checkpoint_last.pt", tmp_path / "out", "--text", text, "--lines", 1) == 0
    found = np.load(tmp_path / "out" / "attention-1.npz")
    assert list(found["target"]) == ["</s>", "w1", "w2", "w3"] and found["decoder_self"].shape == (2, 2, 4, 4)
    np.testing.assert_allclose(found["decoder_self"].sum(-1), 1, rtol=1e-5)
    assert (np.triu(found["decoder_self"], 1) == 0).all()


def test_a_given_translation_and_a_found_one(translation, text):
    opened = open_checkpoint(str(translation), text=True)
    (found,) = reading.read(opened, [("w1 w2", None)])
    (same,) = reading.read(opened, [("w1 w2", " ".join(found.target[1:]))])
    for kind, weights in found.weights.items():
        torch.testing.assert_close(weights, same.weights[kind])


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "options, says",
    [
        (["--target", "x"], "--target x: has an effect only with --text"),
        (["--lines", "3"], "--lines 3: has an effect only with --text"),
        (["--text", "nowhere"], "--text nowhere: cannot be read"),
        (["--text", "TEXT", "--lines", "0"], "--lines 0: must be 1 or more"),
        (["--text", "TEXT", "--target", "SHORT"], "1 lines for 3 lines"),
        (["--text", "LONG"], "line 1 of --text: 21 tokens (end of sentence included) are more than the model's 16"),
        (["--text", "EMPTY"], "has no text in it"),
        (["--text", "TEXT", "--data", "nowhere"], "give the folder with the dictionaries"),
        (["--length", "17"], "--length 17: the maps of this model end at 16 positions"),
        (["--user-dir", "nowhere"], "--user-dir nowhere: no such folder"),
    ],
)
def test_refused_in_one_line(translation, text, tmp_path, capsys, options, says):
    places = {"TEXT": text, "SHORT": tmp_path / "short", "LONG": tmp_path / "long", "EMPTY": tmp_path / "empty"}
    places["SHORT"].write_text("v1\n")
    places["LONG"].write_text("w1 " * 20)
    places["EMPTY"].write_text("\n \n")
    assert plot(translation, tmp_path / "out", *[places.get(o, o) for o in options]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and error.startswith("fairseq-synth plot: error: ") and len(error.splitlines()) == 1


def test_without_matplotlib(translation, tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert plot(translation, tmp_path / "out") == 2
    assert "pip install matplotlib" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_unknown_words_are_told(translation, tmp_path, capsys):
    (tmp_path / "t").write_text("w1 strange\n")
    assert plot(translation, tmp_path / "out", "--text", tmp_path / "t") == 0
    assert "1 of 2 tokens are not in the dictionary" in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint(tmp_path, capsys):
    for name, content, says in (("a.pt", b"no", "cannot be read"), ("b.pt", None, "no such checkpoint")):
        if content:
            (tmp_path / name).write_bytes(content)
        assert plot(tmp_path / name, tmp_path / "out") == 2
        assert says in capsys.readouterr().err
    torch.save({"x": 1}, tmp_path / "c.pt")
    assert plot(tmp_path / "c.pt", tmp_path / "out") == 2
    assert "holds no model" in capsys.readouterr().err


def test_an_architecture_from_elsewhere(translation, tmp_path, capsys):
    state = torch.load(translation, weights_only=False)
    state["cfg"]["model"].update(_name="unheard_of", arch="unheard_of")
    torch.save(state, tmp_path / "c.pt")
    assert plot(tmp_path / "c.pt", tmp_path / "out") == 2
    assert "unheard_of" in capsys.readouterr().err
