"""The package as pip installs it: all of it, and found by --user-dir from any directory."""

import os
import shutil
import subprocess
import sys

import fairseq
import fairseq_cli
import pytest
from conftest import ENVIRONMENT, REPOSITORY, train_args


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder like site-packages: fairseq, and this project beside it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(REPOSITORY / "fairseq_synth", source / "fairseq_synth")  # builds leave files behind
    for name in ("setup.py", "README.md", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", str(target), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # a copy: fairseq looks in `..` of its own folder, and that of a link is elsewhere
    shutil.copytree(fairseq.__path__[0], target / "fairseq", ignore=shutil.ignore_patterns("__pycache__"))
    os.symlink(fairseq_cli.__path__[0], target / "fairseq_cli")
    return target


def test_every_module_is_installed_and_nothing_else(installed):
    def modules(root):
        return {str(p.relative_to(root)) for p in (root / "fairseq_synth").rglob("*.py")}

    assert modules(installed) == modules(REPOSITORY)
    assert not (installed / "user_dir_tests").exists() and not (installed / "examples").exists()
    assert (installed / "bin" / "fairseq-synth").exists()


def test_user_dir_is_found_from_any_directory(installed, corpus, tmp_path):
    arguments = ["fairseq_synth" if "fairseq_synth" in str(a) else str(a) for a in train_args(corpus, tmp_path / "c")]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "fairseq_cli.train", *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "c" / "checkpoint_last.pt").exists()
