"""The parts of a step's time that are no operation of the passes: the optimizer, and what Python looks at."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from videodiff.planning.flops import network_of
from videodiff.planning.forecast.choice import Choice, Job, Shape, evaluate
from videodiff.planning.forecast.duration import of_optimizer, of_sent
from videodiff.planning.forecast.grown import Grown
from videodiff.planning.forecast.hardware import Cluster
from videodiff.planning.forecast.memory import Setting
from videodiff.planning.forecast.trace import Kind, Passes, Weights
from videodiff.planning.forecast.traffic import Sent

# Ten tensors of 100,000 numbers; a step of Muon takes a GFLOP at 64 wide.
WEIGHTS = Weights(10**6, 900_000, 500_000, tensors=10, orthogonal=10**9, width=64)


def processor() -> Cluster:
    """Return a processor whose optimizer takes a millisecond for 36 * 100,000 bytes, and two for ten times as many."""
    return Cluster(
        *("CPU", 1, 2, 8, {"half": 0.1, "full": 0.1}, {64: 1.0}, 10, 1, 1),
        cpu=True,
        launch_us=0.0,
        kinds={
            "add": {1000: 1e9, 10**8: 1e9},
            "products": {64: 1e11},
            "muon": {64: 1e11},
            "optimizer": {3_600_000: 3.6e6 / 1e-3, 36_000_000: 36e6 / 2e-3},
        },
    )


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        (Setting("single", 1), 10e-3),
        (Setting("single", 1, muon=True), 20e-3),
        # ZeRO has one tensor, of half of the state in each process.
        (Setting("zero1", 1), 2e-3),
        # A processor is its own host.
        (Setting("zero2_offload", 1, muon=True), 12e-3),
        # With an offloaded state each process iterates all; half of it lies between both sizes.
        (Setting("zero2_offload", 2, muon=True), 10e-3 + 2 ** math.log10(5) * 1e-3),
        # FSDP2 has halves of all tensors; each process iterates half of the matrices.
        (Setting("fsdp2", 2), 10e-3),
        (Setting("fsdp2", 2, muon=True), 15e-3),
        # Under DDP it is a part of them among the processes of a node.
        (Setting("ddp", 8, muon=True, node=2), 15e-3),
        (Setting("ddp", 8, muon=True, node=4), 12.5e-3),
        (Setting("ddp", 8, muon=True, node=1), 20e-3),
    ],
)
def test_an_optimizer_takes_its_time_for_each_tensor(setting: Setting, wanted: float) -> None:
    assert of_optimizer(setting, WEIGHTS, processor()) == pytest.approx(wanted)


def card() -> Cluster:
    """Return a node of four cards that send a gigabyte a second, and 25 to their host."""
    return Cluster("card", 1, 4, 80, {"half": 900, "full": 60}, {64: 0.5}, 3000, 1, 1, latency_us=10.0)


def test_a_state_on_the_host_is_stepped_and_sent_there_and_back() -> None:
    # Half a million weights of this process: 36 bytes each at 100 GB/s, and 4 each way.
    expected = 5e5 * (36 / 100e9 + 2 * 4 / 25e9)
    assert of_optimizer(Setting("zero2_offload", 2), WEIGHTS, card()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("strategy", "backward", "wanted"),
    [
        # Gradients take 4 ms, weights 2, tokens 1, and three collectives two latencies of 10 us each.
        ("zero2", 1.0, 2e-3),
        ("fsdp2", 1.0, 0.0),
        # Of the backward pass four fifths hide what runs beside it.
        ("zero2", 1e-3, 4e-3 - 0.8e-3 + 2e-3),
        ("fsdp2", 1e-3, 4e-3 + 2e-3 - 0.8e-3),
    ],
)
def test_what_is_sent_beside_the_backward_pass_takes_no_time(strategy: str, backward: float, wanted: float) -> None:
    sent = Sent(4e6, 2e6, 1e6, 3)
    assert of_sent(sent, card(), Setting(strategy, 4), 2, backward) == pytest.approx(wanted + 1e-3 + 60e-6)


def test_updates_of_a_node_go_over_its_own_link() -> None:
    # A gigabyte a second within a node, a tenth of it between nodes; no collective takes time of its own.
    two = replace(processor(), nodes=2, network_gb_per_s=0.1, latency_us=0.0)
    sent = Sent(0.0, 0.0, 0.0, 3, updates=10**6)
    for strategy, wanted in (("ddp", 1e-3), ("fsdp2", 1e-2)):
        assert of_sent(sent, two, Setting(strategy, 4, node=2), 1, 1.0) == pytest.approx(wanted)


def test_an_engine_sends_at_its_own_rate_within_a_node() -> None:
    one = replace(processor(), cards=2, network_gb_per_s=0.1, latency_us=0.0, engine_gb_per_s={"zero2": 0.5})
    sent = Sent(10**6, 0.0, 0.0, 0)
    for strategy, world, wanted in (("zero2", 2, 2e-3), ("zero1", 2, 1e-3), ("zero2", 4, 1e-2)):
        assert of_sent(sent, one, Setting(strategy, world), 1, 1.0) == pytest.approx(wanted)


def test_python_looks_twice_at_what_is_repeated() -> None:
    def trace(level: str, halved: bool) -> Grown:
        kinds = [Kind("view")] * {"none": 100, "selective": 150, "full": 190}[level]
        nothing = np.zeros(len(kinds))
        made = Passes(kinds, *[nothing] * 6, 1, WEIGHTS)
        return Grown(made, made, (2, 2), 2, 1)

    network = network_of(64, ("space", "time"), 2, patch=12, words=8, text_width=16)
    job = Job(network, [Shape("clip", 8, 16, 2048, 8, trace, 1.0)], False, False, False)
    for level, wanted in {"none": 0, "selective": 2 * 50, "full": 0}.items():
        plain, seen = (
            evaluate(job, replace(processor(), cards=1, dispatch_us=each), Choice("single", level, 1, 2)).seconds.rest
            for each in (0.0, 30.0)
        )
        # Two micro-batches.
        assert seen - plain == pytest.approx(2 * wanted * 30e-6), level


def test_of_those_that_share_a_clip_the_fullest_decides() -> None:
    def share(time: int, *axes: str) -> float:
        return Shape("clip", time, 16, 0, 1, trace=lambda level, halved: None).share(axes, 4)

    # Ten frames are 3, 3, 2 and 2; sixteen positions are 4 each.
    assert share(10, "space", "time") == pytest.approx((3 / 10 + 4 / 16) / 2)
    assert share(10, "spacetime") == pytest.approx(3 / 10)
    # One process has the picture.
    assert share(1, "space") == 1
