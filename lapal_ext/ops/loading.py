"""Loads the compiled kernels, if there are any, and reports what was loaded: ``_C``, and ``_cuda`` if torch has CUDA.

A kernel registers itself with the dispatcher when its library is loaded; no other module checks whether it exists.
"""

import importlib
import importlib.util
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from lapal_ext.ops.declare import NAMESPACE, OPS
from lapal_ext.validation.scalars import check_choice

_ENVIRONMENT = "LAPAL_EXT_BACKEND"
_BACKENDS = ("auto", "reference")


def _load() -> tuple[Any, str]:
    """Import ``_C``; return it, or None and the reason."""
    wanted = os.environ.get(_ENVIRONMENT, "auto")
    if wanted not in _BACKENDS:
        raise ImportError(f"{_ENVIRONMENT} must be one of {', '.join(_BACKENDS)}, got {wanted!r}")
    if wanted == "reference":
        return None, f"{_ENVIRONMENT}=reference"
    record = _build_record()
    if record.get("native") is False:
        return None, str(record.get("reason"))
    if importlib.util.find_spec("lapal_ext._C") is None:
        return None, "no compiled kernels in the package"
    try:
        return importlib.import_module("lapal_ext._C"), ""
    except ImportError as error:
        return None, f"the compiled kernels do not load: {error}"


def _build_record() -> dict[str, Any]:
    path = Path(__file__).parent.parent / "_build.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return record


_C, _reason = _load()


def _why_no_cuda(toolkit: str, cuda: str | None) -> str:
    """Return why kernels built with ``toolkit`` cannot run in a torch with this CUDA, or an empty string."""
    if cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    built, runs = toolkit.split(".", maxsplit=1)[0], cuda.split(".")[0]
    if built == runs:
        return ""
    return (
        f"the CUDA kernels were built with CUDA {toolkit}, and torch {torch.__version__} runs CUDA {cuda}: install a "
        f"torch for CUDA {built}, or build lapal_ext again with the nvcc of CUDA {runs}"
    )


def _load_cuda() -> dict[str, Any]:
    """Load ``_cuda`` if it was built for the CUDA of this torch; return its entry in ``build_info``."""
    built = _C.build_info()["cuda"] if _C is not None else {"toolkit": "", "architectures": "", "reason": _reason}
    info = {"loaded": False, **built}
    if not info["toolkit"]:
        return info
    info["reason"] = _why_no_cuda(info["toolkit"], torch.version.cuda)
    if not info["reason"]:
        try:
            torch.ops.load_library(Path(__file__).parent.parent / "_cuda.so")
        except OSError as error:
            info["reason"] = f"the CUDA kernels do not load: {error}"
    info["loaded"] = not info["reason"]
    if info["reason"] and torch.version.cuda is not None:
        warnings.warn(f"{info['reason']}. On GPUs, ops run their torch reference.", stacklevel=2)
    return info


_cuda = _load_cuda()

if hasattr(os, "register_at_fork"):
    # The threads of OpenMP do not survive a fork: a child process that uses them, also in an op of torch, hangs.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def build_info() -> dict[str, Any]:
    """Return what was compiled, for which machine, and what runs.

    Returns:
        ``native`` (bool), ``reason`` (why there are no native kernels, else empty), ``torch`` (the version that runs)
        and ``threads``; with native kernels also how they were compiled and the ``instruction_set`` that this processor
        selects. ``cuda`` is a dictionary about the CUDA kernels: ``loaded`` (bool), ``toolkit`` (the CUDA version of
        their build, empty if they were not built), ``architectures``, and ``reason`` (why they are not loaded).
    """
    info: dict[str, Any] = {
        "native": _C is not None,
        "reason": _reason,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    compiled = {} if _C is None else dict(_C.build_info())
    return info | compiled | {"cuda": dict(_cuda)}


def backend(op: str, device: str | torch.device = "cpu") -> str:
    """Return ``native`` if a compiled kernel serves ``op`` on ``device``, else ``reference``.

    The device need not be on this machine.

    Raises:
        ValueError: no such op, or no such kind of device.
    """
    check_choice("op", op, sorted(OPS))
    try:
        key = torch.device(device).type.upper()
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", key)
    except (RuntimeError, TypeError) as error:  # the dispatcher has no kernels for devices such as meta
        raise ValueError(f"device must be one that can run ops, or its name, got {device!r}") from error
    return "native" if has_kernel else "reference"
