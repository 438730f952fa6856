"""From positions in the stream to batches: what is read is decided by integers alone, never by timing or workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from videodiff.codec.cached import pad_text, read_latent, read_text
from videodiff.data.decode import DecodeError, backend_for, decode, resize
from videodiff.data.manifest import Manifest, ManifestError
from videodiff.data.order import draw, micro_batches, rank_positions, sample_at
from videodiff.data.shards import read_captions, read_notes, read_sample

# What of a sample may be delivered, and the members that it is made of.
MEMBERS = {"video": "mp4", "latent": "latent.npy", "text": "text.npy"}


class Item(NamedTuple):
    """One place in a batch: optimizer step, position in the global batch, epoch, sample index."""

    step: int
    position: int
    epoch: int
    index: int


class Loaded(NamedTuple):
    """What of a sample is kept in memory: the frames of these numbers `t h w c` (None without video), and the rest."""

    frames: np.ndarray | None
    numbers: range
    captions: list[str]
    truth: dict[str, Any] | None
    arrays: dict[str, torch.Tensor]


class Clips(Dataset):
    """Clips of `frames` frames, every `stride`-th, scaled and cropped to height x width; `clips[Item]` gives a sample.

    The window and the caption are drawn by (seed, epoch, index); with `fixed` they are the first ones, and the truth
    of a simulated clip is delivered too. `cache_gib`: decoded clips are kept in memory until this much is taken.
    Clips too short for a window are an error unless `skip_short`; then `index` counts the others.
    """

    def __init__(
        self,
        manifest: Manifest,
        frames: int,
        height: int,
        width: int,
        stride: int = 1,
        seed: int = 0,
        cache_gib: float = 0.0,
        deliver: Sequence[str] = ("video",),
        fixed: bool = False,
        skip_short: bool = False,
    ) -> None:
        if min(frames, height, width, stride) < 1:
            raise ValueError(f"clip: found {frames} frames of {height} x {width}, stride {stride}, expected at least 1")
        if unknown := set(deliver) - MEMBERS.keys():
            raise ValueError(f"deliver: found {sorted(unknown)[0]!r}, expected some of {', '.join(MEMBERS)}")
        self.manifest, self.seed, self.fixed, self.deliver = manifest, seed, fixed, tuple(deliver)
        self.frames, self.height, self.width, self.stride = frames, height, width, stride
        self.span = (frames - 1) * stride + 1
        self.rows = self._long_enough(skip_short)
        self.room, self.cache = int(cache_gib * 2**30), {}

    def _long_enough(self, skip_short: bool) -> np.ndarray:
        fits = self.manifest.column("frames") >= self.span
        if not fits.any() or not (skip_short or fits.all()):
            row = self.manifest.row(int(np.argmin(fits)))
            raise ValueError(
                f"{self.manifest.root}: {row['key']}: found {row['frames']} frames, expected at least {self.span} for "
                f"frames={self.frames} stride={self.stride} ({(~fits).sum()} of {len(fits)} clips are shorter; "
                f"skip_short=true leaves them out)"
            )
        return np.flatnonzero(fits)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Item | tuple[int, int, int, int]) -> dict[str, Any]:
        item = Item(*item)
        row = self.manifest.row(int(self.rows[item.index]))
        window = self._window(row, item)
        loaded = self.cache.get(item.index) or self._load(row, item.index, window)
        choice = 0 if self.fixed else draw(len(loaded.captions), self.seed, item.epoch, item.index, 1)
        sample = {**loaded.arrays, "caption": loaded.captions[choice], "fps": row["fps"] / self.stride}
        sample |= {"key": row["key"], "step": item.step, "position": item.position}
        if loaded.frames is not None:
            sample["video"] = loaded.frames[[loaded.numbers.index(number) for number in window]]
        if self.fixed:
            sample["truth"] = truth_window(loaded.truth, window)
        return sample

    def _window(self, row: dict[str, Any], item: Item) -> range:
        start = 0 if self.fixed else draw(row["frames"] - self.span + 1, self.seed, item.epoch, item.index, 0)
        return range(start, start + self.span, self.stride)

    def _load(self, row: dict[str, Any], index: int, window: range) -> Loaded:
        """Read a sample, and all of its frames where they fit into the cache: the next window is another one."""
        numbers = window if self.fixed else range(row["frames"])
        size = row["size"] + len(numbers) * self.height * self.width * 3 * ("video" in self.deliver)
        keep = size <= self.room
        loaded = self._read(row, numbers if keep else window)
        if keep:
            self.room -= size
            self.cache[index] = loaded
        return loaded

    def _read(self, row: dict[str, Any], numbers: range) -> Loaded:
        names = [MEMBERS[name] for name in self.deliver]
        members = read_sample(self.manifest.root, row, {"txt", "json", *names})
        where = f"{self.manifest.root / row['shard']}: {row['key']}"
        if missing := set(names) - members.keys():
            raise ManifestError(f"{where}: found no {min(missing)}, expected one for deliver={list(self.deliver)}")
        frames, arrays = None, {}
        if "video" in self.deliver:
            frames = self._frames(members["mp4"], numbers, backend_for(row["width"]), where)
        if "latent" in self.deliver:
            arrays["latent"] = read_latent(members["latent.npy"], where)
        if "text" in self.deliver:
            arrays["text"] = read_text(members["text.npy"], where)
        truth = read_notes(members).get("truth")
        return Loaded(frames, numbers, read_captions(members) or [""], truth, arrays)

    def _frames(self, video: bytes, numbers: range, backend: str, where: str) -> np.ndarray:
        try:
            return resize(decode(video, numbers, backend), self.height, self.width)
        except DecodeError as error:
            raise DecodeError(f"{where}.mp4: {error}") from error


def truth_window(truth: dict[str, Any] | None, window: range) -> dict[str, Any] | None:
    """Return the truth of the frames in the window: what is a series over frames is cut, fps follows the stride."""
    if truth is None:
        return None
    frames = {name: np.asarray(truth[name])[window].tolist() for name in ("position", "velocity") if name in truth}
    return {**truth, **frames, "fps": truth["fps"] / window.step}


class GlobalBatches(Sampler[list[Item]]):
    """One rank's micro-batches of an endless stream, from a step on; `start` may be a function that tells the step.

    A function is asked again at each iteration: an epoch cut short by the trainer must not begin from the old place.
    """

    def __init__(
        self,
        samples: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start: int | Callable[[], int] = 0,
    ) -> None:
        self.samples, self.global_batch, self.micro_batch = samples, global_batch, micro_batch
        self.rank, self.world, self.seed, self.start = rank, world, seed, start
        self.micro_batches = micro_batches(global_batch, micro_batch, world)
        # By this name Lightning's DeepSpeed strategy asks for it.
        self.batch_size = micro_batch

    def __iter__(self) -> Iterator[list[Item]]:
        step = self.start() if callable(self.start) else self.start
        while True:
            for micro in range(self.micro_batches):
                yield self.batch(step, micro)
            step += 1

    def batch(self, step: int, micro: int) -> list[Item]:
        """Return what this rank takes in its `micro`-th micro-batch of a step."""
        stream = rank_positions(step, micro, self.global_batch, self.micro_batch, self.rank, self.world)
        epoch, index = sample_at(stream, self.samples, self.seed)
        places = stream - step * self.global_batch
        return [Item(step, *place) for place in zip(places.tolist(), epoch.tolist(), index.tolist(), strict=True)]


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Join samples into a batch: video uint8 `b c t h w`, latent `b c t h w`, text `b l d` with text_mask `b l`."""
    first, batch = samples[0], {"step": samples[0]["step"]}
    for name in ("caption", "key", "truth"):
        if name in first:
            batch[name] = [sample[name] for sample in samples]
    batch["fps"] = torch.tensor([sample["fps"] for sample in samples], dtype=torch.float32)
    batch["position"] = torch.tensor([sample["position"] for sample in samples], dtype=torch.int64)
    if "video" in first:
        video = torch.from_numpy(np.stack([sample["video"] for sample in samples]))
        batch["video"] = video.permute(0, 4, 1, 2, 3).contiguous()
    if "latent" in first:
        batch["latent"] = torch.stack([sample["latent"] for sample in samples])
    if "text" in first:
        batch["text"], batch["text_mask"] = pad_text([sample["text"] for sample in samples])
    return batch
