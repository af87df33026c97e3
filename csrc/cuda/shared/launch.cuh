// The device and stream of a call, and the sizes of its launches. Launchers include this file; kernels do not.
//
//   const Launch launch(logits);   // from here to the end of the scope, the tensor's device is the current one
//   LAPAL_LAUNCH((f_kernel<scalar_t>), launch.grid(n_tiles), kBlockSize, shared_bytes, launch.stream(), ...);
//   LAPAL_CHECK_LAUNCH();
//
// and at the end of the file:
//
//   LAPAL_CUDA_IMPL(m) { m.impl("f", TORCH_BOX(&f_cuda)); }
//
// If g++ compiles the launcher for the emulator, it takes CPU tensors and is registered as lapal_ext_emulated::f.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "cuda/shared/portability.h"
#include "torch/checks.h"
#include "torch/dispatch.h"

#if defined(__CUDACC__)
#define LAPAL_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CUDA, m)
#define LAPAL_CHECK_LAUNCH() STD_CUDA_KERNEL_LAUNCH_CHECK()
#else
#define LAPAL_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(lapal_ext_emulated, CPU, m)
#define LAPAL_CHECK_LAUNCH()
#endif

namespace lapal_ext {

#if defined(__CUDACC__)

class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(device_), stream_(nullptr) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream_));
  }

  cudaStream_t stream() const {
    return static_cast<cudaStream_t>(stream_);
  }

  // The number of blocks for `n_tiles` in grid-stride loops: enough to fill the device and to balance its blocks.
  unsigned grid(int64_t n_tiles) const {
    constexpr int64_t kBlocksPerMultiprocessor = 32;  // the largest number that can be resident
    return unsigned(std::min(n_tiles, kBlocksPerMultiprocessor * attribute(cudaDevAttrMultiProcessorCount)));
  }

  // The most shared memory that a block may be given.
  int64_t max_shared_bytes() const {
    return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  }

  int64_t cache_bytes() const {
    return attribute(cudaDevAttrL2CacheSize);
  }

  // Must be called before a launch with more than 48 KiB of dynamic shared memory.
  template <class Kernel>
  void allow_shared_bytes(Kernel kernel, int64_t bytes) const {
    STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  }

 private:
  int64_t attribute(cudaDeviceAttr which) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device_));
    return value;
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

#else

// A tiny device, so that small problems reach the second round of loops and the limits.
class Launch {
 public:
  explicit Launch(const torch::stable::Tensor&) {}

  cudaStream_t stream() const {
    return nullptr;
  }
  unsigned grid(int64_t n_tiles) const {
    return unsigned(std::min<int64_t>(n_tiles, 3));
  }
  int64_t max_shared_bytes() const {
    return emulator::kMaxSharedBytes;
  }
  int64_t cache_bytes() const {
    return 1 << 20;
  }
  template <class Kernel>
  void allow_shared_bytes(Kernel, int64_t) const {}
};

#endif

}  // namespace lapal_ext
