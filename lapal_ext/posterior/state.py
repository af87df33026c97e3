"""Tensors and attributes in one safetensors file, under a checksum that covers every byte that is read back.

No pickle: opening a foreign file can give wrong bytes, never code.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lapal_ext.atomic_file import replace_file
from lapal_ext.errors import StorageError
from lapal_ext.validation.tensors import check_path

_FORMAT = "lapal_ext posterior"
_VERSION = 2
_OLDEST = 1  # without names of the classes


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> None:
    """Write atomically: whatever stood at ``path`` stays whole until the new file is complete on disk."""
    target = check_path("path", path)
    if target.is_dir():
        raise IsADirectoryError(f"path must name a file, got the folder {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, got {target}")
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": _FORMAT, "version": str(_VERSION), "attributes": json.dumps(attributes, sort_keys=True)}
    header["sha256"] = _checksum(contents, header)
    replace_file(target, lambda scratch: scratch.write_bytes(save(contents, metadata=header)))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write`` wrote, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        StorageError: damaged, foreign, or written by a newer version.
    """
    source = check_path("path", path)
    if not source.is_file():
        raise FileNotFoundError(f"path must name a saved posterior, got {source}")
    try:
        with safe_open(source, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError, KeyError, OSError, RuntimeError, UnicodeError) as error:
        raise StorageError(f"{source} is damaged or no safetensors file: {error}") from error
    if header.get("format") != _FORMAT:
        raise StorageError(f"{source} was not saved by lapal_ext")
    if header.pop("sha256", None) != _checksum(tensors, header):
        raise StorageError(f"{source} is damaged: its checksum does not match")
    if header.get("version", "none") not in map(str, range(_OLDEST, _VERSION + 1)):
        reads = f"{_OLDEST} to {_VERSION}"
        raise StorageError(f"{source} has format version {header.get('version')}, this lapal_ext reads {reads}")
    try:
        attributes: dict[str, Any] = json.loads(header["attributes"])
    except (KeyError, ValueError) as error:
        raise StorageError(f"{source} does not hold a posterior: its attributes are no JSON ({error})") from error
    return tensors, attributes


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
