"""The row that a selection step picks: the best free one, the lowest of equals, NaN before any number."""

import pytest
import torch

from lapal_ext.ops.best_row import pick_best

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("utilities", "taken", "index", "utility"),
    [
        ([1.0, 3.0, 2.0], [False, False, False], 1, 3.0),
        ([1.0, 3.0, 2.0], [False, True, False], 2, 2.0),
        ([3.0, 1.0, 3.0], [False, False, False], 0, 3.0),
        ([3.0, 1.0, 3.0], [True, False, False], 2, 3.0),
        ([1.0, NAN, 9.0], [False, False, False], 1, NAN),
        ([9.0, 1.0, NAN], [False, False, True], 0, 9.0),
        ([9.0, -INF, -INF], [True, False, False], 1, -INF),
        ([9.0, 8.0], [True, True], -1, -INF),
        ([], [], -1, -INF),
    ],
)
def test_the_best_free_row(utilities: list[float], taken: list[bool], index: int, utility: float) -> None:
    marks = torch.tensor(taken, dtype=torch.bool)
    found, value = pick_best(torch.tensor(utilities), marks)
    assert found.item() == index
    assert value.item() == pytest.approx(utility, nan_ok=True)
    assert marks.tolist() == [mark or row == index for row, mark in enumerate(taken)]
