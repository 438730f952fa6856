"""videodiff plan: what it prints can be pasted, and what cannot fit is refused with what would."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter
from videodiff.planning.forecast.choice import Choice, Plan, evaluate
from videodiff.planning.forecast.trace import weights_of
from videodiff.training.start import freeze
from videodiff.verbs.config.arguments import spell
from videodiff.verbs.config.build import build_data
from videodiff.verbs.config.checking import check_composed
from videodiff.verbs.config.groups import conf_dir
from videodiff.verbs.plan.job import job_of

Call = Callable[..., tuple[int, str, str]]
SMALL = ("model.depth=2", "model.width=32", "model.heads=2", "model.axes=[space,time]", "objective=latent")


def line_of(out: str) -> list[str]:
    """Return the overrides of the command that a plan ends with."""
    return shlex.split(out.strip().splitlines()[-1])[2:]


def composed(line: list[str]) -> DictConfig:
    """Return the configuration of videodiff train by these overrides; raise where it would not take them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("train", overrides=line)
        check_composed("train", cfg, line)
    return cfg


def test_a_plan_without_a_dataset_ends_with_a_command_that_trains(tmp_path: Path, call: Call) -> None:
    status, out, err = call(
        "plan", "experiment=hdvila_256", "cluster=h100x64", *SMALL, "seed=3", f"json={tmp_path / 'plan.json'}"
    )
    assert status == 0, err
    line = line_of(out)
    composed(line)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["overrides"] == line
    assert line[:2] == ["experiment=hdvila_256", "model.depth=2"]
    assert {"seed=3", "trainer.num_nodes=8", "trainer.devices=8"} < set(line)
    assert not any(word.startswith(("cluster", "json")) for word in line)
    choice = found["choice"]
    shares = 64 // choice["sequence"]
    assert shares * choice["accumulate"] * choice["micro_batch"] // 1 == 256
    assert found["clips"] == 200_000 * 256
    assert found["days"] == pytest.approx(200_000 * found["step"]["total"] / 86400 / (1 - found["checkpoint"]["lost"]))
    # T5 and the autoencoder are on each card.
    assert found["memory"]["encoders"] == pytest.approx(2e6 * (4762 + 83.7))


OWN_NAME = "# @package _global_\ndefaults: [bouncing_cpu, _self_]\nname: mine\n"


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        # 800 tokens are four clips of 200; four micro-batches of them are two for each process.
        (["data.batch={micro_batches: 4, tokens: 800}"], {"global_batch": 16, "accumulate": 2}),
        (["data.batch={micro_batches: 1, tokens: 800}"], {"global_batch": 4, "accumulate": 1, "sequence": 2}),
        # The micro-batch is a part of the usual batch, where a bucket has it: else of what divides all.
        (["data.buckets=[{SHAPE}, {frames: 1, height: 8, width: 8, global_batch: 4}]"], {"global_batch": 16}),
        (
            ["data.buckets=[{SHAPE, global_batch: 8}, {frames: 1, height: 8, width: 8, global_batch: 12}]"],
            {"global_batch": 4},
        ),
        (["data.global_batch=6", "clips=20"], {"max_steps": 3}),
        (["trainer.max_steps=7", "tokens=16000"], {"max_steps": 5}),
        (["strategy=zero2", "strategy.reduce_bucket_size=1000", "data.micro_batch=2"], {}),
        (["~callbacks.samples", "freeze=[text.*]", "trust=[a.b]", "name=two words"], {}),
        (["freeze=[denoiser.*]"], {}),
        (["experiment=bouncing_flow_map", "start_from=runs/demo"], {"global_batch": 8}),
        (["experiment=bouncing_progressive", "start_from=runs/demo", "freeze=[denoiser.blocks.0.*]"], {}),
    ],
)
def test_training_takes_the_line_as_it_was_planned(
    call: Call, tmp_path: Path, world_dataset: Path, how: list[str], wanted: dict[str, int]
) -> None:
    recipe = [] if how[0].startswith("experiment=") else ["experiment=bouncing_cpu"]
    more = [word.replace("SHAPE", "frames: 8, height: 16, width: 16, keep: 0.5") for word in how]
    place = [f"data.root={world_dataset}", "data.validation_root=null", f"json={tmp_path / 'plan.json'}"]
    status, out, err = call("plan", *recipe, *SMALL[:4], "cluster=cpux2", *place, *more)
    assert status == 0, err
    line = line_of(out)
    cfg = composed([spell("train", word, sweeps=False) for word in line])
    data, found = build_data(cfg), json.loads((tmp_path / "plan.json").read_text())
    told = found["choice"] | {"global_batch": data.global_batch, "max_steps": cfg.trainer.max_steps}
    assert data.accumulate(2) == told["accumulate"]
    assert {name: told[name] for name in wanted} == wanted
    assert found["steps"] == pytest.approx(cfg.trainer.max_steps, abs=0.5)
    # What was typed comes back as it was typed.
    assert {"freeze=[text.*]", "trust=[a.b]", "name=two words"} & set(how) <= set(line)


@pytest.mark.parametrize("pattern", ["[0-3].*", "5.*", "*[02468].*", "*.attention.*", "[3-8].*"])
def test_frozen_weights_of_any_block_are_counted_as_such(pattern: str) -> None:
    # Nine blocks are no whole number of pairs.
    more = ["model.depth=9", "model.axes=[space,time]", "model.captioned=[true,false]"]
    cfg = composed(["experiment=bouncing_cpu", *more, f"freeze=['denoiser.blocks.{pattern}']"])
    network = instantiate(cfg.model, channels=3, text_width=64)
    freeze(nn.ModuleDict({"denoiser": network}), cfg.freeze)
    found, wanted = job_of(cfg, cpu=True).largest.trace("none", False).weights, weights_of(network)
    assert (found.all, found.tensors, found.frozen) == (wanted.all, wanted.tensors, wanted.frozen)


def test_cards_that_micro_batches_do_not_divide_over_are_told(call: Call) -> None:
    batch = "data.batch={micro_batches: 3, tokens: 800}"
    status, _, err = call("plan", "experiment=bouncing_cpu", *SMALL, "cluster=cpux2", "cluster.nodes=4", batch)
    assert (status, err.count("\n")) == (1, 1)
    assert "found 8 cards for 3 micro-batches" in err
    assert "set data.batch.micro_batches=8" in err


def test_a_folder_of_ones_own_is_part_of_the_line(call: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "mine/experiment/own.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(OWN_NAME)
    folder = str(tmp_path / "mine")
    status, out, err = call("plan", "--config-dir", folder, "experiment=own", *SMALL, "cluster=cpux2")
    assert status == 0, err
    line = line_of(out)
    assert line[:2] == [f"--config-dir={folder}", "experiment=own"]
    status, _, err = call("train", *line, f"data.root={tmp_path / 'none'}")
    assert "found no such folder, expected a dataset" in err


def test_each_plan_of_a_sweep_has_a_line_of_its_own(call: Call, cwd: Path) -> None:
    status, out, err = call("plan", "experiment=bouncing_cpu", *SMALL[1:], "cluster=cpux2", "model.depth=2,4", "-m")
    assert status == 0, err
    lines = [line for line in out.splitlines() if line.startswith("videodiff train ")]
    assert ["model.depth=2" in lines[0], "model.depth=4" in lines[1], len(lines)] == [True, True, 2]
    assert not any("2,4" in line or "-m " in line for line in lines)


def test_recompute_of_some_blocks_is_planned_and_told_as_asked(call: Call, tmp_path: Path) -> None:
    few = ["model.depth=4", "model.width=64", "model.heads=1", "data.batch={micro_batches: 1, tokens: 12800}"]
    found, kept = {}, {}
    for every in (1, 2):
        # So small that only recompute=full fits.
        words = [
            "cluster=4090x1",
            "cluster.memory_gib=1.716",
            f"recompute.every={every}",
            f"json={tmp_path / 'p.json'}",
        ]
        status, out, err = call("plan", "experiment=bouncing_cpu", *few, *words, f"json={tmp_path / 'p.json'}")
        assert status == 0, err
        found[every] = [word for word in line_of(out) if word.startswith("recompute")]
        kept[every] = json.loads((tmp_path / "p.json").read_text())["memory"]["activations"]
    assert found == {1: ["recompute=full"], 2: ["recompute=full", "recompute.every=2"]}
    assert kept[2] > 1.5 * kept[1]


def test_what_fits_in_no_way_is_refused_with_what_would_fit(call: Call) -> None:
    wide = ("experiment=hdvila_256", "model.depth=8", "model.width=4096", "model.heads=32", "trainer.precision=32-true")
    cluster = ("cluster=l40sx8", "cluster.memory_gib=16", "cluster.host_gib=64")
    status, _, err = call("plan", *wide, *cluster)
    assert status == 1
    # The cards would hold it, with the state on the host.
    assert "GiB of a host at least where the cards have room, expected at most 51.2 GiB" in err
    assert "cluster.nodes=2" in err


def test_the_nodes_of_a_refusal_are_the_fewest_that_fit(call: Call) -> None:
    wide = ("experiment=hdvila_256", "model.depth=8", "model.width=4096", "model.heads=32", "trainer.precision=32-true")
    batch = ("data.global_batch=240", "data.micro_batch=null")
    cluster = ("cluster=l40sx8", "cluster.host_gib=32", "cluster.memory_gib=16")
    status, _, err = call("plan", *wide, *batch, *cluster, "cluster.nodes=1")
    assert status == 1
    fewest = int(err.rpartition("cluster.nodes=")[2])
    fitting = [n for n in range(1, fewest + 1) if call("plan", *wide, *batch, *cluster, f"cluster.nodes={n}")[0] == 0]
    assert (fewest, fitting) == (3, [3])


@pytest.mark.parametrize(("batch", "near"), [(1, 15), (256, 255), (300, 300)])
def test_a_batch_that_does_not_divide_is_told_with_the_nearest_that_does(call: Call, batch: int, near: int) -> None:
    how = ("experiment=hdvila_256", *SMALL, "cluster=h100x8", "cluster.nodes=3", "cluster.cards=5")
    status, _, err = call("plan", *how, "data.micro_batch=null", f"data.global_batch={batch}")
    assert status == (batch != near)
    assert batch == near or f"set data.global_batch={near}" in err
    assert call("plan", *how, "data.micro_batch=null", f"data.global_batch={near}")[0] == 0


def test_a_bucket_of_the_hub_s_encoders_is_planned_without_the_hub(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr("videodiff.pretrained.find_config", asked)
    buckets = "data.buckets=[{frames: 16, height: 256, width: 256}, {frames: 1, height: 256, width: 256}]"
    batch = ("data.batch={tokens: 8192, micro_batches: 64}", "data.micro_batch=null")
    status, _, err = call("plan", "experiment=hdvila_256", *SMALL, "cluster=h100x8", *batch, buckets)
    assert status == 0, err


def test_frozen_encoders_take_the_bytes_of_their_numbers() -> None:
    codec = ("codec=wan_vae", "data.frames=161")
    half, full = (
        job_of(
            composed(["experiment=hdvila_256", *codec, f"text.dtype={dtype}", f"codec.dtype={dtype}"]), False
        ).largest.encoding
        for dtype in ("bfloat16", "float32")
    )
    assert (full.weights, full.moment) == (2 * half.weights, 2 * half.moment)
    # A clip of video passes the codec as a whole, whatever slice_frames says.
    assert half.most >= half.moment


def test_a_codec_in_tiles_takes_the_memory_of_a_tile() -> None:
    shape = ["data.height=512", "data.width=384"]
    whole, tiled, larger = (
        job_of(composed(["experiment=hdvila_256", *shape, f"codec.tile={tile}"]), False).largest.encoding
        for tile in ("null", "256", "448")
    )
    assert tiled.moment == pytest.approx(whole.moment * (256 * 256) / (512 * 384))
    # A side that is shorter than a tile is not cut.
    assert larger.moment == pytest.approx(whole.moment * 448 / 512)
    assert (tiled.weights, tiled.flops) == (whole.weights, whole.flops)


def test_pictures_are_stored_in_the_bytes_of_pictures(tmp_path: Path) -> None:
    videos, pictures = [b"v" * size for size in (9000, 7000)], [b"p" * 500]
    with ShardWriter(tmp_path, 10**6) as writer:
        for number, (data, frames) in enumerate([*((video, 16) for video in videos), *((one, 1) for one in pictures)]):
            row = {"width": 32, "height": 32, "frames": frames, "fps": 8.0, "duration": frames / 8}
            writer.add(f"{number}", {"mp4": data, "txt": b"a ball"}, row)
    sizes = Manifest.load(tmp_path).column("size")
    buckets = "data.buckets=[{frames: 16, height: 32, width: 32}, {frames: 1, height: 32, width: 32}]"
    job = job_of(composed(["experiment=bouncing_cpu", f"data.root={tmp_path}", buckets, "data.frames=16"]), True)
    stored = {shape.name.split("x")[0].strip(): shape.stored for shape in job.shapes}
    assert stored == {"16": sizes[:2].mean(), "1": sizes[2]}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["data.height=17"], "data.height: found 17, expected a multiple of 4 (codec 1 x model.patch 4; nearest: 16)"),
        (["data.frames=7", "model.patch=[2,4,4]"], "data.frames: found 7, 7 after the codec, expected a multiple of"),
        (["codec=wan_vae", "data.height=64", "data.width=64", "data.frames=16"], "found 16 frames, expected 1 + 4 k"),
    ],
)
def test_a_shape_that_training_would_refuse_is_refused(call: Call, asked: list[str], told: str) -> None:
    status, _, err = call("plan", "experiment=bouncing_cpu", "cluster=cpux2", *asked)
    assert (status, err.count("\n")) == (1, 1)
    assert told in err


def test_a_training_that_does_not_fit_as_it_stands_is_told_the_smallest_change(call: Call) -> None:
    status, out, err = call(
        "plan",
        *("experiment=uniform_gpu", "model.depth=2", "cluster=4090x1", "cluster.memory_gib=4", "data.micro_batch=128"),
    )
    assert status == 0, err
    told = next(line for line in out.splitlines() if line.startswith("as it stands"))
    assert "does not fit" in told
    assert "data.micro_batch=" in told or "recompute=" in told


def test_buckets_and_latents_are_planned(call: Call, tmp_path: Path) -> None:
    buckets = (
        "data.buckets=[{frames: 16, height: 256, width: 256}, {frames: 1, height: 128, width: 128, global_batch: 64}]"
    )
    status, _, err = call(
        *("plan", "experiment=hdvila_256", "cluster=h100x8", *SMALL, buckets, "data.deliver=[latent,text]"),
        *("tokens=1e9", f"json={tmp_path / 'plan.json'}"),
    )
    assert status == 0, err
    found = json.loads((tmp_path / "plan.json").read_text())
    assert [shape["name"] for shape in found["shapes"]] == ["16 x 256 x 256", "1 x 128 x 128"]
    assert found["tokens"] == pytest.approx(1e9)
    assert found["memory"]["encoders"] == 0


def test_a_mean_step_is_that_of_the_order_of_the_data(call: Call, tmp_path: Path, world_dataset: Path) -> None:
    images = "{frames: 1, height: 16, width: 16, global_batch: 12}"
    clips = "{frames: 8, height: 16, width: 16, global_batch: 2, keep: 0.6}"
    overrides = [
        *("experiment=bouncing_cpu", "objective.prediction=v", f"data.root={world_dataset}", "trainer.max_steps=100"),
        "data.validation_root=null",
        f"data.stages=[{{until: 30, buckets: [{images}]}}, "
        f"{{until: null, buckets: [{clips}, {images.replace('12', '6')}]}}]",
    ]
    status, out, err = call("plan", *overrides, "cluster=cpux2", f"json={tmp_path / 'plan.json'}")
    assert status == 0, err
    found = json.loads((tmp_path / "plan.json").read_text())
    order = build_data(composed(overrides)).order
    taken = Counter(len(order.batch(step).position) for step in range(30, 3030))
    wanted = {12: 0.3} | {size: 0.7 * count / 3000 for size, count in taken.items()}
    shares = {shape["global_batch"]: shape["steps"] / 100 for shape in found["shapes"]}
    assert shares == pytest.approx(wanted, abs=0.002)
    assert found["clips"] == pytest.approx(100 * sum(size * share for size, share in wanted.items()), rel=0.01)
    seconds = sum(shape["seconds"] * shares[shape["global_batch"]] for shape in found["shapes"])
    assert found["days"] == pytest.approx(100 * seconds / 86400 / (1 - found["checkpoint"]["lost"]))
    assert f"{shares[12]:.0%} of the steps" in out


def test_a_dataset_that_training_would_refuse_is_refused(call: Call, tmp_path: Path, world_dataset: Path) -> None:
    buckets = "data.buckets=[{frames: 8, height: 20, width: 20}, {frames: 1, height: 40, width: 40}]"
    place = [f"data.root={world_dataset}", "data.validation_root=null"]
    status, _, err = call("plan", "experiment=bouncing_cpu", "cluster=cpux2", *place, buckets)
    assert status == 1
    assert f"{world_dataset}: 0000: found 8 frames of 16 x 16 pixels, expected at least 8 for 8 x 20 x 20" in err


def test_without_the_dataset_every_bucket_has_as_many_steps(call: Call, tmp_path: Path) -> None:
    buckets = "data.buckets=[{frames: 8, height: 20, width: 20, keep: 0.1}, {frames: 1, height: 20, width: 20}]"
    asked = ["plan", "experiment=bouncing_cpu", "cluster=cpux2", f"json={tmp_path / 'plan.json'}"]
    status, _, err = call(*asked, f"data.root={tmp_path / 'elsewhere'}", buckets)
    assert status == 0, err
    found = json.loads((tmp_path / "plan.json").read_text())
    steps = composed(asked[1:2]).trainer.max_steps
    assert [shape["steps"] for shape in found["shapes"]] == [steps / 2, steps / 2]
    assert found["step"]["total"] == pytest.approx(sum(shape["seconds"] for shape in found["shapes"]) / 2)


def test_each_bucket_takes_what_it_takes_alone() -> None:
    # A clip of video takes more of the codec, pictures more of the denoiser: they have more tokens and a text each.
    clips, pictures = (
        f"{{frames: {frames}, height: 256, width: 256, global_batch: {size}}}" for frames, size in ((16, 64), (1, 1280))
    )
    cluster = replace(instantiate(OmegaConf.load(conf_dir() / "cluster" / "h100x8.yaml")), cards=1)

    def plan(*buckets: str) -> Plan:
        how = ["experiment=hdvila_256", *SMALL, f"data.buckets=[{', '.join(buckets)}]", "data.deliver=[video]"]
        return evaluate(job_of(composed(how), False), cluster, Choice("single", "none", 1, 4))

    alone, together = [plan(clips), plan(pictures)], plan(clips, pictures)
    for found, one in zip(together.by_shape, alone, strict=True):
        assert found == pytest.approx(one.seconds)
    assert together.memory == max((one.memory for one in alone), key=lambda memory: memory.total)
    assert together.seconds.total == pytest.approx(sum(one.seconds.total for one in alone) / 2)


@pytest.mark.parametrize(
    ("inner", "kept"),
    [
        (("strategy=zero1", "strategy.reduce_bucket_size=1000"), True),
        (("strategy=zero2", "strategy.overlap_comm=false"), False),
        (("recompute=full", "recompute.offload=true"), False),
    ],
)
def test_settings_of_the_strategy_are_kept_where_the_plan_has_it_and_named_where_not(
    call: Call, inner: tuple[str, str], kept: bool
) -> None:
    status, out, err = call("plan", "experiment=hdvila_256", *SMALL, "cluster=h100x64", *inner)
    assert status == 0, err
    assert {"strategy=zero1", "recompute=none"} <= set(line_of(out))
    assert (inner[1] in line_of(out)) is kept
    assert (f"left out      {inner[1]}: " in out) is not kept
    composed([spell("train", word, sweeps=False) for word in line_of(out)])


def test_a_teacher_keeps_what_its_student_does_not_learn() -> None:
    how = ["experiment=bouncing_progressive", "freeze=[denoiser.blocks.0.*]"]
    job, choice = job_of(composed(how), True), Choice("single", "none", 1, 1)
    cpus = replace(instantiate(OmegaConf.load(conf_dir() / "cluster" / "cpux2.yaml")), cards=1)
    found = job.weights(choice)
    assert found.frozen
    assert evaluate(job, cpus, choice).memory.encoders == 4 * (found.all + found.frozen)


def test_a_budget_of_clips_is_used_up_stage_by_stage(call: Call, tmp_path: Path) -> None:
    stages = [("30", 12), ("null", 6)]
    words = [
        f"{{until: {end}, buckets: [{{frames: 1, height: 16, width: 16, global_batch: {size}}}]}}"
        for end, size in stages
    ]
    asked = ("plan", "experiment=bouncing_cpu", "cluster=cpux2", f"data.stages=[{', '.join(words)}]")
    for clips, steps in ((30 * 12 + 60 * 6, 90), (10 * 12, 10)):
        status, out, err = call(*asked, f"clips={clips}", f"json={tmp_path / 'plan.json'}")
        assert status == 0, err
        assert f"trainer.max_steps={steps}" in line_of(out)
        found = json.loads((tmp_path / "plan.json").read_text())
        assert (found["steps"], found["clips"]) == (steps, clips)


@pytest.mark.parametrize("batch", ["data.batch=null", "data.batch={micro_batches: 2, tokens: 9999}"])
def test_stages_that_training_refuses_are_refused_in_its_words(call: Call, batch: str) -> None:
    status, _, err = call(
        *("plan", "experiment=bouncing_cpu", "cluster=cpux2", batch, "data.micro_batch=null"),
        "data.stages=[{until: 10}, {until: null}]",
    )
    assert status == 1
    assert "data.stages[0].buckets: found no bucket, expected at least one" in err


PROFILES = {
    "memory_gib: -80": "cluster.memory_gib: found -80, expected a number above 0",
    "~memory_gib": "cluster.memory_gib: found nothing, expected a number above 0",
    "~network_gb_per_s": "cluster.network_gb_per_s: found nothing, expected a number above 0",
    "~tflops": "cluster.tflops: found nothing, expected a mapping with half, full",
    "~_target_": "cluster._target_: found nothing, expected the class of this part",
    "nodes: many": "cluster.nodes: found 'many', expected a whole number of at least 1",
    "[": "4090.yaml",
    "faults: 1.0e+12": "cluster.faults: found 1e+12 for a card and year, one in ",
}


@pytest.mark.parametrize("change", PROFILES)
def test_a_mistake_in_a_profile_of_ones_own_is_a_line_that_names_the_key(
    tmp_path: Path, call: Call, change: str
) -> None:
    # An option of a group may have a number for its name.
    profile = tmp_path / "mine/cluster/4090.yaml"
    profile.parent.mkdir(parents=True)
    lines = (conf_dir() / "cluster/h100x8.yaml").read_text().splitlines()
    key = change.lstrip("~").partition(":")[0]
    kept = [line for line in lines if not line.startswith(f"{key}:")]
    profile.write_text("\n".join(kept + [change] * (not change.startswith("~"))))
    how = ["experiment=bouncing_cpu", *SMALL, "--config-dir", str(tmp_path / "mine"), "cluster=4090"]
    status, _, err = call("plan", *how)
    assert (status, err.count("\n")) == (1, 1)
    assert PROFILES[change] in err
    assert "Error:" not in err


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["clips=1e9", "tokens=1e9"], "clips: found 1e+09 beside tokens=1e+09, expected one budget"),
        (["json={file}/plan.json"], "json: {file}/plan.json: found a place where nothing can be written"),
        (["cluster=cpux2", "calibrate={file}/c.yaml"], "calibrate: {file}/c.yaml: found a place where nothing can be"),
        (["fp8=rowwise"], "fp8: found rowwise, expected none: no profile has a speed of products in FP8"),
        (["cluster=h100x8", "calibrate={file}.yaml"], "calibrate: found no GPU here, expected a H100"),
        (["resume=runs/demo"], "resume: found runs/demo, expected null: a plan is of a whole training"),
        (["trainer.precision=64-true"], "trainer.precision: found 64-true, expected one of 32-true, 32, bf16-mixed"),
        (["experiment=bouncing_flow_map"], "start_from: found none with objective=flow_map, expected a trained run"),
        (
            ["freeze=[text.*,denoiser.block.0.*]"],
            "freeze: found 'denoiser.block.0.*', which matches no weight, expected",
        ),
        (["freeze=[*]"], "weights of the run in ['*'], expected some to train"),
        (["experiment=bouncing_progressive"], "objective.teacher: found none, expected a run to learn from"),
        (["objective=flow_map"], "model.step_rank: found 0, expected a rank such as 16 for objective=flow_map"),
        (["cluster.memory_gib=1"], "cluster.memory_gib: found 1, expected more than cluster.context_gib = 1.5"),
        (["+cluster.kinds={{add: {{64: 1e9}}}}"], "cluster.kinds: found add, expected products too"),
        (["--config-dir", "{file}"], "--config-dir: found no folder {file}, expected one"),
    ],
)
def test_a_mistake_of_the_command_is_told_before_anything_is_traced(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, mistake: list[str], message: str
) -> None:
    def traced(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("job_of", "measure"):
        monkeypatch.setattr(f"videodiff.verbs.plan.command.{name}", traced)
    (tmp_path / "file").write_text("")
    file = str(tmp_path / "file")
    words = [word.format(file=file) for word in mistake]
    recipe = [] if words[0].startswith("experiment=") else ["experiment=bouncing_cpu"]
    status, _, err = call("plan", *recipe, *words)
    assert (status, err.count("\n")) == (1, 1)
    assert message.format(file=file) in err


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            ["strategy=zero2", "strategy.sequence_parallel=3"],
            "strategy.sequence_parallel=3 processes share a clip of 8",
        ),
        (["strategy=zero2", "strategy.sequence_parallel=64"], "on nodes of 8 cards"),
        (["data.global_batch=12"], "data.global_batch: found 12, expected a multiple of 8 processes"),
        (["data.micro_batch=7", "cluster.faults=0"], None),
        (["strategy=single"], "strategy=single has one process, and the cluster 8 cards"),
        # A dataset without a name is none that the planner needs, and a cluster without faults saves when it likes.
        (["~data.root", "+data.root=???", "cluster.faults=0"], None),
    ],
)
def test_a_training_that_cannot_run_as_it_stands_is_told_why(call: Call, how: list[str], told: str | None) -> None:
    status, out, err = call("plan", "experiment=bouncing_cpu", *SMALL, "cluster=h100x8", *how)
    assert status == 0, err
    stands = next(line for line in out.splitlines() if line.startswith("as it stands"))
    assert (f"it cannot run: {told}" in stands or told in stands) if told else stands.endswith("it fits")
    assert ("no faults: save when you like" in out) == (told is None)


# What the headers of the recipes say.
HARDWARE = {
    "uniform_gpu": ["experiment=uniform_gpu", "cluster=4090x1"],
    "phyworld_study": ["experiment=phyworld_study", "model=B", "cluster=h100x8", "cluster.cards=1"],
    "phyworld_study, XL": [
        *("experiment=phyworld_study", "model=XL", "data.micro_batch=2"),
        *("cluster=h100x8", "cluster.cards=1"),
    ],
    "hdvila_256": ["experiment=hdvila_256", "cluster=h100x8"],
}


@pytest.mark.parametrize("recipe", HARDWARE)
def test_a_recipe_fits_as_it_stands_on_the_hardware_of_its_header(recipe: str, call: Call) -> None:
    status, out, err = call("plan", *HARDWARE[recipe])
    assert status == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("as it stands")]
    assert line.endswith(": it fits")
