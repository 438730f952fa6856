"""Captions by real vision-language models with random weights, small ones, saved to a folder with their processors."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from data_prep.caption import model as model_module
from data_prep.caption.model import Asking, Model, answer, claim, generate, load
from data_prep.caption.reply import Failed
from tests.material.preparing import prep
from tests.material.scored_clips import panning
from videodiff.data.processes.pool import Lost
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_sample, read_texts
from videodiff.data.video.encode import encode

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "assistant: "
)
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = ["<pad>", "</s>", "<unk>", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]


def letters(special: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer of single letters."""
    vocabulary = {token: number for number, token in enumerate([*special, *string.printable])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    model.add_special_tokens(special)
    model.decoder = tokenizers.decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **names)


def save_llava(folder: Path) -> None:
    words = letters(SPECIAL)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(words), pad_token_id=0, eos_token_id=1),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    how = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    transformers.LlavaProcessor(images, words, chat_template=TEMPLATE, **how).save_pretrained(folder)


def save_idefics3(folder: Path) -> None:
    words = letters([*SPECIAL, *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))])
    config = transformers.Idefics3Config(
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(words), pad_token_id=0, eos_token_id=1),
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    transformers.Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    how = {"image_seq_len": 4, "chat_template": TEMPLATE}
    transformers.Idefics3Processor(images, words, **how).save_pretrained(folder)


KINDS = {"llava": save_llava, "idefics3": save_idefics3}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small model of each kind with random weights, its processor and its tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for name, save in KINDS.items():
        torch.manual_seed(1)
        save(root / name)
    return root


def asking(model: Path, work: Path, **how) -> Asking:
    settings = {"revision": "main", "prompt": "What is seen?", "frames": 3, "side": 32, "max_tokens": 8}
    return Asking(model=str(model), work=work, **{**settings, **how})


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_answers_each_clip_of_a_batch_as_it_does_alone(kind, models, tmp_path):
    clips = [panning(3, 32, 48, seed=seed) for seed in range(2)] + [panning(1, 40, 32, seed=2)]
    together = generate(clips, asking(models / kind, tmp_path))
    alone = [generate([clip], asking(models / kind, tmp_path))[0] for clip in clips]
    assert together == alone
    assert {reply.finish for reply in together} <= {"length", "stop"}
    assert any(reply.text for reply in together)
    assert "What is seen" not in "".join(reply.text for reply in together)


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_and_the_prompt_reach_the_model(kind, models, tmp_path, monkeypatch):
    model, processor = load(str(models / kind), "main", "cpu")
    seen, through = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: (seen.append(inputs), through(**inputs))[1])
    video = panning(3, 32, 32)
    for changed in (None, 0, 1, 2):
        clip = video.copy()
        clip[changed if changed is not None else []] = 0
        generate([clip], asking(models / kind, tmp_path, max_tokens=1))
    pixels = [inputs["pixel_values"].reshape(3, -1) for inputs in seen]
    differ = [[not torch.equal(a, b) for a, b in zip(pixels[0], other, strict=True)] for other in pixels[1:]]
    assert differ == [[True, False, False], [False, True, False], [False, False, True]]
    (text,) = processor.batch_decode(seen[0]["input_ids"])
    assert "user: <" in text
    assert text.rstrip().endswith("What is seen?assistant:")


def test_a_clip_that_cannot_be_read_costs_the_others_of_its_batch_nothing(models, tmp_path):
    (tmp_path / "good.mp4").write_bytes(encode(panning(4, 32, 48), 8.0))
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    clips = [("bad", tmp_path / "bad.mp4"), ("good", tmp_path / "good.mp4"), ("gone", tmp_path / "gone.mp4")]
    found = dict(answer(clips, asking(models / "llava", tmp_path)))
    assert list(found) == ["bad", "good", "gone"]
    assert [isinstance(found[clip], Failed) and found[clip].reason for clip in found] == [
        "undecodable",
        False,
        "undecodable",
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return what prep makes of three clips."""
    folder = tmp_path_factory.mktemp("model") / "footage"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(encode(panning(8, 32, 48, speed=1 + number, seed=number), 8.0))
    prep(folder.parent / "out", folder, workers=1)
    return folder.parent / "out"


def test_prep_has_its_clips_captioned_by_a_model_in_a_folder(made, models, tmp_path):
    folder = Path(shutil.copytree(models / "llava", tmp_path / "says-a"))
    words = transformers.AutoTokenizer.from_pretrained(folder)
    others = [n for n in range(len(words)) if n not in (words.eos_token_id, words.convert_tokens_to_ids("a"))]
    config = json.loads((folder / "generation_config.json").read_text())
    end = {"forced_eos_token_id": words.eos_token_id, "begin_suppress_tokens": [words.eos_token_id]}
    (folder / "generation_config.json").write_text(json.dumps(config | end | {"suppress_tokens": others}))
    out = Path(shutil.copytree(made, tmp_path / "out"))
    summary = prep(out, caption={"by": "model", "model": str(folder), "frames": 2, "batch": 2, "max_tokens": 4})
    found = summary["captions"]
    assert (found["clips"], found["captioned"], found["open"]) == (3, 3, 0)
    assert (found["origin"], found["captioner"]["model"]) == ("says-a", "says-a")
    assert len(found["captioner"]["config"]) == 64
    manifest = Manifest.load(out)
    (first,) = read_texts(read_sample(out, manifest.row(0)))
    assert first.origin == "says-a"
    assert set(first.text) == {"a"}


def test_batches_lost_with_their_process_end_the_phase(made, models, tmp_path, monkeypatch):
    def lose(function, tasks, workers, timeout):
        return (Lost("crashed", f"batch {number} of {len(task)}") for number, task in enumerate(tasks))

    monkeypatch.setattr(model_module, "run_ordered", lose)
    out = Path(shutil.copytree(made, tmp_path / "out"))
    summary = prep(out, caption={"by": "model", "model": str(models / "llava"), "batch": 2, "give_up": 3})
    stopped = summary["captions"]["stopped"]
    assert "found no answer to 2 requests in a row, the last for crashed: batch 1 of 1" in stopped
    assert (summary["captions"]["open"], summary["ok"]) == (3, 3)


def test_a_model_without_a_chat_template_is_told(models, tmp_path):
    silent = Path(shutil.copytree(models / "llava", tmp_path / "silent"))
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="silent: found no chat template"):
        load(str(silent), "main", "cpu")


def test_no_two_processes_take_one_gpu(tmp_path):
    assert claim(tmp_path / "gpu0.lock")
    assert not claim(tmp_path / "gpu0.lock")
    assert claim(tmp_path / "gpu1.lock")


def test_a_folder_without_a_model_is_told_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"caption\.model: found no .*config\.json"):
        Model(str(tmp_path), "?", 2, 32, 8, tmp_path)
