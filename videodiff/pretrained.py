"""Frozen models made by others: a folder or a name on the Hugging Face hub, its config.json, its safetensors."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videodiff.node_copy import load_once
from videodiff.words import count_text

# What a config.json says of who wrote it, and of how it is loaded.
IRRELEVANT = ("transformers_version", "dtype", "torch_dtype")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def read_config(what: str, name: str, subfolder: str | None = None, revision: str = "main") -> dict[str, Any]:
    """Return the config.json of a model; `what` (codec, text) begins the message where there is none."""
    path = find_config(what, name, subfolder, revision)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{what}: {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{what}: {path}: found {type(config).__name__}, expected a JSON object")
    return config


def find_config(what: str, name: str, subfolder: str | None = None, revision: str = "main") -> Path:
    """Return where the config.json of a model lies, here or in the cache of the hub."""
    path = Path(name, subfolder or "", "config.json")
    if not Path(name).is_dir():
        path = download_config(what, name, subfolder, revision)
    if not path.is_file():
        raise FileNotFoundError(f"{what}: found no {path}, expected a folder written by save_pretrained")
    return path


def download_config(what: str, name: str, subfolder: str | None, revision: str) -> Path:
    """Bring the config.json of a hub model to the local cache; what cannot be a hub name is not asked for."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FileNotFoundError(
            f"{what}: found no folder {name!r}, expected a folder or a name on the Hugging Face hub"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", subfolder=subfolder, revision=revision))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{what}: found neither a folder nor a readable model of the Hugging Face hub named {name!r}, subfolder "
            f"{subfolder!r}, revision {revision!r} ({type(error).__name__})"
        ) from error


def load_frozen(
    what: str, cls: Any, name: str, subfolder: str | None, revision: str, precision: str, **how: Any
) -> nn.Module:
    """Load weights from safetensors only, once a node, in evaluation mode and without gradients."""
    if precision not in DTYPES:
        raise ValueError(f"{what}.dtype: found {precision!r}, expected one of {', '.join(DTYPES)}")

    def load(copy: Path | None) -> nn.Module:
        if copy is not None:
            return read_weights(what, cls, str(copy), "", "main", precision, **how)
        return read_weights(what, cls, name, subfolder or "", revision, precision, **how)

    config = find_config(what, name, subfolder, revision)
    return load_once(config, {"class": cls.__name__, "dtype": precision}, load)


def read_weights(
    what: str, cls: Any, name: str, subfolder: str, revision: str, precision: str, **how: Any
) -> nn.Module:
    """Return a model from its files; a missing weight is an error."""
    where = f"{what}: {Path(name, subfolder)}"
    try:
        model, info = cls.from_pretrained(
            name,
            subfolder=subfolder,
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
            dtype=DTYPES[precision],
            **how,
        )
    # The libraries raise what they like for a broken file: RuntimeError for shapes, SafetensorError for bytes.
    except Exception as error:
        raise ValueError(f"{where}: cannot load {cls.__name__}: {' '.join(str(error).split())}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{where}: {count_text(len(missing), 'weight')} of {cls.__name__} not in the file, first {missing[0]}"
        )
    return model.eval().requires_grad_(False)


def fingerprint(settings: Mapping[str, Any], model: nn.Module) -> str:
    """Return a sha-256 over settings and weights, by name, type, shape and bytes: what a frozen model's answers follow
    from. Where the model lies, and which version of a library wrote it, is no part of it.
    """
    weights = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:
        digests = pool.map(hash_tensor, (weight for _, weight in weights))
        lines = [f"{name} {digest}" for (name, _), digest in zip(weights, digests, strict=True)]
    return hashlib.sha256("\n".join([json.dumps(settings, sort_keys=True), *lines]).encode()).hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """Return type, shape and sha-256 of the bytes of a tensor."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(data).hexdigest()}"


def essential(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config.json a model's answers may follow from."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in IRRELEVANT}
