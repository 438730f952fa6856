import re

import numpy as np
import pytest

from videodiff.report.curves import draw, panels, plot_ranking, smoothed, spread, thin


@pytest.fixture
def metrics():
    steps = np.arange(10, 500, 10)
    losses = {f"val/loss_tau_{tau}": (steps, tau + 1 / steps) for tau in (0.1, 0.5, 0.9)}
    rates = {"lr-AdamW": (steps, steps * 1e-5), "train/clips_per_s": (steps, steps * 0 + 90.0)}
    return {
        "train/loss": (steps, 5 / steps),
        "val/loss": (steps, 9 / steps),
        "extra": (steps, steps),
        **losses,
        **rates,
    }


def test_there_is_a_panel_for_each_curve_that_was_logged(metrics):
    assert [p.title for p in panels(metrics)] == ["Training loss", "Validation loss", "Learning rate", "Throughput"]
    assert [p.title for p in panels({"lr": metrics["lr-AdamW"]})] == ["Learning rate"]
    assert panels({}) == []


def test_every_noise_level_is_named_as_text_at_its_line(metrics):
    svg = panels(metrics)[1].svg
    assert [name for name in ("τ 0.1", "τ 0.5", "τ 0.9", "mean") if f">{name}</text>" not in svg] == []


def test_colours_and_fonts_come_from_the_page(metrics):
    for panel in panels(metrics):
        assert re.findall(r"#[0-9a-f]{6}\b", panel.svg) == []
        assert "var(--ink)" in panel.svg or "var(--muted)" in panel.svg
        assert "DejaVu" not in panel.svg
        assert "<svg viewBox" in panel.svg


def test_a_name_is_text_and_neither_markup_nor_mathematics(metrics):
    rows = [("<b>$x^2$", 1.0, 0.1, "model"), ("$", 2.0, 0.0, "floor")]
    svg = draw(lambda axes: plot_ranking(axes, rows, 1.5))
    assert ">&lt;b&gt;$x^2$</text>" in svg
    assert "<b>" not in svg


@pytest.mark.parametrize("values", [[np.nan], [0.5], [0.5, np.nan, 0.0], [-1.0, 2.0]])
def test_short_and_broken_curves_are_drawn(values):
    curve = (np.arange(len(values)), np.array(values))
    assert len(panels({"train/loss": curve, "val/loss_tau_0.5": curve, "lr": curve})) == 3


def test_smoothing_keeps_a_straight_line_and_damps_noise():
    line = np.linspace(0, 1, 200)
    np.testing.assert_allclose(smoothed(line, 5)[5:-5], line[5:-5])
    noise = np.random.default_rng(0).normal(size=2000)
    assert len(smoothed(noise, 50)) == 2000
    assert smoothed(noise, 50).std() < noise.std() / 4


def test_names_at_line_ends_are_moved_apart_and_keep_their_order():
    placed = spread(np.array([0.5, 0.98, 0.51, 0.99]), gap=0.1)
    assert (np.diff(np.sort(placed)) > 0.0999).all()
    assert np.argsort(placed).tolist() == [0, 2, 1, 3]
    assert placed.max() <= 1.0


def test_a_long_curve_is_thinned_and_keeps_its_last_point():
    steps, values = thin(np.arange(10_001), np.arange(10_001) * 2)
    assert len(steps) <= 801
    assert (steps[-1], values[-1]) == (10_000, 20_000)
