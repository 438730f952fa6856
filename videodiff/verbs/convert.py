"""videodiff convert: verify a checkpoint, export its weights, or write its state as another number of files."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from videodiff.data.storage.files import check_writable, partial_of, sync, write_whole
from videodiff.pretrained import DTYPES
from videodiff.printing import say
from videodiff.shipped.runs import find_run
from videodiff.training.state.checkpoint import (
    AVERAGE,
    PROGRESS,
    RECORD,
    STATE,
    VERSION,
    CheckpointError,
    latest_checkpoint,
    of,
    read_average,
    read_record,
    whole,
)
from videodiff.training.state.files import Entry, Written, not_finite, write_entries
from videodiff.training.state.pieces import RANDOM, SUFFIX, WEIGHT, Piece, label, notes, share
from videodiff.training.state.restoring import files_of, random_of
from videodiff.training.state.saved import Saved
from videodiff.training.state.saving import name_of
from videodiff.words import count_text


def run(cfg: DictConfig) -> None:
    """Verify, and write if there is something to write."""
    out = None if cfg.out is None else Path(cfg.out)
    if out is not None and cfg.what in ("average", "weights") and out.suffix != ".safetensors":
        raise ValueError(f"out: found {out}, expected a name that ends with .safetensors")
    if cfg.dtype is not None and (cfg.what not in AVERAGED or out is None):
        raise ValueError(f"dtype: found {cfg.dtype} with what={cfg.what}, expected what=average or run, and out=")
    # A run that somebody shares may hold the averaged weights alone.
    part = AVERAGE if cfg.what in AVERAGED else None
    checkpoint = chosen(find_run(cfg.checkpoint), part)
    record = read_record(checkpoint)
    if out is None and of(record["files"], STATE):
        part = None
    whole(checkpoint, part)
    if record["version"] < VERSION and part is None:
        raise CheckpointError(
            f"{checkpoint}: found version {record['version']}, expected {VERSION}; a training that is resumed from it "
            "saves the newer one; what=average with out= works"
        )
    if out is None or cfg.what == "state":
        say(f"videodiff convert: {verified(checkpoint)}")
    if out is None:
        return
    with making(out) as partial:
        if cfg.what == "state":
            write_state(checkpoint, partial, cfg.files)
        elif cfg.what == "weights":
            write_weights(checkpoint, partial)
        else:
            AVERAGED[cfg.what](checkpoint, partial, None if cfg.dtype is None else DTYPES[cfg.dtype])
    say(f"videodiff convert: {out}")


def chosen(path: Path, part: str | None = None) -> Path:
    """Return a checkpoint, or the newest one of a run that is whole, or whose `part` is."""
    if (path / RECORD).is_file():
        return path
    if (path / "checkpoints").is_dir():
        return latest_checkpoint(path, part)
    raise FileNotFoundError(f"checkpoint: found no {path / RECORD}, expected a checkpoint, or the folder of a run")


def verified(checkpoint: Path) -> str:
    """Return the contents of a checkpoint; a missing value, one that is not finite, or a changed file is an error."""
    record, average = read_record(checkpoint), read_average(checkpoint)
    if not of(record["files"], STATE):
        count = sum(value.numel() for value in average.values())
        return (
            f"{checkpoint}: step {record['step']:,}, {count_text(len(average), 'averaged weight')} of "
            f"{count_text(count, 'value')}, to sample and to start from; no state to resume from; all checksums match"
        )
    saved = Saved(files_of(checkpoint))
    saved.check_complete()
    weights = saved.weights()
    count = sum(torch.Size(shape).numel() for shape in weights.values())
    kept = sorted({key for _, key in saved.shapes} - {WEIGHT})
    return (
        f"{checkpoint}: step {record['step']:,}, {count_text(len(weights), 'weight')} of {count_text(count, 'value')}, "
        f"with {', '.join(kept)}; layout {record['state']} in {count_text(len(saved.files), 'file')}; all checksums "
        "match"
    )


@contextmanager
def making(out: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `out` if the block succeeds; `out` must not exist."""
    if out.exists():
        raise ValueError(f"out: found {out}, expected a name that is free")
    check_writable("out", out)
    partial = partial_of(out)
    try:
        yield partial
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def write_average(checkpoint: Path, path: Path, dtype: torch.dtype | None = None) -> Written:
    """Write the averaged weights, in another type if one is given."""
    values = {name: value if dtype is None else value.to(dtype) for name, value in read_average(checkpoint).items()}
    if (name := not_finite(values)) is not None:
        raise ValueError(f"dtype: found a value of {name} beyond the range of {dtype}, expected dtype=bfloat16")
    return write_entries([Entry.of(name, value) for name, value in values.items()], path)


def write_run(checkpoint: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a run folder that can be sampled, evaluated and started from: its settings and averaged weights alone."""
    run, place = checkpoint.absolute().parent.parent, folder / "checkpoints" / checkpoint.name
    place.mkdir(parents=True)
    for name in SETTINGS:
        if not (run / name).is_file():
            raise FileNotFoundError(f"checkpoint: found no {run / name}, expected a checkpoint in the folder of a run")
        write_whole(folder / name, (run / name).read_bytes())
    record = json.loads((checkpoint / RECORD).read_text())
    written = {AVERAGE: write_average(checkpoint, place / AVERAGE, dtype)._asdict()}
    record |= {"version": VERSION, "processes": record.get("processes", 1), "files": written}
    write_whole(place / RECORD, json.dumps(record, indent=1).encode())


SETTINGS = ("config.yaml", "trained.json")
AVERAGED = {"average": write_average, "run": write_run}


def write_weights(checkpoint: Path, path: Path) -> None:
    """Write the weights and buffers of the last step, one after the other."""
    saved = Saved(files_of(checkpoint))
    pieces = [piece for piece in held(saved) if piece.key == WEIGHT]
    write_entries([lazily(saved, piece, piece.name, saved.weights()[piece.name]) for piece in pieces], path)


def write_state(checkpoint: Path, folder: Path, files: int) -> None:
    """Write a checkpoint of the same values in so many files of similar size; its record stays the same."""
    saved, pieces = Saved(files_of(checkpoint)), []
    (folder / STATE).mkdir(parents=True)
    record = json.loads((checkpoint / RECORD).read_text())
    written = {name: file for name, file in record["files"].items() if not name.endswith(f".{SUFFIX}")}
    for number in range(files):
        pieces = share(held(saved), number, files)
        entries = [lazily(saved, piece, label(piece), (piece.values.numel(),)) for piece in pieces]
        # The random generators of a rank stay with that rank.
        states = random_of(saved, checkpoint / STATE / f"{name_of(number)}.{SUFFIX}")
        entries += [Entry.of(f"{RANDOM}{name}", state) for name, state in states.items()]
        name = f"{STATE}/{name_of(number)}.{SUFFIX}"
        written[name] = write_entries(entries, folder / name, notes(pieces))._asdict()
    written[AVERAGE] = record["files"][AVERAGE]
    for name in (f"{STATE}/{PROGRESS}", AVERAGE):
        shutil.copyfile(checkpoint / name, folder / name)
        sync(folder / name)
    write_whole(folder / RECORD, json.dumps(record | {"processes": files, "files": written}, indent=1).encode())
    sync(folder / STATE)


def held(saved: Saved) -> list[Piece]:
    """Return the shapes of all whole tensors and numbers of a state, without values."""
    sizes = {place: 1 if shape is None else math.prod(shape) for place, shape in saved.shapes.items()}
    return [
        Piece(name, key, 0, torch.empty(size, dtype=saved.dtype(name, key), device="meta"), saved.shapes[name, key])
        for (name, key), size in sizes.items()
    ]


def lazily(saved: Saved, piece: Piece, name: str, shape: tuple[int, ...]) -> Entry:
    """Return entries for writing; each is read when it is written."""

    def read() -> Tensor:
        values = torch.empty(piece.values.shape, dtype=piece.values.dtype)
        saved.fill([piece._replace(values=values)])
        return values

    return Entry(name, piece.values.dtype, shape, read)
