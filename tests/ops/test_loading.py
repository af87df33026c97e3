"""What runs, and why: ``backend`` and ``build_info``."""

import pytest
import torch

import lapal_ext
from lapal_ext.ops.loading import _why_no_cuda
from tests.native import NATIVE_OPS


@pytest.mark.parametrize("name", lapal_ext.ops.OPS)
def test_backend_tells_which_ops_are_compiled(name: str) -> None:
    native = lapal_ext.build_info()["native"] and name in NATIVE_OPS["cpu"]
    assert (
        lapal_ext.backend(name) == lapal_ext.backend(name, torch.device("cpu")) == ("native" if native else "reference")
    )
    assert lapal_ext.backend(name, "mps") == "reference"
    native = lapal_ext.build_info()["cuda"]["loaded"] and name in NATIVE_OPS["cuda"]
    assert lapal_ext.backend(name, "cuda") == ("native" if native else "reference")


@pytest.mark.parametrize("op", ["nothing", "", [], None, 3])
def test_an_unknown_op_is_refused(op: object) -> None:
    with pytest.raises(ValueError, match="op must be one of 'absorb_labels'"):
        lapal_ext.backend(op)


@pytest.mark.parametrize("device", ["nowhere", "", -1, [], "meta"])
def test_a_device_that_runs_no_ops_is_refused(device: object) -> None:
    with pytest.raises(ValueError, match="device must be one that can run ops"):
        lapal_ext.backend("utility", device)


def test_build_info_says_why_there_are_no_kernels() -> None:
    info = lapal_ext.build_info()
    assert info["native"] is (info["reason"] == "")
    assert info["torch"] == torch.__version__
    assert ("instruction_set" in info) is info["native"]


def test_build_info_says_why_there_are_no_cuda_kernels() -> None:
    cuda = lapal_ext.build_info()["cuda"]
    assert cuda["loaded"] is (cuda["reason"] == "")
    assert bool(cuda["toolkit"]) is bool(cuda["architectures"])
    cuda["loaded"] = "changed"
    assert lapal_ext.build_info()["cuda"]["loaded"] != "changed"


@pytest.mark.parametrize("runs", ["13.0", "13.2", "13"])
def test_cuda_kernels_run_with_every_cuda_of_their_major_version(runs: str) -> None:
    assert _why_no_cuda("13.0", runs) == ""


def test_cuda_kernels_of_another_major_version_are_refused() -> None:
    for runs in ("12.8", "14.0", "1.3"):
        reason = _why_no_cuda("13.0", runs)
        assert "built with CUDA 13.0" in reason
        assert f"runs CUDA {runs}" in reason
    assert _why_no_cuda("13.0", None) == f"torch {torch.__version__} has no CUDA"
