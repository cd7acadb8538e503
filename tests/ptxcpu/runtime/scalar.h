// Scalar arithmetic used by translated kernels: bit casts, half/bf16/tf32, PTX integer helpers.
// Everything here is a pure function; nothing knows about threads or memory.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptxcpu {

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;
typedef __int128 s128;
typedef unsigned __int128 u128;

#define PTX_INLINE static inline __attribute__((always_inline))

// <algorithm> would take longer to compile than most kernels.
template <class T>
PTX_INLINE T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
PTX_INLINE T max(T a, T b) {
  return a < b ? b : a;
}

// ---- bit casts. Registers are kept as unsigned integers; arithmetic goes through these.
PTX_INLINE f32 as_f32(u32 x) {
  f32 f;
  memcpy(&f, &x, 4);
  return f;
}
PTX_INLINE f64 as_f64(u64 x) {
  f64 f;
  memcpy(&f, &x, 8);
  return f;
}
PTX_INLINE u32 bits(f32 x) {
  u32 u;
  memcpy(&u, &x, 4);
  return u;
}
PTX_INLINE u64 bits(f64 x) {
  u64 u;
  memcpy(&u, &x, 8);
  return u;
}

template <class T>
PTX_INLINE T load_as(const void* p) {
  T v;
  memcpy(&v, p, sizeof(T));
  return v;
}
template <class T>
PTX_INLINE void store_as(void* p, T v) {
  memcpy(p, &v, sizeof(T));
}

// ---- 16-bit floats
PTX_INLINE f32 f16_to_f32(u16 h) {
  _Float16 x;
  memcpy(&x, &h, 2);
  return (f32)x;
}
PTX_INLINE u16 f32_to_f16(f32 f) {
  _Float16 x = (_Float16)f;
  u16 h;
  memcpy(&h, &x, 2);
  return h;
}
PTX_INLINE u16 f64_to_f16(f64 d) {
  _Float16 x = (_Float16)d;
  u16 h;
  memcpy(&h, &x, 2);
  return h;
}
PTX_INLINE f32 bf16_to_f32(u16 h) { return as_f32((u32)h << 16); }
PTX_INLINE bool is_nan_bits(u32 u) { return (u & 0x7fffffff) > 0x7f800000; }
PTX_INLINE u16 f32_to_bf16(f32 f) {
  u32 u = bits(f);
  return is_nan_bits(u) ? 0x7fff : (u16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
PTX_INLINE u16 f32_to_bf16_rz(f32 f) {
  u32 u = bits(f);
  return is_nan_bits(u) ? 0x7fff : (u16)(u >> 16);
}
PTX_INLINE u16 f32_to_f16_rz(f32 f) {
  u16 h = f32_to_f16(f);
  return std::fabs(f16_to_f32(h)) > std::fabs(f) ? (u16)(h - 1) : h;
}
// double -> float rounding to odd, so that a second rounding to bf16 is exact
PTX_INLINE f32 round_to_odd(f64 d) {
  f32 f = (f32)d;
  if ((f64)f == d || std::isnan(d) || std::isinf(f)) return f;
  u32 u = bits(f);
  if (std::fabs((f64)f) > std::fabs(d)) u--;
  return as_f32(u | 1);
}
PTX_INLINE u16 f64_to_bf16(f64 d) { return f32_to_bf16(round_to_odd(d)); }

// ---- tf32: f32 with a 10-bit mantissa
PTX_INLINE u32 f32_to_tf32_rna(f32 f) {
  u32 u = bits(f);
  return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & 0xffffe000u;
}
PTX_INLINE u32 f32_to_tf32_rn(f32 f) {
  u32 u = bits(f);
  return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0xfff + ((u >> 13) & 1)) & 0xffffe000u;
}
PTX_INLINE f32 tf32_to_f32(u32 u) {
  return as_f32(u & 0xffffe000u);
}  // the unit ignores the low bits

// ---- float modifiers and comparisons
template <class T>
PTX_INLINE T saturate(T x) {
  return x >= 0 ? (x <= 1 ? x : (T)1) : (T)0;
}
PTX_INLINE f32 flush(f32 x) {
  u32 u = bits(x);
  return (u & 0x7f800000) ? x : as_f32(u & 0x80000000u);
}
template <class T>
PTX_INLINE T fmin_ptx(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return std::signbit(a) ? (a <= b ? a : b) : (b <= a ? b : a);
}
template <class T>
PTX_INLINE T fmax_ptx(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return std::signbit(a) ? (b >= a ? b : a) : (a >= b ? a : b);
}
template <class T>
PTX_INLINE T fmin_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? (T)NAN : fmin_ptx(a, b);
}
template <class T>
PTX_INLINE T fmax_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? (T)NAN : fmax_ptx(a, b);
}
template <class T>
PTX_INLINE T relu(T x) {
  return std::isnan(x) ? x : (x > 0 ? x : (T)0);
}

// ---- float -> integer, saturating, NaN -> 0
template <class I, class T>
PTX_INLINE I to_int(T x) {
  if (std::isnan(x)) return 0;
  const f64 d = (f64)x, lo = (f64)std::numeric_limits<I>::min(),
            hi = (f64)std::numeric_limits<I>::max();
  if (d <= lo) return std::numeric_limits<I>::min();
  if (d >= hi) return std::numeric_limits<I>::max();
  return (I)d;
}

// ---- integer helpers
PTX_INLINE u32 prmt(u32 a, u32 b, u32 selector) {
  const u64 pool = (u64)b << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; i++) {
    u32 c = selector >> (4 * i) & 15;
    u8 v = (u8)(pool >> (8 * (c & 7)));
    if (c & 8) v = (v & 0x80) ? 0xff : 0;
    r |= (u32)v << (8 * i);
  }
  return r;
}
PTX_INLINE u32 lop3(u32 a, u32 b, u32 c, u32 table) {
  u32 r = 0;
  if (table & 1) r |= ~a & ~b & ~c;
  if (table & 2) r |= ~a & ~b & c;
  if (table & 4) r |= ~a & b & ~c;
  if (table & 8) r |= ~a & b & c;
  if (table & 16) r |= a & ~b & ~c;
  if (table & 32) r |= a & ~b & c;
  if (table & 64) r |= a & b & ~c;
  if (table & 128) r |= a & b & c;
  return r;
}
PTX_INLINE u32 funnel_shift(bool left, bool wrap, u32 lo, u32 hi, u32 n) {
  n = wrap ? n & 31 : min(n, 32u);
  const u64 x = (u64)hi << 32 | lo;
  return left ? (u32)((x << n) >> 32) : (u32)(x >> n);
}
template <class T>
PTX_INLINE T shift_left(T a, u32 n) {
  return n >= sizeof(T) * 8 ? 0 : (T)(a << n);
}
template <class T>
PTX_INLINE T shift_right(T a, u32 n) {
  if (n >= sizeof(T) * 8) return a < (T)0 ? (T)-1 : (T)0;
  return (T)(a >> n);
}
template <class U>
PTX_INLINE U bfe_unsigned(U a, u32 pos, u32 len) {
  const u32 width = sizeof(U) * 8;
  pos &= 255, len &= 255;
  if (!len || pos >= width) return 0;
  a >>= pos;
  return len < width ? a & (((U)1 << len) - 1) : a;
}
template <class U>
PTX_INLINE U bfe_signed(U a, u32 pos, u32 len) {
  const u32 width = sizeof(U) * 8;
  pos &= 255, len &= 255;
  if (!len) return 0;
  const U sign = (a >> min(pos + len - 1, width - 1)) & 1;
  U r = 0;
  for (u32 i = 0; i < width; i++)
    r |= ((i < len && pos + i < width) ? (a >> (pos + i)) & 1 : sign) << i;
  return r;
}
template <class U>
PTX_INLINE U bfi(U a, U b, u32 pos, u32 len) {
  const u32 width = sizeof(U) * 8;
  pos &= 255, len &= 255;
  for (u32 i = 0; i < len && pos + i < width; i++)
    b = (b & ~((U)1 << (pos + i))) | (((a >> i) & 1) << (pos + i));
  return b;
}
template <class U>
PTX_INLINE U bit_reverse(U a) {
  const u32 width = sizeof(U) * 8;
  U r = 0;
  for (u32 i = 0; i < width; i++) r |= ((a >> i) & 1) << (width - 1 - i);
  return r;
}
PTX_INLINE u32 leading_zeros(u64 a, u32 width) {
  return a ? __builtin_clzll(a) - (64 - width) : width;
}
PTX_INLINE u32 find_leading(u64 a, u32 width, bool shift_amount) {
  if (!a) return 0xffffffffu;
  u32 position = 63 - __builtin_clzll(a);
  return shift_amount ? width - 1 - position : position;
}
template <class T>
PTX_INLINE T divide(T a, T b) {  // division by zero gives all ones, as on the device
  if (!b) return (T)-1;
  if (std::is_signed<T>::value && b == (T)-1)
    return (T)(0 - (typename std::make_unsigned<T>::type)a);
  return a / b;
}
template <class T>
PTX_INLINE T remainder_of(T a, T b) {
  if (!b) return a;
  if (std::is_signed<T>::value && b == (T)-1) return 0;
  return a % b;
}
PTX_INLINE s32 dp4a(u32 a, u32 b, s32 c, bool a_signed, bool b_signed) {
  for (int i = 0; i < 4; i++) {
    int x = a_signed ? (s8)(a >> (8 * i)) : (u8)(a >> (8 * i));
    int y = b_signed ? (s8)(b >> (8 * i)) : (u8)(b >> (8 * i));
    c += x * y;
  }
  return c;
}

}  // namespace ptxcpu
