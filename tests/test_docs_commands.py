"""Every command that README and docs show works as it stands there, one after the other, as a newcomer runs them.

What would take hours is cut short by further overrides; what needs a GPU, a cluster or weights from a hub is composed
and checked, not run.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from tests.material.made_clips import moving_square
from tests.material.servers.chat_server import chat_server
from videodiff import cli
from videodiff.data.loader.datamodule import RECORDS
from videodiff.data.loader.settings import built
from videodiff.data.order.arithmetic import micro_batches, usual_batch
from videodiff.data.video.encode import encode
from videodiff.planning.cost import Cost
from videodiff.verbs.config.groups import conf_dir

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
# What is appended to the commands of a verb so that they take seconds.
SHORT = {
    "train": [
        *(
            "trainer.max_steps=2",
            "trainer.val_check_interval=2",
            "trainer.accelerator=cpu",
            "trainer.precision=32-true",
        ),
        *(
            "trainer.devices=1",
            "model.width=16",
            "model.depth=2",
            "model.heads=2",
            "data.global_batch=2",
            "data.num_workers=1",
            "data.validation_clips=2",
        ),
        *("callbacks.samples.every=2", "callbacks.samples.clips=1", "sampler.steps=1", "schedule.warmup=1"),
    ],
    "sample": ["steps=1"],
    "evaluate": ["clips=2", "steps=1", "keep=1"],
    "simulate": ["clips=6", "workers=1"],
    "pack": ["workers=1"],
    "prep": ["workers=1", "acquire.attempts=1", "acquire.timeout=1"],
    "inspect": ["seconds=1"],
}
# What cannot run here: it is composed with these words of a command left as they are.
ELSEWHERE = (
    "=sd_vae",
    "=wan_vae",
    "hdvila",
    "data=webdataset",
    "engine=ray",
    "caption.by=model",
    "models.clip=",
    "clip_similarity",
    "suite=",
)
SCRIPTS = (
    *("launch/torchrun/train.sh", "launch/deepspeed/train.sh"),
    *("launch/slurm/train.sbatch", "launch/slurm/prep.sbatch"),
)
# Not ours.
OTHERS = ("make", "squeue", "vllm", "kubectl", "pip", "source", "git", "cd", "export", "python")


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it, in a block or within a sentence, and what the page says that it prints."""

    page: str
    line: str
    printed: str = ""
    inline: bool = False


def shown(page: str) -> Iterator[Shown]:
    """Yield the commands in the code blocks of a page, then those in its sentences that are whole."""
    text, fences = (ROOT / page).read_text(), re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for language, block in fences.findall(text):
        if language == "bash":
            bare = re.sub(r"(^|\s\s+)#.*$", "", re.sub(r"\\\n\s*", "", block), flags=re.MULTILINE)
            # A quoted list may go over several lines.
            for line in re.findall(r"(?:'[^']*'|[^'\n])+", bare):
                yield from [Shown(page, line)] * bool(line.strip())
        elif block.startswith("$ "):
            line, _, printed = block[2:].partition("\n")
            yield Shown(page, line, printed.strip())
    for line in dict.fromkeys(re.findall(r"`(videodiff [^`]+ [^`]+)`", fences.sub("", text))):
        if "..." not in line and "<" not in line:
            yield Shown(page, " ".join(line.split()), inline=True)


COMMANDS = [command for page in PAGES for command in shown(page)]


def arguments(command: Shown) -> list[str] | None:
    """Return the arguments of `videodiff` in a command, None where it is another program."""
    words = shlex.split(command.line)
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    if words[0] in ("videodiff", ".venv/bin/videodiff"):
        return words[1:]
    if words[0] == "srun":
        return words[words.index(".venv/bin/videodiff") + 1 :]
    if words[0] == "torchrun":
        return words[words.index("videodiff") + 1 :]
    script = next((word for word in words if word in SCRIPTS), None)
    if script is not None:
        rest = [word for word in words[words.index(script) + 1 :] if "=" in word]
        return ["prep" if "prep" in script else "train", *rest]
    assert words[0] in OTHERS, f"{command.page}: found {words[0]!r}, a program that this test does not know"
    return None


def shortened(command: Shown, chat: str) -> list[str]:
    """Return the arguments to run: what takes long is cut short, what cannot run here is only composed.

    chat: the address of a server that captions; each call has to name it.
    """
    found, words = arguments(command), shlex.split(command.line)
    verb = found[0]
    if "--help" in found or "--cfg" in found or command.printed:
        return found
    answers = [f"caption.url={chat}"] * (verb == "prep")
    if (
        command.inline
        or words[0] in ("torchrun", "srun")
        or any(word in SCRIPTS for word in words)
        or any(w in command.line for w in ELSEWHERE)
    ):
        return [*found, *answers, "--cfg", "job"]
    # The shapes of the recipes divide by their own patches; those of other commands by large ones, which are few.
    large = ["model.patch=[1,16,16]"] * (verb == "train" and not re.search("experiment=|resume=", command.line))
    return [*found, *SHORT.get(verb, []), *answers, *large]


def clip(path: Path, frames: np.ndarray, caption: str) -> None:
    path.write_bytes(encode(frames, 8.0))
    path.with_suffix(".txt").write_text(caption)


def two_shots(seed: int) -> np.ndarray:
    """Return frames `t h w c` of a camera that moves along one wall, and from the middle on along another."""
    walls = np.random.default_rng(seed).integers(40, 216, (2, 16, 24, 3), np.uint8)
    large = walls.repeat(4, axis=1).repeat(4, axis=2)
    return np.stack([large[number // 24, :, number % 24 : number % 24 + 64] for number in range(48)])


def furnish() -> None:
    """Put into this folder what a newcomer is told to have: clips, pictures, footage, lists."""
    for folder in ("my_clips", "footage", "pictures", "tars"):
        Path(folder).mkdir()
    for number in range(6):
        square = moving_square(24, 64, 64, seed=number)
        clip(Path("my_clips") / f"{number}.mp4", square, ("a dog runs on the beach", "a red kite")[number % 2])
        Image.new("RGB", (160, 144), (40 * number, 99, 50)).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text("a picture of a beach")
        clip(Path("footage") / f"{number}.mp4", two_shots(number), "a dog runs")
    mask = Image.new("L", (160, 144))
    mask.paste(255, (40, 40, 120, 104))
    mask.save("mask.png")
    clip(Path("clip.mp4"), moving_square(24, 64, 64, seed=8), "a dog runs on the beach")
    Path("list.csv").write_text("path,from,to,text,licence\n1.mp4,0,2,a dog runs,CC0-1.0\n")
    Path("gone.txt").write_text("one\n")
    Path("prompts.txt").write_text("a red kite\na dog runs on the beach\n")


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Shown, tuple[int, str]]]:
    """Run the commands of each page in a folder of its own; yield how each ended and what it said on standard error."""
    ended, prepared = {}, {}
    with pytest.MonkeyPatch.context() as patch, chat_server() as server:
        patch.chdir(furnished := tmp_path_factory.mktemp("furnished"))
        furnish()
        for page in [page for page in PAGES if any(one.page == page and arguments(one) for one in COMMANDS)]:
            # Several pages begin alike: what they begin with is made once.
            if (begun := str(before(page))) not in prepared:
                prepared[begun] = tmp_path_factory.mktemp("prepared") / "begun"
                patch.chdir(shutil.copytree(furnished, prepared[begun]))
                for words in before(page):
                    status, said = run(patch, words)
                    if status:
                        pytest.exit(f"{shlex.join(words)}: {said[-2000:]}")
            patch.chdir(shutil.copytree(prepared[begun], tmp_path_factory.mktemp("newcomer") / "here"))
            for command in COMMANDS:
                if command.page == page and arguments(command):
                    ended[command] = run(patch, shortened(command, server.url))
        yield ended


def before(page: str) -> list[list[str]]:
    """Return what a reader of a page has run before: `make demo`, or what the README shows."""
    if page == "README.md":
        return [["pack", "source=pictures", "out=datasets/images", "workers=1"], *demo()]
    if page == "docs/data.md":
        return []
    line = "videodiff train name=mine data.root=datasets/mine data.frames=16 data.height=64 data.width=64"
    return [["pack", "source=my_clips", "out=datasets/mine", "workers=1"], shortened(Shown(page, line), "")]


def demo() -> list[list[str]]:
    """Return what launch/demo.sh runs, in short."""
    lines = (ROOT / "launch" / "demo.sh").read_text().splitlines()
    clip = next(line.split('"')[1] for line in lines if line.startswith("clip="))
    calls = [line.split()[1:] for line in lines if line.strip().startswith("videodiff ")]
    words = [[*shlex.split(" ".join(call).replace("$clip", clip))] for call in calls]
    short = {
        "simulate": ["clips=60", "workers=1"],
        **{verb: SHORT.get(verb, []) for verb in ("train", "evaluate", "pack")},
    }
    # The processes of the training are the script's; here a command runs in this process.
    return [[w for w in call if not w.startswith(("clips=$", "${"))] + short.get(call[0], []) for call in words]


def run(patch: pytest.MonkeyPatch, words: list[str]) -> tuple[int, str]:
    """Run `videodiff` here; return exit status and what it says on standard error."""
    patch.setattr(sys, "argv", ["videodiff", *words])
    GlobalHydra.instance().clear()
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as leave:
            return int(leave.code or 0), said.getvalue()
    return 0, said.getvalue()


@pytest.mark.parametrize("command", [c for c in COMMANDS if arguments(c)], ids=lambda command: command.line)
def test_a_command_works_as_it_stands_in_the_docs(newcomer: dict[Shown, tuple[int, str]], command: Shown) -> None:
    status, said = newcomer[command]
    if command.printed:
        assert said.strip() == command.printed
    else:
        assert status == 0, said[-2000:]


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if "hdvila" in c.line and (arguments(c) or [""])[0] == "train" and not c.inline],
    ids=lambda command: command.line,
)
def test_the_data_of_a_training_that_is_only_composed_go_together(command: Shown) -> None:
    overrides = list(cli.understand("train", [*arguments(command)[1:], "--cfg", "job"]).overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("train", overrides=overrides)
    settings = OmegaConf.to_container(cfg, resolve=True)["data"]
    settings |= {"cost": lambda bucket: Cost(bucket.frames * bucket.height * bucket.width, bucket.frames * 16 * 16)}
    del settings["_target_"]
    datasets, shapes, batches, _, _ = built(RECORDS, settings)
    sizes = [size for stage in batches.planned(datasets, shapes) for size in stage.batch_sizes]
    world, whole = cfg.trainer.devices * cfg.trainer.num_nodes, usual_batch(batches.global_batch, sizes)
    assert micro_batches(sizes, whole, batches.micro_batch, world, count=batches.count) >= 1


def test_no_command_leaves_something_to_be_filled_in() -> None:
    assert [command for command in COMMANDS if "..." in command.line or re.search(r"<\w+>", command.line)] == []


def test_the_targets_of_make_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"\bmake ([a-z][\w-]*)`", (ROOT / page).read_text())}
    assert named
    assert named <= targets
