// The checks of pools that every device's binders share.
#pragma once
#include "check.h"

namespace cnnkern {

// What max_pool2d is to save; refuses offsets where a uint8 does not tell a window's elements
// apart.
inline void check_pool_save(const char* op, const std::string& save, const Ints& kernel_size) {
  if (save != "none" && save != "offsets" && save != "indices")
    fail(op, "save must be 'none', 'offsets' or 'indices', got '", save, "'");
  if (save == "offsets" && kernel_size[0] * kernel_size[1] > kMaxOffsets)
    fail(op, "save='offsets' needs a window of at most ", kMaxOffsets,
         " elements, got kernel_size ", to_string(kernel_size));
}

// Positions inside a plane are kept in 32 bits on the way.
inline void check_pool_plane(const char* op, const char* name, const Ints& size) {
  if (size[2] * size[3] > kMaxExtent)
    fail(op, name, " must have planes of less than 2^31 elements, got ", to_string(size));
}

inline void check_same_device(const char* op, const char* name, const Tensor& t,
                              const char* ref_name, const Tensor& ref) {
  if (t.is_cpu() != ref.is_cpu() || t.get_device_index() != ref.get_device_index())
    fail(op, name, " must be on the same device as ", ref_name);
}

inline void check_index_dtype(const char* op, const Tensor& indices, bool or_offsets) {
  if (indices.scalar_type() == ScalarType::Long) return;
  if (or_offsets && indices.scalar_type() == ScalarType::Byte) return;
  fail(op, "indices must be ", or_offsets ? "uint8 or " : "", "int64, got ",
       torch::headeronly::toString(indices.scalar_type()));
}

// The geometry of max_pool2d behind `indices`, which may come from ceil_mode or not.
inline PoolParams make_saved_pool_params(const char* op, const Ints& input_size,
                                         const Tensor& indices, const Ints& kernel_size,
                                         const Ints& stride, const Ints& padding,
                                         const Ints& dilation) {
  PoolParams p = make_pool_params(op, input_size, kernel_size, stride, padding, dilation, true);
  if (indices.scalar_type() == ScalarType::Byte && p.R * p.S > kMaxOffsets)
    fail(op, "indices must be int64 where a window has over ", kMaxOffsets,
         " elements, got uint8 for kernel_size ", to_string(kernel_size));
  const Ints got = sizes_of(indices);
  check_sizes(op, "indices", got, "[N, C, P, Q]");
  const int64_t floor_P = pool_out_size(p.H, p.pad_h, p.R, p.stride_h, p.dil_h, false);
  const int64_t floor_Q = pool_out_size(p.W, p.pad_w, p.S, p.stride_w, p.dil_w, false);
  const Ints ceil_mode{p.N, p.C, p.P, p.Q}, floor_mode{p.N, p.C, floor_P, floor_Q};
  if (got != ceil_mode && got != floor_mode)
    fail(op, "indices must be ", to_string(floor_mode), " or, in ceil_mode, ", to_string(ceil_mode),
         ", got ", to_string(got));
  p.P = got[2];
  p.Q = got[3];
  return p;
}

}  // namespace cnnkern
