"""The peaks of cards by the names that drivers give them."""

from __future__ import annotations

import pytest

from videodiff.planning.peaks import peak_of


@pytest.mark.parametrize(
    ("card", "half", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", True, 989),
        ("NVIDIA H100 PCIe", True, 756),
        ("NVIDIA H200", True, 989),
        ("NVIDIA H200 NVL", True, 835),
        ("NVIDIA H800 PCIe", True, 756),
        ("NVIDIA H20", True, 148),
        ("NVIDIA GB200", True, 2500),
        ("NVIDIA B200", True, 2250),
        ("NVIDIA B200", False, 75),
        ("NVIDIA A100-SXM4-80GB", False, 19.5),
        ("NVIDIA GeForce RTX 4090", True, 165),
        ("NVIDIA GeForce RTX 4090 D", True, 147),
    ],
)
def test_a_card_is_known_by_its_name(card: str, half: bool, tflops: float) -> None:
    assert peak_of(card, half) == tflops * 1e12


def test_a_card_that_is_not_in_the_table_has_no_peak() -> None:
    assert peak_of("Abacus 9000", half=True) is None
    assert peak_of("NVIDIA GeForce RTX 4090 Laptop GPU", half=True) is None
