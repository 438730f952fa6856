"""Saving a checkpoint: every process writes its pieces in a thread, and the first one gives the folder its name.

    .step_00000500.<token>.partial/
        state/rank_00000.safetensors   the pieces of one process, and its generators of random numbers
        .written/rank_00000.json       size and checksum of that file, or a note that writing failed
        average.safetensors            made from all pieces by the first process
        checkpoint.json                written last, then the folder is renamed

Training waits until its tensors are copied, not until they are on the disk. The processes agree on the outcome later:
at the end of a step, before the next save, or at the end of training.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from videodiff.data.storage.files import partial_of, sync, write_whole
from videodiff.parallel.engine import engine_of
from videodiff.parallel.ranks import agree
from videodiff.training.average import trainable
from videodiff.training.state.checkpoint import (
    AVERAGE,
    NAME,
    PROGRESS,
    RECORD,
    STATE,
    VERSION,
    put_in_place,
    remove_unfinished,
    room_for,
    size_of,
)
from videodiff.training.state.files import Entry, Written, refuse_not_finite, streaming, write_entries
from videodiff.training.state.generators import generators
from videodiff.training.state.pieces import AVERAGE as EMA
from videodiff.training.state.pieces import RANDOM, SUFFIX, WEIGHT, Piece, label, notes
from videodiff.training.state.progress import Progress, progress_of
from videodiff.training.state.saved import Saved

MARKS = ".written"
# Seconds between two looks for a file of another rank, and between two at the sizes of all files, which on thousands of
# ranks are many; and seconds without growth that mean a dead rank.
LOOK, MEASURE, STALL = 0.02, 2.0, 20.0


class Buffers:
    """Host memory for copies of the state, kept between saves.

    Allocating it takes longer than copying. With CUDA it is pinned, so that the device copies while it computes.
    """

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, int], Tensor] = {}

    def copies(self, pieces: list[Piece]) -> list[Piece]:
        """Return the pieces with copied values; on CUDA the copies are complete only when the device has made them."""
        before, self.held, found = self.held, {}, []
        for piece in pieces:
            place = (piece.name, piece.key, piece.start)
            values, there = piece.values, before.get(place)
            if there is None or (there.shape, there.dtype) != (values.shape, values.dtype):
                there = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            there.copy_(values, non_blocking=values.is_cuda)
            self.held[place] = there
            found.append(piece._replace(values=there))
        return found


class Saving:
    """A checkpoint in progress: a thread in each process writes its part."""

    def __init__(self, trainer: lightning.Trainer, folder: Path, buffers: Buffers) -> None:
        """Copy the state into buffers and begin to write it; every rank has to call."""
        self.trainer, self.folder, self.problem = trainer, folder, None
        self.step, self.world, self.rank = trainer.global_step, trainer.world_size, trainer.global_rank
        engine = engine_of(trainer.strategy)
        self.layout = engine.layout(self.world)
        self.weights = engine.count(trainable(trainer.lightning_module).values())
        # The average of a frozen weight is the weight.
        self.averaged = sorted(name for name, _ in trainer.lightning_module.named_parameters())
        self.final = folder / f"step_{self.step:08d}"
        self.partial = trainer.strategy.broadcast(partial_of(self.final))
        self.own, self.stop = threading.Event(), threading.Event()
        try:
            agree(self.world, self.make_folder())
            pieces = engine.pieces(trainer.lightning_module)
            if not engine.copied:
                pieces = buffers.copies(pieces)
            self.event = torch.cuda.Event() if torch.cuda.is_available() else None
            if self.event is not None:
                self.event.record()
            progress, random = progress_of(trainer), generators()
        except OSError as error:
            self.clean()
            raise self.with_need(error) from error
        except BaseException:
            self.clean()
            raise
        self.thread = threading.Thread(target=self.write, args=(pieces, progress, random), name="save", daemon=True)
        self.thread.start()

    def make_folder(self) -> Exception | None:
        """Make the folder under its temporary name, on the first rank."""
        if self.rank == 0:
            try:
                remove_unfinished(self.folder)
                (self.partial / STATE).mkdir(parents=True)
                (self.partial / MARKS).mkdir()
            except OSError as error:
                return error
        return None

    def write(self, pieces: list[Piece], progress: Progress, random: Mapping[str, Tensor]) -> None:
        """Write this rank's pieces in its thread; the first rank then waits for the others and completes it."""
        try:
            mark = self.write_own(pieces, random)
            # Copies that nobody keeps are free now, though the thread holds the list.
            pieces.clear()
            write_whole(self.partial / MARKS / f"{name_of(self.rank)}.json", json.dumps(mark).encode())
            self.own.set()
            if self.rank == 0:
                self.end(self.marks(), progress)
        # Whatever it is, short memory too: the main thread waits for `own`, and then raises it on all ranks.
        except Exception as error:
            self.problem = self.problem or error
        finally:
            self.own.set()
            # When the folder is gone, the other ranks know that it was renamed, or was given up.
            self.clean()

    def write_own(self, pieces: list[Piece], random: Mapping[str, Tensor]) -> dict[str, Any]:
        """Write this rank's pieces; return what tells the first rank so, empty where it failed."""
        path = self.partial / STATE / f"{name_of(self.rank)}.{SUFFIX}"
        try:
            if self.event is not None:
                self.event.synchronize()
            return write_pieces(pieces, random, path)._asdict()
        except Exception as error:
            self.problem = error
            # On a full disk this makes room for the mark that tells the first rank.
            path.unlink(missing_ok=True)
            return {}

    def marks(self) -> list[Written | None]:
        """Wait until all ranks are done or nobody waits any more; return what each wrote, None for a failed rank."""
        found = []
        for rank in range(self.world):
            mark = self.partial / MARKS / f"{name_of(rank)}.json"
            while not mark.is_file() and not self.stop.wait(LOOK):
                pass
            written = json.loads(mark.read_text()) if mark.is_file() else None
            found.append(Written(**written) if written else None)
        return found

    def end(self, marks: list[Written | None], progress: Progress) -> None:
        """Write the average and the record and rename the folder, unless a rank has failed."""
        if None in marks:
            return
        names = [f"{STATE}/{name_of(rank)}.{SUFFIX}" for rank in range(self.world)]
        files = dict(zip(names, marks, strict=True))
        files[f"{STATE}/{PROGRESS}"] = write_json(progress, self.partial / STATE / PROGRESS)
        files[AVERAGE] = write_average([self.partial / name for name in names], self.averaged, self.partial / AVERAGE)
        listed = {name: file._asdict() for name, file in sorted(files.items())}
        record = {"version": VERSION, "step": self.step, "state": self.layout, "processes": self.world, "files": listed}
        shutil.rmtree(self.partial / MARKS)
        write_whole(self.partial / RECORD, json.dumps(record, indent=1).encode())
        for path in (self.partial / STATE, self.partial):
            sync(path)
        put_in_place(self.partial, self.final)

    def done(self) -> bool:
        """Return whether this process has written everything."""
        return not self.thread.is_alive()

    def finish(self) -> Path:
        """Wait for the checkpoint and return its folder; every rank has to call.

        On all ranks, ValueError if weights or averages are not finite, and OSError if any rank could not write a file;
        then nothing of the checkpoint stays.
        """
        self.settle()
        self.own.wait()
        try:
            # First wait until each rank has written its own files: the thread of the first rank waits for them.
            agree(self.world, self.problem)
            self.thread.join()
            agree(self.world, self.problem)
        except OSError as error:
            raise self.with_need(error) from error
        finally:
            self.stop.set()
            self.thread.join()
        return self.final

    def settle(self) -> None:
        """Wait for the checkpoint while files grow: a slow disk may take longer than the time-out of a collective.

        If nothing grows any more, another rank may be dead, which only a collective detects.
        """
        before, since, measured = -1, time.monotonic(), -math.inf
        while self.thread.is_alive() if self.rank == 0 else self.partial.exists():
            if (now := time.monotonic()) - measured > MEASURE:
                measured = now
                try:
                    size = size_of(self.partial)
                except FileNotFoundError:
                    # The folder was renamed or removed.
                    size = before
                if size != before:
                    before, since = size, now
            if now - since > STALL:
                return
            time.sleep(LOOK)

    def clean(self) -> None:
        """Remove what is left under the temporary name: on a full disk other files need the room."""
        if self.rank == 0:
            shutil.rmtree(self.partial, ignore_errors=True)

    def with_need(self, error: OSError) -> OSError:
        """Return the error of a full disk, with the folder of the checkpoints and the room that a checkpoint needs."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        sizes = [size_of(checkpoint) for checkpoint in self.folder.glob("step_*") if NAME.fullmatch(checkpoint.name)]
        needed = max(sizes, default=room_for(self.weights))
        text = f"{os.strerror(error.errno)} for a checkpoint, which needs about {needed / 2**20:,.1f} MiB"
        return OSError(error.errno, text, str(self.folder))


def name_of(rank: int) -> str:
    """Return the name of a rank's files."""
    return f"rank_{rank:05d}"


def write_pieces(pieces: list[Piece], random: Mapping[str, Tensor], path: Path) -> Written:
    """Write the pieces of one rank and its generators; ValueError where a value is not finite."""
    refuse_not_finite({f"{piece.name}.{piece.key}": piece.values for piece in pieces}, path)
    entries = [Entry.of(label(piece), piece.values) for piece in pieces]
    entries += [Entry.of(f"{RANDOM}{name}", state) for name, state in random.items()]
    return write_entries(entries, path, notes(pieces))


def write_json(value: Any, path: Path) -> Written:
    """Write plain values."""
    with streaming(path) as file:
        file.write(json.dumps(value).encode())
    return Written(file.size, file.digest.hexdigest())


def write_average(paths: list[Path], names: list[str], path: Path) -> Written:
    """Write the whole averages of these parameters one after the other, from the pieces of all ranks.

    For a parameter that no step has changed yet, the weight is written instead of the average.
    """
    saved, entries = Saved(paths), []
    saved.check_complete()
    for name in names:
        key = EMA if EMA in saved.keys(name) else WEIGHT
        shape = saved.shapes[name, key] or ()
        entries.append(Entry(name, torch.float32, shape, lambda name=name, key=key: saved.whole(name, key)))
    return write_entries(entries, path)
