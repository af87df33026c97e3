// Memory for results that replace earlier ones, such as the covariance of a posterior.
//
// A fresh result of some megabytes is on fresh pages: the C library gets them from the system, returns them when the
// previous result is freed, and the first write to each page is a fault. At D = 768 the faults took six times as long
// as absorbing ten labels. So the block of a freed result is kept here and used for the next result of the same size.
//
// A block belongs to one result or is kept here. Few blocks are kept; a new one replaces the oldest. Any thread may
// free a tensor. A thread that finds the lock taken, for example in the child of a fork, calls the system allocator
// instead of waiting.
//
// Limit: up to kKeptBytes are held without being used.
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

#if defined(__GLIBC__)
// torch has this function since 2.11. The build targets the ABI of 2.10, where the pointer is null.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace lapal_ext {

class RecycledMemory {
 public:
  static constexpr size_t kSmallestBytes = size_t(1) << 16;  // smaller results are on pages that the C library keeps

  // A block that belongs to the caller, or a null pointer.
  void* take(size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) {
      for (size_t i = n_kept_; i-- > 0;) {  // the block that was used last is most likely in cache
        if (kept_[i].bytes == bytes) {
          void* data = kept_[i].data;
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
    while (n_kept_ == kKeptBlocks || kept_bytes_ + bytes > kKeptBytes) {
      ::operator delete(kept_[0].data, kAlignment);
      remove(0);
    }
    kept_[n_kept_++] = {data, bytes};
    kept_bytes_ += bytes;
  }

  static RecycledMemory& instance() {
    static RecycledMemory& memory =
        *new RecycledMemory;  // never destroyed: tensors may be freed while the process ends
    return memory;
  }

 private:
  static constexpr size_t kKeptBlocks = 4;  // mean and covariance of two posteriors
  static constexpr size_t kKeptBytes = size_t(1) << 27;
  static constexpr std::align_val_t kAlignment{64};  // an AVX-512 register

  struct Block {
    void* data;
    size_t bytes;
  };

  void remove(size_t index) {
    kept_bytes_ -= kept_[index].bytes;
    --n_kept_;
    for (size_t i = index; i < n_kept_; ++i) {
      kept_[i] = kept_[i + 1];
    }
  }

  std::mutex mutex_;
  std::array<Block, kKeptBlocks> kept_{};  // the oldest first
  size_t n_kept_ = 0;
  size_t kept_bytes_ = 0;
};

// Like new_empty: an uninitialised contiguous tensor with the dtype of `like`, which is on the CPU.
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
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
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
  return torch::stable::new_empty(like, sizes);  // which raises if there is no memory
}

}  // namespace lapal_ext
