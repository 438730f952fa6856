"""Hydra's launcher for Slurm: a sweep is one array of jobs, and each job is `launch/slurm/train.sbatch`.

Jobs are submitted, not waited for. Each setting is a file of words that its job reads at every start, so that a job
that is queued again goes on with the same words; nothing is pickled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

# Where each submission has a folder with the words of its jobs, and where these print.
FOLDER = Path("runs/multirun/slurm")


class SlurmLauncher(Launcher):
    """Submit every job of a sweep; `options`: those of sbatch, with _ for -; `at_once`: how many jobs run at a time."""

    def __init__(self, at_once: int | None = None, **options: Any) -> None:
        self.at_once, self.options = at_once, options

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Take what Hydra has composed."""
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit one array, and return at once."""
        from videodiff.cli import one_line_a_failure

        with one_line_a_failure(verb := str(self.config.hydra.job.config_name)):
            self.submit(verb, job_overrides, initial_job_idx)
        return [JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=None) for words in job_overrides]

    def submit(self, verb: str, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        """Write script and words of the jobs into a folder of their own, submit them, and say where they print."""
        from videodiff.printing import say

        jobs = [self.job(verb, words, initial_job_idx + i) for i, words in enumerate(job_overrides)]
        options = same_options([options for options, _ in jobs])
        folder = FOLDER / f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
        folder.mkdir(parents=True)
        for i, (_, words) in enumerate(jobs):
            (folder / str(i)).write_bytes(b"".join(word.encode() + b"\0" for word in words))
        array = f"--array=0-{len(jobs) - 1}" + (f"%{self.at_once}" if self.at_once else "")
        number = submitted(folder, [array, *options, f"--output={folder}/%A_%a.out"])
        for i, (_, words) in enumerate(jobs):
            say(f"videodiff {verb}: submitted job {number}_{i}: {' '.join(words[1:])}")
        say(f"videodiff {verb}: the jobs print into {folder}/<job>.out; squeue --job={number}, scancel {number}")

    def job(self, verb: str, overrides: Sequence[str], number: int) -> tuple[list[str], list[str]]:
        """Return the options of sbatch for one setting, and its run folder before the words of its job."""
        if verb != "train":
            raise ValueError(f"hydra/launcher=slurm: found the verb {verb}, expected train")
        config = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config.hydra.job):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        named = any(word.startswith(("name=", "run=", "resume=")) and word != "resume=auto" for word in overrides)
        if not named:
            config.name = f"{config.name}_{number}"
        words = [*overrides, *([] if named else [f"name='{config.name}'"])]
        options = {key: value for key, value in launcher.items() if key not in ("_target_", "at_once")}
        return options_of(options), [str(config.run), *words]


def options_of(settings: dict[str, Any]) -> list[str]:
    """Return settings as sbatch takes them: null leaves an option out, true is an option without a value."""
    return [
        f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
        for key, value in settings.items()
        if value is not None and value is not False
    ]


def same_options(options: Sequence[list[str]]) -> list[str]:
    """Return the options that all jobs of an array share; it is an error where they differ."""
    for i, other in enumerate(options):
        if other != options[0]:
            pairs = (options[0], other), (other, options[0])
            ours, theirs = (" ".join(sorted(set(a) - set(b))) or "nothing" for a, b in pairs)
            raise ValueError(
                f"hydra.launcher: found {ours} for setting 0 and {theirs} for setting {i}, expected the same for all "
                "jobs of an array; submit them one by one"
            )
    return options[0]


def submitted(folder: Path, options: Sequence[str]) -> str:
    """Submit an array of jobs whose words lie in a folder, and return its number."""
    program = os.environ.get("VIDEODIFF") or str(Path(sys.executable).with_name("videodiff"))
    environment = {**os.environ, "VIDEODIFF": program, "VIDEODIFF_WORDS": str(folder.absolute())}
    path = folder / "job.sbatch"
    path.write_text(with_options(script().read_text(), options))
    answered = subprocess.run(
        ["sbatch", "--parsable", str(path)], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if answered.returncode:
        said = " ".join(answered.stderr.split()).replace("sbatch: error: ", "")
        raise ValueError(f"hydra/launcher=slurm: sbatch refuses: {said}; {path} holds what it was asked for")
    return answered.stdout.strip().partition(";")[0]


def with_options(text: str, options: Sequence[str]) -> str:
    """Return the text of a script with these options in the place of the resources that it asks for itself."""
    kept = ("--requeue", "--open-mode")
    first, *lines = text.splitlines()
    lines = [line for line in lines if not line.startswith("#SBATCH") or line.split()[1].startswith(kept)]
    return "\n".join([first, *(f"#SBATCH {option}" for option in options), *lines, ""])


def script() -> Path:
    """Return the script of a job: in the package when installed, beside it in a checkout."""
    import videodiff

    package = Path(videodiff.__file__).parent
    inside = package / "launch" / "train.sbatch"
    return inside if inside.is_file() else package.parent / "launch" / "slurm" / "train.sbatch"
