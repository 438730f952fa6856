from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from videodiff.text.transformers import Transformers

WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "ball": 5, "moves": 6}
T5 = {"vocab_size": 8, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
CLIP = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def word_tokenizer(end: bool = True) -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer of whole words, with T5's end token or with none."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if end:
        words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)


def clip_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """Build CLIP's tokenizer from a vocabulary and merges on disk."""
    pieces = ["<|startoftext|>", "<|endoftext|>", "a</w>", "r", "e", "d</w>", "re", "red</w>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save one small model of each kind with random weights, and its tokenizer."""
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    clip = transformers.CLIPTextConfig(**CLIP)
    models = {
        "t5": transformers.T5EncoderModel(transformers.T5Config(**T5)),
        "umt5": transformers.UMT5EncoderModel(transformers.UMT5Config(**T5)),
        "whole_t5": transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
        "clip": transformers.CLIPTextModel(clip),
        "whole_clip": transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=clip.to_dict(),
                vision_config={**CLIP, "image_size": 8, "patch_size": 4},
                projection_dim=8,
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        (clip_tokenizer(root / name) if "clip" in name else word_tokenizer()).save_pretrained(root / name)
    return root


@pytest.fixture
def load(folder: Path):
    return lambda name, **how: Transformers(str(folder / name), **{"max_length": 6, "dtype": "float32", **how})


KINDS = {
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "whole_t5": "T5EncoderModel",
    "clip": "CLIPTextModel",
    "whole_clip": "CLIPTextModel",
}


@pytest.mark.parametrize(("name", "cls"), KINDS.items())
def test_the_class_follows_from_the_config_and_features_have_a_fixed_length(load, name, cls):
    encoder = load(name)
    text, mask = encoder(["a red", "a"])
    assert type(encoder.model).__name__ == cls
    assert text.shape == (2, 6, encoder.width) == (2, 6, 16)
    assert (text.dtype, mask.dtype, mask.shape) == (torch.float32, torch.bool, (2, 6))


def test_the_mask_of_t5_covers_words_and_end_token(load):
    _, mask = load("t5")(["a red ball", "", "a a a a a a a a"])
    assert mask.int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


def test_the_mask_of_clip_covers_start_words_and_end_but_not_the_same_token_as_padding(load):
    _, mask = load("clip")(["a red", "", "a a a a a a a a"])
    assert mask.int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("name", ["t5", "umt5", "clip"])
def test_features_are_those_of_the_model_without_padding_and_zero_at_padding(load, name):
    encoder = load(name)
    text, mask = encoder(["a red", "a"])
    ids = encoder.tokenizer(["a red"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = encoder.model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(text[0][mask[0]], expected)
    assert text[~mask].abs().max() == 0
    assert text[mask].abs().sum(-1).min() > 0


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_an_earlier_layer_can_be_taken(load, name):
    encoder = load(name, layer=-2)
    ids = encoder.tokenizer(["a red"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = encoder.model(input_ids=ids, output_hidden_states=True).hidden_states[-2][0]
    text, mask = encoder(["a red"])
    torch.testing.assert_close(text[0][mask[0]], expected)
    assert (text - load(name)(["a red"])[0]).abs().max() > 1e-3


def test_the_empty_caption_is_encoded_once_and_kept(load, monkeypatch):
    encoder = load("t5")
    first = encoder([""])
    monkeypatch.setattr(encoder.model, "forward", lambda **_: pytest.fail("ran the model again"))
    torch.testing.assert_close(encoder([""])[0], first[0], rtol=0, atol=0)
    assert first[1].sum() == 1


def test_a_tokenizer_that_leaves_nothing_of_an_empty_caption_still_gives_one_finite_token(folder, tmp_path):
    transformers.T5EncoderModel.from_pretrained(folder / "t5").save_pretrained(tmp_path)
    word_tokenizer(end=False).save_pretrained(tmp_path)
    text, mask = Transformers(str(tmp_path), max_length=4, dtype="float32")(["", "red"])
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert text.isfinite().all()


def test_nothing_of_an_encoder_is_trained(load):
    encoder = load("t5").train()
    assert not encoder.trainable
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(["a red ball"])[0].requires_grad


def test_weights_are_bfloat16_by_default_and_features_float32_and_near(folder, load):
    encoder = Transformers(str(folder / "t5"), max_length=6)
    text, exact = encoder(["a red ball"])[0], load("t5")(["a red ball"])[0]
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    assert text.dtype == torch.float32
    torch.testing.assert_close(text, exact, atol=0.1, rtol=0.05)


def test_a_float32_encoder_stays_float32_inside_autocast(load):
    encoder = load("t5")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder(["a red ball"])[0]
    torch.testing.assert_close(inside, encoder(["a red ball"])[0], rtol=0, atol=0)


def test_model_and_tokenizer_are_found_in_the_subfolders_of_a_pipeline(folder, tmp_path):
    transformers.T5EncoderModel.from_pretrained(folder / "t5").save_pretrained(tmp_path / "text_encoder")
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    where = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
    text, _ = Transformers(str(tmp_path), max_length=6, dtype="float32", **where)(["a red ball"])
    torch.testing.assert_close(text, Transformers(str(folder / "t5"), max_length=6, dtype="float32")(["a red ball"])[0])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_length": 9}, r"text\.max_length: found 9, expected 1 to 8"),
        ({"max_length": 0}, r"text\.max_length: found 0"),
        ({"layer": 1}, r"text\.layer: found 1, expected -2 to -1"),
        ({"layer": -3}, r"text\.layer: found -3"),
        ({"dtype": "int8"}, r"text\.dtype: found 'int8'"),
        ({"kind": "bert"}, "found the model type 'bert', expected one of t5, umt5, clip"),
    ],
)
def test_settings_that_make_no_sense_are_refused(load, how, message):
    with pytest.raises(ValueError, match=message):
        load("clip", **how)


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"text: found no folder .*nowhere"):
        Transformers(str(tmp_path / "nowhere"))


def test_a_missing_tokenizer_is_one_clear_line(tmp_path):
    transformers.UMT5EncoderModel(transformers.UMT5Config(**T5)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot load the tokenizer") as error:
        Transformers(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_missing_tokenizer_of_t5_is_an_error_although_the_library_makes_an_empty_one(tmp_path):
    transformers.T5EncoderModel(transformers.T5Config(**{**T5, "vocab_size": 128})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="found a tokenizer of 1 word "):
        Transformers(str(tmp_path))


def test_the_tokenizer_of_a_larger_model_is_an_error(folder, tmp_path):
    transformers.T5EncoderModel(transformers.T5Config(**{**T5, "vocab_size": 6})).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ids up to 6, expected that of a model of 6 words"):
        Transformers(str(tmp_path))


def test_a_tokenizer_without_padding_is_an_error(folder, tmp_path):
    transformers.T5EncoderModel.from_pretrained(folder / "t5").save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="found no padding token"):
        Transformers(str(tmp_path))


def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    transformers.T5EncoderModel.from_pretrained(folder / "t5").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    marker = tmp_path / "ran"
    (tmp_path / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: ...\nclass Tokens: ...\n")
    for name, entry in (
        ("config.json", {"AutoConfig": "hostile.Model", "AutoModel": "hostile.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["hostile.Tokens", "hostile.Tokens"]}),
    ):
        config = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**config, "auto_map": entry}))
    assert Transformers(str(tmp_path), max_length=6)(["a red ball"])[0].isfinite().all()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_of_no_caption_there_are_no_tokens(load, name):
    assert load(name).tokens([]) == []
    assert len(load(name).tokens(["a", "a red ball"])) == 2
