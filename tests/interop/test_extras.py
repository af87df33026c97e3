"""Every module says which extra it needs where its library is missing."""

import importlib
import sys

import pytest


@pytest.mark.parametrize("library", ["sklearn", "skactiveml", "laplace"])
def test_a_missing_library_is_explained(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == library or name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"lapal_ext.interop.{library}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'needs .*: pip install "lapal_ext\[{library}\]"'):
        importlib.import_module(f"lapal_ext.interop.{library}")
