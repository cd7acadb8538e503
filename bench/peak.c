/* Independent multiply-adds on registers: the rates that no kernel here can exceed, of float32 and,
 * where the machine has products of pairs or of tiles of it, of bfloat16. bench/timing.py compiles
 * it for this very machine and runs one call per thread. */
#if defined(__AVX512F__)
#define WIDTH 64
#define CHAINS 24
#else
#define WIDTH 32 /* 16 registers: 12 sums, and room for the two factors */
#define CHAINS 12
#endif

typedef float vec __attribute__((vector_size(WIDTH)));

/* Runs STEP(sum) on all sums, and returns a value that depends on all of them, so that none is
 * optimised away. Every loop over the sums is unrolled: an index at run time would put them into
 * memory. The factors are made by no instruction that the compiler knows, or it would keep them in
 * memory, and processors with twice as many products a cycle as loads would show half their rate.
 */
#define LOOP(STEP)                                                                     \
  vec sums[CHAINS];                                                                    \
  __asm__ volatile("" : "+v"(a), "+v"(b));                                             \
  _Pragma("GCC unroll 32") for (int c = 0; c < CHAINS; ++c) sums[c] = a * (float)c;    \
  for (long n = 0; n < iterations; ++n) {                                              \
    _Pragma("GCC unroll 32") for (int c = 0; c < CHAINS; ++c) sums[c] = STEP(sums[c]); \
    _Pragma("GCC unroll 32") for (int c = 0; c < CHAINS;                               \
                                  ++c) __asm__ volatile("" : "+v"(sums[c]));           \
  }                                                                                    \
  vec total = sums[0];                                                                 \
  _Pragma("GCC unroll 32") for (int c = 1; c < CHAINS; ++c) total += sums[c];          \
  return total[0];

float fma_loop(long iterations, float factor) {
  vec a, b;
  for (unsigned i = 0; i < WIDTH / 4; ++i) a[i] = factor, b[i] = 1 - factor;
#define FMA(sum) sum* a + b
  LOOP(FMA)
}

long fma_flops(void) { return 2L * CHAINS * (WIDTH / 4); }

#if defined(__AVX512BF16__)
#include <immintrin.h>

float dot_loop(long iterations, float factor) {
  vec a, b;
  for (unsigned i = 0; i < WIDTH / 4; ++i) a[i] = b[i] = factor;
#define DOT(sum) (vec) _mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b)
  LOOP(DOT)
}

long dot_flops(void) { return 4L * CHAINS * (WIDTH / 4); }
#endif

#if defined(__AMX_BF16__)
/* Four sums, as many as leave room for two tiles of either factor; the tiles are zeros. That the
 * process may use tiles has been asked for by the kernels' library. */
float tile_loop(long iterations, float factor) {
  struct {
    unsigned char palette, start_row, reserved[14];
    unsigned short bytes[16];
    unsigned char rows[16];
  } __attribute__((aligned(64))) config = {1};
  for (int i = 0; i < 8; ++i) config.rows[i] = 16, config.bytes[i] = 64;
  __asm__ volatile("" ::"r"(&config) : "memory"); /* all of it is read */
  _tile_loadconfig(&config);
  for (long n = 0; n < iterations; n += 8) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return factor;
}

long tile_flops(void) { return 2L * 4 * 16 * 16 * 32 / 8; }
#endif
