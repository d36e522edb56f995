/* All that is compiled: what serves, in float32, and the inner loop in both precisions. */

/* Bytes of a vector register, and how many of them beside each other: 6 rows by BLOCKS of sums stay in registers, with what they
 * are made of. AVX-512 and NEON have 32 registers, others of x86 16. Widths are padded by the caller to multiples of 64 bytes. */
#if defined(__AVX512F__)
#define REGISTER 64
#define BLOCKS 4
#elif defined(__AVX__)
#define REGISTER 32
#define BLOCKS 2
#elif defined(__x86_64__)
#define REGISTER 16
#define BLOCKS 2
#else
#define REGISTER 16
#define BLOCKS 4
#endif

#include "serving.c"

#define REAL float
#define NAMED(name) name##_float32
#include "inner_loop.c"
#undef REAL
#undef NAMED

#define REAL double
#define NAMED(name) name##_float64
#include "inner_loop.c"
