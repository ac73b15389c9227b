"""examples/benchmark: every section at a miniature size, races, bare products, options, the files it writes."""

import importlib
import itertools
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from conftest import ENVIRONMENT, REPOSITORY
from torch import nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.scorers import SCORERS

FOLDER = REPOSITORY / "examples" / "benchmark"
OWN = [path.stem for path in FOLDER.glob("*.py")]  # modules of the folder, found by their bare names
VARIANTS = ["random", "random+dot_product"]
STOCK = {"attention": "MultiheadAttention", "training": "transformer", "loss": "transformer, whole",
         "generation": "transformer", "language_model": "transformer_lm", "frozen": "nothing frozen",
         "flash_attention": "flash"}  # fmt: skip
# contenders of sections that do not measure every scorer
OTHERS = {"frozen": ["ffn", "attention"], "loss": ["transformer, chunks", "random, whole", "random, chunks"]}


@pytest.fixture(autouse=True)
def logs_again():
    """The benchmark hushes fairseq for the whole process."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module", autouse=True)
def folder():
    """The folder's modules importable, and forgotten afterwards: other examples use the same names."""
    kept = {name: sys.modules.pop(name) for name in OWN if name in sys.modules}
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path[:] = path
    for name in OWN:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def load(name):
    return importlib.import_module(name)


def benchmark(out, *args):
    """The rows and the whole file of a miniature run."""
    assert load("benchmark").main(["--size", "mini", "--out", str(out), *args]) == 0
    content = json.loads((out / "results.json").read_text())
    return content["results"], content


# ---------------------------------------------------------------------- sections
@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name of a section -> what it measured, each measured once."""
    done = {}

    def measured(section):
        if section not in done:
            args = ("--only", section, "--variants", ",".join(VARIANTS))
            done[section] = benchmark(tmp_path_factory.mktemp(section), *args)[0]
        return done[section]

    return measured


@pytest.mark.parametrize("section", sorted(STOCK))
def test_every_section_measures_every_contender(runs, section):
    rows = runs(section)
    for case in {row["case"] for row in rows}:
        found = [row for row in rows if row["case"] == case]
        names = [row["name"] for row in found]
        expected = OTHERS.get(section, VARIANTS)
        assert names[0] == STOCK[section] and set(expected) < set(names) and len(set(names)) == len(names)
        assert found[0]["ratio"] == 1
        for row in found:
            if row["name"] == "one large product":
                continue
            assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"] < 100
            assert min(row["times"]) <= row["seconds"] <= max(row["times"]) and len(row["times"]) == row["rounds"] == 2


def test_attention_counts_the_products_of_fairseqs(runs):
    """Four projections, logits and sums, forward and twice that backward."""
    (row,) = [row for row in runs("attention") if row["name"] == "MultiheadAttention"]
    steps, batch, heads, size = load("attention").SHORTER["mini"][0]
    dim = heads * size
    once = 2 * (4 * steps * batch * dim * dim + 2 * batch * heads * steps * steps * size)
    assert row["gflop"] * 1e9 in (3 * once, 3 * once + 2 * batch * heads * steps * steps * size)  # a fused kernel
    for row in runs("attention"):
        assert row["gemm_seconds"] > 0 and row["gemm_share"] > 0
    assert {"DynamicConv", "LightConv"} < {row["name"] for row in runs("attention")}


def test_shares_of_the_peak_are_those_of_one_large_product(runs):
    rows = runs("flash_attention")
    large = {row["case"]: row for row in rows if row["name"] == "one large product"}
    for row in rows:
        assert row["gflops"] == pytest.approx(row["gflop"] / row["seconds"])
        assert row["peak_share"] == pytest.approx(row["gflops"] / large[row["case"]]["gflops"])
    assert all(row["peak_share"] == pytest.approx(1) and "ratio" not in row for row in large.values())


def test_flash_attention_is_causal():
    """And gives what fairseq's attention gives, whose weights it takes."""
    torch.manual_seed(1)
    stock, flash = load("attention").layer("MultiheadAttention", (7, 2, 3, 4)), load("flash_attention").Flash(12, 3)
    parts = (stock.q_proj, stock.k_proj, stock.v_proj)
    with torch.no_grad():
        flash.inwards.weight.copy_(torch.cat([part.weight for part in parts]))
        flash.inwards.bias.copy_(torch.cat([part.bias for part in parts]))
        flash.outwards.weight.copy_(stock.out_proj.weight)
        flash.outwards.bias.copy_(stock.out_proj.bias)
    x, future = torch.randn(7, 2, 12), torch.full((7, 7), float("-inf")).triu(1)
    expected = stock(x, x, x, need_weights=False, attn_mask=future)[0]
    torch.testing.assert_close(flash(x, x, x)[0], expected, rtol=1e-4, atol=1e-5)


def test_training_counts_target_words(runs):
    for row in runs("training"):
        assert row["words_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    parameters = {row["name"]: row["parameters"] for row in runs("training")}
    queries_and_keys, mixture = 2 * 2 * (16 * 16 + 16), 2 * 2 * 2  # of two layers with two heads
    assert parameters["random+dot_product"] == parameters["random"] + queries_and_keys + mixture


def test_loss_counts_words_and_memory(runs):
    """The memory of a process that holds Python and PyTorch, and of no other."""
    rows = runs("loss")
    assert all(row["words_per_second"] == pytest.approx(row["tokens"] / row["seconds"]) for row in rows)
    assert 1e8 < rows[-1]["start_bytes"] <= rows[-1]["peak_bytes"] < 3e9


def test_generation_counts_the_cache(runs):
    """Stock: keys and values of both attentions, for every hypothesis; random: no keys for the first."""
    rows = {row["name"]: row for row in runs("generation")}
    hypotheses, dim = 2 * 5, 16
    slots = 5  # four tokens and the end
    keys = 4 * hypotheses * slots * dim
    assert rows["transformer"]["cache_bytes"] >= 2 * keys
    assert rows["random"]["cache_bytes"] < rows["transformer"]["cache_bytes"]
    assert rows["random"]["cache_share"] == rows["random"]["cache_bytes"] / rows["transformer"]["cache_bytes"]


def test_generation_refuses_unequal_work():
    generation, models, common = load("generation"), load("models"), load("common")
    size, words = models.SIZES["mini"], models.dictionary(50)
    settings = common.Settings(size="mini")
    args = models.arguments(size, "transformer", "DATA", settings)
    task, model = models.build_for_generation(args, words, settings)
    generator = task.build_generator([model], models.generation_options(2, 3))
    batch = models.generation_batch(size, words, 2, settings)
    assert generation.cache_peak(task, generator, model, batch, 3) > 0
    with pytest.raises(RuntimeError, match="no equal work"):
        generation.cache_peak(task, generator, model, batch, 4)


@pytest.mark.parametrize("name", ["random", "adaptive_span"])
def test_decoding_begins_with_a_full_cache(name):
    """Exactly the maximum length can be decoded from it, and it is as it was afterwards."""
    module, common, models = load("language_model"), load("common"), load("models")
    settings, words, length = common.Settings(size="mini"), models.dictionary(50), 24
    _, model = models.build_for_generation(module.arguments(name, length, settings), words, settings)
    decoder, tokens, prefix = model.decoder, torch.full((2, length + 1), 7), length - module.DECODED
    state = module.filled(decoder, tokens[:, :prefix], name == "adaptive_span")
    module.decoding(decoder, tokens, state, prefix)()
    for end in range(prefix + 1, length + 1):
        decoder(tokens[:, :end], incremental_state=state)
    if name == "random":
        with pytest.raises(UsageError, match=f"a sequence of {length + 1} tokens"):
            decoder(tokens, incremental_state=state)
    else:
        assert int(decoder.get_incremental_state(state, "read")["seen"][0]) == length


def test_storage_is_counted_once_and_whole():
    x = torch.zeros(10, 4)
    state = {"a": {"key": x[:3], "value": x[3:], "mask": None}, "b": {"more": torch.zeros(2)}}
    assert load("generation").held_bytes([state]) == 160 + 8


def test_spans_beside_the_port(tmp_path, monkeypatch):
    pytest.importorskip("fairseq.examples.adaptive_span.adaptive_span_model")
    span = load("span_attention")
    monkeypatch.setattr(span, "MAX_SPAN", 600)
    monkeypatch.setattr(span, "LAYERS", [("short", [0, 5, 10, 20, 40, 60, 80, 100], 2), ("long", [500] + 7 * [50], 1)])
    monkeypatch.setattr(span, "PARTS", {"mini": ("core",)})
    sides = {span.OURS: span.Ours, span.PORT: span.Port}
    monkeypatch.setattr(span, "peak_in_own_process", lambda name, part: span.peak(sides[name], part))
    rows = benchmark(tmp_path, "--only", "span_attention", "--cases", "core")[0]
    cases = {case: list(group) for case, group in itertools.groupby(rows, key=lambda row: row["case"])}
    assert [len(group) for group in cases.values()] == [2, 2, 2]
    short, long, both = cases.values()
    for a, b, total in zip(short, long, both):
        sums = [2 * s + t for s, t in zip(a["times"], b["times"])]
        assert total["times"] == pytest.approx(sums) and total["peak_bytes"] >= 0


# ---------------------------------------------------------------------- a GPU's time and memory, computed
# contender -> least and most of its (time, memory) relative to stock in the miniature case: a change that makes a
# model half as fast or twice as large shows here; what makes one better moves the bounds
COMPUTED = {
    "transformer, chunks": ((0.9, 1.2), (0.7, 1.0)),
    "random": ((0.7, 1.1), (0.9, 1.25)),
    "dot_product": ((0.9, 1.25), (1.0, 1.5)),
    "random+dot_product": ((1.1, 1.5), (1.1, 1.5)),
    "dot_product, span": ((1.4, 2.0), (1.3, 1.8)),
    "dot_product, memory 2048": ((1.7, 2.4), (5.0, 8.0)),
}


def run_model(tmp_path, *args):
    command = [sys.executable, str(FOLDER / "benchmark.py"), "--device", "h100-model", "--size", "mini",
               "--out", str(tmp_path), *args]  # fmt: skip
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


def test_a_gpus_time_and_memory_are_computed(tmp_path):
    """Ratios to stock, and that nobody can take the figures for measured ones."""
    if load("absent_device").objection():
        pytest.skip(load("absent_device").objection())
    done = run_model(tmp_path, "--variants", "random,dot_product,random+dot_product")
    if "g++ cannot build" in done.stderr and tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 13):
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / "results.json").read_text())
    rows = {row["name"]: row for row in content["results"]}
    assert set(rows) == {"transformer", *COMPUTED} and rows["transformer"]["ratio"] == 1
    for name, ((fast, slow), (small, large)) in COMPUTED.items():
        assert fast < 1 / rows[name]["ratio"] < slow, f"{name}: {1 / rows[name]['ratio']:.2f} of stock's time"
        assert small < rows[name]["memory_share"] < large, f"{name}: {rows[name]['memory_share']:.2f} of its memory"
    assert all(row["computed"] and row["kernels"] > 100 for row in rows.values())
    assert "computed, not measured" in content["gpu"] and content["clock"] == "no clock"
    for text in (done.stdout, (tmp_path / "results.md").read_text()):
        assert text.splitlines()[0].startswith("model of an H100: computed, not measured")
        assert text.count("x | computed |") + text.count("x computed\n") == len(rows)


def test_kernels_bytes_and_products_of_the_model():
    """One product and one sum, by hand: 2 B of every operand and result, or products; and what stays alive."""
    if load("absent_device").objection():
        pytest.skip(load("absent_device").objection())
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import absent_device; absent_device.load_device()\n"
        "import torch; from kernel_meter import measure, on_device, without_values\n"
        "with without_values():\n"
        "    layer = on_device(torch.nn.Linear(4096, 8192, bias=False), torch.float16)\n"
        "    def work():\n"
        "        x = torch.empty(4096, 4096, dtype=torch.float16, device='cuda')\n"
        "        y = layer(x).view(-1); y.sum().item(); bool(y.expand(2, -1)[0, 0] > 0)\n"
        "    m = measure(layer, work, {'work': 1.0})\n"
        "print(m.by_kernel['mm'], m.by_kernel['sum'], m.peak, m.questions)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    if "g++ cannot build" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    product, total, peak, questions = (float(x) for x in done.stdout.split())
    assert product == pytest.approx(2 * 4096 * 4096 * 8192 / 550e12, rel=1e-6)
    assert total == pytest.approx(2 * 4096 * 8192 / 2.6e12, rel=1e-3)
    assert 2 * (4096 * 4096 + 4096 * 8192) <= peak < 2 * (4096 * 4096 + 4096 * 8192) + 10_000 and questions == 2


# ---------------------------------------------------------------------- races
def test_a_race_takes_turns_and_divides_round_by_round(monkeypatch):
    common, clock, order = load("common"), [0.0], []
    monkeypatch.setattr(common.Settings, "now", lambda self: clock[0])
    slowdown = {"a": itertools.count(1), "b": itertools.count(1)}

    def contender(name, cost):
        def run():
            order.append(name)
            clock[0] += cost * next(slowdown[name])  # the machine gets slower and slower

        return run

    settings = common.Settings(seconds=0, rounds=4)
    a, b = common.race({"a": contender("a", 4.0), "b": contender("b", 2.0)}, settings)
    assert "".join(order) == "ab" + "ab" * 4
    assert a["times"] == [8, 12, 16, 20] and b["times"] == [4, 6, 8, 10]
    assert (b["ratio_low"], b["ratio"], b["ratio_high"]) == (2, 2, 2) and b["seconds"] == 7


def test_quick_calls_are_repeated_within_a_turn(monkeypatch):
    common, clock, calls = load("common"), [0.0], []
    monkeypatch.setattr(common.Settings, "now", lambda self: clock[0])

    def run():
        calls.append(None)
        clock[0] += 0.001

    (result,) = common.race({"a": run}, common.Settings(seconds=0, rounds=3))
    assert result["times"] == pytest.approx([0.001] * 3) and len(calls) == 2 + 3 * 5


def test_long_races_end_after_three_rounds(monkeypatch):
    common, clock = load("common"), [0.0]
    monkeypatch.setattr(common.Settings, "now", lambda self: clock[0])

    def run():
        clock[0] += 50

    (result,) = common.race({"a": run}, common.Settings(seconds=10, rounds=5))
    assert result["rounds"] == 3


def test_what_cannot_be_built_is_said(tmp_path, capsys):
    """N = 257 is a prime; the others are measured."""
    module = load("attention")
    module.SHORTER["mini"], kept = [(257, 1, 2, 4)], module.SHORTER["mini"]
    try:
        args = ("--only", "attention", "--variants", "random,factorized_dense")
        rows = {row["name"]: row for row in benchmark(tmp_path, *args)[0]}
    finally:
        module.SHORTER["mini"] = kept
    assert "257" in rows["factorized_dense"]["skipped"] and "ratio" in rows["random"]
    assert "skipped: --synthesizer-max-length 257" in capsys.readouterr().out


# ---------------------------------------------------------------------- bare products
def test_products_are_recorded_forward_and_backward():
    gemms, linear, x = load("gemms"), nn.Linear(5, 3), torch.randn(7, 5, requires_grad=True)
    products = gemms.record(lambda: linear(x).sum().backward())
    assert sorted((p.rows, p.inner, p.columns) for p in products) == [(3, 7, 5), (7, 3, 5), (7, 5, 3)]
    left, right = torch.randn(2, 4, 6), torch.randn(2, 3, 6)
    (batched,) = gemms.record(lambda: torch.matmul(left, right.transpose(1, 2)))
    assert batched == gemms.Product(2, 4, 6, 3, False, True) and batched.flops == 2 * 2 * 4 * 6 * 3
    again = gemms.record(gemms.replay([*products, batched], torch.float32, "cpu"))
    assert again == [*products, batched]


def test_a_fused_kernel_counts_its_products():
    gemms, q = load("gemms"), torch.randn(2, 3, 8, 4, requires_grad=True)
    products = gemms.record(lambda: nn.functional.scaled_dot_product_attention(q, q, q).sum().backward())
    one = 2 * 2 * 3 * 8 * 8 * 4
    assert sum(p.flops for p in products) in (6 * one, 7 * one)  # without and with the weights made twice


# ---------------------------------------------------------------------- options and files
def test_a_new_scorer_is_measured_by_itself(tmp_path, capsys):
    file = tmp_path / "own_scorer_for_benchmark.py"
    file.write_text(
        "import torch\nfrom fairseq_synth.modules.scorers import Logits, Scorer, register_scorer\n\n\n"
        "@register_scorer('own_uniform')\nclass Uniform(Scorer):\n    depends_on = 'positions'\n\n"
        "    def logits(self, x, q, k, positions):\n"
        "        return Logits(bias=x.new_zeros(self.num_heads, x.size(0), positions.keys))\n"
    )
    path = list(sys.path)
    try:
        rows, content = benchmark(tmp_path / "out", "--only", "attention", "--import", str(file))
    finally:
        SCORERS.pop("own_uniform", None)
        sys.path[:] = path
    names = [row["name"] for row in rows]
    assert "own_uniform" in names and set(SCORERS) < set(names)
    for key in ("processor", "torch", "threads", "dtype", "seed", "fairseq", "clock"):
        assert content[key]
    printed = capsys.readouterr().out.splitlines()
    assert any("own_uniform" in line for line in printed)
    assert [line for line in printed if len(line) > 80 and not line.startswith("written")] == []
    table = [line for line in (tmp_path / "out" / "results.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows) and len({line.count("|") for line in table}) == 1


def test_frozen_parts_save_memory(runs):
    rows = {row["name"]: row for row in runs("frozen")}
    free, frozen = rows["nothing frozen"], rows["ffn"]
    assert free["trained_share"] == 1 and 0 < frozen["trained_share"] < 1
    assert frozen["optimizer_bytes"] / free["optimizer_bytes"] == pytest.approx(frozen["trained_share"], rel=0.02)
    assert frozen["checkpoint_bytes"] < free["checkpoint_bytes"]


BAD = {
    "size": (["--size", "huge"], "--size"),
    "threads": (["--threads", "0"], "--threads: 0: a number of at least 1"),
    "only": (["--only", "attention,speed"], "--only speed: not one of attention"),
    "variants": (["--variants", "rando"], "did you mean random?"),
    "cases": (["--only", "attention", "--cases", "huge"], "--cases huge: no case of attention"),
    "dtype": (["--dtype", "float16"], "--dtype float16"),
    "import": (["--import", "missing.py"], "--import missing.py: no such file"),
    "unknown": (["--fast"], "--fast"),
    "out": (["--out", str(FOLDER / "benchmark.py")], "--out"),
    "seconds": (["--seconds", "soon"], "--seconds: soon"),
    "model": (["--device", "h100-model"], "--device h100-model: the device must be loaded before torch"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_option_gets_one_line(name, tmp_path, capsys):
    args, message = BAD[name]
    try:
        status = load("benchmark").main(["--size", "mini", "--out", str(tmp_path / "out"), *args])
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr().err
    assert status == 2 and printed.startswith("benchmark.py: error: ") and printed.count("\n") == 1
    assert message in printed and not (tmp_path / "out" / "results.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_in_one_line(tmp_path, capsys):
    assert load("benchmark").main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "benchmark.py: error: --device cuda: PyTorch sees no GPU here; leave it out to measure the CPU\n"
    )


@pytest.mark.parametrize("installed", [True, False])
def test_the_plot_is_drawn_if_it_can_be(installed, tmp_path, monkeypatch, capsys):
    if installed:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    benchmark(tmp_path, "--only", "attention", "--variants", "random")
    drawn, said = tmp_path / "results.png", capsys.readouterr().err
    assert drawn.is_file() == installed
    assert (drawn.read_bytes()[:4] == b"\x89PNG") if installed else ("matplotlib is not installed" in said)


def test_the_command_sets_threads_and_malloc(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment.update(FAIRSEQ_SYNTH_PYTHON=sys.executable, PYTHONWARNINGS="ignore")
    command = ["bash", str(FOLDER / "run.sh"), "--only", "attention", "--size", "mini", "--variants", "random",
               "--threads", "2", "--out", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=str(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["threads"] == 2 and content["clock"] == "wall clock" and len(content["malloc"]) == 2
