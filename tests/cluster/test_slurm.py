"""On a real Slurm of two nodes: whatever happens to a job, one run folder with one curve comes of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import tiny
from tests.material.servers.local_slurm import Slurm, slurm
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import checkpoints, latest_checkpoint, read_record, step_of, whole

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
# So many that a signal comes in time, and that two cores take them in seconds.
STEPS = 200
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10"]
RECIPE = [
    *("optimizer=adamw", "schedule=constant", "strategy=ddp", "data.num_workers=1"),
    *("trainer.log_every_n_steps=1", "callbacks.progress.every=1", "callbacks.checkpoints.every=20"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        running.environment |= {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "VIDEODIFF": str(Path(sys.executable).with_name("videodiff")),
        }
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submitted")


@pytest.fixture(scope="module")
def jobs(cluster: Slurm, folder: Path, world_dataset: Path) -> dict[str, str]:
    """Submit what does not disturb each other, send the signals, and return the numbers of the jobs by name."""
    words = [*tiny(world_dataset), *RECIPE, f"trainer.max_steps={STEPS}"]
    by_hydra = ["hydra/launcher=slurm", *("hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1")]
    alone = ["strategy=auto", "hydra.launcher.at_once=1", "optimizer.lr=1e-3,3e-3"]
    # This one saves only what it is asked for.
    rarely = [*(word for word in words if "checkpoints.every" not in word), "callbacks.checkpoints.every=100000"]
    submitted = {
        "preempted": submit(cluster, folder / "preempted", words),
        "cancelled": submit(cluster, folder / "cancelled", [*rarely, "callbacks.checkpoints.keep=0"]),
        "hydra": launch(cluster, folder / "hydra", [*words, *by_hydra, "trainer.num_nodes=2", "name=hydra"]),
        "sweep": launch(cluster, folder / "sweep", [*words, *by_hydra, *alone]),
    }

    def last(name: str) -> int:
        return max(steps_of(folder / name / "runs" / name), default=0)

    def is_some_steps_after_a_checkpoint() -> bool:
        saved = [step_of(checkpoint) for checkpoint in checkpoints(folder / "cancelled/runs/cancelled")]
        return bool(saved) and last("cancelled") >= saved[0] + 5

    # What is sent to which job, and when.
    waiting = [
        ("preempted", ["scancel", "--signal=USR1"], lambda: last("preempted") >= 25),
        ("hydra", ["scancel", "--signal=USR1"], lambda: last("hydra") >= 25),
        ("cancelled", ["scancel", "--signal=USR2"], lambda: last("cancelled") >= 25),
        ("cancelled", ["scancel"], is_some_steps_after_a_checkpoint),
    ]

    def all_sent() -> bool:
        for one in list(waiting):
            name, command, is_due = one
            if is_due():
                cluster.run(*command, submitted[name])
                waiting.remove(one)
        return not waiting

    cluster.wait(all_sent, 180, "step 25 of all runs, and a checkpoint of the one that was asked for it")
    return submitted


def submit(cluster: Slurm, folder: Path, words: list[str]) -> str:
    """Submit a run of two nodes by the script, named as its folder, and return the job's number."""
    folder.mkdir()
    return cluster.run("sbatch", "--parsable", *TWO_NODES, str(SCRIPT), folder.name, *words, cwd=folder)


def launch(cluster: Slurm, folder: Path, words: list[str]) -> str:
    """Submit runs by Hydra and return the number of the array."""
    folder.mkdir()
    out = cluster.run(sys.executable, "-m", "videodiff", "train", "--multirun", *words, cwd=folder)
    (number,) = set(re.findall(r"submitted job (\d+)_\d+", out))
    return number


def steps_of(run: Path) -> list[int]:
    """Return the steps of the curve of the loss."""
    try:
        return read_run(run).metrics["train/loss"][0].astype(int).tolist()
    except (FileNotFoundError, KeyError):
        return []


def printed(folder: Path) -> str:
    """Return what the jobs have printed."""
    return "".join(path.read_text() for path in sorted(folder.rglob("*.out")))


def wait_for_steps(cluster: Slurm, run: Path, job: str, least: int) -> None:
    """Wait until a run has logged so many steps."""

    def there() -> bool:
        assert cluster.state(job) in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING"), printed(run.parents[1])
        return max(steps_of(run), default=0) >= least

    cluster.wait(there, 180, f"step {least} of {run}")


def completes(cluster: Slurm, job: str, folder: Path) -> None:
    """Wait until a job has come to its end by itself."""
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
    assert cluster.state(job) == "COMPLETED", printed(folder)


def check_whole(folder: Path, *names: str) -> None:
    """Hold that each run has one folder with the whole curve, and that it came to its end."""
    found = {path.name for path in (folder / "runs").iterdir() if path.name != "multirun"}
    assert found == set(names), printed(folder)
    for name in names:
        run = folder / "runs" / name
        assert steps_of(run) == list(range(1, STEPS + 1)), printed(folder)
        assert checkpoints(run)[-1].name == f"step_{STEPS:08d}"
        assert not (run / "attempts").exists()
        assert not [path for path in folder.iterdir() if path.name not in ("runs",) and path.suffix != ".out"]


@pytest.mark.parametrize("name", ["preempted", "hydra"])
def test_a_job_that_is_preempted_is_queued_again_and_goes_on(
    cluster: Slurm, folder: Path, jobs: dict[str, str], name: str
) -> None:
    run = folder / name / "runs" / name
    completes(cluster, jobs[name], folder / name)
    check_whole(folder / name, name)
    said = printed(folder / name)
    assert said.count("saving, then stopping") == said.count("exit status 75, queued again") == 1, said
    halves = sorted((run / "metrics").glob("version_*/metrics.csv"))
    assert len(halves) == 2
    assert 25 <= len(halves[0].read_text().splitlines()) - 1 < STEPS


def test_a_job_that_is_cancelled_ends_for_good_with_a_checkpoint(
    cluster: Slurm, folder: Path, jobs: dict[str, str]
) -> None:
    run = folder / "cancelled/runs/cancelled"
    cluster.wait(lambda: not left_of(run), 40, "end of the processes")
    assert 20 <= int(latest_checkpoint(run).name.partition("_")[2]) < STEPS
    assert cluster.state(jobs["cancelled"]) == "CANCELLED", "it must not be queued again"


def test_a_signal_asks_for_a_checkpoint_of_both_nodes_and_the_job_goes_on(folder: Path, jobs: dict[str, str]) -> None:
    """The job is the one that is cancelled later."""
    run, said = folder / "cancelled/runs/cancelled", printed(folder / "cancelled")
    # Slurm tells one node after the other, so the second may ask again at a later step.
    asked = [int(step) for step in re.findall(r"step (\d+): SIGUSR2: a checkpoint is saved, training goes on", said)]
    assert len(asked) in (1, 2), said
    saved, *_ = checkpoints(run)
    assert 25 <= asked[0] < step_of(saved) <= asked[0] + 2
    assert read_record(whole(saved))["processes"] == 2
    assert max(steps_of(run)) >= step_of(saved) + 5, "it went on"
    assert "queued again" not in said


def left_of(run: Path) -> list[str]:
    """Return the commands of processes that still work for a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if path.resolve() == run.parents[1]:
                found.append((path.parent / "cmdline").read_text())
    return found


def test_a_sweep_is_an_array_and_each_setting_has_a_run_of_its_own(
    cluster: Slurm, folder: Path, jobs: dict[str, str]
) -> None:
    completes(cluster, jobs["sweep"], folder / "sweep")
    check_whole(folder / "sweep", "run_0", "run_1")
    rates = [read_run(folder / f"sweep/runs/run_{n}").metrics["train/lr"][1][-1] for n in (0, 1)]
    assert rates == pytest.approx([1e-3, 3e-3])


def test_a_job_whose_node_vanishes_goes_on_when_the_node_is_back(
    cluster: Slurm, folder: Path, world_dataset: Path
) -> None:
    words = [*tiny(world_dataset), *RECIPE, f"trainer.max_steps={STEPS}"]
    job, run = submit(cluster, folder / "lost", words), folder / "lost/runs/lost"
    wait_for_steps(cluster, run, job, 25)
    cluster.kill_node("n2")
    cluster.wait_for(job, "PENDING")
    cluster.start_node("n2")
    completes(cluster, job, folder / "lost")
    check_whole(folder / "lost", "lost")


def by_srun(cluster: Slurm, folder: Path, *words: str, **more: str) -> tuple[int, list[str]]:
    """Run a verb on both nodes; return exit status and lines."""
    environment = {key: value for key, value in cluster.environment.items() if key != "MASTER_ADDR"} | more
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", "--wait=60", sys.executable, "-m", "videodiff", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_the_doctor_looks_at_both_nodes(cluster: Slurm, tmp_path: Path) -> None:
    words = ["doctor", "mib=4", "gib=0", "gb_per_s=0", f"folder={tmp_path}"]
    status, lines = by_srun(cluster, tmp_path, *words, MASTER_ADDR="127.0.0.1")
    assert status == 0, lines
    said = "\n".join(lines)
    assert "variables: started by Slurm: process 0 of 2" in said
    assert "meeting: 2 processes on 1 host" in said, "both nodes are this machine"
    assert re.search(r"all-reduce: \d+\.\d\d GB/s for each process \(gloo, 4 MiB", said)


def test_a_first_node_without_an_address_is_one_line_in_training(
    cluster: Slurm, tmp_path: Path, world_dataset: Path
) -> None:
    words = ["train", *tiny(world_dataset), *RECIPE, "trainer.num_nodes=2"]
    status, lines = by_srun(cluster, tmp_path, *words)
    assert status == 1
    (line,) = [line for line in lines if line.startswith("videodiff train: error: ")]
    assert line.startswith("videodiff train: error: MASTER_ADDR (SLURM_NODELIST): found 'n1' (")
    assert not [line for line in lines if "socket" in line], lines
