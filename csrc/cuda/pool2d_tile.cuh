// What the pooling kernels share: which positions a window takes and which windows take a position,
// the cut of a pool into tiles, and the copy of a tile's source into shared memory. A tile's source
// is read from memory once, in 16-byte pieces, however often windows overlap; only the halo of a
// tile is read twice. The two layouts differ in the tile's shape alone:
//   NCHW  whole planes, or rows of one;      lines run over rows (and planes) where they are whole
//   NHWC  rows x columns of a few channels;  lines run over columns where all channels are in
#pragma once
#include "common.cuh"
#include "pool2d.h"

namespace cnnkern {

// Quotients by a number that only the host knows.
struct FastDiv {
  uint32_t divisor, multiplier, shift;

  FastDiv() : FastDiv(1) {}
  explicit FastDiv(int64_t d) : divisor(uint32_t(d)), multiplier(0), shift(0) {
    while ((int64_t{1} << shift) < d) ++shift;
    multiplier = uint32_t(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - uint64_t(d))) / d + 1);
  }
  __device__ __forceinline__ int quotient(uint32_t n) const {
    return int((uint64_t(__umulhi(n, multiplier)) + n) >> shift);
  }
  // Returns n / divisor and leaves the remainder in n.
  __device__ __forceinline__ int split(int& n) const {
    const int q = quotient(uint32_t(n));
    n -= q * int(divisor);
    return q;
  }
};

// The same for dividends below 2^62 and divisors below 2^31. The product is off by less than one.
struct LongDiv {
  int64_t divisor;
  double inverse;

  explicit LongDiv(int64_t d) : divisor(d), inverse(1 / double(d)) {}
  __device__ __forceinline__ int64_t quotient(int64_t n) const {
    const int64_t q = int64_t(double(n) * inverse), rest = n - q * divisor;
    return rest < 0 ? q - 1 : rest >= divisor ? q + 1 : q;
  }
  __device__ __forceinline__ int64_t split(int64_t& n) const {
    const int64_t q = quotient(n);
    n -= q * divisor;
    return q;
  }
};

// Positions begin, begin + dil, ... < end, all inside the plane; `first` is the tap that begin is.
struct PoolWindow {
  int begin, end, first;
};

struct PoolAxis {
  int size, out, k, stride, pad, dil;
  bool adaptive, count_pad;
  FastDiv by_stride, by_dil;
  LongDiv by_out, by_size;

  PoolAxis(int64_t size, int64_t out, int64_t k, int64_t stride, int64_t pad, int64_t dil,
           bool adaptive, bool count_pad)
      : size(int(size)),
        out(int(out)),
        k(int(k)),
        stride(int(stride)),
        pad(int(pad)),
        dil(int(dil)),
        adaptive(adaptive),
        count_pad(count_pad),
        by_stride(stride),
        by_dil(dil),
        by_out(out),
        by_size(size) {}

  __device__ __forceinline__ PoolWindow window(int i) const {
    if (adaptive)
      return {int(by_out.quotient(int64_t(i) * size)),
              int(by_out.quotient(int64_t(i + 1) * size + out - 1)), 0};
    const int64_t start = int64_t(i) * stride - pad, stop = start + int64_t(k - 1) * dil + 1;
    const int first = start < 0 ? by_dil.quotient(int(-start) + dil - 1) : 0;
    const int64_t begin = start + int64_t(first) * dil;
    return {int(begin), int(min(int64_t(size), stop)), first};
  }

  // Lower and upper bound of the positions of window i and all after, or before, it. With dilation
  // a window that starts in the padding may begin behind the next one.
  __device__ __forceinline__ int low(int i) const {
    return adaptive ? window(i).begin : int(max(int64_t(0), int64_t(i) * stride - pad));
  }
  __device__ __forceinline__ int high(int i) const { return window(i).end; }

  // What the window counts along this axis in an average.
  __device__ __forceinline__ int divisor(int i, const PoolWindow& w) const {
    if (adaptive || !count_pad) return max(w.end - w.begin, 0);
    const int64_t start = int64_t(i) * stride - pad;
    return int(min(start + k, int64_t(size) + pad) - start);
  }

  // The windows that may take position x: lowest to highest. With dilation some between may not.
  __device__ __forceinline__ int lowest(int x) const {
    if (adaptive) return int(by_size.quotient(int64_t(x) * out));
    const int64_t from = int64_t(x) + pad - int64_t(k - 1) * dil;
    return from <= 0 ? 0 : by_stride.quotient(uint32_t(from) + stride - 1);
  }
  __device__ __forceinline__ int highest(int x) const {
    if (adaptive) return int(by_size.quotient(int64_t(x + 1) * out + size - 1)) - 1;
    return min(by_stride.quotient(x + pad), out - 1);
  }
  // Which tap of window i position x is, among lowest(x) .. highest(x); -1: none.
  __device__ __forceinline__ int tap(int i, int x) const {
    const int from = x + pad - i * stride;
    if (dil == 1) return from;
    const int t = by_dil.quotient(from);
    return t * dil == from ? t : -1;
  }
};

// The extents of a tile and how many tiles there are. D x E is the destination's plane, `from`
// has planes of H x W; both have C channels: 1 in NCHW, where planes are counted instead.
struct PoolTiles {
  int D, E, H, W, C;
  int planes, rows, cols, ch;
  int row_tiles, col_tiles, ch_tiles;
  int64_t planes_total, count;
  FastDiv by_ch, by_cols, by_rows;  // by_ch: by the vectors of channels of a tile
  int saved_at, shared_bytes;       // where in shared memory the second source begins
  bool staged;                      // false: not even one element's source fits
};

struct PoolTile {
  int64_t plane;
  int planes, row, rows, col, cols, c, ch;
};

__device__ __forceinline__ PoolTile pool_tile(const PoolTiles& t, int64_t i) {
  uint32_t rest = uint32_t(i);
  PoolTile tile;
  tile.c = int(rest % uint32_t(t.ch_tiles)) * t.ch, rest /= uint32_t(t.ch_tiles);
  tile.col = int(rest % uint32_t(t.col_tiles)) * t.cols, rest /= uint32_t(t.col_tiles);
  tile.row = int(rest % uint32_t(t.row_tiles)) * t.rows, rest /= uint32_t(t.row_tiles);
  tile.plane = int64_t(rest) * t.planes;
  tile.planes = int(min(int64_t(t.planes), t.planes_total - tile.plane));
  tile.rows = min(t.rows, t.D - tile.row);
  tile.cols = min(t.cols, t.E - tile.col);
  tile.ch = min(t.ch, t.C - tile.c);
  return tile;
}

// Element j of a tile, in the order of memory: row and column of the plane, the rest of the tile.
struct PoolElement {
  int plane, row, col, ch;
};

// Tiles are counted as if all were full; false for what lies outside this one.
template <int kLanes>
__device__ __forceinline__ bool pool_element(const PoolTiles& t, const PoolTile& tile, int j,
                                             PoolElement& e) {
  e.ch = 0;
  if (kLanes > 1 || t.C > 1) {
    const int rest = t.by_ch.split(j);
    e.ch = j * kLanes, j = rest;
  }
  const int rows = t.by_cols.split(j), col = j;
  j = rows;
  e.plane = t.by_rows.split(j);
  e.row = tile.row + j, e.col = tile.col + col;
  return col < tile.cols && j < tile.rows && e.ch < tile.ch;
}
__device__ __forceinline__ int pool_elements(const PoolTiles& t, const PoolTile& tile) {
  return tile.planes * t.rows * t.cols * int(t.by_ch.divisor);
}

// A tile's elements, or vectors of them, are counted from here, so that a warp's stores, of bytes
// too, fill sectors: its first element's place in the destination is a multiple of 32.
template <int kLanes>
__device__ __forceinline__ int pool_first(const PoolTiles& t, const PoolTile& tile) {
  const int64_t at = ((tile.plane * t.D + tile.row) * t.E + tile.col) * t.C + tile.c;
  return -int(at % 32 / kLanes);
}

// Where it lies in the destination.
__device__ __forceinline__ int64_t pool_offset(const PoolTiles& t, const PoolTile& tile,
                                               const PoolElement& e) {
  return (((tile.plane + e.plane) * t.D + e.row) * t.E + e.col) * t.C + tile.c + e.ch;
}

// A tile's source where the kernel reads it: in shared memory, or in the tensor itself. Counted are
// the rows and columns of the plane, but the planes and channels of the tile.
template <typename T, bool kStaged>
struct PoolView {
  typedef std::conditional_t<kStaged, int, int64_t> Step;
  const T* data;
  Step planes, rows, cols;
  int row, col;

  __device__ __forceinline__ const T* at(int plane, int h, int w, int c) const {
    return data + (plane * planes + (h - row) * rows + (w - col) * cols) + c;
  }
};

// Copies 16 bytes to shared memory without a detour through registers where the device can.
__device__ __forceinline__ void copy16(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
#else
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
  __syncthreads();
}

// A run of `count` elements, of any alignment: shared[head + i] = from[i], head being returned, and
// `shared` is 16-byte aligned. Whole 16 bytes are read at the ends too: what lies in them beyond
// the run is of a sector that is read anyway, and only what lies beyond `tensor` is not to be
// touched. A warp begins where a sector does.
template <typename T>
__device__ __forceinline__ int stage_run(T* shared, const T* from, int count, const T* tensor,
                                         const T* tensor_end) {
  constexpr int kPiece = 16 / sizeof(T);
  const uintptr_t address = reinterpret_cast<uintptr_t>(from);
  const int head = int(address % 16 / sizeof(T)), odd = int(address / 16 % 2);
  const int pieces = (head + count + kPiece - 1) / kPiece;
  for (int i = int(threadIdx.x) - odd; i < pieces; i += blockDim.x) {
    if (i < 0) continue;
    const T* piece = from + (i * kPiece - head);
    if (piece >= tensor && piece + kPiece <= tensor_end) {
      copy16(shared + i * kPiece, piece);
    } else {
#pragma unroll 1
      for (int j = 0; j < kPiece; ++j)
        if (piece + j >= tensor && piece + j < tensor_end) shared[i * kPiece + j] = piece[j];
    }
  }
  return head;
}

// The part of a tile's source that is to be staged: whole planes where there are several.
struct PoolSource {
  int row, rows, col, cols;
};

// Copies it into shared memory, of all planes and channels of the tile. The caller waits.
template <typename T>
__device__ __forceinline__ PoolView<T, true> stage_tile(const PoolTiles& t, const PoolTile& tile,
                                                        const PoolSource& s, T* shared,
                                                        const T* from) {
  constexpr int kPiece = 16 / sizeof(T);
  const T* start = from + ((tile.plane * t.H + s.row) * t.W + s.col) * t.C + tile.c;
  const bool all_ch = tile.ch == t.C;
  if (all_ch && (s.cols == t.W || s.rows == 1)) {
    const int head = stage_run(shared, start, tile.planes * s.rows * s.cols * tile.ch, from,
                               from + t.planes_total * t.H * t.W * t.C);
    const int row = s.cols * tile.ch;
    return {shared + head, s.rows * row, row, tile.ch, s.row, s.col};
  }
  // Lines, widened to whole 16 bytes where those of all lines are aligned alike.
  const int row_step = t.W * t.C, line = all_ch ? s.cols * tile.ch : tile.ch;
  const int lines = all_ch ? 1 : s.cols, line_step = all_ch ? 0 : t.C;
  const bool whole = row_step % kPiece == 0 && line_step % kPiece == 0 &&
                     (reinterpret_cast<uintptr_t>(from) & 15) == 0;
  const int head = whole ? (s.col * t.C + tile.c) % kPiece : 0;
  const int pieces = whole ? (head + line + kPiece - 1) / kPiece : line;
  const int pitch = whole ? pieces * kPiece : (line + kPiece - 1) / kPiece * kPiece;
  start -= head;
  for (int i = threadIdx.x; i < s.rows * lines * pieces; i += blockDim.x) {
    const int at = i / pieces, piece = i - at * pieces;
    const int row = at / lines, in = at - row * lines;
    const T* source = start + int64_t(row) * row_step + in * line_step;
    if (whole)
      copy16(shared + at * pitch + piece * kPiece, source + piece * kPiece);
    else
      shared[at * pitch + piece] = source[piece];
  }
  return {shared + head, 0, lines * pitch, all_ch ? tile.ch : pitch, s.row, s.col};
}

template <typename T>
__device__ __forceinline__ PoolView<T, false> view_tile(const PoolTiles& t, const PoolTile& tile,
                                                        const T* from) {
  const int64_t row = int64_t(t.W) * t.C;
  return {from + tile.plane * t.H * row + tile.c, t.H * row, row, t.C, 0, 0};
}

// Neighbouring channels that a thread treats alike.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes < 16 ? sizeof(T) * kLanes : 16) PoolVec {
  T lane[kLanes];
};

inline PoolAxis pool_rows(const PoolParams& p) {
  return PoolAxis(p.H, p.P, p.R, p.stride_h, p.pad_h, p.dil_h, p.adaptive, p.count_include_pad);
}
inline PoolAxis pool_cols(const PoolParams& p) {
  return PoolAxis(p.W, p.Q, p.S, p.stride_w, p.pad_w, p.dil_w, p.adaptive, p.count_include_pad);
}

// The most positions that n adjacent windows need.
inline int64_t pool_reach(const PoolAxis& a, int64_t n) {
  const int64_t reach = a.adaptive ? ceil_div(n * a.size, a.out) + 1
                                   : (n - 1) * a.stride + int64_t(a.k - 1) * a.dil + 1;
  return reach < a.size ? reach : a.size;
}

// The most windows that hold one of n adjacent positions.
inline int64_t pool_covers(const PoolAxis& a, int64_t n) {
  const int64_t covers = a.adaptive ? ceil_div(n * a.out, a.size) + 1
                                    : ceil_div(n + int64_t(a.k - 1) * a.dil, a.stride);
  return covers < a.out ? covers : a.out;
}

constexpr int kPoolThreads = 256;
// Said to the compiler, which else spills a register or two to fit a fourth block.
constexpr int kPoolBlocks = 3;
constexpr int64_t kPoolSharedBytes = 47 * 1024;

// Cuts the destination into tiles. source_rows(n), source_cols(n): the most positions that n
// adjacent rows or columns of the destination need. `lanes`: channels of a thread. Bytes are of one
// element: of the source, of what is saved of it (0: nothing), and of the destination.
template <typename Rows, typename Cols>
PoolTiles plan_pool_tiles(PoolTiles t, int lanes, int64_t bytes, int64_t saved_bytes,
                          int64_t dest_bytes, const Rows& source_rows, const Cols& source_cols) {
  // Small problems are cut finer, so that there is work for every multiprocessor.
  constexpr int64_t kLargest = 32 * 1024, kSmallest = 4 * 1024, kBlocks = 512;
  constexpr int64_t kMaxChannels = 32;  // a whole sector of uint8
  const int64_t D = t.D, E = t.E, H = t.H, W = t.W;
  const int64_t ch = t.C <= kMaxChannels + 8 ? t.C : kMaxChannels;
  int64_t rows = D, cols = E, planes = 1;
  const auto source_width = [&](int64_t n) { return n == E ? W : source_cols(n); };
  const auto shared_bytes = [&](int64_t size) {  // of a source with elements of that size
    const int64_t r = planes > 1 ? planes * H : source_rows(rows), w = source_width(cols);
    const int64_t line = w == W ? 16 : 48;
    return ch == t.C ? ceil_div(r * w * ch * size, 16) * 16 + (w == W ? 16 : r * line)
                     : r * w * ceil_div(ch * size, 16) * 16;
  };
  const auto moved = [&] {
    const int64_t r = source_rows(rows), w = source_width(cols);
    return r * w * ch * (bytes + saved_bytes) + rows * cols * ch * dest_bytes;
  };
  const auto staged_bytes = [&] {
    return shared_bytes(bytes) + (saved_bytes ? shared_bytes(saved_bytes) : 0);
  };
  const auto shrink = [&](int64_t limit) {
    rows = D, cols = E;
    while ((moved() > limit || staged_bytes() > kPoolSharedBytes) && (rows > 1 || cols > 1)) {
      const bool by_rows = t.C > 1 ? rows >= cols : rows > 8 || cols <= 32;
      if ((by_rows && rows > 1) || cols == 1)
        rows = ceil_div(rows, 2);
      else
        cols = ceil_div(cols, 2);
    }
  };
  const int64_t whole = moved();
  const int64_t share = t.planes_total * ceil_div(t.C, ch) * whole / kBlocks;
  const int64_t target = share < kSmallest ? kSmallest : share > kLargest ? kLargest : share;
  shrink(target);
  // A tile whose halo would cost over an eighth grows to what fits into shared memory.
  const auto halo = [&] {
    return double(source_rows(rows) * source_width(cols)) / double(H * W) *
           (double(D * E) / double(rows * cols));
  };
  if (halo() > 1.125) shrink(2 * kPoolSharedBytes);
  t.staged = staged_bytes() <= kPoolSharedBytes;
  if (t.C == 1 && rows == D && cols == E) {
    planes = target / whole;
    planes = planes < 1 ? 1 : planes > t.planes_total ? t.planes_total : planes;
    while (planes > 1 && staged_bytes() > kPoolSharedBytes) --planes;
    if (planes > 8) planes -= planes % 8;  // 8 floats are a sector: tiles end where sectors do
  }
  t.row_tiles = int(ceil_div(D, rows)), t.col_tiles = int(ceil_div(E, cols));
  rows = ceil_div(D, t.row_tiles), cols = ceil_div(E, t.col_tiles);
  t.rows = int(rows), t.cols = int(cols), t.planes = int(planes), t.ch = int(ch);
  t.ch_tiles = int(ceil_div(t.C, ch));
  t.count = ceil_div(t.planes_total, planes) * t.row_tiles * t.col_tiles * t.ch_tiles;
  t.by_ch = FastDiv(ceil_div(ch, lanes)), t.by_cols = FastDiv(cols), t.by_rows = FastDiv(rows);
  t.saved_at = int(shared_bytes(bytes));
  t.shared_bytes = t.staged ? int(staged_bytes()) : 0;
  return t;
}

}  // namespace cnnkern
