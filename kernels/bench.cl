// What the device can do at most: multiply-adds that never leave registers, SUMS independent vectors of VW a work-item.
// Written as gemm.cl writes them: compilers contract a * b + c, and fma() is slow on some.
#include "common.cl"

#ifndef SUMS
#define SUMS 16  // chains, so that one multiply-add need not wait for another
#endif

kernel void multiply_add(int rounds, global real *out, real x) {
  T sum[SUMS];
  for (int i = 0; i < SUMS; i++) sum[i] = (T)((real)(get_global_id(0) + i));
  for (int round = 0; round < rounds; round++) {
    _Pragma("unroll") for (int i = 0; i < SUMS; i++) sum[i] = sum[i] * (T)(x) + (T)(0.5);
  }
  T total = 0;
  for (int i = 0; i < SUMS; i++) total += sum[i];
  real one[VW];
  CAT(vstore, VW)(total, 0, one);
  real all = 0;
  for (int i = 0; i < VW; i++) all += one[i];  // every lane counts, or the compiler would leave some out
  out[get_global_id(0)] = all;
}

kernel void copy(int each, global const T *source, global T *target) {
  const size_t first = (size_t)get_global_id(0) * each;
  for (int i = 0; i < each; i++) target[first + i] = source[first + i];
}
