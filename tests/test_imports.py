"""Who may import whom: the rooms of the project, checked in the syntax tree of every file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    p.relative_to(ROOT).as_posix() for room in ("videodiff", "data_prep") for p in (ROOT / room).rglob("*.py")
)
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


class Rule(NamedTuple):
    """A sentence, the files it holds for, and the imports it allows them."""

    sentence: str
    holds_for: Callable[[str], bool]
    allows: Callable[[str], bool]


def within(name: str, *packages: str) -> bool:
    """Tell whether a dotted name is one of these packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def room(*rooms: str) -> Callable[[str], bool]:
    """Return a test for files in one of these folders, or being one of these files."""
    return lambda path: any(path == r or path.startswith(f"{r}/") for r in rooms)


def outside(*rooms: str) -> Callable[[str], bool]:
    return lambda path: not room(*rooms)(path)


def only(*packages: str) -> Callable[[str], bool]:
    return lambda name: within(name, *packages)


def never(*packages: str) -> Callable[[str], bool]:
    return lambda name: not within(name, *packages)


def of_the_project_only(*packages: str) -> Callable[[str], bool]:
    return lambda name: not within(name, "videodiff", "data_prep") or within(name, *packages)


RULES = [
    Rule(
        "denoiser imports torch, einops, the standard library and itself",
        room("videodiff/denoiser"),
        only("torch", "einops", "videodiff.denoiser", *sys.stdlib_module_names),
    ),
    Rule(
        "diffusion never imports lightning, hydra, omegaconf or deepspeed",
        room("videodiff/diffusion"),
        never("lightning", "pytorch_lightning", "hydra", "omegaconf", "deepspeed"),
    ),
    Rule(
        "data imports only data, words, the machine, the form of what is encoded, the protocol of text, the cost",
        room("videodiff/data"),
        of_the_project_only(
            "videodiff.data",
            "videodiff.words",
            "videodiff.machine",
            "videodiff.codec.cached",
            "videodiff.text.protocol",
            "videodiff.planning.cost",
        ),
    ),
    Rule(
        "planning imports only data, planning and words",
        room("videodiff/planning"),
        of_the_project_only("videodiff.data", "videodiff.planning", "videodiff.words"),
    ),
    Rule("worlds imports only worlds", room("videodiff/worlds"), of_the_project_only("videodiff.worlds")),
    Rule(
        "metrics imports only worlds, metrics, words, the loader of others' models and the names of extras",
        room("videodiff/metrics"),
        of_the_project_only(
            *(f"videodiff.{name}" for name in ("worlds", "metrics", "words", "pretrained", "extras")),
        ),
    ),
    Rule(
        "data_prep imports only data, report, the machine and words",
        room("data_prep"),
        of_the_project_only("videodiff.data", "videodiff.report", "videodiff.machine", "videodiff.words", "data_prep"),
    ),
    Rule(
        "only the pack and prep verbs import data_prep",
        outside("data_prep", "videodiff/verbs/pack.py", "videodiff/verbs/prep.py"),
        never("data_prep"),
    ),
    Rule(
        "benchmarks imports only data, metrics and the writer of clips",
        room("videodiff/benchmarks"),
        of_the_project_only(
            "videodiff.benchmarks", "videodiff.data", "videodiff.metrics", "videodiff.generation.files"
        ),
    ),
    Rule("deepspeed stays in parallel", outside("videodiff/parallel"), never("deepspeed")),
    Rule(
        "training and generation know of parallel the protocol, the processes and their launcher",
        room("videodiff/training", "videodiff/generation"),
        lambda name: (
            not within(name, "videodiff.parallel")
            or within(name, "videodiff.parallel.engine", "videodiff.parallel.ranks", "videodiff.parallel.launcher")
        ),
    ),
    Rule(
        "parallel knows of training the pieces of its state, how they are read, and what optimizers there are",
        room("videodiff/parallel"),
        of_the_project_only(
            "videodiff.parallel",
            "videodiff.data.storage",
            "videodiff.training.state.pieces",
            "videodiff.training.state.saved",
            "videodiff.training.optimizer",
            "videodiff.printing",
            "videodiff.machine",
            "videodiff.words",
        ),
    ),
    Rule(
        "what parallel knows of training knows nothing of parallel",
        room(*(f"videodiff/training/{name}.py" for name in ("state/pieces", "state/saved", "optimizer"))),
        of_the_project_only("videodiff.data.storage", "videodiff.training.state.pieces", "videodiff.words"),
    ),
    Rule(
        "generation imports neither training nor verbs",
        room("videodiff/generation", "videodiff/diffusion"),
        never("videodiff.training", "videodiff.verbs"),
    ),
    Rule(
        "hydra and omegaconf stay in cli and verbs",
        outside("videodiff/cli.py", "videodiff/verbs"),
        never("hydra", "omegaconf"),
    ),
]


def imported(source: str, path: str) -> Iterator[str]:
    """Yield the dotted name of everything a file imports, wherever in the file it does."""
    package = PurePosixPath(path).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def violations(source: str, path: str) -> list[str]:
    """Return a line for every import of a file that a rule forbids, and for a name that says nothing."""
    names, stem = set(imported(source, path)) - {"__future__.annotations"}, PurePosixPath(path).stem
    found = [(name, rule.sentence) for rule in RULES if rule.holds_for(path) for name in names if not rule.allows(name)]
    nameless = [f"{path}: the name {stem} says nothing"] if stem in NAMELESS else []
    return [f"{path} imports {name}: {sentence}" for name, sentence in sorted(found)] + nameless


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_what_its_room_may(path: str) -> None:
    assert violations((ROOT / path).read_text(), path) == []


def test_no_file_outside_of_parallel_speaks_of_deepspeed() -> None:
    """What it is called and how it works is known in one room; elsewhere it is an engine."""
    outsiders = [path for path in FILES if not path.startswith("videodiff/parallel/")]
    assert [path for path in outsiders if "deepspeed" in (ROOT / path).read_text().lower()] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.sentence)
def test_every_rule_holds_for_some_file(rule: Rule) -> None:
    assert any(rule.holds_for(path) for path in FILES)


def module_of(path: str) -> str:
    """Return the dotted name of a file; a package is its `__init__.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def edges(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return which modules each module imports, wherever in the file; sources: text by path.

    `from a.b import c` is an import of `a.b.c` where that is a module, else of `a.b`. That a module lies in a package
    is no import of the package.
    """
    modules = {module_of(path): path for path in sources}
    found = {}
    for name, path in modules.items():
        names = (one if one in modules else one.rpartition(".")[0] for one in imported(sources[path], path))
        found[name] = {one for one in names if one in modules} - {name}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or by way of others (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            found.extend([sorted(group)] * (len(group) > 1))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return sorted(found)


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circles(edges({path: (ROOT / path).read_text() for path in FILES})) == []


CIRCULAR = {
    "two": {"a/b.py": "import a.c", "a/c.py": "from a import b"},
    "inside a function": {"a/b.py": "from a.c import x", "a/c.py": "def f():\n    from a.b import y"},
    "for types only": {"a/b.py": "from .c import x", "a/c.py": "if TYPE_CHECKING:\n    from .b import y"},
    "by way of a package": {"a/__init__.py": "from a.b import x", "a/b.py": "from a.c import x", "a/c.py": "import a"},
}


@pytest.mark.parametrize("case", CIRCULAR)
def test_a_planted_circle_is_found(case: str) -> None:
    assert circles(edges(CIRCULAR[case])) == [sorted(map(module_of, CIRCULAR[case]))]


def test_files_that_share_an_import_are_no_circle() -> None:
    sources = {"a/__init__.py": "from a.b import x", "a/b.py": "from a.d import x", "a/c.py": "import a, a.d"}
    assert circles(edges(sources | {"a/d.py": "import os"})) == []


FORBIDDEN = [
    ("videodiff/denoiser/block.py", "import numpy"),
    ("videodiff/denoiser/block.py", "from videodiff.diffusion.path import Path"),
    ("videodiff/denoiser/block.py", "from videodiff import parallel"),
    ("videodiff/denoiser/block.py", "from ..training import module"),
    ("videodiff/denoiser/block.py", "def f():\n    import deepspeed"),
    ("videodiff/diffusion/path.py", "import lightning.pytorch as pl"),
    ("videodiff/diffusion/path.py", "from hydra.utils import instantiate"),
    ("videodiff/diffusion/path.py", "if True:\n    from omegaconf import DictConfig"),
    ("videodiff/data/loader/stream.py", "from videodiff.denoiser import patch"),
    ("videodiff/data/loader/stream.py", "from videodiff.codec.autoencoder import Autoencoder"),
    ("videodiff/data/samples/indexing.py", "def f():\n    from videodiff.text.transformers import T5"),
    ("videodiff/data/loader/wording.py", "from videodiff.text.words import Words"),
    ("videodiff/data/order/mixture.py", "from videodiff.planning.steps import Plan"),
    ("videodiff/planning/cost.py", "from videodiff.denoiser.transformer import Transformer"),
    ("videodiff/planning/steps.py", "import videodiff.training.module"),
    ("videodiff/worlds/scene.py", "from videodiff.data.video.decode import decode"),
    ("videodiff/worlds/scene.py", "from .. import data"),
    ("videodiff/metrics/worlds/physics.py", "from videodiff.diffusion.path import Path"),
    ("data_prep/books/ledger.py", "import videodiff.training.module"),
    ("videodiff/training/module.py", "import data_prep"),
    ("videodiff/verbs/train/command.py", "from data_prep.books.ledger import Ledger"),
    ("videodiff/training/module.py", "from omegaconf import OmegaConf"),
    ("data_prep/engine/local.py", "import hydra"),
    ("videodiff/verbs/train/command.py", "def f():\n    import deepspeed"),
    ("videodiff/training/average.py", "from deepspeed.utils import safe_get_full_optimizer_state"),
    ("videodiff/training/module.py", "from videodiff.parallel.zero.engine import ZeroEngine"),
    ("videodiff/training/module.py", "from videodiff.parallel.whole import Whole"),
    ("videodiff/parallel/whole.py", "from videodiff.training.module import VideoDiffusion"),
    ("videodiff/training/optimizer.py", "from videodiff.parallel.engine import Engine"),
    ("videodiff/generation/sampling.py", "from videodiff.training.average import averaged"),
    ("videodiff/data/utils.py", ""),
    ("data_prep/helpers.py", ""),
]


@pytest.mark.parametrize(("path", "source"), FORBIDDEN)
def test_a_planted_violation_is_caught(path: str, source: str) -> None:
    assert violations(source, path)


ALLOWED = [
    ("videodiff/denoiser/block.py", "from __future__ import annotations\nimport math\nimport torch.nn.functional as F"),
    ("videodiff/denoiser/block.py", "from .attention import SelfAttention"),
    ("videodiff/denoiser/block.py", "from collections.abc import Sequence\nfrom einops import rearrange"),
    ("videodiff/diffusion/path.py", "import numpy\nfrom torch import Tensor"),
    ("videodiff/metrics/worlds/physics.py", "from videodiff.worlds.scene import Scene"),
    ("data_prep/books/ledger.py", "from videodiff.data.samples.manifest import Manifest\nfrom data_prep import engine"),
    ("videodiff/data/loader/wording.py", "from videodiff.words import split_words"),
    ("videodiff/data/loader/settings.py", "from videodiff.planning.cost import Budget"),
    ("videodiff/planning/steps.py", "from videodiff.data.order.buckets import Bucket"),
    ("videodiff/verbs/pack.py", "import hydra\nfrom data_prep.books.ledger import Ledger"),
    ("videodiff/verbs/prep.py", "from data_prep.pipeline import prep"),
    ("videodiff/cli.py", "from omegaconf import OmegaConf"),
    ("videodiff/training/module.py", "import hydraulics\nimport lightning"),
]


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_a_lawful_import_is_not_accused(path: str, source: str) -> None:
    assert violations(source, path) == []
