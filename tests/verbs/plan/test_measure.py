"""videodiff plan calibrate: what is measured of a machine is a cluster that plans take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from videodiff.verbs.config.checking import check_composed
from videodiff.verbs.config.groups import conf_dir
from videodiff.verbs.plan import measure

Call = Callable[..., tuple[int, str, str]]


def test_a_measured_processor_is_written_as_an_option_of_cluster(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "NETWORKS", (measure.Network(64, 2, 4, 32, 2),))
    monkeypatch.setattr(measure, "together", lambda processes, numbers: [2e-9] * processes)
    status, out, err = call("plan", "cluster=cpux2", f"calibrate={tmp_path / 'here.yaml'}")
    assert status == 0, err
    assert "cluster=here" in out
    like = instantiate(OmegaConf.load(conf_dir() / "cluster" / "cpux2.yaml"))
    written = OmegaConf.load(tmp_path / "here.yaml")
    found = instantiate(written)
    # A plan takes each of its keys.
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("plan", ["cluster=cpux2"])
    with open_dict(cfg):
        cfg.cluster = written
    check_composed("plan", cfg, [])
    # Half a gigabyte a second, as it was sent.
    assert found.node_gb_per_s == pytest.approx(0.5)
    assert {"products", "small products", "optimizer", "add", "gelu"} <= set(found.kinds)
    assert max(found.products.values()) == pytest.approx(1.0)
    assert found.tflops["full"] == pytest.approx(max(found.kinds["products"].values()) / 1e12)
    # What no measurement tells stays.
    assert (found.cores, found.storage_gb_per_s, found.host_gib) == (like.cores, like.storage_gb_per_s, like.host_gib)
    assert set(asdict(found)) == set(asdict(like))


def test_a_card_is_measured_by_its_products_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "product", lambda width, kind, device: 1e10 * width)
    monkeypatch.setattr(measure, "seconds_of", lambda work, device: 1e-3)
    like = instantiate(OmegaConf.load(conf_dir() / "cluster" / "h100x8.yaml"))
    found = measure.of_card(like, torch.device("cpu"))
    assert found.products[4096] == pytest.approx(4.096e13 / 989e12)
    # Two numbers of two bytes are read and one is written.
    assert found.memory_gb_per_s == pytest.approx(3 * 2 * 2**26 / 1e-3 / 1e9)
    assert found.launch_us == pytest.approx(1000)


def test_the_rate_of_a_product_is_its_flops_by_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "seconds_of", lambda work, device: 0.5)
    assert measure.product(64, torch.float32, torch.device("cpu"), rows=128) == 2 * 128 * 64 * 64 / 0.5
