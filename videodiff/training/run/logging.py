"""What loggers need beside numbers: the configuration, sampled clips to show, and a tracker that never ends a run.

A file of `conf/logger` names one of Lightning's loggers, or a class of your own. A logger that can show clips has a
method `show_clips(step, videos, clips, labels)`; other loggers get numbers and the configuration only.
"""

from __future__ import annotations

import re
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

# Seconds within which a server must answer, must accept a new run, and must have received a run after training.
ANSWER_S, START_S, UPLOAD_S = 10.0, 30.0, 300.0
# How wandb names the folder of a run: its time of start, its id, and a number if it began twice within a second.
BEGUN = re.compile(r"(?:offline-)?run-([0-9]{8}_[0-9]{6})-([A-Za-z0-9_]+)(?:-[0-9]+)?")


class RunTracker(WandbLogger):
    """Weights & Biases; offline if its server cannot accept the run, because a tracker must not stop training.

    `WANDB_MODE`, `WANDB_BASE_URL`, `WANDB_API_KEY` and wandb's other variables and settings apply.
    """

    failed = False

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

        mode, reason = usable_mode()
        settings = wandb.Settings(init_timeout=START_S, finish_timeout=UPLOAD_S, silent=bool(reason))
        self._wandb_init["settings"] = settings
        self._wandb_init.pop("anonymous", None)
        try:
            self._wandb_init["mode"] = mode
            run = super().experiment
        except (wandb.errors.Error, TimeoutError) as error:
            # Otherwise the refused run would occupy the id.
            wandb.teardown()
            reason, self._wandb_init["mode"] = first_line(error), "offline"
            run = super().experiment
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
        super().__init__(save_dir, name, **options)

    def show_clips(self, step: int, videos: Sequence[Path], clips: Sequence[np.ndarray], labels: Sequence[str]) -> None:
        """Show the frames of each clip as images."""
        for path, frames in zip(videos, clips, strict=True):
            self.experiment.add_images(f"samples/{path.stem}", frames, step, dataformats="NHWC")


def wandb_logger(project: str, name: str, save_dir: str, **options: Any) -> RunTracker:
    """Return a Weights & Biases logger for the run in a folder; a resumed run keeps its id."""
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    id = earlier_id(Path(save_dir)) or secrets.token_hex(4)
    return RunTracker(project=project, name=name, save_dir=save_dir, id=id, **options)


def usable_mode() -> tuple[str, str]:
    """Return the mode in which wandb works here, and the reason if it is offline unasked."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode != "online":
        return settings.mode, ""
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
    """Return wandb's id of the run in this folder, None if it has none yet."""
    begun = [found.groups() for path in (folder / "wandb").glob("*") if (found := BEGUN.fullmatch(path.name))]
    return max(begun)[1] if begun else None


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
