"""The recipes of images: linted, and all that they name is there. No engine that builds them runs here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from videodiff.parallel.zero.nvme import KERNELS

ROOT = Path(__file__).parents[2]
DOCKER, APPTAINER = (ROOT / "Dockerfile").read_text(), (ROOT / "launch/apptainer/videodiff.def").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands(text: str) -> list[str]:
    """Return the commands of a recipe, a line each."""
    return re.sub(r"\\\n\s*", "", text).replace("&&", "\n").splitlines()


def test_the_dockerfile_has_nothing_that_hadolint_warns_of() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_hadolint_would_warn(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(re.sub(r"# hadolint ignore=.*\n", "", DOCKER))
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert "DL3008" in done.stdout


def test_everything_that_the_image_copies_is_in_its_context() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKER, re.MULTILINE)
    sources = {name for names in copied for name in names.split()}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == kept
    assert [name for name in sources if not (ROOT / name).exists()] == []


def test_both_recipes_take_the_same_files_for_what_the_wheel_is_built_from() -> None:
    section = APPTAINER.partition("%files\n")[2].partition("\n%")[0]
    pairs = [line.split() for line in section.splitlines() if line.strip()]
    assert all(destination == f"/src/{source}" for source, destination in pairs)
    copied = {
        name for names in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKER, re.MULTILINE) for name in names.split()
    }
    assert {source for source, _ in pairs} == copied
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*build["packages"], *build["force-include"], PROJECT["readme"], *PROJECT["license-files"]}
    assert [name for name in needed if not any(name == have or name.startswith(f"{have}/") for have in copied)] == []


@pytest.mark.parametrize("text", [DOCKER, APPTAINER], ids=["docker", "apptainer"])
def test_every_installation_is_pinned_and_asks_for_what_there_is(text: str) -> None:
    lines = [line.partition("pip install ")[2] for line in commands(text) if "pip install " in line]
    assert len(lines) == 3
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for line in lines:
        words = line.replace('"', "").split()
        assert words[:2] == ["-c", "constraints.txt"]
        for word in words[2:]:
            if word.startswith(".["):
                assert set(word[2:-1].split(",")) <= set(PROJECT["optional-dependencies"])
            elif not word.startswith("-"):
                assert Requirement(word).name.lower() in pinned, word


def test_both_recipes_stand_on_the_same_image_and_install_the_same_libraries() -> None:
    (runtime,) = re.findall(r"^FROM (\S+-runtime-\S+)$", DOCKER, re.MULTILINE)
    assert f"From: {runtime}\n" in APPTAINER
    assert DOCKER.startswith("#")
    builder = re.search(r"^FROM (\S+) AS build$", DOCKER, re.MULTILINE)[1]
    assert builder.replace("-devel-", "-runtime-") == runtime, "compiled by the CUDA that it runs with"
    libraries = {"ibverbs-providers", "libibverbs1", "librdmacm1t64", "libaio1t64"}
    final = DOCKER.partition(f"FROM {runtime}")[2]
    assert libraries <= set(re.findall(r"[\w.+-]+", final)) & set(re.findall(r"[\w.+-]+", APPTAINER))


def test_the_kernels_that_a_disk_needs_are_compiled_where_there_is_a_compiler() -> None:
    build, _, final = DOCKER.partition("-runtime-")
    assert "g++" in build
    assert "g++" not in final
    for name in KERNELS:
        builder = builder_of(name)
        assert f"{builder.BUILD_VAR}=1" in build, name


def builder_of(name: str) -> Any:
    """Return what builds a kernel of DeepSpeed."""
    from deepspeed.ops.op_builder import AsyncIOBuilder, PinMemoryBuilder

    return next(builder for builder in (AsyncIOBuilder, PinMemoryBuilder) if name == builder.NAME)


def test_the_image_runs_the_command_of_the_package_and_not_as_root() -> None:
    entry = re.search(r'^ENTRYPOINT \["(\w+)"\]', DOCKER, re.MULTILINE)[1]
    assert entry in PROJECT["scripts"]
    assert re.findall(r"^USER (\d+)$", DOCKER, re.MULTILINE)[-1] != "0"
    assert f'exec {entry} "$@"' in APPTAINER
    assert "COPY --from=build /opt/venv /opt/venv" in DOCKER
    assert DOCKER.count("PATH=/opt/venv/bin:$PATH") == 2, "in both stages"


def test_the_versions_of_python_in_the_images_are_ones_that_the_project_supports() -> None:
    for text in (DOCKER, APPTAINER):
        assert set(re.findall(r"python(3\.\d+)", text)) == {"3.12"}
    assert PROJECT["requires-python"] == ">=3.11"
