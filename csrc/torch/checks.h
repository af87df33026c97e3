// What a launcher checks before it takes pointers: only what protects memory.
//
// Python has already validated the call and told the user about it in full; these checks hold when somebody
// calls torch.ops.lapal_ext directly. They throw, so never call them inside parallel_for: an exception there
// crosses a C boundary.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace lapal_ext {

// In an expected shape: any size will do.
constexpr int64_t kAnySize = -1;

namespace detail {

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "(";
  for (const int64_t size : sizes) {
    if (text.size() > 1) {
      text += ", ";
    }
    text += size == kAnySize ? std::string("*") : std::to_string(size);
  }
  return text + ")";
}

}  // namespace detail

inline void check_dim(const torch::stable::Tensor& tensor, int64_t dim, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.dim() == dim, op, ": ", argument, " must have ", dim, " dimensions, got shape ",
                  detail::shape_text(tensor.sizes()));
}

inline void check_shape(const torch::stable::Tensor& tensor, std::initializer_list<int64_t> expected, const char* op,
                        const char* argument) {
  const auto sizes = tensor.sizes();
  bool matches = sizes.size() == expected.size();
  size_t axis = 0;
  for (const int64_t size : expected) {
    matches = matches && (size == kAnySize || size == sizes[axis]);
    ++axis;
  }
  STD_TORCH_CHECK(matches, op, ": ", argument, " must have shape ", detail::shape_text(expected), ", got ",
                  detail::shape_text(sizes));
}

inline void check_dtype(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType expected, const char* op,
                        const char* argument) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, op, ": ", argument, " must have dtype ",
                  torch::headeronly::toString(expected), ", got ", torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_contiguous(const torch::stable::Tensor& tensor, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", argument, " must be contiguous, got strides ",
                  detail::shape_text(tensor.strides()));
}

inline void check_same_device(const torch::stable::Tensor& tensor, const torch::stable::Tensor& other, const char* op,
                              const char* argument, const char* other_argument) {
  STD_TORCH_CHECK(tensor.device() == other.device(), op, ": ", argument, " must be on the same device as ",
                  other_argument);
}

// Every element of a contiguous int64 tensor must lie in [0, size): kernels use them as offsets.
inline void check_index_range(const torch::stable::Tensor& indices, int64_t size, const char* op,
                              const char* argument) {
  const int64_t* values = indices.const_data_ptr<int64_t>();
  const int64_t count = indices.numel();
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) {
    inside &= values[i] >= 0 && values[i] < size;
  }
  STD_TORCH_CHECK(inside, op, ": ", argument, " must lie in [0, ", size, ")");
}

}  // namespace lapal_ext
