"""Overrides that stand for others: the overrides that a folder keeps, and short forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from videodiff.verbs.config.arguments import quoted, text_of
from videodiff.verbs.config.groups import options
from videodiff.verbs.config.stored import key_of, no_run, read_overrides, read_plain, read_yaml
from videodiff.verbs.config.versions import version_of

# Where a preparation keeps the overrides of its last call, below its dataset.
WORK, OVERRIDES = ".work", "overrides.yaml"

# The key of the store that a run's checkpoints are copied to.
MIRROR = "callbacks.checkpoints.mirror"
# The value of resume= that resumes if the run folder has a checkpoint, and begins if it has none.
AUTO = "auto"


def expand(verb: str, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a verb, expanded."""
    rule = {"train": resumed, "prep": prepared_again, "inspect": of_data, "cache": of_root}.get(verb, list)
    return rule(overrides)


def resumed(overrides: Sequence[str]) -> list[str]:
    """Put the overrides of the run named by resume= before the new ones."""
    run = given("resume", overrides)
    if run in (None, AUTO):
        return list(overrides)
    store = None
    if "://" in run:
        store, run = run.rstrip("/").rpartition("/")[0], brought(run, overrides)
        overrides = [*(override for override in overrides if key_of(override) != "resume"), f"resume={quoted(run)}"]
    path = Path(run) / OVERRIDES
    if not path.is_file():
        raise FileNotFoundError(f"resume: {no_run(path)}")
    if given(MIRROR, overrides) is None and store is not None and stored_mirror(path) == store:
        # This command line names the store: the run goes on to send its checkpoints there.
        overrides = [*overrides, f"{MIRROR}={quoted(store)}"]
    if (config := Path(run) / "config.yaml").is_file():
        # Check the version first: keys of a newer version would be reported as mistyped.
        tree = read_yaml(config)
        version_of(tree if isinstance(tree, dict) else {}, config)
    return [*read_overrides(path, overrides, dropped=("run",)), f"run={quoted(run)}", *overrides]


def stored_mirror(path: Path) -> str | None:
    """Return the store that the overrides in a file name, None if they name none."""
    lines = read_plain(path)
    found = given(MIRROR, [line for line in lines if isinstance(line, str)]) if isinstance(lines, list) else None
    return None if found is None else found.rstrip("/")


def brought(url: str, overrides: Sequence[str]) -> str:
    """Bring the run at a URL to the run folder that the overrides name, by default the one of its name here."""
    from videodiff.training.state.mirror import bring

    name = given("name", overrides) or url.rstrip("/").rpartition("/")[2]
    folder = given("run", overrides) or f"runs/{name}"
    bring(url, Path(folder))
    return folder


def prepared_again(overrides: Sequence[str]) -> list[str]:
    """Without source= put the overrides of the last call for this out= before the new ones."""
    out = given("out", overrides)
    if out is None or given("source", overrides) is not None:
        return list(overrides)
    path = Path(out) / WORK / OVERRIDES
    return [*read_overrides(path, overrides), *overrides] if path.is_file() else list(overrides)


def of_data(overrides: Sequence[str]) -> list[str]:
    """Let data= name a dataset, a folder or a URL, as well as a file of the group."""
    return [
        f"data.root={literal(override)}"
        if override.startswith("data=") and override.partition("=")[2] not in options("data")
        else override
        for override in overrides
    ]


def of_root(overrides: Sequence[str]) -> list[str]:
    """Read `data=` as `root=`: the group conf/data belongs to training."""
    return [
        f"root={literal(override)}" if override.startswith(("data=", "data.root=")) else override
        for override in overrides
    ]


def literal(override: str) -> str:
    """Return the value of an override as quoted text; it may be quoted already."""
    value = override.partition("=")[2]
    return value if value[:1] in ("'", '"') and value[-1:] == value[:1] else quoted(value)


def given(key: str, overrides: Sequence[str]) -> str | None:
    """Return the value of a key, None if it is not given or null."""
    found = [override for override in overrides if key_of(override) == key and "=" in override]
    return text_of(found[-1]) if found else None
