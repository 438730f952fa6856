"""The page about a preparation: whole, safe, self-contained, small, and alive in a real browser."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import figure as mpl_figure
from matplotlib.backends.backend_agg import FigureCanvasAgg

from data_prep.books.ledger import Ends
from data_prep.engine.stopwatch import Spent
from data_prep.report.figures import Example, Failure, Figures, Histogram, Machine, Seconds
from data_prep.report.page import (
    SMALL,
    TOGETHER,
    clip_bars,
    input_bars,
    percent,
    plot_histogram,
    show,
    write_preparation,
)
from data_prep.report.summary import ClipCounts, ShardCounts, Summary
from tests.material.scored_clips import panning
from tests.material.servers.browser import BROWSERS, seen_by
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode
from videodiff.report.curves import STYLE

HOSTILE = '"><script>alert(1)</script><img src=http://example.org/x.png onerror=alert(2)>'
SECTIONS = ("summary", "funnel", "scores", "wall", "failures", "work", "settings")


def histogram(name: str, **how) -> Histogram:
    kept, left = np.arange(40), np.arange(40)[::-1] % 7
    known = {"low": 0.001, "high": 2.0, "log": True, "limits": {"min": 0.005, "max": 1.0}, "beyond": 3, "missing": 2}
    return Histogram(name, **{"kept": kept, "left": left, "least": 0.0, "most": 3.0, **known, **how})


def figures(folder: Path, text: str = "a ball", clips: int = 2) -> Figures:
    """Return figures with a text in every place that a stranger may fill."""
    for number in range(clips):
        small = {"height": 32, "width": 48}
        (folder / f"{number}.mp4").write_bytes(encode(panning(12, **small, seed=number), 8.0))

    def example(number: int) -> Example:
        known = {"caption": text, "source": f"http://h/{text}", "span": (0.0, 1.5), "scores": {"motion": 0.00123}}
        return Example(path=folder / f"{number}.mp4", id=f"id{number}", **known)

    ends = Ends(9, 2, {"motion below 0.005": 1, text: 2}, {text: {"retryable": 3, "permanent": 1}})
    same = histogram("fps", limits={}, least=8, most=8, missing=0)
    counts = ClipCounts(made=4, kept=2, filtered={"motion below 0.005": 1, text: 1}, lost=1)
    return Figures(
        summary=Summary(ends, counts, ShardCounts(count=1, bytes=5 * 2**20)),
        unmade={text: 1},
        seconds=Seconds(made=100.0, kept=30.0),
        histograms=[histogram("motion"), histogram(text, limits={}), same],
        wall={"": [example(0)], "motion below 0.005": [example(1)], text: [example(0)]},
        failures=[Failure(reason=text, retryable=True, host=text, count=3, detail=text, place=text)],
        machines=[Machine(text, 5, 1), Machine("b", 4, 3)],
        operations={name: Spent(seconds=2.0, items=4, bytes=2**20) for name in ("fetch", "encode", text, "pack")},
        settings={text: text},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dataset")
    return write_preparation(folder, figures(folder)).read_text()


def clip(path: Path) -> Example:
    return Example(path, id="x", caption="", source="x.mp4", span=(0.0, 1.0), scores={})


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_every_section_is_there_and_nothing_refers_outside(page):
    assert [name for name in SECTIONS if f'id="{name}"' not in page] == []
    targets = re.findall(r"""(?:src|href|srcset|action|poster)\s*=\s*["']?([^"'\s>]+)""", page)
    targets += re.findall(r"""url\(\s*["']?([^"')]+)""", page)
    assert len(targets) > 8
    assert [target[:60] for target in targets if not target.startswith(("data:", "#"))] == []
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)[1]
    assert base64.b64decode(allowed) == hashlib.sha256(script.encode()).digest()
    assert "default-src 'none'" in page


def test_whatever_strangers_wrote_is_escaped(tmp_path):
    folder = tmp_path / "a&<b>"
    folder.mkdir()
    page = write_preparation(folder, figures(folder, HOSTILE)).read_text()
    assert page.count("<script") == 1
    assert "<img src=http" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 14
    assert "a&amp;&lt;b&gt;" in page


def test_the_funnel_loses_bar_by_bar_what_the_summary_says(tmp_path):
    found = figures(tmp_path, "x")
    bars = input_bars(found.summary.ends, found.unmade)
    assert [(bar.name, bar.count, bar.note) for bar in bars] == [
        ("inputs", 9, ""),
        ("x", 3, "retryable"),
        ("x", 1, ""),
        ("x", 1, ""),
        ("gave clips", 4, ""),
    ]
    assert [round(9 * bar.start) for bar in bars] == [0, 6, 5, 4, 0]
    clips = clip_bars(found.summary.clips)
    assert [(bar.count, bar.start, bar.share) for bar in clips] == [
        (4, 0, 1),
        (1, 0.75, 0.25),
        (1, 0.5, 0.25),
        (2, 0, 0.5),
    ]


def test_a_share_is_not_said_to_be_nothing_or_all_that_is_not():
    assert [percent(part, 10**6) for part in (0, 1, 5000, 10**6 - 1, 10**6)] == [
        "0 %",
        "< 0.1 %",
        "0.5 %",
        "> 99.9 %",
        "100 %",
    ]
    assert percent(0, 0) == "0 %"


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(-0.00042, 0.00037, False), (-0.0123, 0.0317, False), (-0.3, 0.3, False), (16, 1e5, False), (-1e-7, 1e-7, False),
     (0.0002, 0.05, True), (1e-6, 10.0, True), (3, 480, True)],
)  # fmt: skip
def test_the_ticks_of_a_histogram_do_not_overlap(low, high, log):
    figure = mpl_figure.Figure(figsize=(3.7, 1.5), layout="constrained")
    counts = np.arange(40)
    with mpl.rc_context(STYLE):
        axes = figure.add_subplot()
        plot_histogram(axes, Histogram("pan", low=low, high=high, log=log, kept=counts, left=counts, limits={}))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_the_page_says_in_words_what_came_out(page):
    said = words(page)
    assert (
        "2 of 9 inputs are in the dataset: 2 clips, 30 s of video, 5 MiB in 1 shard. 3 failures may be temporary"
        in said
    )
    assert "motion 0.00123 · http://h/a ball · 0.00 to 1.50 s" in said
    assert "3 beyond · 2 without it" in said
    assert "The same for every clip fps 8" in said
    assert page.count(">min 0.005<") == page.count(">max 1<") == 1


def test_a_preparation_without_clips_has_its_page(tmp_path):
    found = replace(figures(tmp_path), summary=Summary(), unmade={}, histograms=[], wall={}, failures=[], operations={})
    said = words(write_preparation(tmp_path, replace(found, machines=[])).read_text())
    assert "No clip was made" in said
    assert "No input failed" in said


def test_small_clips_play_as_they_are_large_ones_as_a_preview_and_none_beyond_the_room(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 256, 320, 3), dtype=np.uint8)
    for name, frames in {"small": panning(12, height=32, width=48), "large": noise}.items():
        (tmp_path / f"{name}.mp4").write_bytes(encode(frames, 10.0))
    small, large = (show(clip(tmp_path / f"{name}.mp4"), TOGETHER) for name in ("small", "large"))
    assert small.video == (tmp_path / "small.mp4").read_bytes()
    assert (tmp_path / "large.mp4").stat().st_size > SMALL
    info = probe(large.video)
    assert (info.height, info.width, info.frames) == (144, 180, 40)
    assert show(clip(tmp_path / "small.mp4"), 100).video is None


def test_a_clip_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"x\.mp4: "):
        show(clip(tmp_path / "x.mp4"), TOGETHER)


@pytest.mark.parametrize("browser", BROWSERS)
def test_in_a_browser_a_strip_plays_while_it_has_the_focus_and_nothing_else_runs(browser, tmp_path):
    page = write_preparation(tmp_path, figures(tmp_path, HOSTILE)).read_bytes()
    script = """
        let alerts = 0;
        page.alert = () => alerts++;
        const cards = [...page.document.querySelectorAll(".card[tabindex]")];
        const [card, other] = cards, video = card.querySelector("video");
        card.focus();
        await until(() => video.currentTime > 0.1);
        const shown = page.getComputedStyle(video).display;
        other.focus();
        await until(() => video.paused);
        const strips = [...page.document.querySelectorAll(".strip")].filter(strip => strip.naturalWidth > 50).length;
        const wide = page.document.documentElement.scrollWidth;
        say([cards.length, strips, shown, page.getComputedStyle(video).display, alerts, wide].join(" "));
    """
    assert seen_by(browser, page, script, tmp_path / "profile") == "3 3 block none 0 1280"


@pytest.mark.parametrize("browser", BROWSERS)
def test_on_a_telephone_nothing_is_wider_than_the_screen(browser, page, tmp_path):
    script = """
        document.querySelector("iframe").width = 360;
        await until(() => page.innerWidth == 360);
        say(page.document.documentElement.scrollWidth);
    """
    assert seen_by(browser, page.encode(), script, tmp_path) == "360"
