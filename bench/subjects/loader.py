"""The loader beside the decode ceiling and other loaders: same clips, windows, decoder and processes.

The ceiling is a bare loop in as many processes, which reads and decodes and keeps nothing. The other loaders have the
decode function that their users write: decord's reader, its batch, as numpy. All are started and warm before the first
timed turn, and take short turns, because the speed of a machine changes. The first batches of a turn are not timed;
they were read ahead during the turns of others.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch  # before decord

# isort: split
import decord
import numpy as np
import torch.nn.functional as F
import webdataset
from subjects.harness import Figure, Settings, figure, ratio
from torch.utils.data import DataLoader, Dataset

from videodiff.data.loader.datamodule import ClipDataModule, clip_data
from videodiff.data.order.arithmetic import draw
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter, clip_sample, read_sample
from videodiff.data.tars.datamodule import tar_data
from videodiff.data.video import encode as encoding
from videodiff.data.video.decode import decode, decode_into, probe

try:
    # Its package of image datasets asks for torchvision.
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
    import streaming
except ImportError:
    streaming = None

TITLE = "Loader"
SIZE, FRAMES, LENGTH, BATCH, PROCESSES = 256, 16, 64, 16, 2
# Batches of a turn: those that may have been read ahead, and those timed.
AHEAD, TIMED = 8, 24
# What it is compared with: in words, the name of the ratio, its aim.
OTHERS = {
    "ceiling": ("bare decoding", "ceiling_fraction", "at least 0.9"),
    "streamed": ("data=webdataset", "vs_streamed", ""),
    "webdataset": ("webdataset's pipeline", "vs_webdataset", "at least 1.2"),
    "map_style": ("map-style loading of loose files", "vs_map_style", "at least 1.2"),
    "mosaicml": ("mosaicml-streaming", "vs_mosaicml", "at least 1.2"),
}


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield this loader's clips a second beside the ceiling's and the other loaders', and what a resume takes."""
    clips = 4 if settings.tiny else 48
    kinds: dict[str, Any] = {"ours": ours, "ceiling": ceiling}
    if not settings.tiny:
        kinds |= {"streamed": streamed, "webdataset": web_dataset, "map_style": map_style}
        kinds |= {"mosaicml": mosaicml} if streaming else {}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), clips)
        rates = in_turns(Path(folder), clips, settings.rounds, kinds)
        for name in list(kinds)[1:]:
            what, key, aim = OTHERS[name]
            yield ratio(f"clips a second, divided by those of {what}", rates["ours"], rates[name], key, aim)
        yield figure("clips a second", rates["ours"])
        if not settings.tiny:
            resumed = resume_ratios(Path(folder), settings.rounds)
            what = "time to the first batch at 90 % of an epoch, divided by a fresh start's"
            yield figure(what, resumed, "resume_ratio", "at most 1.2")
            what = "windows a second of groups of 12 pictures, divided by those of one long group"
            yield figure(what, [gop_ratio()], "gop_12_vs_long")


def in_turns(folder: Path, clips: int, rounds: int, kinds: dict[str, Any]) -> dict[str, list[float]]:
    """Return the clips a second of each loader in each round."""
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    with contextlib.ExitStack() as stack:
        measures = {name: stack.enter_context(kind(folder, clips)) for name, kind in kinds.items()}
        for one in measures.values():
            one()
        for _ in range(rounds):
            for name, one in measures.items():
                rates[name].append(one())
    return rates


def scene(seed: int) -> np.ndarray:
    """Return uint8 `t h w c`: a rough texture that moves under a little grain, about as hard as footage."""
    random = torch.Generator().manual_seed(seed)
    octaves = [torch.rand(1, 3, 2**k, 2**k, generator=random) / 2 ** (k / 2) for k in range(2, 8)]
    wide = sum(F.interpolate(octave, (SIZE + 2 * LENGTH,) * 2, mode="bilinear") for octave in octaves)[0]
    wide = 255 * (wide - wide.min()) / (wide.max() - wide.min())
    views = torch.stack([wide[:, t : t + SIZE, 2 * t : 2 * t + SIZE] for t in range(LENGTH)])
    grain = 3 * torch.randn(views.shape, generator=random)
    return (views + grain).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def write(root: Path, clips: int) -> None:
    """Write the same clips as tars, as loose files, and as MDS."""
    (root / "files").mkdir()
    with contextlib.ExitStack() as stack:
        tars = stack.enter_context(ShardWriter(root / "tars", shard_bytes=2**20))
        mds = streaming and stack.enter_context(
            streaming.MDSWriter(out=str(root / "mds"), columns={"number": "int", "mp4": "bytes"}, size_limit=2**20)
        )
        for number in range(clips):
            video = encoding.encode(scene(number), 24.0)
            tars.add(f"{number:05d}", *clip_sample(video, probe(video), ["a texture"]))
            (root / "files" / f"{number:05d}.mp4").write_bytes(video)
            if mds:
                mds.write({"number": number, "mp4": video})


def window(number: int, turn: int) -> range:
    """Return the frames to take of a clip the n-th time."""
    start = draw(LENGTH - FRAMES + 1, number, turn)
    return range(start, start + FRAMES)


def read_clip(task: tuple[str, dict[str, Any], range], out: np.ndarray) -> str:
    """Read a clip of the tars into the batch."""
    root, row, numbers = task
    members = read_sample(root, row, {"mp4", "txt"})
    decode_into(out, members["mp4"], numbers)
    return members["txt"].decode()


def bare(root: Path, share: int, clips: int, barrier: Any) -> None:
    """Read and decode one share of the clips, as often as a turn of the ceiling needs, whenever the barrier opens."""
    torch.set_num_threads(1)
    manifest, turns = Manifest.load(root / "tars"), itertools.count()
    rows = [manifest.row(index) for index in range(share, clips, PROCESSES)]
    out = np.empty((FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    while True:
        for times in passes(clips):
            barrier.wait()
            for turn in itertools.islice(turns, times):
                for row in rows:
                    read_clip((str(manifest.root), row, window(int(row["key"]), turn)), out)
        barrier.wait()


def passes(clips: int) -> tuple[int, int]:
    """Return how often all clips are read in a turn before it is timed, and then."""
    return -(-AHEAD * BATCH // clips), -(-TIMED * BATCH // clips)


@contextlib.contextmanager
def ceiling(root: Path, clips: int) -> Iterator[Callable[[], float]]:
    """Clips a second without a loader."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES + 1)
    processes = [
        context.Process(target=bare, args=(root, share, clips, barrier), daemon=True) for share in range(PROCESSES)
    ]
    for process in processes:
        process.start()

    def measure() -> float:
        barrier.wait()
        barrier.wait()
        start = time.perf_counter()
        barrier.wait()
        return passes(clips)[1] * clips / (time.perf_counter() - start)

    yield measure
    for process in processes:
        process.kill()


def module(root: Path) -> ClipDataModule:
    shape = {"frames": FRAMES, "height": SIZE, "width": SIZE}
    return clip_data(root=str(root / "tars"), **shape, global_batch=BATCH, num_workers=PROCESSES)


@contextlib.contextmanager
def ours(root: Path, clips: int) -> Iterator[Callable[[], float]]:
    """What training gets: the order, the workers, whole batches."""
    data = module(root)
    batches = (batch["video"].permute(0, 2, 3, 4, 1) for batch in data.train_dataloader())
    yield lambda: rate(batches)
    data.teardown("fit")


def first_batch(root: Path, share: float) -> float:
    """Return the seconds from a fresh start to the first batch, at this share of an epoch."""
    data = module(root)
    start = time.perf_counter()
    data.loaded_step = int(share * data.order.stages[0].epoch_steps)
    next(iter(data.train_dataloader()))
    took = time.perf_counter() - start
    data.teardown("fit")
    return took


def resume_ratios(root: Path, rounds: int) -> list[float]:
    """Return how many times longer than a fresh start one at 90 % of an epoch takes to its first batch."""
    first_batch(root, 0.0)
    return [first_batch(root, 0.9) / first_batch(root, 0.0) for _ in range(rounds)]


def plain_decode(video: bytes, numbers: range) -> np.ndarray:
    """Return the frames as any tutorial does."""
    return decord.VideoReader(io.BytesIO(video), num_threads=1).get_batch(list(numbers)).asnumpy()


class Files(Dataset):
    """Loose files, read and decoded one by one."""

    def __init__(self, root: Path, clips: int) -> None:
        self.root, self.clips = root, clips

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> np.ndarray:
        turn, number = divmod(index, self.clips)
        return plain_decode((self.root / f"{number:05d}.mp4").read_bytes(), window(number, turn))


@contextlib.contextmanager
def map_style(root: Path, clips: int) -> Iterator[Callable[[], float]]:
    """torch's DataLoader over loose files."""
    yield from timed(DataLoader, Files(root / "files", clips))


def first_window(sample: dict[str, Any]) -> np.ndarray:
    return plain_decode(sample["mp4"], window(int(sample["__key__"]), 0))


@contextlib.contextmanager
def streamed(root: Path, clips: int) -> Iterator[Callable[[], float]]:
    """What training gets of the same tars without their manifest: data=webdataset, a reader beside the decoders."""
    urls = [str(path) for path in sorted((root / "tars").glob("*.tar"))]
    shape = {"frames": FRAMES, "height": SIZE, "width": SIZE}
    data = tar_data(urls=urls, **shape, global_batch=BATCH, num_workers=PROCESSES)
    batches = (batch["video"].permute(0, 2, 3, 4, 1) for batch in data.train_dataloader())
    yield lambda: rate(batches)
    data.teardown("fit")


@contextlib.contextmanager
def web_dataset(root: Path, clips: int) -> Iterator[Callable[[], float]]:
    """The webdataset library with a decode function, over the tars."""
    tars = sorted(map(str, (root / "tars").glob("*.tar")))
    data = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None).map(first_window).repeat()
    yield from timed(DataLoader, data)


if streaming:

    class Mds(streaming.StreamingDataset):
        """MosaicML's streaming dataset with a decode function."""

        def __getitem__(self, index: int) -> np.ndarray:
            sample = super().__getitem__(index)
            return plain_decode(sample["mp4"], window(sample["number"], 0))


@contextlib.contextmanager
def mosaicml(root: Path, clips: int) -> Iterator[Callable[[], float]]:
    """MosaicML Streaming over its own format."""
    streaming.base.util.clean_stale_shared_memory()
    data = Mds(local=str(root / "mds"), batch_size=BATCH, shuffle=True, epoch_size=1000 * clips)
    yield from timed(streaming.StreamingDataLoader, data)


def timed(kind: type[DataLoader], data: Any) -> Iterator[Callable[[], float]]:
    """Yield the measure of a DataLoader with the same processes and batches."""
    loader = kind(data, batch_size=BATCH, num_workers=PROCESSES, multiprocessing_context="spawn", drop_last=True)
    batches = [iter(loader)]
    yield lambda: rate(batches[0])
    # Its processes end with it.
    batches.clear()


def rate(batches: Iterator[Any]) -> float:
    """Return clips a second, all of full shape, once what was read ahead is taken."""
    for number in range(AHEAD + TIMED):
        if number == AHEAD:
            start = time.perf_counter()
        batch = next(batches)
        assert tuple(batch.shape) == (BATCH, FRAMES, SIZE, SIZE, 3)
        del batch
    return TIMED * BATCH / (time.perf_counter() - start)


def gop_ratio() -> float:
    """Return how many times more windows are decoded from groups of 12 pictures than from one long one, by CPU time."""
    took = []
    for encoding.GOP in (250, 12):
        video = encoding.encode(scene(0), 24.0)
        start = time.process_time()
        for turn in range(40):
            decode(video, window(0, turn))
        took.append(time.process_time() - start)
    return took[0] / took[1]
