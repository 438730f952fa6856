from __future__ import annotations

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from videodiff.codec.autoencoder import Autoencoder
from videodiff.pretrained import read_config


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_without_config_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"codec: found no .*config\.json, expected a folder"):
        read_config("codec", str(tmp_path))


@pytest.mark.parametrize("text", ["{", "\ufeff{}x"])
def test_a_config_that_is_not_json_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"text: .*config\.json is not JSON"):
        read_config("text", str(tmp_path))


def test_a_config_that_is_not_an_object_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="found list, expected a JSON object"):
        read_config("text", str(tmp_path))


def test_a_config_in_a_subfolder_is_read(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "x"}))
    assert read_config("codec", str(tmp_path), "vae") == {"_class_name": "x"}


@pytest.mark.parametrize("name", ["./models/vae", "/models/vae", "a/b/c", "../vae", "~/vae", "-x", "http://host/vae"])
def test_what_cannot_be_a_hub_name_is_not_asked_for(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match="expected a folder or a name on the Hugging Face hub"):
        read_config("codec", name, "no-such-subfolder")


def test_a_hub_name_that_cannot_be_reached_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"neither a folder nor a readable model .* 'nobody/none'") as error:
        read_config("codec", "nobody/none", "vae")
    assert "\n" not in str(error.value)


def weights(folder):
    return folder / "diffusion_pytorch_model.safetensors"


def test_a_missing_weight_is_an_error_that_names_it(saved):
    kept = load_file(weights(saved))
    del kept["decoder.conv_out.weight"]
    save_file(kept, weights(saved), metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weight of AutoencoderKL not in the file, first decoder\.conv_out\.weight"):
        Autoencoder(str(saved), dtype="float32")


def test_a_weight_of_another_shape_is_an_error(saved):
    wrong = load_file(weights(saved)) | {"decoder.conv_out.weight": torch.zeros(3, 9, 3, 3)}
    save_file(wrong, weights(saved), metadata={"format": "pt"})
    with pytest.raises(ValueError, match="cannot load AutoencoderKL") as error:
        Autoencoder(str(saved), dtype="float32")
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_one_clear_line(saved):
    data = weights(saved).read_bytes()
    weights(saved).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot load AutoencoderKL") as error:
        Autoencoder(str(saved), dtype="float32")
    assert "\n" not in str(error.value)
