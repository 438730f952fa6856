"""What a clip costs, and batches whose steps take equal time."""

from __future__ import annotations

import numpy as np
import pytest
from omegaconf import OmegaConf

from videodiff.codec.pixels import Pixels
from videodiff.data.order.buckets import Bucket
from videodiff.diffusion.flow_map import FlowMap
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective
from videodiff.diffusion.path import RectifiedFlow
from videodiff.planning.cost import Cost, batch_sizes
from videodiff.planning.flops import forward, network_of
from videodiff.text.words import Words
from videodiff.verbs.config.build import clip_cost, network_of_run


def test_batch_sizes_make_steps_of_equal_time_within_memory():
    buckets = [Bucket(64, 512, 512), Bucket(32, 256, 256), Bucket(16, 256, 256), Bucket(1, 256, 256)]
    tokens = [int(np.prod(bucket.tokens((1, 16, 16)))) for bucket in buckets]
    network = network_of(1152, ["space", "time"], 28, patch=16, words=120, text_width=4096)
    flops = [forward(*bucket.tokens((1, 16, 16)), network).total for bucket in buckets]
    sizes = batch_sizes(list(map(Cost, flops, tokens)), 66000, shares=24)
    clips = [size // 24 for size in sizes]
    assert [size % 24 for size in sizes] == [0] * 4
    assert clips[0] == 1
    assert max(n * t for n, t in zip(clips, tokens, strict=True)) <= 66000
    times = [n * cost for n, cost in zip(clips, flops, strict=True)]
    assert max(times) / min(times) < 1.15


def test_a_cheap_clip_is_taken_as_often_as_comes_nearest_to_the_time_of_a_dear_one():
    # Four of the dear ones fill the memory and take 400; thirteen of the cheap ones come nearest to that.
    assert batch_sizes([Cost(100, 10), Cost(30, 1)], 40, shares=1) == [4, 13]
    # One clip of a bucket is the least; its time is that of all.
    assert batch_sizes([Cost(100, 40), Cost(30, 20)], 40, shares=6) == [6, 12]


def test_a_clip_beyond_memory_is_an_error():
    with pytest.raises(ValueError, match=r"batch\.tokens: found 100, expected at least 120"):
        batch_sizes([Cost(1, 120), Cost(2, 60)], 100, 1)


class Halving:
    """A codec of one's own: no folder to read, but half the frames, height and width."""

    @staticmethod
    def read_shape(depth: int) -> tuple[int, tuple[int, int, int]]:
        return depth, (2, 2, 2)


MODEL = {
    "width": 32,
    "axes": ["space", "time"],
    "captioned": [True],
    "depth": 4,
    "heads": 2,
    "mlp_ratio": 4.0,
    "patch": [1, 2, 2],
    "step_rank": 3,
}
TEXT = {"_target_": "videodiff.text.words.Words", "max_words": 6, "width": 8, "vocabulary": ["a"], "long": "cut"}
CONFIG = OmegaConf.create({"model": MODEL, "codec": {"_target_": f"{__name__}.Halving", "depth": 5}, "text": TEXT})


def test_a_codec_and_an_encoder_state_their_shape_themselves():
    found = clip_cost(CONFIG)(Bucket(8, 32, 48))
    # Half of 8 frames; a patch covers 4 x 4 pixels.
    time, space = 4, 8 * 12
    network = network_of(32, ["space", "time"], 4, patch=5 * 1 * 2 * 2, words=6, text_width=8)
    assert found == Cost(forward(time, space, network).total, time * space)
    assert Pixels.read_shape(**{"channels": 3}) == (Pixels(3).channels, Pixels(3).compression)
    words = Words(["a"], width=7, max_words=5)
    assert Words.read_shape(max_words=5, width=7, vocabulary=["a"]) == (words.max_words, words.width)


def test_weights_for_steps_cost_only_where_steps_are_taken():
    path, levels = RectifiedFlow(), NoiseLevels()
    plain, mapped = (network_of_run(CONFIG, kind(path, levels)) for kind in (Objective, FlowMap))
    assert plain == network_of_run(CONFIG)
    assert mapped == plain._replace(step_rank=3, forwards=7.0, own=2.0)
