"""The state of a posterior: the checks of a state dict, and the file that ``save`` writes.

The file is safetensors. It holds tensors and attributes, with a checksum over everything that is read back. It has no
pickle: loading an untrusted file can give wrong values, but does not run code.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lapal_ext.atomic_file import replace_file
from lapal_ext.errors import StorageError
from lapal_ext.likelihood import CURVATURES
from lapal_ext.posterior.class_names import check_class_names
from lapal_ext.validation.scalars import check_choice, check_flag, check_integer, check_number, check_path
from lapal_ext.validation.tensors import ShapeSpec, check_dense, check_finite, check_tensors

_FORMAT = "lapal_ext posterior"
_VERSION = 1


ATTRIBUTES = (
    "prior_precision", "curvature", "has_bias", "fitted", "fitted_rows", "absorbed_labels", "class_names",
)  # fmt: skip
EXTRA_STATE = "_extra_state"  # torch's key for state that is not a tensor


def check_state(
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    has_bias: bool,
) -> None:
    """Raise a typed error unless ``state`` fits a posterior.

    Args:
        state: from the names of tensors to tensors, and ``_extra_state``.
        tensors: those of the posterior, by name.
        has_bias: whether the posterior has a bias.

    Raises:
        KeyError: a name is missing or unknown.
        TypeError, ValueError: a value is invalid.
    """
    _check_names("state_dict", state, (*tensors, EXTRA_STATE))
    given = {f"state_dict[{name!r}]": check_dense(f"state_dict[{name!r}]", state[name]) for name in tensors}
    shapes = [ShapeSpec("storage", tuple(map(str, tensor.shape))) for tensor in tensors.values()]
    check_tensors(dict(zip(given, shapes, strict=True)), given)
    mean = tensors["mean"]
    for name, tensor in given.items():
        check_finite(name, tensor.to(mean.dtype))
    attributes = state[EXTRA_STATE]
    if not isinstance(attributes, Mapping):
        raise TypeError(f"state_dict['_extra_state'] must be a dict, got {type(attributes).__name__}")
    _check_names("state_dict['_extra_state']", attributes, ATTRIBUTES)
    check_number("prior_precision", attributes["prior_precision"], above=0.0)
    check_choice("curvature", attributes["curvature"], CURVATURES)
    check_flag("fitted", attributes["fitted"])
    check_integer("fitted_rows", attributes["fitted_rows"], at_least=0)
    check_integer("absorbed_labels", attributes["absorbed_labels"], at_least=0)
    if check_flag("has_bias", attributes["has_bias"]) != has_bias:
        raise ValueError(f"has_bias must be {has_bias} as in this posterior, got {attributes['has_bias']}")
    check_class_names(attributes["class_names"], mean.shape[0])


def _check_names(what: str, given: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Raise KeyError unless the names in ``given`` are the expected ones."""
    wanted = list(expected)
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or unknown:
        raise KeyError(f"{what} must hold {', '.join(wanted)}; missing: {missing}, unknown: {unknown}")


def write_file(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> None:
    """Write atomically: an existing file stays complete until the new one is on disk."""
    target = check_path("path", path)
    if target.is_dir():
        raise IsADirectoryError(f"path must name a file, got the folder {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, got {target}")
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": _FORMAT, "version": str(_VERSION), "attributes": json.dumps(attributes, sort_keys=True)}
    header["sha256"] = _checksum(contents, header)
    replace_file(target, lambda scratch: scratch.write_bytes(save(contents, metadata=header)))


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that ``write_file`` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the file is damaged, holds no posterior, or has another version of the format.
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
    if header.get("version") != str(_VERSION):
        raise StorageError(f"{source} has format version {header.get('version')}, this lapal_ext reads {_VERSION}")
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
