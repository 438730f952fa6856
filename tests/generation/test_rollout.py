"""Clips longer than a window: every way ends at the length that is asked for, and begins as a short clip does."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.generation.test_sampling import Overflowing
from videodiff.codec.pixels import Pixels
from videodiff.diffusion.path import RectifiedFlow
from videodiff.diffusion.sampler import euler
from videodiff.generation.rollout import KINDS, Rollout, overlap_of, seed_of, with_keys
from videodiff.generation.sampling import NotFiniteError, Wanted, sample_clips
from videodiff.generation.settings import Generation
from videodiff.text.words import Words

SHAPE, HOW = (6, 4, 4), Rollout(40, 2, 0.02)
ONE = Wanted("a ball", 5.0, 7)
each_kind = pytest.mark.parametrize("kind", KINDS)


class Brighter(nn.Module):
    """A denoiser of a world where each frame is a step brighter than the last known one before it, a fifth a second."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.words: list[int] = []

    def forward(self, z: Tensor, tau: Tensor, text: Tensor, text_mask: Tensor, fps: Tensor) -> Tensor:
        self.calls.append((z, tau))
        # The start token is no word.
        self.words.append(int(text_mask.sum()) - 1)
        x, step = z.clone(), 0.2 / fps[0]
        for t in range(z.shape[2]):
            if tau[0, t] > 0.1:
                before = x[:, :, t - 1] if t else torch.full_like(x[:, :, 0], -0.9)
                x[:, :, t] = before + step
        return x * self.weight


def parts() -> SimpleNamespace:
    objective = SimpleNamespace(path=RectifiedFlow(), prediction="x")
    return SimpleNamespace(denoiser=Brighter(), objective=objective, codec=Pixels(), text=Words(["a", "ball"], 8, 4))


def made(kind: str, how: Rollout = HOW, one: Wanted = ONE, model: SimpleNamespace | None = None) -> np.ndarray:
    return np.stack(list(KINDS[kind](model or parts(), Generation(euler, steps=6), one, SHAPE, how)))


@each_kind
def test_a_long_clip_has_its_length_and_goes_on_as_the_world_does(kind: str) -> None:
    clip = made(kind, HOW._replace(held=0.0))
    assert clip.shape == (40, 4, 4, 3)
    brightness = clip.mean(axis=(1, 2, 3)) / 127.5 - 1
    assert brightness == pytest.approx(-0.9 + 0.04 * np.arange(1, 41), abs=0.05 if kind != "keys" else 0.25)


@each_kind
def test_a_longer_clip_begins_with_the_shorter_one(kind: str) -> None:
    assert np.array_equal(made(kind)[:17], made(kind, HOW._replace(total=17)))
    assert len(made(kind, HOW._replace(total=3))) == 3


@pytest.mark.parametrize("kind", ["continue", "rolling"])
def test_the_first_window_is_the_clip_that_is_made_without_a_rollout(kind: str) -> None:
    (short,) = sample_clips(parts(), Generation(euler, steps=6), [ONE], SHAPE)
    assert np.array_equal(made(kind)[:6], short)


@pytest.mark.parametrize("kind", ["continue", "rolling"])
def test_the_network_is_told_of_the_noise_on_the_history(kind: str) -> None:
    model = parts()
    made(kind, model=model)
    later = [(z, tau) for z, tau in model.denoiser.calls if tau[0, 0] < 0.1]
    assert len(later) > 20
    for _, tau in later:
        assert tau[0, :2].tolist() == pytest.approx([0.02, 0.02])
        assert (tau[0, 2:] > 0.1).any()


def test_in_a_window_that_slides_noise_grows_with_time_and_each_step_ends_a_frame() -> None:
    model = parts()
    made("rolling", HOW._replace(total=30), model=model)
    ramps = [tau[0, 2:] for _, tau in model.denoiser.calls if len(set(tau[0].tolist())) > 3]
    assert all((ramp.diff() > 0).all() for ramp in ramps)
    assert len(ramps) == 2 * (30 - 6)


@each_kind
def test_every_frame_begins_with_noise_of_the_size_that_is_asked_for(kind: str) -> None:
    begun = []
    for size in (1.0, 0.5):
        model = parts()
        list(KINDS[kind](model, Generation(euler, steps=6, noise=size), ONE, SHAPE, HOW))
        begun.append([z[:, :, tau[0] == 1] for z, tau in model.denoiser.calls if (tau == 1).any()])
    assert len(begun[0]) == len(begun[1]) > 6
    for usual, half in zip(*begun, strict=True):
        torch.testing.assert_close(half, usual / 2)


@each_kind
def test_frames_are_made_when_they_are_asked_for(kind: str) -> None:
    model = parts()
    frames = KINDS[kind](model, Generation(euler, steps=6), ONE, SHAPE, HOW._replace(total=10**9))
    assert len(list(islice(frames, 20))) == 20
    assert len(model.denoiser.calls) < 200


@each_kind
def test_frames_that_the_codec_cannot_decode_end_a_long_clip(kind: str) -> None:
    model = SimpleNamespace(**{**vars(parts()), "codec": Overflowing()})
    with pytest.raises(NotFiniteError, match="pixels that are not finite"):
        made(kind, model=model)


def words_of_windows(kind: str, how: Rollout, one: Wanted = ONE) -> list[int]:
    """Return how many words the caption of each window has; a window takes six calls."""
    model = parts()
    made(kind, how, one, model)
    return model.denoiser.words[::6]


def test_a_caption_is_told_to_all_windows_or_to_the_first_alone() -> None:
    for after, words in (("guide", [2] * 10), ("tell", [2] * 10), ("drop", [2] + [0] * 9)):
        assert words_of_windows("continue", HOW._replace(after=after)) == words


def test_later_captions_begin_with_the_first_window_of_their_time() -> None:
    # Windows of 6 frames, 2 of them given, make the frames from 0, 6, 10, 14, 18 ... on.
    later = HOW._replace(later=((11, "ball"), (30, "a a ball")))
    assert words_of_windows("continue", later) == [2, 2, 2, 1, 1, 1, 1, 3, 3, 3]
    assert words_of_windows("continue", later._replace(after="drop")) == [2, 0, 0, 1, 0, 0, 0, 3, 0, 0]


def test_a_window_that_slides_is_led_until_all_its_frames_are_new() -> None:
    model = parts()
    made("rolling", HOW._replace(total=30, later=((12, "ball"),), after="drop"), model=model)
    # Two windows of six calls, then two calls a frame, from frame 6 on.
    assert model.denoiser.words[:12] == [2] * 6 + [0] * 6
    assert model.denoiser.words[12::2] == [0] * 6 + [1] * 4 + [0] * 14


def test_a_window_that_slides_encodes_each_caption_once() -> None:
    model, seen = parts(), []
    model.text.register_forward_pre_hook(lambda _, given: seen.append(*given))
    made("rolling", HOW._replace(total=30, later=((12, "ball"),)), model=model)
    # Two windows, and two captions while the window slides.
    assert [captions for captions in seen if captions != [""]] == [["a ball"]] * 3 + [["ball"]]


def test_frames_between_keys_are_led_where_the_caption_leads() -> None:
    words = words_of_windows("keys", HOW._replace(total=20, after="drop"))
    # The first keys, four segments between them, and only the first of these begins where the caption leads.
    assert words == [2, 2, 0, 0, 0]


def test_frames_between_keys_have_the_caption_of_their_keys() -> None:
    # Windows of 6 keys, 2 of them given, 5 frames apart: they make the keys of frames 0, 30, 50, 70 ... on.
    for asked, found in ((1, 30), (11, 30), (30, 30), (31, 50), (51, 70)):
        assert with_keys([(asked, "ball")], 6, 2) == ((found, "ball"),)
    assert with_keys([(11, "ball"), (12, "a"), (40, "a ball")], 6, 2) == ((30, "a"), (50, "a ball"))
    words = words_of_windows("keys", HOW._replace(total=45, later=with_keys([(11, "ball")], 6, 2)))
    # The first keys and the 5 segments between them; the next keys, the segment that leads to them, and those after it.
    assert words == [2] + [2] * 5 + [1] + [2] + [1] * 3


@pytest.mark.parametrize(
    ("after", "calls"),
    [("guide", [(2, 2), (0, 2)]), ("tell", [(2, 2), (2, 0)]), ("drop", [(0, 2), (0, 0)])],
)
def test_the_caption_guides_its_own_window_and_the_history_those_after_it(
    after: str, calls: list[tuple[int, int]]
) -> None:
    model, guided = parts(), Generation(euler, steps=6, scale=3.0)
    list(KINDS["continue"](model, guided, ONE, SHAPE, HOW._replace(total=14, after=after)))
    # Each step of the first window calls the network with and without its caption.
    assert model.denoiser.words[:12] == [2, 0] * 6
    # In the two later ones: words of the caption, and how many frames are known.
    known = [int((tau[0] < 0.1).sum()) for _, tau in model.denoiser.calls[12:]]
    assert list(zip(model.denoiser.words[12:], known, strict=True)) == calls * 12


def test_a_caption_that_is_to_guide_a_long_clip_guides_it_whatever_guides_a_single_one() -> None:
    seen = []
    for guide in ("caption", "history"):
        model = parts()
        list(
            KINDS["continue"](
                model, Generation(euler, steps=3, scale=3.0, guide=guide), ONE, SHAPE, HOW._replace(total=14)
            )
        )
        seen.append(model.denoiser.words)
    assert seen[0] == seen[1] == [2, 0] * 9


def test_known_frames_begin_a_long_clip_unchanged() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    for kind in ("continue", "rolling"):
        assert np.array_equal(made(kind, one=ONE._replace(known=(0, 1), frames=frames))[:2], frames)


def test_a_codec_that_makes_no_single_frames_is_refused_where_they_are_needed() -> None:
    model = parts()
    model.codec = SimpleNamespace(causal=True, compression=(4, 8, 8), name="causal")
    for kind in ("rolling", "keys"):
        with pytest.raises(ValueError, match=f"rollout: found {kind} with the codec causal, expected continue"):
            made(kind, model=model)


def test_the_overlap_is_what_a_codec_can_be_given() -> None:
    single, double = (SimpleNamespace(patch=(patch, 4, 4)) for patch in (1, 2))
    assert [overlap_of(Pixels(), single, 8, asked) for asked in (None, 1, 7)] == [3, 1, 7]
    assert [overlap_of(Pixels(), double, 8, asked) for asked in (None, 3)] == [2, 3]
    causal = SimpleNamespace(
        causal=True, compression=(4, 8, 8), name="causal", latent_frames=lambda t: 1 + (t - 1) // 4
    )
    assert overlap_of(causal, single, 9, None) == 1
    with pytest.raises(ValueError, match="overlap: found 8, expected 1 to 7"):
        overlap_of(Pixels(), single, 8, 8)


def test_parts_of_a_clip_have_seeds_of_their_own() -> None:
    assert seed_of(7, 0) == 7
    assert len({seed_of(seed, number) for seed in range(20) for number in range(20)}) == 400
