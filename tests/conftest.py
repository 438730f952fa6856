"""What several tests need: a small dataset of a real world, and the command line in this process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.material import composing, warm
from tests.material.processes import spawned
from videodiff import cli
from videodiff.data.samples.shards import ShardWriter, clip_sample
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.scene import render

# The same examples each time: a run that fails fails again. `make soak` draws new ones, and more.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("new", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Let all processes of tests share one server, and let Hydra remember what it composed."""
    composing.remember()
    spawned.from_server()
    if getattr(config.option, "numprocesses", None):
        warm.server()


def pytest_collection_finish() -> None:
    """Spare the collector of garbage what has been imported: it would look at a million objects each time."""
    gc.freeze()


# The files that take longest, from two minutes to twenty seconds: each stays in one process, and at the end it would
# run alone.
LONGEST = (
    "parallel/test_parity.py",
    "bench/test_gpu_check.py",
    "data/encoded/test_precompute.py",
    "training/state/test_topology.py",
    "parallel/test_strategy.py",
    "parallel/test_launcher.py",
    "test_docs_commands.py",
    "data_prep/engine/test_engine.py",
    "data_prep/test_pipeline.py",
    "training/test_guard.py",
    "test_disk_full.py",
    "verbs/test_cli.py",
    "training/test_kills.py",
    "parallel/test_watchdog.py",
    "verbs/test_train_webdataset.py",
    "parallel/test_compile.py",
    "parallel/sequence/test_switch.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    place = {config.rootpath / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def world_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 24 clips of the bouncing world: 8 frames of 16 px, with their truth."""
    root, world = tmp_path_factory.mktemp("world") / "dataset", Bouncing(balls={1: 0.8, 2: 0.2}, split="all")
    with ShardWriter(root) as writer:
        for seed in range(24):
            scene = world.scene(seed)
            video = encode(render(scene, 16), scene.fps, crf=8)
            writer.add(f"{seed:04d}", *clip_sample(video, probe(video), [scene.caption], truth=scene.truth()))
    (root / "words.txt").write_text("".join(f"{word}\n" for word in world.words()))
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Return a run of four steps on every second frame of clips of 5 frames a second, without a validation set."""
    run = tmp_path_factory.mktemp("trained") / "small"
    more = ["data.stride=2", "data.frames=4", "trainer.max_steps=4", "callbacks.checkpoints.every=2"]
    more += ["callbacks.samples.every=2", "callbacks.samples.clips=3", "sampler.steps=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["videodiff", "train", *tiny(world_dataset), *more, f"run={run}"])
        GlobalHydra.instance().clear()
        cli.main()
    return run


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty folder and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `videodiff` with these arguments here: exit status, standard output and error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["videodiff", *arguments])
        GlobalHydra.instance().clear()
        status = 0
        try:
            cli.main()
        except SystemExit as leave:
            status = int(leave.code or 0)
        out = capfd.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have DeepSpeed compute in float16 on any processor: it refuses where that is slow, as without AVX-512."""
    monkeypatch.setattr("deepspeed.accelerator.cpu_accelerator.CPU_Accelerator.is_fp16_supported", lambda self: True)


def tiny(dataset: Path) -> list[str]:
    """Return the overrides of a run that takes a second: the tests' own recipe, a network of two blocks.

    It names no experiment and no option of a group, so no recipe of `conf/experiment` has a part in it, and a test may
    choose any option.
    """
    return [
        f"data.root={dataset}",
        "data.validation_root=null",
        "data.frames=8",
        "data.height=16",
        "data.width=16",
        "data.global_batch=4",
        "data.num_workers=0",
        "model.patch=[1,4,4]",
        "model.width=16",
        "model.depth=2",
        "model.heads=2",
        "text.width=16",
        "text.max_words=25",
        "objective.prediction=x",
        "optimizer.lr=3e-3",
        "optimizer.ema_decay=0.99",
        "schedule.warmup=2",
        "sampler.steps=8",
        "callbacks.samples.every=1000",
        "callbacks.checkpoints.every=1000",
    ]


def start(*arguments: str, cwd: Path, **how: Any) -> warm.Popen:
    """Start `python -m videodiff` as a process of its own, one thread, errors with standard output."""
    return warm.start([sys.executable, "-m", "videodiff", *arguments], cwd=cwd, **how)


def finish(process: warm.Popen, seconds: float = 300) -> str:
    """Wait for a process that has to succeed and return what it printed."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out[-3000:]
    return out
