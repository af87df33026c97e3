"""The table of what was built and run keeps every result, and says what `matrix` would write."""

import shutil
from pathlib import Path

import pytest

from tests.packaging.grid import README, Cell, keep, known, lines, merged, table_of

OLD = Cell("x86-64", "g++", "3.11", "2.13", "compiles")


def test_the_table_is_what_the_command_writes() -> None:
    text = README.read_text(encoding="utf-8")
    assert table_of(text).strip().splitlines() == lines(known(text))
    assert known(text)


def test_a_new_result_is_added_to_those_of_earlier_calls(tmp_path: Path) -> None:
    copy = Path(shutil.copy(README, tmp_path))
    earlier = known(copy.read_text(encoding="utf-8"))
    new = Cell("riscv64", "g++", "3.14", "2.14", "FAILED")
    assert set(keep([new], copy)) == {*earlier, new} == set(known(copy.read_text(encoding="utf-8")))
    assert (
        copy.read_text(encoding="utf-8").partition("<!--")[0] == README.read_text(encoding="utf-8").partition("<!--")[0]
    )


@pytest.mark.parametrize(
    ("earlier", "later", "kept"),
    [
        ("compiles", "runs", "runs"),
        ("runs", "compiles", "runs"),
        ("runs", "FAILED", "FAILED"),
        ("FAILED", "runs", "runs"),
    ],
)
def test_of_two_results_for_one_cell(earlier: str, later: str, kept: str) -> None:
    assert merged([OLD._replace(result=later)], [OLD._replace(result=earlier)]) == [OLD._replace(result=kept)]
