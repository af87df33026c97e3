// Memory for results that take the place of earlier ones: the covariance of a posterior, the products of a tile.
//
// A fresh result of some megabytes can be fresh pages: the C library asks the system for them, gives them back when the
// result before is dropped, and the first touch of each is a fault. Where it does, at D = 768, that took six times as
// long as the ten labels that an update absorbs. So the block of a result comes here when the last tensor on it is
// gone, and goes out again for one of the same size.
//
// A block is either on its way, owned by one result, or waits here; few wait, and the oldest makes room. Any thread may
// drop a tensor: one that finds another at work here, or in the child of a fork a lock whose holder is not there, goes
// to the system instead of waiting.
//
// Limit: kKeptBytes that are held and not used.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <numeric>
#include <vector>

#include "cpu/simd/lanes.h"

#if defined(__GLIBC__)
// In torch since 2.11, one release after the stable ABI that we build for: a null pointer in torch 2.10.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace lapal_ext {

class RecycledMemory {
 public:
  static constexpr size_t kSmallestBytes = size_t(1) << 16;  // below, the C library has room on pages it holds

  // A block that nobody else owns, or a null pointer.
  void* take(size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) {
      for (size_t i = n_waiting_; i-- > 0;) {  // the one that was used last is nearest
        if (waiting_[i].bytes == bytes) {
          void* data = waiting_[i].data;
          remove(i);
          return data;
        }
      }
    }
    return ::operator new(bytes, kAlignment, std::nothrow);
  }

  void give_back(void* data, size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || bytes > kKeptBytes) {
      ::operator delete(data, kAlignment);
      return;
    }
    while (n_waiting_ == kKeptBlocks || kept_bytes_ + bytes > kKeptBytes) {
      ::operator delete(waiting_[0].data, kAlignment);
      remove(0);
    }
    waiting_[n_waiting_++] = {data, bytes};
    kept_bytes_ += bytes;
  }

  static RecycledMemory& instance() {
    static RecycledMemory& memory = *new RecycledMemory;  // tensors outlive what is destroyed when the process ends
    return memory;
  }

 private:
  static constexpr size_t kKeptBlocks = 4;  // mean and covariance, of two posteriors in turn
  static constexpr size_t kKeptBytes = size_t(1) << 27;
  static constexpr std::align_val_t kAlignment{kBlockBytes};

  struct Block {
    void* data;
    size_t bytes;
  };

  void remove(size_t index) {
    kept_bytes_ -= waiting_[index].bytes;
    --n_waiting_;
    for (size_t i = index; i < n_waiting_; ++i) {
      waiting_[i] = waiting_[i + 1];
    }
  }

  std::mutex mutex_;
  std::array<Block, kKeptBlocks> waiting_{};  // the oldest first
  size_t n_waiting_ = 0;
  size_t kept_bytes_ = 0;
};

// As new_empty: an uninitialised contiguous tensor of the dtype of `like`, which lies on the CPU.
inline torch::stable::Tensor recycled_empty(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes) {
#if defined(__GLIBC__)
  const size_t numbers = std::accumulate(sizes.begin(), sizes.end(), size_t(1),
                                         [](size_t product, int64_t size) { return product * size_t(size); });
  const size_t bytes = numbers * like.element_size();
  if (torch_from_blob != nullptr && bytes >= RecycledMemory::kSmallestBytes) {
    constexpr int32_t kNoIndex = -1;  // "cpu" and not "cpu:0"
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size() - 1; i > 0; --i) {
      strides[i - 1] = strides[i] * sizes[i];
    }
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    if (void* data = RecycledMemory::instance().take(bytes)) {
      const auto give_back = [](void* block, void* size) {
        RecycledMemory::instance().give_back(block, reinterpret_cast<size_t>(size));
      };
      AtenTensorHandle handle;
      if (torch_from_blob(data, int64_t(sizes.size()), sizes.data(), strides.data(), 0, dtype,
                          aoti_torch_device_type_cpu(), kNoIndex, &handle, aoti_torch_layout_strided(), nullptr, 0,
                          give_back, reinterpret_cast<void*>(bytes)) == TORCH_SUCCESS) {
        return torch::stable::Tensor(handle);
      }
      give_back(data, reinterpret_cast<void*>(bytes));
    }
  }
#endif
  return torch::stable::new_empty(like, sizes);  // and its error, where there is no memory
}

}  // namespace lapal_ext
