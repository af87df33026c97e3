"""The plugin that runs some cases of each test: which ones, and that no test is lost."""

from tests.packaging.some_cases import EVERY, some_of


def test_every_test_runs_with_some_of_its_cases() -> None:
    names = ["a.py::one", *(f"a.py::many[{i}-{dtype}]" for i in range(50) for dtype in ("f32", "bf16"))]
    kept = some_of(names)
    assert kept == some_of(names)
    assert "a.py::one" in kept
    assert len(kept) == 1 + 100 // EVERY
    assert {name.rpartition("-")[2] for name in kept - {"a.py::one"}} == {"f32]", "bf16]"}
