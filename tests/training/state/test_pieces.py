"""The pieces of all processes are the whole, each value once, and any process reads any slice of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from videodiff.training.state.pieces import AVERAGE, SMALL, STEP, WEIGHT, Piece, number, piece_of, share, state_pieces
from videodiff.training.state.saved import Saved, difference
from videodiff.training.state.saving import write_average, write_pieces

LARGE = torch.arange(3 * SMALL * 3 + 2.0)
# The last one just too small to be cut among three.
SMALL_ONES = [torch.full((n,), float(n)) for n in (0, 1, 5, 7, 3 * SMALL - 1)]


def held() -> list[Piece]:
    """Return what each of several processes holds alike."""
    small = (piece_of(f"s{len(one)}", WEIGHT, one) for one in SMALL_ONES)
    return [piece_of("large", WEIGHT, LARGE), *small, number("large", STEP, 3)]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Return what three processes wrote of what they hold alike, each in an order of its own."""
    paths = [tmp_path / f"{rank}.safetensors" for rank in range(3)]
    for rank, path in enumerate(paths):
        mine = held()[rank:] + held()[:rank]
        write_pieces(share(mine, rank, 3), {}, path)
    return Saved(reversed(paths))


def test_shares_are_the_whole_and_no_value_is_written_twice(saved: Saved) -> None:
    saved.check_complete()
    for piece in held():
        found = saved.stored[piece.name, piece.key]
        assert torch.equal(saved.whole(piece.name, piece.key).view(-1), piece.values)
        assert sum(one.count for one in found) == piece.values.numel()
        assert len(found) == (3 if piece.values.numel() == len(LARGE) else 1)
    assert saved.number("large", STEP) == 3
    assert saved.keys("large") == {STEP: None}
    small = [one.path for (name, _), found in saved.stored.items() if name != "large" for one in found]
    assert len(set(small)) == 3, "small pieces are dealt out too"


def test_a_part_of_a_tensor_is_shared_where_it_lies() -> None:
    # As under FSDP2: a process holds rows in the middle, and others hold the same ones.
    rows = Piece("p", WEIGHT, 700, torch.arange(700.0, 700 + 5 * SMALL), (9000,))
    shares = [one for copy in range(3) for one in share([rows], copy, 3)]
    assert [one.start for one in shares] == [one.values[0] for one in shares]
    assert torch.equal(torch.cat([one.values for one in shares]), rows.values)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (17, len(LARGE)), (SMALL * 3 - 1, SMALL * 3 + 2), (5, 5)])
def test_any_slice_is_read_whoever_wrote_it(saved: Saved, start: int, end: int) -> None:
    place = Piece("large", WEIGHT, start, torch.full((end - start,), -1.0, dtype=torch.float64), tuple(LARGE.shape))
    saved.fill([place])
    assert place.values.tolist() == list(range(start, end))


def test_a_value_that_no_file_has_is_told_with_the_files(saved: Saved) -> None:
    one, step = saved.stored["large", WEIGHT].pop(1), saved.stored["large", STEP]
    with pytest.raises(ValueError, match=rf"large: found no value {one.start:,} of 'weight' in \d.safetensors"):
        saved.check_complete()
    saved.stored["large", WEIGHT].append(one)
    step.clear()
    with pytest.raises(ValueError, match="large: found no value 0 of 'step'"):
        saved.check_complete()
    with pytest.raises(ValueError, match="absent: found no value 0 of 'ema'"):
        saved.fill([Piece("absent", "ema", 0, torch.zeros(1), (1,))])


def test_no_average_is_made_of_a_state_that_lacks_a_value(tmp_path: Path) -> None:
    p, moment = torch.zeros(4), Piece("p", "exp_avg", 0, torch.zeros(2), (4,))
    write_pieces([piece_of("p", WEIGHT, p), piece_of("p", AVERAGE, p), moment], {}, tmp_path / "0.safetensors")
    with pytest.raises(ValueError, match="p: found no value 2 of 'exp_avg'"):
        write_average([tmp_path / "0.safetensors"], ["p"], tmp_path / "average.safetensors")


def test_state_of_another_shape_than_its_parameter_is_told() -> None:
    p = nn.Parameter(torch.zeros(4, 3))
    pieces = {piece.key: piece for piece in state_pieces("p", p, {"step": torch.tensor(3.0), "n": 7, "m": p * 2})}
    assert (pieces["step"].shape, pieces["n"].shape, pieces["m"].shape) == (None, None, (4, 3))
    with pytest.raises(ValueError, match=r"p: found state 'row' of shape \(4,\) in the optimizer, expected a number"):
        list(state_pieces("p", p, {"row": torch.zeros(4)}))


def test_a_parameter_of_one_number_has_moments_and_a_count() -> None:
    p = nn.Parameter(torch.tensor(2.0))
    state = {"step": torch.tensor(3.0), "ema_step": 3, "exp_avg": torch.tensor(0.5)}
    pieces = {piece.key: piece for piece in (piece_of("p", WEIGHT, p), *state_pieces("p", p, state))}
    assert {key: piece.shape for key, piece in pieces.items()} == {
        WEIGHT: (),
        "step": None,
        "ema_step": None,
        "exp_avg": (),
    }
    assert pieces[WEIGHT].values.data_ptr() == p.data_ptr()
    assert not pieces[WEIGHT].values.requires_grad


def test_what_differs_is_listed_with_shapes_and_counted() -> None:
    found, expected = {"a": (1,), "b": (2, 2), "c": ()}, {"a": (1,), "b": (2, 3), "d": (4,)}
    assert difference(found, found) is None
    assert difference(found, expected) == (
        "weight b: found shape (2, 2), expected shape (2, 3); weight c: found shape (), expected no such weight; "
        "weight d: found no such weight, expected shape (4,)"
    )
    many = difference({f"{n}": (n,) for n in range(9)}, {})
    assert many.endswith("; 5 more weights differ")
