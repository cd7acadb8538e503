// Matrix instructions: ldmatrix, stmatrix, mma.sync and wmma.
// Products are summed in double and rounded once, so results are at least as accurate as a tensor
// core's but not bit-identical to it.
#include "runtime.h"

namespace ptxcpu {

// ---------------------------------------------------------------- ldmatrix / stmatrix (8x8
// matrices of b16) Row r of matrix m is at the address held by lane 8*m+r; element (r, c) belongs
// to one half of a register.
static inline int owner_lane(bool transpose, int r, int c) {
  return transpose ? c * 4 + r / 2 : r * 4 + c / 2;
}
static inline int owner_shift(bool transpose, int r, int c) {
  return 16 * ((transpose ? r : c) & 1);
}

void ldmatrix(Thread& thread, int pc, int count, bool transpose, u32 offset, u32* d) {
  ThreadState& t = state_of(thread);
  t.in[0] = offset;
  if (worker_of(t).profile && t.lane < 8u * count) profile_memory(t, pc, offset, 16, true);
  collective(t, pc, FULL_WARP, true, [&](ThreadState** lanes, u32) {
    for (int m = 0; m < count; m++) {
      for (int l = 0; l < 32; l++) lanes[l]->out[m] = 0;
      for (int r = 0; r < 8; r++) {
        ThreadState& holder = *lanes[m * 8 + r];
        const u32 a = (u32)holder.in[0];
        check_shared(holder, a, 16, pc, READ);
        u16 row[8];
        memcpy(row, t.block->shared + a, 16);
        for (int c = 0; c < 8; c++)
          lanes[owner_lane(transpose, r, c)]->out[m] |= (u64)row[c] << owner_shift(transpose, r, c);
      }
    }
  });
  for (int m = 0; m < count; m++) d[m] = (u32)t.out[m];
}

void stmatrix(Thread& thread, int pc, int count, bool transpose, u32 offset, const u32* s) {
  ThreadState& t = state_of(thread);
  t.in[0] = offset;
  for (int m = 0; m < count; m++) t.in[1 + m] = s[m];
  if (worker_of(t).profile && t.lane < 8u * count) profile_memory(t, pc, offset, 16, true);
  collective(t, pc, FULL_WARP, true, [&](ThreadState** lanes, u32) {
    for (int m = 0; m < count; m++)
      for (int r = 0; r < 8; r++) {
        ThreadState& holder = *lanes[m * 8 + r];
        u16 row[8];
        for (int c = 0; c < 8; c++)
          row[c] =
              (u16)(lanes[owner_lane(transpose, r, c)]->in[1 + m] >> owner_shift(transpose, r, c));
        check_shared(holder, (u32)holder.in[0], 16, pc, WRITE, row);
        memcpy(t.block->shared + (u32)holder.in[0], row, 16);
      }
  });
}

// ---------------------------------------------------------------- mma.sync m16n8kK
static inline f32 decode(u32 r, int element, MatrixType type) {
  switch (type) {
    case M_F16: return f16_to_f32((u16)(r >> (16 * element)));
    case M_BF16: return bf16_to_f32((u16)(r >> (16 * element)));
    case M_S8: return (s8)(r >> (8 * element));
    case M_U8: return (u8)(r >> (8 * element));
    default: return tf32_to_f32(r);
  }
}
static inline int elements_per_register(MatrixType type) {
  return type <= M_BF16 ? 2 : type == M_TF32 ? 1 : 4;
}

// Fragment layout of every m16n8kK shape: with g = lane/4 and q = lane%4, register i of A holds row
// g (i even) or g+8 (i odd) and columns (i/2)*4*E + q*E ..., where E is the number of elements per
// register; register i of B holds column g and rows i*4*E + q*E ...; accumulator i holds row g +
// 8*(i/2), column 2*q + i%2.
template <int K, MatrixType TA, MatrixType TB, MatrixType ACC>
static void mma_16x8(ThreadState** lanes) {
  const int M = 16, N = 8;
  const int E = elements_per_register(TA), NA = M * K / 32 / E, NB = K * N / 32 / E;
  f32 a[M][K], b[K][N];
  f64 sum[M][N];
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane >> 2, q = lane & 3;
    const u64* in = lanes[lane]->in;
    for (int i = 0; i < NA; i++)
      for (int e = 0; e < E; e++)
        a[g + 8 * (i & 1)][(i >> 1) * 4 * E + q * E + e] = decode((u32)in[i], e, TA);
    for (int i = 0; i < NB; i++)
      for (int e = 0; e < E; e++) b[i * 4 * E + q * E + e][g] = decode((u32)in[NA + i], e, TB);
    for (int i = 0; i < 4; i++) {
      const u64* c = in + NA + NB;
      sum[g + 8 * (i >> 1)][q * 2 + (i & 1)] =
          ACC == M_F16   ? (f64)f16_to_f32((u16)(c[i / 2] >> (16 * (i & 1))))
          : ACC == M_F32 ? (f64)as_f32((u32)c[i])
                         : (f64)(s32)c[i];
    }
  }
  for (int m = 0; m < M; m++)
    for (int k = 0; k < K; k++)
      for (int n = 0; n < N; n++) sum[m][n] += (f64)a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane >> 2, q = lane & 3;
    u64* out = lanes[lane]->out;
    out[0] = out[1] = 0;
    for (int i = 0; i < 4; i++) {
      const f64 s = sum[g + 8 * (i >> 1)][q * 2 + (i & 1)];
      if (ACC == M_F16)
        out[i / 2] |= (u64)f64_to_f16(s) << (16 * (i & 1));
      else
        out[i] = ACC == M_F32 ? bits((f32)s) : (u32)(s64)s;  // s32 wraps
    }
  }
}

struct MmaShape {
  int k;
  MatrixType a, b, acc;
  void (*run)(ThreadState**);
};
#define SHAPE(k, a, b, acc) \
  { k, a, b, acc, mma_16x8<k, a, b, acc> }
static const MmaShape SHAPES[] = {
    SHAPE(8, M_F16, M_F16, M_F32),   SHAPE(16, M_F16, M_F16, M_F32),
    SHAPE(8, M_F16, M_F16, M_F16),   SHAPE(16, M_F16, M_F16, M_F16),
    SHAPE(8, M_BF16, M_BF16, M_F32), SHAPE(16, M_BF16, M_BF16, M_F32),
    SHAPE(4, M_TF32, M_TF32, M_F32), SHAPE(8, M_TF32, M_TF32, M_F32),
    SHAPE(16, M_S8, M_S8, M_S32),    SHAPE(32, M_S8, M_S8, M_S32),
    SHAPE(16, M_U8, M_U8, M_S32),    SHAPE(32, M_U8, M_U8, M_S32),
    SHAPE(16, M_S8, M_U8, M_S32),    SHAPE(32, M_S8, M_U8, M_S32),
    SHAPE(16, M_U8, M_S8, M_S32),    SHAPE(32, M_U8, M_S8, M_S32),
};

void mma_sync(Thread& thread, int pc, int m, int n, int k, MatrixType a_type, MatrixType b_type,
              MatrixType acc_type, const u32* a, const u32* b, const u32* c, u32* d) {
  ThreadState& t = state_of(thread);
  const MmaShape* shape = nullptr;
  for (const MmaShape& s : SHAPES)
    if (m == 16 && n == 8 && s.k == k && s.a == a_type && s.b == b_type && s.acc == acc_type)
      shape = &s;
  if (!shape) kernel_fail(t, pc, "this mma.sync shape is not supported");
  const int e = elements_per_register(a_type), na = m * k / 32 / e, nb = k * n / 32 / e,
            nc = acc_type == M_F16 ? 2 : 4;
  for (int i = 0; i < na; i++) t.in[i] = a[i];
  for (int i = 0; i < nb; i++) t.in[na + i] = b[i];
  for (int i = 0; i < nc; i++) t.in[na + nb + i] = c[i];
  collective(t, pc, FULL_WARP, true, [&](ThreadState** lanes, u32) { shape->run(lanes); });
  for (int i = 0; i < nc; i++) d[i] = (u32)t.out[i];
}

// m8n8k4 of doubles: with g = lane/4 and q = lane%4, A holds (g, q), B holds (q, g), accumulator i
// holds (g, 2*q + i). Every product is added with one rounding, in the order of k.
void mma_f64(Thread& thread, int pc, const u64* abcc, u64* d) {
  ThreadState& t = state_of(thread);
  for (int i = 0; i < 4; i++) t.in[i] = abcc[i];
  collective(t, pc, FULL_WARP, true, [&](ThreadState** lanes, u32) {
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 2; i++) {
        const int row = lane >> 2, column = (lane & 3) * 2 + i;
        f64 sum = as_f64(lanes[lane]->in[2 + i]);
        for (int k = 0; k < 4; k++)
          sum = std::fma(as_f64(lanes[row * 4 + k]->in[0]), as_f64(lanes[column * 4 + k]->in[1]),
                         sum);
        lanes[lane]->out[i] = bits(sum);
      }
  });
  for (int i = 0; i < 2; i++) d[i] = t.out[i];
}

// ---------------------------------------------------------------- wmma
// The layout of wmma fragments is unspecified; here lane l holds the row-major elements l*P ...
// l*P+P-1 of its matrix, P = rows*cols/32, repeated when the fragment has registers to spare.
static u8* wmma_address(Thread& t, int pc, u64 address, u32 stride, const WmmaTile& tile, int index,
                        Access access) {
  const int row = index / tile.cols, col = index % tile.cols, bytes = tile.bits / 8;
  const u64 a =
      address + (u64)(tile.column_major ? col * stride + row : row * stride + col) * bytes;
  check_generic(t, a, bytes, pc, access);
  if (worker_of(t).profile) profile_memory(t, pc, a, bytes, in_shared(t, a));
  return (u8*)a;
}

void wmma_load(Thread& t, int pc, u64 address, u32 stride, WmmaTile tile, u32* d, int registers) {
  const int per_lane = tile.rows * tile.cols / 32, per_register = 32 / tile.bits;
  u32 element[16];
  for (int i = 0; i < per_lane; i++) {
    const u8* p = wmma_address(t, pc, address, stride, tile, t.lane * per_lane + i, READ);
    element[i] = tile.bits == 8 ? *p : tile.bits == 16 ? load_as<u16>(p) : load_as<u32>(p);
  }
  for (int i = 0; i < registers; i++) {
    d[i] = 0;
    for (int e = 0; e < per_register; e++)
      d[i] |= element[(i * per_register + e) % per_lane] << (e * tile.bits % 32);
  }
}

void wmma_store(Thread& t, int pc, u64 address, u32 stride, WmmaTile tile, const u32* s) {
  const int per_lane = tile.rows * tile.cols / 32, per_register = 32 / tile.bits;
  for (int i = 0; i < per_lane; i++) {
    const u32 x = s[i / per_register] >> (i % per_register * tile.bits % 32);
    memcpy(wmma_address(t, pc, address, stride, tile, t.lane * per_lane + i, WRITE), &x,
           tile.bits / 8);
  }
}

void wmma_mma(Thread& thread, int pc, int m, int n, int k, MatrixType type, MatrixType c_type,
              MatrixType d_type, const u32* a, const u32* b, const u32* c, u32* d) {
  ThreadState& t = state_of(thread);
  const u32* operands[3] = {a, b, c};
  t.in[0] = (u64)operands;  // the other lanes' registers stay on their stacks while they wait
  collective(t, pc, FULL_WARP, true, [&](ThreadState** lanes, u32) {
    auto element = [&](int operand, int index, int total, MatrixType kind) -> f64 {
      const int per_lane = total / 32;
      const u32* registers = ((const u32**)lanes[index / per_lane]->in[0])[operand];
      const int i = index % per_lane,
                e = kind == M_F32 || kind == M_TF32 ? 1 : elements_per_register(kind);
      return kind == M_F32 ? as_f32(registers[i]) : decode(registers[i / e], i % e, kind);
    };
    std::vector<f64> va(m * k), vb(k * n), sum(m * n);
    for (int i = 0; i < m * k; i++) va[i] = element(0, i, m * k, type);
    for (int i = 0; i < k * n; i++) vb[i] = element(1, i, k * n, type);
    for (int i = 0; i < m * n; i++) sum[i] = element(2, i, m * n, c_type);
    for (int i = 0; i < m; i++)
      for (int l = 0; l < k; l++)
        for (int j = 0; j < n; j++) sum[i * n + j] += va[i * k + l] * vb[l * n + j];
    const int per_lane = m * n / 32;
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < per_lane; i++) {
        const f64 s = sum[lane * per_lane + i];
        u64* out = lanes[lane]->out;
        if (d_type == M_F32)
          out[i] = bits((f32)s);
        else if (i & 1)
          out[i / 2] |= (u64)f64_to_f16(s) << 16;
        else
          out[i / 2] = f64_to_f16(s);
      }
  });
  for (int i = 0; i < (d_type == M_F32 ? 8 : 4); i++) d[i] = (u32)t.out[i];
}

}  // namespace ptxcpu
