"""Who iterates which matrix: even shares, known to all, and only where there is something to save."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videodiff.parallel.muon.division import LEAST, cost, held, owners, rows, worth_sharing
from videodiff.planning.forecast import memory
from videodiff.planning.forecast.trace import orthogonalised
from videodiff.training.optimizer import orthogonalise

# The matrices of a block of width 1: of attention, of the text, and of the MLP.
BLOCK = [(3, 1), (1, 1), (1, 1), (2, 1), (1, 1), (4, 1), (1, 4)]


def network(width: int, pairs: int) -> list[tuple[int, int]]:
    """Return the matrices of pairs of blocks of which one looks at the text."""
    return [(width * rows, width * columns) for rows, columns in BLOCK + BLOCK[:2] + BLOCK[5:]] * pairs


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_the_cost_of_a_matrix_is_what_its_iteration_multiplies(shape: tuple[int, int]) -> None:
    with FlopCounterMode(display=False) as counted:
        orthogonalise(torch.ones(1, *shape))
    # Two products that add are counted as one product each, as here.
    assert cost(shape) == counted.get_total_flops() == orthogonalised(*sorted(shape))


def test_the_costliest_matrix_goes_first_to_who_has_least_to_do() -> None:
    # Of widths 1, 2 and 3 the squares cost 3, 24 and 81 units: the largest is more than all others together.
    assert owners([(1, 1), (3, 3), (2, 2), (1, 1), (2, 2)], 2) == [1, 0, 1, 1, 1]
    assert owners([(2, 2)] * 5, 3) == [0, 1, 2, 0, 1]
    assert owners([(2, 2)], 4) == [0]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
def test_a_share_is_at_most_an_even_one_and_a_matrix(processes: int) -> None:
    shapes = network(48, 3)
    shares = [sum(cost(shapes[index]) for index in indices) for indices in held(shapes, processes)]
    assert sorted(index for indices in held(shapes, processes) for index in indices) == list(range(len(shapes)))
    assert max(shares) <= sum(map(cost, shapes)) / processes + max(map(cost, shapes))
    if processes > 1:
        # The blocks of a network divide much better than that.
        assert max(shares) < 1.1 * sum(map(cost, shapes)) / processes


def test_matrices_are_shared_if_that_saves_more_than_a_gather_takes() -> None:
    # A square matrix of width w costs 30 w^3: at 150, 101 million. Two processes save one of two.
    assert 30 * 149**3 < LEAST < 30 * 150**3
    assert worth_sharing([(150, 150)] * 2, 2)
    assert not worth_sharing([(149, 149)] * 2, 2)
    # There is nothing to share of one matrix, and nothing to save alone.
    assert not worth_sharing([(999, 999)], 2)
    assert not worth_sharing([(999, 999)] * 9, 1)
    assert memory.LEAST == LEAST


def test_the_demo_shares_and_a_network_of_half_its_width_does_not() -> None:
    assert worth_sharing(network(64, 3), 2)
    assert not worth_sharing(network(32, 3), 2)


@pytest.mark.parametrize("count", [1, 3, 5, 8, 9])
@pytest.mark.parametrize("processes", [2, 4])
def test_rows_are_split_as_torch_chunks_them(count: int, processes: int) -> None:
    wanted = [len(part) for part in torch.zeros(count).chunk(processes)]
    assert rows(count, processes) == wanted + [0] * (processes - len(wanted))
