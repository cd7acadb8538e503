/* Independent fused multiply-adds on registers: the float32 rate that no kernel here can exceed.
 * bench/timing.py compiles it for this very machine and runs one call per thread. */
#if defined(__AVX512F__)
#define WIDTH 64
#define CHAINS 24
#else
#define WIDTH 32 /* 16 registers: 12 sums, and room for the two factors */
#define CHAINS 12
#endif

typedef float vec __attribute__((vector_size(WIDTH)));

/* Returns a value that depends on all sums, so that none is optimised away. */
float fma_loop(long iterations, float factor) {
  vec sums[CHAINS], a, b;
  for (unsigned i = 0; i < WIDTH / 4; ++i) a[i] = factor, b[i] = 1 - factor;
  /* Every loop over the sums is unrolled: an index at run time would put them into memory. */
#pragma GCC unroll 32
  for (int c = 0; c < CHAINS; ++c) sums[c] = a * (float)c;
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; ++c) sums[c] = sums[c] * a + b;
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; ++c) __asm__ volatile("" : "+v"(sums[c]));
  }
  vec total = sums[0];
#pragma GCC unroll 32
  for (int c = 1; c < CHAINS; ++c) total += sums[c];
  return total[0];
}

long fma_flops(void) { return 2L * CHAINS * (WIDTH / 4); }
