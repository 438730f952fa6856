"""Every metric over every clip: what is declared is what is written."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from videodiff.metrics.consistency import consistency
from videodiff.metrics.evaluation import declared, evaluate
from videodiff.metrics.fidelity import fidelity
from videodiff.metrics.metric import CONTINUATION, TEXT_TO_VIDEO, Case, Quantity, metric
from videodiff.metrics.worlds.following import captions
from videodiff.metrics.worlds.motion import physics
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.scene import Scene, render
from videodiff.worlds.uniform import Uniform

ALL = {"consistency": consistency, "captions": captions, "physics": physics, "fidelity": fidelity}


@metric({"level": Quantity("higher", "levels", 0.0, 255.0)}, tasks=(CONTINUATION,))
def level(case: Case, channel: int = 0) -> dict[str, float]:
    return {"level": float(case.frames[..., channel].mean())}


@metric({"dark_share": Quantity("lower", "", 0.0, 1.0)})
def dark(case: Case) -> dict[str, float]:
    return {"dark_share": float((case.frames < 128).mean())}


def grey(value: int) -> np.ndarray:
    return np.full((4, 8, 8, 3), value, dtype=np.uint8)


def footage(*values: int) -> list[Case]:
    return [Case(f"clip{value}", grey(value), grey(value), "a cat", 5.0, 1, None) for value in values]


def worlds(count: int = 3) -> list[Case]:
    made = [Bouncing(split="all").scene(seed) for seed in range(count)]
    return [Case(s.caption, f := render(s, 32), f, s.caption, s.fps, 3, s) for s in made]


def test_a_metric_of_one_task_stands_under_its_own_name_and_in_the_table():
    found = evaluate({"mine": level}, footage(10, 20), {CONTINUATION: [grey(100), grey(200)]})
    assert (found["level"], found["level_stderr"]) == (150.0, 50.0)
    assert found["table"] == [{"name": "model", "kind": "model", "clips": 2, "level": 150.0, "level_stderr": 50.0}]
    # A function that is not the project's is known by its name and its file.
    own = f"{__name__}.level {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
    settings = {"channel": 0, "_target_": own}
    meaning = {"better": "higher", "unit": "levels", "range": [0.0, 255.0], "settings": settings}
    assert found["metrics"] == {"level": meaning}


def test_a_metric_of_all_tasks_stands_under_each_and_is_measured_on_the_truth_too():
    made = {CONTINUATION: [grey(0)], TEXT_TO_VIDEO: [grey(255)]}
    found = evaluate({"mine": dark}, footage(0), made)
    names = [f"{task}_dark_share" for task in (CONTINUATION, TEXT_TO_VIDEO, "truth")]
    assert [found[name] for name in names] == [1.0, 0.0, 1.0]
    assert list(found["metrics"]) == names
    assert "table" not in found


def test_settings_of_a_configuration_reach_the_function():
    red = np.stack([grey(0)[..., 0], grey(90)[..., 0], grey(0)[..., 0]], axis=-1)
    found = evaluate({"mine": level.with_settings(channel=1)}, footage(0), {CONTINUATION: [red]})
    assert found["level"] == 90.0


def test_footage_is_measured_by_psnr_and_a_world_by_its_law():
    noisy = [np.clip(case.truth.astype(int) + 10, 0, 255).astype(np.uint8) for case in footage(40, 50)]
    found = evaluate(ALL, footage(40, 50), {CONTINUATION: noisy})
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 10**2))
    # The clips do not move, so that the last given frame held is right to the ceiling, half a level.
    assert found["psnr_static"] == pytest.approx(10 * np.log10(255**2 / 0.25))
    assert "velocity_error" not in found
    cases = worlds()
    found = evaluate(
        ALL, cases, {CONTINUATION: [case.truth for case in cases], TEXT_TO_VIDEO: [case.truth for case in cases]}
    )
    assert found["colour_accuracy"] == 1.0
    assert found["velocity_error"] == found["parser_floor"]
    assert "psnr" not in found
    assert [row["kind"] for row in found["table"]] == ["model"] + ["reference"] * 5 + ["floor"]


def test_every_figure_of_ours_says_what_it_means():
    cases = worlds()
    found = evaluate(ALL, cases, {task: [case.truth for case in cases] for task in (CONTINUATION, TEXT_TO_VIDEO)})
    numbers = {name for name in found if not name.endswith(("_stderr", "_clips"))} - {"table", "metrics"}
    columns = {name for row in found["table"] for name in row if not name.endswith(("_stderr", "_clips"))}
    assert numbers | columns - {"name", "kind", "clips"} == set(found["metrics"])
    lower = {name for name, record in found["metrics"].items() if record["better"] == "lower"}
    assert lower == {name for name in found["metrics"] if not name.endswith(("_accuracy", "_share", "_score"))}


def test_predictors_stand_beside_the_model_in_phyworlds_own_metric_too():
    made = [Uniform(split="in_distribution").scene(seed) for seed in range(6)]
    cases = [Case(str(i), f := render(s, 128), f, s.caption, s.fps, 3, s) for i, s in enumerate(made)]
    found = evaluate({"physics": physics}, cases, {CONTINUATION: [case.truth for case in cases]})
    rows = {row["name"]: row["phyworld_velocity_error"] for row in found["table"]}
    speed = np.mean([s.velocity[0, 0, 0] for s in made])
    assert rows["last frame held"] == pytest.approx(speed, rel=1e-3)
    for name in ("constant velocity", "law from the given frames"):
        assert rows[name] == pytest.approx(rows["ground truth"], abs=0.02)


def test_a_mixed_dataset_is_footage_and_says_so():
    said: list[str] = []
    cases = [*worlds(1), *worlds(1)]
    cases[1] = cases[1]._replace(scene=None)
    found = evaluate(ALL, cases, {CONTINUATION: [case.truth for case in cases]}, said.append)
    assert said == ["1 of 2 clips have no true scene of a world: their motion is not measured"]
    assert "psnr" in found
    assert "velocity_error" not in found


def test_captions_of_another_form_are_left_out_and_counted():
    said: list[str] = []
    cases = worlds()
    cases[0] = cases[0]._replace(caption="a cat")
    found = evaluate({"captions": captions}, cases, {TEXT_TO_VIDEO: [case.truth for case in cases]}, said.append)
    assert said == ["text_to_video: 1 of 3 captions do not have the form of a world, left out"]
    assert found["colour_accuracy"] == 1.0


def test_a_new_world_is_measured_by_what_its_truth_says_of_it():
    # A world of one file: other words, other speeds, and PhyWorld's measure as well.
    def scene(seed: int) -> Scene:
        made = Bouncing(split="all").scene(seed)
        grammar = replace(made.law.grammar, verbs=("drifts",), directions={"east": 0.0, "west": np.pi})
        law = replace(made.law, name="lake", speeds=(0.5, 0.6), grammar=grammar, walls=False, measures=("phyworld",))
        way = "east" if made.velocity[0, 0, 0] > 0 else "west"
        time = np.arange(8)[:, None, None] / made.fps
        v = np.broadcast_to([0.3 if way == "east" else -0.3, 0.0], (8, 1, 2))
        caption = f"a small red ball drifts {way} slowly"
        return Scene([[5.0, 5.0]] + time * v, v, np.array([1.1]), ("red",), made.fps, caption, law)

    cases = [Case(str(i), f := render(s, 64), f, s.caption, s.fps, 3, s) for i, s in enumerate(map(scene, range(4)))]
    found = evaluate(ALL, cases, {task: [case.truth for case in cases] for task in (CONTINUATION, TEXT_TO_VIDEO)})
    assert found["direction_accuracy"] == 1.0
    assert "phyworld_velocity_error" in found
    clamped = next(row for row in found["table"] if row["name"] == "speed clamped to training")
    assert clamped["velocity_error"] == pytest.approx(0.5 - 0.3, abs=0.02)


def test_two_metrics_of_one_number_are_refused():
    with pytest.raises(ValueError, match=r"metric\.b: found the number 'level', which metric\.a gives too"):
        declared({"a": level, "b": level})


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"lvel": 1.0}, r"metric\.mine: clip clip10: found the number 'lvel', expected one that it declares: level"),
        ({"level": 300.0}, r"metric\.mine: clip clip10: found level = 300, expected 0 to 255 as declared"),
        ({"level": float("nan")}, r"metric\.mine: clip clip10: found level = nan, expected a finite number"),
        ({"level": "high"}, r"metric\.mine: clip clip10: could not convert"),
        (None, r"metric\.mine: clip clip10: AttributeError: "),
    ],
)
def test_numbers_that_are_not_as_declared_name_the_metric(numbers, message):
    with pytest.raises(ValueError, match=message):
        evaluate({"mine": replace(level, measure=lambda case: numbers)}, footage(10), {CONTINUATION: [grey(1)]})


def test_a_metric_that_fails_at_one_clip_costs_itself_and_names_the_clip():
    bent = replace(level, curve=lambda case: {"bend": 1 / case.frames[:, 0, 0, 0]})
    broken = replace(dark, measure=lambda case: {"dark_share": [1.0, 0.5][int(case.frames[0, 0, 0, 0] / 100)]})
    mean = metric({"mean": Quantity("higher")}, tasks=(CONTINUATION,))(lambda case: {"mean": case.frames.mean()})
    metrics, said = {"bent": bent, "dark": broken, "mean": mean}, []
    with np.errstate(divide="ignore"):
        found = evaluate(metrics, footage(10, 20), {CONTINUATION: [grey(0), grey(250)]}, said.append)
    assert found["left_out"] == {
        "bent": "metric.bent: clip clip10: found bend = [inf, inf, inf, inf], expected finite numbers",
        "dark": "metric.dark: clip clip20: IndexError: list index out of range",
    }
    assert said == [f"left out: {reason}" for reason in found["left_out"].values()]
    # What is left out stands nowhere, not even of the clips that were measured.
    assert found["table"] == [{"name": "model", "kind": "model", "clips": 2, "mean": 125.0, "mean_stderr": 125.0}]
    assert list(found["metrics"]) == ["mean"]


def test_a_figure_says_of_how_many_clips_it_is_where_some_lack_what_it_measures():
    lacking = {"lacks": lambda case: "are grey" if case.key == "clip10" else ""}
    with_reference = {"references": {"held": level.measure}, "beside": {"level_held": ("held", "level")}}
    with_ratio = {"ratios": {"level_of_held": ("level", "level_held")}}
    metrics = {"level": replace(level, **lacking, **with_reference, **with_ratio), "dark": replace(dark, **lacking)}
    found = evaluate(metrics, footage(10, 20, 30), {CONTINUATION: [grey(1), grey(2), grey(3)]})
    for name in ("level", "level_held", "level_of_held", "continuation_dark_share", "truth_dark_share"):
        assert found[f"{name}_clips"] == 2


def test_figures_by_the_number_of_balls_are_those_of_these_clips_alone():
    made = [Bouncing(split="all", balls={1: 1.0, 2: 1.0, 3: 1.0}).scene(seed) for seed in range(9)]
    cases = [Case(s.caption, f := render(s, 32), f, s.caption, s.fps, 3, s) for s in made]
    # Clips of one ball are true; in the others nothing moves.
    held = [c.frames if len(c.scene.colour) == 1 else np.repeat(c.frames[2:3], len(c.frames), 0) for c in cases]
    metrics, names = {"captions": captions, "physics": physics}, [*captions.by_balls, *physics.by_balls]
    found = evaluate(metrics, cases, {CONTINUATION: held, TEXT_TO_VIDEO: held})["by_balls"]
    assert [row["name"] for row in found] == ["1 ball", "2 balls", "3 balls"]
    for balls, row in enumerate(found, start=1):
        own = [i for i, case in enumerate(cases) if len(case.scene.colour) == balls]
        clips = [held[i] for i in own]
        alone = evaluate(metrics, [cases[i] for i in own], {CONTINUATION: clips, TEXT_TO_VIDEO: clips})
        assert "by_balls" not in alone
        wanted = {name + end: alone[name + end] for name in names for end in ("", "_stderr")}
        assert row == {"name": row["name"], "kind": "model", "clips": len(own), **wanted}
    assert found[0]["velocity_error"] < 0.1 < min(row["velocity_error"] for row in found[1:])


def test_figures_by_the_number_of_balls_name_the_clips_that_lack_one():
    made = [Bouncing(split="all", balls={1: 1.0, 2: 1.0}).scene(seed) for seed in range(8)]
    cases = [Case(s.caption, f := render(s, 32), f, s.caption, s.fps, 3, s) for s in made]
    two = next(case.key for case in cases if len(case.scene.colour) == 2)
    lacking = replace(physics, lacks=lambda case: "are short" if case.key == two else "")
    metrics = {"captions": captions, "physics": lacking}
    frames = [case.frames for case in cases]
    _, row = evaluate(metrics, cases, {CONTINUATION: frames, TEXT_TO_VIDEO: frames})["by_balls"]
    assert row["velocity_error_clips"] == row["clips"] - 1
    assert "count_accuracy_clips" not in row


@pytest.mark.parametrize(
    ("quantities", "how", "message"),
    [
        ({"a b": Quantity("higher")}, {}, "found the number 'a b', expected a name"),
        ({"clips": Quantity("higher")}, {}, "found the number 'clips'"),
        ({"a_stderr": Quantity("higher")}, {}, "found the number 'a_stderr'"),
        ({"a": "higher"}, {}, "found numbers without a Quantity"),
        ({}, {}, "found numbers without a Quantity"),
        ({"a": Quantity("higher")}, {"tasks": ("dubbing",)}, r"found the tasks \['dubbing'\]"),
        ({"a": Quantity("higher")}, {"clips": "some"}, "found clips='some'"),
        ({"a": Quantity("higher")}, {"references": {"held": len}}, "found references"),
        ({"a": Quantity("higher")}, {"by_balls": ("a",), "tasks": (CONTINUATION,)}, "found by_balls"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_where_it_stands(quantities, how, message):
    with pytest.raises(ValueError, match=message):
        metric(quantities, **how)(len)


def test_a_direction_is_higher_or_lower():
    with pytest.raises(ValueError, match="better: found 'more', expected higher or lower"):
        Quantity("more")
