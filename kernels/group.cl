// Sums over the lanes of a vector, and over the work-items of a group, of which there are WIDTH, a power of two: by halves, so
// always in one order. SUMMED is the type of those over the group.
#include "common.cl"
#ifdef VW
#include "vectors.cl"
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

// In every work-item the sum over all; a kernel that asks for it has SHARED among its variables.
#if WIDTH > 1
#define SHARED local SUMMED shared[WIDTH];
#define OVER_GROUP(x) over_group(x, shared)
static inline SUMMED over_group(SUMMED mine, local SUMMED *shared) {
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
#define OVER_GROUP(x) (x)
#endif
