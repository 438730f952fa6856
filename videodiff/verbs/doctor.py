"""videodiff doctor: examine a machine, or the machines of a job, before a training."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from videodiff.parallel.doctor import cluster, node
from videodiff.parallel.environment import ALONE, Finding, Place, place_of, problems
from videodiff.printing import in_line, say


def run(cfg: DictConfig) -> None:
    """Print one line per finding; exit status 1 if a run could not work."""
    sound = not any(problems(os.environ))
    place = place_of(os.environ) if sound else Place(ALONE, 0, 1, 0, 1, "127.0.0.1", 0)
    folder = Path(cfg.folder)
    here = node.examine(place, folder, cfg.gib, os.environ, cfg.seconds)
    found = {socket.gethostname(): here}
    together: list[Finding] = []
    if place.world > 1:
        together, found = examine_cluster(cfg, place, folder, here)
    wrong = any(finding.stops for findings in (*found.values(), together) for finding in findings)
    if place.rank == 0 or any(finding.about == "meeting" and finding.stops for finding in together):
        show(found, together, wrong)
    if wrong:
        sys.exit(1)


def examine_cluster(
    cfg: DictConfig, place: Place, folder: Path, here: Sequence[Finding]
) -> tuple[list[Finding], dict[str, list[Finding]]]:
    """Return the findings about all processes together, and about each host."""
    name = socket.gethostname()
    store, together = cluster.meet(place, cfg.seconds)
    if store is None:
        return together, {name: list(here)}
    cuda = torch.cuda.is_available() if cfg.device == "auto" else cfg.device == "cuda"
    device = torch.device("cuda", place.local_rank) if cuda else torch.device("cpu")
    group = cluster.Group(place, store, device, cfg.seconds)
    said = group.everyone("findings", [name, place.local_rank, [list(finding) for finding in here]])
    for check in (
        lambda: cluster.clocks(group),
        lambda: cluster.shared(group, folder),
        lambda: cluster.speed(group, cfg.mib, cfg.gb_per_s),
    ):
        together += node.in_time("together", check, 2 * cfg.seconds)
    leave(group)
    # Only the first process of a host reports its findings; a finding that stops a run counts from any process.
    hosts: dict[str, list[Finding]] = {}
    for rank, (host, local_rank, lines) in enumerate(said):
        findings = [Finding(*line) for line in lines]
        label = f"{host} (rank {rank})" if host in hosts or local_rank else host
        kept = findings if local_rank == 0 else [finding for finding in findings if finding.stops]
        if kept:
            hosts[label] = kept
    return together, hosts


def leave(group: cluster.Group) -> None:
    """Report that this process is done; the first one keeps the store until all are done."""
    if group.place.rank == 0:
        node.in_time("the end", lambda: group.everyone("end", True), group.seconds)
    else:
        group.store.set(f"end/{group.place.rank}", "true")


def show(hosts: dict[str, list[Finding]], together: Sequence[Finding], wrong: bool) -> None:
    """Print all findings and the verdict."""
    sections = hosts | ({"together": list(together)} if together else {})
    for name, findings in sections.items():
        say(f"{name}:")
        for finding in findings:
            text = finding.line() if finding.expected else f"{finding.about}: {finding.found}"
            say(f"  {mark(finding)} {in_line(text)}")
    every = [finding for findings in sections.values() for finding in findings]
    stopping, others = sum(f.stops for f in every), sum(bool(f.expected) and not f.stops for f in every)
    verdict = "a run could not work" if wrong else "fit to train"
    say(f"videodiff doctor: {verdict}: {stopping} wrong, {others} to look at")


def mark(finding: Finding) -> str:
    """Return the word for the severity of a finding."""
    return "WRONG" if finding.stops else "look " if finding.expected else "ok   "
