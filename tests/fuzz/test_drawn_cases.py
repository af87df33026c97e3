"""A campaign draws the same cases whatever ran before it, so that a failure in one place fails everywhere."""

import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.changes import the_same_every_time

EXAMPLES = 200


def drawn() -> list[tuple[int, float]]:
    cases: list[tuple[int, float]] = []

    @the_same_every_time(EXAMPLES)
    @given(st.integers(), st.floats())
    def draw(number: int, real: float) -> None:
        cases.append((number, real))

    draw()
    return cases


def test_modules_imported_before_change_no_case(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = drawn()
    folder = tmp_path_factory.mktemp("modules")  # hypothesis leaves out folders that are named after a test
    names = [f"numbers_of_module_{place}" for place in range(20)]
    for place, name in enumerate(names):
        lines = [f"NUMBER_{line} = {(place + 1) * 10**9 + line}" for line in range(100)]
        Path(folder, f"{name}.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    for name in names:
        importlib.import_module(name)
    after = drawn()
    assert len(before) == EXAMPLES
    assert repr(after) == repr(before)  # NaN equals itself
