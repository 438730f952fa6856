"""A hostfile with a mistake is one line before any process starts; ssh, pdsh and deepspeed are stand-ins here.

tests/cluster/test_hostfile.py has the real ones.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.launch.test_submission import ROOT, program

HOSTS = "# two nodes\nnode0 slots=4\n\n  # and\nnode1\tslots=4  \n"


def started(folder: Path, hosts: str, pdsh: bool = True) -> tuple[int, list[str], list[str]]:
    """Run the script; return its exit status, the lines of its errors, and the arguments of deepspeed."""
    (folder / "hostfile").write_text(hosts)
    program(folder / "bin", "ssh", '[ "${@: -2:1}" != away ] || { echo "ssh: no route to away" >&2; exit 255; }')
    program(folder / "venv", "deepspeed", f'printf "%s\\n" "$@" >{folder}/arguments')
    if pdsh:
        program(folder / "bin", "pdsh", "true")
    for name in ("bash", "dirname", "sed", "sort", "uniq", "head", "tail", "tr", "grep", "mktemp", "rm", "env", "cat"):
        if not (folder / "bin" / name).exists():
            (folder / "bin" / name).symlink_to(f"/usr/bin/{name}")
    environment = {"PATH": f"{folder}/bin", "VIDEODIFF": f"{folder}/venv/videodiff", "TMPDIR": str(folder)}
    command = [str(ROOT / "launch/deepspeed/train.sh"), str(folder / "hostfile"), "name=a", "prompts=[a, b]"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    arguments = (folder / "arguments").read_text().splitlines() if (folder / "arguments").exists() else []
    return done.returncode, done.stderr.splitlines(), arguments


def test_the_launcher_gets_nodes_processes_and_the_command(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    status, errors, arguments = started(tmp_path, HOSTS)
    assert (status, errors) == (0, [])
    assert f"--hostfile={tmp_path}/hostfile" in arguments
    assert "--master_addr=node0" in arguments
    at = arguments.index("launch/deepspeed/process.sh")
    words = [f"{tmp_path}/venv/videodiff", "trainer.num_nodes=2", "trainer.devices=4", "name=a", "prompts=[a, b]"]
    assert arguments[at + 1 :] == words
    # DeepSpeed reads the same file in the same way.
    assert dict(fetch_hostfile(f"{tmp_path}/hostfile")) == {"node0": 4, "node1": 4}
    assert {path.name for path in tmp_path.iterdir()} == {"arguments", "bin", "hostfile", "venv"}


def test_a_node_gets_the_command_as_an_argument(tmp_path: Path) -> None:
    program(tmp_path, "videodiff", f'printf "%s\\n" "$TORCHELASTIC_RUN_ID" "$@" >{tmp_path}/words')
    command = [str(ROOT / "launch/deepspeed/process.sh"), str(tmp_path / "videodiff"), "name=a", "prompts=[a, b]"]
    subprocess.run(command, check=True, timeout=60, env={"PATH": os.environ["PATH"]})
    words = (tmp_path / "words").read_text().splitlines()
    assert words == ["deepspeed", "train", "resume=auto", "name=a", "prompts=[a, b]"]


@pytest.mark.parametrize(
    ("hosts", "told"),
    [
        ("node0 slots=4\nnode1 8\n", "line 2: found 'node1 8', expected a name and its processes: node0 slots=8"),
        ("node0 slots=0\n", "line 1: found 'node0 slots=0', expected a name and its processes: node0 slots=8"),
        ("node0 slots=4\nnode1 slots=8\n", "found slots 4 8, expected the same number in every line"),
        ("node0 slots=4\nnode0 slots=4\n", "found node0 twice, expected each node in one line: node0 slots=8"),
        ("# none\n", "found no line, expected lines like: node0 slots=8"),
        (
            "node0 slots=4\naway slots=4\n",
            "found no node away by ssh (ssh: no route to away), expected one that",
        ),
    ],
)
def test_a_mistake_in_a_hostfile_is_one_line(tmp_path: Path, hosts: str, told: str) -> None:
    status, errors, arguments = started(tmp_path, hosts)
    assert status == 1
    (line,) = errors
    assert line.startswith(f"train.sh: {tmp_path}/hostfile: {told}")
    assert not arguments


def test_without_pdsh_or_a_hostfile_one_line_says_so(tmp_path: Path) -> None:
    status, errors, arguments = started(tmp_path, HOSTS, pdsh=False)
    assert (status, len(errors), arguments) == (1, 1, [])
    assert errors[0].startswith("train.sh: found no pdsh, which DeepSpeed starts the nodes with")
    command = [str(ROOT / "launch/deepspeed/train.sh"), f"{tmp_path}/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"train.sh: found no file {tmp_path}/nowhere, expected a hostfile with lines like")
