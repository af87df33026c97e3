"""What the package weighs: its wheels, its import beside that of torch, and what pip downloads for it.

    python3 -m tests.packaging.sizes dist/*/*.whl                        # wheels and import
    python3 -m tests.packaging.sizes dist/*/*.whl --torch 2.13.0         # also downloads a torch, and counts

Times are processor time, medians of five processes; memory is resident.
"""

import argparse
import json
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
    packed, unpacked = (sum(getattr(entry, size) for entry in kernels) for size in ("compress_size", "file_size"))
    return (
        f"{wheel.name}: {megabytes(wheel.stat().st_size)}; kernels {megabytes(packed)}, unpacked {megabytes(unpacked)}"
    )


def import_line() -> str:
    commands = [[sys.executable, "-c", IMPORTS]] * 5
    runs = [json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for command in commands]
    torch_s, torch_bytes, our_s, our_bytes = (statistics.median(column) for column in zip(*runs, strict=True))
    ours = f"{1e3 * our_s:.0f} ms, {megabytes(our_bytes)}"
    return f"import lapal_ext: {ours}; import torch before it: {1e3 * torch_s:.0f} ms, {megabytes(torch_bytes)}"


def download_line(torch: str) -> str:
    """What pip downloads for the package's dependencies."""
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
        f"numpy and safetensors {megabytes(ours)}"
    )


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--torch", help="the release to count the downloads with")
    options = parser.parse_args()
    for wheel in options.wheels:
        print(wheel_line(wheel))
    print(import_line())
    if options.torch:
        print(download_line(options.torch))


if __name__ == "__main__":
    main()
