"""The metric of worlds: compare a continuation with the exact scene, beside predictors that know more or less."""

from __future__ import annotations

from functools import partial

from videodiff.metrics.metric import CONTINUATION, Case, Quantity, metric
from videodiff.metrics.worlds.physics import continuation, in_view, phyworld_velocity_error
from videodiff.metrics.worlds.reference import PREDICTORS, Predictor, measure
from videodiff.worlds.scene import render

UNITS, SPEED, FRACTION = (Quantity("lower", unit, 0.0) for unit in ("units", "units/s", ""))
QUANTITIES = {
    "velocity_error": SPEED,
    "velocity_error_per_frame": SPEED,
    "position_error": UNITS,
    "position_error_last": UNITS,
    "momentum_error": FRACTION,
    "energy_error": FRACTION,
    "shape_drift": FRACTION,
    "permanence_share": Quantity("higher", "", 0.0, 1.0),
    "phyworld_velocity_error": SPEED,
}
QUANTITIES |= {
    f"{name}_{when}": QUANTITIES[name]
    for when in ("before", "after")
    for name in ("velocity_error", "momentum_error", "energy_error")
}


def refer(case: Case, predictor: Predictor) -> dict[str, float]:
    """Measure a predictor on the given frames: states are compared directly, by PhyWorld's parser only as pictures."""
    size = case.truth.shape[1]
    numbers = measure(predictor, case.scene, case.given, size)
    if "phyworld" in case.scene.law.measures:
        shown = render(predictor(case.scene, case.given, size), size)
        numbers["phyworld_velocity_error"] = phyworld_velocity_error(shown, case.scene, case.given)
    return numbers


def floor(case: Case) -> dict[str, float]:
    """Measure the true frames: this is the error of the parser alone."""
    return continuation(case.truth, case.scene, case.given)


def too_short(case: Case) -> str:
    """Return why a clip has no velocity to measure, empty if it has."""
    return "" if len(in_view(case.scene, case.given)) > 1 else "clips show all balls in fewer than 2 predicted frames"


@metric(
    QUANTITIES,
    tasks=(CONTINUATION,),
    clips="worlds",
    lacks=too_short,
    references={name: partial(refer, predictor=each) for name, each in PREDICTORS.items()} | {"ground truth": floor},
    beside={
        "velocity_error_static": ("last frame held", "velocity_error"),
        "velocity_error_constant": ("constant velocity", "velocity_error"),
        "position_error_last_static": ("last frame held", "position_error_last"),
        "parser_floor": ("ground truth", "velocity_error"),
    },
    by_balls=("velocity_error",),
    ratios={f"{name}_of_static": (name, f"{name}_static") for name in ("velocity_error", "position_error_last")},
)
def physics(case: Case) -> dict[str, float]:
    """Measure the predicted frames of a world with known truth."""
    return continuation(case.frames, case.scene, case.given)
