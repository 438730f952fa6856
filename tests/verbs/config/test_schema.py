"""Every key of every verb and class has a type and a range, and nothing else has."""

from __future__ import annotations

import copy
import inspect
from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import OmegaConf

from videodiff.cli import VERBS as CLI
from videodiff.data.video.encode import LEAST_FPS, MOST_FPS
from videodiff.verbs.config.arguments import parse
from videodiff.verbs.config.checking import check_composed, plain
from videodiff.verbs.config.groups import conf_dir, groups, options
from videodiff.verbs.config.kinds import FLAG, MISSING
from videodiff.verbs.config.schema import CLASSES, RATE, VERBS, faults
from videodiff.verbs.config.stored import mappings

# The groups that a file of anybody's may join: what is built checks its own settings.
OPEN = ("metric", "world", "logger", "format")


@cache
def composed(verb: str, *overrides: str) -> Any:
    """Return a composed configuration, which must not be changed."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose(verb, overrides=list(overrides))


def changed(verb: str, line: str) -> Any:
    """Return the configuration of a verb with one override, without composing it anew."""
    cfg, override = copy.deepcopy(composed(verb)), parse(line)
    OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=override.is_add())
    return cfg


@pytest.mark.parametrize("verb", CLI)
def test_a_verb_has_an_entry_for_each_of_its_keys_and_a_key_for_each_entry(verb: str) -> None:
    tree = plain(composed(verb))
    assert set(tree) | set(groups(verb)) - {"experiment"} == set(VERBS[verb].keys)
    assert faults(verb, tree) == []


@pytest.mark.parametrize("group", sorted({group for verb in CLI for group in groups(verb)}))
def test_every_option_of_every_group_is_as_the_schema_has_it(group: str) -> None:
    verb = next(verb for verb in ("train", *CLI) if group in groups(verb))
    for option in options(group):
        data = "data.urls=x" if option == "webdataset" else "data.root=x"
        tree = plain(composed(verb, f"{group}={option}", *([data] if verb == "train" else [])))
        assert faults(verb, tree) == []
        for place, node in mappings(tree):
            assert node.get("_target_", "hydra.utils.get_method") in CLASSES or place[0] in OPEN


@pytest.mark.parametrize("name", CLASSES)
def test_the_entries_of_a_class_are_its_arguments(name: str) -> None:
    parameters = inspect.signature(get_object(name)).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    assert set(CLASSES[name].keys) == named
    assert (CLASSES[name].rest is not None) == any(p.kind is p.VAR_KEYWORD for p in parameters)
    if name.startswith(("videodiff.", "data_prep.")):
        typed = {p.name: str(p.annotation) for p in parameters if p.name in named and p.annotation is not p.empty}
        keys = {key: kind for key, kind in CLASSES[name].keys.items() if key in typed and not kind.advice}
        assert {key for key, kind in keys.items() if kind.optional} == {key for key in keys if "None" in typed[key]}
        assert {key for key in keys if typed[key] == "bool"} == {key for key, kind in keys.items() if kind is FLAG}


def test_the_entries_of_prep_are_the_fields_of_its_settings() -> None:
    from data_prep.caption.policy import CaptionPolicy
    from data_prep.cut.encode import EncodePolicy
    from data_prep.cut.policy import CutPolicy, MakePolicy
    from data_prep.fetch.policy import FetchPolicy
    from data_prep.rate.model_score import numbers_by_key

    def names(part: type) -> set[str]:
        return set(inspect.signature(part).parameters)

    keys = VERBS["prep"].keys
    parts = {"acquire": FetchPolicy, "cut": CutPolicy, "encode": EncodePolicy, "caption": CaptionPolicy}
    for name, part in parts.items():
        assert set(keys[name].keys) == names(part)
    assert names(MakePolicy) <= set(keys)
    assert set(keys["prep"].keys["models"].keys) == numbers_by_key().keys() | {"gpus"}


WRONG = {
    "optimizer.lr=abc": "found 'abc', expected a number above 0",
    "optimizer.lr=0": "found 0, expected a number above 0",
    "optimizer.lr=nan": "found nan, expected a number above 0",
    "optimizer.lr=inf": "found inf, expected a number above 0",
    "optimizer.ema_decay=2": "found 2, expected a number of at least 0 and below 1",
    "optimizer.betas=[0.9]": "found [0.9], expected a list of 2",
    "optimizer.betas=[0.9,1]": "optimizer.betas[1]: found 1, expected a number of at least 0 and below 1",
    "schedule.decay=2": "found 2, expected a number from 0 to 1",
    "schedule.warmup=-1": "found -1, expected a whole number of at least 0",
    "callbacks.samples.every=0": "expected a whole number of at least 1; ~callbacks.samples samples nothing",
    "callbacks.samples=null": "expected a class with its arguments; ~callbacks.samples leaves it out",
    "callbacks.samples.every=true": "found True, expected a whole number of at least 1",
    "callbacks.checkpoints.keep=-1": "found -1, expected a whole number of at least 0",
    "model.depth=0": "found 0, expected a whole number from 1 to 1024",
    "model.depth=2.5": "found 2.5, expected a whole number",
    "model.depth=true": "found True, expected a whole number",
    "model.axes=[space,tiem]": "model.axes[1]: found 'tiem', expected one of space, time, spacetime",
    "model.axes=[]": "found [], expected a list of at least 1",
    "model.captioned=[]": "found [], expected a list of at least 1",
    "model.captioned=[true,1]": "model.captioned[1]: found 1, expected true or false",
    "model.patch=4": "found 4, expected a list of 3",
    "data.frames='8'": "found '8', expected a whole number",
    "data.deliver=video": "found 'video', expected a list",
    "data.deliver=[vidoe]": "data.deliver[0]: found 'vidoe', expected one of video, latent, text",
    "data.more=[{root: x, repaet: 1}]": "found no key 'data.more[0].repaet'; did you mean 'repeat'?",
    "data.more=[{repeat: 1}]": "data.more[0].root: found nothing, expected the name of a file or folder",
    "data.buckets=[{frames: 8, height: 64}]": "data.buckets[0].width: found nothing",
    "data.buckets=[{frame: 8, height: 64, width: 64}]": "found no key 'data.buckets[0].frame'; did you mean 'frames'?",
    "data.budget=null": "found None, expected a whole number",
    "objective.levels.policies={shared: -1}": "found -1, expected a number of at least 0",
    "objective.levels.policies={shard: 1}": "found 'shard', expected shared, prefix",
    "objective.levels.policies={lead_0: 1}": "found 'lead_0', expected shared, prefix, ends, independent, lead,",
    "objective.prediction=y": "found 'y', expected one of x, v, eps",
    "sampler.steps=0": "found 0, expected a whole number from 1 to 100000",
    "sampler.interval=[0,2]": "sampler.interval[1]: found 2, expected a number from 0 to 1",
    "trainer.devices='0,1'": "found '0,1', expected a number of processes, -1 for all GPUs, or auto, or a list",
    "trainer.devices=0": "found 0, expected a number of processes",
    "trainer.max_steps=1e5": "found 100000.0, expected a whole number of at least 1",
    "trainer.precision=bf61-mixed": "found 'bf61-mixed', expected one of 32-true, bf16-mixed",
    "seed=-1": "found -1, expected a whole number from 0",
    "name=''": "found '', expected text, not empty",
    "+targets.psnr=high": "found 'high', expected a number",
    "+trainer.accumulate_grad_batches=4": "expected nothing, as it has no effect: data.global_batch is a step",
    "+trainer.max_epochs=3": "expected nothing, as it has no effect: trainer.max_steps",
    "+trainer.max_epoch=3": "max_epochs would have no effect: trainer.max_steps",
    "+trainer.limit_train_batches=3": "expected nothing, as it has no effect: trainer.max_steps",
    "+model.channels=4": "expected nothing, as it has no effect: codec= decides it",
    "+data.cost=1": "expected nothing, as it has no effect",
    "+callbacks.progress.work=1": "expected nothing, as it has no effect",
    "+optimizer.momentum=0.9": "found no key 'optimizer.momentum'; expected lr or betas",
    "+callbacks.samples.sampler.steps=2": "found no key 'callbacks.samples.sampler'; expected folder or",
    "+model.widht=3": "found no key 'model.widht'; did you mean 'width'?",
    "+foo=1": "found no key 'foo'; expected model or",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_value_that_may_not_be_is_named_with_what_may(override: str) -> None:
    with pytest.raises(ValueError, match="override") as error:
        check_composed("train", changed("train", override), [override])
    assert str(error.value).startswith(f"override {override!r}: ")
    assert WRONG[override] in str(error.value)


WRONG_ELSEWHERE = [
    *(
        ("sample", each)
        for each in ("steps=0", "steps=-1", "frames=0", "frames=-4", "fps=0", "shift=0", "scale=nan", "known=0")
    ),
    *(("sample", each) for each in ("known=[a]", "known=[]", "seed=-1", "prompts=3", "prompts=[1]", "checkpoint=''")),
    *(("evaluate", each) for each in ("clips=0", "given=0", "batch=0", "tasks=continuation", "tasks=[x]", "keep=-1")),
    *(("simulate", each) for each in ("size=0", "size=33", "crf=60", "world.fps=0", "workers=0", "world.balls={1:x}")),
    *(("pack", each) for each in ("timeout=0", "shard_bytes=0", "require_caption=maybe", "short_side=1")),
    *(("cache", each) for each in ("sizes=[256,256]", "sizes=[[256]]", "stride=0", "video=2")),
    *(("prep", each) for each in ("caption.by=endpont", "prep.filter.motion.min=x", "acquire.rate=0", "retry=ok")),
    *(
        ("prep", each)
        for each in ("encode.fps=0", "prep.duplicates.near=300", "+prep.filter.motion.mix=1", "format=csv")
    ),
    *(("inspect", each) for each in ("world_size=0", "batches=0", "seconds=0", "throughput=1")),
    *(("sample", each) for each in ("out=s3://bucket/clips", "run=s3://bucket/run", "out=''")),
    *(("train", each) for each in ("run=s3://bucket/run", "run=http://example.org/run")),
    *((verb, "out=s3://bucket/set") for verb in ("simulate", "pack", "cache", "prep", "convert", "arrange", "index")),
    ("evaluate", "leaderboard=https://example.org/board.jsonl"),
    *(("index", each) for each in ("tars=3", "tars=[]", "workers=0")),
]


@pytest.mark.parametrize(("verb", "override"), WRONG_ELSEWHERE)
def test_a_wrong_value_of_a_verb_is_named(verb: str, override: str) -> None:
    with pytest.raises(ValueError, match="override") as error:
        check_composed(verb, changed(verb, override), [override])
    assert str(error.value).startswith(f"override {override!r}: ")
    assert "\n" not in str(error.value)


RIGHT = [
    ("train", "trainer.devices=[0,1]"),
    ("train", "trainer.devices=auto"),
    ("train", "trainer.gradient_clip_val=null"),
    ("train", "+trainer.profiler=simple"),
    ("train", "trainer.precision=32"),
    ("train", "data.batch={micro_batches: 8, tokens: 100}"),
    ("train", "data.captions.weights={webvid: 1}"),
    ("train", "data.stages=[{until: 5, buckets: [{frames: 1, height: 8, width: 8}]}, {until: null}]"),
    ("train", "logger=wandb +logger.wandb.tags=[a]"),
    ("train", "logger=[csv,wandb] +logger.wandb.tags=[a]"),
    ("train", "logger=[]"),
    ("train", "logger=none"),
    ("evaluate", "metric=[physics] +metric.mine._target_=my.metric"),
    ("evaluate", "metric=[]"),
    ("train", "strategy=ddp +strategy.find_unused_parameters=true"),
    ("train", "+callbacks.mine={_target_: my.Callback, every: 0}"),
    ("train", "model._target_=my.Model +model.anything=1"),
    ("train", "+targets.psnr=25"),
    ("sample", "prompts=text"),
    ("sample", "prompts=[a,b] sampler=heun"),
    ("simulate", "+world.free_frames=2"),
    ("prep", "+prep.filter.motion.max=1"),
    ("prep", "prep=all engine=ray"),
    ("index", "tars=[a,b]"),
]


@pytest.mark.parametrize(("verb", "overrides"), RIGHT)
def test_what_may_be_is_let_through(verb: str, overrides: str) -> None:
    lines = [overrides] if overrides.startswith(("data", "+callbacks")) else overrides.split(" ")
    tree = plain(composed(verb, *lines))
    assert faults(verb, tree) == []


def test_what_is_not_given_is_missing() -> None:
    assert plain(composed("train"))["data"]["root"] is MISSING
    with pytest.raises(ValueError, match=r"data\.root: found nothing, expected data\.root=<"):
        check_composed("train", composed("train"))
    with pytest.raises(ValueError, match=r"out: found nothing, expected out=<"):
        check_composed("simulate", composed("simulate"))
    check_composed("inspect", composed("inspect"))


def test_the_rates_that_configuration_takes_are_those_of_a_file() -> None:
    taken = [not list(RATE.check("fps", fps)) for fps in (0.9 * LEAST_FPS, LEAST_FPS, MOST_FPS, 1.001 * MOST_FPS)]
    assert taken == [False, True, True, False]
