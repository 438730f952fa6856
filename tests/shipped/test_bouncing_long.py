"""The run that comes with videodiff shows what its prompts ask for, in a process of its own, from the files alone."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import finish, start
from videodiff.data.video.decode import decode
from videodiff.metrics.worlds.parsing import seen_colours, track
from videodiff.shipped.runs import HOME

MOST_BYTES = 4_000_000


def test_its_examples_have_the_colours_and_the_number_of_balls_that_they_name(tmp_path: Path) -> None:
    finish(start("sample", cwd=tmp_path))
    generated = tmp_path / "runs/bouncing_long/generated"
    prompts = (HOME / "bouncing_long/prompts.txt").read_text().splitlines()
    assert [one.count("ball") for one in prompts] == [1, 1, 2]
    for number, prompt in enumerate(prompts):
        assert json.loads((generated / f"{number:03d}.json").read_text())["prompt"] == prompt
        frames = decode((generated / f"{number:03d}.mp4").read_bytes(), range(16))
        assert set(seen_colours(frames)) == {word for word in prompt.split() if word in COLOURS}
        assert (track(frames).count() == prompt.count("ball")).mean() >= 0.8


def test_it_is_small_enough_to_come_along() -> None:
    files = [path for path in (HOME / "bouncing_long").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
