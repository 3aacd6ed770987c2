// The position of the largest of n values: the class that a row of outputs, or of targets, names. Included after group.cl: a group
// looks for it together.

#if WIDTH > 1
// As `shared` is for sums
#define PLACES local int places[WIDTH];
#define PLACES_ARG , local int *places
#define PLACES_USED , places
// In every work-item the first position of a largest value, which is at shared[0]; NaN counts as largest, as in NumPy
#define FIRST_LARGEST(n, x) first_largest(n, x, shared, places)
INLINE int first_largest(int n, global const real *x, local real *shared, local int *places) {
  const int id = ME;
  int best = min(id, n - 1);
  real top = x[best];
  for (int c = id + WIDTH; c < n; c += WIDTH) {
    const real v = x[c];
    if (v > top || (v != v && top == top)) { top = v; best = c; }
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  shared[id] = top;
  places[id] = best;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int h = WIDTH / 2; h; h /= 2) {
    if (id < h) {
      const real a = shared[id], b = shared[id + h];
      const int same = a == b || (a != a && b != b);
      if (same ? places[id + h] < places[id] : b > a || b != b) { shared[id] = b; places[id] = places[id + h]; }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  return places[0];
}
// The first of them; -1 where one is NaN
#define LARGEST(n, x) largest(n, x, shared, places)
INLINE int largest(int n, global const real *x, local real *shared, local int *places) {
  const int best = first_largest(n, x, shared, places);
  return shared[0] == shared[0] ? best : -1;
}
#else
#define PLACES
#define PLACES_ARG
#define PLACES_USED
#define LARGEST(n, x) largest(n, x)
static inline int largest(int n, global const real *x) {   // the first of them; -1 where one is NaN
  int best = x[0] == x[0] ? 0 : -1;
  for (int c = 1; c < n && best >= 0; c++) best = x[c] > x[best] ? c : x[c] == x[c] ? best : -1;
  return best;
}
#endif
