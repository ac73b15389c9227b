"""What importing the package does in whose program, how little a command needs to answer, and a command in one file."""

import importlib.machinery
import json
import os
import subprocess
import sys
import types

import pytest
from conftest import REPOSITORY, USER_DIR, generate_args, train_args

import fairseq_synth
from fairseq_synth import cli, commands, main_program

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "LOGLEVEL")}
HEAVY = ("torch", "fairseq", "numpy", "omegaconf")


def python(*arguments, path=(), cwd=None):
    """A Python of its own; folders in `path` come first on its path."""
    places = os.pathsep.join([*map(str, path), str(REPOSITORY)])
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """What pip writes for the entry point in setup.py."""
    path = tmp_path_factory.mktemp("bin") / "fairseq-synth"
    path.write_text(
        "import sys\nfrom fairseq_synth.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    return path


# ---------------------------------------------------------------------- a command starts alone
REPORT = """
import atexit, os, sys
@atexit.register
def tell():
    print("LOADED", *[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def reporting(tmp_path_factory):
    """A folder for the path, in which every Python says at its end which heavy modules it holds."""
    folder = tmp_path_factory.mktemp("reporting")
    (folder / "sitecustomize.py").write_text(REPORT.format(heavy=HEAVY))
    return folder


@pytest.mark.parametrize("how", ["script", "-m"])
@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), ("results", "--help"), ("plot", "--help"),
                                       ("doctor", "--help"), ("results", "nowhere"), ("nonsense",)])  # fmt: skip
def test_commands_answer_without_torch_and_fairseq(how, arguments, script, reporting):
    start = [script] if how == "script" else ["-m", "fairseq_synth"]
    done = python(*start, *arguments, path=[reporting])
    assert done.stderr.splitlines()[-1] == "LOADED", done.stderr
    failing = arguments and arguments[-1].startswith("no")
    assert done.returncode == (2 if failing else 0) and bool(done.stdout) != failing


def test_results_need_neither(script, reporting, tmp_path):
    """Learning curves and a page, too."""
    pytest.importorskip("matplotlib")
    step = {"epoch": 1, "loss": "5.0", "nll_loss": "4.0", "ppl": "16.0", "wpb": "50", "num_updates": "9"}
    config = {"common": {"seed": 1}, "task": {"_name": "translation"}, "model": {"_name": "transformer"}}
    found = {
        "fairseq_cli.train": f"{config}\nnum. shared model params: 1,234 (num. trained: 1,000)",
        "train_inner": json.dumps(step),
        "valid": json.dumps({"epoch": 1, **{f"valid_{name}": value for name, value in step.items()}}),
    }
    lines = [f"2026-01-01 00:00:01 | INFO | {kind} | {text}\n" for kind, text in found.items()]
    (tmp_path / "train.log").write_text("".join(lines))
    options = ["--curves", tmp_path / "c.png", "--html", tmp_path / "p.html"]
    done = python(script, "results", tmp_path, *options, path=[reporting])
    loaded = done.stderr.splitlines()[-1].split()
    assert done.returncode == 0 and not {"torch", "fairseq"} & set(loaded), done.stderr
    assert (tmp_path / "c.png").exists() and (tmp_path / "p.html").exists()


def test_the_bare_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    bare = capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    assert done.value.code == 0 and capsys.readouterr().out == bare and "results" in bare
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fairseq-synth {fairseq_synth.__version__}\n"


def test_the_order_of_the_help():
    expected = ["options", "check", "average", "materialize", "diff-frozen", "doctor", "inspect", "plot", "results"]
    assert list(commands.commands()) == expected


def test_options_of_check_are_shown(capsys):
    with pytest.raises(SystemExit):
        cli.main(["check", "--help"])
    assert "--synthesizer-rank" in capsys.readouterr().out


# ---------------------------------------------------------------------- a command is one file
COMMAND = '''
"""``fairseq-synth count-words``: a command from one file."""

NAME = "count-words"
HELP = "how many words a text has"


def register(parser):
    parser.add_argument("text")


def run(args):
    print(len(args.text.split()), "words")
    return 3
'''


@pytest.fixture
def dropped_command(tmp_path, monkeypatch):
    (tmp_path / "count_words.py").write_text(COMMAND)
    (tmp_path / "_helper.py").write_text("raise RuntimeError('a file with an underscore is no command')")
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    yield
    sys.modules.pop("fairseq_synth.commands.count_words", None)


def test_a_command_is_one_file(dropped_command, capsys):
    assert cli.main(["count-words", "a new command"]) == 3
    assert capsys.readouterr().out == "3 words\n"
    assert cli.main([]) == 0
    assert "how many words a text has" in capsys.readouterr().out
    assert list(commands.commands())[-1] == "count-words", "without an ORDER it is the last"


def test_so_is_a_task_or_an_optimizer(tmp_path, monkeypatch):
    """Nothing lists what registers itself in fairseq."""
    from fairseq.optim import OPTIMIZER_REGISTRY

    import fairseq_synth.optim

    code = "from fairseq.optim import FairseqOptimizer, register_optimizer\n\n\n"
    code += '@register_optimizer("dropped")\nclass Dropped(FairseqOptimizer):\n    pass\n'
    (tmp_path / "dropped_optimizer.py").write_text(code)
    monkeypatch.setattr(fairseq_synth.optim, "__path__", [*fairseq_synth.optim.__path__, str(tmp_path)])
    try:
        fairseq_synth.setup()
        assert OPTIMIZER_REGISTRY["dropped"].__module__ == "fairseq_synth.optim.dropped_optimizer"
    finally:
        OPTIMIZER_REGISTRY.pop("dropped", None)
        sys.modules.pop("fairseq_synth.optim.dropped_optimizer", None)


# ---------------------------------------------------------------------- whose program it is
STATE = """
import logging, sys
def state():
    root = logging.getLogger()
    return sys.excepthook, list(root.handlers), root.level, root.manager.disable
before = state()
import fairseq_synth
import fairseq_synth
assert state() == before, (before, state())
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
assert "synth_transformer_lm" in ARCH_MODEL_REGISTRY and "adaptive_span_lm" in ARCH_MODEL_REGISTRY
assert "streaming_lm" in TASK_REGISTRY and "adagrad_tensor_clip" in OPTIMIZER_REGISTRY
from fairseq_synth import compat
assert "keep_last_batch" in [report.name for report in compat.describe()] and compat.APPLIED
"""


def test_a_plain_import_registers_and_leaves_the_rest_alone():
    done = python("-c", STATE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_module_below_a_package_that_imports_this_one(tmp_path):
    """python -m imports the package first, when there is no main program yet."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "__init__.py").write_text("import fairseq_synth\n")
    code = "from fairseq.models import ARCH_MODEL_REGISTRY\nprint('synth_transformer' in ARCH_MODEL_REGISTRY)\n"
    (tmp_path / "project" / "tool.py").write_text(code)
    assert python("-m", "project.tool", path=[tmp_path]).stdout == "True\n"


HOOK = """
import sys
import fairseq_synth
print("hook:", getattr(sys.excepthook, "explains_usage_errors", False))
raise SystemExit
"""


@pytest.mark.parametrize("how", ["-m", "my-generate"])
def test_the_hook_is_for_fairseqs_commands(how, tmp_path):
    """They import a user's own --user-dir, which imports this package."""
    plugin = tmp_path / "plugin"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(HOOK)
    call = "from fairseq_cli.generate import cli_main\nif __name__ == '__main__':\n    cli_main()\n"
    (tmp_path / how).write_text(call)
    start = ["-m", "fairseq_cli.generate"] if how == "-m" else [tmp_path / how]
    done = python(*start, "nowhere", "--path", "none.pt", "--user-dir", plugin)
    assert done.stdout.splitlines()[-1] == f"hook: {how != 'my-generate'}", done.stderr


# __main__'s __spec__.name and __file__ -> whether it is fairseq-synth, whether one of fairseq's commands
PROGRAMS = {
    "entry point": (None, "/x/bin/fairseq-synth", True, False),
    "on Windows": ("__main__", "/x/Scripts/fairseq-synth.exe/__main__.py", True, False),
    "-m fairseq_synth": ("fairseq_synth.__main__", "/x/fairseq_synth/__main__.py", True, False),
    "fairseq-train": (None, "/x/bin/fairseq-train", False, True),
    "fairseq-hydra-train": (None, "/x/bin/fairseq-hydra-train", False, True),
    "-m fairseq_cli.train": ("fairseq_cli.train", "/x/fairseq_cli/train.py", False, True),
    "a file of fairseq": (None, "/x/fairseq_cli/train.py", False, True),
    "a script": (None, "/x/train.py", False, False),
    "pytest": ("pytest.__main__", "/x/pytest/__main__.py", False, False),
    "torchrun": ("torch.distributed.run", "/x/run.py", False, False),  # the launcher, not what it launches
    "interactive": (None, None, False, False),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_which_program_it_is(name, monkeypatch):
    spec, path, own, fairseqs = PROGRAMS[name]
    main = types.ModuleType("__main__")
    main.__spec__ = spec and importlib.machinery.ModuleSpec(spec, None)
    if path is not None:
        main.__file__ = path
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert (main_program.is_fairseq_synth(), main_program.is_fairseq_command()) == (own, fairseqs)


# ---------------------------------------------------------------------- --user-dir
OWN_PLUGIN = '''
"""A plugin of one's own: everything of fairseq_synth, and a scorer."""

import fairseq_synth
import fairseq_synth
from fairseq_synth.modules.scorers import base


@base.register_scorer("mine")
class Mine(base.SCORERS["random"]):
    """Another name for the trained map."""
'''


def test_a_user_dir_of_ones_own(corpus, tmp_path):
    """It imports this package and registers a scorer: trained and used by fairseq's commands."""
    plugin = tmp_path / "my_plugin"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(OWN_PLUGIN)

    def mine(arguments):
        return [str(plugin) if argument == USER_DIR else str(argument) for argument in arguments]

    options = ["--encoder-self-attention", "mine", "--synthesizer-max-length", "16"]
    trained = python("-m", "fairseq_cli.train", *mine(train_args(corpus, tmp_path / "run", *options)))
    assert trained.returncode == 0, trained.stderr[-2000:]
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    used = python("-m", "fairseq_cli.generate", *mine(generate_args(corpus, checkpoint)))
    assert used.returncode == 0 and "Translated 13 sentences" in used.stdout + used.stderr, used.stderr[-2000:]


# ---------------------------------------------------------------------- the doctor
BLOCK = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} or name.startswith({module!r} + "."):
            raise {error}
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.parametrize("module, error, says, fix", [
    ("fairseq", "ModuleNotFoundError('No module named fairseq', name='fairseq')", "fairseq is not installed in",
     "pip install"),
    ("torch", "ModuleNotFoundError('No module named torch', name='torch')", "torch is not installed in",
     "pip install torch"),
    ("numpy", "ModuleNotFoundError('No module named numpy', name='numpy')", "numpy is not installed in",
     "pip install numpy"),
    ("torch", "OSError('libcudart.so.12: cannot open')", "torch cannot be imported (OSError: libcudart.so.12",
     "in a new environment, pip install torch"),
    ("hydra", "ModuleNotFoundError('No module named hydra', name='hydra')", "fairseq needs hydra, which is not",
     "pip install hydra-core"),
    ("fairseq_synth.models.transformer", "SyntaxError('a bad copy')", "does not load: SyntaxError: a bad copy",
     "in a new environment"),
])  # fmt: skip
def test_the_doctor_works_where_nothing_else_does(module, error, says, fix, script, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(module=module, error=error))
    done = python(script, "doctor", path=[tmp_path])
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout, done.stderr
    text = " ".join(done.stdout.split())
    assert f"FAIL {module.split('.')[0].replace('hydra', 'fairseq')}" in text and says in text and f"fix: {fix}" in text
    assert "Patched in fairseq: nothing" in text and "will not work" in text


def test_other_commands_say_it_in_one_line(script, tmp_path):
    error = "ModuleNotFoundError('No module named fairseq', name='fairseq')"
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(module="fairseq", error=error))
    for arguments in (["average", "--inputs", "a", "--output", "b"], ["check", "random"]):
        done = python(script, *arguments, path=[tmp_path])
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith(f"fairseq-synth {arguments[0]}: error: fairseq is not installed in ")
        assert len(done.stderr.splitlines()) == 1 and "pip install" in done.stderr
    imported = python("-c", "import fairseq_synth", path=[tmp_path])
    assert imported.stderr.splitlines()[-1].startswith("fairseq_synth.errors.installation.InstallationError: fairseq")


def test_errors_need_nothing_but_python(reporting):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import errors, errors.installation"
    assert python("-c", code, USER_DIR, path=[reporting]).stderr == "LOADED\n"
