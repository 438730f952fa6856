"""What a run folder says about its origin: configuration, command, versions, git state, machine."""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
import yaml

from videodiff.data.storage.address import without_secrets
from videodiff.data.storage.files import room_at, write_whole
from videodiff.machine import cores

# The name at the start of a requirement: `torch>=2.13` asks for torch.
NAME = re.compile(r"[A-Za-z0-9._-]+")


def write_record(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Write config.yaml, overrides.yaml, command.txt and environment.json, without the secrets of URLs in them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
    write_whole(folder / "overrides.yaml", yaml.safe_dump(overrides).encode())
    with room_at(folder / "command.txt"), (folder / "command.txt").open("a") as file:
        file.write(f"{shlex.join(['videodiff', *map(told, sys.argv[1:])])}\n")
    write_whole(folder / "environment.json", json.dumps(environment(), indent=1).encode())


def to_tell(value: Any) -> Any:
    """Return a configuration that may be stored and published: without the secrets of URLs, and without commands."""
    if isinstance(value, dict):
        return {key: to_tell(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_tell(part) for part in value]
    return told(value) if isinstance(value, str) else value


def told(text: str) -> str:
    """Return a text that may be stored and published; shell commands are left out, as they may hold any secret."""
    return re.sub(r"pipe:.*", "pipe:...", without_secrets(text), flags=re.DOTALL)


def environment() -> dict[str, Any]:
    """Return versions, git state and the machine as JSON values."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in packages()}},
        "git": git_state(),
        "machine": {
            "system": platform.system(),
            "processor": processor(),
            "cores": cores(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def packages() -> list[str]:
    """Return the names of this package and of all its dependencies, by the metadata of its installation."""
    try:
        needed = [NAME.match(line) for line in requires("videodiff") or () if "extra ==" not in line]
    except PackageNotFoundError:
        needed = []
    return ["videodiff", *(found.group() for found in needed if found is not None)]


def installed(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the processor's model name as Linux reports it, or else its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git_state() -> dict[str, Any] | None:
    """Return commit and changed files of the git checkout that this package runs from, None outside one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain").splitlines()}
