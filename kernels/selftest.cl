// What a device is tested with when it is opened for the first time (clnn/tools/selftest.py): each kernel does, in small, one thing
// that all of clnn's kernels stand on.
#include "common.cl"
#ifdef VW
#define INTS CAT(int, VW)
#define VLOAD CAT(vload, VW)
#define VSTORE CAT(vstore, VW)
#define EACH_VECTOR const int i = get_global_id(0); if (i >= n) return; const T v = VLOAD(i, x + 1)  // not aligned, as rows are not

// whole = v towards 0, back = the same as a real, low = its lowest byte, size = |v|
kernel void conversions(int n, global const real *x, global int *whole, global real *back, global uchar *low, global real *size) {
  EACH_VECTOR;
  const INTS k = CAT(convert_, INTS)(v);
  VSTORE(k, i, whole);
  VSTORE(CAT(CAT(convert_, REAL), VW)(k), i, back);
  VSTORE(CAT(convert_uchar, VW)(k & 255), i, low);
  VSTORE(WHERE(v < 0, -v, v), i, size);
}

// four rows of n vectors
kernel void functions(int n, global const real *x, global real *y) {
  EACH_VECTOR;
  VSTORE(exp(v), i, y);
  VSTORE(tanh(v), n + i, y);
  VSTORE(sqrt(fabs(v)), 2 * n + i, y);
  VSTORE(log(fabs(v) + 1), 3 * n + i, y);
}
#endif

#ifdef WIDTH
// y[group] = the sum of what the group's work-items read
kernel void groups(int n, global const real *x, global real *y) {
  local real t[WIDTH];
  const int i = get_global_id(0), l = get_local_id(0);
  t[l] = i < n ? x[i] : 0;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int h = get_local_size(0) / 2; h > 0; h /= 2) {
    if (l < h) t[l] += t[l + h];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  if (l == 0) y[get_group_id(0)] = t[0];
}
#endif

// y[0] = the number that n turns of a loop come to; each turn needs the one before
kernel void turns(int n, uint factor, global uint *y) {
  if (get_global_id(0)) return;
  uint v = 1;
  for (int i = 0; i < n; i++) v = v * factor + (uint)i;
  y[0] = v;
}
