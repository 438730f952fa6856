"""What lies in a folder is data: it names no class, follows no reference, and steers nothing but plain keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.conftest import tiny
from videodiff.verbs.config.build import build_model, read_run
from videodiff.verbs.config.groups import conf_dir, groups, options
from videodiff.verbs.config.stored import check_built, read_overrides, read_yaml
from videodiff.verbs.evaluate.held_out import held_out_of

Call = Callable[..., tuple[int, str, str]]
# Importing it is enough to be caught.
SPY = """import pathlib
pathlib.Path(__file__).with_name('ran').touch()
class Model:
    pass
def act(*a, **k):
    pass
"""


@pytest.fixture
def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that appears as soon as the module `hostile` is imported; it lies where Python looks."""
    (tmp_path / "hostile.py").write_text(SPY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hostile", raising=False)
    return tmp_path / "ran"


@cache
def composed_once(*overrides: str) -> str:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return json.dumps(OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True))


def composed(*overrides: str) -> dict[str, Any]:
    """Return a configuration as a run keeps it."""
    return json.loads(composed_once(*overrides))


def stored(folder: Path, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Path:
    """Return a run folder with the configuration of the demo, changed."""
    config = composed(*tiny(Path("data")))
    config["text"]["vocabulary"] = ["a", "red", "ball"]
    change(config)
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return run


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Return a change that sets one key of a nested configuration."""

    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


GET = {"_target_": "hydra.utils.get_method", "path": "hostile.act"}
HOSTILE = {
    "a class at the top of a group": put("codec", "_target_", value="hostile.Model"),
    "a function of the standard library": put("text", value={"_target_": "os.system", "command": "touch ran"}),
    "a class inside a list": put("model", "axes", value=["space", {"_target_": "hostile.Model"}]),
    "a class in a key that nothing reads": put("model", "extra", value={"deep": {"_target_": "hostile.Model"}}),
    "a class of ours at another place": put("codec", value={"_target_": "lightning.Trainer"}),
    "another function by hydra's finder": put("sampler", "sampler", value=GET),
    "the finder where none belongs": put("codec", value={**GET, "path": "videodiff.diffusion.sampler.euler"}),
    "a partial where conf has none": put("codec", "_partial_", value=True),
    "arguments by place": put("codec", "_args_", value=["x"]),
    "recursion turned off": put("objective", "_recursive_", value=False),
    "a class that is no text": put("codec", "_target_", value=["hostile.Model"]),
    "in the twin of another place": put("callbacks", "samples", "generation", "sampler", value=GET),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_stored_configuration_builds_only_what_conf_builds_there(spy: Path, tmp_path: Path, attack: str) -> None:
    run = stored(tmp_path, HOSTILE[attack])
    with pytest.raises(ValueError, match=r"as in conf/|of hydra\.utils") as error:
        read_run(run)
    assert str(error.value).startswith(f"{run}/config.yaml: ")
    assert not spy.exists()


@pytest.mark.parametrize("verb", ["sample", "evaluate", "inspect"])
def test_a_verb_that_reads_a_hostile_run_says_so_in_a_line(call: Call, spy: Path, tmp_path: Path, verb: str) -> None:
    run = stored(tmp_path, put("codec", "_target_", value="hostile.Model"))
    status, _, err = call(verb, str(run))
    assert status == 1
    assert err.startswith(
        f"videodiff {verb}: error: {run}/config.yaml: codec._target_: found 'hostile.Model', expected "
    )
    assert err.count("\n") == 1
    assert not spy.exists()


LIVE = {
    "a secret of the environment": put("data", "validation_root", value="http://127.0.0.1:1/${oc.env:HOME}"),
    "another key": put("name", value="${run}"),
    "inside a list": put("data", "deliver", value=["${oc.env:HOME}"]),
    "as a key": put("targets", value={"${oc.env:HOME}": 1}),
    "nested and broken": put("name", value="x${oc.decode:${oc.env:HOME}"),
}


@pytest.mark.parametrize("attack", LIVE)
def test_a_stored_configuration_is_not_resolved(tmp_path: Path, attack: str) -> None:
    with pytest.raises(ValueError, match=r"expected no \$\{\}"):
        read_run(stored(tmp_path, LIVE[attack]))


RANGES = {"model.depth": 10**9, "model.width": -16, "data.height": "tall", "optimizer.lr": "abc", "data.frames": 0}


@pytest.mark.parametrize("key", RANGES)
def test_a_stored_value_keeps_to_the_range_of_its_key(tmp_path: Path, key: str) -> None:
    group, name = key.split(".")
    run = stored(tmp_path, lambda config: config[group].update({name: RANGES[key]}))
    with pytest.raises(ValueError, match=rf"config.yaml: {key}: found .*{RANGES[key]}.*, expected"):
        read_run(run)


def test_a_stored_configuration_of_another_version_is_read(tmp_path: Path) -> None:
    def older(config: dict[str, Any]) -> None:
        del config["callbacks"]["samples"], config["data"]["budget"]
        config["optimizer"]["momentum_of_old"] = 0.9

    assert read_run(stored(tmp_path, older)).model.depth == 2


def test_the_page_of_a_run_is_not_made_of_what_is_no_configuration(call: Call, tmp_path: Path) -> None:
    status, _, err = call("report", str(stored(tmp_path, LIVE["a secret of the environment"])))
    assert status == 1
    assert "data.validation_root: found 'http://127.0.0.1:1/${oc.env:HOME}', expected no ${}" in err


NO_YAML = {
    "laughs": "\n".join(["a: &a [x, x]", *(f"{c}: &{c} [*{b}, *{b}]" for b, c in zip("abcdefgh", "bcdefghi"))]),  # noqa: B905
    "a loop": "a: &a [*a]",
    "a python object": "a: !!python/object/apply:os.system ['touch ran']",
    "depth": "a: " + "[" * 5000 + "]" * 5000,
    "a set": "a: !!set {x, y}",
    "bytes": "a: !!binary aGVsbG8=",
    "a huge number": "a: " + "9" * 5000,
    "no text": b"a: \xff\xfe",
    "broken": "a: [1, 2",
    "two documents": "a: 1\n---\nb: 2\n",
    "much": "a: " + "x" * (9 << 20),
    "many": "a: [" + "1," * 600_000 + "]",
}


@pytest.mark.parametrize("kind", NO_YAML)
def test_what_is_no_plain_yaml_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path, text = tmp_path / "config.yaml", NO_YAML[kind]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"config\.yaml: ") as error:
        read_yaml(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not Path("ran").exists()


def test_numbers_and_dates_are_read_as_hydra_reads_them(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1e-4\nb: 2024-01-01\nc: .5\nd: 1_000\ne: '1e-4'\nf: 3\ng: 10:30\n")
    wanted = {"a": 1e-4, "b": "2024-01-01", "c": 0.5, "d": 1000, "e": "1e-4", "f": 3}
    found = read_yaml(tmp_path / "x.yaml")
    assert {key: found[key] for key in wanted} == wanted


def test_every_option_of_a_group_may_be_stored() -> None:
    for group in groups("train"):
        for option in options(group):
            tree = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text())
            check_built(tree if group == "experiment" else {group: tree}, "here")


@pytest.mark.parametrize("recipe", options("experiment"))
def test_every_recipe_may_be_stored_and_read_again(recipe: str, tmp_path: Path) -> None:
    config = composed(f"experiment={recipe}", "data.root=x", "+trainer.profiler=simple")
    if "vocabulary" in config["text"]:
        config["text"]["vocabulary"] = ["a"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert OmegaConf.to_container(read_run(tmp_path)) == config


OVERRIDES = {
    "a class": "model._target_=hostile.Model",
    "a class that is added": "+model.extra={_target_: hostile.Model}",
    "a class in a list": "data.more=[{root: {_target_: hostile.Model}}]",
    "a quoted key": "targets={'_target_': hostile.Model}",
    "hydra's own": "hydra.run.dir=/tmp/elsewhere",
    "hydra's launcher": "hydra/launcher=slurm",
    "the search path": "hydra.searchpath=[file:///tmp/evil]",
    "added to hydra": "+hydra.job.env_set.X=1",
    "the environment": "data.validation_root=http://127.0.0.1:1/${oc.env:HOME}",
    "hydra's record": "name=${hydra.runtime.cwd}",
    "nested references": "name=${oc.env:${name}}",
    "an option out of conf": "model=../../../evil/model",
    "an option that is no file": "model=evil",
    "an option below another": "model=/evil",
    "a package": "model@data=tiny",
    "a sweep": "optimizer.lr=1,2",
    "a range": "seed=range(0,3)",
    "a group taken away": "~text",
    "a key at the top": "+evil=1",
    "forced": "++data.frames=4",
    "a flag": "--multirun",
    "trust": "trust=[hostile]",
    "a place to write": "callbacks.checkpoints.folder=/tmp/elsewhere",
    "a place to add lines to": "data.quarantine=/tmp/elsewhere",
    "a place of curves": "logger.csv.save_dir=/tmp/elsewhere",
    "a name that is a place": "logger.csv.name=/tmp/elsewhere",
    "a tracker of others": "+logger.wandb.entity=others",
    "a store": "callbacks.checkpoints.mirror=s3://elsewhere/runs",
    "a folder for shards": "data.disk_cache=/tmp/elsewhere",
    "a disk for the state": "strategy.nvme=/tmp/elsewhere",
}


@pytest.mark.parametrize("attack", OVERRIDES)
def test_a_stored_override_is_a_plain_value_of_a_key(tmp_path: Path, attack: str) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text(yaml.safe_dump([*tiny(tmp_path / "data"), OVERRIDES[attack]]))
    with pytest.raises(ValueError, match="expected") as error:
        read_overrides(path, [f"resume={tmp_path}"])
    assert str(error.value).startswith(f"{path}: ")
    assert OVERRIDES[attack].partition("=")[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hostile_run_is_not_resumed(call: Call, spy: Path, tmp_path: Path) -> None:
    run = stored(tmp_path)
    (run / "overrides.yaml").write_text(yaml.safe_dump(["data.root=x", "model._target_=hostile.Model"]))
    status, _, err = call("train", f"resume={run}")
    assert status == 1
    assert f"{run}/overrides.yaml: found the override 'model._target_=hostile.Model', expected no class" in err
    assert err.count("\n") == 1
    assert not spy.exists()


PREPARATIONS = {
    "the key of a server": "caption.key=AWS_SECRET_ACCESS_KEY",
    "a server": "caption.url=http://127.0.0.1:1/v1",
    "a server in the whole": "caption={by: endpoint, url: 'http://127.0.0.1:1/v1'}",
    "a cluster": "engine.address=127.0.0.1:1",
    "cookies": "acquire.cookies=/home/me/cookies.txt",
    "proxies": "acquire.proxies=[http://127.0.0.1:1]",
    "a source": "source=/",
    "a class": "engine._target_=hostile.Model",
    "hydra's launcher": "hydra/launcher=slurm",
}


@pytest.mark.parametrize("attack", PREPARATIONS)
def test_a_preparation_does_not_take_these_from_its_folder(tmp_path: Path, attack: str) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text(yaml.safe_dump([PREPARATIONS[attack]]))
    with pytest.raises(ValueError, match="expected"):
        read_overrides(path, [f"out={tmp_path}"])


def test_a_key_is_not_sent_where_a_folder_says(call: Call, tmp_path: Path) -> None:
    work = tmp_path / "mine" / ".work"
    work.mkdir(parents=True)
    (work / "overrides.yaml").write_text(yaml.safe_dump([PREPARATIONS["the key of a server"]]))
    status, _, err = call("prep", f"out={tmp_path}/mine")
    assert status == 1
    assert f"{work}/overrides.yaml: found the override 'caption.key=AWS_SECRET_ACCESS_KEY'" in err
    assert err.count("\n") == 1


def test_what_this_command_line_gives_replaces_what_a_folder_keeps(tmp_path: Path) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text(yaml.safe_dump(["caption.url=http://a", "caption.model=m", "~schedule.decay", "name=x_${seed}"]))
    kept = ["caption.model=m", "~schedule.decay", "name=x_${seed}"]
    assert read_overrides(path, ["caption.url=http://b", "out=x"]) == kept
    assert read_overrides(path, ["caption.url=http://b", "+caption.model=n"]) == kept[1:]


def test_a_key_with_an_old_name_is_taken_by_its_present_one(tmp_path: Path) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text(yaml.safe_dump(["kind=hdvila", "text.kind=t5"]))
    assert read_overrides(path, ["out=x"]) == ["format=hdvila", "text.kind=t5"]
    assert read_overrides(path, ["format=table"]) == ["text.kind=t5"]


def test_an_old_name_on_the_command_line_is_answered_with_the_present_one(call: Call, tmp_path: Path) -> None:
    status, _, err = call("prep", f"out={tmp_path}/x", f"source={tmp_path}", "kind=folder")
    assert status == 1
    assert err == "videodiff prep: error: override 'kind=folder': found no key 'kind'; did you mean 'format'?\n"


def test_overrides_that_are_no_list_of_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "overrides.yaml"
    for text in ("{a: 1}", "[1, 2]", "x", "[[a=1]]", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected a list of key=value"):
            read_overrides(path, [])


def test_a_class_of_ones_own_is_built_when_this_command_line_trusts_it(call: Call, spy: Path, tmp_path: Path) -> None:
    config = {"codec": {"_target_": "hostile.Model"}}
    check_built(config, "here", trust=["hostile"])
    check_built(config, "here", trust=["hostile.Model"])
    for others in ([], ["host"], ["hostile.Mod"], ["other"]):
        with pytest.raises(ValueError, match=r"codec\._target_: found 'hostile\.Model'"):
            check_built(config, "here", trust=others)
    run = stored(tmp_path, put("codec", value={"_target_": "hostile.Model"}))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"trust": ["hostile"]}))
    assert "codec._target_" in call("sample", str(run), "prompts=[a]")[2]
    assert not spy.exists()
    assert "codec._target_" not in call("sample", str(run), "prompts=[a]", "trust=[hostile]")[2]
    # This run has no checkpoint, so the command stops before it builds anything.
    assert not spy.exists()
    with pytest.raises(AttributeError):
        build_model(read_run(run, ["hostile"]))
    assert spy.exists()


def test_a_folder_that_is_no_run_is_called_what_it_is(call: Call, trained: Path, tmp_path: Path) -> None:
    (checkpoint, *_) = sorted((trained / "checkpoints").iterdir())
    for verb, *how in (["sample", str(checkpoint)], ["evaluate", str(checkpoint)], ["train", f"resume={checkpoint}"]):
        status, _, err = call(verb, *how)
        assert (status, f"checkpoint={checkpoint.name} chooses beside its run {trained}" in err) == (1, True), err
    assert call("convert", str(trained), "what=run", f"out={tmp_path / 'shared'}")[0] == 0
    status, _, err = call("train", f"resume={tmp_path / 'shared'}")
    assert (status, f"start_from={tmp_path / 'shared'} begins a new one" in err) == (1, True), err
    status, _, err = call("sample", str(tmp_path))
    assert (
        err == f"videodiff sample: error: run: found no {tmp_path}/config.yaml, expected the folder of a training run\n"
    )


def test_trust_in_a_class_is_none_in_the_values_beside_it(tmp_path: Path) -> None:
    own = {"_target_": "my.Model", "width": -1, "anything": "x"}
    read_run(stored(tmp_path, put("model", value=own)), ["my"])
    run = stored(tmp_path, put("model", "width", value=10**9))
    with pytest.raises(ValueError, match=r"model\.width: found 1000000000, expected a whole number from 1 to 65536"):
        read_run(run, ["my"])


def test_an_address_in_a_run_is_not_asked(tmp_path: Path) -> None:
    for address in ("http://127.0.0.1:1/x", "s3://bucket/x", "pipe:touch ran"):
        for key, value in (("validation_root", address), ("validation_urls", [address])):
            run = stored(tmp_path, put("data", key, value=value))
            cfg = OmegaConf.create({"dataset": None, "run": str(run)})
            with pytest.raises(ValueError, match="so it is not contacted"):
                held_out_of(cfg, read_run(run))
    assert not Path("ran").exists()


def test_words_are_not_read_from_a_file_that_a_run_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text\.vocabulary: found the name of a file"):
        read_run(stored(tmp_path, put("text", "vocabulary", value="/etc/passwd")))


def test_a_run_that_knows_a_class_by_its_former_home_is_read(tmp_path):
    run = stored(tmp_path)
    text = (run / "config.yaml").read_text()
    former = text.replace("videodiff.generation.settings.", "videodiff.diffusion.generation.")
    former = former.replace("videodiff.data.loader.datamodule.clip_data", "videodiff.data.datamodule.ClipDataModule")
    assert former.count("videodiff.diffusion.generation.")
    assert former.count("videodiff.data.datamodule.")
    (run / "config.yaml").write_text(former)
    assert read_run(run) == read_run(stored(tmp_path))
