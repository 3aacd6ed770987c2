// The position of the largest of n values: the class that a row of outputs, or of targets, names.
#include "common.cl"

static inline int largest(int n, global const real *x) {   // the first of them; -1 where one is NaN
  int best = x[0] == x[0] ? 0 : -1;
  for (int c = 1; c < n && best >= 0; c++) best = x[c] > x[best] ? c : x[c] == x[c] ? best : -1;
  return best;
}
