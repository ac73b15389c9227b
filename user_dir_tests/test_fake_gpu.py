"""Every model on a GPU that is not there (fake_cuda.py): no device or dtype is mixed, the results are the CPU's, and
the host waits for the device nowhere but where it is said here, and no more often.

FAIRSEQ_SYNTH_GPU_CASES=all runs every combination instead of some 80.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, REPOSITORY

sys.path.insert(0, str(REPOSITORY / "examples" / "benchmark"))
from absent_device import objection  # noqa: E402

LAYERS = 2  # of each side of the models in built.py
# function -> most waits of a forward and backward pass (sequential models: of two blocks), and why
TRAINING = {
    "padding_layout": (2, "once per side: is a pad left of a token?"),
    "attend": (LAYERS, "encoder layers of random maps with pads: is the sum too small?"),
    "_is_linear": (2, "once in the life of a chunked criterion: what is the output layer?"),
    "tensor_digest": (100, "frozen tensors, when training begins, and before validations and saves"),
    "windows": (2 * 3 * LAYERS, "sequential models: spans of every layer, three times a block"),
    "_log_mask": (2 * LAYERS, "sequential models: once per group of heads and block"),
    "_join_pads": (2, "sequential models: are there pads in the block?"),
}
# function -> most waits of a decoding step, what comes once per search divided by the steps
DECODING = {
    "padding_layout": (1, "once per search"),
    "attend": (1, "once per search and encoder layer"),
    "reorder_encoder_out": (1, "does every row keep its sentence?"),
    "can_step": (1, "is the last token a pad?"),
    "hypotheses": (1, "once per search"),
    "follow_order": (LAYERS, "the same question in every layer"),
    "_prepare": (LAYERS, "once per search and layer; under autocast in every step"),
    "windows": (4 * LAYERS, "adaptive spans"),
    "_join_pads": (1, "sequential models: are there pads?"),
    "_log_mask": (LAYERS, "sequential models"),
    "_new_tokens": (1, "sequential models: how many tokens were read?"),
}
# what does not work: part of a case's name -> part of the message. The test fails when it works: take it out then.
KNOWN = {}


@pytest.fixture(scope="module")
def results():
    if objection():
        pytest.skip(objection())
    command = [sys.executable, str(REPOSITORY / "user_dir_tests" / "gpu_cases.py")]
    if os.environ.get("FAIRSEQ_SYNTH_GPU_CASES") == "all":
        command.append("all")
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode and "g++ cannot build the device with this PyTorch" in done.stderr and _is_old():
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _is_old():
    """The device is written for PyTorch 2.13; that older ones have other interfaces is no failure."""
    import torch

    return tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 13)


def test_every_model_gives_what_it_gives_on_the_cpu(results):
    assert results["cases"] >= 80
    unknown = {c: why for c, why in results["failed"].items() if not any(k in c and m in why for k, m in KNOWN.items())}
    assert not unknown, "\n".join(f"{case}: {why}" for case, why in unknown.items())
    stale = [name for name in KNOWN if not any(name in case for case in results["failed"])]
    assert not stale, f"{stale} works: take it out of KNOWN"


@pytest.mark.parametrize("kind, allowed", [("training", TRAINING), ("decoding", DECODING)])
def test_the_host_waits_only_where_it_is_said(kind, allowed, results):
    found = {name: count for name, (count, _) in results["waits"][kind].items() if not name.startswith("fairseq: ")}
    places = {name: f"{name} in {file}" for name, (_, file) in results["waits"][kind].items()}
    new = [places[name] for name in found if name not in allowed]
    assert not new, f"the host waits in {', '.join(new)}"
    more = [f"{places[n]}: {count}, not {allowed[n][0]}" for n, count in found.items() if count > allowed[n][0]]
    assert not more, "; ".join(more)
    gone = sorted(set(allowed) - set(found))
    assert not gone, f"nothing waits in {', '.join(gone)} any more: take it out of the list"


def device(code):
    """What a piece of code on the device prints."""
    if objection():
        pytest.skip(objection())
    start = "import sys; sys.path.insert(0, 'user_dir_tests'); from fake_cuda import Gpu, Watch, to_gpu, torch\n"
    command = [sys.executable, "-c", start + code]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode and "g++ cannot build" in done.stderr and _is_old():
        pytest.skip(done.stderr.strip().splitlines()[-1])
    return done.stdout.splitlines() + done.stderr.splitlines()[-1:]


def test_the_device_tells_what_a_gpu_would_not_like():
    """Mixed devices raise; waits and kernels are counted; scalars of the host and asynchronous work are free."""
    said = device(
        "x, host = Gpu(torch.ones(3, 2)), torch.ones(3, 2)\n"
        "with Watch() as watch:\n"
        "    for mixed in (lambda: x + host, lambda: torch.cat([x, host]), lambda: x @ host.t()):\n"
        "        try:\n"
        "            mixed()\n"
        "        except RuntimeError as error:\n"
        "            print('cuda:0 and on the CPU' in str(error))\n"
        "    watch.kernels.clear()\n"
        "    y = (x * 2 + torch.tensor(1.0)).sum()\n"
        "    print(sum(watch.kernels.values()), sum(watch.waits.values()), y.device)\n"
        "    y.item(), bool(y > 1), y.cpu(), x.tolist(), host.to('cuda'), x[[0, 2]], x[x > 0]\n"
        "    print(sum(watch.waits.values()))\n"
        "    w = torch.nn.Parameter(Gpu(torch.ones(2)))\n"
        "    (x @ w).sum().backward()\n"
        "    print(type(w.grad).__name__, w.grad.on_host.tolist())\n"
    )
    assert said[:6] == ["True", "True", "True", "3 0 cuda:0", "7", "Gpu [3.0, 3.0]"]
