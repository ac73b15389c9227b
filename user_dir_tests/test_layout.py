"""How the repository is laid out, read from its files."""

import ast

from conftest import REPOSITORY


def imported(path):
    """Names of the modules that a file imports, functions' imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_test_files_do_not_import_each_other():
    """What they share is in builders.py, conftest.py and compat_commands.py."""
    files = sorted((REPOSITORY / "user_dir_tests").glob("*.py"))
    assert len(files) > 30
    found = [(path.name, name) for path in files for name in imported(path) if name.split(".")[0].startswith("test_")]
    assert found == []
