// Indexing with up to eight axes, for broadcasting, slices and transpositions.
// Position i of an array of `shape` as an index into one with `strides` (0 along axes that are broadcast).
static inline int strided(int i, int8 shape, int8 strides) {
  int n[8], s[8], at = 0;
  vstore8(shape, 0, n);
  vstore8(strides, 0, s);
  for (int d = 7; d >= 0; d--) { at += i % n[d] * s[d]; i /= n[d]; }
  return at;
}
