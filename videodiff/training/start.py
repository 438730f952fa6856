"""Begin a training with the weights of another one, after strict checks, and record and compare them with the source.

The averaged weights of the source become weights and average of the new run. Every weight of the network must be in the
file with its shape, and the file may hold no other weights; `fresh` names exceptions. Weights go through the engine
like the weights of a checkpoint, so this works under every strategy, and no process holds more than its part.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from videodiff.data.storage.files import sha256_of, write_whole
from videodiff.parallel.engine import engine_of
from videodiff.printing import say
from videodiff.shipped.runs import find_run
from videodiff.training.run.attempts import check_links
from videodiff.training.state.checkpoint import AVERAGE, RECORD, latest_checkpoint, read_record, whole
from videodiff.training.state.pieces import WEIGHT, Piece
from videodiff.training.state.saved import Saved
from videodiff.words import count_text

ORIGIN = "origin.json"
# A network of more bytes is not built a second time for the comparison.
MOST_COMPARED = 4 * 2**30
PROBE_SEED, PROBE_WORDS, PROBE_RATE = 0x5EED, 8, 8.0
FLOATING = ("F64", "F32", "F16", "BF16")
# The norm of larger weights overflows in float32, and the guard would blame the first step for it.
MOST = 1e18


class Source(NamedTuple):
    """Weights to begin with: their file, its checksum, and, if known, the step and the folder of the run.

    `named` is the name on the command line, `place` the chosen checkpoint or file.
    """

    named: str
    place: Path
    file: Path
    sha256: str
    step: int | None = None
    run: Path | None = None


def find_source(named: str) -> Source:
    """Return the averaged weights of a run's newest whole checkpoint, of a checkpoint, or of a file of safetensors."""
    path = find_run(named)
    # The file of a checkpoint has its record beside it, and so a configuration.
    path = path.parent if path.name == AVERAGE and (path.parent / RECORD).is_file() else path
    if (path / RECORD).is_file():
        checkpoint = whole(path, AVERAGE)
    elif (path / "checkpoints").is_dir():
        check_links(path)
        checkpoint = latest_checkpoint(path, AVERAGE)
    elif path.is_file():
        return Source(named, path, path, sha256_of(path))
    else:
        raise FileNotFoundError(
            f"start_from: found no weights in {named}, expected the folder of a run, a checkpoint or a file of "
            "safetensors"
        )
    record, file = read_record(checkpoint), checkpoint / AVERAGE
    run = checkpoint.absolute().parent.parent
    sha256 = record["files"][AVERAGE].sha256 or sha256_of(file)
    return Source(named, checkpoint, file, sha256, record["step"], run if (run / "config.yaml").is_file() else None)


class Weights(Saved):
    """Whole weights in one file, to fill a network piece by piece; weights that the file lacks do not change."""

    def __init__(self, path: Path) -> None:
        super().__init__(())
        self.path = path
        try:
            self.file = safe_open(path, "pt")
            slices = {name: self.file.get_slice(name) for name in self.file.keys()}  # noqa: SIM118
            self.held = {name: tuple(one.get_shape()) for name, one in sorted(slices.items())}
            types = {name: one.get_dtype() for name, one in slices.items()}
        except (SafetensorError, ValueError, OSError) as error:
            raise ValueError(
                f"start_from: {path}: found no readable safetensors ({error}), expected averaged weights, as a "
                "checkpoint and `videodiff convert` have them; nothing of it was run"
            ) from error
        for name, dtype in types.items():
            if dtype not in FLOATING:
                raise ValueError(
                    f"start_from: {path}: weight {name}: found values of type {dtype}, expected {', '.join(FLOATING)}"
                )
        self.shapes = {(name, WEIGHT): shape for name, shape in self.held.items()}

    def check_finite(self) -> None:
        """Raise a one-line error if a value is not finite, or too large to train with."""
        for name in self.held:
            fine = self.file.get_tensor(name).float().abs() <= MOST
            if not fine.all():
                raise ValueError(
                    f"start_from: {self.path}: weight {name}: found {int((~fine).sum()):,} of {fine.numel():,} "
                    f"values that are not finite, or beyond {MOST:g}, expected numbers; use an older checkpoint"
                )

    def fill(self, places: Iterable[Piece]) -> None:
        """Write values into the memory of these pieces, converted to their type."""
        for place in places:
            if place.name in self.held:
                values = self.file.get_tensor(place.name).reshape(-1)[place.start : place.end]
                with torch.no_grad():
                    place.values.copy_(values)


class Start:
    """The weights that a run begins with.

    `network` builds the source's network if its configuration is known. `unlike` lists the settings that make samples
    differ from the source's even with equal weights.
    """

    def __init__(
        self,
        source: Source,
        fresh: Sequence[str] = (),
        network: Callable[[], nn.Module] | None = None,
        unlike: Sequence[str] = (),
    ) -> None:
        self.source, self.fresh, self.network, self.unlike = source, list(fresh), network, list(unlike)
        self.weights = Weights(source.file)
        self.new: list[str] = []
        # The shape `c t h w` of the clip that both networks are given.
        self.shape: tuple[int, ...] = ()

    def check(self, parts: nn.Module, shape: Sequence[int]) -> None:
        """Raise a one-line error that names every weight that is missing, unused or of another shape."""
        self.new = check_names(self.weights.held, shapes_in(parts), self.fresh, self.source.file)
        self.weights.check_finite()
        self.shape = tuple(shape)

    def begin(self, module: lightning.LightningModule) -> None:
        """Fill the network, compare it with the source's network, and record the origin; every rank has to call.

        The process group exists, and the optimizer has no state yet.
        """
        trainer = module.trainer
        engine_of(trainer.strategy).load(module, self.weights)
        gap = self.gap(module)
        if trainer.is_global_zero:
            say(f"videodiff train: {self.told(gap)}")
            facts = self.facts(gap, [name for name, p in module.named_parameters() if not p.requires_grad])
            write_whole(Path(trainer.default_root_dir) / ORIGIN, json.dumps(facts, indent=1).encode())

    @torch.no_grad()
    def gap(self, module: lightning.LightningModule) -> tuple[float, float] | None:
        """Return how far the two outputs on one seeded clip differ, and the largest output; None if not compared."""
        count = sum(torch.Size(shape).numel() for shape in self.weights.held.values())
        if self.network is None or 4 * count > MOST_COMPARED:
            return None
        given, training = probe(self.shape, module.text.width, module.device), module.training
        module.eval()
        with module.trainer.precision_plugin.forward_context():
            made = module.denoiser(**given)
            wanted = self.source_network(module.device)(**given) if module.trainer.is_global_zero else made
        module.train(training)
        return float((made - wanted).abs().max()), float(wanted.abs().max())

    def source_network(self, device: torch.device) -> nn.Module:
        """Return the source's own network with its weights."""
        with torch.random.fork_rng(devices=[]):
            network = self.network()
        shapes = {f"denoiser.{name}": shape for name, shape in shapes_in(network).items()}
        held = {name: shape for name, shape in self.weights.held.items() if name.startswith("denoiser.")}
        if others := sorted(name for name in shapes.keys() | held.keys() if shapes.get(name) != held.get(name)):
            raise ValueError(
                f"start_from: {self.source.run}/config.yaml: found a network with other weights than those in "
                f"{self.source.file} ({compact(others)}), expected the configuration that they were trained with"
            )
        self.weights.fill(
            Piece(f"denoiser.{name}", WEIGHT, 0, p.detach().view(-1), tuple(p.shape))
            for name, p in network.named_parameters()
        )
        return network.to(device).eval()

    def told(self, gap: tuple[float, float] | None) -> str:
        """Return the line that says which weights the run begins with, and how its samples differ from the source's."""
        of = f"step {self.source.step}, " if self.source.step is not None else ""
        held = count_text(len(self.weights.held), "weight")
        line = f"begins with {self.source.place} ({of}sha256 {self.source.sha256[:12]}): {held}"
        line += f", {len(self.new)} more are new ({compact(self.new)})" if self.new else ""
        idle = [pattern for pattern in self.fresh if not any(fnmatchcase(name, pattern) for name in self.new)]
        line += f"; fresh={idle} changes nothing, as the source has these weights" if idle else ""
        if gap is None:
            why = "the file has no configuration" if self.network is None else "the network is large"
            return f"{line}; samples were not compared with the source's: {why}"
        shape = " x ".join(map(str, self.shape))
        line += f"; on a seeded clip of {shape} the network's output "
        unlike = "; ".join(self.unlike)
        if gap[0] != 0:
            line += f"differs from the source's by at most {gap[0]:.3g} (largest value {gap[1]:.3g})"
            return line + (f"; samples differ further by {unlike}" if unlike else "")
        line += "equals the source's bit by bit"
        if unlike:
            return f"{line}; samples differ by {unlike}"
        return f"{line}, and so do the settings of sampling: its samples equal the source's at the same seed"

    def facts(self, gap: tuple[float, float] | None, frozen: Sequence[str]) -> dict[str, Any]:
        """Return the facts about the origin for the run's record."""
        compared = None if gap is None else {"clip": list(self.shape), "largest_difference": gap[0], "largest": gap[1]}
        return {
            "start_from": self.source.named,
            "path": str(self.source.file.absolute()),
            "sha256": self.source.sha256,
            "step": self.source.step,
            "weights": len(self.weights.held),
            "new": self.new,
            "frozen": list(frozen),
            "output_compared": compared,
            "unlike": self.unlike,
        }


def probe(shape: Sequence[int], text_width: int, device: torch.device | str) -> dict[str, Tensor]:
    """Return one seeded input of a denoiser: a clip `c t h w` with levels from 0 to 1, and text features."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    given = {
        "z": torch.randn(1, *shape, generator=generator),
        "tau": torch.linspace(0, 1, shape[1])[None],
        "text": torch.randn(1, PROBE_WORDS, text_width, generator=generator),
        "text_mask": torch.ones(1, PROBE_WORDS, dtype=torch.bool),
        "fps": torch.full((1,), PROBE_RATE),
    }
    return {name: value.to(device) for name, value in given.items()}


def shapes_in(parts: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters by name, also for a network without memory."""
    return {name: tuple(p.shape) for name, p in parts.named_parameters()}


def check_names(
    held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], fresh: Sequence[str], file: Path
) -> list[str]:
    """Return the weights that a file lacks and that `fresh` allows to be new; raise if anything else differs."""
    for pattern in fresh:
        check_pattern("fresh", pattern, wanted)
    missing = [name for name in wanted if name not in held]
    new = [name for name in missing if matches(name, fresh)]
    missing = [name for name in missing if name not in new]
    unused = [name for name in held if name not in wanted]
    others = [name for name in wanted if name in held and held[name] != wanted[name]]
    faults = [f"missing in the file: {compact(missing)}"] * bool(missing)
    faults += [f"unknown to this network: {compact(unused)}"] * bool(unused)
    faults += [f"of another shape: {compact([f'{n} {held[n]}, here {wanted[n]}' for n in others])}"] * bool(others)
    if faults:
        raise ValueError(
            f"start_from: {file}: found weights of another network, expected the {len(wanted)} of this one; "
            f"{'; '.join(faults)}" + ("; fresh=[<pattern>] lets missing ones begin as new" if missing else "")
        )
    return new


def compact(names: Sequence[str]) -> str:
    """Return all names; names that differ only in their first number are joined, with all numbers."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        head, number, tail = re.fullmatch(r"(?:(.*?\.)(\d+)(?=\.))?(.*)", name, re.DOTALL).groups()
        groups.setdefault((head or "", tail), []).extend([int(number)] if number else [])
    told = []
    for (head, tail), numbers in groups.items():
        told.append(f"{head}{span(sorted(numbers))}{tail}")
    return ", ".join(told)


def span(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text: runs as first-last, several runs in braces."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return told if len(numbers) < 2 else f"{{{told}}}"


def parts_of(denoiser: nn.Module, text: nn.Module | None) -> nn.ModuleDict:
    """Return the parts of a run that may train, under the names that `freeze=` and checkpoints have for them."""
    return nn.ModuleDict({"denoiser": denoiser, **({"text": text} if text is not None and text.trainable else {})})


def freeze(parts: nn.Module, patterns: Sequence[str], learns: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Exclude the weights with matching names from training, and return their names; raise if nothing matches.

    Of the others only those train whose names `learns` takes.
    """
    named = dict(parts.named_parameters())
    for pattern in patterns:
        check_pattern("freeze", pattern, named)
    frozen = [name for name in named if matches(name, patterns) or not learns(name)]
    for name in frozen:
        named[name].requires_grad_(False)
    if frozen and not any(p.requires_grad for p in named.values()):
        raise ValueError(
            f"freeze: found all {count_text(len(named), 'weight')} of the run in {list(patterns)}, expected some to "
            "train"
        )
    return frozen


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_pattern(key: str, pattern: str, names: Iterable[str]) -> None:
    """Raise if a pattern matches no name; the error names the nearest one."""
    names = list(names)
    if not any(fnmatchcase(name, pattern) for name in names):
        bare = pattern.replace("*", "").replace("?", "")
        near = difflib.get_close_matches(bare, names, n=1, cutoff=0.0)
        raise ValueError(
            f"{key}: found {pattern!r}, which matches no weight, expected the names of weights, with * for any part; "
            f"nearest: {near[0]}"
        )
