from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import diffusers
import pytest
import torch
import torch.nn.functional as F

from videodiff.codec.autoencoder import Autoencoder, shared_pixels

# Products of another size add in another order.
near = partial(torch.testing.assert_close, rtol=0, atol=1e-4)
FOUR = (8, 8, 8, 8)
MODELS = {
    "image": lambda: diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ),
    "wan": lambda: diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    ),
    "cogvideox": lambda: diffusers.AutoencoderKLCogVideoX(
        block_out_channels=FOUR, latent_channels=4, layers_per_block=1, norm_num_groups=2
    ),
    "hunyuan": lambda: diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=FOUR, latent_channels=4, layers_per_block=1, norm_num_groups=2
    ),
    "ltx": lambda: diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=FOUR,
        decoder_block_out_channels=FOUR,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        timestep_conditioning=True,
    ),
}
COMPRESSION = {
    "image": (1, 2, 2),
    "wan": (4, 8, 8),
    "cogvideox": (4, 8, 8),
    "hunyuan": (4, 8, 8),
    "ltx": (8, 32, 32),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save one small model of each kind with random weights."""
    root = tmp_path_factory.mktemp("autoencoders")
    for name, build in MODELS.items():
        torch.manual_seed(0)
        build().save_pretrained(root / name)
    return root


@pytest.fixture
def load(folder: Path):
    return lambda name, **how: Autoencoder(str(folder / name), **{"dtype": "float32", **how})


def clip(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return smooth random clips `b 3 t h w` in [-1, 1]."""
    b, t, h, w = shape
    coarse = torch.rand(b, 3, t, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, size=(t, h, w), mode="trilinear")


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_clip_of_1_plus_k_ft_frames_becomes_1_plus_k_latents_and_comes_back_in_its_shape(load, name, k):
    codec = load(name)
    ft, fh, fw = COMPRESSION[name]
    video = clip(2, 1 + k * ft, 2 * fh, 3 * fw)
    latent = codec.encode(video)
    assert codec.compression == (ft, fh, fw)
    assert latent.shape == (2, 4, 1 + k, 2, 3)
    assert (codec.latent_frames(1 + k * ft), codec.frames(1 + k)) == (1 + k, 1 + k * ft)
    assert codec.decode(latent).shape == video.shape


def test_the_first_latent_frame_of_a_causal_model_is_that_of_the_first_frame_alone(load):
    codec, video = load("wan"), clip(1, 9, 16, 16)
    alone = codec.encode(video[:, :, :1])
    near(codec.encode(video)[:, :, :1], alone)
    assert (codec.encode(video)[:, :, 1:] - alone).abs().max() > 1e-3


def test_an_image_model_encodes_and_decodes_each_frame_by_itself(load):
    codec, video = load("image"), clip(2, 3, 8, 8)
    latent = codec.encode(video)
    near(latent[:, :, 1:2], codec.encode(video[:, :, 1:2]))
    near(codec.decode(latent)[:, :, 1:2], codec.decode(latent[:, :, 1:2]))


def test_an_even_number_of_latent_frames_decodes_in_cogvideox_as_the_start_of_a_longer_clip(load):
    codec = local(load("cogvideox"))
    latent = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    near(codec.decode(latent[:, :, :2]), codec.decode(latent)[:, :, :5])


def test_image_latents_are_those_of_the_diffusers_pipeline(folder, load):
    image = clip(2, 1, 8, 8)[:, :, 0]
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "image")
    with torch.no_grad():
        expected = (vae.encode(image).latent_dist.mean - 0.25) * 0.5
        decoded = vae.decode(expected / 0.5 + 0.25).sample
    latent = load("image").encode(image[:, :, None])
    near(latent[:, :, 0], expected)
    near(load("image").decode(latent)[:, :, 0], decoded.clamp(-1, 1))


def test_video_latents_are_those_of_the_diffusers_pipeline(folder, load):
    video = clip(1, 5, 16, 16)
    mean, std = (torch.tensor(v).view(1, 4, 1, 1, 1) for v in ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]))
    vae = diffusers.AutoencoderKLWan.from_pretrained(folder / "wan")
    with torch.no_grad():
        expected = (vae.encode(video).latent_dist.mean - mean) / std
        decoded = vae.decode(expected * std + mean).sample
    latent = load("wan").encode(video)
    near(latent, expected)
    near(load("wan").decode(latent), decoded)


def test_statistics_that_travel_with_the_weights_are_used(tmp_path):
    vae = MODELS["ltx"]()
    vae.latents_mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    vae.latents_std.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    vae.save_pretrained(tmp_path)
    codec = Autoencoder(str(tmp_path), dtype="float32")
    assert codec.mean.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert codec.std.flatten().tolist() == [0.5, 1.0, 1.5, 2.0]


def sizes_seen(codec: Autoencoder, part: str) -> list[tuple[int, ...]]:
    """Record the shape of everything that goes into the encoder or decoder of a codec from now on."""
    seen: list[tuple[int, ...]] = []
    getattr(codec.vae, part).register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    return seen


@pytest.mark.parametrize(("name", "rows"), [("image", 4), ("wan", 1)])
def test_slices_give_the_plain_result_and_bound_what_goes_through_at_once(load, name, rows):
    plain, sliced, video = load(name), load(name, slice_frames=4), clip(3, 5, 16, 16)
    encoded, decoded = sizes_seen(sliced, "encoder"), sizes_seen(sliced, "decoder")
    latent = plain.encode(video)
    near(sliced.encode(video), latent)
    near(sliced.decode(latent), plain.decode(latent))
    assert {s[0] for s in encoded[:-1]} == {s[0] for s in decoded[:-1]} == {rows}


@pytest.mark.parametrize("name", ["image", "wan", "cogvideox"])
def test_tiles_bound_what_goes_through_at_once(load, name):
    codec = load(name, tile=16, tile_overlap=0.5)
    encoded, decoded = sizes_seen(codec, "encoder"), sizes_seen(codec, "decoder")
    codec.decode(codec.encode(clip(1, 1, 32, 48)))
    side = codec.compression[1]
    assert max(max(s[-2:]) for s in encoded) == 16
    assert max(max(s[-2:]) for s in decoded) == 16 // side


def local(codec: Autoencoder) -> Autoencoder:
    """Take out what looks at a whole picture, group norm and attention, so that tiles may equal the plain result."""
    for name, module in list(codec.vae.named_modules()):
        for child, layer in module.named_children():
            if isinstance(layer, torch.nn.GroupNorm):
                setattr(module, child, torch.nn.Identity())
        if "attentions" in name and name.endswith(("proj", "to_out.0")):
            torch.nn.init.zeros_(module.weight)
    return codec


@pytest.mark.parametrize("name", ["image", "wan"])
def test_tiles_equal_the_plain_result_but_near_their_borders(load, name):
    plain, tiled, video = local(load(name)), local(load(name, tile=64, tile_overlap=0.5)), clip(1, 1, 128, 128)
    latent = plain.encode(video)
    assert (tiled.encode(video) - latent).abs().mean() < 0.05 * latent.std()
    picture = plain.decode(latent)
    assert (tiled.decode(latent) - picture).abs().mean() < 0.05 * picture.std()


@pytest.mark.parametrize("name", ["image", "wan"])
def test_a_clip_no_larger_than_a_tile_is_not_touched_by_tiling(load, name):
    video = clip(1, 1, 32, 32)
    torch.testing.assert_close(load(name, tile=32).encode(video), load(name).encode(video), rtol=0, atol=0)


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.3, 0.5])
def test_the_overlap_of_tiles_is_whole_after_the_rounding_of_diffusers(side, overlap):
    for tile in range(2 * side, 64 * side, side):
        shared = shared_pixels(tile, overlap, side)
        factor, latents = shared / tile, tile // side
        assert shared % side == 0
        assert int(tile * (1 - factor)) == (latents - int(latents * factor)) * side
        assert int(latents * (1 - factor)) * side == tile - int(tile * factor)


def test_the_overlap_of_tiles_is_near_the_part_asked_for():
    assert [shared_pixels(256, overlap, 8) for overlap in (0.001, 0.25, 0.26, 0.5)] == [8, 64, 64, 128]


def test_nothing_of_a_codec_is_trained(load):
    codec = load("wan").train()
    video = clip(1, 1, 16, 16).requires_grad_()
    assert not codec.training
    assert not any(module.training for module in codec.modules())
    assert not any(p.requires_grad for p in codec.parameters())
    assert not codec.encode(video).requires_grad
    assert not codec.decode(codec.encode(video).requires_grad_()).requires_grad


def test_weights_are_bfloat16_by_default_and_results_float32_and_near(folder, load):
    codec, video = Autoencoder(str(folder / "wan")), clip(1, 5, 16, 16)
    latent, exact = codec.encode(video), load("wan").encode(video)
    assert {p.dtype for p in codec.vae.parameters()} == {torch.bfloat16}
    assert latent.dtype == codec.decode(latent).dtype == torch.float32
    torch.testing.assert_close(latent, exact, atol=0.05 * float(exact.abs().max()), rtol=0)


def test_a_float32_codec_stays_float32_inside_autocast(load):
    codec, video = load("image"), clip(1, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = codec.encode(video)
    torch.testing.assert_close(inside, codec.encode(video), rtol=0, atol=0)


def test_decoded_clips_stay_within_minus_one_and_one(load):
    codec = load("image")
    codec.vae.decoder.conv_out.weight.mul_(100)
    video = codec.decode(torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert video.abs().max() == 1


def test_a_generator_draws_from_the_posterior_and_no_generator_takes_its_mode(load):
    codec, video = load("image"), clip(1, 1, 8, 8)
    drawn = [codec.encode(video, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    torch.testing.assert_close(codec.encode(video), codec.encode(video), rtol=0, atol=0)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert (drawn[0] - drawn[2]).abs().max() > 0.01
    assert (drawn[0] - codec.encode(video)).abs().max() > 0.01


def test_frames_that_do_not_fit_name_the_nearest_that_do(load):
    with pytest.raises(ValueError, match=r"found 16 frames, expected 1 \+ 4 k \(nearest: 13 or 17\)"):
        load("wan").encode(clip(1, 16, 16, 16))


def test_no_frames_are_an_error_too(load):
    with pytest.raises(ValueError, match="found 0 frames"):
        load("image").latent_frames(0)


@pytest.mark.parametrize("shape", [(1, 3, 1, 20, 16), (1, 3, 1, 16, 20), (1, 1, 1, 16, 16)])
def test_a_clip_that_cannot_be_divided_or_has_other_channels_is_an_error(load, shape):
    c, h, w = shape[1], *shape[3:]
    with pytest.raises(ValueError, match=rf"found clips of {c} channels?, {h} x {w}, expected 3 .* divisible by 8"):
        load("wan").encode(torch.zeros(shape))


def test_latents_of_another_codec_are_an_error(load):
    with pytest.raises(ValueError, match="found latents of 3 channels, expected 4"):
        load("wan").decode(torch.zeros(1, 3, 1, 2, 2))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"mean": [0.0] * 4}, "expected both or neither"),
        ({"mean": [0.0] * 3, "std": [1.0] * 3}, r"codec\.mean: found .* expected 4 numbers"),
        ({"mean": [0.0] * 4, "std": [1.0, 1.0, 0.0, 1.0]}, r"codec\.std: found 0\.0, expected numbers above 0"),
        ({"mean": [0.0, 0.0, 0.0, float("nan")], "std": [1.0] * 4}, r"codec\.mean"),
        ({"dtype": "int8"}, r"codec\.dtype: found 'int8', expected one of bfloat16"),
        ({"slice_frames": 0}, r"codec\.slice_frames: found 0"),
        ({"tile": 20}, r"codec\.tile: found 20, expected at least 16 pixels and a multiple of 8"),
        ({"tile": 32, "tile_overlap": 1.0}, r"codec\.tile_overlap: found 1\.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(load, how, message):
    with pytest.raises(ValueError, match=message):
        load("wan", **how)


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"codec: found no folder .*nowhere"):
        Autoencoder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", ["UNet2DModel", "AutoencoderOfNobody", "DDIMScheduler", "../Autoencoder", 3, None])
def test_a_model_that_is_no_autoencoder_of_diffusers_is_refused(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(ValueError, match=r"found the class .* in config\.json, expected an autoencoder"):
        Autoencoder(str(tmp_path))


def test_pickled_weights_are_never_read(tmp_path):
    MODELS["image"]().save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(ValueError, match="cannot load AutoencoderKL"):
        Autoencoder(str(tmp_path))


def test_a_subfolder_of_a_pipeline_is_found(tmp_path):
    MODELS["image"]().save_pretrained(tmp_path / "vae")
    assert Autoencoder(str(tmp_path), subfolder="vae").channels == 4


def test_a_codec_is_loaded_without_a_word_of_libraries_that_it_does_not_use(folder: Path) -> None:
    load = f"from videodiff.codec.autoencoder import Autoencoder; Autoencoder({str(folder / 'wan')!r}, dtype='float32')"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
