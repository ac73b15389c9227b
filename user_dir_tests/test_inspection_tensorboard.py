"""What a training leaves in TensorBoard's event files."""

import pytest
from conftest import USER_DIR, call_command, train_args, write_corpus
from fairseq.logging import progress_bar

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
EVENTS = ("--log-interval", "1", "--tensorboard-logdir")


@pytest.fixture(autouse=True)
def own_writers():
    """fairseq keeps its writers for the whole process: the next training would write into the last one's folder."""
    progress_bar._tensorboard_writers.clear()
    yield
    progress_bar._tensorboard_writers.clear()


def scalars(folder):
    """Tag -> values in the order of the updates."""
    events = accumulator.EventAccumulator(str(folder / "train_inner"))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def check_spans(logged, updates, weight):
    """Every update is there, and what is logged fits together."""
    layers = [logged[f"span_layer_{i}"] for i in range(2)]
    assert "span_layer_2" not in logged
    assert all(len(logged[tag]) == updates for tag in ("span_mean", "span_max", "span_loss", "span_layer_1"))
    for mean, longest, first, second in zip(logged["span_mean"], logged["span_max"], *layers):
        assert mean == pytest.approx((first + second) / 2, abs=0.06)  # written with two and one decimals
        assert longest >= mean - 0.01
    # the sum over layers of their mean span
    assert logged["span_loss"] == pytest.approx([2 * weight * mean for mean in logged["span_mean"]], rel=0.05, abs=6e-6)


def test_spans_of_a_sequential_model(text, tmp_path):
    """They start at 12 tokens, and a heavy span loss shortens them from update to update."""
    sizes = {"layers": 2, "embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 2, "attention-span": 40,
             "initial-span": 12, "span-loss": 0.5, "tokens-per-sample": 16, "batch-size": 4, "lr": 0.02,
             "max-update": 4, "optimizer": "adam", "num-workers": 0}  # fmt: skip
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    call_command("train", text, "--user-dir", USER_DIR, "--task", "streaming_lm", "--arch", "adaptive_span_lm",
                 *options, "--cpu", "--save-dir", tmp_path / "c", *EVENTS, tmp_path / "events")  # fmt: skip
    logged = scalars(tmp_path / "events")
    check_spans(logged, updates=4, weight=0.5)
    assert logged["span_mean"][0] == 12 and logged["span_max"][0] == 12
    assert all(later < earlier for earlier, later in zip(logged["span_mean"], logged["span_mean"][1:]))


def test_spans_of_a_translation_model(corpus, tmp_path):
    """Only the encoder has any here; they start at 0."""
    call_command("train", *train_args(corpus, tmp_path / "c", "--encoder-adaptive-span", "200", "--span-ramp", "4",
                                      "--span-loss", "1e-5", *EVENTS, tmp_path / "events", updates=4))  # fmt: skip
    logged = scalars(tmp_path / "events")
    check_spans(logged, updates=4, weight=1e-5)
    assert logged["span_mean"][0] == 0 and max(logged["span_max"]) > 1


def test_mixtures_and_the_trainable_share(corpus, tmp_path):
    """Weights start equal and move; half-frozen models say how much of them trains."""
    call_command("train", *train_args(corpus, tmp_path / "c", "--decoder-self-attention", "random+dot_product",
                                      "--freeze", "ffn", *EVENTS, tmp_path / "events", updates=4))  # fmt: skip
    logged = scalars(tmp_path / "events")
    for layer in (0, 1):
        shares = [logged[f"mixture_decoder_{layer}_self_{name}"] for name in ("random", "dot_product")]
        assert [share[0] for share in shares] == [0.5, 0.5]
        assert [sum(pair) for pair in zip(*shares)] == pytest.approx([1.0] * 4, abs=0.002)
        assert len(set(shares[0])) > 1, "weights that move are shown moving"
    assert len(set(logged["trainable_percent"])) == 1 and 0 < logged["trainable_percent"][0] < 100


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Binarised monolingual text."""
    root = write_corpus(tmp_path_factory.mktemp("text"), {"train": 60, "valid": 10})
    prefixes = [a for s in ("train", "valid") for a in (f"--{s}pref", root / f"{s}.src")]
    call_command("preprocess", "--only-source", *prefixes, "--destdir", root / "bin")
    return root / "bin"
