"""The package as pip installs it: all of it, and found by --user-dir from any directory."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_string

import fairseq
import fairseq_cli
import pytest
import yaml
from conftest import ENVIRONMENT, REPOSITORY, train_args

import fairseq_synth

TEXTS = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md")


def succeed(*command, cwd):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, unpacked."""
    checkout, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("source")
    for name in ("fairseq_synth", "examples", "user_dir_tests"):  # a copy: builds leave files behind
        ignored = shutil.ignore_patterns("__pycache__", "work")
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=ignored)
    for name in (*TEXTS, "MANIFEST.in", "setup.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, checkout)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    succeed("-c", build, target, cwd=checkout)
    (archive,) = target.iterdir()
    with tarfile.open(archive) as file:
        file.extractall(target)
    return target / archive.name[: -len(".tar.gz")]


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    """A folder like site-packages: fairseq, and this project beside it."""
    target = tmp_path_factory.mktemp("site")
    offline = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    succeed("-m", "pip", "install", *offline, "--target", target, source, cwd=target)
    # a copy: fairseq looks in `..` of its own folder, and that of a link is elsewhere
    shutil.copytree(fairseq.__path__[0], target / "fairseq", ignore=shutil.ignore_patterns("__pycache__"))
    os.symlink(fairseq_cli.__path__[0], target / "fairseq_cli")
    return target


def test_the_source_distribution_has_what_it_needs_and_nothing_else(source):
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    package = {name for name in files if name.startswith("fairseq_synth/")}
    assert files - package - {name for name in files if ".egg-info/" in name} == {
        *TEXTS, "MANIFEST.in", "PKG-INFO", "pyproject.toml", "setup.cfg", "setup.py",
    }  # fmt: skip
    assert package == {
        str(path.relative_to(REPOSITORY))
        for ending in ("*.py", "*.md", "py.typed")
        for path in (REPOSITORY / "fairseq_synth").rglob(ending)
    }


def test_the_package_index_shows_links_that_lead_somewhere(source):
    metadata = message_from_string((source / "PKG-INFO").read_text())
    text = metadata.get_payload() or metadata["Description"]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links and not [link for link in links if not link.startswith("https://")]
    (project,) = metadata.get_all("Home-page")
    own = [link[len(project) :] for link in links if link.startswith(project)]
    assert any(link.startswith("/raw/main/") for link in own), "the picture"
    for link in own:
        path = re.match(r"(?:/(?:raw|blob)/main/([^#]+))?(?:#.*)?$", link).group(1)
        assert path is None or (REPOSITORY / path).exists(), link


def test_what_can_be_cited_is_what_is_installed(source):
    metadata = message_from_string((source / "PKG-INFO").read_text())
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what cff 1.2.0 asks for
    assert citation["version"] == metadata["Version"] == fairseq_synth.__version__
    assert citation["repository-code"] == metadata["Home-page"]
    assert [author["name"] for author in citation["authors"]] == [metadata["Author"]]
    released = f"## {citation['version']} - {citation['date-released']}\n"
    assert released in (REPOSITORY / "CHANGELOG.md").read_text()


def test_every_module_is_installed_and_nothing_else(installed):
    def modules(root):
        return {str(p.relative_to(root)) for p in (root / "fairseq_synth").rglob("*.py")}

    assert modules(installed) == modules(REPOSITORY)
    assert not (installed / "user_dir_tests").exists() and not (installed / "examples").exists()
    assert (installed / "bin" / "fairseq-synth").exists()
    for path in (REPOSITORY / "fairseq_synth").glob("*.md"):
        assert (installed / "fairseq_synth" / path.name).exists()
    assert (installed / "fairseq_synth" / "py.typed").exists()


def test_user_dir_is_found_from_any_directory(installed, corpus, tmp_path):
    arguments = ["fairseq_synth" if "fairseq_synth" in str(a) else str(a) for a in train_args(corpus, tmp_path / "c")]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "fairseq_cli.train", *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "c" / "checkpoint_last.pt").exists()
