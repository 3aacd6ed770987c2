// Whole channels at a time: arrays (planes, run), a plane for each channel of each sample, and one number for each plane.
#include "sink.cl"

// dx = the gradient's sink (sink.cl) of dy * factor[plane], where the factor is 0 without looking at dy; forward, y = x * factor
kernel void planes_scale(int planes, int run, int each, global const real *factor, global const real *restrict dy, SINK_ARGS) {
  const real2 pair = PAIR;
#ifdef VW
  for (int plane = get_global_id(0) * each, last = min(planes, plane + each); plane < last; plane++) {
    const size_t from = (size_t)plane * run;
    const real f = factor[plane];
    for (int i = 0; i < run; i += VW)
      write_lanes(f == 0 ? (T)(0) : VLOAD(0, dy + from + i) * f, saved + from + i, dx + from + i, run - i, pair);
  }
#else
  const int i = get_global_id(0), plane = i / run;
  if (plane >= planes) return;
  const real f = factor[plane];
  WRITE_ONE(f == 0 ? 0 : dy[i] * f, saved + i, dx + i, pair);
#endif
}
