"""The pieces of all processes are the whole, each value once, and any process reads any slice of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from videodiff.training.state.pieces import SMALL, WEIGHT, Piece, piece_of, share, state_pieces
from videodiff.training.state.saved import Saved, difference
from videodiff.training.state.saving import write_pieces

LARGE = torch.arange(3 * SMALL * 3 + 2.0)
SMALL_ONES = [torch.full((n,), float(n)) for n in (0, 1, 5, 7)]


def held() -> list[Piece]:
    """Return what each of several processes holds alike."""
    return [piece_of("large", WEIGHT, LARGE), *(piece_of(f"s{len(one)}", WEIGHT, one) for one in SMALL_ONES)]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Return what three processes wrote of what they hold alike, each in an order of its own."""
    paths = [tmp_path / f"{rank}.safetensors" for rank in range(3)]
    for rank, path in enumerate(paths):
        mine = held()[rank:] + held()[:rank]
        write_pieces(share(mine, rank, 3), {}, path)
    return Saved(paths)


def test_shares_are_the_whole_and_no_value_is_written_twice(saved: Saved) -> None:
    saved.check_complete()
    for piece in held():
        assert torch.equal(saved.whole(piece.name, WEIGHT), piece.values)
        assert sum(one.count for one in saved.stored[piece.name, WEIGHT]) == piece.values.numel()
    assert len(saved.stored["large", WEIGHT]) == 3


@pytest.mark.parametrize(("start", "end"), [(0, 1), (17, len(LARGE)), (SMALL * 3 - 1, SMALL * 3 + 2), (5, 5)])
def test_any_slice_is_read_whoever_wrote_it(saved: Saved, start: int, end: int) -> None:
    place = Piece("large", WEIGHT, start, torch.full((end - start,), -1.0, dtype=torch.float64), tuple(LARGE.shape))
    saved.fill([place])
    assert place.values.tolist() == list(range(start, end))


def test_a_value_that_no_file_has_is_told_with_the_files(saved: Saved) -> None:
    one = saved.stored["large", WEIGHT].pop(1)
    with pytest.raises(ValueError, match=rf"large: found no value {one.start:,} of 'weight' in \d.safetensors"):
        saved.check_complete()
    with pytest.raises(ValueError, match="absent: found no value 0 of 'ema'"):
        saved.fill([Piece("absent", "ema", 0, torch.zeros(1), (1,))])


def test_state_of_another_shape_than_its_parameter_is_told() -> None:
    p = nn.Parameter(torch.zeros(4, 3))
    pieces = {piece.key: piece for piece in state_pieces("p", p, {"step": torch.tensor(3.0), "n": 7, "m": p * 2})}
    assert (pieces["step"].shape, pieces["n"].shape, pieces["m"].shape) == (None, None, (4, 3))
    with pytest.raises(ValueError, match=r"p: found state 'row' of shape \(4,\) in the optimizer, expected a number"):
        list(state_pieces("p", p, {"row": torch.zeros(4)}))


def test_what_differs_is_listed_with_shapes_and_counted() -> None:
    found, expected = {"a": (1,), "b": (2, 2), "c": ()}, {"a": (1,), "b": (2, 3), "d": (4,)}
    assert difference(found, found) is None
    assert difference(found, expected) == (
        "weight b: found shape (2, 2), expected shape (2, 3); weight c: found shape (), expected no such weight; "
        "weight d: found no such weight, expected shape (4,)"
    )
    many = difference({f"{n}": (n,) for n in range(9)}, {})
    assert many.endswith("; 5 more weights differ")
