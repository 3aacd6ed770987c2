// float32 arrays kept as halves (IEEE 754 binary16), and back. Reading and writing halves is in the core of OpenCL C, computing with
// them is not. With VW, on CPUs, a work-item takes `each` elements, a multiple of VW.
#include "common.cl"
#ifdef VW
#define VECTORS(call) for (; left >= VW; left -= VW, i += VW) call;
#else
#define VECTORS(call)
#endif
#define OVER(vectors, one)                                                    \
  int i = (int)get_global_id(0) * each, left = min(each, n - i);              \
  VECTORS(vectors)                                                            \
  for (; left > 0; left--, i++) one;

// to the nearest, of two the even one; what is larger than 65,504 becomes infinite
kernel void pack(int n, int each, global const float *x, global half *y) {
  OVER(CAT(vstore_half, VW)(CAT(vload, VW)(0, x + i), 0, y + i), vstore_half(x[i], i, y))
}

// the same; `beyond` becomes 1 where a value is none between -65,504 and 65,504
#define PACKED(type, value, within, store) { const type v = value; if (!within(fabs(v) <= 65504.0f)) *beyond = 1; store(v, 0, y + i); }
kernel void pack_weights(int n, int each, global const float *x, global half *y, global int *beyond) {
  OVER(PACKED(T, CAT(vload, VW)(0, x + i), all, CAT(vstore_half, VW)), PACKED(float, x[i], , vstore_half))
}

kernel void unpack(int n, int each, global const half *x, global float *y) {
  OVER(CAT(vstore, VW)(CAT(vload_half, VW)(0, x + i), 0, y + i), y[i] = vload_half(i, x))
}
