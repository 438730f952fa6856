"""One command, `videodiff <verb> [overrides]`: Hydra composes `conf/<verb>.yaml`, `verbs/<verb>.py` does the work."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videodiff import __version__
from videodiff.verbs.groups import conf_dir, groups, options

VERBS = {
    "simulate": "write clips of a simulated world: mp4, caption and exact truth",
    "pack": "turn a folder, CSV or JSONL of captioned video into shards and a manifest",
    "prep": "from metadata or footage to curated shards, every input accounted for",
    "index": "give tars written by anyone a manifest, on disk or at a URL",
    "cache": "encode a dataset once by a codec and a text encoder, to train from instead",
    "train": "fit a denoiser to a dataset; resume=<run> continues one to the bit",
    "sample": "make clips from captions, and from given frames",
    "evaluate": "measure a run: physics against the truth, caption following, flicker",
    "report": "write one self-contained HTML page about a run",
    "inspect": "tell what is in a dataset, a run or a checkpoint",
}
# The verbs whose first argument may be a bare path, and the key it stands for.
POSITIONAL = {
    "index": "tars",
    "cache": "root",
    "report": "run",
    "inspect": "folder",
    "evaluate": "run",
    "sample": "run",
}
FAILURES = (ValueError, OSError, HydraException, OmegaConfBaseException)


def main() -> None:
    """Run one verb; errors a user can mend are one line and exit status 1."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0)
    if argv[0] == "--version":
        print(f"videodiff {__version__}")
        sys.exit(0)
    verb, arguments = argv[0], argv[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        fail("videodiff", f"found the verb {verb!r}, expected one of {', '.join(VERBS)}" + hint(near))
    arguments = positional(verb, arguments)
    if "-h" in arguments or "--help" in arguments:
        print(verb_help(verb))
        sys.exit(0)
    module = importlib.import_module(f"videodiff.verbs.{verb}")
    try:
        overrides = [a for a in arguments if not a.startswith("-")]
        arguments = [*(a for a in arguments if a.startswith("-")), *getattr(module, "expand", list)(overrides)]
        check(verb, [a for a in arguments if not a.startswith("-")])
    except FAILURES as error:
        fail(f"videodiff {verb}", one_line(error))
    run(verb, module.run, arguments)


def run(verb: str, task: object, arguments: list[str]) -> None:
    """Hand over to Hydra, which composes the configuration, sweeps with --multirun and launches."""
    command = list(sys.argv)

    def call(cfg: DictConfig) -> object:
        # Lightning starts the other processes of a node by this very command.
        sys.argv = command
        try:
            return task(cfg)
        except FAILURES as error:
            if "VIDEODIFF_TRACEBACK" in os.environ:
                raise
            fail(f"videodiff {verb}", one_line(error))

    sys.argv = [command[0], *arguments]
    call.__module__ = "videodiff.cli"
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(call)()


def check(verb: str, overrides: list[str]) -> None:
    """Compose once before Hydra does, to answer a mistyped key with the nearest valid one."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        plain = [o for o in map(parse, overrides) if not o.is_sweep_override()]
        try:
            compose(verb, overrides=[o.input_line for o in plain])
        except (HydraException, OmegaConfBaseException) as error:
            known = valid_names(verb, [o.input_line for o in plain if o.key_or_group in groups(verb)])
            for override in plain:
                key = override.key_or_group
                if key not in known and not override.is_add() and not key.startswith("hydra."):
                    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                    raise ValueError(f"override {override.input_line!r}: found no key {key!r}{hint(near)}") from error
            raise


def parse(override: str) -> Override:
    """Read one override; where it is not of the form key=value, the error says which."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ValueError(f"override {override!r}: found no key=value ({str(error).splitlines()[0]})") from error


def valid_names(verb: str, group_choices: list[str]) -> list[str]:
    """Return every key and group of a verb's configuration, with those group choices that exist."""
    choices = [c for c in group_choices if option_exists(c)]
    cfg = compose(verb, overrides=choices)
    return [*flat_keys(OmegaConf.to_container(cfg, resolve=False)), *groups(verb)]


def option_exists(choice: str) -> bool:
    """Tell whether group=option names a file in conf/; raise with the nearest option where it does not."""
    group, _, option = choice.partition("=")
    known = options(group)
    if option in known or option == "null":
        return True
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
    raise ValueError(
        f"override {choice!r}: found no {group} {option!r}, expected one of {', '.join(known)}{hint(near)}"
    )


def flat_keys(node: object, prefix: str = "") -> Iterator[str]:
    """Yield every key of a nested dictionary, dotted."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from flat_keys(value, f"{prefix}{key}.")


def positional(verb: str, arguments: list[str]) -> list[str]:
    """Turn a bare path in the first place into the override it stands for."""
    if verb in POSITIONAL and arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
        escaped = arguments[0].replace("\\", "\\\\").replace("'", "\\'")
        return [f"{POSITIONAL[verb]}='{escaped}'", *arguments[1:]]
    return arguments


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
    """Return the message of an error in one line, the cause's where a library only wraps it."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
        return (f"{key}: " if key else "") + one_line(error.__cause__)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "in DataLoader worker process" in lines[0]:
        lines = [lines[-1].partition(": ")[2]]
    return " ".join(lines) or type(error).__name__


def hint(near: list[str]) -> str:
    """Return a suggestion to append to a message."""
    return f"; did you mean {near[0]!r}?" if near else ""


def fail(who: str, message: str) -> None:
    """Print one line to standard error and leave with status 1."""
    print(f"{who}: error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
