// Calls a generic lambda with the C++ type of a tensor's dtype:
//
//   dispatch_floating(cov.scalar_type(), "rank_one_update", [&](auto tag) {
//     using scalar_t = typename decltype(tag)::type;
//     rank_one_update_kernel<scalar_t>(cov.const_data_ptr<scalar_t>(), ...);
//   });
//
// It is a function: THO_DISPATCH_V2 of torch is a macro, which fails if its body has commas.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>
#include <utility>

#include "shared/half_precision.h"

namespace lapal_ext {

// A value that stands for a type.
template <class T>
struct Tag {
  using type = T;
};

// The type that kernels read for a dtype: half precision is plain bits.
template <class S>
using Bits = std::conditional_t<std::is_same_v<S, torch::headeronly::BFloat16>, Bfloat16Bits,
                                std::conditional_t<std::is_same_v<S, torch::headeronly::Half>, Float16Bits, S>>;

// The dtypes that kernels compute in.
template <class Body>
void dispatch_floating(torch::headeronly::ScalarType dtype, const char* op, Body&& body) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return body(Tag<float>{});
    case ScalarType::Double:
      return body(Tag<double>{});
    default:
      STD_TORCH_CHECK(false, op, ": expected float32 or float64, got ", torch::headeronly::toString(dtype));
  }
}

// The dtypes that a pool may be stored in: kernels read half precision and compute in float32.
template <class Body>
void dispatch_storage(torch::headeronly::ScalarType dtype, const char* op, Body&& body) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::BFloat16:
      return body(Tag<torch::headeronly::BFloat16>{});
    case ScalarType::Half:
      return body(Tag<torch::headeronly::Half>{});
    case ScalarType::Float:
    case ScalarType::Double:
      return dispatch_floating(dtype, op, std::forward<Body>(body));
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(dtype));
  }
}

}  // namespace lapal_ext
