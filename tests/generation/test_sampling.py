"""Clips from what is wanted of each: its own rate, seed and known frames, whatever is sampled beside it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from videodiff.codec.pixels import Pixels
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.path import RectifiedFlow
from videodiff.diffusion.sampler import euler
from videodiff.generation.sampling import (
    NoRoomError,
    NotFiniteError,
    Wanted,
    going_on,
    kept_latents,
    sample_clips,
    sample_each,
)
from videodiff.generation.settings import Generation
from videodiff.text.words import Words


class RateTeller(nn.Module):
    """A denoiser whose clip is the rate that it is told, as grey."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, tau: Tensor, text: Tensor, text_mask: Tensor, fps: Tensor) -> Tensor:
        return (fps / 50 - 1).view(-1, 1, 1, 1, 1).expand_as(z) * self.weight


class SeenTeller(RateTeller):
    """A denoiser whose clip is a tenth brighter than grey if its first frame is known, whatever the caption."""

    def forward(self, z: Tensor, tau: Tensor, text: Tensor, text_mask: Tensor, fps: Tensor) -> Tensor:
        return (0.1 * (tau[:, 0] == 0)).view(-1, 1, 1, 1, 1).expand_as(z) * self.weight


class Causal(nn.Module):
    """A codec that makes a latent of the first frame and one of every two after it: their mean; it notes its input."""

    causal, compression, channels, name = True, (2, 1, 1), 3, "of pairs"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def latent_frames(self, t: int) -> int:
        return 1 + (t - 1) // 2

    def encode(self, video: Tensor) -> Tensor:
        self.seen.append(video)
        return torch.cat([video[:, :, :1], video[:, :, 1:].unflatten(2, (-1, 2)).mean(3)], dim=2)

    def decode(self, latent: Tensor) -> Tensor:
        return torch.cat([latent[:, :, :1], latent[:, :, 1:].repeat_interleave(2, dim=2)], dim=2)


def parts(codec: nn.Module) -> SimpleNamespace:
    objective = SimpleNamespace(path=RectifiedFlow(), prediction="x")
    return SimpleNamespace(denoiser=RateTeller(), objective=objective, codec=codec, text=Words(["a", "ball"], 8, 4))


def made(codec: nn.Module, *wanted: Wanted, frames: int = 5) -> list[np.ndarray]:
    return sample_clips(parts(codec), Generation(euler, steps=3), wanted, (frames, 4, 6))


def test_every_clip_has_its_own_rate_whatever_is_beside_it() -> None:
    wanted = [Wanted("a ball", rate, seed) for seed, rate in enumerate((5.0, 20.0, 80.0))]
    together = made(Pixels(), *wanted)
    # Grey is rate / 50 - 1 in [-1, 1].
    assert [clip.mean() for clip in together] == pytest.approx([12.75, 51, 204], abs=0.5)
    for one, clip in zip(wanted, together, strict=True):
        assert np.array_equal(made(Pixels(), one)[0], clip)


@pytest.mark.parametrize("known", [(0,), (0, 1, 2), (0, 4)], ids=["image", "continuation", "interpolation"])
def test_known_frames_come_back_as_they_were_given(known: tuple[int, ...]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (len(known), 4, 6, 3), dtype=np.uint8)
    plain, kept = made(Pixels(), Wanted("", 20.0, 0), Wanted("a ball", 20.0, 1, known, frames))
    assert np.array_equal(kept[list(known)], frames)
    others = [t for t in range(5) if t not in known]
    assert (kept[others] == 51).all()
    assert (plain == 51).all()


def test_a_causal_codec_is_given_the_known_frames_alone() -> None:
    frames, codec = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8), Causal()
    (clip,) = made(codec, Wanted("a ball", 20.0, 0, (0, 1, 2), frames))
    assert [tuple(video.shape) for video in codec.seen] == [(1, 3, 3, 4, 6)]
    assert np.array_equal(clip[:3], frames)
    assert (clip[3:] == 51).all()


class LengthTeller(RateTeller):
    """A denoiser whose clip is dark, and bright where it is shorter than three latents."""

    def forward(self, z: Tensor, tau: Tensor, text: Tensor, text_mask: Tensor, fps: Tensor) -> Tensor:
        return torch.full_like(z, 0.5 if z.shape[2] < 3 else -0.5) * self.weight


@pytest.mark.parametrize(("codec", "lead", "bright"), [(Pixels, 2, 2), (Causal, 1, 1), (Causal, 2, 3), (Causal, 3, 0)])
def test_what_leads_apart_is_a_clip_of_so_many_latents(codec: type[nn.Module], lead: int, bright: int) -> None:
    network = SimpleNamespace(**{**vars(parts(codec())), "denoiser": LengthTeller()})
    how = Generation(euler, steps=2, lead=lead, apart=True)
    (clip,) = sample_clips(network, how, [Wanted("a ball", 20.0, 0)], (5, 4, 6))
    assert [set(frame.flat) for frame in clip] == [{191}] * bright + [{64}] * (5 - bright)


def test_known_latents_need_no_frames() -> None:
    latent = torch.full((3, 5, 4, 6), 0.5)
    (clip,) = made(Pixels(), Wanted("a ball", 20.0, 0, (0, 1), latent=latent))
    assert (clip[:2] == 191).all()
    assert (clip[2:] == 51).all()


def test_known_frames_that_are_nowhere_are_an_error() -> None:
    with pytest.raises(ValueError, match="found 2 frames to keep, expected frames or latents"):
        made(Pixels(), Wanted("a ball", 20.0, 0, (0, 1)))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("known", {"known": (0,), "frames": np.zeros((1, 4, 5, 3), np.uint8)}),
        ("known", {"known": (0, 1), "frames": np.zeros((1, 4, 6, 3), np.uint8)}),
        ("given", {"whole": np.zeros((4, 4, 6, 3), np.uint8)}),
    ],
)
def test_given_frames_of_another_size_are_an_error(name: str, wrong: dict) -> None:
    with pytest.raises(ValueError, match=rf"{name}: found .*, expected \d of 4 x 6, the size of the clip"):
        made(Pixels(), Wanted("a ball", 20.0, 0, **wrong))


def test_a_latent_is_kept_where_all_its_pixels_are() -> None:
    # A latent of the first frame and one of every two after it; 2 x 3 pixels each.
    new = np.zeros((5, 4, 6), bool)
    new[0, 3, 5] = new[3, 1, 2] = True
    wanted = torch.ones(3, 2, 2, dtype=torch.bool)
    wanted[0, 1, 1] = wanted[2, 0, 0] = False
    pairs = SimpleNamespace(causal=True, compression=(2, 2, 3))
    assert torch.equal(kept_latents(pairs, new, (3, 2, 2)), wanted)
    by_frames = torch.ones(5, 2, 2, dtype=torch.bool)
    by_frames[0, 1, 1] = by_frames[3, 0, 0] = False
    assert torch.equal(kept_latents(SimpleNamespace(causal=False, compression=(1, 2, 3)), new, (5, 2, 2)), by_frames)
    with pytest.raises(ValueError, match=r"mask: found \(5, 4, 6\), expected a size that gives \(2, 2, 2\) latents"):
        kept_latents(pairs, new, (2, 2, 2))


def test_the_size_of_a_batch_changes_no_clip() -> None:
    video = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    wanted = [going_on("a ball", 10.0 + seed, seed, seed % 3, video) for seed in range(5)]
    assert [one.known for one in wanted] == [(), (0,), (0, 1), (), (0,)]
    settings = (parts(Pixels()), Generation(euler, steps=3))
    at_once = sample_clips(*settings, wanted, (5, 4, 6))
    batches = [sample_clips(*settings, wanted[start : start + 2], (5, 4, 6), batch=2) for start in (0, 2, 4)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    for one, other in zip(at_once, (clip for batch in batches for clip in batch), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(at_once[2][:2], video[:2])


def test_known_frames_guide_a_clip_that_has_no_caption_alone_and_beside_one_that_has() -> None:
    network = SimpleNamespace(**{**vars(parts(Pixels())), "denoiser": SeenTeller()})
    frames = np.zeros((1, 4, 6, 3), np.uint8)
    wanted = [Wanted(caption, 5.0, seed, (0,), frames) for seed, caption in enumerate(("", "a ball"))]
    for how in (Generation(euler, steps=3, scale=3.0, guide="history"), Generation(euler, steps=3, history=3.0)):
        for some in (wanted[:1], wanted):
            for clip in sample_clips(network, how, some, (4, 4, 6)):
                # 0 + 3 (0.1 - 0) in [-1, 1] is 1.3 x 127.5 of 255 levels; without guidance it would be 140.
                assert set(clip[1:].flat) == {166}


def test_a_clip_is_the_same_to_the_bit_in_every_place_of_a_batch_of_one_size() -> None:
    torch.manual_seed(0)
    denoiser = SpaceTimeTransformer(channels=3, text_width=8, patch=(1, 2, 2), width=32, depth=2, heads=2).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network = SimpleNamespace(**{**vars(parts(Pixels())), "denoiser": denoiser})
    others = [Wanted("a ball" if seed % 2 else "", 5.0 + seed, seed) for seed in range(12)]
    shape, seen = (4, 12, 8), []
    denoiser.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    generation = Generation(euler, steps=3, scale=2.0)
    (alone,) = sample_clips(network, generation, others[:1], shape, batch=5)
    assert alone.std() > 10
    for place in range(5):
        wanted = [others[2 + place + number] for number in range(5)]
        wanted[place] = others[0]
        assert np.array_equal(sample_clips(network, generation, wanted, shape, batch=5)[place], alone)
    assert set(seen) == {5}


def test_a_clip_that_is_not_finite_costs_itself_alone() -> None:
    wanted = [Wanted("a ball", rate, seed) for seed, rate in enumerate((5.0, float("nan"), 20.0))]
    made = sample_each(parts(Pixels()), Generation(euler, steps=3), wanted, (5, 4, 6), batch=4)
    assert [isinstance(clip, NotFiniteError) for clip in made] == [False, True, False]
    assert "sample of seed 1 ('a ball'): found 360 of 360 values" in str(made[1])
    assert (made[2] == 51).all()


class Overflowing(Pixels):
    """A codec that cannot decode bright clips, as one in float16."""

    def decode(self, latent: Tensor) -> Tensor:
        return torch.where(latent > 0.5, torch.nan, latent)


def test_a_clip_that_its_codec_cannot_decode_costs_itself_alone() -> None:
    wanted = [Wanted("a ball", rate, seed) for seed, rate in enumerate((5.0, 80.0))]
    made = sample_each(parts(Overflowing()), Generation(euler, steps=3), wanted, (5, 4, 6))
    assert (made[0] == 13).all()
    assert "sample of seed 1 ('a ball'): found 360 of 360 pixels that are not finite" in str(made[1])


def test_clips_whose_noise_fits_but_no_layer_of_the_network_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine of 50,000 bytes: 5 frames of 4 x 6 pixels are 1,440 bytes of noise. In patches of 2 x 2 they are 30
    # tokens, and a feed-forward layer of 256 values reads and makes 2 x 30,720 bytes; one of 4 frames, 2 x 24,576.
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 50_000}.__getitem__)
    network = parts(Pixels())
    network.denoiser = SpaceTimeTransformer(3, (1, 2, 2), 64, 1, 4, text_width=8)
    generation, wanted = Generation(euler, steps=3), [Wanted("a ball", 5.0, 0)]
    with pytest.raises(NoRoomError, match="memory: found too little for a clip of 5 frames of 4 x 6 pixels"):
        sample_each(network, generation, wanted, (5, 4, 6))
    assert len(sample_each(network, generation, wanted, (4, 4, 6))) == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9"), MemoryError("Unable")],
)
def test_clips_that_need_more_memory_than_there_is_are_one_line(error: Exception) -> None:
    def full(*given: object, **more: object) -> Tensor:
        raise error

    network = parts(Pixels())
    network.denoiser.forward = full
    with pytest.raises(NoRoomError, match="memory: found too little for 3 clips of 5 frames of 4 x 6 pixels, expected"):
        sample_each(network, Generation(euler, steps=3), [Wanted("a ball", 5.0, 0)], (5, 4, 6), batch=3)
    with pytest.raises(NoRoomError, match="memory: found too little for 1000000000000 clips"):
        sample_each(network, Generation(euler, steps=3), [Wanted("a ball", 5.0, 0)], (5, 4, 6), batch=10**12)
    error.args = ("another",)
    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError, match="another"):
            sample_each(network, Generation(euler, steps=3), [Wanted("a ball", 5.0, 0)], (5, 4, 6))
