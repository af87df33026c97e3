// The Python module lapal_ext._C. Importing it registers the CPU kernels: each cpu/ops/<op>.cpp has its own
// STABLE_TORCH_LIBRARY_IMPL block. pybind11 binds only build_info(), which is not an operator.
#include <pybind11/pybind11.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/version.h>

#include <cstdint>
#include <string>

#include "cpu/simd/clones.h"

namespace {

// torch packs a version as one byte each of major, minor and patch, from the top.
std::string version_text(uint64_t version) {
  return std::to_string(version >> 56) + "." + std::to_string((version >> 48) & 0xff);
}

// The variant that the dynamic loader picks from each kernel's target_clones on this processor.
const char* instruction_set() {
#if LAPAL_HAS_CLONES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) {
    return "avx512";
  }
  if (__builtin_cpu_supports("x86-64-v3")) {
    return "avx2";
  }
#endif
  return "baseline";
}

// How the kernels of _cuda were built, or why they were not. Python decides whether to load them.
pybind11::dict cuda_info() {
  pybind11::dict info;
  info["toolkit"] = LAPAL_EXT_CUDA_TOOLKIT;
  info["architectures"] = LAPAL_EXT_CUDA_ARCHITECTURES;
  info["reason"] = LAPAL_EXT_CUDA_REASON;
  return info;
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiled_torch"] = TORCH_VERSION;
  info["target_version"] = version_text(TORCH_TARGET_VERSION);
  info["runtime_abi"] = version_text(aoti_torch_abi_version());
  info["compiler"] = __VERSION__;
  info["build_type"] = LAPAL_EXT_BUILD_TYPE;
  info["flags"] = LAPAL_EXT_FLAGS;
  info["instruction_set"] = instruction_set();
  info["cuda"] = cuda_info();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of lapal_ext; import torch first.";
  module.def("build_info", &build_info, "How this module was built, and what it runs on.");
}
