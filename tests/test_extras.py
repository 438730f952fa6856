"""Every import is declared where it is needed, and a package that is missing is named with the extra that brings it."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import tiny
from tests.material.made_clips import moving_square, write_video
from videodiff.data.samples.manifest import Manifest
from videodiff.data.video.encode import encode
from videodiff.extras import distribution, extra_of, extras, missing, normal

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("videodiff", "data_prep") for path in (ROOT / room).rglob("*.py"))
# The extras whose packages a room may import.
ROOMS = {
    "videodiff/codec": {"latent"},
    "videodiff/text": {"latent"},
    "videodiff/pretrained.py": {"latent"},
    "videodiff/metrics/networks": {"latent"},
    "videodiff/metrics/motion": {"prep"},
    "videodiff/data/storage/remote.py": {"s3"},
    "data_prep": {"prep"},
    "data_prep/rate/network.py": {"latent"},
    "data_prep/caption/model.py": {"latent"},
    "data_prep/rate/models.py": {"latent"},
    "data_prep/engine/on_ray.py": {"ray"},
    "videodiff/parallel/fp8.py": {"fp8"},
}
# What is needed without an import of ours.
UNSEEN = {
    "s3fs": "fsspec takes it for s3://",
    "sentencepiece": "the tokenizers of T5 take it",
    "rapidocr": "its networks are read as files",
    "tensorboard": "Lightning's logger takes it",
    "submitit": "conf/hydra/launcher",
    "hydra-submitit-launcher": "conf/hydra/launcher",
}
EXTRAS = {
    "s3": ["botocore", "s3fs"],
    "prep": ["cv2", "scenedetect", "rapidocr", "onnxruntime", "yt_dlp", "aiohttp"],
    "latent": ["diffusers", "transformers", "sentencepiece", "huggingface_hub"],
    "track": ["tensorboard"],
    "launch": ["submitit", "hydra_plugins.hydra_submitit_launcher"],
    "ray": ["ray"],
    "fp8": ["torchao"],
}


def modules(path: Path) -> Iterator[str]:
    """Yield the top modules that are not of Python or ours and that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in {name.partition(".")[0] for name in names}:
            if name not in sys.stdlib_module_names and name not in ("videodiff", "data_prep"):
                yield name


def allowed(path: Path) -> set[str]:
    """Return the distributions that a file may import from."""
    name = path.relative_to(ROOT).as_posix()
    rooms = [room for room in ROOMS if name == room or name.startswith(f"{room}/")]
    mine = {""}.union(*(ROOMS[room] for room in rooms))
    return {normal(each) for extra in mine for each in extras()[extra]}


def test_every_import_is_declared_in_the_extra_that_its_room_needs() -> None:
    known = {module: {normal(name) for name in names} for module, names in packages_distributions().items()}
    wrong = [
        f"{path.relative_to(ROOT)}: imports {module}, which no dependency of its room declares"
        for path in FILES
        for module in modules(path)
        if not known.get(module, {normal(module)}) & allowed(path)
    ]
    assert wrong == []


def test_every_declared_package_is_imported_or_needed_in_another_way() -> None:
    known = packages_distributions()
    used = {normal(name) for path in FILES for module in modules(path) for name in known.get(module, [module])}
    declared = {normal(name) for names in extras().values() for name in names} - {"videodiff"}
    assert declared - used == set(UNSEEN)


def test_a_planted_import_is_caught(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def f():\n    import cv2.foo\nfrom torch import nn\nimport os\nfrom . import y")
    assert set(modules(tmp_path / "x.py")) == {"cv2", "torch"}
    assert "opencv-python-headless" not in allowed(ROOT / "videodiff/report/page.py")
    assert "opencv-python-headless" in allowed(ROOT / "data_prep/cut/scenes.py")


@pytest.mark.parametrize(("extra", "module"), [(extra, each) for extra, names in EXTRAS.items() for each in names])
def test_a_module_is_known_by_the_extra_that_brings_it(extra: str, module: str) -> None:
    assert extra_of(module.partition(".")[0]) == extra


def test_what_the_plain_install_brings_is_of_no_extra_and_a_strange_module_neither() -> None:
    assert [extra_of(name) for name in ("torch", "wandb", "yaml", "my_metrics")] == [None] * 4
    assert missing(ModuleNotFoundError("no", name="my_metrics")) is None
    assert distribution("opencv-python-headless>=4.10; extra == 'prep'") == "opencv-python-headless"


def test_a_missing_package_is_found_in_what_an_error_came_from() -> None:
    error = RuntimeError("Error loading")
    error.__cause__ = ModuleNotFoundError("No module named 'cv2'", name="cv2.aruco")
    assert missing(error) == "found no package cv2, expected it: pip install 'videodiff[prep]'"


# Runs one command after the other, each without the modules of one extra: importing torch anew takes seconds.
BLOCKED = """
import json, sys
from hydra.core.global_hydra import GlobalHydra
from videodiff.cli import main
for blocked, command in json.loads(sys.argv[1]):
    GlobalHydra.instance().clear()
    sys.modules.update(dict.fromkeys(blocked))
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as leave:
        print("status", leave.code, file=sys.stderr)
    for name in blocked:
        del sys.modules[name]
"""


@pytest.mark.parametrize("tried", [["prep"], ["launch", "track", "latent", "s3", "ray", "fp8"]], ids="-".join)
def test_a_missing_extra_is_one_line_that_names_it(tried: list[str], world_dataset: Path, tmp_path: Path) -> None:
    train = ["train", *tiny(world_dataset), f"run={tmp_path}/run", "trainer.max_steps=1"]
    (tmp_path / "in").mkdir()
    prep = ["prep", f"source={tmp_path}/in", f"out={tmp_path}/out"]
    commands = {
        "s3": ["inspect", "data=s3://nobody/set"],
        "prep": prep,
        "latent": [*train, "codec=sd_vae"],
        "track": [*train, "logger=[csv,tensorboard]"],
        "launch": [*train, "hydra/launcher=local", "--multirun"],
        "ray": [*prep, "engine=ray"],
        "fp8": [*train, "fp8=rowwise"],
    }
    assert set(commands) == set(EXTRAS)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, json.dumps([[EXTRAS[extra], commands[extra]] for extra in tried])],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = done.stderr.splitlines()
    assert said[1::2] == ["status 1"] * len(tried), done.stderr
    for extra, line in zip(tried, said[::2], strict=True):
        verb = commands[extra][0]
        assert re.fullmatch(rf"videodiff {verb}: error: found no package \w+, expected it: .*", line)
        assert line.endswith(f"pip install 'videodiff[{extra}]'")


def test_packing_needs_no_extra_also_where_clips_are_encoded_again(tmp_path: Path) -> None:
    for folder in ("in", "absent"):
        (tmp_path / folder).mkdir()
    clips = {"fit.mp4": encode(moving_square(12, 64, 64), 25.0)}
    clips |= {"other.avi": write_video(moving_square(12, 64, 64), "mpeg4", container="avi")}
    for name, video in clips.items():
        (tmp_path / "in" / name).write_bytes(video)
        (tmp_path / "in" / name).with_suffix(".txt").write_text("a red square")
    # Packing has processes of its own, which must not find them either.
    for name in (name for names in EXTRAS.values() for name in names if "." not in name):
        (tmp_path / "absent" / f"{name}.py").write_text(f"raise ModuleNotFoundError('absent', name={name!r})")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "absent"), str(ROOT)])}
    command = [sys.executable, "-m", "videodiff", "pack", f"source={tmp_path}/in", f"out={tmp_path}/out", "workers=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(Manifest.load(tmp_path / "out").column("key")) == ["fit", "other"]
