"""First light: every proof works on a CPU, and what goes wrong in one costs nothing else."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.material import warm

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu_check.py"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run([sys.executable, str(SCRIPT), *arguments])


def test_every_proof_holds_on_a_cpu(tmp_path: Path) -> None:
    done = check("--device", "cpu", "--tiny", "--minutes", "30", "--out", str(tmp_path))
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    failures = [failure for proof in found["proofs"] for failure in proof["failures"]]
    assert done.returncode == 0, "\n".join(failures) or done.stdout[-5000:] + done.stderr[-2000:]
    names = [proof["proof"] for proof in found["proofs"]]
    assert names == [
        *("parity", "demo", "zero", "ceilings", "speed", "step", "recipes", "encoders", "waits", "fp8", "uniform")
    ]
    for proof in found["proofs"]:
        assert proof["state"] == "held"
        assert proof["figures"], proof["proof"]
        assert json.loads((tmp_path / f"{proof['proof']}.json").read_text()) == proof
    assert found["where"]["torch"]
    recipes = {name.partition(":")[0] for name in found["proofs"][names.index("recipes")]["figures"]}
    assert recipes == {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}


def test_a_machine_without_a_gpu_is_told_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = check("--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("gpu_check: found no CUDA device; --device cpu --tiny")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_proof_that_does_not_exist_is_an_error_that_names_those_that_do(tmp_path: Path) -> None:
    done = check("--proofs", "parity,speeed", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "--proofs: found 'speeed', expected some of parity, demo," in done.stderr


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def hangs(record: object) -> None:
    record.figure("found before", 1.0)
    time.sleep(600)


def raises(record: object) -> None:
    raise RuntimeError("the first line\nthe second")


def dies(record: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def says_no(record: object) -> None:
    record.figure("found", 2.0)
    record.hold("one is two", False, "1")


WHAT = {
    "hangs": (hangs, "out of time", "not done after 10 s"),
    "raises": (raises, "failed", "RuntimeError: the first line"),
    "dies": (dies, "failed", "its process ended with -9"),
    "says_no": (says_no, "failed", "one is two: found 1"),
    "holds": (lambda record: record.figure("found", 3.0), "held", ""),
}


def run_one(
    entry: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    name: str,
    work: Callable[[object], None],
    **how: object,
) -> dict:
    proof = entry.Proof(name, "", 10, (), how.pop("gib", 0.0))
    monkeypatch.setattr(entry, "PROOFS", (proof,))
    # A fresh process, for which other threads are a reason, knows no stand-in.
    monkeypatch.setattr(entry.threading, "active_count", lambda: 1)
    monkeypatch.setitem(sys.modules, f"gpu.proofs.{name}", SimpleNamespace(run=work))
    args = argparse.Namespace(device="cpu", tiny=False, out=out, minutes=1.0, proof="", seconds=0.0, fresh=False)
    return entry.outcome(proof, args, how.pop("left", 60.0), how.pop("lacks", None))


@pytest.mark.parametrize("name", WHAT)
def test_whatever_a_proof_does_its_end_is_told_and_what_it_found_is_kept(
    entry: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    work, state, reason = WHAT[name]
    record = run_one(entry, monkeypatch, tmp_path, name, work)
    assert record["state"] == state
    assert reason in entry.line(record)
    assert len(entry.line(record).splitlines()) == 1
    assert json.loads((tmp_path / f"{name}.json").read_text()) == record
    if name in ("hangs", "says_no", "holds"):
        assert record["figures"]


def test_too_little_memory_or_time_or_a_missing_package_pass_a_proof_over(
    entry: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for how, reason in (
        ({"gib": 1e6}, "needs 1e+06 GiB, found"),
        ({"left": 9.0}, "no time left of 1 minutes"),
        ({"lacks": "av"}, "found no package av"),
    ):
        record = run_one(entry, monkeypatch, tmp_path, "holds", raises, **how)
        assert record["state"] == "passed over"
        assert reason in entry.line(record)


def test_a_missing_package_is_named_with_the_proofs_that_it_costs(
    entry: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("diffusers", "av") else find(name))
    lost = entry.missing_packages(list(entry.PROOFS))
    said = capsys.readouterr().out
    assert "found no package diffusers: passes over speed, step, recipes, encoders" in said
    assert "found no package av: passes over demo, zero, step, recipes, encoders, waits, uniform" in said
    assert lost["speed"] == "diffusers"
    assert {"av", "diffusers"} <= set(lost["step"].split(", "))
    assert not {"parity", "ceilings"} & lost.keys()


VERBS = [f"videodiff.verbs.{verb}" for verb in ("train", "sample", "evaluate", "cache", "simulate")]


def file_of(module: str) -> Path | None:
    """Return the file of a module of this project, None if it is not one."""
    places = [folder.joinpath(*module.split(".")) for folder in (ROOT, ROOT / "bench")]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


@functools.cache
def imports_of(file: Path) -> frozenset[str]:
    """Return the modules that a file imports when it is imported, those inside functions left out."""

    def named(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.Import):
                yield from (name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (node.module, *(f"{node.module}.{name.name}" for name in node.names))
            elif isinstance(node, (ast.If, ast.Try)):
                yield from named(node.body)

    return frozenset(named(ast.parse(file.read_text()).body))


def packages_of(modules: Iterable[str]) -> set[str]:
    """Return the packages of others without which modules of this project cannot be imported."""
    seen, to_read, packages = set(), list(modules), set()
    while to_read:
        module = to_read.pop()
        room = module.rpartition(".")[0]
        if module in seen:
            continue
        seen.add(module)
        if file := file_of(module):
            to_read += [*imports_of(file), *([room] if room else [])]
        elif not file_of(room) and (top := module.partition(".")[0]) not in sys.stdlib_module_names:
            packages.add(top)
    return packages - {"videodiff", "gpu", "subjects"}


def test_a_proof_names_all_packages_without_which_it_cannot_begin(entry: ModuleType) -> None:
    with_torch = {"torch", *(line.split(";")[0].split(">")[0].split("<")[0].strip() for line in requires("torch"))}
    for proof in entry.PROOFS:
        modules = [f"gpu.proofs.{proof.name}", *(VERBS if "hydra" in proof.packages else [])]
        assert packages_of(modules) - with_torch <= set(proof.packages), proof.name


def test_a_proof_ends_with_the_script_that_has_started_it(
    entry: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def tells_its_process(record: object) -> None:
        record.figure("process", os.getpid())
        time.sleep(600)

    script = os.fork()
    if not script:
        run_one(entry, monkeypatch, tmp_path, "hangs", tells_its_process)
        os._exit(1)
    figures = within(8, lambda: (tmp_path / "hangs.json").is_file() and figures_of(tmp_path / "hangs.json"))
    os.kill(script, signal.SIGKILL)
    os.waitpid(script, 0)
    try:
        stat = Path(f"/proc/{figures['process']}/stat")
        assert within(5, lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(figures["process"], signal.SIGKILL)


def figures_of(path: Path) -> dict:
    return json.loads(path.read_text())["figures"]


def within(seconds: float, found: Callable[[], object]) -> object:
    """Return what is found as soon as it is true; after so many seconds as it is."""
    end = time.monotonic() + seconds
    while not (last := found()) and time.monotonic() < end:
        time.sleep(0.05)
    return last


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return what imports a module of a proof."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    return lambda name: importlib.import_module(f"gpu.{name}")


def test_a_batch_too_large_has_left_the_memory_before_the_next_is_tried(
    proof: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed, tried, given_back = proof("proofs.speed"), [], []

    def breaks_off(made: object, inputs: dict[str, torch.Tensor]) -> None:
        result = torch.zeros(1)
        tried.append(weakref.ref(result))
        if len(inputs["z"]) > 4:
            raise torch.OutOfMemoryError("found no room")

    monkeypatch.setattr(speed, "step", breaks_off)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append([held() is None for held in tried]))
    check = SimpleNamespace(tiny=False, device=torch.device("cpu"))
    # 16 and 8 clips are too many, 4 fit; half of them are taken.
    assert speed.most_clips(check, speed.L._replace(side=4), torch.nn.Linear(1, 1)) == 2
    assert given_back == [[True], [True, True], [True, True, True]]


def test_attention_leaves_no_gradient_that_the_next_round_would_add_to(proof: Callable[[str], ModuleType]) -> None:
    q, k, v, grad = (torch.randn(1, 1, 3, 4, requires_grad=True) for _ in range(4))
    first, second = (proof("proofs.ceilings").forward_and_backward(q, k, v, grad.detach()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert q.grad is None


def test_as_many_waits_as_steps_are_counted(proof: Callable[[str], ModuleType]) -> None:
    watch = proof("watch").Watch(timed=True)
    watch.began, watch.ended = [0.0, 2.0, 5.0], [1.0, 4.0, 6.0]
    work, between = watch.waited(1)
    assert (work, between) == (2.0 + 1.0, 1.0 + 1.0)


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the proof of the recipes, which makes nothing: neither clips nor models."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    module = importlib.import_module("gpu.proofs.recipes")
    for name in ("image_autoencoder", "t5"):
        monkeypatch.setattr(module, name, lambda folder, *_: folder)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_the_clips_that_a_gpu_gets_are_as_long_and_as_large_as_the_recipe_reads_them(
    recipes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    made = []
    monkeypatch.setattr(recipes, "world_dataset", lambda folder, *how: made.append(how) or folder)
    recipes.data_of(SimpleNamespace(tiny=False, cuda=False, scratch=tmp_path), name)
    ((world, _, size),) = made
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        data = compose("train", overrides=[f"experiment={name}"]).data
    assert len(world.scene(0).position) >= data.stride * (data.frames - 1) + 1
    assert size >= max(data.height, data.width)
