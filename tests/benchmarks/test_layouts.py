"""Names of files as each benchmark's own code builds them, told from that code: it is not imported here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from videodiff.benchmarks.layouts import (
    Made,
    by_prompt,
    by_scenario,
    phygenbench,
    physics_iq,
    read_info,
    vbench,
    vbench2,
)

INFO = [
    {"prompt_en": "a toilet, frozen in time", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a dog running happily", "dimension": ["subject_consistency", "dynamic_degree"]},
    {"prompt_en": "a dog running happily", "dimension": ["human_action"]},
]


def test_vbench_has_five_clips_of_a_prompt_and_25_of_one_of_flickering() -> None:
    names = [place.name for place in vbench(INFO)]
    assert names == [f"a toilet, frozen in time-{i}.mp4" for i in range(25)] + [
        f"a dog running happily-{i}.mp4" for i in range(5)
    ]
    assert [place.name for place in vbench(INFO, ["human_action"])] == [
        f"a dog running happily-{i}.mp4" for i in range(5)
    ]


def test_vbench_2_has_a_folder_a_dimension_180_letters_and_20_clips_of_diversity() -> None:
    long = "x" * 200
    places = vbench2([{"prompt_en": long, "dimension": ["Diversity"]}, {"prompt_en": "b", "dimension": ["Material"]}])
    assert [place.name for place in places] == [f"Diversity/{'x' * 180}-{i}.mp4" for i in range(20)] + [
        f"Material/b-{i}.mp4" for i in range(3)
    ]
    assert places[0].prompt == long


def test_phygenbench_has_a_clip_a_prompt_in_the_order_of_its_list() -> None:
    prompts = ["an egg hits a rock", "a cork on water", "an egg hits a rock"]
    made = [Made(Path(f"{number:03d}.mp4"), prompts[number]) for number in (1, 2, 0)]
    files, missing = by_prompt(phygenbench(prompts), made)
    assert files == {
        "output_video_1.mp4": Path("000.mp4"),
        "output_video_2.mp4": Path("001.mp4"),
        "output_video_3.mp4": Path("002.mp4"),
    }
    assert not missing
    assert [place.name for place in by_prompt(phygenbench(prompts), made[1:])[1]] == [
        "output_video_2.mp4",
    ]


def test_clips_of_a_prompt_are_numbered_by_their_names_and_missing_ones_are_told() -> None:
    made = [Made(Path(f"{number:03d}.mp4"), "a dog running happily") for number in (4, 0, 2)]
    files, missing = by_prompt(vbench(INFO, ["human_action"]), made)
    assert files == {f"a dog running happily-{i}.mp4": Path(f"00{2 * i}.mp4") for i in range(3)}
    assert [place.name for place in missing] == ["a dog running happily-3.mp4", "a dog running happily-4.mp4"]


def test_spaces_around_a_prompt_of_the_list_belong_to_the_name_alone() -> None:
    info = [{"prompt_en": " a red ball ", "dimension": ["color"]}]
    files, missing = by_prompt(vbench(info), [Made(Path(f"{number}.mp4"), "a red ball") for number in range(5)])
    assert files == {f" a red ball -{number}.mp4": Path(f"{number}.mp4") for number in range(5)}
    assert not missing


@pytest.mark.parametrize("prompt", ["a/b", "x" * 260, "a\0b", "a\ud800b"])
def test_a_prompt_that_can_be_no_name_of_a_file_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"info: found the prompt .*, expected one that can be the name of a file"):
        vbench([{"prompt_en": prompt, "dimension": ["scene"]}])


@pytest.mark.parametrize("dimension", [[], [5], [{}], ["../../elsewhere"], ["/etc"], [".."], [""], "scene"])
def test_a_dimension_that_can_be_no_name_of_a_folder_is_refused(tmp_path: Path, dimension: object) -> None:
    path = tmp_path / "info.json"
    path.write_text(json.dumps([INFO[0], {"prompt_en": "a kite", "dimension": dimension}]))
    with pytest.raises(ValueError, match=r"info: .*info.json: entry 1: found .*, expected prompt_en and dimension"):
        read_info(path)


def test_a_list_may_begin_with_a_byte_order_mark_and_may_not_be_nested_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    path.write_text(json.dumps(INFO), encoding="utf-8-sig")
    assert read_info(path) == INFO
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"info: .*info.json is not JSON"):
        read_info(path)


def test_a_dimension_that_no_prompt_has_is_refused() -> None:
    with pytest.raises(ValueError, match="dimensions: found 'colour', expected some of dynamic_degree, human_action"):
        vbench(INFO, ["colour"])


TABLE = """scenario,description,category,generated_video_name
0001_perspective-left_take-1_ball.mp4,"A ball, it falls.",Solid Mechanics,0001_perspective-left_ball.mp4
0002_perspective-center_take-1_ball.mp4,"A ball, it falls.",Solid Mechanics,0002_perspective-center_ball.mp4
"""


def test_a_clip_of_physics_iq_is_known_by_the_video_that_it_continues_or_by_its_own_name() -> None:
    made = [
        Made(Path("000.mp4"), "A ball, it falls.", "frames/0002_switch-frames_anyFPS_perspective-center_ball.jpg", 5.0),
        Made(Path("0001_mine.mp4"), "A ball, it falls.", None, 5.0005),
        Made(Path("001.mp4"), "A cat."),
    ]
    files, missing = by_scenario(physics_iq(TABLE), made)
    assert files == {
        "0002_perspective-center_ball.mp4": Path("000.mp4"),
        "0001_perspective-left_ball.mp4": Path("0001_mine.mp4"),
    }
    assert missing == []
    assert [place.name for place in by_scenario(physics_iq(TABLE), made[:1])[1]] == ["0001_perspective-left_ball.mp4"]


@pytest.mark.parametrize(("seconds", "told"), [(4.9, "4.9"), (None, "unknown"), (5.02, "5.02")])
def test_a_clip_of_another_length_than_5_seconds_is_refused(seconds: float | None, told: str) -> None:
    with pytest.raises(ValueError, match=rf"0001_a\.mp4: found a length of {told} s, expected 5 s"):
        by_scenario(physics_iq(TABLE), [Made(Path("0001_a.mp4"), "", None, seconds)])


def test_two_clips_of_one_scenario_and_a_strange_table_are_refused() -> None:
    made = [Made(Path(f"0001_{name}.mp4"), "", None, 5.0) for name in "ab"]
    with pytest.raises(ValueError, match=r"found a clip of scenario 0001 beside 0001_a\.mp4, expected one"):
        by_scenario(physics_iq(TABLE), made)
    with pytest.raises(ValueError, match="found no column generated_video_name"):
        physics_iq("scenario,description\na,b\n")
    with pytest.raises(ValueError, match=r"found the name '\.\./0001\.mp4'"):
        physics_iq("scenario,generated_video_name\na,../0001.mp4\n")


def test_two_prompts_of_one_file_name_are_refused() -> None:
    long = "x" * 180
    with pytest.raises(ValueError, match="found two prompts of Material that begin with the same 180 letters"):
        vbench2([{"prompt_en": f"{long}{end}", "dimension": ["Material"]} for end in "ab"])
    # The same prompt twice has the same clips.
    assert len(vbench2([{"prompt_en": long, "dimension": ["Material"]}] * 2)) == 3


def test_the_clip_after_number_999_is_number_1000() -> None:
    made = [Made(Path(f"{number:03d}.mp4"), "x" * 9) for number in (1000, 998, 1001, 999)]
    files, _ = by_prompt(vbench([{"prompt_en": "x" * 9, "dimension": ["color"]}]), made)
    assert [path.name for path in files.values()] == ["998.mp4", "999.mp4", "1000.mp4", "1001.mp4"]
