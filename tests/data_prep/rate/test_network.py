from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

from data_prep.choose.filter import filtered
from data_prep.rate.network import ClipScores, NsfwScores
from tests.material.scored_clips import panning

WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "ball": 5}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MEAN, DEVIATION = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def save_vision(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": DEVIATION}))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small CLIP with random weights and a tokenizer of whole words."""
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 6, "max_position_embeddings": 8, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 8}, projection_dim=8
    )
    folder = save_vision(transformers.CLIPModel(config), tmp_path_factory.mktemp("clip"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 8}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


def test_similarity_is_the_cosine_that_the_model_itself_computes(clip):
    frame, scores = panning(1, 32, 32), ClipScores(clip)
    images = (torch.from_numpy(frame).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        DEVIATION
    ).view(3, 1, 1)
    model = transformers.CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[3, 4, 5, 1]]), pixel_values=images)
    expected = (out.logits_per_text / model.logit_scale.exp()).item()
    assert scores(frame, ["a red ball"])["clip_similarity"] == pytest.approx(expected, abs=1e-5)


def test_the_best_of_several_captions_counts_and_without_one_there_is_no_score(clip):
    scores, video = ClipScores(clip), panning(5, 48, 80)
    each = [scores(video, [caption])["clip_similarity"] for caption in ("a ball", "red", "a a a a a a a a a a a")]
    assert scores(video, ["a ball", "red", "a a a a a a a a a a a"])["clip_similarity"] == pytest.approx(
        max(each), abs=1e-5
    )
    assert max(each) > min(each)
    assert scores(video, []) == {}


def test_a_filter_on_similarity_rejects_the_caption_that_fits_less(clip):
    scores, video = ClipScores(clip), panning(3, 32, 32)
    low, high = sorted(
        (scores(video, [caption]) for caption in ("a ball", "red red")), key=lambda s: s["clip_similarity"]
    )
    limits = {"clip_similarity": {"min": (low["clip_similarity"] + high["clip_similarity"]) / 2}}
    assert filtered(low, limits).reason.startswith("clip_similarity below")
    assert filtered(high, limits) is None


def test_the_aesthetic_head_is_applied_to_normalised_features_layer_by_layer(clip, tmp_path):
    torch.manual_seed(1)
    head = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(11)], torch.nn.Linear(8, 1))
    save_file({f"layers.{name}": weight for name, weight in head.state_dict().items()}, tmp_path / "head.safetensors")
    frame, scores = panning(1, 32, 32), ClipScores(clip, aesthetic=tmp_path / "head.safetensors")
    with torch.no_grad():
        features = scores.model.get_image_features(pixel_values=scores.pixels(frame))
        features = getattr(features, "pooler_output", features)
        expected = head(F.normalize(features, dim=-1)).item()
    assert scores(frame, []) == {"aesthetic": pytest.approx(expected, abs=1e-5)}


@pytest.mark.parametrize(("shape", "message"), [((1, 9), "reads 9 features, found 8"), ((2, 8), "expected one rating")])
def test_a_head_that_does_not_fit_is_an_error(clip, tmp_path, shape, message):
    save_file({"weight": torch.zeros(shape), "bias": torch.zeros(shape[0])}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=message):
        ClipScores(clip, aesthetic=tmp_path / "head.safetensors")


@pytest.fixture
def classifier(tmp_path):
    def saved(labels: dict[int, str], bias: list[float]) -> Path:
        torch.manual_seed(0)
        config = transformers.ViTConfig(**TOWER, image_size=32, patch_size=8, id2label=labels)
        model = transformers.ViTForImageClassification(config)
        with torch.no_grad():
            model.classifier.bias.copy_(torch.tensor(bias))
        return save_vision(model, tmp_path)

    return saved


def test_nsfw_is_the_probability_of_that_label_and_a_filter_rejects_and_keeps_by_it(classifier):
    limits = {"nsfw": {"max": 0.5}}
    for bias, kept in (([0.0, 9.0], False), ([9.0, 0.0], True)):
        found = NsfwScores(classifier({0: "normal", 1: "NSFW"}, bias))(panning(4, 48, 64))
        assert 0 <= found["nsfw"] <= 1
        assert (filtered(found, limits) is None) == kept


def test_a_classifier_without_the_label_is_an_error(classifier):
    with pytest.raises(ValueError, match="found the labels cat, dog, expected nsfw among them"):
        NsfwScores(classifier({0: "cat", 1: "dog"}, [0.0, 0.0]))


def test_a_folder_without_a_model_is_an_error_and_nothing_is_fetched(tmp_path):
    for scores in (ClipScores, NsfwScores):
        with pytest.raises(ValueError, match=r"found no .*config\.json, expected the folder of a model"):
            scores(tmp_path / "openai" / "clip")


def test_only_some_frames_are_looked_at(clip):
    assert ClipScores(clip).pixels(np.zeros((50, 40, 40, 3), np.uint8)).shape == (3, 3, 32, 32)
