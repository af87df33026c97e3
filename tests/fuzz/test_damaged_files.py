"""Files that are cut off, have a bit flipped or come from elsewhere: StorageError, and nothing half-loaded.

pytest -m slow tests/fuzz/test_damaged_files.py
"""

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lapal_ext import LastLayerLaplace, StorageError
from lapal_ext.pool.feature_files import as_tensor
from lapal_ext.posterior import state as storage
from lapal_ext.study.feature_file import load_features
from tests.draws import Draw
from tests.fuzz.tally import count

CAMPAIGN = "damaged files"


def cut_off(whole: bytes, step: int = 1) -> Iterator[bytes]:
    return (whole[:length] for length in range(0, len(whole), step))


def flipped(whole: bytes, how_many: int | None = None) -> Iterator[bytes]:
    """Every bit flipped, one at a time, or a random choice of bits."""
    bits = range(8 * len(whole))
    for bit in bits if how_many is None else random.Random(0).sample(bits, how_many):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def check_refused(path: Path, contents: Iterator[bytes], load: Callable[[Path], object], what: str) -> None:
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(StorageError):
            load(path)
        count(CAMPAIGN, what)


def posterior(n_features: int) -> LastLayerLaplace:
    draw = Draw(0)
    fitted = LastLayerLaplace(draw.normal(2, n_features), bias=draw.normal(2))
    return fitted.fit(draw.normal(9, n_features)).update(draw.normal(3, n_features), draw.integers(2, 3))


@pytest.mark.slow
def test_every_damage_to_a_small_posterior_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    posterior(1).save(path)
    whole = path.read_bytes()
    check_refused(path, cut_off(whole), LastLayerLaplace.load, "posteriors cut off")
    check_refused(path, flipped(whole), LastLayerLaplace.load, "posteriors with a flipped bit")


@pytest.mark.parametrize("trials", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damage_to_a_larger_posterior_is_refused(tmp_path: Path, trials: int) -> None:
    path = tmp_path / "p"
    posterior(30).save(path)
    whole = path.read_bytes()
    check_refused(path, cut_off(whole, len(whole) // 100), LastLayerLaplace.load, "posteriors cut off")
    check_refused(path, flipped(whole, trials), LastLayerLaplace.load, "posteriors with a flipped bit")


@pytest.mark.parametrize(
    ("attributes", "version"),
    [("{", "1"), ("[]", "1"), ("null", "1"), ("{}", "1"), ('{"has_bias": true}', "1"), ("{}", "2"), ("{}", "x")],
)
def test_foreign_files_with_a_right_checksum_are_refused(tmp_path: Path, attributes: str, version: str) -> None:
    tensors = dict(posterior(1).named_buffers())
    header = {"format": "lapal_ext posterior", "version": version, "attributes": attributes}
    save_file(tensors, tmp_path / "p", metadata=header | {"sha256": storage._checksum(tensors, header)})
    with pytest.raises(StorageError):
        LastLayerLaplace.load(tmp_path / "p")
    count(CAMPAIGN, "foreign or newer posteriors")


@pytest.mark.parametrize("lacking", ["format", "version", "attributes", "sha256"])
def test_files_without_a_part_of_the_header_are_refused(tmp_path: Path, lacking: str) -> None:
    tensors = dict(posterior(1).named_buffers())
    header = {"format": "lapal_ext posterior", "version": "1", "attributes": "{}"}
    header.pop(lacking, None)
    sealed = header if lacking == "sha256" else header | {"sha256": storage._checksum(tensors, header)}
    save_file(tensors, tmp_path / "p", metadata=sealed)
    with pytest.raises(StorageError):
        LastLayerLaplace.load(tmp_path / "p")
    count(CAMPAIGN, "foreign or newer posteriors")


def write_npy(path: Path, x: torch.Tensor) -> None:
    np.save(path, x.numpy())


def write_safetensors(path: Path, x: torch.Tensor) -> None:
    save_file({"features": x}, path)


@pytest.mark.parametrize(("suffix", "write"), [(".npy", write_npy), (".safetensors", write_safetensors)])
def test_feature_files_that_are_cut_off_are_refused(
    tmp_path: Path, suffix: str, write: Callable[[Path, torch.Tensor], None]
) -> None:
    path = tmp_path / f"x{suffix}"
    write(path, Draw(0).normal(11, 3).half())
    whole = path.read_bytes()
    check_refused(path, cut_off(whole), lambda file: as_tensor("pool", file), "feature files cut off")


@pytest.mark.parametrize("trials", [300, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("suffix", "write"), [(".npy", write_npy), (".safetensors", write_safetensors)])
def test_a_flipped_bit_in_a_feature_file_is_refused_or_changes_numbers_alone(
    tmp_path: Path, suffix: str, write: Callable[[Path, torch.Tensor], None], trials: int | None
) -> None:
    """These formats have no checksum: a header that is accepted is valid, and one of the numbers may be wrong."""
    path = tmp_path / f"x{suffix}"
    write(path, Draw(0).normal(11, 3).half())
    whole = path.read_bytes()
    start = len(whole) - 2 * 11 * 3
    for place, content in enumerate(flipped(whole, trials)):
        path.write_bytes(content)
        try:
            x = as_tensor("pool", path)
        except StorageError:
            assert content[start:] == whole[start:], "a flipped bit among the numbers was refused"
            count(CAMPAIGN, "feature files with a flipped bit that are refused")
            continue
        assert x.numel() <= 11 * 3, f"flip {place} reads beyond the file"
        if content[start:] != whole[start:]:
            assert x.shape == (11, 3)
            count(CAMPAIGN, "feature files with a number changed")
        else:
            count(CAMPAIGN, "feature files with a header changed into another that is valid")


@pytest.mark.parametrize("trials", [300, pytest.param(None, marks=pytest.mark.slow)])
def test_no_flipped_bit_changes_a_feature_set(tmp_path: Path, trials: int | None) -> None:
    path, draw = tmp_path / "x.npz", np.random.default_rng(0)
    arrays = {f"x_{part}": draw.normal(size=(6, 2)).astype(np.float16) for part in ("train", "test")}
    arrays |= {f"y_{part}": (np.arange(6) % 3).astype(np.int16) for part in ("train", "test")}
    np.savez_compressed(path, **arrays, class_names=np.array(["a", "b", "c"]))
    whole, good = path.read_bytes(), load_features(path)
    check_refused(path, cut_off(whole, 7 if trials else 1), load_features, "feature sets cut off")
    for content in flipped(whole, trials):
        path.write_bytes(content)
        try:
            read = load_features(path)
        except StorageError:
            count(CAMPAIGN, "feature sets with a flipped bit that are refused")
            continue
        assert read.num_classes == good.num_classes
        for part, wanted in zip((*read.train, *read.test), (*good.train, *good.test), strict=True):
            assert torch.equal(part, wanted)
        count(CAMPAIGN, "feature sets with a flipped bit that has no effect, such as in a date")


def test_a_header_of_a_smaller_array_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    """For example one digit of the shape has changed: a matrix must not lose its last rows unnoticed."""
    np.save(tmp_path / "x.npy", np.zeros((11, 3), np.float32))
    content = (tmp_path / "x.npy").read_bytes()
    for changed in (content.replace(b"(11, 3)", b"(10, 3)"), content.replace(b"<f4", b"<f2"), content + b"\0"):
        (tmp_path / "x.npy").write_bytes(changed)
        with pytest.raises(StorageError, match="is damaged, or holds more than one array"):
            as_tensor("pool", tmp_path / "x.npy")


def test_a_header_of_a_larger_array_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps(
        {"features": {"dtype": "F32", "shape": [2**40, 384], "data_offsets": [0, 2**42 * 384]}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(StorageError):
        as_tensor("pool", path)
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    content = (tmp_path / "x.npy").read_bytes().replace(b"(2, 3)", b"(9,3) ")
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(StorageError):
        as_tensor("pool", tmp_path / "x.npy")
