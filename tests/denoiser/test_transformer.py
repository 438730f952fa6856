"""The whole network: one frame is a video, each frame has its own noise level, sizes are the published ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from videodiff.denoiser.position import patch_coordinates, rotary_table
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import RectifiedFlow

CONF = Path(__file__).parents[2] / "conf" / "model"
SMALL = {"channels": 2, "patch": (1, 2, 2), "width": 24, "depth": 2, "heads": 2, "text_width": 6}
AXES = [["space", "time"], ["space"], ["time"], ["spacetime"], ["space", "time", "spacetime"]]
each_axes = pytest.mark.parametrize("axes", AXES, ids="-".join)


def model(axes: list[str] | None = None, **changed: object) -> SpaceTimeTransformer:
    """Return a small network with every parameter perturbed, as training would."""
    torch.manual_seed(0)
    net = SpaceTimeTransformer(**{**SMALL, "axes": axes or ["space", "time"], **changed})
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def inputs(b: int = 3, t: int = 4, h: int = 6, w: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[True, True, True, False, False], [True, False, False, False, False], [True] * 5])
    return {
        "z": torch.randn(b, 2, t, h, w, generator=generator),
        "tau": torch.rand(b, t, generator=generator),
        "text": torch.randn(b, 5, 6, generator=generator),
        "text_mask": mask.repeat(b, 1)[:b],
        "fps": torch.tensor([8.0, 24.0, 0.0]).repeat(b)[:b],
    }


def changed_frames(net: nn.Module, one: dict[str, Tensor], other: dict[str, Tensor]) -> list[bool]:
    """Tell in which frames of the first clip two inputs lead to different predictions."""
    return (net(**one) != net(**other)).any(dim=(1, 3, 4))[0].tolist()


def test_a_new_network_predicts_nothing() -> None:
    assert not SpaceTimeTransformer(**SMALL)(**inputs()).any()


@pytest.mark.parametrize(("gate", "reached"), [(0.0, [False, False, True, False]), (0.5, [True] * 4)])
def test_in_a_new_network_frames_reach_each_other_through_the_given_gates_alone(
    gate: float, reached: list[bool]
) -> None:
    net, clips = SpaceTimeTransformer(**SMALL, gate=gate), inputs()
    nn.init.normal_(net.head.weight)
    other = {**clips, "z": clips["z"].clone()}
    other["z"][0, :, 2] += 1
    assert changed_frames(net, clips, other) == reached


@each_axes
def test_one_frame_is_a_video_in_training(axes: list[str]) -> None:
    net, clips = model(axes), inputs()
    condition = {key: clips[key] for key in ("text", "text_mask", "fps")}
    objective = Objective(RectifiedFlow(), NoiseLevels({"prefix": 1.0, "ends": 1.0, "independent": 1.0}))
    loss = objective(net, clips["z"][:, :, :1], condition, {}, clip_seeds(0, 0, range(3)))
    loss.mean().backward()
    assert loss.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@each_axes
@pytest.mark.parametrize("t", [1, 4])
def test_a_clip_is_predicted_alike_whatever_else_is_in_the_batch(axes: list[str], t: int) -> None:
    net, together = model(axes), inputs(t=t)
    for clip in range(3):
        alone = {key: value[clip : clip + 1] for key, value in together.items()}
        torch.testing.assert_close(net(**together)[clip], net(**alone)[0], rtol=0, atol=1e-5)


def test_clips_in_another_order_are_predicted_in_that_order() -> None:
    net, clips, order = model(), inputs(), torch.tensor([2, 0, 1])
    shuffled = {key: value[order] for key, value in clips.items()}
    torch.testing.assert_close(net(**shuffled), net(**clips)[order], rtol=0, atol=1e-5)


@each_axes
@pytest.mark.parametrize(("t", "h", "w"), [(1, 2, 2), (2, 6, 4), (5, 4, 10), (9, 8, 8)])
def test_frames_height_and_width_may_change_at_run_time(axes: list[str], t: int, h: int, w: int) -> None:
    made = model(axes)(**inputs(t=t, h=h, w=w))
    assert made.shape == (3, 2, t, h, w)
    assert made.isfinite().all()


def test_the_noise_level_of_a_frame_modulates_that_frame_alone() -> None:
    net, clips, seen = model(), inputs(), []
    net.modulate.register_forward_hook(lambda module, args, modulation: seen.append(modulation))
    other = {**clips, "tau": clips["tau"].clone()}
    other["tau"][0, 2] = 1 - other["tau"][0, 2]
    net(**clips), net(**other)
    changed = (seen[0] != seen[1]).any(-1)
    assert changed.nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("axes", "reached"), [(["space"], [False, False, True, False]), (["space", "time"], [True] * 4)]
)
def test_the_noise_level_of_a_frame_reaches_others_through_time_attention_alone(
    axes: list[str], reached: list[bool]
) -> None:
    net, clips = model(axes), inputs()
    other = {**clips, "tau": clips["tau"].clone()}
    other["tau"][0, 2] = 1 - other["tau"][0, 2]
    assert changed_frames(net, clips, other) == reached


def test_blocks_look_at_the_caption_in_turn() -> None:
    # The seventh block begins the pattern anew; what is not there has no weights either.
    net, clips = model(depth=7, captioned=(True, False, False)), inputs()
    own = [any(name.startswith(f"blocks.{i}.cross_attention") for name in net.state_dict()) for i in range(7)]
    assert own == [True, False, False, True, False, False, True]
    known = net.conditions(
        net.level(clips["tau"], clips["fps"]), clips["text"], clips["text_mask"], net.rotary(4, 3, 2, clips["z"].device)
    )
    x = net.tokens(clips["z"])
    for block, reads in zip(net.blocks, own, strict=True):
        seen = [
            block(x, known.modulation, text, known.text_mask, known.rotary[block.axes])
            for text in (known.text, known.text + 1)
        ]
        assert torch.equal(*seen) != reads


def test_a_caption_that_no_block_would_see_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model\.captioned: found \[False, True\], expected true for at least one of 1 blocks"
    ):
        SpaceTimeTransformer(**{**SMALL, "depth": 1}, captioned=(False, True))


def test_a_token_is_told_its_frame_row_and_column() -> None:
    net, place = model(["spacetime"]), patch_coordinates(3, 2)
    table = net.rotary(4, 3, 2, place.device)["spacetime"]
    for frame, s in itertools.product(range(4), range(6)):
        wanted = rotary_table(torch.tensor([[float(frame), *place[s].tolist()]]), net.width // net.heads)
        torch.testing.assert_close(table[frame * 6 + s], wanted[0])


def test_a_patch_of_two_frames_takes_the_mean_of_their_levels() -> None:
    net, clips = model(patch=(2, 2, 2)), inputs()
    pairs = clips["tau"].view(3, 2, 2).mean(-1).repeat_interleave(2, 1)
    torch.testing.assert_close(net(**clips), net(**{**clips, "tau": pairs}), rtol=0, atol=1e-4)


@pytest.mark.parametrize("padding", ["masked", "learned"])
def test_what_stands_behind_the_mask_of_the_text_has_no_influence(padding: str) -> None:
    net, clips = model(padding=padding), inputs()
    padding = {**clips, "text": torch.where(clips["text_mask"][..., None], clips["text"], 1e3)}
    words = {**clips, "text": torch.where(clips["text_mask"][..., None], -clips["text"], clips["text"])}
    assert torch.equal(net(**clips), net(**padding))
    assert changed_frames(net, clips, words) == [True] * 4


def test_learned_padding_needs_no_mask_and_changes_nothing_where_every_place_has_a_word() -> None:
    masked, learned, clips = model(), model(padding="learned"), inputs()
    assert learned.load_state_dict(masked.state_dict(), strict=False).missing_keys == ["padding"]
    level, rotary = learned.level(clips["tau"], clips["fps"]), learned.rotary(4, 3, 2, clips["z"].device)
    for net, needed in ((masked, True), (learned, False)):
        known = net.conditions(level, clips["text"], clips["text_mask"], rotary)
        assert (known.text_mask is not None) == needed
    # The last clip has five words of five, the second has one.
    one, other = masked(**clips), learned(**clips)
    torch.testing.assert_close(one[2], other[2], rtol=0, atol=1e-6)
    assert not torch.allclose(one[1], other[1], atol=1e-3)
    with pytest.raises(ValueError, match=r"model\.padding: found 'none', expected one of masked, learned"):
        model(padding="none")


def test_the_frame_rate_and_the_level_matter_to_a_trained_network_and_the_rate_not_to_a_new_one() -> None:
    clips = inputs()
    slower, noisier = {**clips, "fps": clips["fps"] + 4}, {**clips, "tau": clips["tau"] / 2}
    assert changed_frames(model(), clips, slower) == [True] * 4
    assert changed_frames(model(), clips, noisier) == [True] * 4
    new = SpaceTimeTransformer(**SMALL)
    nn.init.normal_(new.head.weight)
    assert changed_frames(new, clips, slower) == [False] * 4
    assert changed_frames(new, clips, noisier) == [True] * 4


@each_axes
def test_every_parameter_learns(axes: list[str]) -> None:
    net = model(axes, padding="learned")
    net(**inputs()).square().sum().backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


def test_the_prediction_is_float32_under_bfloat16_autocast_and_near_that_of_float32() -> None:
    net, clips = model(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        made = net(**clips)
        made.square().mean().backward()
    assert made.dtype == torch.float32
    # bfloat16 keeps eight bits.
    assert (made - net(**clips)).norm() < 0.05 * made.norm()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.05), (torch.float64, 1e-5)])
def test_weights_of_any_type_take_float32_inputs_and_give_float32(dtype: torch.dtype, error: float) -> None:
    clips, wanted = inputs(), model()(**inputs())
    made = model().to(dtype)(**clips)
    assert made.dtype == torch.float32
    assert (made - wanted).norm() < error * wanted.norm()


def test_weights_in_bfloat16_tell_levels_and_rates_apart_that_bfloat16_does_not() -> None:
    net, tau, fps = model().bfloat16(), torch.full((1, 1), 0.5), torch.tensor([240.0])
    here, noisier, faster = net.level(tau, fps), net.level(tau + 1e-3, fps), net.level(tau, fps + 0.4)
    assert not torch.equal(here, noisier)
    assert not torch.equal(here, faster)


@pytest.mark.parametrize(("width", "heads"), [(24, 5), (30, 3), (10, 1), (12, 4)])
def test_a_width_that_does_not_divide_is_an_error_that_says_by_what_it_should(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match=rf"model\.width: found {width}, expected a multiple of \d+ for {heads} heads"):
        SpaceTimeTransformer(**{**SMALL, "width": width, "heads": heads})


@pytest.mark.parametrize(("ratio", "width"), [(4.0, 4 * 24), (1.0, 3 * 24)])
def test_the_widest_layer_is_the_hidden_one_or_that_of_queries_keys_and_values(ratio: float, width: int) -> None:
    assert model(patch=(2, 3, 2), mlp_ratio=ratio).widest(4, 6, 8) == 2 * 2 * 4 * width


# Peebles and Xie 2022, arXiv 2212.09748, table 1: layers, width, heads.
PUBLISHED = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


def from_conf(size: str, **changed: object) -> tuple[SpaceTimeTransformer, dict[str, object]]:
    """Build a network from its configuration file, which changes another one, without memory for its weights."""
    settings = yaml.safe_load((CONF / f"{size}.yaml").read_text())
    (other,) = settings.pop("defaults")
    settings = yaml.safe_load((CONF / f"{other}.yaml").read_text()) | settings
    settings.pop("_target_")
    with torch.device("meta"):
        return SpaceTimeTransformer(**settings, **changed), settings


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_sizes_are_those_of_the_diffusion_transformer(size: str) -> None:
    net, settings = from_conf(size)
    assert (len(net.blocks), net.width, net.heads) == PUBLISHED[size]
    assert settings["patch"] == [1, 2, 2]


def test_the_largest_has_as_many_parameters_as_the_published_adaln_single_network() -> None:
    channels, words, w, layers, heads = 4, 4096, 1152, 28, 16
    pixels = channels * 2 * 2
    self_attention = 3 * (w * w + w) + (w * w + w) + 2 * (w // heads)
    cross_attention = (w * w + w) + 2 * (w * w + w) + (w * w + w) + 2 * (w // heads)
    feed_forward = (4 * w * w + 4 * w) + (4 * w * w + w)
    block = self_attention + cross_attention + feed_forward + 6 * w
    two_layers = {name: n * w + w + w * w + w for name, n in (("tau", 256), ("fps", 256), ("text", words))}
    ends = (pixels * w + w) + (w * pixels + pixels) + 2 * w + w
    expected = layers * block + sum(two_layers.values()) + 6 * (w * w + w) + ends

    net, _ = from_conf("XL", channels=channels, text_width=words)
    assert sum(p.numel() for p in net.parameters()) == expected
    # PixArt-alpha, arXiv 2310.00426, section 2.3: 833M with adaLN in every block, 611M with adaLN-single.
    assert expected == pytest.approx(611e6, rel=0.03)
