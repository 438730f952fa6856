"""The files around the code agree with it: versions, pins, recipes' headers, launch scripts, README."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import videodiff
from tests.conftest import LONGEST
from videodiff.cli import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SCRIPTS = [
    ".ci/run",
    "launch/demo.sh",
    "launch/torchrun/train.sh",
    "launch/apptainer/videodiff",
    "launch/deepspeed/train.sh",
    "launch/deepspeed/process.sh",
    "launch/slurm/train.sbatch",
    "launch/slurm/prep.sbatch",
]
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
FIGURES = {"colour_accuracy": 0.97, "velocity_error_of_static": 0.3}


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [found for found in map(Requirement, lines) if found.name != project["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_readme_names_only_targets_that_the_makefile_has() -> None:
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", README))
    assert {"demo", "test"} <= named
    assert named <= makefile_targets()


def test_make_help_lists_every_target() -> None:
    # Under `make test` a make of its own would announce the folder it enters.
    command = ["make", "--no-print-directory", "help"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == makefile_targets()


def test_readme_calls_only_verbs_that_exist() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    called = {verb for block in blocks for verb in re.findall(r"^(?:\S*/)?videodiff (\w+)", block, re.MULTILINE)}
    assert {"train", "sample", "pack"} <= called
    assert called <= set(VERBS)


def test_readme_links_and_experiments_exist() -> None:
    linked = [path for path in re.findall(r"\]\(([^)#:]+)\)", README) if not path.endswith("demo.png")]
    assert linked
    missing = [path for path in linked if not (ROOT / path).exists()]
    missing += [name for name in re.findall(r"experiment=(\w+)", README) if name not in {p.stem for p in EXPERIMENTS}]
    assert missing == []


def test_changelog_has_an_entry_for_the_version_of_the_package() -> None:
    assert re.search(rf"^## \[{re.escape(videodiff.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_to_a_version_it_allows(requirement: Requirement) -> None:
    pinned = {name.lower(): version for name, version in pins().items()}
    assert requirement.specifier.contains(pinned[requirement.name.lower()])


def test_constraints_are_sorted_and_free_of_local_versions() -> None:
    names = list(pins())
    assert names == sorted(names, key=str.lower)
    assert not any("+" in version for version in pins().values())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_recipe_begins_with_its_command_hardware_time_and_result(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert lines[0] == "# @package _global_"
    for part in (rf"videodiff train .*experiment={path.stem}\b", r"^# hardware: ", r"^# time: ", r"^# result: "):
        assert re.search(part, header, re.MULTILINE), part


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_shell_script_parses_and_may_be_executed(script: str) -> None:
    checked = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.stderr == ""
    assert checked.returncode == 0
    assert os.access(ROOT / script, os.X_OK)


def check_demo(tmp_path: Path, evaluation: dict[str, object], targets: str) -> tuple[int, str]:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "config.yaml").write_text(targets)
    main, said = runpy.run_path(str(ROOT / "bench" / "check_demo.py"))["main"], io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit) as left:
        main(str(tmp_path))
    # As Python itself does: a text is printed and is status 1.
    code = left.value.code
    return (1, said.getvalue() + code) if isinstance(code, str) else (code, said.getvalue())


def test_the_demo_passes_when_every_target_is_reached(tmp_path: Path) -> None:
    code, text = check_demo(tmp_path, FIGURES, "targets: {colour_accuracy: 0.95, velocity_error_of_static: 0.5}")
    assert code == 0
    assert text.count("reached") == 2


@pytest.mark.parametrize(
    "evaluation",
    [
        FIGURES | {"colour_accuracy": 0.94},
        FIGURES | {"velocity_error_of_static": 0.51},
        FIGURES | {"colour_accuracy": None},
        FIGURES | {"colour_accuracy": float("nan")},
        FIGURES | {"colour_accuracy": 0.94, "colour_accuracy_stderr": 0.004},
        FIGURES | {"velocity_error_of_static": 0.55, "velocity_error_of_static_stderr": 0.02},
        FIGURES | {"colour_accuracy": 0.94, "colour_accuracy_stderr": float("inf")},
        {"velocity_error_of_static": 0.3},
    ],
    ids=["too low", "too high", "not measured", "not a number", "below", "above", "endless error", "absent"],
)
def test_the_demo_fails_with_one_line_for_a_missed_target(tmp_path: Path, evaluation: dict[str, object]) -> None:
    code, text = check_demo(tmp_path, evaluation, "targets: {colour_accuracy: 0.95, velocity_error_of_static: 0.5}")
    assert code == 1
    assert text.count("MISSED") == 1
    assert len(text.splitlines()) == 2


def test_a_figure_may_lie_beyond_its_target_by_twice_its_error(tmp_path: Path) -> None:
    evaluation = {"colour_accuracy": 0.94, "colour_accuracy_stderr": 0.006}
    evaluation |= {"velocity_error_of_static": 0.53, "velocity_error_of_static_stderr": 0.02}
    code, text = check_demo(tmp_path, evaluation, "targets: {colour_accuracy: 0.95, velocity_error_of_static: 0.5}")
    assert code == 0
    assert text.count("in error") == 2


@pytest.mark.parametrize(("colour", "ends"), [(0.96, True), (0.90, False)])
def test_the_whole_check_ends_where_the_demo_misses_a_target(tmp_path: Path, colour: float, ends: bool) -> None:
    # The lines of .ci/run between training the demo and building the wheel, on a run that is planted for them.
    part = (ROOT / ".ci" / "run").read_text().split('step "targets of the demo"')[1].split("\nstep ")[0]
    run = tmp_path / "runs" / "demo"
    for folder in (run, tmp_path / ".venv" / "bin"):
        folder.mkdir(parents=True)
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (run / "config.yaml").write_text("targets: {colour_accuracy: 0.95}")
    (run / "evaluation.json").write_text(json.dumps({"colour_accuracy": colour, "colour_accuracy_stderr": 0.01}))
    script = f"set -euo pipefail\n{part}\necho went on"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0, "went on" in done.stdout) == (ends, ends), done.stdout + done.stderr


def test_the_demo_fails_when_its_recipe_names_no_targets(tmp_path: Path) -> None:
    code, text = check_demo(tmp_path, FIGURES, "name: demo")
    assert code == 1
    assert "found no targets" in text


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_that_the_page_on_architecture_names_is_there_and_every_room_is_named() -> None:
    named = set(re.findall(r"`((?:videodiff|data_prep|conf|tests)/[\w./]+)`", ARCHITECTURE))
    assert len(named) > 60
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "videodiff").glob("*/__init__.py")}
    rooms |= {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "videodiff/data").glob("*/__init__.py")}
    assert [room for room in sorted(rooms - {"videodiff/data"}) if room not in named] == []


def test_the_files_that_begin_the_tests_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
