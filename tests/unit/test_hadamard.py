import numpy as np
import pytest

from transfer_influence.hadamard import matrix_row, smallest_order


def matrix(order: int) -> np.ndarray:
    return np.array([matrix_row(order, row) for row in range(order)], np.float32)


def orders(largest: int) -> list[int]:
    return sorted({smallest_order(units) for units in range(1, largest + 1)})


def test_rows_of_every_order_up_to_2048_are_orthogonal():
    assert len(orders(2048)) == 356
    for order in orders(2048):
        found = matrix(order)
        assert (np.abs(found) == 1).all()
        assert (found[0] == 1).all()
        assert (found @ found.T == order * np.eye(order, dtype=np.float32)).all()


@pytest.mark.parametrize(
    ("units", "order"), [(1, 1), (2, 2), (3, 4), (10, 12), (20, 20), (52, 56), (1000, 1000)]
)
def test_the_smallest_order(units, order):
    assert smallest_order(units) == order


def test_few_columns_are_spare():
    assert max(smallest_order(units) - units for units in range(1, 2049)) == 15
    assert smallest_order(1_281_167) == 1_281_168
