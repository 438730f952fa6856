"""What is submitted to Slurm, and when a job is queued again: programs that stand for Slurm's write down what they get.

tests/cluster has a real Slurm.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hydra_plugins.videodiff_slurm import options_of, same_options, with_options
from tests.conftest import tiny

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]


def program(folder: Path, name: str, body: str) -> None:
    """Write a program of a shell."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with an sbatch that keeps its script and says job 42."""
    folder = tmp_path / "bin"
    program(
        folder, "sbatch", f'cp "$2" {tmp_path}/script; printf "%s\\n" "$VIDEODIFF_WORDS" >{tmp_path}/words; echo 42'
    )
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(folder: Path, number: int) -> list[str]:
    """Return what the script reads for a job of the array: the run folder, and words."""
    place = Path((folder / "words").read_text().strip())
    return (place / str(number)).read_bytes().decode().split("\0")[:-1]


def test_a_sweep_is_one_array_with_the_resources_of_the_configuration(
    call: Call, slurm: Path, world_dataset: Path
) -> None:
    resources = ["hydra.launcher.partition=gpu", "+hydra.launcher.exclusive=true", "hydra.launcher.at_once=1"]
    words = [*tiny(world_dataset), "trainer.devices=8", "trainer.num_nodes=2", "data.global_batch=16", *resources]
    status, out, err = call("train", "-m", *words, "hydra/launcher=slurm", "seed=1,2,3")
    assert status == 0, err
    asked = [line.removeprefix("#SBATCH ") for line in (slurm / "script").read_text().splitlines() if "#SBATCH" in line]
    assert {"--array=0-2%1", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=gpu"} <= set(asked)
    assert {"--exclusive", "--time=24:00:00", "--signal=USR1@180", "--requeue", "--open-mode=append"} <= set(asked)
    assert len(asked) == len({option.partition("=")[0] for option in asked}), "no option twice"
    assert not [option for option in asked if "account" in option]
    for number in range(3):
        run, *rest = words_of(slurm, number)
        assert run == f"runs/run_{number}"
        assert f"seed={number + 1}" in rest
        assert rest[-1] == f"name='run_{number}'"
        assert not [word for word in rest if word.startswith("hydra")]
    assert out.count("submitted job 42_") == 3


def test_a_name_that_follows_from_the_setting_stays(call: Call, slurm: Path, world_dataset: Path) -> None:
    words = [*tiny(world_dataset), "name=lr_${optimizer.lr}", "optimizer.lr=1e-3,3e-3", "hydra/launcher=slurm"]
    status, _, err = call("train", "-m", *words)
    assert status == 0, err
    assert [words_of(slurm, number)[0] for number in (0, 1)] == ["runs/lr_0.001", "runs/lr_0.003"]


def test_settings_that_need_other_resources_are_refused(call: Call, slurm: Path, world_dataset: Path) -> None:
    words = [*tiny(world_dataset), "hydra/launcher=slurm", "trainer.devices=1,2"]
    status, _, err = call("train", "-m", *words)
    assert status == 1
    (line,) = err.splitlines()
    assert "found --gpus-per-node=1 --ntasks-per-node=1 for setting 0" in line
    assert not (slurm / "script").exists()


def test_what_slurm_refuses_is_one_line(call: Call, slurm: Path, world_dataset: Path) -> None:
    program(slurm / "bin", "sbatch", 'echo "sbatch: error: invalid partition specified: gpuu" >&2; exit 1')
    status, _, err = call("train", "-m", *tiny(world_dataset), "hydra/launcher=slurm", "hydra.launcher.partition=gpuu")
    assert status == 1
    (line,) = err.splitlines()
    assert "hydra/launcher=slurm: sbatch refuses: invalid partition specified: gpuu" in line


@pytest.mark.parametrize(
    ("flags", "path", "said"),
    [
        (["-m"], "/nowhere", "hydra/launcher=slurm: found no sbatch, expected Slurm's commands"),
        ([], None, "hydra/launcher=slurm: found no --multirun, expected it"),
    ],
    ids=["no Slurm", "no sweep"],
)
def test_what_could_not_be_submitted_is_one_line(
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    world_dataset: Path,
    flags: list[str],
    path: str | None,
    said: str,
) -> None:
    if path is not None:
        monkeypatch.setenv("PATH", path)
    status, _, err = call("train", *flags, *tiny(world_dataset), "hydra/launcher=slurm")
    assert status == 1
    (line,) = err.splitlines()
    assert said in line


def test_options_are_those_of_sbatch() -> None:
    assert options_of({"nodes": 2, "cpus_per_task": 8, "qos": None, "exclusive": True, "contiguous": False}) == [
        "--nodes=2",
        "--cpus-per-task=8",
        "--exclusive",
    ]
    assert same_options([["--nodes=2"], ["--nodes=2"]]) == ["--nodes=2"]
    with pytest.raises(ValueError, match="found nothing for setting 0 and --qos=high for setting 1"):
        same_options([["--nodes=2"], ["--nodes=2", "--qos=high"]])
    text = with_options("#!/bin/bash\n#SBATCH --nodes=1\n#SBATCH --requeue\necho\n", ["--nodes=3"])
    assert text == "#!/bin/bash\n#SBATCH --nodes=3\n#SBATCH --requeue\necho\n"


# Exit status of training, whether it has saved since it began, what Slurm says of the job; whether it is queued again.
ENDS = {
    "the end": (0, True, "RUNNING", False),
    "an error": (1, True, "RUNNING", False),
    "a signal": (75, True, "RUNNING", True),
    "a signal before the first step": (138, False, "RUNNING", True),
    "cancelled": (75, True, "COMPLETING", False),
    "a lost rank": (76, True, "RUNNING", True),
    "a killed rank": (137, True, "RUNNING", True),
    "a rank that is lost each time at the same step": (137, False, "RUNNING", False),
}


@pytest.mark.parametrize("array", [False, True], ids=["job", "array"])
@pytest.mark.parametrize("name", ENDS)
def test_a_job_is_queued_again_where_that_helps(tmp_path: Path, name: str, array: bool) -> None:
    left, saves, state, again = ENDS[name]
    save = "mkdir -p runs/a/checkpoints/step_00000020;" if saves else ""
    program(tmp_path / "bin", "srun", f'[ "$1" != --overlap ] || exit 0; printf "%s\\n" "$@" >srun; {save} exit {left}')
    program(tmp_path / "bin", "squeue", f'printf "%s\\n" "$@" >squeue; echo {state}')
    program(tmp_path / "bin", "scontrol", 'echo "$@" >scontrol')
    (tmp_path / "runs/a/checkpoints/step_00000010").mkdir(parents=True)
    environment = {
        **{"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "VIDEODIFF": "vd", "SLURM_SUBMIT_DIR": str(tmp_path)},
        **{"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8"},
    }
    if array:
        environment |= {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3", "VIDEODIFF_WORDS": str(tmp_path)}
        (tmp_path / "3").write_bytes(b"runs/a\0name=a\0prompts=[a, b]\0")
    done = subprocess.run(
        [str(ROOT / "launch/slurm/train.sbatch"), *([] if array else ["a", "prompts=[a, b]"])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (tmp_path / "scontrol").exists() == again, done.stdout + done.stderr
    assert done.returncode == (0 if again else left)
    if again:
        assert (tmp_path / "scontrol").read_text().split() == ["requeue", "6_3" if array else "7"]
    started = (tmp_path / "srun").read_text().splitlines()
    assert started[started.index("vd") :][:4] == ["vd", "train", "resume=auto", "name=a"]
    assert started[-1] == "prompts=[a, b]", "a word with a space stays one"
    assert ("trainer.devices=8" in started) == (not array)


def test_a_run_begins_and_goes_on_by_the_same_command(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_dataset: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny(world_dataset), "name=a", "resume=auto", "schedule=constant", "optimizer=adamw"]
    for steps in (2, 4):
        status, out, err = call("train", *words, f"trainer.max_steps={steps}")
        assert status == 0, err
        assert f"{steps} steps in runs/a" in out
        assert ("goes on from runs/a/checkpoints/step_00000002" in out) == (steps == 4)
    assert [path.name for path in sorted((tmp_path / "runs/a/checkpoints").iterdir())] == [
        "step_00000002",
        "step_00000004",
    ]
    assert not (tmp_path / "runs/a/attempts").exists()
    status, _, err = call("train", *words, "trainer.max_steps=5", "seed=3")
    assert status == 1
    assert "seed: found 3, expected 0" in err
