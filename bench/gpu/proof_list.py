"""All proofs, the most important first: name, time limit, needed packages and memory."""

from __future__ import annotations

from typing import NamedTuple

EVERY = ("numpy", "einops")
LEARN = (*EVERY, "lightning", "safetensors", "tqdm", "requests")
TRAIN = (*LEARN, "hydra", "omegaconf", "yaml", "urllib3", "pyarrow", "av", "PIL", "webdataset", "braceexpand")
ENCODE = (*TRAIN, "diffusers", "transformers", "tokenizers")


class Proof(NamedTuple):
    """A proof: `bench/gpu/proofs/<name>.py` with a function `run`; seconds at most; packages; GiB of the device."""

    name: str
    proves: str
    seconds: float
    packages: tuple[str, ...]
    gib: float


# Nine minutes do not hold all of them: what only a GPU can show stands before what a CPU shows too.
PROOFS = (
    Proof("parity", "denoiser, objective, samplers, optimizers: the device against the CPU", 90, LEARN, 2),
    Proof("demo", "20 steps of the demo: curve, resume, sample, evaluate, workers, pinned memory", 100, TRAIN, 2),
    Proof("zero", "ZeRO 1, 2 and 3 in one process, AdamW and Muon, save and resume", 120, (*TRAIN, "deepspeed"), 4),
    Proof("ceilings", "matrix products, attention and copies: what the card can do", 30, EVERY, 4),
    Proof("speed", "XL and L forward and backward, eager and compiled, beside Latte", 200, (*EVERY, "diffusers"), 16),
    Proof("step", "the whole training step of hdvila_256 from cached latents", 120, ENCODE, 24),
    Proof("recipes", "three steps of every recipe at full size", 120, (*ENCODE, "deepspeed"), 8),
    Proof("encoders", "autoencoders and T5 in the loop; cached equals encoded online", 60, ENCODE, 2),
    Proof("waits", "waits for the device in a step; graphs for eight buckets", 90, TRAIN, 4),
    Proof("fp8", "products in FP8 beside emulated ones; loss and speed at width 2048", 180, (*LEARN, "torchao"), 8),
    Proof("uniform", "uniform_gpu for the minutes that are left: velocity error as it falls", 6000, TRAIN, 12),
)
