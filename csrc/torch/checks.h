// Checks that arguments/<op>.h is made of: only what protects memory.
//
// Python validates a call in full. These checks also hold for calls of torch.ops.lapal_ext that bypass Python. They
// throw, so they must not be called inside parallel_for.
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

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace detail {

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "(";
  for (const int64_t size : sizes) {
    if (text.size() > 1) {
      text += ", ";
    }
    text += std::to_string(size);
  }
  return text + ")";
}

}  // namespace detail

inline void check_dim(const Tensor& tensor, int64_t dim, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.dim() == dim, op, ": ", argument, " must have ", dim, " dimensions, got shape ",
                  detail::shape_text(tensor.sizes()));
}

inline void check_shape(const Tensor& tensor, std::initializer_list<int64_t> expected, const char* op,
                        const char* argument) {
  const auto sizes = tensor.sizes();
  bool matches = sizes.size() == expected.size();
  size_t axis = 0;
  for (const int64_t size : expected) {
    matches = matches && size == sizes[axis];
    ++axis;
  }
  STD_TORCH_CHECK(matches, op, ": ", argument, " must have shape ", detail::shape_text(expected), ", got ",
                  detail::shape_text(sizes));
}

inline void check_dtype(const Tensor& tensor, ScalarType expected, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, op, ": ", argument, " must have dtype ",
                  torch::headeronly::toString(expected), ", got ", torch::headeronly::toString(tensor.scalar_type()));
}

// The checks of one call: every tensor lies on the device of the first.
class TensorChecks {
 public:
  TensorChecks(const char* op, const Tensor& first, const char* first_argument)
      : op_(op), device_(first.device()), first_argument_(first_argument) {}

  void operator()(const Tensor& tensor, std::initializer_list<int64_t> shape, ScalarType dtype,
                  const char* argument) const {
    check_shape(tensor, shape, op_, argument);
    check_dtype(tensor, dtype, op_, argument);
    STD_TORCH_CHECK(tensor.device() == device_, op_, ": ", argument, " must be on the same device as ",
                    first_argument_);
  }

 private:
  const char* op_;
  const torch::stable::Device device_;
  const char* first_argument_;
};

// Every element of a contiguous int64 tensor must lie in [0, size): kernels use them as offsets.
inline void check_index_range(const Tensor& indices, int64_t size, const char* op, const char* argument) {
  const int64_t* values = indices.const_data_ptr<int64_t>();
  const int64_t count = indices.numel();
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) {
    inside &= values[i] >= 0 && values[i] < size;
  }
  STD_TORCH_CHECK(inside, op, ": ", argument, " must lie in [0, ", size, ")");
}

}  // namespace lapal_ext
