"""What the package weighs: its wheels, its import beside that of torch, and what pip downloads for it.

    python3 -m tests.packaging.sizes dist/*/*.whl                        # wheels and import
    python3 -m tests.packaging.sizes dist/*/*.whl --torch 2.13.0         # also downloads a torch, and counts

Times are processor time, medians of five processes; memory is resident. Every line ends with what is there beyond need,
as a share of the need:

- of a wheel, its texts for readers; its kernels must be stripped;
- of the import, what it costs after `import torch`, with NumPy and safetensors;
- of the downloads, this package, beside torch and the other dependencies that pyproject.toml names.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[2]

IMPORTS = """
import json, time
def spent():
    with open("/proc/self/statm") as file:
        return time.process_time(), 4096 * int(file.read().split()[1])
before = spent()
import torch
between = spent()
import lapal_ext
after = spent()
print(json.dumps([between[0] - before[0], between[1] - before[1], after[0] - between[0], after[1] - between[1]]))
"""


def wheel_line(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as file:
        kernels = [entry for entry in file.infolist() if entry.filename.endswith(".so")]
        assert not any(b".symtab" in file.read(entry) for entry in kernels), f"{wheel.name}: kernels are not stripped"
        texts = sum(entry.compress_size for entry in file.infolist() if entry.filename.endswith("/README.md"))
        packed, unpacked = (sum(getattr(entry, size) for entry in kernels) for size in ("compress_size", "file_size"))
    whole = wheel.stat().st_size
    return (
        f"{wheel.name}: {megabytes(whole)}; kernels {megabytes(packed)}, unpacked {megabytes(unpacked)}; "
        f"beyond need {share(texts, whole - texts)}"
    )


def import_line() -> str:
    with tempfile.TemporaryDirectory() as folder:  # modules are compiled once, as pip does
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        run = functools.partial(subprocess.run, env=environment, stdout=subprocess.PIPE, check=True)
        _, *runs = (json.loads(run([sys.executable, "-c", IMPORTS]).stdout) for _ in range(6))
    torch_s, torch_bytes, our_s, our_bytes = (statistics.median(column) for column in zip(*runs, strict=True))
    ours = f"{1e3 * our_s:.0f} ms, {megabytes(our_bytes)}"
    of_torch = f"{1e3 * torch_s:.0f} ms, {megabytes(torch_bytes)}"
    beyond = f"{share(our_s, torch_s)} of time, {share(our_bytes, torch_bytes)} of memory"
    return f"import lapal_ext: {ours}; import torch before it: {of_torch}; beyond need {beyond}"


def download_line(torch: str, wheel: Path) -> str:
    """What pip downloads for the package, which is the wheel, and for its dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder]
        subprocess.run([*pip, *project["dependencies"], f"torch=={torch}"], check=True)
        sizes = {file.name: file.stat().st_size for file in Path(folder).iterdir()}
    of_torch = sum(size for name, size in sizes.items() if name.startswith("torch-"))
    ours = sum(size for name, size in sizes.items() if name.startswith(("numpy-", "safetensors-")))
    rest = sum(sizes.values()) - of_torch - ours
    return (
        f"downloads: torch {torch} {megabytes(of_torch)}, what it needs {megabytes(rest)}, "
        f"numpy and safetensors {megabytes(ours)}, the wheel {megabytes(wheel.stat().st_size)}; "
        f"beyond need {share(wheel.stat().st_size, sum(sizes.values()))}"
    )


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def share(size: float, need: float) -> str:
    return f"{100 * size / need:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--torch", help="the release to count the downloads with")
    options = parser.parse_args()
    for wheel in options.wheels:
        print(wheel_line(wheel))
    print(import_line())
    if options.torch:
        print(download_line(options.torch, options.wheels[0]))


if __name__ == "__main__":
    main()
