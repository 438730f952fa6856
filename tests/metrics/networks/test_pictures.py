"""CLIP and DINO on single clips, through real loading code on small models with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from tests.material.networks.small import DEVIATION, MEAN, save_folder
from videodiff.metrics.consistency import consistency
from videodiff.metrics.evaluation import usable
from videodiff.metrics.metric import Case
from videodiff.metrics.networks.pictures import alike, background, clip_similarity, subject

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "ball": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pictures")
    text = {**TOWER, "vocab_size": 6, "max_position_embeddings": 5, "eos_token_id": 1, "pad_token_id": 0}
    vision = {**TOWER, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    save_folder(transformers.CLIPModel(config), root / "clip")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 5}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(root / "clip")
    save_folder(transformers.ViTModel(transformers.ViTConfig(**vision)), root / "vit")
    save_folder(transformers.Dinov2Model(transformers.Dinov2Config(**vision)), root / "dinov2")
    return root


def case(caption: str = "a red ball", frames: int = 4, side: int = 16) -> Case:
    video = np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    return Case("a", video, video, caption, 8.0, 0, None)


def as_library(frames: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def test_similarity_is_the_mean_cosine_that_the_model_itself_computes(folder: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(folder / "clip")
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[3, 4, 5, 1]]), pixel_values=as_library(case().frames))
        expected = (out.logits_per_text / model.logit_scale.exp()).mean().item()
    found = clip_similarity(case(), path=str(folder / "clip"), batch=3)
    assert found == {"clip_similarity": pytest.approx(expected, abs=1e-5), "caption_cut_share": 0.0}


def test_a_caption_that_clip_reads_only_the_beginning_of_is_counted(folder: Path) -> None:
    short, long = (clip_similarity(case(text), path=str(folder / "clip")) for text in ("a a a a", "a a a a red ball"))
    assert (short["caption_cut_share"], long["caption_cut_share"]) == (0.0, 1.0)
    assert long["clip_similarity"] == pytest.approx(short["clip_similarity"])


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_the_subject_is_compared_by_the_first_token_with_the_frame_before_and_with_the_first(folder, name) -> None:
    model = transformers.AutoModel.from_pretrained(folder / name)
    with torch.no_grad():
        tokens = model(as_library(case().frames)).last_hidden_state[:, 0]
    pairs = [max(0.0, F.cosine_similarity(tokens[i], tokens[j], dim=0).item()) for i in range(1, 4) for j in (i - 1, 0)]
    found = subject(case(), path=str(folder / name))
    assert found["subject_consistency_score"] == pytest.approx(np.mean(pairs), abs=1e-5)


def test_consistency_counts_no_cosine_below_zero_and_the_frame_before_as_much_as_the_first() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    assert alike(torch.stack([one, other, other]).double()) == pytest.approx((0.6 + 0.6 + 1 + 0.6) / 4)
    assert alike(torch.stack([one, -one, -one]).double()) == pytest.approx((0 + 0 + 1 + 0) / 4)
    assert alike(one[None].double()) == 1.0


def test_equal_frames_have_one_background(folder: Path) -> None:
    still = case()._replace(frames=case().frames[:1].repeat(3, axis=0))
    assert background(still, path=str(folder / "clip"))["background_consistency_score"] == pytest.approx(1.0)


def test_frames_that_are_not_square_are_refused_or_cropped(folder: Path) -> None:
    wide = case()._replace(frames=np.pad(case().frames, ((0, 0), (0, 0), (4, 4), (0, 0))))
    with pytest.raises(ValueError, match="found frames of 16 x 24, expected square ones"):
        background(wide, path=str(folder / "clip"))
    same = [background(each, path=str(folder / "clip"), crop=True) for each in (wide, case())]
    assert same[0] == same[1]


def test_another_model_and_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found a model of type 'vit', expected 'clip'"):
        background(case(), path=str(folder / "vit"))
    assert subject.with_settings(path=str(tmp_path)).lack() == (
        f"path: found a folder without config.json at {tmp_path}, expected a folder of transformers with config.json "
        f"of DINO (facebook/dino-vitb16 or facebook/dinov2-base), from the Hugging Face hub"
    )


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
@pytest.mark.parametrize("how", ["empty", "cut", "list", "garbage", "gone"])
def test_broken_weights_cost_their_metric_and_no_other(folder: Path, tmp_path: Path, name: str, how: str) -> None:
    broken = shutil.copytree(folder / "clip", tmp_path / "clip")
    whole = (broken / name).read_bytes()
    if how == "gone":
        (broken / name).unlink()
    else:
        damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "list": b"[]", "garbage": b"\x00\xff"}
        (broken / name).write_bytes(damaged[how])
    metrics = {"words": clip_similarity.with_settings(path=str(broken)), "whole": consistency}
    left, out = usable(metrics, case())
    # The tokenizer and the model work without the file of its settings, where it is gone.
    if out or (name, how) != ("tokenizer_config.json", "gone"):
        assert list(left) == ["whole"]
        assert out["words"].startswith("metric.words: ")
        assert str(broken) in out["words"]
        assert "\n" not in out["words"]
