"""Frozen models with random weights: in the loop of training, and `videodiff cache` beside them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from gpu.check import Check, videodiff, watched
from gpu.footage import causal_autoencoder, image_autoencoder, t5, world_dataset
from gpu.watch import Watch

from videodiff.codec.autoencoder import Autoencoder
from videodiff.codec.pixels import scale_pixels
from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.manifest import Manifest
from videodiff.text.transformers import Transformers
from videodiff.worlds.bouncing import Bouncing

FRAMES, SIZE = 5, 16
# float16 on disk has eleven bits; convolutions on a GPU may round to ten, and choose another order for another batch.
MOST = 5e-3


def run(check: Check) -> None:
    """Train with each autoencoder in the loop, cache with it, train from the cache."""
    os.chdir(check.scratch)
    shutil.rmtree("runs/encoders", ignore_errors=True)
    world = Bouncing(balls={1: 1, 2: 0, 3: 0}, split="all")
    data = world_dataset(check.scratch / "bouncing_16", world, 24, SIZE)
    text = t5(check.scratch / "t5_16", list(world.words()), 16)
    made = {
        "image": image_autoencoder(check.scratch / "image_tiny", (8, 8, 8, 8)),
        "causal": causal_autoencoder(check.scratch / "causal_tiny"),
    }
    for kind, codec in made.items():
        check.part(f"{kind} autoencoder", lambda k=kind, c=codec: both_ways(check, k, c, text, data))


def both_ways(check: Check, kind: str, codec: Path, text: Path, data: Path) -> None:
    """Train online, cache, compare what was cached, train from the cache."""
    groups = ["codec=sd_vae", f"codec.path_or_name={codec}", "codec.dtype=float32"]
    groups += ["text=t5", f"text.path_or_name={text}", "text.subfolder=null", "text.tokenizer_subfolder=null"]
    groups += ["text.dtype=float32", "text.max_length=24"]
    online = trained(check, f"{kind}_online", data, groups)
    out = check.scratch / f"latents_{kind}"
    shutil.rmtree(out, ignore_errors=True)
    sizes = [f"sizes=[[{SIZE},{SIZE}]]", "workers=1", "decoders=0" if check.tiny else "decoders=2"]
    frames = [f"frames={FRAMES}"] if kind == "causal" else []
    videodiff("cache", str(data), f"out={out}", *sizes, *frames, *groups)
    compare(check, kind, codec, text, data, out)
    cached = trained(check, f"{kind}_cached", out, [*groups, "data.deliver=[latent,text]"])
    apart = max(abs(a - b) for a, b in zip(online, cached, strict=True))
    check.figure(f"{kind}: greatest distance of the curve from the cache", apart)
    check.hold(f"{kind}: training from the cache is training online within 1e-2", apart < 1e-2, f"{apart:.4f}")


def trained(check: Check, name: str, data: Path, more: list[str]) -> list[float]:
    """Train two steps and return the losses."""
    watch = Watch()
    with watched(watch):
        videodiff(
            "train",
            f"run=runs/encoders/{name}",
            *more,
            f"data.root={data}",
            *(f"data.frames={FRAMES}", f"data.height={SIZE}", f"data.width={SIZE}", "data.global_batch=4"),
            *("data.num_workers=0", "data.fixed=true", "trainer.max_steps=2", "trainer.precision=bf16-mixed"),
            *("model.patch=[1,1,1]", "model.width=32", "model.depth=2", "model.heads=2"),
            *(f"trainer.accelerator={check.device.type}", "~callbacks.checkpoints", "~callbacks.samples"),
        )
    return watch.curve()


def compare(check: Check, kind: str, codec_path: Path, text_path: Path, data: Path, out: Path) -> None:
    """Hold latents and text on disk beside what the models give for the same frames and captions."""
    codec = Autoencoder(str(codec_path), dtype="float32").to(check.device)
    text = Transformers(str(text_path), dtype="float32", max_length=24).to(check.device)
    bucket = Bucket(FRAMES, SIZE, SIZE)
    videos, latents = (read(root, bucket, deliver) for root, deliver in ((data, ["video"]), (out, ["latent", "text"])))
    for video, latent in zip(videos, latents, strict=True):
        frames = torch.from_numpy(video["video"]).permute(3, 0, 1, 2)[None].to(check.device)
        wanted = codec.encode(scale_pixels(frames))[0]
        check.near(f"{kind}: {video['key']}: cached latent", torch.from_numpy(latent["latent"]), wanted, MOST)
        features, mask = text([video["caption"]])
        words = int(mask.sum())
        check.near(f"{kind}: {video['key']}: cached text", torch.from_numpy(latent["text"]), features[0, :words], MOST)


def read(root: Path, bucket: Bucket, deliver: list[str]) -> list[dict]:
    """Return the first clips of a dataset with their first window."""
    manifest = Manifest.load(root)
    clips, reader = (
        Clips(manifest, [bucket], fixed=True, any_size=True, deliver=deliver),
        Reader([manifest.root], deliver),
    )
    return [reader.alone(clips.task(i)) for i in range(2)]
