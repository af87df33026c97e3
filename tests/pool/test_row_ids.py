import pytest

from lapal_ext.pool.row_ids import RowIds


def test_rows_are_found_by_their_ids():
    ids = RowIds([" a", "b ", "c d"])
    assert [ids.row_of(name) for name in ("a", " b", "c d", "d", "")] == [0, 1, 2, None, None]


def test_numbers_are_found_as_spreadsheets_write_them():
    ids = RowIds(["007", "12", "0012", "9", "x"])
    assert [ids.row_of(name) for name in ("7", "7.0", "007", "12", "0012", "9.00")] == [0, 0, 0, 1, 2, 3]
    assert ids.row_of("012") is None  # it may be either
    assert ids.row_of("7.5") is None


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a "], "file, lines 2 and 7: both rows have the id 'a'"),
        (["a", " "], "file, line 4: an id must not"),
    ],
)
def test_ids_that_name_no_row_or_two(ids, message):
    with pytest.raises(ValueError, match=message):
        RowIds(ids, "file", [2, 4, 7])
