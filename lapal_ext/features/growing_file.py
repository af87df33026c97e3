"""A .npy or .safetensors file that grows by rows: the rows are written first, the header last.

Both formats have a header, then the rows. Space for the header is reserved at the beginning, so that rows can be
appended before their number is known. Until the header is written, the file has another name.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lapal_ext.errors import StorageError

SUFFIXES = (".npy", ".safetensors")
_HEAD_BYTES = 256  # at least twice what either header needs, and a multiple of 64 as in NumPy
_BLOCK_BYTES = 1 << 20
_NPY = {torch.float32: "<f4", torch.float64: "<f8", torch.float16: "<f2", torch.int64: "<i8"}
_SAFETENSORS = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


class RowFile:
    """A file of rows of one dtype, with a running SHA-256 of their bytes.

    Args:
        path: of the finished file; its suffix names the format.
        dtype: of the rows.
        row_shape: of one row, ``(D,)`` for features and ``()`` for labels.
    """

    def __init__(self, path: Path, dtype: torch.dtype, row_shape: tuple[int, ...]) -> None:
        self.path = path
        self.rows = 0
        self._dtype, self._row_shape = dtype, row_shape
        self._partial = partial_path(path)
        self._digest = hashlib.sha256()

    @property
    def columns(self) -> int:
        """D, of features."""
        return self._row_shape[0]

    @property
    def sha256(self) -> str:
        """Of the rows' bytes so far, without the header."""
        return self._digest.hexdigest()

    def start(self) -> None:
        """Begin a file without rows, in place of an existing one."""
        self._partial.write_bytes(bytes(_HEAD_BYTES))

    def resume(self, rows: int, sha256: str) -> None:
        """Continue after the rows that a journal records; further rows are dropped.

        Raises:
            StorageError: rows are missing or damaged.
        """
        self._digest, self.rows = self._read(self._partial, rows), rows
        if self.sha256 != sha256:
            raise StorageError(f"{self._partial} is damaged: delete it to begin anew")
        os.truncate(self._partial, _HEAD_BYTES + rows * self._row_bytes)

    def append(self, rows: Tensor) -> None:  # [n, *row_shape]
        """Add rows to the file and to its checksum.

        Raises:
            StorageError: another process writes to the file as well.
        """
        content = rows.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        with self._open_alone() as file:
            file.seek(0, os.SEEK_END)
            file.write(content)
        self._digest.update(content)
        self.rows += len(rows)

    def finish(self) -> None:
        """Write the header and flush the file to disk; it keeps its temporary name.

        Raises:
            StorageError: another process writes to the file as well.
        """
        with self._open_alone() as file:
            file.write(self._header())
            file.flush()
            os.fsync(file.fileno())

    def publish(self) -> None:
        """Give the finished file its final name, unless it already has it."""
        if self._partial.exists():
            self._partial.replace(self.path)

    def verify(self, rows: int, sha256: str) -> None:
        """Compare the finished file with what was written.

        Raises:
            StorageError: it is damaged.
        """
        digest = self._read(self.path, rows)
        size = _HEAD_BYTES + rows * self._row_bytes
        self.rows = rows
        if digest.hexdigest() != sha256 or self.path.stat().st_size != size or self._head_of_file() != self._header():
            raise StorageError(f"{self.path} is damaged: its checksum does not match; delete it to extract anew")

    @property
    def _row_bytes(self) -> int:
        return self._dtype.itemsize * torch.Size(self._row_shape).numel()

    def _open_alone(self) -> BinaryIO:
        """Open the partial file, or raise StorageError if another process has changed it."""
        size = self._partial.stat().st_size if self._partial.exists() else 0
        if size != _HEAD_BYTES + self.rows * self._row_bytes:
            raise StorageError(f"{self._partial} was changed meanwhile: let one process at a time extract to this path")
        return self._partial.open("rb+")

    def _head_of_file(self) -> bytes:
        with self.path.open("rb") as file:
            return file.read(_HEAD_BYTES)

    def _read(self, path: Path, rows: int) -> "hashlib._Hash":
        digest, left = hashlib.sha256(), rows * self._row_bytes
        try:
            with path.open("rb") as file:
                file.seek(_HEAD_BYTES)
                while left and (block := file.read(min(left, _BLOCK_BYTES))):
                    digest.update(block)
                    left -= len(block)
        except FileNotFoundError:
            raise StorageError(
                f"{path} is missing, but its journal exists: delete the journal to extract anew"
            ) from None
        return digest

    def _header(self) -> bytes:
        shape = [self.rows, *self._row_shape]
        if self.path.suffix == ".npy":
            entries = f"{{'descr': '{_NPY[self._dtype]}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
            text = entries.encode().ljust(_HEAD_BYTES - 11) + b"\n"
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
        tensor = {"dtype": _SAFETENSORS[self._dtype], "shape": shape, "data_offsets": [0, self.rows * self._row_bytes]}
        text = json.dumps({"features": tensor}).encode().ljust(_HEAD_BYTES - 8)
        return struct.pack("<Q", len(text)) + text


def partial_path(path: Path) -> Path:
    """The name of a file until it is complete."""
    return path.with_name(f"{path.name}.partial")


def check_format(path: Path, dtype: torch.dtype) -> None:
    """Raise ValueError unless ``path`` names a format that holds ``dtype``."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path must be a .npy or .safetensors file, got {path}")
    if path.suffix == ".npy" and dtype not in _NPY:
        raise ValueError(f"path must be a .safetensors file for {dtype}, which .npy does not have, got {path}")
