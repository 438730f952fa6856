"""Scores by models in prep: each clip rated once, thresholds changed without a second look, whatever is killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from data_prep.engine.local import Local, Node
from data_prep.rate import kinds
from data_prep.rate import ratings as module
from data_prep.rate.models import Models, find_models, hash_files
from data_prep.rate.network import ClipScores, NsfwScores, looks
from data_prep.rate.rating import load, rate_clips
from data_prep.rate.ratings import Ratings
from tests.material.preparing import prep
from tests.material.scored_clips import panning
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_captions, read_sample
from videodiff.data.video.decode import decode
from videodiff.data.video.encode import encode

LOCAL = Local()
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CAPTIONS = ["a ball", "red red", "a red ball", ""]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Save a small CLIP, a head for it and a classifier, all with random weights."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 6, "max_position_embeddings": 8, "eos_token_id": 1, "pad_token_id": 0}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(root / "clip")
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 8}
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "ball": 5}
    cut = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    cut.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    cut.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=cut, **names).save_pretrained(root / "clip")
    classifier = transformers.ViTConfig(**TOWER, image_size=32, patch_size=8, id2label={0: "normal", 1: "NSFW"})
    transformers.ViTForImageClassification(classifier).save_pretrained(root / "nsfw")
    for name in ("clip", "nsfw"):
        pixels = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
        (root / name / "preprocessor_config.json").write_text(json.dumps(pixels))
    save_file({"weight": torch.randn(1, 8), "bias": torch.zeros(1)}, root / "head.safetensors")
    return {"clip": str(root / "clip"), "aesthetic": str(root / "head.safetensors"), "nsfw": str(root / "nsfw")}


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """Write four videos with captions, of which the last has none, and one that is too short."""
    root = tmp_path_factory.mktemp("footage")
    for number, caption in enumerate([*CAPTIONS, "a"]):
        frames = panning(6 if number == 4 else 16, 48, 64, speed=2, seed=number)
        (root / f"v{number}.mp4").write_bytes(encode(frames, 8.0))
        if caption:
            (root / f"v{number}.txt").write_text(caption)
    return root


class Watched:
    """An engine that tells which clips were given to the models, and may stop the run after some chunks."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rated, self.stop_after = [], stop_after

    def run(self, work):
        watched = isinstance(work.tasks, module.Chunks)
        self.rated += [tuple(clip.wanted) for chunk in work.tasks for clip in chunk] if watched else []
        for number, answers in enumerate(LOCAL.run(work)):
            yield answers
            if watched and number + 1 == self.stop_after:
                raise KeyboardInterrupt


def run(footage: Path | None, out: Path, models: dict, limits: dict | None = None, **how) -> dict:
    limits = {**(limits or {}), "duration": {"min": 1.0}}
    return prep(out, footage, encode={"short_side": 32}, filter=limits, models=models, workers=1, **how)


@pytest.fixture(scope="module")
def rated(footage, models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("rated") / "out"
    assert run(footage, out, models)["ok"] == 4
    return out


@pytest.fixture
def copied(rated, tmp_path) -> Path:
    return Path(shutil.copytree(rated, tmp_path / "out"))


def scores(out: Path, name: str) -> list[float | None]:
    return pq.read_table(out / "scores.parquet").column(f"score_{name}").to_pylist()


def dataset(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def test_every_clip_that_meets_the_other_limits_has_the_scores_that_the_models_give(rated, models):
    manifest = Manifest.load(rated)
    clip, nsfw = ClipScores(models["clip"], models["aesthetic"]), NsfwScores(models["nsfw"])
    for number in range(4):
        row = manifest.row(number)
        members = read_sample(rated, row)
        frames = decode(members["mp4"], looks(row["frames"]))
        expected = {"clip_similarity": None, **clip(frames, read_captions(members)), **nsfw(frames)}
        for name, value in expected.items():
            assert row[f"score_{name}"] == (None if value is None else pytest.approx(value, abs=1e-6))
    assert scores(rated, "clip_similarity")[3:] == [None, None]
    assert scores(rated, "nsfw")[4] is None
    assert len({*scores(rated, "aesthetic")}) == 5


def test_limits_change_without_a_model_at_work(copied, models):
    engine = Watched()
    found = scores(copied, "clip_similarity")[:3]
    limit = sorted(found)[1]
    summary = run(None, copied, models, {"clip_similarity": {"min": limit}}, engine=engine)
    below = f"clip_similarity below {limit:g}"
    assert summary["filtered"] == {below: 1, "clip_similarity missing": 1, "duration below 1": 1}
    kept = scores(copied, "nsfw")
    summary = run(None, copied, models, {"nsfw": {"max": sorted(kept[:4])[0]}}, engine=engine)
    assert (summary["ok"], len(Manifest.load(copied))) == (1, 1)
    assert engine.rated == []


def test_a_clip_that_now_meets_the_other_limits_and_one_whose_model_changed_are_rated_then(copied, models):
    engine = Watched()
    prep(copied, None, filter={"duration": {"min": 0.5}}, models=models, workers=1, engine=engine)
    assert engine.rated == [("clip", "nsfw")]
    assert None not in scores(copied, "nsfw")
    head, engine = copied.parent / "other.safetensors", Watched()
    save_file({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, head)
    before = scores(copied, "aesthetic")
    run(None, copied, {**models, "aesthetic": str(head)}, engine=engine)
    assert engine.rated == [("clip",)] * 4
    assert scores(copied, "aesthetic")[:4] != before[:4]


def test_stopped_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(footage, models, rated, tmp_path, monkeypatch):
    out, engine = tmp_path / "out", Watched()
    monkeypatch.setattr(module, "CHUNK", 1)
    with pytest.raises(KeyboardInterrupt):
        run(footage, out, models, engine=Watched(stop_after=1))
    run(footage, out, models, engine=engine)
    assert len(engine.rated) == 3
    assert dataset(out) == dataset(rated)


@pytest.mark.parametrize(
    ("given", "limits", "message"),
    [
        ({"clip": "/nowhere/clip"}, [], r"models\.clip: found no folder '/nowhere/clip'"),
        ({"nsfw": "./gone"}, [], r"models\.nsfw: found no folder"),
        ({"aesthetic": "head.safetensors"}, [], r"models\.aesthetic: found no models\.clip"),
        ({"clap": "x"}, [], r"models: found 'clap', expected some of clip, aesthetic, nsfw"),
        ({}, ["duration", "nsfw"], r"filter\.nsfw: found no model for it, expected models\.nsfw=<path>"),
    ],
)
def test_a_model_that_is_missing_is_one_clear_line(given, limits, message):
    with pytest.raises(ValueError, match=message):
        find_models(given, limits)


def test_a_missing_head_or_config_is_one_clear_line_before_anything_is_made(models, footage, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, message in (
        ({**models, "aesthetic": "gone.safetensors"}, r"models\.aesthetic: found no file gone\.safetensors"),
        ({"clip": str(tmp_path / "empty")}, r"models\.clip: found no config\.json in"),
    ):
        with pytest.raises(ValueError, match=message):
            run(footage, tmp_path / "out", given)
    assert not (tmp_path / "out").exists()


def test_a_hub_name_that_cannot_be_reached_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"models\.nsfw: found neither a folder nor .* named 'nobody/none'") as error:
        find_models({"nsfw": "nobody/none"})
    assert "\n" not in str(error.value)


def test_pickled_weights_are_never_read(models, rated, tmp_path):
    folder = Path(shutil.copytree(models["nsfw"], tmp_path / "nsfw"))
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"models: failed at the clips from .* on: .*safetensors"):
        run(None, Path(shutil.copytree(rated, tmp_path / "out")), {"nsfw": str(folder)})


def test_the_same_files_elsewhere_are_the_same_model_and_other_weights_are_not(models, tmp_path):
    copy = Path(shutil.copytree(models["clip"], tmp_path / "elsewhere"))
    assert hash_files(copy) == hash_files(Path(models["clip"]))
    (copy / "model.safetensors").write_bytes(b"other")
    assert hash_files(copy) != hash_files(Path(models["clip"]))


def test_other_captions_need_another_look_at_the_text_and_none_at_the_rest(models, tmp_path):
    ratings = Ratings(tmp_path / "r.sqlite", find_models(models))
    clip, captions = "00000000-0000-5000-8000-000000000000", ["a ball"]
    (chunk,) = ratings.unrated([(clip, 8, captions)])
    ratings.add(chunk, [{"clip": {"clip_similarity": 0.2, "aesthetic": 5.0}, "nsfw": {"nsfw": 0.1}}])
    assert ratings.of(clip, captions) == {"clip_similarity": 0.2, "aesthetic": 5.0, "nsfw": 0.1}
    assert ratings.of(clip, ["red"]) == {"clip_similarity": None, "aesthetic": None, "nsfw": 0.1}


def test_without_models_there_is_nothing_to_load(tmp_path):
    assert find_models({"clip": None}) == Models()
    assert rate_clips([], Node(tmp_path), tmp_path, Models(), False) == []


MINE = """
from data_prep.rate.model_score import ModelScore
from data_prep.score.pixel_score import Scale

def load(path, device):
    return lambda frames, captions: {"length": float(len(frames)), "words": float(len(captions))}

MODEL = ModelScore({"length": Scale("frames"), "words": Scale()}, load, reads_captions=True)
"""


def test_a_model_score_is_one_file_and_one_path(models, tmp_path, monkeypatch):
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds/measure.py").write_text(MINE)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path / "kinds")])
    found = find_models({"measure": models["nsfw"], "nsfw": models["nsfw"]}, ["length"])
    assert found.names() == ["length", "words", "nsfw"]
    ratings = Ratings(tmp_path / "r.sqlite", found)
    clip = "00000000-0000-5000-8000-000000000000"
    (chunk,) = ratings.unrated([(clip, 8, ["a ball"])])
    assert chunk[0].wanted == ["measure", "nsfw"]
    ratings.add(chunk, [{"measure": load(found, False)["measure"](range(3), ["a ball"]), "nsfw": {"nsfw": 0.5}}])
    assert ratings.of(clip, ["a ball"]) == {"length": 3.0, "words": 1.0, "nsfw": 0.5}
    assert ratings.of(clip, ["red"]) == {"length": None, "words": None, "nsfw": 0.5}
    with pytest.raises(ValueError, match="models: found 'clap', expected some of clip, aesthetic, measure, nsfw"):
        find_models({"clap": "x"})
