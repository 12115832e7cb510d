/* What one core can do at best: fused multiply-adds on registers, twelve at a time, nothing read or written.
   gcc -O3 -funroll-all-loops -march=native benchmarks/peak.c -o /tmp/peak && /tmp/peak      (needs AVX-512 and its bf16 products) */
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

enum { SUMS = 12, ROUNDS = 100000000 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9*t.tv_nsec;
}

int main(void) {
    __m512 sums[SUMS], x = _mm512_set1_ps(.999f), y = _mm512_set1_ps(1e-6f);
    __m512bh one = (__m512bh)_mm512_set1_epi16(0x3f80), half = (__m512bh)_mm512_set1_epi16(0x3f00);
    double start, fp32, bf16;
    float used = 0;   /* printed, so that nothing is optimised away */
    for (int i = 0; i < SUMS; i++) sums[i] = _mm512_set1_ps(1e-3f*i);
    start = now();
    for (long j = 0; j < ROUNDS; j++)
        for (int i = 0; i < SUMS; i++) sums[i] = _mm512_fmadd_ps(sums[i], x, y);
    fp32 = now() - start;
    start = now();
    for (long j = 0; j < ROUNDS; j++)
        for (int i = 0; i < SUMS; i++) sums[i] = _mm512_dpbf16_ps(sums[i], one, half);
    bf16 = now() - start;
    for (int i = 0; i < SUMS; i++) used += _mm512_reduce_add_ps(sums[i]);
    printf("GFLOP a second: fp32 %.1f, bf16 %.1f   (%g)\n", 1e-9*ROUNDS*SUMS*32/fp32, 1e-9*ROUNDS*SUMS*64/bf16, used);
}
