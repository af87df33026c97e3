"""``lapal-ext doctor`` says what is installed, and how to get what is missing."""

from importlib.metadata import PackageNotFoundError

import lapal_ext
from lapal_ext import backend, ops
from lapal_ext.cli import doctor, main
from lapal_ext.ops import OPS


def printed(capsys) -> list[str]:
    assert main(["doctor"]) == 0
    return capsys.readouterr().out.splitlines()


def test_it_counts_the_ops_with_kernels(capsys):
    served = [backend(name) for name in OPS]
    assert f"on cpu: {served.count('native')} of {len(OPS)} ops native" in printed(capsys)
    assert lapal_ext.__version__ in printed(capsys)[0]


def test_without_kernels_it_says_why_and_what_would_help(capsys, monkeypatch):
    info = {"native": False, "reason": "no compiler", "cuda": {"loaded": False, "reason": "no compiler"}}
    monkeypatch.setattr(ops, "build_info", lambda: info)
    monkeypatch.delenv("LAPAL_EXT_BACKEND", raising=False)
    lines = printed(capsys)
    assert "CPU kernels: none (no compiler); everything works, more slowly" in lines
    assert any("LAPAL_EXT_REQUIRE_NATIVE=1 pip install" in line for line in lines)
    assert "CUDA kernels: none (no compiler)" in lines


def test_cuda_kernels_are_described(capsys, monkeypatch):
    cuda = {"loaded": True, "toolkit": "13.0", "architectures": "90", "reason": ""}
    info = {"native": True, "instruction_set": "avx2", "compiled_torch": "2.14.1", "cuda": cuda}
    monkeypatch.setattr(ops, "build_info", lambda: info)
    monkeypatch.setattr(
        ops, "backend", lambda op, device: "reference" if op == "inner_products" and device == "cuda" else "native"
    )
    lines = printed(capsys)
    assert "CPU kernels: avx2, compiled beside torch 2.14.1" in lines
    assert "CUDA kernels: of CUDA 13.0, for compute capability 90" in lines
    assert f"on cuda: {len(OPS) - 1} of {len(OPS)} ops native" in lines
    assert "  by torch itself: inner_products" in lines


def test_a_missing_extra_comes_with_the_command_that_installs_it(capsys, monkeypatch):
    def version(name: str) -> str:
        if name in ("rich", "transformers"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    lines = printed(capsys)
    assert 'extra demo: lacks rich: pip install "lapal_ext[demo]"' in lines
    assert 'extra recipes: lacks transformers: pip install "lapal_ext[recipes]"' in lines
    assert "extra experiment: complete" in lines
    assert not any("extra lint" in line for line in lines)
