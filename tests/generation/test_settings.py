"""Generation: captions and known frames in, clips out, with the settings of a sampler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from videodiff.diffusion.path import RectifiedFlow
from videodiff.diffusion.sampler import ddim, dpm_solver_2m, euler, heun
from videodiff.generation.settings import Generation, Given, Network, clip_noise, nothing_given

PATH = RectifiedFlow()
each_sampler = pytest.mark.parametrize("sampler", [euler, heun, ddim, dpm_solver_2m], ids=lambda s: s.__name__)


class World:
    """A denoiser that knows its caption: it expects the clip to be the caption's number everywhere."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, z: Tensor, tau: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        self.calls.append((tau, text))
        return text.view(-1, 1, 1, 1, 1).expand_as(z)


def condition(*captions: float) -> dict[str, Tensor]:
    return {"text": torch.tensor(captions), "fps": torch.full((len(captions),), 8.0)}


NULL = {"text": torch.tensor([1.0])}


def asked(denoiser: Callable[..., Tensor], *text: float) -> Network:
    """Return a network with one caption for each clip."""
    return Network(denoiser, condition(*text), NULL, PATH, "x")


def noise(b: int, t: int = 4) -> Tensor:
    return clip_noise((2, t, 3, 3), range(b))


def given(clip: Tensor, known: Tensor, **more: Tensor) -> Given:
    return nothing_given(clip)._replace(clip=clip, known=known, **more)


@each_sampler
def test_each_clip_becomes_what_its_caption_says(sampler: object) -> None:
    made = Generation(sampler, steps=4)(asked(World(), 0.5, -0.25), noise(2))
    wanted = torch.tensor([0.5, -0.25]).view(2, 1, 1, 1, 1).expand_as(made)
    torch.testing.assert_close(made, wanted)


@each_sampler
def test_guidance_pushes_from_the_null_caption_through_the_caption(sampler: object) -> None:
    made = Generation(sampler, steps=4, scale=3.0)(asked(World(), 2.0), noise(1))
    torch.testing.assert_close(made, torch.full_like(made, 1 + 3.0 * (2 - 1)))


@each_sampler
@pytest.mark.parametrize("known", [[0], [0, 1, 2], [0, 3]], ids=["image", "continuation", "interpolation"])
def test_known_frames_are_taken_from_the_clip(sampler: object, known: list[int]) -> None:
    mask, clip = torch.zeros(2, 4, dtype=torch.bool), torch.randn(2, 2, 4, 3, 3)
    mask[0, known] = True
    made = Generation(sampler, steps=3, scale=2.0)(asked(World(), 0.5, 0.5), noise(2), given(clip, mask))
    assert torch.equal(made[0, :, known], clip[0, :, known])
    others = [t for t in range(4) if t not in known]
    torch.testing.assert_close(made[0, :, others], torch.zeros_like(made[0, :, others]))
    torch.testing.assert_close(made[1], torch.zeros_like(made[1]))


@pytest.mark.parametrize(("sampler", "scale", "calls"), [(euler, 1.0, 5), (euler, 2.0, 10), (heun, 1.0, 9)])
def test_a_step_costs_one_network_call_and_guidance_doubles_it(sampler: object, scale: float, calls: int) -> None:
    world = World()
    Generation(sampler, steps=5, scale=scale)(asked(world, 0.5), noise(1))
    assert len(world.calls) == calls


@pytest.mark.parametrize(
    ("guide", "own", "scale"), [("caption", 1.0, 3.0), ("history", 1.0, 3.0), ("history", 2.0, 2.0)]
)
def test_a_clip_with_known_frames_is_guided_by_its_caption_or_by_the_frames(
    guide: str, own: float, scale: float
) -> None:
    calls: list[tuple[bool, bool]] = []

    def network(z: Tensor, tau: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        # It expects 10 with the caption, and 1 more if it sees the known frame, whose level is 0 then.
        told, seen = bool(text[0] == 2), bool(tau[0, 0] == 0)
        calls.append((told, seen))
        return torch.full_like(z, 10.0 * told + 1.0 * seen)

    known, clip = torch.tensor([[True, False, False, False]]), torch.zeros(1, 2, 4, 3, 3)
    how = Generation(euler, steps=1, scale=3.0, history=own, guide=guide)
    made = how(asked(network, 2.0), noise(1), given(clip, known))
    without = {"caption": 1.0, "history": 10.0}[guide]
    torch.testing.assert_close(made[:, :, 1:], torch.full_like(made[:, :, 1:], without + scale * (11 - without)))
    assert calls == [(True, True), {"caption": (False, True), "history": (True, False)}[guide]]
    # Where nothing is known, the caption guides either way.
    made = how(asked(network, 2.0), noise(1))
    torch.testing.assert_close(made, torch.full_like(made, 30.0))


def test_clips_with_and_without_known_frames_in_one_batch_are_each_guided_as_alone() -> None:
    def network(z: Tensor, tau: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        # As above, clip by clip: the first frame of a clip without known ones is at level 1.
        return (10.0 * (text == 2) + 1.0 * (tau[:, 0] == 0)).view(-1, 1, 1, 1, 1).expand_as(z)

    known, clip = torch.tensor([[True, False, False, False], [False] * 4]), torch.zeros(2, 2, 4, 3, 3)
    # By the frames 10 + 3 (11 - 10), by the caption 1 + 3 (11 - 1); without known frames by the caption, 3 x 10.
    for guide, around in (("history", 13.0), ("caption", 31.0)):
        how = Generation(euler, steps=1, scale=3.0, guide=guide)
        made = how(asked(network, 2.0, 2.0), noise(2), given(clip, known))
        torch.testing.assert_close(made[0, :, 1:], torch.full_like(made[0, :, 1:], around))
        torch.testing.assert_close(made[1], torch.full_like(made[1], 30.0))


def test_guidance_is_limited_to_its_interval() -> None:
    world = World()
    Generation(euler, steps=4, scale=2.0, interval=(0.4, 0.8))(asked(world, 0.5), noise(1))
    without_caption = [float(tau[0, 0]) for tau, text in world.calls if text == 1]
    assert without_caption == [0.75, 0.5]


def test_the_shift_moves_the_steps_toward_noise() -> None:
    world = World()
    Generation(euler, steps=2, shift=3.0)(asked(world, 0.5), noise(1))
    assert [float(tau[0, 0]) for tau, _ in world.calls] == pytest.approx([1.0, 3 * 0.5 / (1 + 2 * 0.5)])


def test_a_leading_frame_is_clean_before_the_others_begin() -> None:
    world = World()
    Generation(euler, steps=2, lead=1)(asked(world, 0.5), noise(1, t=3))
    assert [tau[0].tolist() for tau, _ in world.calls] == [[1, 1, 1], [0.5, 1, 1], [0, 1, 1], [0, 0.5, 0.5]]


@each_sampler
def test_a_frame_that_leads_apart_is_a_clip_of_its_own_that_the_others_then_know(sampler: object) -> None:
    """Clips that know a frame do not lead, and share the batch; each clip is what it is alone."""

    def network(z: Tensor, tau: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        seen.append(tau)
        return torch.tanh(z.mean((2, 3, 4), keepdim=True) - z) + text.view(-1, 1, 1, 1, 1)

    seen: list[Tensor] = []
    known, clip, eps = torch.tensor([[False] * 4, [False, True, False, False]]), torch.randn(2, 2, 4, 3, 3), noise(2)
    how = Generation(sampler, steps=3, shift=3.0, scale=2.0, lead=1, apart=True, noise=0.8)
    made = how(asked(network, 0.5, 0.7), eps, given(clip, known))
    assert {tau.shape[1] for tau in seen} == {1, 4}
    assert all(tau[0, 0] == 0 and tau[1, 1] == 0 for tau in seen if tau.shape[1] == 4)
    # By hand: a clip of one frame, then the others around it.
    plain = Generation(sampler, steps=3, shift=3.0, scale=2.0, noise=0.8)
    first = plain(asked(network, 0.5), eps[:1, :, :1])
    led = torch.cat([first, clip[:1, :, 1:]], 2)
    rest = plain(asked(network, 0.5), eps[:1], given(led, torch.tensor([[True, False, False, False]])))
    torch.testing.assert_close(made[:1], rest)
    torch.testing.assert_close(made[1:], plain(asked(network, 0.7), eps[1:], given(clip[1:], known[1:])))


def test_a_clip_whose_first_frame_led_apart_is_still_guided_by_its_caption() -> None:
    def network(z: Tensor, tau: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        return (10.0 * (text == 2)).view(-1, 1, 1, 1, 1).expand_as(z)

    how = Generation(euler, steps=1, scale=3.0, guide="history", lead=1, apart=True)
    made = how(asked(network, 2.0), noise(1))
    torch.testing.assert_close(made, torch.full_like(made, 30.0))


def test_one_frame_is_a_clip() -> None:
    made = Generation(heun, steps=3)(asked(World(), 0.5), noise(1, t=1))
    torch.testing.assert_close(made, torch.full((1, 2, 1, 3, 3), 0.5))


def test_noise_of_a_clip_depends_on_its_own_seed_alone() -> None:
    together, alone = clip_noise((2, 3, 4, 4), [5, 6, 7]), clip_noise((2, 3, 4, 4), [6])
    assert torch.equal(together[1:2], alone)
    assert not torch.isclose(together[0], together[1]).any()


def test_sampling_keeps_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    made = Generation(euler, steps=2)(asked(lambda z, tau, **_: weight * z, 0.5), noise(1))
    assert not made.requires_grad


@each_sampler
def test_kept_pixels_come_back_and_the_others_are_made(sampler: object) -> None:
    kept, clip = torch.zeros(1, 1, 4, 3, 3, dtype=torch.bool), torch.randn(1, 2, 4, 3, 3)
    kept[..., 0] = True
    around = given(clip, torch.zeros(1, 4, dtype=torch.bool), kept=kept)
    made = Generation(sampler, steps=4, scale=2.0)(asked(World(), 0.5), noise(1), around)
    assert torch.equal(made[..., 0], clip[..., 0])
    torch.testing.assert_close(made[..., 1:], torch.zeros_like(made[..., 1:]))


def test_kept_pixels_are_at_every_step_what_they_would_be_in_a_noised_clip() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(z: Tensor, tau: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        seen.append((z, tau))
        return torch.zeros_like(z)

    kept, clip, eps = torch.zeros(1, 1, 4, 3, 3, dtype=torch.bool), torch.randn(1, 2, 4, 3, 3), noise(1)
    kept[..., 1] = True
    around = given(clip, torch.zeros(1, 4, dtype=torch.bool), kept=kept)
    Generation(dpm_solver_2m, steps=5)(asked(network, 0.5), eps, around)
    for z, tau in seen:
        torch.testing.assert_close(z[..., 1], PATH.mix(clip, eps, tau)[..., 1])


@each_sampler
def test_a_clip_that_begins_with_another_goes_down_from_its_strength(sampler: object) -> None:
    world, clip, eps = World(), torch.randn(1, 2, 4, 3, 3), noise(1)
    around = given(clip, torch.zeros(1, 4, dtype=torch.bool), begin=torch.full((1, 4), 0.6))
    Generation(sampler, steps=3, shift=3.0, lead=1)(asked(world, 0.5), eps, around)
    levels = [float(tau[0, 0]) for tau, _ in world.calls]
    assert levels[0] == pytest.approx(0.6)
    assert levels == sorted(levels, reverse=True)
    # A network that expects the clip itself leaves it as it is.
    made = Generation(sampler, steps=3)(asked(lambda z, tau, **_: clip, 0.5), eps, around)
    torch.testing.assert_close(made, clip)


def test_noise_on_known_frames_is_told_and_does_not_come_back() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(z: Tensor, tau: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        seen.append((z, tau))
        return torch.zeros_like(z)

    known, clip, eps = torch.tensor([[True, True, False, False]]), torch.randn(1, 2, 4, 3, 3), noise(1)
    around = given(clip, known, held=torch.tensor([0.25]))
    made = Generation(euler, steps=3)(asked(network, 0.5), eps, around)
    assert torch.equal(made[:, :, :2], clip[:, :, :2])
    for z, tau in seen:
        assert tau[0, :2].tolist() == [0.25, 0.25]
        torch.testing.assert_close(z[:, :, :2], 0.75 * clip[:, :, :2] + 0.25 * eps[:, :, :2])


def test_frames_that_begin_as_noise_have_it_at_the_size_asked_for_and_others_as_the_network_is_told() -> None:
    seen: list[Tensor] = []

    def network(z: Tensor, tau: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        seen.append(z)
        return torch.zeros_like(z)

    known, clip, eps = torch.tensor([[True, False, False, False]]), torch.randn(1, 2, 4, 3, 3), noise(1)
    around = given(clip, known, held=torch.tensor([0.25]), begin=torch.tensor([[1.0, 0.5, 1.0, 1.0]]))
    Generation(euler, steps=1, noise=0.7)(asked(network, 0.5), eps, around)
    torch.testing.assert_close(seen[0][:, :, 0], 0.75 * clip[:, :, 0] + 0.25 * eps[:, :, 0])
    torch.testing.assert_close(seen[0][:, :, 1], 0.5 * clip[:, :, 1] + 0.5 * eps[:, :, 1])
    torch.testing.assert_close(seen[0][:, :, 2:], 0.7 * eps[:, :, 2:])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("shift", 0.0), ("noise", 0.0), ("scale", float("nan")), ("lead", -1), ("rescale", 1.5), ("history", float("inf")),
     ("history_level", 0.0), ("reconstruction", -1.0), ("interval", (0.8, 0.2)), ("steps", True), ("steps", 1.5),
     ("apart", True)],
)  # fmt: skip
def test_a_setting_without_a_meaning_is_an_error(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"sampler.{setting}: found"):
        Generation(euler, **{setting: value})


@pytest.mark.parametrize("steps", [0, -1, 10**20])
def test_no_steps_are_an_error(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps: found {steps}, expected a whole number from 1"):
        Generation(euler, steps=steps)
