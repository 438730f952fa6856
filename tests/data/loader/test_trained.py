"""Shapes and rates that a run trains on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.material.made_clips import moving_square
from videodiff.data.loader.datamodule import clip_data
from videodiff.data.loader.trained import Trained, begun, read_trained, usual, write_trained
from videodiff.data.samples.shards import ShardWriter, clip_sample
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode


def write(root: Path, *clips: tuple[int, float]) -> str:
    """Write a clip for each (frames, frames a second)."""
    with ShardWriter(root) as writer:
        for number, (frames, fps) in enumerate(clips):
            video = encode(moving_square(frames), fps)
            writer.add(f"clip{number}", *clip_sample(video, probe(video), ["a"]))
    return str(root)


def trained(root: str, **how: object) -> list[Trained]:
    return clip_data(root=root, **{"frames": 4, "height": 16, "width": 16, "global_batch": 1, **how}).trained


def test_the_rate_is_that_of_the_clips_over_the_stride(tmp_path: Path) -> None:
    root = write(tmp_path, (8, 15.0), (8, 15.0))
    assert [one.rates for one in trained(root, stride=2)] == [{7.5: 1.0}]
    assert trained(root, stride=2)[0].rate == 7.5


def test_several_rates_have_their_shares_and_no_one_of_them_is_the_rate(tmp_path: Path) -> None:
    (one,) = trained(write(tmp_path, (8, 20.0), (8, 5.0), (8, 20.0), (8, 20.0)))
    assert (one.rates, one.rate) == ({20.0: 0.75, 5.0: 0.25}, None)
    near = one._replace(rates={24.0: 0.6, 23.976: 0.4})
    assert near.rate == 24.0


def test_rates_follow_how_often_a_dataset_is_drawn(tmp_path: Path) -> None:
    more = write(tmp_path / "b", (8, 5.0))
    (one,) = trained(write(tmp_path / "a", (8, 20.0), (8, 20.0)), more=[{"root": more}], weights=[0.25, 0.75])
    assert one.rates == pytest.approx({5.0: 0.75, 20.0: 0.25})


def test_of_several_strides_each_clip_counts_those_that_it_is_long_enough_for(tmp_path: Path) -> None:
    rules = [{"frames": 4, "height": 16, "width": 16, "strides": [1, 2]}]
    (one,) = trained(write(tmp_path, (8, 12.0), (5, 12.0)), buckets=rules)
    assert one.rates == pytest.approx({12.0: 2 / 3, 6.0: 1 / 3})


def shape(frames: int, first: int = 0, share: float = 0.5) -> Trained:
    return Trained(first, frames, 16, 16, (1,), share, {5.0: 1.0})


def test_the_usual_shape_is_the_largest_share_of_the_last_stage_a_clip_before_a_picture() -> None:
    assert usual([shape(4)]).frames == 4
    assert usual([shape(9, share=1.0), shape(4, 5, 0.3), shape(8, 5, 0.7)]).frames == 8
    assert usual([shape(1, share=0.8), shape(4, share=0.2)]).frames == 4
    assert usual([shape(8, share=1.0), shape(1, 5, 1.0)]).frames == 1


@pytest.mark.parametrize(("step", "frames"), [(1, 1), (5, 1), (6, 8), (99, 8)])
def test_a_stage_that_training_has_not_begun_is_not_sampled_in(step: int, frames: int) -> None:
    assert usual(begun([shape(1), shape(8, first=5)], step)).frames == frames


def test_validation_and_examples_take_the_usual_shape_not_that_beside_the_buckets(tmp_path: Path) -> None:
    root = write(tmp_path, (8, 5.0), (8, 5.0), (2, 5.0))
    rules = [{"frames": 6, "height": 32, "width": 16}, {"frames": 2, "height": 16, "width": 16}]
    how = {"frames": 3, "height": 16, "width": 16, "global_batch": 1, "buckets": rules}
    data = clip_data(root=root, validation_root=root, **how)
    (batch, *_) = data.val_dataloader()
    assert tuple(batch["video"].shape[1:]) == (3, 6, 32, 16)
    for one in (data, clip_data(root=root, **how)):
        assert [example["video"].shape for example in one.examples(2)] == [(6, 32, 16, 3)] * 2
    assert [example["key"] for example in data.examples(5)] == ["clip0", "clip1"]
    # With one shape a clip that does not fit it is a mistake, as in training.
    alone = how | {"buckets": None, "frames": 6}
    with pytest.raises(ValueError, match=r"data\.validation_root: .*clip2: found 2 frames"):
        _ = clip_data(root=write(tmp_path / "long", (8, 5.0)), validation_root=root, **alone).validation


def test_examples_say_why_no_clip_can_be_read(tmp_path: Path) -> None:
    root = write(tmp_path, (8, 5.0), (8, 5.0))
    (shard,) = tmp_path.glob("*.tar")
    shard.write_bytes(shard.read_bytes().replace(b"ftyp", b"ftpy"))
    data = clip_data(root=root, frames=4, height=16, width=16, global_batch=1, num_workers=0)
    with pytest.raises(ValueError, match=r"too few clips that can be read, expected 2; the first that cannot: .*clip0"):
        data.examples(2)


def test_the_shapes_come_back_from_the_run(tmp_path: Path) -> None:
    shapes = [Trained(5, 8, 16, 24, (1, 2), 1.0, {12.5: 0.75, 6.25: 0.25})]
    write_trained(tmp_path, shapes)
    assert read_trained(tmp_path) == shapes
    assert read_trained(tmp_path / "none") is None


def change(key: str, value: object) -> Callable[[list[dict[str, object]]], None]:
    return lambda records: records[0].update({key: value})


@pytest.mark.parametrize(
    "spoil",
    [
        change("frames", 0), change("frames", None), change("rates", {"-5": 1}), change("rates", {"inf": 1}),
        change("strides", []), change("strides", "x"), lambda records: records.clear(),
    ],
)  # fmt: skip
def test_shapes_that_are_none_are_an_error_that_names_the_file(tmp_path: Path, spoil: Callable[..., None]) -> None:
    write_trained(tmp_path, [shape(4)])
    records = json.loads((tmp_path / "trained.json").read_text())
    spoil(records)
    (tmp_path / "trained.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"trained\.json: cannot be read as the shapes of a run"):
        read_trained(tmp_path)
