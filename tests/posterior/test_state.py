"""Saved posteriors load unchanged; other and damaged files are refused."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lapal_ext import LastLayerLaplace, StorageError
from lapal_ext.posterior import state as storage
from tests.draws import Draw
from tests.problems import make_problem


@pytest.fixture
def saved(tmp_path: Path, draw: Draw) -> Path:
    """A file with the smallest posterior, so that every bit can be tried."""
    posterior = LastLayerLaplace(draw.normal(2, 1), bias=draw.normal(2)).fit(draw.normal(5, 1))
    posterior.save(tmp_path / "posterior.safetensors")
    return tmp_path / "posterior.safetensors"


def test_a_saved_posterior_loads_unchanged(tmp_path: Path, dtype: torch.dtype) -> None:
    posterior, pool, labels, _, _ = make_problem(dtype=dtype)
    posterior.update(pool[:5], labels[:5])
    posterior.class_names = ["cat", "dog", "größer", "class 3"]
    posterior.save(tmp_path / "p")
    loaded = LastLayerLaplace.load(tmp_path / "p")
    for name, buffer in posterior.named_buffers():
        assert torch.equal(buffer, dict(loaded.named_buffers())[name]), name
    assert loaded.get_extra_state() == posterior.get_extra_state()
    # Not to the bit: rounding in torch's matrix products may depend on the addresses of their inputs.
    torch.testing.assert_close(loaded.update(pool, labels).mean, posterior.update(pool, labels).mean)


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)], ids=["one of each byte", "all"])
def test_every_flipped_bit_is_noticed(saved: Path, bits: int) -> None:
    whole = saved.read_bytes()
    for position in range(len(whole)):
        for bit in (position % 8,) if bits == 1 else range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            saved.write_bytes(damaged)
            with pytest.raises(StorageError):
                storage.read_file(saved)


def test_every_truncation_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(StorageError):
            storage.read_file(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(StorageError):
        storage.read_file(saved)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(2, 2)}, tmp_path / "foreign")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"mean": [1, 2]}))
    (tmp_path / "empty").write_bytes(b"")
    storage.write_file(tmp_path / "no posterior", {"mean": torch.zeros(2, 2)}, {"has_bias": False})
    for name, message in (
        ("foreign", "not saved by lapal_ext"),
        ("pickle", "no safetensors file"),
        ("empty", "no safetensors file"),
        ("no posterior", "does not hold a posterior"),
    ):
        with pytest.raises(StorageError, match=message):
            LastLayerLaplace.load(tmp_path / name)


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_VERSION", 3)
    storage.write_file(tmp_path / "newer", {"mean": torch.zeros(2, 2)}, {})
    monkeypatch.undo()
    with pytest.raises(StorageError, match=r"format version 3, this lapal_ext reads 1$"):
        LastLayerLaplace.load(tmp_path / "newer")


@pytest.mark.parametrize("names", [["a"], ["a", "a"], [1, 2], "ab", ["a", ""], {"a": 1}])
def test_wrong_names_with_a_right_checksum_are_refused(saved: Path, names: object) -> None:
    tensors, attributes = storage.read_file(saved)
    storage.write_file(saved, tensors, {**attributes, "class_names": names})
    with pytest.raises(StorageError, match="does not hold a posterior: class_names must"):
        LastLayerLaplace.load(saved)


def test_missing_files_and_folders_raise(tmp_path: Path) -> None:
    posterior, *_ = make_problem()
    with pytest.raises(FileNotFoundError, match="path"):
        LastLayerLaplace.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="path"):
        posterior.save(tmp_path / "absent" / "p")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, *_ = make_problem()
    posterior.save(tmp_path / "p")
    before = (tmp_path / "p").read_bytes()

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        posterior.clone().save(tmp_path / "p")
    assert (tmp_path / "p").read_bytes() == before
    assert os.listdir(tmp_path) == ["p"]


def test_permissions_are_those_of_any_new_file(saved: Path) -> None:
    (saved.parent / "plain").write_bytes(b"")
    assert saved.stat().st_mode == (saved.parent / "plain").stat().st_mode
