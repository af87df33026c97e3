"""Pools that are arrays or files: the same picks as from a tensor, no copy of them, and typed errors."""

import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lapal_ext import (
    LastLayerLaplace,
    SequentialSelector,
    StorageError,
    expected_error_reduction,
    select_batch,
    select_lookahead,
)
from lapal_ext.pool.feature_files import as_tensor
from lapal_ext.pool.pool import Pool
from lapal_ext.utilities import UTILITIES
from tests.fuzz.processes import python
from tests.native import require_native

ROWS, FEATURES, CLASSES = 300, 12, 4


@pytest.fixture
def posterior() -> LastLayerLaplace:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, FEATURES, generator=generator)
    targets = torch.arange(60) % CLASSES
    features[:, :CLASSES] += 2.0 * torch.nn.functional.one_hot(targets, CLASSES)
    return LastLayerLaplace.fit_map(features, targets, CLASSES)


@pytest.fixture
def pool() -> torch.Tensor:
    return torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(1))


def write(kind: str, pool: torch.Tensor, folder: Path) -> Any:
    """The pool in one of the forms in which it may be passed."""
    path = folder / f"pool.{kind}"
    match kind:
        case "npy":
            np.save(path, pool.numpy())
        case "safetensors":
            save_file({"features": pool, "ids": torch.arange(len(pool))}, path)
        case "array":
            return pool.numpy()
        case "memmap":
            np.save(folder / "pool.npy", pool.numpy())
            return np.load(folder / "pool.npy", mmap_mode="r")
        case "str":
            np.save(folder / "pool.npy", pool.numpy())
            return str(folder / "pool.npy")
    return path


KINDS = ("npy", "safetensors", "array", "memmap", "str")


class TestSamePicks:
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [*product(KINDS, [torch.float32, torch.float16]), ("safetensors", torch.bfloat16)],  # NumPy has no bfloat16
    )
    def test_select_batch(self, kind, dtype, posterior, pool, tmp_path):
        pool = pool.to(dtype)
        expected = select_batch(posterior, pool, 12)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = select_batch(posterior, write(kind, pool, tmp_path), 12)
        assert torch.equal(result.indices, expected.indices)
        assert torch.equal(result.utilities, expected.utilities)

    def test_every_function_that_takes_a_pool(self, posterior, pool, tmp_path):
        path = write("npy", pool, tmp_path)
        assert SequentialSelector(posterior, path).ask() == SequentialSelector(posterior, pool).ask()
        reductions = [expected_error_reduction(posterior, of, pool[:20]) for of in (path, pool)]
        assert torch.equal(*reductions)
        proposals = [
            select_lookahead(posterior, of, pool[:20], 3, 10, proposals=("informative",), generator=_seeded()).indices
            for of in (path, pool)
        ]
        assert torch.equal(*proposals)

    def test_a_matrix_without_rows_is_accepted(self, posterior, tmp_path):
        np.save(tmp_path / "pool.npy", np.zeros((0, FEATURES), np.float32))
        assert len(expected_error_reduction(posterior, tmp_path / "pool.npy", torch.zeros(1, FEATURES))) == 0


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


class TestNoCopy:
    @pytest.mark.parametrize("kind", ["npy", "safetensors", "array", "memmap"])
    def test_the_memory_is_shared(self, kind, pool, tmp_path):
        given = write(kind, pool, tmp_path)
        tensor = as_tensor("pool", given)
        assert torch.equal(tensor, pool)
        if kind == "array":
            assert tensor.data_ptr() == pool.data_ptr()
        elif kind == "memmap":
            assert tensor.data_ptr() == given.__array_interface__["data"][0]
            assert not given.flags.writeable

    @pytest.mark.parametrize("kind", ["npy", "safetensors"])
    def test_writing_to_the_tensor_leaves_the_file(self, kind, pool, tmp_path):
        path = write(kind, pool, tmp_path)
        before = path.read_bytes()
        as_tensor("pool", path)[0, 0] = 7.0
        assert path.read_bytes() == before

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
    @pytest.mark.parametrize(("kind", "memory"), [("npy", None), ("safetensors", None), ("npy", 1.0)])
    def test_anonymous_memory_does_not_grow_with_the_pool(self, kind, memory, tmp_path):
        rows, features = 400_000, 192  # 154 MB in half precision, 307 MB in float32
        pool = torch.zeros(rows, features, dtype=torch.float16)
        pool[:, 0] = torch.arange(rows) % 97
        path = write(kind, pool, tmp_path)
        assert python(_WITHIN, path, features, memory, 75_000_000) == "done\n"

    @pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA of Linux counts anonymous memory")
    @pytest.mark.parametrize(
        ("kind", "classes"), [pytest.param("npy", 10, marks=pytest.mark.slow), ("safetensors", 10), ("npy", 150)]
    )
    def test_a_pool_four_times_larger_than_the_memory_allowed(self, kind, classes, tmp_path):
        """With 150 classes not even its logits would fit.

        All rows but forty are far from any boundary, so that no two of the best tie within rounding: the matrix
        products of torch may round differently where memory is short.
        """
        require_native("selection_step_", "cpu")  # the references of the ops make temporaries
        generator = torch.Generator().manual_seed(0)
        pool = torch.randn(300_000, 384, generator=generator)
        pool[:, 0] += 30.0
        pool[::7500, 0] = torch.linspace(-1.0, 1.0, 40)[torch.randperm(40, generator=generator)]
        path = write(kind, pool.half(), tmp_path)
        allowed = path.stat().st_size // 4
        # glibc must return large blocks at once; else it depends on fragmentation what fits.
        environment = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
        printed = python(_LIMITED, path, classes, allowed, environment=environment)
        limited, free = printed.splitlines()
        assert limited == free


# Prints the picks from a file, under a limit on the further memory of the process, then those from a tensor in memory.
_LIMITED = """
import resource, sys
import torch
from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.pool.feature_files import as_tensor

torch.set_num_threads(1)
path, classes, allowed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
generator = torch.Generator().manual_seed(1)
features = torch.randn(300, 384, generator=generator)
features[:, 0] *= 30.0
posterior = LastLayerLaplace.fit_map(features, (features[:, 0] > 0).long() * (classes - 1), classes)
memory = None if classes < 100 else allowed / 4
select_batch(posterior, features.half(), 3, memory=1.0)  # warm-up: torch loads libraries at its first call
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (size + allowed, resource.RLIM_INFINITY))
try:
    torch.zeros(allowed)
    raise SystemExit("there is no limit")
except RuntimeError:
    pass
print(select_batch(posterior, path, 5, memory=memory).indices.tolist())
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(select_batch(posterior, as_tensor("pool", path).clone(), 5).indices.tolist())
"""

# Selects under a limit on the anonymous memory that the process may add; beyond it, allocations fail.
_WITHIN = """
import resource, sys
import torch
from lapal_ext import LastLayerLaplace, select_batch

torch.set_num_threads(1)
features, memory, allowed = int(sys.argv[2]), None if sys.argv[3] == "None" else float(sys.argv[3]), int(sys.argv[4])
classes = 2 if memory is None else 10  # what is kept of every row must be small compared with the pool
posterior = LastLayerLaplace.fit_map(torch.eye(10, features), torch.arange(10) % classes, classes)
select_batch(posterior, torch.randn(100, features).half(), 3)
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (size + allowed, resource.RLIM_INFINITY))
try:
    torch.zeros(2 * allowed, dtype=torch.uint8)
    raise SystemExit("there is no limit")
except RuntimeError:
    pass
select_batch(posterior, sys.argv[1], 5, memory=memory)
print("done")
"""


class TestMemory:
    @pytest.mark.parametrize("acquisition", UTILITIES)
    @pytest.mark.parametrize("link", ["plugin", "mean_field"])
    @pytest.mark.parametrize("update_every", [1, 5])
    def test_the_same_picks_without_the_logits_of_the_pool(self, acquisition, link, update_every, posterior, pool):
        exact, points = posterior.double(), pool.double()
        common = {"acquisition": acquisition, "link": link, "update_every": update_every}
        kept = select_batch(exact, points, 15, **common)
        tiled = select_batch(exact, points, 15, **common, memory=ROWS * CLASSES * 8)
        assert torch.equal(tiled.indices, kept.indices)
        torch.testing.assert_close(tiled.utilities, kept.utilities, rtol=1e-9, atol=1e-12)

    def test_a_selector_asks_the_same_without_the_logits(self, posterior, pool):
        selectors = [SequentialSelector(posterior.double(), pool.double(), memory=memory) for memory in (None, 1.0)]
        for label in (0, 3, 1):
            rows = [int(selector.ask()) for selector in selectors]
            assert rows[0] == rows[1]
            for selector in selectors:
                selector.tell(rows[0], label)

    def test_logits_are_kept_if_they_fit(self, posterior, pool, monkeypatch):
        monkeypatch.setattr(Pool, "latent", lambda *_, **__: pytest.fail("the logits of the pool were computed"))
        with pytest.raises(pytest.fail.Exception):
            select_batch(posterior, pool, 2, memory=ROWS * (CLASSES + 1) * 4)
        select_batch(posterior, pool, 2, memory=ROWS * (CLASSES + 1) * 4 - 1)

    @pytest.mark.parametrize("acquisition", ["bald", "badge"])
    def test_acquisitions_that_need_the_logits_refuse_too_little_memory(self, acquisition, posterior, pool):
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        for function, arguments in ((select_batch, (2, acquisition)), (SequentialSelector, (acquisition,))):
            with pytest.raises(ValueError, match=rf"memory must be at least 6000 bytes for '{acquisition}'"):
                function(posterior, pool, *arguments, memory=5999, generator=generator)
        assert generator.get_state().equal(before)
        select_batch(posterior, pool, 2, acquisition, memory=6000)


class TestErrors:
    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (3, TypeError, "pool must be a torch.Tensor, an array or the path of a file, got int"),
            (np.zeros((2, FEATURES), np.int32), TypeError, "pool must be float32, float64, bfloat16 or float16"),
            (np.zeros((2, FEATURES), ">f4"), TypeError, "native byte order, got >f4"),
            (np.zeros((2, FEATURES), np.float32)[::-1], TypeError, "pool must not have negative strides"),
            (np.ma.zeros((2, FEATURES), np.float32), TypeError, "pool must not be a masked array"),
            (np.zeros((2, FEATURES + 1), np.float32), ValueError, r"pool must have shape \(N, 12\)"),
            (np.zeros((2, FEATURES)), TypeError, "pool must be torch.float32"),
            ("", ValueError, "^pool must be the name of a file or a folder, got an empty str$"),
            ("nowhere.npy", FileNotFoundError, "pool must be an existing file, got nowhere.npy"),
        ],
    )
    def test_values(self, value, error, message, posterior):
        with pytest.raises(error, match=message):
            select_batch(posterior, value, 1)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("pool.npy", b"", "damaged, or no .npy file"),
            ("pool.npy", b"\x93NUMPY\x01\x00\xff", "damaged, or no .npy file"),
            ("pool.npy", b"rows of text\n1 2 3\n", "damaged, or no .npy file"),
            ("pool.safetensors", b"", "damaged or no safetensors file"),
            ("pool.safetensors", b"\xff" * 64, "damaged or no safetensors file"),
            ("pool.csv", b"1,2,3\n", "pool must be a .npy or .safetensors file"),
        ],
    )
    def test_files(self, name, content, message, posterior, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StorageError, match=message):
            select_batch(posterior, tmp_path / name, 1)

    @pytest.mark.parametrize("kind", ["npy", "safetensors"])
    def test_a_file_that_is_cut_off_anywhere_is_refused(self, kind, posterior, pool, tmp_path):
        path = write(kind, pool, tmp_path)
        whole = path.read_bytes()
        for size in (*range(0, 200, 7), *range(200, len(whole), 1999), len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(StorageError):
                select_batch(posterior, path, 1)

    def test_pickles_are_never_loaded(self, posterior, tmp_path):
        np.save(tmp_path / "pool.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(StorageError, match=r"holds Python objects"):
            select_batch(posterior, tmp_path / "pool.npy", 1)

    def test_fortran_order_is_refused(self, posterior, tmp_path):
        np.save(tmp_path / "pool.npy", np.asfortranarray(np.zeros((5, FEATURES), np.float32)))
        with pytest.raises(StorageError, match="Fortran order"):
            select_batch(posterior, tmp_path / "pool.npy", 1)

    def test_safetensors_without_a_matrix_of_that_name(self, posterior, pool, tmp_path):
        save_file({"a": pool, "b": pool.clone()}, tmp_path / "pool.safetensors")
        with pytest.raises(StorageError, match="must hold one tensor, or one called 'features', got a, b"):
            select_batch(posterior, tmp_path / "pool.safetensors", 1)

    def test_nan_in_half_precision_is_refused(self, posterior, pool, tmp_path):
        pool = pool.half()
        pool[ROWS - 1, 3] = float("nan")
        with pytest.raises(ValueError, match="pool must be finite"):
            select_batch(posterior, write("npy", pool, tmp_path), 1)


@pytest.mark.parametrize("names", [("part1", "part01"), ("part01", "part1")])
def test_parts_with_equal_numbers_have_an_order(names, tmp_path, monkeypatch):
    for number, name in enumerate(("part01", "part1")):
        np.save(tmp_path / f"{name}.npy", np.full((1, 2), number, np.float32))
    monkeypatch.setattr(Path, "iterdir", lambda folder: (folder / f"{name}.npy" for name in names))
    assert as_tensor("pool", tmp_path)[:, 0].tolist() == [0.0, 1.0]


def test_a_folder_of_parts_is_one_matrix_in_the_order_of_their_numbers(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    for number, part in ((10, rows[4:]), (9, rows[:4])):
        np.save(tmp_path / f"part{number}.npy", part)
    assert as_tensor("pool", tmp_path).numpy().tolist() == rows.tolist()
    np.save(tmp_path / "part11.npy", rows.astype(np.float16))
    message = r"part11\.npy must have 2 columns of torch\.float32 like .*part9\.npy, got 2 of torch\.float16"
    with pytest.raises(StorageError, match=message):
        as_tensor("pool", tmp_path)
