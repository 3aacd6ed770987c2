// Sums over the lanes of a vector, and over the work-items of a group, of which there are WIDTH, a power of two: by halves, so
// always in one order. SUMMED is the type of those over the group. A group goes over n elements side by side: a work-item has
// OWNED(n) of them, and number i of those is OWN(i), WIDTH after the one before.
// Groups are as many as rows: PoCL 3.1 hangs where a work-item may return before a barrier, even if all of its group do.
#include "common.cl"
#ifdef VW
#include "vectors.cl"
#endif
#ifndef WIDTH
#define WIDTH 1
#endif
#ifndef SUMMED
#define SUMMED real
#endif

#ifdef VW
static inline real sum_of_2(real2 x) { return x.x + x.y; }
static inline real sum_of_4(CAT(REAL, 4) x) { return sum_of_2(x.lo + x.hi); }
static inline real sum_of_8(CAT(REAL, 8) x) { return sum_of_4(x.lo + x.hi); }
static inline real sum_of_16(CAT(REAL, 16) x) { return sum_of_8(x.lo + x.hi); }
#define sum_of_lanes(x) CAT(sum_of_, VW)(x)
#else
#define sum_of_lanes(x) (x)
#endif

#if WIDTH > 1
#define ME (int)get_local_id(0)
#else
#define ME 0
#endif
#define OWNED(n) (((n) - ME + WIDTH - 1) / WIDTH)
#define OWN(i) ((i) * WIDTH + ME)

// In every work-item the sum over all; a kernel that asks for it has SHARED among its variables, and hands it to functions.
#if WIDTH > 1
#define SHARED local SUMMED shared[WIDTH];
#define SHARED_ARG , local SUMMED *shared
#define SHARED_USED , shared
#define OVER_GROUP(x) over_group(x, shared)
INLINE SUMMED over_group(SUMMED mine, local SUMMED *shared) {
  const int id = get_local_id(0);
  barrier(CLK_LOCAL_MEM_FENCE);                       // the last sum has been read
  shared[id] = mine;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int h = WIDTH / 2; h; h /= 2) {
    if (id < h) shared[id] += shared[id + h];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  return shared[0];
}
#else
#define SHARED
#define SHARED_ARG
#define SHARED_USED
#define OVER_GROUP(x) (x)
#endif
