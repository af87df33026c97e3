"""What users see of the package: its names, and where they are imported from."""

import importlib

import pytest

import lapal_ext


def test_dir_lists_the_public_names() -> None:
    assert dir(lapal_ext) == sorted([*lapal_ext.__all__, "__version__"])
    assert all(hasattr(lapal_ext, name) for name in dir(lapal_ext))


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("lapal_ext.ops", ["OPS", "backend", "build_info", "lookahead_loss", "use_references"]),
        ("lapal_ext.baselines", ["first_order", "monte_carlo"]),
        ("lapal_ext.features", ["extract", "ExtractedFeatures"]),
        ("lapal_ext.interop.sklearn", ["LaplaceClassifier"]),
        ("lapal_ext.interop.skactiveml", ["LaplaceQueryStrategy"]),
        ("lapal_ext.interop.label_studio", ["Tasks", "predictions", "read_tasks", "write_tasks"]),
        ("lapal_ext.cli", ["main"]),
    ],
)
def test_public_paths_stay(module: str, names: list[str]) -> None:
    imported = importlib.import_module(module)
    assert [name for name in names if not hasattr(imported, name)] == []
