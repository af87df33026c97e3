"""Extracted features on disk: the rows, their labels, and a journal that records their origin and their number.

For ``pool.npy`` the labels are in ``pool.npy.targets.npy`` and the journal in ``pool.npy.json``. While rows are added,
the files end in ``.partial``, and the journal is replaced after each batch. If the process is killed between two
replacements, the journal is still correct, but the files may have more rows than it records. A file without
``.partial`` is complete.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lapal_ext.atomic_file import replace_file
from lapal_ext.entries import outside_inference_mode
from lapal_ext.errors import StorageError
from lapal_ext.features.data_checksum import DataChecksum
from lapal_ext.features.growing_file import RowFile, check_format, partial_path
from lapal_ext.pool.feature_files import load_npy, map_file

Origin = Mapping[str, str | int | None]
"""Where features come from: ``model``, ``take``, ``autocast``, ``dtype``, ``rows`` (None if not known)."""

_FORMAT = "lapal_ext features"
_VERSION = 1


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the structure and the state of a model, on any device.

    Raises:
        ValueError: a tensor holds no values, or the state holds something that cannot be compared.
    """
    # The repr of a function contains its address, which differs between processes.
    digest = hashlib.sha256(re.sub(r"0x[0-9a-fA-F]+", "", repr(model)).encode())
    buffers = dict(model.named_buffers())  # a state dict leaves some of them out
    for name, value in (buffers | dict(model.state_dict())).items():
        _add_to(digest, name, value)
    return digest.hexdigest()


def _add_to(digest: "hashlib._Hash", name: str, value: object) -> None:
    """Add one entry of a state: a tensor, a plain value, or a collection of such."""
    if isinstance(value, Tensor):
        if value.is_meta or nn.parameter.is_lazy(value):
            raise ValueError(f"model must hold values, got none in {name!r}")
        if value.layout != torch.strided:
            raise ValueError(f"model must hold dense tensors to be compared with path, got {value.layout} in {name!r}")
        subclass: bool = is_traceable_wrapper_subclass(value)
        if subclass:  # such as those of torchao: the plain tensors that it holds
            for part in getattr(value, "__tensor_flatten__")()[0]:  # noqa: B009 - tensors in general do not have it
                _add_to(digest, f"{name}.{part}", getattr(value, part))
            return
        plain = value.detach().cpu()
        plain = plain.dequantize() if plain.is_quantized else plain
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(plain.contiguous().view(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _add_to(digest, f"{name}.{key}", part)
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            _add_to(digest, f"{name}.{number}", part)
    elif value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        digest.update(f"{name} {value!r}".encode())
    else:
        raise ValueError(
            f"model must hold tensors and plain values to be compared with path, got {type(value).__name__} in {name!r}"
        )


class FeatureCache:
    """Appends rows in order to a file, and their labels to another; ``finish`` completes the files.

    Args:
        path: of the features, .npy or .safetensors.
        origin: where they come from.
        layer: name of the layer, or None if it is to be found; a run that is resumed uses the layer that it found
            before.
        dtype: of the features.
        data: a checksum of the data, which is compared if the files exist.

    Raises:
        ValueError: the format of ``path`` cannot hold ``dtype``.
        FileNotFoundError: the folder does not exist.
        StorageError: the files at ``path`` have another origin or are damaged.
    """

    def __init__(self, path: Path, origin: Origin, layer: str | None, dtype: torch.dtype, data: DataChecksum) -> None:
        check_format(path, dtype)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path must lie in an existing folder, got {path}")
        self.layer = layer
        self.done, self.complete = 0, False
        self._path, self._origin, self._dtype = path, origin, dtype
        self._data = data
        self._journal = path.with_name(f"{path.name}.json")
        self._features: RowFile | None = None
        self._targets: RowFile | None = None
        if self._journal.exists() and (path.exists() or partial_path(path).exists()):
            self._resume(_read_journal(self._journal))
        elif path.exists():
            raise StorageError(f"{path} exists, and no {self._journal.name} records its origin: choose another path")

    def append(self, features: Tensor, targets: Tensor | None) -> None:  # [n, D], [n]
        """Write the next rows; afterwards they are kept even if the process is killed."""
        if self._features is None:
            self._begin(features.shape[1], labelled=targets is not None)
        assert self._features is not None
        if features.shape[1] != self._features.columns:
            raise ValueError(width_changes(self._features.columns, features.shape[1], self.done))
        self._features.append(features)
        if self._targets is not None:
            assert targets is not None
            self._targets.append(targets)
        self.done += len(features)
        self._write_journal()

    @outside_inference_mode
    def finish(self) -> tuple[Tensor, Tensor | None]:
        """Complete the files, give them their final names, and map the features."""
        assert self._features is not None
        files = [file for file in (self._targets, self._features) if file is not None]
        if not self.complete:
            for file in files:
                file.finish()
            self.complete = True
            self._write_journal()
            for file in files:  # the features last: if they have their name, all files have
                file.publish()
        targets = None if self._targets is None else torch.from_numpy(load_npy(self._targets.path))
        return map_file("path", self._path), targets

    @property
    def labelled(self) -> bool | None:
        """Whether rows come with labels; None before the first."""
        return None if self._features is None else self._targets is not None

    def _begin(self, columns: int, *, labelled: bool) -> None:
        self._features = RowFile(self._path, self._dtype, (columns,))
        self._features.start()
        if labelled:
            self._targets = self._label_file()
            self._targets.start()

    def _label_file(self) -> RowFile:
        return RowFile(self._path.with_name(f"{self._path.name}.targets.npy"), torch.int64, ())

    def _resume(self, journal: dict[str, Any]) -> None:
        now = {**self._origin, "layer": journal["layer"] if self.layer is None else self.layer}
        if other := [_difference(name, journal[name], now[name]) for name in now if journal[name] != now[name]]:
            raise StorageError(
                f"{self._path} holds features of something else ({', '.join(other)}): choose another path, or delete "
                f"it and {self._journal.name}"
            )
        if not self._data.is_of(journal["data"], journal["done"]):
            raise StorageError(
                f"{self._path} holds features of other data, or of these in another order: pass the data that it was "
                f"begun with, choose another path, or delete it and {self._journal.name}"
            )
        self.layer, self.done, self.complete = journal["layer"], journal["done"], journal["complete"]
        self._features = RowFile(self._path, self._dtype, (journal["columns"],))
        files = [(self._features, journal["sha256"])]
        if journal["labelled"]:
            self._targets = self._label_file()
            files.append((self._targets, journal["targets_sha256"]))
        if self.complete and not self._path.exists():
            for file, _ in reversed(files):  # the process was killed after the last journal and before the new names
                file.publish()
        for file, sha256 in files:
            if self.complete:
                file.verify(self.done, sha256)
            elif file.path.exists():
                raise StorageError(
                    f"{file.path} exists and is incomplete according to {self._journal.name}: delete both"
                )
            else:
                file.resume(self.done, sha256)

    def _write_journal(self) -> None:
        assert self._features is not None
        journal = {
            "format": _FORMAT,
            "version": _VERSION,
            **self._origin,
            "data": self._data.value,
            "layer": self.layer,
            "columns": self._features.columns,
            "labelled": self._targets is not None,
            "done": self.done,
            "complete": self.complete,
            "sha256": self._features.sha256,
            "targets_sha256": None if self._targets is None else self._targets.sha256,
        }
        text = json.dumps({**journal, "checksum": _checksum(journal)}, indent=1)
        replace_file(self._journal, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _difference(name: str, there: object, asked: object) -> str:
    return "another model" if name == "model" else f"{name} {there!r} and not {asked!r}"


def width_changes(columns: int, others: int, row: int) -> str:
    """The error message if batches differ in D."""
    return f"layer must get rows of one length, {columns} so far, got {others} from row {row} of data on"


def _read_journal(path: Path) -> dict[str, Any]:
    damaged = f"{path} is damaged, or no journal of features: delete it and the features to extract anew"
    try:
        journal = json.loads(path.read_bytes())
        checksum = journal.pop("checksum")
        foreign = journal["format"] != _FORMAT
        version = journal["version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(damaged) from error
    if foreign or checksum != _checksum(journal):
        raise StorageError(damaged)
    if version != _VERSION:
        raise StorageError(f"{path} has format version {version}, this lapal_ext reads {_VERSION}")
    return dict(journal)


def _checksum(journal: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(journal, sort_keys=True).encode()).hexdigest()
