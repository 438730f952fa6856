"""Checkpoints: one folder a step, complete or absent.

    checkpoints/step_00000500/
        state/                everything that training needs to go on, on any number of processes: see `saving.py`
        average.safetensors   the averaged weights by name: all that sampling needs, whatever the strategy was
        checkpoint.json       the step, and size and sha256 of every file, written last

The folder is written under a temporary name and renamed when its last byte is on the disk. Checksums are computed while
bytes are written, and compared before a file is read. A damaged checkpoint stays, with the reason in `damaged.txt`; it
does not count among the checkpoints to keep.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from videodiff.data.storage.files import inside, partial_of, sha256_of, sync, write_whole
from videodiff.printing import say
from videodiff.training.state.files import Written
from videodiff.training.state.saved import difference
from videodiff.words import count_text

AVERAGE, STATE, RECORD, DAMAGED = "average.safetensors", "state", "checkpoint.json", "damaged.txt"
# PROGRESS lies in STATE. Since version 3 the state consists of pieces; before, it was one torch file, or under ZeRO a
# folder of torch files, with the name OLD_STATE.
PROGRESS, OLD_STATE = "progress.json", "state.ckpt"
VERSION = 3
NAME = re.compile(r"step_\d{8,}")


class CheckpointError(ValueError):
    """A checkpoint that is not whole, or that must not be written."""


def put_in_place(partial: Path, final: Path) -> None:
    """Give a checkpoint its name; an earlier checkpoint of the same step is removed, unless it is damaged."""
    before = None
    if final.exists():
        before = aside(final, "damaged") if is_damaged(final) else partial_of(final)
        os.replace(final, before)
    os.replace(partial, final)
    sync(final.parent)
    if before is not None and before.name.endswith(".partial"):
        shutil.rmtree(before)


def aside(checkpoint: Path, why: str) -> Path:
    """Return a free name for a checkpoint that is kept but that training must not resume from."""
    names = (checkpoint.with_name(f"{checkpoint.name}.{why}{'' if n == 0 else n}") for n in range(10**6))
    return next(name for name in names if not name.exists())


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    folder = inside(run, "checkpoints")
    found = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(checkpoint.name.partition("_")[2].partition(".")[0])


def latest_checkpoint(run: Path, part: str | None = None, hashed: bool = True) -> Path:
    """Return the newest checkpoint of a run that is whole, or whose `part` is whole; report damaged newer ones.

    It is an error if there is none. See `whole`.
    """
    found, damaged = checkpoints(run), []
    if not found:
        raise FileNotFoundError(f"{run}: found no checkpoint, expected {run / 'checkpoints' / 'step_*'}")
    for checkpoint in reversed(found):
        try:
            whole(checkpoint, part, hashed)
        except ValueError as error:
            damaged.append((checkpoint, error))
        else:
            for other, why in damaged:
                lost = step_of(other) - step_of(checkpoint)
                say(
                    f"{why}; going on from {checkpoint.name}: {count_text(lost, 'step is', 'steps are')} lost",
                    sys.stderr,
                )
            return checkpoint
    raise CheckpointError(f"{damaged[0][1]}; no other checkpoint of {run} is whole")


def whole(checkpoint: Path, part: str | None = None, hashed: bool = True) -> Path:
    """Return the checkpoint if every file agrees with the record, else raise CheckpointError.

    With `part`, AVERAGE or STATE, only these files are read; if not `hashed`, none is, and only sizes are compared.
    """
    files = read_record(checkpoint)["files"]
    for expected in (AVERAGE, STATE):
        if part in (None, expected) and not of(files, expected):
            raise CheckpointError(f"{checkpoint / RECORD}: found no {expected} in the list of files, expected it")
    chosen = files if part is None else of(files, part)
    with ThreadPoolExecutor(4) as pool:
        problems = pool.map(lambda name: problem_of(checkpoint, name, files[name], hashed), chosen)
    for problem in filter(None, problems):
        raise CheckpointError(problem)
    return checkpoint


def of(files: Iterable[str], part: str) -> list[str]:
    """Return the names of the files that belong to this part."""
    parts = (STATE, OLD_STATE) if part == STATE else (part,)
    return [name for name in files if name.partition("/")[0] in parts]


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Return checkpoint.json with known keys, sizes and checksums; the first version had no checksums."""
    path = checkpoint / RECORD
    try:
        record = json.loads(inside(checkpoint, RECORD).read_text())
        version, step, state = int(record["version"]), int(record["step"]), str(record["state"])
        processes = int(record["processes"]) if version > 2 else 1
        if version > VERSION:
            raise CheckpointError(f"{path}: found version {version}, expected at most {VERSION}: of a newer videodiff")
        files = {
            str(name): Written(int(file), "") if version == 1 else Written(int(file["bytes"]), str(file["sha256"]))
            for name, file in record["files"].items()
        }
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint}: found no readable checkpoint.json ({error}), expected one") from error
    return {"version": version, "step": step, "state": state, "processes": processes, "files": files}


def problem_of(checkpoint: Path, name: str, expected: Written, hashed: bool = True) -> str | None:
    """Return the fault of a file of a checkpoint, None if it has none: a wrong size or, if `hashed`, checksum."""
    try:
        path = inside(checkpoint, name)
        there = path.stat().st_size if path.is_file() else None
        if there != expected.bytes:
            found = "no file" if there is None else f"{there} bytes"
            return f"{path}: found {found}, expected {expected.bytes} bytes"
        if hashed and expected.sha256 and (found := sha256_of(path)) != expected.sha256:
            return f"{path}: found a damaged file (sha256 {found[:12]}), expected {expected.sha256[:12]}"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def load_average(checkpoint: Path, module: nn.Module) -> nn.Module:
    """Load the averaged weights into the trainable parameters of `module`; every name and shape must agree."""
    path = inside(checkpoint, AVERAGE)
    saved = read_average(checkpoint)
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    shapes = [{name: tuple(value.shape) for name, value in weights.items()} for weights in (saved, wanted)]
    if line := difference(*shapes):
        raise ValueError(f"{path}: {line}; the checkpoint is of another model configuration")
    with torch.no_grad():
        for name, p in wanted.items():
            p.copy_(saved[name])
    return module


def read_average(checkpoint: Path) -> dict[str, Tensor]:
    """Return the averaged weights by name; a weight that is not finite is an error."""
    path = inside(checkpoint, AVERAGE)
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: found a damaged file ({error}), expected averaged weights") from error
    for name, value in saved.items():
        if value.is_floating_point() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise CheckpointError(
                f"{path}: weight {name}: found {count:,} of {count_text(value.numel(), 'value')} that are not finite, "
                "expected numbers; use an older checkpoint"
            )
    return saved


def choose_checkpoint(run: Path, chosen: str | None, hashed: bool = True) -> Path:
    """Return the checkpoint to resume from: the newest one with a whole state, or the chosen one.

    A damaged average is reported and does no harm, because the state holds the averages too. If not `hashed`, checksums
    are compared later, each file by one process; see `verifying.py`.
    """
    if chosen is None:
        checkpoint = latest_checkpoint(run, STATE, hashed)
    else:
        checkpoint = Path(chosen)
        if not checkpoint.is_dir() and (run / "checkpoints" / chosen).is_dir():
            checkpoint = run / "checkpoints" / chosen
        if checkpoint.resolve() not in [path.resolve() for path in checkpoints(run)]:
            raise FileNotFoundError(
                f"checkpoint: found {chosen}, expected one of {run / 'checkpoints'}: "
                f"{', '.join(path.name for path in checkpoints(run)) or 'which has none'}"
            )
        whole(checkpoint, STATE, hashed)
    try:
        whole(checkpoint, AVERAGE, hashed)
    except CheckpointError as error:
        say(f"{error}; training does not read it", sys.stderr)
    return checkpoint


def find_checkpoint(run: Path, chosen: str) -> Path:
    """Return a chosen checkpoint: a folder, or the name of one of the run."""
    for place in (Path(chosen), run / "checkpoints" / chosen):
        if (place / RECORD).is_file():
            return place
    raise FileNotFoundError(
        f"checkpoint: found no {RECORD} in {chosen}, expected one of {run / 'checkpoints'}: "
        f"{', '.join(path.name for path in checkpoints(run)) or 'which has none'}"
    )


def leave_behind(run: Path, checkpoint: Path) -> None:
    """Mark damaged checkpoints that are newer than the one to resume from, and put whole newer ones aside.

    Otherwise the next resume would take the newest one, which belongs to the training that was given up.
    """
    for other in checkpoints(run):
        if step_of(other) > step_of(checkpoint):
            try:
                whole(other, STATE)
            except CheckpointError as error:
                write_whole(other / DAMAGED, f"{error}\n".encode())
            else:
                kept = aside(other, "left")
                os.replace(other, kept)
                sync(other.parent)
                say(f"{other}: newer than the chosen checkpoint, kept as {kept.name}", sys.stderr)
    (checkpoint / DAMAGED).unlink(missing_ok=True)


def is_damaged(checkpoint: Path) -> bool:
    """Return whether a checkpoint was found damaged before, or has a file of the wrong size."""
    if (checkpoint / DAMAGED).exists():
        return True
    try:
        files = read_record(checkpoint)["files"]
        return any((checkpoint / name).stat().st_size != file.bytes for name, file in files.items())
    except (CheckpointError, OSError):
        return True


def prune(folder: Path, keep: int, is_kept: Callable[[int], bool] = lambda step: False) -> None:
    """Remove all checkpoints of a folder but the newest `keep` (0: remove none) and those that `is_kept` accepts.

    Damaged ones stay and do not count.
    """
    found = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name) and not is_damaged(path)]
    for old in sorted(found, key=step_of)[: -keep if keep else 0]:
        if not is_kept(step_of(old)):
            # Rename it first: a kill in between must not leave a part of it under its name.
            os.replace(old, going := partial_of(old))
            shutil.rmtree(going)


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted save left; only the owner of the run folder may call this."""
    for partial in folder.glob(".step_*.partial"):
        shutil.rmtree(partial)


def room_for(weights: int) -> int:
    """Return roughly the size in bytes of a checkpoint with so many trainable weights."""
    return 20 * weights


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def check_room(folder: Path, weights: int, keep: int) -> None:
    """Raise before the first step if checkpoints cannot be written, or if the disk has no room for them.

    The estimate is 20 bytes per trainable parameter: weights, two moments and the average in the state, and the average
    again in its own file. While one checkpoint is written, `keep` others exist; room of existing ones counts as free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ".writable", b"")
    (folder / ".writable").unlink()
    size, count, there = room_for(weights), keep + 1, size_of(folder)
    free, needed = shutil.disk_usage(folder).free, max(size * count - there, size)
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)} for {count_text(count, 'checkpoint')} of {size / 2**20:,.1f} MiB "
            f"(callbacks.checkpoints.keep={keep}): found {free / 2**20:,.1f} MiB free, expected {needed / 2**20:,.1f}",
            str(folder),
        )
