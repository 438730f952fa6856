"""A pretrained encoder lies in the memory of a node once, however many of its processes use it."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import transformers

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from tests.text.test_transformers import word_tokenizer
from videodiff.node_copy import NodeCopies, own_bytes
from videodiff.pretrained import load_frozen

T5 = {"vocab_size": 16000, "d_model": 768, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_heads": 12}
CLASSES = {"text": transformers.T5EncoderModel, "codec": diffusers.AutoencoderKL}
PROCESSES = 3


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Write a text encoder and an autoencoder of some tens of megabytes, in float32 and in bfloat16."""
    torch.manual_seed(0)
    made = {
        "text": transformers.T5EncoderModel(transformers.T5Config(**T5)),
        "codec": diffusers.AutoencoderKL(
            block_out_channels=(128, 512),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
    }
    folders = {}
    for kind, model in made.items():
        for precision in (torch.float32, torch.bfloat16):
            folder = tmp_path_factory.mktemp(f"{kind}_{precision}")
            model.to(precision).save_pretrained(folder)
            folders[kind, str(precision).removeprefix("torch.")] = folder
    return folders


def load(kind: str, folder: Path) -> torch.nn.Module:
    how = {"low_cpu_mem_usage": False} if kind == "codec" else {}
    return load_frozen(kind, CLASSES[kind], str(folder), None, "main", "bfloat16", **how)


def mapped() -> int:
    """Return the bytes that this process maps of files of weights, a page that n processes share counted as 1 / n."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(maxsplit=1)[0].endswith(":"):
            counts = ".safetensors" in line
        elif counts and line.startswith("Pss:"):
            total += 1024 * int(line.split()[1])
    return total


def use(kind: str, folder: Path, sharing: int, copies: Path, met: Any, out: Any) -> None:
    """Load an encoder as one of several processes, use all its weights, tell what it takes when all have done so."""
    torch.set_num_threads(1)
    with NodeCopies(sharing, copies):
        model = load(kind, folder)
    total = sum(float(part.float().sum()) for p in model.parameters() for part in p.flatten().split(2**14))
    met.wait()
    out.put((own_bytes(model), mapped(), total))
    met.wait()


def together(kind: str, folder: Path, sharing: int, copies: Path) -> list[tuple[int, int, float]]:
    """Return what each of several processes that load an encoder at the same time takes."""
    context = multiprocessing.get_context("fork")
    met, out = context.Barrier(PROCESSES, timeout=60), context.Queue()
    started = [context.Process(target=use, args=(kind, folder, sharing, copies, met, out)) for _ in range(PROCESSES)]
    for process in started:
        process.start()
    found = [out.get(timeout=60) for _ in started]
    for process in started:
        process.join()
    return found


@pytest.mark.parametrize(("kind", "stored"), [("text", "float32"), ("text", "bfloat16"), ("codec", "float32")])
def test_the_processes_of_a_node_hold_one_copy_together(encoders, tmp_path, kind, stored):
    model = load(kind, encoders[kind, stored])
    size = sum(p.nbytes for p in model.parameters())
    assert size > 2**25
    del model
    found = together(kind, encoders[kind, stored], PROCESSES, tmp_path)
    assert [own for own, *_ in found] == [0] * PROCESSES
    assert len({total for *_, total in found}) == 1
    assert 0.9 * size < sum(shared for _, shared, _ in found) < 1.1 * size


def test_processes_that_share_nothing_hold_a_copy_each(encoders, tmp_path):
    """What the test above would find if nothing was shared."""
    size = sum(p.nbytes for p in load("text", encoders["text", "float32"]).parameters())
    found = together("text", encoders["text", "float32"], 1, tmp_path)
    assert sum(own for own, *_ in found) == PROCESSES * size
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_a_copy_holds_the_values_and_types_of_the_model_and_is_gone_when_training_begins(encoders, tmp_path, kind):
    plain = load(kind, encoders[kind, "float32"]).state_dict()
    with NodeCopies(2, tmp_path) as copies:
        shared = load(kind, encoders[kind, "float32"])
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == ["", ".lock"]
    copies.remove()
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert shared.state_dict().keys() == plain.keys()
    for name, value in shared.state_dict().items():
        assert value.dtype == plain[name].dtype
        assert torch.equal(value, plain[name]), name


def test_another_file_is_another_model(encoders, tmp_path):
    with NodeCopies(2, tmp_path / "copies"):
        before = load("text", encoders["text", "float32"]).shared.weight[0, 0].item()
        model = transformers.T5EncoderModel.from_pretrained(encoders["text", "float32"])
        torch.nn.init.constant_(model.shared.weight, 3.0)
        model.save_pretrained(tmp_path / "same")
        os.replace(tmp_path / "same" / "model.safetensors", encoders["text", "float32"] / "model.safetensors")
        after = load("text", encoders["text", "float32"]).shared.weight[0, 0].item()
    assert before != 3.0
    assert after == 3.0


def test_without_room_each_process_keeps_its_own_and_a_line_says_so(encoders, tmp_path, monkeypatch):
    monkeypatch.setattr("videodiff.node_copy.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with NodeCopies(2, tmp_path), pytest.warns(UserWarning, match=r"no room for the .* GiB of AutoencoderKL"):
        model = load("codec", encoders["codec", "float32"])
    assert own_bytes(model) > 0


def test_a_folder_that_others_may_write_to_is_refused(encoders, tmp_path):
    tmp_path.chmod(0o777)
    with NodeCopies(2, tmp_path), pytest.raises(PermissionError, match="others may write to"):
        load("text", encoders["text", "float32"])


def test_the_processes_of_a_training_share_a_copy_which_is_gone_afterwards(
    encoders, tmp_path, world_dataset, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    encoder = tmp_path / "t5"
    model = transformers.T5EncoderModel(transformers.T5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=32, num_layers=1))
    model.save_pretrained(encoder)
    word_tokenizer().save_pretrained(encoder)
    recipe = [word for word in tiny(world_dataset) if not word.startswith("text.")]
    text = [
        "text=t5",
        f"text.path_or_name={encoder}",
        "text.subfolder=null",
        "text.tokenizer_subfolder=null",
    ]
    Ranks(2, tmp_path, ["name=one", *recipe, *text, "text.max_length=25", "trainer.max_steps=1"]).finish()
    (left,) = (tmp_path / f"videodiff-{os.getuid()}").iterdir()
    assert left.suffix == ".lock"
