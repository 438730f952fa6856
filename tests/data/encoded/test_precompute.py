"""A dataset encoded once: what is stored, what training makes of it, and what interruptions change (nothing)."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hydra.errors import InstantiationException

from tests.material import warm
from tests.material.made_clips import moving_square, sample
from tests.material.tasks import hanging_part
from videodiff.codec.autoencoder import Autoencoder
from videodiff.codec.cached import read_latent, read_text
from videodiff.codec.pixels import scale_pixels
from videodiff.data.encoded import precompute as module
from videodiff.data.encoded.precompute import Plan, precompute
from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.loader.quarantine import Quarantine
from videodiff.data.loader.stream import collate
from videodiff.data.loader.workers import read_here
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.inspection import describe_dataset, survey
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.samples.shards import ShardWriter, clip_sample, read_sample
from videodiff.data.video.decode import DecodeError, decode, probe, resize
from videodiff.data.video.encode import encode
from videodiff.text.transformers import Transformers
from videodiff.verbs.cache import build

SIZE, FRAMES = (16, 16), 20
CAPTIONS = {0: ("a red ball", "red"), 1: (), 2: ("a ball moves", "a", "red red ball")}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Save a small image autoencoder, a causal one and a T5 with random weights, and two that differ in one of them."""
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("vae", 0), ("other_vae", 1)):
        torch.manual_seed(seed)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25, **blocks
        )
        vae.save_pretrained(root / name)
    diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[0.1] * 4
    ).save_pretrained(root / "wan")
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "ball": 5, "moves": 6}
    cut = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    cut.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    cut.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    for name, seed in (("t5", 0), ("other_t5", 1)):
        torch.manual_seed(seed)
        config = transformers.T5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
        transformers.T5EncoderModel(config).save_pretrained(root / name)
        transformers.PreTrainedTokenizerFast(tokenizer_object=cut, **names).save_pretrained(root / name)
    return root


def codec_of(models: Path, name: str = "vae") -> dict:
    target = "videodiff.codec.autoencoder.Autoencoder"
    return {"_target_": target, "path_or_name": str(models / name), "dtype": "float32", "slice_frames": 8}


def text_of(models: Path, name: str = "t5") -> dict:
    target = "videodiff.text.transformers.Transformers"
    return {"_target_": target, "path_or_name": str(models / name), "dtype": "float32", "max_length": 6}


def write_clips(root: Path, count: int = 7, frames: int = FRAMES, **more: tuple) -> Path:
    """Write clips of 24 x 40 pixels, two a shard, with none to three captions; `more` are whole samples."""
    with ShardWriter(root, 20_000) as writer:
        for number in range(count):
            video = encode(moving_square(frames, 24, 40, seed=number), 5.0)
            writer.add(
                f"clip{number}",
                *clip_sample(video, probe(video), CAPTIONS[number % 3], source="made", licence="CC0-1.0"),
            )
        for key, (members, row) in more.items():
            writer.add(key, members, row)
    return root


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("precompute") / "source")


def plan_of(models: Path, source: Path, out: Path, codec: str | None = "vae", text: str | None = "t5", **how) -> Plan:
    parts = {"codec": codec and codec_of(models, codec), "text": text and text_of(models, text)}
    return Plan(str(source), out, partial(build, **parts), **{"sizes": [SIZE], "decoders": 0, **how})


def options(models: Path) -> list[str]:
    """Return the overrides of `videodiff cache` that mean what `plan_of` does."""
    parts = {"codec": ("sd_vae", "vae"), "text": ("t5", "t5")}
    chosen = [f"{part}={option}" for part, (option, _) in parts.items()]
    chosen += [f"{part}.path_or_name={models / name}" for part, (_, name) in parts.items()]
    chosen += ["codec.dtype=float32", "codec.slice_frames=8", "text.dtype=float32", "text.max_length=6"]
    return [*chosen, "text.subfolder=null", "text.tokenizer_subfolder=null", "sizes=[[16,16]]", "decoders=0"]


def contents(out: Path) -> dict[str, bytes]:
    """Return the files of a dataset, without the work folder."""
    assert not list(out.rglob("*.partial"))
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@pytest.fixture(scope="session")
def cached(models, source, tmp_path_factory) -> Path:
    """Return the dataset as one process makes it."""
    out = tmp_path_factory.mktemp("precompute") / "cached"
    made = precompute(plan_of(models, source, out), workers=1)
    assert (made["samples"], made["failed"], made["shards"]) == (7, 0, len(Manifest.load(source).shards))
    return out


def test_the_shards_have_the_names_keys_and_order_of_the_source_and_no_video(source, cached):
    before, after = Manifest.load(source), Manifest.load(cached)
    assert len(after.shards) > 2
    assert [shard["name"] for shard in after.shards] == [shard["name"] for shard in before.shards]
    assert after.fingerprint == before.fingerprint
    for number in range(len(before)):
        old, new = before.row(number), after.row(number)
        assert (new["height"], new["width"]) == SIZE
        assert {**new, "height": 24, "width": 40, "offset": 0, "size": 0} == {**old, "offset": 0, "size": 0}
        members, kept = read_sample(cached, new), read_sample(source, old, {"txt", "json"})
        texts = [f"text{n}.npy" for n in ("", ".1", ".2")[: max(len(CAPTIONS[number % 3]), 1)]]
        assert set(members) == {*kept, "latent.npy", *texts}
        assert kept.items() <= members.items()
    assert (cached / "words.txt").read_bytes() == (source / "words.txt").read_bytes()


def test_latents_and_text_are_what_the_models_give(models, source, cached):
    codec, text = build(codec_of(models), text_of(models))
    for number in (0, 2):
        members = read_sample(cached, Manifest.load(cached).row(number))
        video = decode(read_sample(source, Manifest.load(source).row(number))["mp4"], range(FRAMES))
        frames = resize(video, *SIZE)
        expected = codec.encode(scale_pixels(torch.from_numpy(frames).permute(3, 0, 1, 2)[None]))[0]
        torch.testing.assert_close(read_latent(members["latent.npy"], "x"), expected, atol=2e-3, rtol=2e-3)
        for name, caption in zip(("text.npy", "text.1.npy", "text.2.npy"), CAPTIONS[number], strict=False):
            features, mask = text([caption])
            torch.testing.assert_close(read_text(members[name], "x"), features[0][mask[0]], atol=2e-3, rtol=2e-3)


def opened(root: Path, frames: int = 5, stride: int = 2, **how) -> Clips:
    how = {"seed": 3, "any_size": True, **how}
    return Clips(Manifest.load(root), [Bucket(frames, *SIZE, strides=(stride,))], **how)


def batch_of(clips: Clips, places: list[tuple[int, int]], deliver=("video",), cache_gib: float = 0.0) -> dict:
    """Return the batch of these rows and epochs as the loader makes it."""
    reader = Reader([clips.manifest.root], deliver, cache_gib)
    tasks = [clips.task(row, 0, epoch, (0, number)) for number, (row, epoch) in enumerate(places)]
    (read,) = read_here(reader, [tasks], None, Quarantine(budget=0))
    return collate(read, deliver)


ENCODED = ("latent", "text")


def test_the_description_of_the_dataset_says_what_was_encoded_by_which_model(models, cached):
    manifest = Manifest.load(cached)
    said = describe_dataset(manifest, survey(manifest))["encoded"]
    assert said == {
        "latent": f"by AutoencoderKL {models / 'vae'}, sizes [[16, 16]], stride 1",
        "text": f"by T5EncoderModel {models / 't5'}",
    }


def test_training_gets_the_windows_and_captions_that_it_would_encode_itself(models, source, cached):
    codec, text = build(codec_of(models), text_of(models))
    places = [(row, epoch) for epoch in range(2) for row in range(7)]
    one = batch_of(opened(source), places)
    other = batch_of(opened(cached, deliver=ENCODED), places, ENCODED)
    assert (one["caption"], one["key"]) == (other["caption"], other["key"])
    assert one["fps"].tolist() == other["fps"].tolist()
    torch.testing.assert_close(other["latent"], codec.encode(scale_pixels(one["video"])), atol=5e-3, rtol=5e-3)
    features, mask = text(one["caption"])
    length = other["text"].shape[1]
    assert torch.equal(mask[:, :length], other["text_mask"])
    torch.testing.assert_close(other["text"], features[:, :length], atol=5e-3, rtol=5e-3)
    assert len(set(one["caption"])) > 4


def test_a_clip_kept_in_memory_gives_the_same(cached):
    places = [(row, epoch) for epoch in range(3) for row in range(3)]
    plain, kept = (batch_of(opened(cached, deliver=ENCODED), places, ENCODED, gib) for gib in (0, 1))
    assert torch.equal(plain["latent"], kept["latent"])
    assert torch.equal(plain["text"], kept["text"])


def test_a_causal_codec_is_encoded_window_by_window(models, source, tmp_path):
    out = tmp_path / "out"
    plan = plan_of(models, source, out, codec="wan", text=None, frames=5, stride=2, video=True)
    precompute(plan, workers=1)
    codec, _ = build(codec_of(models, "wan"), None)
    both = ("latent", "video")
    stored = opened(out, deliver=both)
    for epoch in range(4):
        batch = batch_of(stored, [(1, epoch)], both)
        assert batch["latent"].shape == (1, 4, 2, 2, 2)
        expected = codec.encode(scale_pixels(batch["video"]))
        torch.testing.assert_close(batch["latent"], expected, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match=r"manifest\.parquet: frames, stride: found 9, \[2\]"):
        opened(out, frames=9, deliver=("latent",))


def test_each_clip_is_encoded_at_the_size_of_the_nearest_aspect_and_fits_the_bucket_of_that_size(models, tmp_path):
    tall = encode(moving_square(8, 40, 24, seed=9), 5.0)
    source = write_clips(tmp_path / "in", 2, 8, tall=clip_sample(tall, probe(tall), ["a"]))
    out = tmp_path / "out"
    precompute(plan_of(models, source, out, text=None, sizes=[(16, 24), (24, 16)]), workers=1)
    manifest = Manifest.load(out)
    assert manifest.column("width").tolist() == [24, 24, 16]
    data = Clips(manifest, [Bucket(4, 16, 24), Bucket(4, 24, 16)], deliver=("latent",))
    assert dict(zip(data.kinds.tolist(), data.counts.sum(0).tolist(), strict=True)) == {1: 2, 2: 1}
    latent = Reader([out], ("latent",)).alone(data.task(2, 1))["latent"]
    assert latent.shape == (4, 4, 12, 8)
    assert isinstance(latent, np.ndarray), "a tensor would cost a file descriptor on its way from a worker"


# A process that decodes imports this too: what takes seconds is for the main one.
KILLED = """
import os, signal, sys

if __name__ == "__main__":
    from pathlib import Path
    from tests.data.encoded.test_precompute import plan_of
    from videodiff.data.encoded import precompute as module

    source, models, out, name, calls = sys.argv[1:]
    real, left = getattr(module, name), int(calls)

    def deadly(*args):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(module, name, deadly)
    module.precompute(plan_of(Path(models), Path(source), Path(out)), workers=1)
"""


def test_killed_and_finished_by_two_processes_or_by_torchrun_it_has_the_same_bytes(models, source, cached, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    # In the middle of a tar, and between a tar and its note (the first note is that of the settings).
    runs = [("append", 4), ("write_whole", 4)]
    environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parents[3]}"}
    processes = [
        warm.start(
            [sys.executable, script, source, models, tmp_path / name, name, str(calls)], env=environment, cwd=tmp_path
        )
        for name, calls in runs
    ]
    assert [process.wait(300) for process in processes] == [-signal.SIGKILL] * 2
    notes = [len(list((tmp_path / name / ".cache").glob("*.tar.json"))) for name, _ in runs]
    assert notes == [1, 2]
    assert len(list((tmp_path / "append").glob(".*.partial"))) == 1
    assert len(list((tmp_path / "write_whole").glob("*.tar"))) == 3
    for name, _ in runs:
        with pytest.raises(FileNotFoundError, match=r"found no manifest\.parquet"):
            Manifest.load(tmp_path / name)
    precompute(plan_of(models, source, tmp_path / "append", decoders=2), workers=2)
    assert contents(tmp_path / "append") == contents(cached)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "videodiff"]
    command += ["cache", str(source), f"out={tmp_path / 'write_whole'}", *options(models)]
    done = warm.run(command, env=environment, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "7 samples in" in done.stdout
    assert contents(tmp_path / "write_whole") == contents(cached)


def test_nothing_is_done_twice_and_a_shard_that_changed_is_done_again(models, source, cached, tmp_path, monkeypatch):
    copy, out = tmp_path / "source", shutil.copytree(cached, tmp_path / "out")
    shutil.copytree(source, copy)
    done = []
    monkeypatch.setattr(module, "encode_shard", lambda plan, source, number, *rest: done.append(number))
    precompute(plan_of(models, copy, out), workers=1)
    assert done == []
    monkeypatch.undo()
    write_clips(copy, 3)
    made = precompute(plan_of(models, copy, out), workers=1)
    assert (made["samples"], made["shards"]) == (3, len(Manifest.load(copy).shards))
    assert {path.name for path in out.glob("*.tar")} == {path.name for path in copy.glob("*.tar")}
    assert Manifest.load(out).column("key").tolist() == ["clip0", "clip1", "clip2"]


def test_what_cannot_be_encoded_is_left_out_and_named(models, tmp_path):
    broken, row = sample(0)
    short = encode(moving_square(3, 24, 40), 5.0)
    more = {
        "broken": ({**broken, "mp4": broken["mp4"][:300]}, row),
        "short": clip_sample(short, probe(short), ["a"]),
        "liar": (sample(1)[0], {**row, "frames": 40}),
    }
    source, out = write_clips(tmp_path / "in", 2, **more), tmp_path / "out"
    made = precompute(plan_of(models, source, out, codec="wan", frames=5), workers=1)
    assert (made["samples"], made["failed"]) == (2, 3)
    assert Manifest.load(out).column("key").tolist() == ["clip0", "clip1"]
    failed = {
        entry["key"]: entry["reason"] for entry in map(json.loads, (out / "failed.jsonl").read_text().splitlines())
    }
    assert set(failed) == {"broken", "short", "liar"}
    assert "too few for a window" in failed["short"]
    assert "found 8 frames" in failed["liar"]


def spoilt(video: bytes) -> bytes:
    """Return a video with one wrong byte, for which a decoder gives other frames without an error."""
    frames = decode(video, range(FRAMES))
    for place in range(len(video) - 1, video.index(b"mdat"), -1):
        other = video[:place] + bytes([video[place] ^ 0x10]) + video[place + 1 :]
        with suppress(DecodeError):
            if not np.array_equal(decode(other, range(FRAMES)), frames):
                return other
    raise AssertionError("every wrong byte is an error or changes nothing")


def test_bytes_that_changed_since_they_were_packed_are_not_encoded(models, tmp_path):
    source, out = write_clips(tmp_path / "in", 3), tmp_path / "out"
    found = Manifest.load(source)
    video, caption = read_sample(source, found.row(0))["mp4"], CAPTIONS[2][0].encode()
    for row, old, new in ((found.row(0), video, spoilt(video)), (found.row(2), caption, b"\xe4" + caption[1:])):
        path, start = source / row["shard"], row["offset"]
        data = path.read_bytes()
        path.write_bytes(data[:start] + data[start:].replace(old, new, 1))
    made = precompute(plan_of(models, source, out), workers=1)
    assert (made["samples"], made["failed"]) == (1, 2)
    assert Manifest.load(out).column("key").tolist() == ["clip1"]
    lines = (out / "failed.jsonl").read_text().splitlines()
    failed = {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}
    assert "found other bytes (sha256 " in failed["clip0"]
    assert failed["clip2"].startswith("txt: found a byte 0xe4 that is not UTF-8")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    # The clips have 24 x 40 pixels; the second size is nearer to them than a square.
    [([SIZE], 0), ([(32, 32)], 7), ([(64, 64), (24, 40)], 0), ([(16, 16), (26, 42)], 7)],
)
def test_clips_that_are_enlarged_are_counted(source, sizes, expected):
    assert module.enlarged(Manifest.load(source), sizes) == expected


def test_a_hanging_decoder_costs_its_clip_only(models, tmp_path, monkeypatch):
    out = tmp_path / "out"
    plan = plan_of(models, write_clips(tmp_path / "in", 2, 8), out, text=None, timeout=3.0, decoders=1)
    monkeypatch.setattr(module, "PartReader", hanging_part.AllButClip1)
    made = precompute(plan, workers=1)
    assert (made["samples"], made["failed"]) == (1, 1)
    assert "timeout: took longer than 3 s" in (out / "failed.jsonl").read_text()


def test_the_time_of_a_clip_begins_when_its_bytes_are_here(models, tmp_path, monkeypatch):
    out = tmp_path / "out"
    plan = plan_of(models, write_clips(tmp_path / "in", 2, 8), out, text=None, timeout=1.0, decoders=1)
    monkeypatch.setattr(module, "PartReader", hanging_part.FromSlowHost)
    made = precompute(plan, workers=1)
    assert (made["samples"], made["failed"]) == (2, 0)


def test_numbers_that_float16_does_not_hold_name_their_clip(models, tmp_path):
    source, out = write_clips(tmp_path / "in", 1, 8), tmp_path / "out"
    codec = {**codec_of(models), "mean": [0.0] * 4, "std": [1e-9] * 4}
    plan = Plan(str(source), out, partial(build, codec=codec, text=None), [SIZE], decoders=0)
    with pytest.raises(ValueError, match="found no sample that could be encoded"):
        precompute(plan, workers=1)
    assert r"latent.npy: found numbers up to" in (out / "failed.jsonl").read_text()
    assert not (out / "manifest.parquet").exists()


def test_another_codec_or_text_encoder_than_the_datasets_is_an_error_that_names_both(models, cached):
    codec, text = build(codec_of(models), text_of(models))
    data = opened(cached, deliver=ENCODED)
    data.check_encoders(codec, text)
    other_codec, other_text = build(codec_of(models, "other_vae"), text_of(models, "other_t5"))
    with pytest.raises(
        ValueError, match=r"found latent by AutoencoderKL .*/vae \(fing.*configured AutoencoderKL .*/other_vae"
    ):
        data.check_encoders(other_codec, text)
    with pytest.raises(
        ValueError, match=r"found text by T5EncoderModel .*/t5 \(fing.*configured T5EncoderModel .*/other_t5"
    ):
        data.check_encoders(codec, other_text)
    scaled = Autoencoder(str(models / "vae"), dtype="float32", mean=[0.0] * 4, std=[1.0] * 4)
    with pytest.raises(ValueError, match="found latent by"):
        data.check_encoders(scaled, text)
    with pytest.raises(ValueError, match="found text by"):
        data.check_encoders(codec, Transformers(str(models / "t5"), dtype="float32", max_length=5))
    with pytest.raises(ValueError, match=r"found latent by .*, which differ in weights or in codec\.dtype"):
        data.check_encoders(Autoencoder(str(models / "vae"), dtype="bfloat16"), text)


def test_the_same_model_in_another_place_is_the_same(models, cached, tmp_path):
    shutil.copytree(models / "vae", tmp_path / "vae")
    shutil.copytree(models / "t5", tmp_path / "t5")
    opened(cached, deliver=ENCODED).check_encoders(*build(codec_of(tmp_path), text_of(tmp_path)))


def test_latents_that_nobody_says_the_origin_of_are_never_trained_on(source):
    for what in ("latent", "text"):
        with pytest.raises(ManifestError, match=f"found no record of the encoder of {what}.npy"):
            opened(source, deliver=(what,))


def test_latents_of_another_size_are_an_error(cached):
    with pytest.raises(ValueError, match="found latents of 16 x 16 pixels, expected latents of 32 x 32 pixels"):
        Clips(Manifest.load(cached), [Bucket(5, 32, 32)], deliver=("latent",), any_size=True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"codec": "other_vae"},
            r"latent: found AutoencoderKL .*other_vae .*expected AutoencoderKL .*/vae .*another out",
        ),
        ({"text": None}, r"text: found None, expected T5EncoderModel"),
        ({"stride": 2}, r"stride: found 2, expected 1 as in"),
        ({"sizes": [(32, 32)]}, r"sizes: found \[\[32, 32\]\], expected \[\[16, 16\]\] as in"),
        ({"codec": None, "video": True}, r"latent: found None, expected AutoencoderKL .*vae"),
        ({"video": True}, r"video: found True, expected False"),
    ],
)
def test_a_folder_that_was_begun_otherwise_is_left_as_it_is(models, source, cached, tmp_path, how, message):
    out = Path(shutil.copytree(cached, tmp_path / "out"))
    with pytest.raises(ValueError, match=message):
        precompute(plan_of(models, source, out, **how), workers=1)
    assert contents(out) == contents(cached)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"codec": None, "text": None}, "expected at least one"),
        ({"codec": None}, "expected video=true or a codec"),
        ({"sizes": [(16, 15)]}, r"sizes: found \[\[16, 15\]\], expected \[height, width\] divisible by 2 and 2"),
        ({"frames": 5}, "frames: found 5, expected null"),
        ({"decoders": -1}, "decoders=-1"),
    ],
)
def test_settings_that_do_not_fit_are_an_error_before_anything_is_written(models, source, tmp_path, how, message):
    with pytest.raises(ValueError, match=message):
        precompute(plan_of(models, source, tmp_path / "out", **how), workers=1)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_shards_is_not_written_into_and_no_url(models, source, tmp_path):
    other = Path(shutil.copytree(source, tmp_path / "other"))
    of_another = rf"{other}/manifest\.parquet of another dataset"
    for out, message in ((source, "the dataset itself"), (other, of_another), (Path("s3://b/c"), "the URL")):
        with pytest.raises(ValueError, match=f"out: found {message}"):
            precompute(plan_of(models, source, out), workers=1)
    assert contents(other) == contents(source)
    assert not (other / ".cache").exists()
    assert not Path("s3:").exists()


def test_pickled_weights_are_never_read(models, source, tmp_path):
    folder = Path(shutil.copytree(models / "vae", tmp_path / "vae"))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "diffusion_pytorch_model.bin")
    plan = Plan(str(source), tmp_path / "out", partial(build, codec=codec_of(tmp_path), text=None), [SIZE], decoders=0)
    with pytest.raises(InstantiationException, match="cannot load AutoencoderKL"):
        precompute(plan, workers=1)


def test_text_alone_keeps_the_video(models, source, tmp_path):
    out = tmp_path / "out"
    precompute(plan_of(models, source, out, codec=None, video=True), workers=1)
    both, places = ("video", "text"), [(row, 0) for row in range(3)]
    batch, fly = batch_of(opened(out, deliver=both), places, both), batch_of(opened(source), places)
    assert torch.equal(batch["video"], fly["video"])
    assert batch["text"].shape[2] == 16


def recipe(models: Path, root: Path, run: Path, *more: str) -> list[str]:
    """Return the overrides of three steps of the large recipe, with small models, on the CPU."""
    return [
        "experiment=hdvila_256",
        f"data.root={root}",
        f"run={run}",
        f"codec.path_or_name={models / 'vae'}",
        "codec.dtype=float32",
        f"text.path_or_name={models / 't5'}",
        "text.subfolder=null",
        "text.tokenizer_subfolder=null",
        "text.dtype=float32",
        "text.max_length=6",
        "model=tiny",
        "model.width=16",
        "model.depth=2",
        "strategy=auto",
        "optimizer.ema_decay=0.9",
        f"data.height={SIZE[0]}",
        f"data.width={SIZE[1]}",
        "data.frames=6",
        "data.global_batch=4",
        "data.micro_batch=4",
        "data.num_workers=0",
        "trainer.precision=32-true",
        "trainer.max_steps=3",
        "trainer.log_every_n_steps=1",
        "schedule.warmup=1",
        *more,
    ]


def losses(run: Path) -> list[float]:
    (path,) = run.glob("metrics/version_*/metrics.csv")
    with path.open() as lines:
        return [float(row["train/loss"]) for row in csv.DictReader(lines) if row["train/loss"]]


def test_training_from_the_cache_has_the_losses_of_encoding_on_the_fly(call, models, source, tmp_path):
    out = tmp_path / "out"
    status, printed, error = call("cache", f"data={source}", f"out={out}", "workers=1", *options(models))
    assert (status, f"{out}: 7 samples in" in printed) == (0, True), error
    stored = "data.deliver=[latent,text]"
    for root, name, *more in ((source, "fly"), (out, "cached", stored)):
        status, _, error = call("train", *recipe(models, root, tmp_path / name, *more))
        assert status == 0, error
    fly, cached = losses(tmp_path / "fly"), losses(tmp_path / "cached")
    assert len(fly) == 3
    assert cached == pytest.approx(fly, rel=2e-3)
    status, _, error = call("train", *recipe(models, out, tmp_path / "other"))
    assert (status, "found no video, expected one for data.deliver=[video]" in error) == (1, True), error
    assert "data.deliver=[latent,text] reads what it has" in error
    other = f"codec.path_or_name={models / 'other_vae'}"
    status, _, error = call("train", *recipe(models, out, tmp_path / "other", stored, other))
    assert status == 1
    assert "found latent by AutoencoderKL" in error
    assert "other_vae" in error
    assert not (tmp_path / "other" / "config.yaml").exists()


def test_the_command_tells_what_is_wrong_in_one_line(call, models, source, tmp_path):
    for arguments, message in (
        ([str(source)], "expected at least one of them"),
        (["nowhere"], "nowhere: found no such folder, expected a dataset"),
        ([str(source), "codec=sd_vae", f"codec.path_or_name={tmp_path}"], "found no"),
        ([str(source), "sizes=3", "codec=pixels"], "sizes"),
    ):
        status, _, error = call("cache", *arguments, f"out={tmp_path / 'out'}")
        assert (status, error.startswith("videodiff cache: error: "), error.count("\n")) == (1, True, 1), error
        assert message in error
