"""Captions by a vision-language model of the transformers library, from a folder or the Hugging Face hub."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from data_prep.caption.frames import read_frames
from data_prep.caption.reply import Failed, Reply
from data_prep.engine.lock import join_run
from videodiff.data.processes.pool import Lost, run_ordered
from videodiff.data.video.decode import DecodeError

Answers = list[tuple[str, Reply | Failed]]


@dataclass(frozen=True)
class Asking:
    """The settings of a model; with its clips they determine the captions of a batch."""

    model: str
    revision: str
    prompt: str
    frames: int
    side: int
    max_tokens: int
    work: Path


class Model:
    """Ask a model for captions, `batch` clips at a time, greedily, in one process a GPU, or in one without.

    If a batch takes over `timeout` seconds, loading included, its process is killed and only this batch is lost.
    """

    def __init__(
        self,
        model: str,
        prompt: str,
        frames: int,
        side: int,
        max_tokens: int,
        work: Path,
        batch: int = 8,
        revision: str = "main",
        timeout: float = 3600.0,
    ) -> None:
        if batch < 1:
            raise ValueError(f"caption.batch: found {batch}, expected at least 1")
        if importlib.util.find_spec("transformers") is None:
            raise ModuleNotFoundError("caption.by=model: found no package transformers", name="transformers")
        config_hash(model)
        self.asking = Asking(model, revision, prompt, frames, side, max_tokens, work)
        self.batch, self.timeout = batch, timeout

    def answers(self, batches: Sequence[Sequence[tuple[str, Path]]]) -> Iterator[Answers]:
        """Yield the answers for each batch of clips, given as id and file, in their order."""
        workers = max(count_gpus(), 1)
        results = run_ordered(partial(answer, asking=self.asking), batches, workers, self.timeout)
        for number, found in enumerate(results):
            if isinstance(found, Lost):
                reason = found.reason if found.reason in ("timeout", "crashed") else "unexpected"
                yield [(clip, Failed(reason, True, found.detail)) for clip, _ in batches[number]]
            else:
                yield found


def config_hash(model: str) -> str:
    """Return the sha-256 of the config.json of a model's folder, empty for a name on the hub."""
    path = Path(model) / "config.json"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if Path(model).exists() or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model):
        raise ValueError(
            f"caption.model: found no {path}, expected the folder of a model or its name on the Hugging Face hub"
        )
    return ""


def answer(clips: Sequence[tuple[str, Path]], asking: Asking) -> Answers:
    """Return the answers for a batch of clips; runs in a worker, which keeps the model."""
    join_run(asking.work)
    cv2.setNumThreads(1)
    found: dict[str, Reply | Failed] = {}
    shown: dict[str, np.ndarray] = {}
    for clip, path in clips:
        try:
            shown[clip] = read_frames(path, asking.frames, asking.side)
        except DecodeError as error:
            found[clip] = Failed("undecodable", False, str(error))
    if shown:
        found.update(zip(shown, generate(list(shown.values()), asking), strict=True))
    return [(clip, found[clip]) for clip, _ in clips]


def generate(clips: Sequence[np.ndarray], asking: Asking) -> list[Reply]:
    """Return the model's reply to the prompt for each clip, uint8 `t h w c`."""
    import torch

    model, processor = load(asking.model, asking.revision, device_for(asking.work))
    talks = [
        [{"role": "user", "content": [*({"type": "image"} for _ in frames), {"type": "text", "text": asking.prompt}]}]
        for frames in clips
    ]
    texts = [processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]
    inputs = processor(text=texts, images=[list(frames) for frames in clips], padding=True, return_tensors="pt")
    inputs = inputs.to(model.device, model.dtype)
    with torch.inference_mode():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=asking.max_tokens)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=new.device)
    ended = torch.isin(new, ends).any(1).tolist()
    words = processor.batch_decode(new, skip_special_tokens=True)
    return [Reply(text, "stop" if stop else "length") for text, stop in zip(words, ended, strict=True)]


@cache
def load(name: str, revision: str, device: str) -> tuple[Any, Any]:
    """Return a frozen model and its processor: safetensors only, none of its own code, bf16 on a GPU."""
    import torch
    import transformers

    safe = {"revision": revision, "trust_remote_code": False}
    processor = transformers.AutoProcessor.from_pretrained(name, **safe)
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"caption.model: {name}: found no chat template, expected a model that takes a prompt")
    # The reply is generated after the prompt, so all prompts of a batch must end in the same column.
    processor.tokenizer.padding_side = "left"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    kind = transformers.AutoModelForImageTextToText
    model = kind.from_pretrained(name, dtype=dtype, use_safetensors=True, **safe)
    return model.eval().requires_grad_(False).to(device), processor


def count_gpus() -> int:
    """Return how many GPUs there are."""
    import torch

    return torch.cuda.device_count()


@cache
def device_for(work: Path) -> str:
    """Return a GPU that no other process of the run uses, or the CPU if the machine has no GPU."""
    count = count_gpus()
    for number in range(count):
        if claim(work / f"gpu{number}.lock"):
            return f"cuda:{number}"
    if count:
        raise RuntimeError(f"found all {count} GPUs taken by other workers, expected a free one")
    return "cpu"


CLAIMS: list[TextIO] = []


def claim(lock: Path) -> bool:
    """Take a lock until this process ends; False if another process holds it."""
    file = lock.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    CLAIMS.append(file)
    return True
