"""What loggers need beside numbers: the configuration, sampled clips to show, and a tracker that never ends a run.

A file of `conf/logger` names one of Lightning's loggers, or a class of your own. A logger that can show clips has a
method `show_clips(step, videos, clips, labels)`; other loggers get numbers and the configuration only.
"""

from __future__ import annotations

import difflib
import inspect
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import requests
from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from tqdm import tqdm

from videodiff import printing
from videodiff.data.storage.causes import first_line
from videodiff.data.storage.files import write_whole

# Seconds within which a server must answer, must accept a new run, and must have received a run after training.
ANSWER_S, START_S, UPLOAD_S = 10.0, 30.0, 300.0
# Settings of Lightning's logger that would have no effect here, with what to use.
IDLE = {
    "log_model": "callbacks.checkpoints.mirror= copies checkpoints to an object store",
    "dir": "save_dir= decides it",
}
# The file of a run folder with wandb's id of the run.
IDENTITY = "wandb.json"
# Settings of wandb with an argument of their own, which would come before them.
ARGUMENTS = {"project": "project", "run_name": "name", "run_id": "id", "mode": "mode"}


class RunTracker(WandbLogger):
    """Weights & Biases; offline if its server cannot accept the run, because a tracker must not stop training.

    `WANDB_MODE`, `WANDB_BASE_URL`, `WANDB_API_KEY` and wandb's other variables and settings apply. An argument comes
    before them, but for `name`, which every run has.
    """

    failed = False

    def __init__(self, project: str | None, mode: str | None, settings: dict[str, Any], **options: Any):
        self.mode, self.settings = mode, settings
        super().__init__(project=project, **options)
        # Lightning has its own project where there is none.
        self._wandb_init["project"] = project

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return wandb's run, which the first call starts; if it cannot start, something that takes every call."""
        if self._experiment is None:
            self.kept(self.begin)
        return super().experiment if self._experiment is not None else _DummyExperiment()

    def begin(self) -> None:
        """Start wandb's run."""
        import wandb

        init, own = self._wandb_init, wandb.setup().settings
        init["project"] = init["project"] or own.project or "videodiff"
        init["name"] = own.run_name or init["name"]
        init["id"] = init["id"] or own.run_id or earlier_id(Path(self.save_dir)) or secrets.token_hex(4)
        init["mode"], reason = usable_mode(self.mode)
        quiet = {"silent": True} if reason else {}
        limits = {"init_timeout": START_S, "finish_timeout": UPLOAD_S}
        init["settings"] = wandb.Settings(**limits | quiet | self.settings)
        init.pop("anonymous", None)
        try:
            run = super().experiment
        except (wandb.errors.Error, TimeoutError) as error:
            # Otherwise the refused run would occupy the id.
            wandb.teardown()
            reason, init["mode"] = first_line(error), "offline"
            run = super().experiment
        write_whole(Path(self.save_dir) / IDENTITY, json.dumps({"id": run.id}).encode())
        if reason:
            print(f"wandb: {reason}; the run is kept offline, `wandb sync {run.settings.sync_dir}` uploads it")

    def kept(self, call: Callable[[], None]) -> None:
        """Call the tracker; if it fails, print that once and let training go on without it."""
        if self.failed:
            return
        try:
            call()
        except Exception as error:
            # The call may be within another one.
            if not self.failed:
                print(f"wandb: {type(error).__name__}: {first_line(error)}; training goes on without it")
            self.failed = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures of a step."""
        self.kept(lambda: super(RunTracker, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: dict[str, Any] | Any) -> None:
        """Log the configuration."""
        self.kept(lambda: super(RunTracker, self).log_hyperparams(params))

    def show_clips(self, step: int, videos: Sequence[Path], clips: Sequence[np.ndarray], labels: Sequence[str]) -> None:
        """Show clips as videos."""
        formats = ["mp4"] * len(videos)
        paths = [str(path) for path in videos]
        self.kept(lambda: self.log_video("samples", paths, step=step, caption=list(labels), format=formats))

    def finalize(self, status: str) -> None:
        """End wandb's run, so that the next training in this process starts a new one."""
        self.kept(lambda: super(RunTracker, self).finalize(status))
        if self._experiment is not None:
            self.kept(lambda: self._experiment.finish(exit_code=int(status != "success")))
            self._experiment = None


class Board(TensorBoardLogger):
    """TensorBoard with sampled clips, frame by frame."""

    def __init__(self, save_dir: str | Path, name: str | None = "lightning_logs", **options: Any) -> None:
        if find_spec("tensorboard") is None:
            raise ModuleNotFoundError("logger=tensorboard: found no package tensorboard", name="tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        check_names("tensorboard", options, SummaryWriter, TensorBoardLogger.__init__)
        super().__init__(save_dir, name, **options)

    def show_clips(self, step: int, videos: Sequence[Path], clips: Sequence[np.ndarray], labels: Sequence[str]) -> None:
        """Show the frames of each clip as images."""
        for path, frames in zip(videos, clips, strict=True):
            self.experiment.add_images(f"samples/{path.stem}", frames, step, dataformats="NHWC")


def wandb_logger(
    project: str | None,
    name: str,
    save_dir: str,
    id: str | None = None,
    mode: str | None = None,
    **options: Any,
) -> RunTracker:
    """Return a Weights & Biases logger for the run in a folder; a resumed run keeps its id.

    options: further arguments of `wandb.init` and of Lightning's logger; `settings` is a mapping.
    """
    # Lightning's own way would write into the environment, for the trainings after this one too.
    offline = options.pop("offline", False)
    mode = mode or ("offline" if offline else None)
    settings = dict(options.pop("settings", None) or {})
    check_options(options)
    check_settings(settings, mode)
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return RunTracker(project, mode, settings, name=name, save_dir=save_dir, id=id, **options)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise for an argument that neither wandb nor Lightning's logger has, or that would have no effect."""
    import wandb

    for name, advice in IDLE.items():
        if options.get(name):
            raise ValueError(f"{name}: found {options[name]!r}, which would have no effect: {advice}")
    check_names("wandb", options, wandb.init, WandbLogger.__init__)


def check_settings(settings: Mapping[str, Any], mode: str | None) -> None:
    """Raise for a setting, or a mode, that wandb does not have, and for a setting that has an argument of its own."""
    import wandb

    for name, argument in ARGUMENTS.items():
        if name in settings:
            raise ValueError(f"settings.{name}: found {settings[name]!r}, expected it as {argument}=")
    try:
        wandb.Settings(**settings, **({"mode": mode} if mode else {}))
    except ValueError as error:
        # The first line counts the faults, the next two are the first one.
        place, *reason = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ValueError(f"settings.{place}: {' '.join(reason)}, expected a setting of wandb.Settings") from error


def check_names(package: str, options: Mapping[str, Any], *parts: Callable[..., Any]) -> None:
    """Raise for an argument that none of these functions of a package has."""
    known = set().union(*(inspect.signature(part).parameters for part in parts)) - {"self", "kwargs"}
    for name in options.keys() - known:
        near = difflib.get_close_matches(name, known, n=1)
        expected = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(known))}"
        raise ValueError(f"found no argument {name!r} of {package}; {expected}")


def usable_mode(asked: str | None = None) -> tuple[str, str]:
    """Return the mode in which wandb works here, and the reason if it is offline unasked."""
    import wandb

    settings = wandb.setup().settings
    if (mode := asked or settings.mode) != "online":
        return mode, ""
    try:
        if not wandb.login(prompt=False, verify=False):
            return "offline", f"found no key for {settings.base_url} (`wandb login` or WANDB_API_KEY)"
        # wandb itself tries for minutes to reach a host that does not exist.
        requests.head(settings.base_url, timeout=ANSWER_S)
        wandb.login(prompt=False, verify=True)
    except requests.RequestException as error:
        return "offline", f"{settings.base_url} does not answer ({type(error).__name__})"
    except (wandb.errors.Error, TimeoutError, ValueError) as error:
        return "offline", first_line(error)
    return "online", ""


def earlier_id(folder: Path) -> str | None:
    """Return wandb's id of the run in this folder, None if it has none yet; ValueError if its file holds none.

    The folder comes back with it from a mirror, without wandb's own files.
    """
    path = folder / IDENTITY
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())["id"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str) or not found:
        raise ValueError(f'{path}: found no id, expected {{"id": "..."}}; remove the file to begin a new run of wandb')
    return found


def check_tables(loggers: Sequence[Logger]) -> None:
    """Raise if a logger would delete the table of an earlier attempt, as Lightning's does for one of its version."""
    for logger in loggers:
        table = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
        if table and table.exists():
            raise ValueError(
                f"{table}: found the curves of an earlier attempt, which this one would delete, expected another "
                "logger.csv.version, or null: each attempt then has a table of its own"
            )


def log_configuration(loggers: Sequence[Logger], config: dict[str, Any]) -> None:
    """Give every logger the configuration of the run."""
    for logger in loggers:
        logger.log_hyperparams(config)


def log_figures(trainer: Any, figures: dict[str, float]) -> None:
    """Give figures to all loggers, at the number of steps taken; a full disk is an error that names the table."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        try:
            logger.log_metrics(figures, step=trainer.global_step)
            if isinstance(logger, CSVLogger):
                # Flush: what is not on the disk is lost if the process dies.
                logger.save()
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(logger.log_dir)) from error


def show_clips(
    logger: Logger, step: int, videos: Sequence[Path], clips: Sequence[np.ndarray], labels: Sequence[str]
) -> None:
    """Show clips by a logger that can: mp4 files, and their frames uint8 `t h w c`."""
    show = getattr(logger, "show_clips", None)
    if show is not None:
        show(step, videos, clips, labels)


def say(line: str) -> None:
    """Print a line to standard error, past the progress bar where there is one."""
    with tqdm.external_write_mode(file=sys.stderr):
        printing.say(line, sys.stderr)
