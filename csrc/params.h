// The geometry of every op as plain structs, for host and device code alike; no torch here.
// Letters, as in CUTLASS: input N C H W, weight K C/groups R S, output N K P Q.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define CNNKERN_HOST_DEVICE __host__ __device__
#else
#define CNNKERN_HOST_DEVICE
#endif

namespace cnnkern {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };
enum class PaddingMode : int { kZeros, kReflect, kReplicate, kCircular };
enum class ConvPass : int { kFprop, kDgrad, kWgrad };
enum class Activation : int { kNone, kRelu, kSigmoid, kTanh, kGelu, kSilu };
enum class PoolKind : int { kNone, kMax, kAvg };

// Storage of the 16-bit types; arithmetic on them happens in float32.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

struct ConvParams {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t P, Q;
  int64_t stride_h, stride_w;
  int64_t pad_left, pad_right, pad_top, pad_bottom;
  int64_t dil_h, dil_w;
  int64_t groups;
  PaddingMode mode;
};

// Window (p, q) covers the rows p*stride_h - pad_h + r*dil_h, r < R, that lie inside the plane.
// Adaptive pools have no fixed window: rows floor(p*H/P) .. ceil((p+1)*H/P).
struct PoolParams {
  int64_t N, C, H, W;
  int64_t R, S;
  int64_t P, Q;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dil_h, dil_w;
  bool adaptive;
  bool count_include_pad;
  int64_t divisor_override;  // 0: none
};

// A max pool saves the offset of its maximum inside the window as a uint8: of this many elements.
constexpr int64_t kMaxOffsets = 256;

// Number of windows of `k` taps (dilated by `dil`) that fit into `size + pad`; negative: none fits.
CNNKERN_HOST_DEVICE inline int64_t out_size(int64_t size, int64_t pad, int64_t k, int64_t stride,
                                            int64_t dil) {
  const int64_t room = size + pad - (dil * (k - 1) + 1);
  return room < 0 ? -1 : room / stride + 1;
}

// Where padded coordinate i lands inside [0, size); -1: on a zero, or beyond what the mode can pad.
CNNKERN_HOST_DEVICE inline int64_t padded_index(int64_t i, int64_t size, PaddingMode mode) {
  if (i >= 0 && i < size) return i;
  switch (mode) {
    case PaddingMode::kReflect: i = i < 0 ? -i : 2 * (size - 1) - i; break;
    case PaddingMode::kReplicate: i = i < 0 ? 0 : size - 1; break;
    case PaddingMode::kCircular: i = i < 0 ? i + size : i - size; break;
    default: return -1;
  }
  return i >= 0 && i < size ? i : -1;
}

}  // namespace cnnkern
