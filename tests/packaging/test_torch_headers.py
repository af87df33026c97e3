"""The native sources compile against the headers of every release of torch that is promised, from 2.10 on.

The quick test compares names, since no machine has all those headers. The slow one downloads and compiles:

    pytest -m slow tests/packaging/test_torch_headers.py
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.packaging.torch_headers import CSRC, RELEASES, complaints, headers_of, sources

# What csrc/ may use of torch: names that the headers of 2.10.0 have, which the slow test checks.
OLDEST = {
    "AtenTensorHandle", "AOTITorchError", "STABLE_TORCH_LIBRARY_IMPL", "STD_CUDA_CHECK", "STD_CUDA_KERNEL_LAUNCH_CHECK",
    "STD_TORCH_CHECK", "TORCH_BOX", "TORCH_ERROR_CODE_CHECK", "TORCH_SUCCESS", "TORCH_VERSION",
    "aoti_torch_abi_version", "aoti_torch_device_type_cpu", "aoti_torch_get_current_cuda_stream",
    "aoti_torch_get_dtype",
    "aoti_torch_layout_strided",
    "torch::headeronly::BFloat16", "torch::headeronly::Half", "torch::headeronly::ScalarType",
    "torch::headeronly::toString", "torch::stable::Device", "torch::stable::Tensor",
    "torch::stable::accelerator::DeviceGuard", "torch::stable::contiguous", "torch::stable::get_num_threads",
    "torch::stable::new_empty", "torch::stable::new_zeros", "torch::stable::parallel_for",
}  # fmt: skip
OURS = {
    "TORCH_TARGET_VERSION",  # which the build defines
    "torch_from_blob",  # which torch/recycled_memory.h declares itself, since 2.10 lacks it
}
_NAMES = re.compile(
    r"\b(?:aoti_torch_\w+|torch_\w+|(?:STD|STABLE|TORCH|AOTI)_\w+|AOTI\w+|Aten\w+|torch::[a-z]\w*::[\w:]+)"
)


def names_used(text: str) -> set[str]:
    """Names of torch in C++ code, without members of enumerations and what is in comments or includes."""
    code = re.sub(r"//.*|^#include.*", "", text, flags=re.MULTILINE)
    return {re.sub(r"(::ScalarType)::\w+$", r"\1", name) for name in _NAMES.findall(code)}


@pytest.mark.parametrize("folder", ["cpu", "cuda", "torch"])
def test_sources_use_only_what_the_oldest_torch_has(folder: str) -> None:
    files = [path for path in (CSRC / folder).rglob("*") if path.suffix in {".h", ".cuh", ".cpp", ".cu"}]
    used = set().union(*(names_used(path.read_text(encoding="utf-8")) for path in files))
    assert used
    assert used - OLDEST - OURS == set(), "not known to be in torch 2.10: see the slow test of this file"


@pytest.mark.parametrize(
    "code", ["STABLE_TORCH_ERROR_CODE_CHECK(f());", "aoti_torch_new(x)", "torch::stable::from_blob(x)", "torch_new(x)"]
)
def test_a_later_name_is_found(code: str) -> None:
    assert len(names_used(code) - OLDEST - OURS) == 1


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_sources_compile(release: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    assert compiler
    headers = headers_of(release, tmp_path)
    if release == RELEASES[0]:
        text = "\n".join(path.read_text(encoding="utf-8") for path in headers.rglob("*.h"))
        assert {name for name in OLDEST if not re.search(rf"\b{name.rpartition('::')[2]}\b", text)} == set()
    for source in sources():
        assert complaints(compiler, source, headers) == ""
