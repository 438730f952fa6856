"""The size of the house: folders that a reader takes in, functions that fit a screen, arguments with names."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("videodiff", "data_prep", "tests", "bench", "launch")
MOST_FILES, MOST_LINES, MOST_ARGUMENTS = 12, 60, 8
FILES = sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# Constructors that configuration calls: their arguments are the keys of `conf/`.
BY_CONFIGURATION = {
    "data_prep/caption/endpoint.py": "Endpoint",
    "data_prep/caption/model.py": "Model",
    "videodiff/codec/autoencoder.py": "Autoencoder",
    "videodiff/denoiser/transformer.py": "SpaceTimeTransformer",
    "videodiff/generation/settings.py": "Generation",
}


def functions(path: str) -> list[tuple[str, str, int, int]]:
    """Return class, name, lines and arguments of every function of a file; `self` and `cls` do not count."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                owner, given = node.name if isinstance(node, ast.ClassDef) else "", child.args
                names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                found.append((owner, child.name, child.end_lineno - child.lineno + 1, count))
    return found


def test_no_folder_has_more_code_than_a_reader_takes_in() -> None:
    counts = Counter(str(PurePosixPath(path).parent) for path in FILES if not path.endswith("__init__.py"))
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


@pytest.mark.parametrize("path", [path for path in FILES if not path.startswith("tests/")])
def test_no_function_is_longer_than_a_screen_or_takes_more_than_can_be_named(path: str) -> None:
    for owner, name, lines, arguments in functions(path):
        assert lines <= MOST_LINES, f"{path}: {owner}.{name} has {lines} lines"
        by_configuration = name == "__init__" and owner == BY_CONFIGURATION.get(path)
        assert arguments <= MOST_ARGUMENTS or by_configuration, f"{path}: {owner}.{name} takes {arguments} arguments"


def test_comments_of_the_configuration_fit_a_line() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "conf").rglob("*.yaml"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "#" in line and len(line) > 120
    ]
    assert lines == []
