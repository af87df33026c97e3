"""Features in a file are read back, never mistaken for others, and damage is noticed."""

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler

from lapal_ext import StorageError, select_batch
from lapal_ext.features import extract
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from tests.features.files import BATCH, DATA, PLAIN, Counting, Interrupt, N, X, Y, batches, check, contents, run


@pytest.fixture(params=["pool.npy", "pool.safetensors"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


# What is written and read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_file_holds_what_was_extracted(path: Path, dtype: torch.dtype) -> None:
    if path.suffix == ".npy" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match=r"^path must be a \.safetensors file for torch\.bfloat16"):
            run(path, dtype=dtype)
        return
    model = Counting()
    expected = extract(model, DATA, batch_size=BATCH, dtype=dtype)
    check(run(path, dtype=dtype), expected)
    read = torch.from_numpy(np.load(path)) if path.suffix == ".npy" else load_file(path)["features"]
    assert torch.equal(read, expected.features)
    assert torch.equal(torch.from_numpy(np.load(f"{path}.targets.npy")), Y)
    names = [path.name, f"{path.name}.json", f"{path.name}.targets.npy"]
    assert sorted(contents(path.parent)) == names
    model.rows = 0
    check(run(path, model=model, dtype=dtype), expected)
    assert model.rows == 0


def test_without_targets_there_is_no_file_of_targets(path: Path) -> None:
    for _ in range(2):
        assert run(path, X).targets is None
    assert not Path(f"{path}.targets.npy").exists()


def test_a_file_is_a_pool(path: Path) -> None:
    features = run(path).features
    posterior = LastLayerLaplace.fit_map(features, Y, 3)
    picks = select_batch(posterior, path, 4).indices
    assert torch.equal(picks, select_batch(posterior, PLAIN.features, 4).indices)
    features.zero_()  # a copy on write: the file stays
    check(run(path))


@pytest.mark.parametrize("layer", ["fc", None, "module"])
def test_a_layer_found_or_named_or_given_is_the_same_layer(path: Path, layer: str | None) -> None:
    run(path, layer=None if layer == "fc" else "fc")
    model = Counting()
    check(run(path, model=model, layer=model.fc if layer == "module" else layer))


def test_an_iterable_must_have_as_many_rows_as_its_file(path: Path) -> None:
    run(path, batches())
    model = Counting()
    check(run(path, batches(), model))
    assert model.rows == 0
    with pytest.raises(StorageError, match="holds 23 rows, and data have more"):
        run(path, [*batches(), (X[:1], Y[:1])])
    with pytest.raises(StorageError, match="holds 23 rows, and data have only 20"):
        run(path, list(batches())[:-1])
    check(run(path, batches()))


# Features of another model, layer or data


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"model": Counting(1)}, "another model"),
    "structure": ({"model": Counting(slope=0.2)}, "another model"),
    "layer": ({"layer": "body"}, "layer 'fc' and not 'body'"),
    "take": ({"layer": "fc", "take": "output"}, "take 'input' and not 'output'"),
    "autocast": ({"autocast": torch.bfloat16}, "autocast None and not 'torch.bfloat16'"),
    "dtype": ({"dtype": torch.float16}, "dtype 'torch.float32' and not 'torch.float16'"),
    "fewer rows": ({"data": TensorDataset(X[:-1], Y[:-1])}, "rows 23 and not 22"),
    "more rows": ({"data": TensorDataset(torch.cat([X, X]), torch.cat([Y, Y]))}, "rows 23 and not 46"),
    "unknown rows": ({"data": [(X, Y)]}, "rows 23 and not None"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("whole", [True, False])
def test_features_of_something_else_are_never_returned(path: Path, change: str, whole: bool) -> None:
    with nullcontext() if whole else pytest.raises(Interrupt):
        run(path, model=None if whole else Counting(stop=9), layer="fc")
    before = contents(path.parent)
    changed, message = CHANGES[change]
    with pytest.raises(StorageError, match=rf"holds features of something else \({message}\): choose another path"):
        run(path, **changed)
    assert contents(path.parent) == before
    check(run(path))


def test_an_address_in_the_repr_does_not_make_another_model(tmp_path: Path) -> None:
    """A module that prints a function prints its address, which differs from process to process."""

    class Printed(Counting):
        def extra_repr(self) -> str:
            return f"activation=<function f at {hex(id(self))}>"

    run(tmp_path / "x.npy", model=Printed())
    kept = Printed()  # at another address
    check(run(tmp_path / "x.npy", model=Printed()))
    assert kept.rows == 0


def test_a_foreign_file_is_never_overwritten(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(StorageError, match=r"exists, and no .*\.json records its origin: choose another path"):
        run(path)
    assert contents(path.parent) == {path.name: b"precious"}


def test_a_stray_partial_file_never_replaces_a_complete_one(path: Path) -> None:
    run(path)
    for name in (path, Path(f"{path}.targets.npy")):
        name.with_name(f"{name.name}.partial").write_bytes(b"")
    check(run(path))


def test_extraction_starts_again_after_the_features_are_deleted(path: Path) -> None:
    run(path)
    path.unlink()
    check(run(path))
    path.unlink()
    assert run(path, X).targets is None


class Shuffling(Sampler[int]):
    """A sampler class that torch does not know."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(N).tolist())

    def __len__(self) -> int:
        return N


@pytest.mark.parametrize("sampler", [RandomSampler(DATA), WeightedRandomSampler([1.0] * N, N), Shuffling()])
def test_data_in_random_order_are_refused(path: Path, sampler: Any) -> None:
    for loader in (DataLoader(DATA, 4, sampler=sampler), DataLoader(DATA, None, sampler=sampler)):
        with pytest.raises(ValueError, match=r"^data must come in the same order each time to be kept in path: pass"):
            run(path, loader)
    assert contents(path.parent) == {}


# Damage


@pytest.mark.parametrize(
    ("name", "changed"),
    [("x.npy", "x.npy"), ("x.npy", "x.npy.targets.npy"), ("x.npy", "x.npy.json"), 2 * ("x.safetensors",)],
)
def test_damage_anywhere_is_noticed(tmp_path: Path, name: str, changed: str) -> None:
    """One bit of each byte is flipped, and the file is cut off at every fifth byte."""
    path, damaged, data = tmp_path / name, tmp_path / changed, TensorDataset(X[:3], Y[:3])
    run(path, data)
    whole = damaged.read_bytes()
    tried = 0
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        for content in (bytes(flipped), whole[:position])[: 1 + (position % 5 == 0)]:
            damaged.write_bytes(content)
            with pytest.raises(StorageError, match="damaged"):
                run(path, data)
            tried += 1
    damaged.write_bytes(whole + b" ")
    if damaged.suffix != ".json":  # JSON ignores a space at the end
        with pytest.raises(StorageError, match="damaged"):
            run(path, data)
    assert tried > 300
    print(f"noticed {tried} damaged files")


@pytest.mark.parametrize("name", ["", ".targets.npy"])
def test_damage_between_two_runs_is_noticed(path: Path, name: str) -> None:
    with pytest.raises(Interrupt):
        run(path, model=Counting(stop=9), layer="fc")
    partial = Path(f"{path}{name}.partial")
    whole = partial.read_bytes()
    partial.write_bytes(whole + b"rows of the batch that was not finished")
    check(run(path))
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(Interrupt):
        run(path, model=Counting(stop=9), layer="fc")
    partial.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match=r"\.partial is damaged: delete it to begin anew$"):
        run(path)


def test_a_journal_of_a_newer_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lapal_ext.features.cache._VERSION", 2)
        run(path)
    with pytest.raises(StorageError, match=r"has format version 2, this lapal_ext reads 1$"):
        run(path)


def test_rows_before_one_that_is_not_finite_are_kept(path: Path) -> None:
    broken = X.clone()
    broken[13, 0] = math.nan
    with pytest.raises(ValueError, match=r"from row 13 of data$"):
        run(path, TensorDataset(broken, Y))
    assert json.loads(Path(f"{path}.json").read_text())["done"] == 12
    model = Counting()
    check(run(path, model=model))
    assert model.rows == N - 12


class Scaling(torch.nn.Module):
    """Keeps its factor outside of parameters and buffers, as extra state."""

    def __init__(self, factor: object) -> None:
        super().__init__()
        self.fc, self.factor = torch.nn.Linear(X[0].numel(), 2), factor
        for parameter in self.fc.parameters():
            torch.nn.init.ones_(parameter)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.fc(inputs.flatten(1) * self.factor)

    def get_extra_state(self) -> dict[str, object]:
        return {"factor": [self.factor]}

    def set_extra_state(self, state: dict[str, object]) -> None:
        (self.factor,) = state["factor"]


@pytest.mark.parametrize("factors", [(2.0, 3.0), (torch.tensor(2.0), torch.tensor(3.0))], ids=["number", "tensor"])
def test_state_that_is_no_parameter_is_compared_too(path: Path, factors: tuple[object, object]) -> None:
    extract(Scaling(factors[0]), X, path=path)
    extract(Scaling(factors[0]), X, path=path)
    with pytest.raises(StorageError, match="another model"):
        extract(Scaling(factors[1]), X, path=path)


def test_state_that_cannot_be_compared_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"to be compared with path, got \w+ in '_extra_state.factor.0'"):
        extract(Scaling(np.float32(2.0)), X, path=path)
