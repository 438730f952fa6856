"""One command, `videodiff <verb> [overrides]`: Hydra composes `conf/<verb>.yaml`, `verbs/<verb>.py` does the work.

Every mistake in a command line is reported before anything large is imported.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from videodiff import __version__
from videodiff.data.storage.causes import first_line, is_of_all_ranks
from videodiff.extras import missing
from videodiff.printing import in_line, say, say_lines
from videodiff.verbs.config.groups import conf_dir, groups, options

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from videodiff.verbs.config.arguments import Arguments

VERBS = {
    "simulate": "write clips of a simulated world: mp4, caption and exact truth",
    "pack": "turn a folder, CSV or JSONL of captioned video into shards and a manifest",
    "prep": "make curated shards from metadata or footage, with a result for every input",
    "index": "write a manifest for tars that others made, on disk or at a URL",
    "cache": "encode a dataset once with codec and text encoder, and train from the result",
    "plan": "tell whether a training fits a cluster, how long it takes and what it costs, before a launch",
    "train": "train a denoiser on a dataset; resume=<run> continues a run bit by bit",
    "sample": "sample clips from captions and given frames",
    "evaluate": "measure a run: physics against the truth, caption following, flicker",
    "arrange": "lay sampled clips out as VBench, VBench-2.0, PhyGenBench, Physics-IQ or tools for FVD read them",
    "report": "write one self-contained HTML page about a run",
    "inspect": "show what is in a dataset, a run or a checkpoint",
    "convert": "verify a checkpoint, export its weights, or write its state into other files",
    "doctor": "check a machine, or the machines of a job, before training there",
}
# What Hydra says of a `_target_` that it cannot import, and the files of its own and of Python's on the way there.
TARGET, IMPORTING = (
    re.compile("Error locating target '(.*?)'"),
    re.compile(r"[\\/]hydra[\\/]|[\\/]importlib[\\/]|^<frozen"),
)
# Verbs whose work several processes may share: a launcher ends them by SIGTERM where one of them has an error.
SHARED = ("train", "cache", "sample", "evaluate")
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
# Seconds in which the first rank says what is wrong on all of them; the longer time is for an error that it certainly
# has too, because it may take long to leave its training.
TURN, LONG_TURN = 3.0, 30.0


def main() -> None:
    """Run one verb; every error is one line and exit status 1."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        say_lines(usage())
        sys.exit(0)
    if argv[0] == "--version":
        say(f"videodiff {__version__}")
        sys.exit(0)
    verb, words = argv[0], argv[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        fail("videodiff", f"found the verb {verb!r}, expected one of {', '.join(VERBS)}" + hint(near))
    if "-h" in words or "--help" in words:
        say_lines(verb_help(verb))
        sys.exit(0)
    quiet()
    if verb not in SHARED:
        signal.signal(signal.SIGTERM, terminate)
    with one_line_a_failure(verb):
        arguments = understand(verb, words)
    run(verb, arguments)


class Terminated(KeyboardInterrupt):
    """SIGTERM, from a scheduler or a user: it ends the work like an interrupt, so that nothing unfinished stays."""


def terminate(number: int, frame: object) -> None:
    """Handle SIGTERM."""
    raise Terminated


def understand(verb: str, words: list[str]) -> Arguments:
    """Return the flags and overrides of a command line in Hydra's form; ValueError for a mistake in them."""
    from videodiff.verbs.config.arguments import Arguments, positional, replacing, spell, split
    from videodiff.verbs.config.expand import expand

    flags, overrides = split(words, verb)
    sweeps = "--multirun" in flags
    spelled = [spell(verb, override, sweeps) for override in positional(verb, overrides)]
    whole = [line for override in spelled for line in replacing(verb, override)]
    arguments = Arguments(flags, expand(verb, whole))
    from videodiff.verbs.config.checking import check

    check(verb, arguments)
    return arguments


def run(verb: str, arguments: Arguments) -> None:
    """Start Hydra, which composes the configuration, runs sweeps with --multirun, and launches jobs."""
    import hydra

    command = list(sys.argv)

    def call(cfg: DictConfig) -> object:
        # Lightning starts the other processes of a node by this very command.
        sys.argv = command
        from videodiff.cli import one_line_a_failure, quiet, ranks_of_node
        from videodiff.parallel.node.forks import fork_ranks
        from videodiff.verbs.config.checking import check_composed

        quiet()
        with one_line_a_failure(verb):
            check_composed(verb, cfg)
            module = f"videodiff.verbs.{verb}"
            if verb == "train":
                fork_ranks(ranks_of_node(cfg), module)
            return importlib.import_module(module).run(cfg)

    if arguments.has("--multirun"):
        tell_jobs(verb, arguments.overrides)
    sys.argv = [command[0], *arguments.flags, *arguments.overrides]
    call.__module__ = "videodiff.cli"
    with one_line_a_failure(verb):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(call)()


def ranks_of_node(cfg: DictConfig) -> int:
    """Return how many ranks of a training run on this node, as far as that is known without torch; else 1."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    # A job of a sweep would go on with the next job in each rank.
    alone = HydraConfig.get().mode != RunMode.RUN or cfg.strategy._target_ == "videodiff.parallel.strategy.single"
    devices = cfg.trainer.devices
    count = devices if isinstance(devices, (int, str)) else len(devices)
    return int(count) if not alone and str(count).isdigit() else 1


def tell_jobs(verb: str, overrides: list[str]) -> None:
    """Let Hydra's launchers print the settings of each job, and print where the output of submitted jobs goes."""
    import yaml

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"videodiff {verb}: %(message)s"))
    for name in ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_submitit_launcher"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
    for launcher in [o.partition("=")[2] for o in overrides if o.startswith("hydra/launcher=")]:
        if launcher in options("hydra/launcher"):
            settings = yaml.safe_load((conf_dir() / "hydra/launcher" / f"{launcher}.yaml").read_text())
            if "submitit_folder" in settings:
                say(f"videodiff {verb}: the jobs print into {settings['submitit_folder']}/<job>_0_log.out and .err")


def quiet() -> None:
    """Silence warnings and progress bars of libraries, in this process and its children."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A connection that fails is an error of Python too; the warnings of C++ before it are pages of addresses.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if sys.warnoptions:
        return
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore::DeprecationWarning")
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    for message in (".*LeafSpec.*", ".*does not have many workers.*", ".*srun.*", ".*lr_scheduler.step.*"):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def one_line_a_failure(verb: str) -> Iterator[None]:
    """If the block fails, exit with one line and status 1; VIDEODIFF_TRACEBACK=1 shows the traceback."""
    try:
        yield
    except KeyboardInterrupt as error:
        how = "terminated" if isinstance(error, Terminated) else "interrupted"
        fail(name_of(verb), how, 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT))
    except Exception as error:
        if "VIDEODIFF_TRACEBACK" in os.environ:
            traceback.print_exception(error)
        let_first_rank_speak(is_of_all_ranks(error))
        fail(name_of(verb), one_line(error), getattr(error, "status", 1))


def name_of(verb: str) -> str:
    """Return the prefix of messages: the verb, and the rank if there are several processes."""
    return f"videodiff {verb}" + (f" (rank {rank()})" if rank() else "")


def rank() -> int:
    """Return which of several processes this one is."""
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name, "").isdigit()), 0)


def let_first_rank_speak(of_all: bool) -> None:
    """Wait if this is not the first rank: the first prints an error that all ranks have, and then ends the others.

    After an error `of_all` ranks this one ends without a line, if nobody has ended it.
    """
    if rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(LONG_TURN if of_all else TURN)
        if of_all:
            sys.exit(1)


def usage() -> str:
    """Return what `videodiff --help` prints."""
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    return (
        "Train text-to-video diffusion models with a noise level per frame.\n\n"
        f"usage: videodiff <verb> [key=value ...] [--multirun]\n\n{verbs}\n\n"
        "videodiff <verb> --help shows the keys of a verb and the recipes it knows."
    )


def verb_help(verb: str) -> str:
    """Return what `videodiff <verb> --help` prints: the comments, keys and defaults of its configuration file."""
    text = (conf_dir() / f"{verb}.yaml").read_text()
    keys = "\n".join(line for line in text.split("\nhydra:")[0].splitlines() if "override hydra" not in line)
    lines = [f"videodiff {verb}: {VERBS[verb]}", "", keys.strip(), ""]
    for group in groups(verb):
        lines.append(f"{group}=  {', '.join(options(group))}")
    lines += ["", "Any key may be overridden: key=value, group.key=value. --cfg job prints the whole configuration."]
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line.

    An error of a library that only wraps another gives the message of its cause. An unexpected error gives its type and
    where it came from.
    """
    if line := missing(error):
        return line
    if type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        key = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
        if line := unimported(error):
            return f"{key}.{line}" if key else line
        cause = one_line(error.__cause__)
        return cause if not key or cause.startswith(key.split(".")[0]) else f"{key}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "in DataLoader worker process" in lines[0]:
        lines = [lines[-1].partition(": ")[2]]
    if is_foreseen(error):
        return " ".join(lines) or type(error).__name__
    text = f"{type(error).__name__}: {' '.join(lines)}"[:400]
    return f"{text} (at {way(error)}; VIDEODIFF_TRACEBACK=1 shows more)"


def unimported(error: BaseException) -> str:
    """Return which `_target_` of a configuration cannot be imported, why, and where; empty for any other error."""
    found, wrapped = TARGET.match(str(error)), error.__cause__ and error.__cause__.__cause__
    if found is None or wrapped is None:
        return ""
    reason = f"{type(wrapped).__name__}: {first_line(wrapped)}"
    lines = [frame for frame in traceback.extract_tb(wrapped.__traceback__) if not IMPORTING.search(frame.filename)]
    if isinstance(wrapped, SyntaxError):
        place = f" (at {wrapped.filename}:{wrapped.lineno})"
    else:
        place = f" (at {lines[-1].filename}:{lines[-1].lineno})" if lines else ""
    module = found[1].partition(".")[0]
    alone = isinstance(wrapped, ModuleNotFoundError) and wrapped.name == module
    advice = f"; if {module}.py is in this folder, set PYTHONPATH=." if alone else ""
    return f"_target_: found {found[1]}, which cannot be imported: {reason}{place}{advice}"


def is_foreseen(error: BaseException) -> bool:
    """Return whether the message of an error is written for the user."""
    names = {kind.__name__ for kind in type(error).__mro__}
    ours = type(error).__module__.startswith(("videodiff", "data_prep"))
    # The last one is Lightning's, of settings that do not fit each other or the data.
    written = {"ValueError", "OSError", "HydraException", "OmegaConfBaseException", "YAMLError"}
    return ours or bool(names & {*written, "MisconfigurationException"})


def way(error: BaseException) -> str:
    """Return where an error came from: the lines of this project in its traceback, the last first."""
    root = Path(__file__).parents[1]
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    rooms = root / "videodiff", root / "data_prep"
    ours = [(path, line) for path, line in frames if any(map(path.is_relative_to, rooms)) and path.name != "cli.py"]
    return ", from ".join(f"{path.relative_to(root)}:{line}" for path, line in reversed(ours)) or "an unknown place"


def hint(near: list[str]) -> str:
    """Return a suggestion to append to a message."""
    return f"; did you mean {near[0]!r}?" if near else ""


def fail(who: str, message: str, status: int = 1) -> None:
    """Print one line to standard error and exit."""
    sys.stdout.flush()
    say(f"{who}: error: {in_line(message)}", sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
