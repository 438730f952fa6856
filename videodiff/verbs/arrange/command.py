"""videodiff arrange: sampled clips in the folder that a benchmark reads."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from videodiff.benchmarks import layouts
from videodiff.benchmarks.folder import lay_out, read_made, read_pairs, write_results
from videodiff.data.storage.files import no_file, owning
from videodiff.generation.prompts import parse_prompts
from videodiff.printing import say
from videodiff.words import count_text

SHOWN = 3
LISTS = {
    "vbench": "VBench_full_info.json",
    "vbench2": "VBench2_full_info.json",
    "phygenbench": "prompts.json",
    "physics_iq": "descriptions.csv",
}
# The keys that mean nothing to a suite.
WITHOUT = {"fvd": ("info", "dimensions"), "physics_iq": ("dimensions",), "phygenbench": ("dimensions",)}


def run(cfg: DictConfig) -> None:
    """Arrange as configured; nothing is sampled."""
    source, out = Path(cfg.source), Path(cfg.out)
    if not source.is_dir():
        raise FileNotFoundError(f"source: found no folder {source}, expected clips of `videodiff sample`, or a run")
    if out.exists():
        raise FileExistsError(f"out: found {out}, expected a name that is free")
    for name in WITHOUT.get(cfg.suite, ()):
        if cfg[name]:
            raise ValueError(f"{name}: found {cfg[name]} with suite={cfg.suite}, which has none, expected no such key")
    if cfg.suite == "fvd":
        pairs = read_pairs(source)
        files = {f"fake/{i:05d}.mp4": sampled for i, (sampled, _) in enumerate(pairs)}
        files |= {f"real/{i:05d}.mp4": truth for i, (_, truth) in enumerate(pairs)}
    else:
        files = files_of_suite(cfg, source)
    results = None
    lock = out.resolve().parent / f".{out.name}.lock"
    with owning(lock, "arrange"):
        if cfg.suite == "vbench":
            # The folder comes last: a call that was killed before can be made again.
            results = write_results(files, out, prompt_of)
        lay_out(files, out)
    with suppress(OSError):
        # A call that was killed has left it.
        lock.rmdir()
    say(f"{out}: {count_text(len(files), 'clip')} as {cfg.suite} reads them")
    if results is not None:
        say(f"{out.parent / out.name}_eval_results.json: temporal flickering {results['temporal_flickering'][0]:.6f}")


def files_of_suite(cfg: DictConfig, source: Path) -> dict[str, Path]:
    """Return the clip of each file that a suite expects; missing ones are an error, or are counted."""
    if cfg.info is None or not Path(cfg.info).is_file():
        found = "null" if cfg.info is None else no_file(cfg.info)
        raise FileNotFoundError(f"info: found {found}, expected the list of prompts of the suite, {LISTS[cfg.suite]}")
    made, strange = read_made(source, timed=cfg.suite == "physics_iq")
    if strange:
        say(f"{source}: {count_text(len(strange), 'file')} that `videodiff sample` did not make, first {strange[0]}")
    if cfg.suite == "physics_iq":
        names = layouts.physics_iq(read_text(Path(cfg.info)))
        files, missing = layouts.by_scenario(names, made)
    elif cfg.suite == "phygenbench":
        files, missing = layouts.by_prompt(layouts.phygenbench(read_prompts(Path(cfg.info))), made)
    else:
        places_of = {"vbench": layouts.vbench, "vbench2": layouts.vbench2}[cfg.suite]
        files, missing = layouts.by_prompt(places_of(layouts.read_info(Path(cfg.info)), list(cfg.dimensions)), made)
    if missing and (cfg.complete or not files):
        first = ", ".join([*(place.name for place in missing[:SHOWN]), *["..."] * (len(missing) > SHOWN)])
        raise ValueError(
            f"source: found {len(files)} of {count_text(len(files) + len(missing), 'clip')} that {cfg.suite} reads in "
            f"{source}, expected all of them, missing {first}; complete=false takes what is there"
        )
    if missing:
        say(f"{len(missing)} of {len(files) + len(missing)} clips are missing, the first one: {missing[0].name}")
    return files


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a list in JSON, as `sample` reads them."""
    text = read_text(path)
    try:
        return parse_prompts(text, ".json")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"info: {path}: {error}") from error


def read_text(path: Path) -> str:
    """Return the text of a file, without the mark that some tables begin with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"info: {path}: found bytes that are no UTF-8 at {error.start}, expected text") from error


def prompt_of(name: str) -> str:
    """Return the prompt in a name of VBench."""
    return name.rsplit("-", 1)[0]
