"""Features of videos through real loading code, on small networks of the same interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.material.networks.small import (
    DEVIATION,
    MEAN,
    MeanColour,
    SmallI3D,
    SmallInception,
    save_folder,
    save_script,
)
from videodiff.metrics.sets.frames import inception_features
from videodiff.metrics.sets.video import i3d_features, videomae_features, vjepa_features

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def clips(count: int, frames: int = 10, side: int = 16, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, frames, side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks")
    save_script(SmallI3D(), folder / "i3d.pt")
    save_script(SmallInception(), folder / "inception.pt")
    save_script(MeanColour(), folder / "colour.pt")
    mae = {**TOWER, "image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
    save_folder(transformers.VideoMAEModel(transformers.VideoMAEConfig(**mae)), folder / "mae")
    config = transformers.VideoMAEConfig(**mae, num_labels=2, use_mean_pooling=True)
    save_folder(transformers.VideoMAEForVideoClassification(config), folder / "mae_classes")
    jepa = {**TOWER, "crop_size": 16, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2}
    jepa |= {"pred_hidden_size": 16, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "mlp_ratio": 2.0}
    save_folder(transformers.VJEPA2Model(transformers.VJEPA2Config(**jepa)), folder / "jepa")
    config = transformers.VJEPA2Config(**jepa, num_labels=2, num_pooler_layers=1)
    save_folder(transformers.VJEPA2ForVideoClassification(config), folder / "jepa_pooled")
    return folder


def test_i3d_gets_raw_pixels_and_scales_and_resizes_itself(networks: Path) -> None:
    some = clips(5, side=20)
    network = torch.jit.load(str(networks / "i3d.pt"))
    pixels = torch.from_numpy(np.stack(some)).permute(0, 4, 1, 2, 3).float()
    expected = network(pixels, rescale=True, resize=True, return_features=True).detach().numpy()
    found = i3d_features(some, str(networks / "i3d.pt"), batch=2)
    assert found.shape == (5, 1, 6)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


def test_a_batch_changes_no_features(networks: Path) -> None:
    some = clips(5)
    one, all_ = (i3d_features(some, str(networks / "i3d.pt"), batch=batch) for batch in (1, 5))
    np.testing.assert_allclose(one, all_, rtol=1e-5)


def test_a_script_of_videomae_gets_pixels_of_0_to_1_at_224(networks: Path) -> None:
    grey = [np.full((4, 32, 32, 3), (51, 102, 204), dtype=np.uint8)]
    found = videomae_features(grey, str(networks / "colour.pt"))
    np.testing.assert_allclose(found[0, 0], [0.2, 0.4, 0.8], rtol=1e-5)


def test_a_script_of_vjepa_gets_normalised_pixels(networks: Path) -> None:
    grey = [np.full((4, 224, 224, 3), 255, dtype=np.uint8)]
    found = vjepa_features(grey, str(networks / "colour.pt"))
    np.testing.assert_allclose(found[0, 0], [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rtol=1e-5)


def as_library(some: list[np.ndarray]) -> torch.Tensor:
    """Return clips `b t c h w`, normalised as the folders of these tests say."""
    pixels = torch.from_numpy(np.stack(some)).permute(0, 1, 4, 2, 3).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


@pytest.mark.parametrize("name", ["mae", "mae_classes"])
def test_a_folder_of_videomae_gives_the_mean_over_its_tokens(networks: Path, name: str) -> None:
    some = clips(3, frames=4)
    model = transformers.AutoModel.from_pretrained(networks / name)
    with torch.no_grad():
        expected = model(as_library(some)).last_hidden_state.mean(dim=1)
        if name == "mae_classes":
            whole = transformers.VideoMAEForVideoClassification.from_pretrained(networks / name)
            assert whole.fc_norm is not None
            expected = whole.fc_norm(expected)
            # What the head reads of the classifier itself.
            torch.testing.assert_close(whole.classifier(expected), whole(as_library(some)).logits)
    found = videomae_features(some, str(networks / name), batch=2)
    np.testing.assert_allclose(found[:, 0], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["jepa", "jepa_pooled"])
def test_a_folder_of_vjepa_gives_its_pooler_or_the_mean_over_its_tokens(networks: Path, name: str) -> None:
    some = clips(3, frames=4)
    pooled = name == "jepa_pooled"
    kind = transformers.VJEPA2ForVideoClassification if pooled else transformers.VJEPA2Model
    model = kind.from_pretrained(networks / name).eval()
    with torch.no_grad():
        if pooled:
            seen = {}
            model.pooler.register_forward_hook(lambda module, given, made: seen.update(made=made))
            model(as_library(some))
            expected = seen["made"].flatten(1)
        else:
            expected = model(as_library(some)).last_hidden_state.mean(dim=1)
    found = vjepa_features(some, str(networks / name), batch=2)
    np.testing.assert_allclose(found[:, 0], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_inception_gets_bytes_and_gives_a_row_a_frame(networks: Path) -> None:
    some = clips(3, frames=5)
    found = inception_features(some, str(networks / "inception.pt"), batch=4)
    assert found.shape == (3, 5, 5)
    network = torch.jit.load(str(networks / "inception.pt"))
    one = torch.from_numpy(some[1][3:4]).permute(0, 3, 1, 2)
    np.testing.assert_allclose(found[1, 3], network(one, return_features=True)[0].detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("describe", "name", "some", "message"),
    [
        (i3d_features, "i3d.pt", clips(1, frames=9), "found clips of 9 frames, expected at least 10 for I3D"),
        (i3d_features, "i3d.pt", [np.zeros((10, 16, 24, 3), np.uint8)], "found frames of 16 x 24, expected square"),
        (i3d_features, "colour.pt", clips(1), r"colour.pt: cannot read \(1, 3, 10, 16, 16\)"),
        (videomae_features, "mae", clips(1, frames=6), "mae: found clips of 6 frames, expected 4"),
        (vjepa_features, "jepa", clips(1, frames=5), "jepa: found clips of 5 frames, expected a multiple of 2"),
        (videomae_features, "jepa", clips(1, frames=4), "jepa: found a model of type 'vjepa2', expected 'videomae'"),
    ],
)
def test_what_a_network_would_silently_take_wrong_is_refused(networks, describe, name, some, message) -> None:
    with pytest.raises(ValueError, match=message):
        describe(some, str(networks / name))


def test_the_middle_of_clips_that_are_not_square_is_taken_on_request(networks: Path) -> None:
    wide = np.random.default_rng(1).integers(0, 256, (1, 10, 16, 24, 3), dtype=np.uint8)
    found = i3d_features(list(wide), str(networks / "i3d.pt"), crop=True)
    np.testing.assert_allclose(found, i3d_features(list(wide[:, :, :, 4:20]), str(networks / "i3d.pt")))


def test_a_file_that_is_no_torchscript_is_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt: found no TorchScript"):
        i3d_features(clips(1), str(tmp_path / "weights.pt"))
