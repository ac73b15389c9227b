"""Imports point down: no module knows of a floor above its own, not even inside a function."""

import ast
from pathlib import Path

from conftest import USER_DIR

# folders and files of the package, the lowest floor first
FLOORS = (
    ("errors", "discovery", "files", "main_program"),
    ("compat",),
    ("modules",),
    ("freezing", "decoding", "training_log", "auxiliary_loss"),
    ("seeded",),
    ("models", "tasks", "optim", "criterions", "checkpoints"),
    ("inspection", "checks"),
    ("commands",),
    ("cli",),
)
# the doors: they load everything, and everything may ask for that
DOORS = ("__init__", "__main__", "registration")
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path):
    return path.relative_to(USER_DIR).parts[0].replace(".py", "")


def imports(path):
    """(line, room) of what a file imports from this package."""
    package = ["fairseq_synth", *path.relative_to(USER_DIR).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == "fairseq_synth" else [stem]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "fairseq_synth" and len(parts) > 1:
                yield node.lineno, parts[1]


def sources():
    return [path for path in sorted(USER_DIR.rglob("*.py")) if room_of(path) not in DOORS]


def arrows(path):
    """(from, to, place) between rooms."""
    here = room_of(path)
    for line, there in imports(path):
        if there in FLOOR_OF and there != here:
            yield here, there, f"{path.relative_to(USER_DIR)}:{line} -> {there}"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in sources()} <= set(FLOOR_OF)
    assert len(sources()) > 100


def test_no_import_runs_up():
    up = [place for path in sources() for a, b, place in arrows(path) if FLOOR_OF[b] > FLOOR_OF[a]]
    assert up == []


def test_rooms_of_one_floor_do_not_import_in_circles():
    beside = {(a, b) for path in sources() for a, b, _ in arrows(path) if FLOOR_OF[a] == FLOOR_OF[b]}
    circles = [(a, b) for a, b in beside if (b, a) in beside]
    assert circles == []


def test_an_import_that_runs_up_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("test_floors.USER_DIR", tmp_path)
    (tmp_path / "modules").mkdir()
    file: Path = tmp_path / "modules" / "low.py"
    file.write_text("def f():\n    from fairseq_synth.commands import check\n    from ..models import base\n")
    assert [place for _, _, place in arrows(file)] == ["modules/low.py:2 -> commands", "modules/low.py:3 -> models"]
