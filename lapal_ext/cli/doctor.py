"""``lapal-ext doctor``: print what is installed, which kernels run, what is missing and how to get it."""

import argparse
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

_OF_DEVELOPERS = ("test", "lint", "label-studio")  # extras that users do not need
_OPTIONAL = re.compile(r"""^([\w.-]+)[^;]*; extra == ["']([\w-]+)["']$""")  # of a requirement in the metadata
_MISSING = "missing"
_REQUIRED = ("torch", "numpy", "safetensors")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="print what is installed, which kernels run, what is missing and how to get it",
        description="Print versions, the kernels of each device, and what is missing.",
        epilog="example:\n  lapal-ext doctor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _: print("\n".join(report())))


def report() -> list[str]:
    """Return the lines of the report."""
    return [*_versions(), "", *_kernels(), "", *_extras()]


def _versions() -> list[str]:
    import torch

    import lapal_ext

    names = ", ".join(f"{name} {_version(name)}" for name in _REQUIRED)
    devices = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    return [
        f"lapal_ext {lapal_ext.__version__}, Python {platform.python_version()}, {platform.platform()}",
        names,
        f"threads: {torch.get_num_threads()}; GPUs: {', '.join(devices) or 'none that torch sees'}",
    ]


def _kernels() -> list[str]:
    """Which kernels run, and why others do not."""
    from lapal_ext import ops

    info = ops.build_info()
    if info["native"]:
        lines = [f"CPU kernels: {info['instruction_set']}, compiled beside torch {info['compiled_torch']}"]
    else:
        lines = [f"CPU kernels: none ({info['reason']}); everything works, more slowly"]
        if "LAPAL_EXT_BACKEND" in os.environ:
            lines.append("  LAPAL_EXT_BACKEND is set; without it, kernels are loaded if there are any")
        else:
            lines.append("  To get them, install a C++ compiler and the build tools, and run in a clone of the source:")
            lines.append(
                "  LAPAL_EXT_REQUIRE_NATIVE=1 pip install --no-build-isolation --force-reinstall --no-deps --editable ."
            )
    cuda = info["cuda"]
    if cuda["loaded"]:
        lines.append(f"CUDA kernels: of CUDA {cuda['toolkit']}, for compute capability {cuda['architectures']}")
    else:
        lines.append(f"CUDA kernels: none ({cuda['reason']})")
    for device in ("cpu", "cuda"):
        served = {name: ops.backend(name, device) for name in sorted(ops.OPS)}
        native = [name for name, by in served.items() if by == "native"]
        reference = [name for name, by in served.items() if by == "reference"]
        lines.append(f"on {device}: {len(native)} of {len(served)} ops native")
        if native and reference:
            lines.append(f"  by torch itself: {', '.join(reference)}")
    return lines


def _extras() -> list[str]:
    """What is missing of each extra, according to the metadata of this package."""
    needed: dict[str, list[str]] = {}
    try:
        found = [_OPTIONAL.match(requirement) for requirement in requires("lapal_ext") or ()]
    except PackageNotFoundError:
        return ["lapal_ext is imported from a folder and not installed, so its extras are unknown"]
    for name, extra in (match.groups() for match in found if match):
        if extra not in _OF_DEVELOPERS and name != "lapal_ext":
            needed.setdefault(extra, []).append(name)
    lines = []
    for extra, names in needed.items():
        missing = [name for name in names if _version(name) == _MISSING]
        state = f'lacks {", ".join(missing)}: pip install "lapal_ext[{extra}]"' if missing else "complete"
        lines.append(f"extra {extra}: {state}")
    return lines


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _MISSING
