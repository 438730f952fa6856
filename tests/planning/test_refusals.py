"""What training refuses of a strategy, the planner does not choose."""

from __future__ import annotations

import lightning
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from lightning.pytorch.strategies import Strategy

from videodiff.parallel.engine import engine_of
from videodiff.planning.forecast.memory import SPLIT
from videodiff.verbs.config.build import instantiate_partial
from videodiff.verbs.config.groups import conf_dir
from videodiff.verbs.plan.job import refused
from videodiff.verbs.train.command import check_strategy


@pytest.mark.parametrize("name", [name for name in SPLIT if name != "single"])
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["compile=blocks"],
        ["optimizer=muon"],
        ["optimizer=muon", "optimizer.fused=true"],
        ["trainer.precision=16-mixed"],
        ["trainer.precision=bf16-mixed"],
    ],
)
def test_a_strategy_is_refused_by_training_where_no_plan_has_it(settings: list[str], name: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("train", [f"strategy={name}", *settings])
    told = ""
    try:
        strategy = instantiate(cfg.strategy)
        assert isinstance(strategy, Strategy)
        check_strategy(cfg, strategy)
        engine_of(strategy).choose_optimizer(instantiate_partial("optimizer", cfg.optimizer))
        lightning.Trainer(strategy=strategy, precision=cfg.trainer.precision, accelerator="cpu", logger=False)
    except ValueError as error:
        told = str(error)
    assert bool(told) == (name in refused(cfg)), told
    assert not told or ", expected " in told or "Choose a different precision" in told
