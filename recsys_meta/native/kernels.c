/* All that is compiled: what serves, in float32, and the inner loop in both precisions. */

#include "serving.c"

#define REAL float
#define NAMED(name) name##_float32
#include "inner_loop.c"
#undef REAL
#undef NAMED

#define REAL double
#define NAMED(name) name##_float64
#include "inner_loop.c"
