// Tensors in, params out: the argument checks and allocations that every binder shares. The only
// headers of torch used anywhere are those of its stable ABI.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "geometry.h"

namespace cnnkern {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Ints sizes_of(const Tensor& t) {
  auto s = t.sizes();
  return Ints(s.begin(), s.end());
}

inline DType dtype_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default:
      fail(op, name, " must be float32, float64, bfloat16 or float16, got ",
           torch::headeronly::toString(t.scalar_type()));
  }
}

// The second tensor must match the first in dtype and device.
inline void check_same(const char* op, const char* name, const Tensor& t, const char* ref_name,
                       const Tensor& ref) {
  if (t.is_cpu() != ref.is_cpu() || t.get_device_index() != ref.get_device_index())
    fail(op, name, " must be on the same device as ", ref_name);
  if (t.scalar_type() != ref.scalar_type())
    fail(op, name, " must have the dtype of ", ref_name, ", got ",
         torch::headeronly::toString(t.scalar_type()), " and ",
         torch::headeronly::toString(ref.scalar_type()));
}

inline void check_size_is(const char* op, const char* name, const Tensor& t, const Ints& want) {
  if (sizes_of(t) != want)
    fail(op, name, " must be ", to_string(want), ", got ", to_string(sizes_of(t)));
}

inline void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& input,
                       int64_t K) {
  if (!bias) return;
  check_same(op, "bias", *bias, "input", input);
  check_size_is(op, "bias", *bias, {K});
}

// True where the tensor's memory runs channels first: the layout that outputs then keep.
// A contiguous tensor is NCHW, whatever its channels. `cnnkern.ops.is_nhwc` is the same rule.
inline bool is_nhwc(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  const auto sizes = t.sizes(), strides = t.strides();
  return sizes[1] > 1 && strides[1] == 1 && strides[3] >= sizes[1] && strides[2] >= strides[3];
}

inline MemoryFormat format_of(bool nhwc) {
  return nhwc ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// True where the tensor's memory is exactly that of a dense tensor in this layout; the stride of a
// dimension of one element means nothing.
inline bool is_dense(const Tensor& t, bool nhwc) {
  if (nhwc && t.dim() != 4) return false;
  const auto sizes = t.sizes(), strides = t.strides();
  constexpr int kNhwc[] = {1, 3, 2, 0};
  int64_t stride = 1;
  for (int64_t i = 0; i < t.dim(); ++i) {
    const int64_t d = nhwc ? kNhwc[i] : t.dim() - 1 - i;
    if (sizes[d] != 1 && strides[d] != stride) return false;
    stride *= sizes[d];
  }
  return true;
}

// The tensor itself where it is dense in that layout already, else a copy. A call of the dispatcher
// that has nothing to do takes longer than a look at the strides.
inline Tensor dense(const Tensor& t, bool nhwc) {
  if (is_dense(t, nhwc)) return t;
  return torch::stable::contiguous(t, format_of(nhwc));
}

inline Tensor new_output(const Tensor& like, const Ints& sizes, bool nhwc,
                         std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::empty({sizes.data(), sizes.size()}, dtype ? *dtype : like.scalar_type(),
                              std::nullopt, like.device(), std::nullopt, format_of(nhwc));
}

}  // namespace cnnkern
