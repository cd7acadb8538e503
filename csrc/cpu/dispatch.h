// From the runtime dtype to the storage type that the kernels are templates of.
#pragma once
#include "params.h"

namespace cnnkern {

// Calls body(T{}) with the storage type of `dtype`.
template <typename F>
void with_storage_type(DType dtype, const F& body) {
  switch (dtype) {
    case DType::kFloat32: return body(float{});
    case DType::kFloat64: return body(double{});
    case DType::kBFloat16: return body(bfloat16{});
    case DType::kFloat16: return body(float16{});
  }
}

}  // namespace cnnkern
