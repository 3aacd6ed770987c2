// Augmentation: images moved by whole pixels, warped, distorted and cut out. x and y are (n, channels, h, w), and every
// channel of an image goes the same way. Places are in pixels, x to the right and y downwards; every formula says where
// an output pixel comes from, and what is outside of x is `fill`. u holds uniform numbers in [0, 1), drawn before.
#include "common.cl"
typedef CAT(REAL, 4) real4;
typedef CAT(REAL, 8) real8;

// What runs for each pixel of y: row r, column c of plane p, which is a channel of an image; `line` counts the rows of all
// planes. On a GPU a work-item is a pixel; with ROWS, for CPUs, a row, and y is `restrict` so that it becomes vectors.
#ifdef ROWS
#define EACH_PIXEL(pixels, h, w)                                      \
  const int line = get_global_id(0), p = line / (h), r = line % (h); \
  if (line < (pixels) / (w)) for (int c = 0; c < (w); c++)
#else
#define EACH_PIXEL(pixels, h, w)                                                       \
  const uint at = get_global_id(0);                                                    \
  const int line = at / (uint)(w), p = line / (h), r = line % (h), c = at % (uint)(w); \
  if (at < (uint)(pixels))
#endif

static inline real pixel(global const real *x, int h, int w, int r, int c, real fill) {
  const bool inside = r >= 0 && r < h && c >= 0 && c < w;
  const real v = x[inside ? r * w + c : 0];   // always read, as branches are slow; an image of none reads the slack
  return inside ? v : fill;
}

// A neighbour of weight 0 is left out, so that a NaN in it stays where it is and whole places give the pixel's own bits.
static inline real blend(real a, real b, real f) { return f > 0 ? a + f * (b - a) : a; }

static inline real bilinear(global const real *x, int h, int w, real from_r, real from_c, real fill) {
  from_r = fmin(fmax(from_r, (real)-1), (real)h);   // where all is fill; NaN too goes there
  from_c = fmin(fmax(from_c, (real)-1), (real)w);
  const real top = floor(from_r), left = floor(from_c), down = from_r - top, right = from_c - left;
  const int r = (int)top, c = (int)left;
  return blend(blend(pixel(x, h, w, r, c, fill), pixel(x, h, w, r, c + 1, fill), right),
               blend(pixel(x, h, w, r + 1, c, fill), pixel(x, h, w, r + 1, c + 1, fill), right), down);
}

// Plane p of y is a piece of plane p % planes of x. moves: (first column, first row, step of columns, step of rows), a row
// of them for every `each` planes, as with the matrices of `warp`.
kernel void place(int pixels, int h, int w, int each, int planes, int from_h, int from_w, global const real *x,
                  global const int4 *moves, global real *restrict y, real fill) {
  EACH_PIXEL(pixels, h, w) {
    const int4 m = moves[p / each];
    global const real *from = x + (size_t)(p % planes) * from_h * from_w;
    y[(size_t)line * w + c] = pixel(from, from_h, from_w, m.y + m.w * r, m.x + m.z * c, fill);
  }
}

// A place from `start` in one of `places` a column and a row, then mirrored where u is below the chances: (n, 4) numbers
kernel void random_moves(int n, int h, int w, int2 start, int2 places, global const real *u, global int4 *moves, real2 chance) {
  const int i = get_global_id(0);
  if (i >= n) return;
  const real4 v = vload4(i, u);
  const int2 at = start + min((int2)((int)(v.x * places.x), (int)(v.y * places.y)), places - 1);
  const int mirror_c = v.z < chance.x, mirror_r = v.w < chance.y;
  moves[i] = (int4)(at.x + mirror_c * (w - 1), at.y + mirror_r * (h - 1), 1 - 2 * mirror_c, 1 - 2 * mirror_r);
}

// matrices (2, 3): pixel (c, r) of y, counted from the centre, comes from matrix (c, r, 1), counted from the centre
kernel void warp(int pixels, int h, int w, int each, global const real *x, global const real *matrices,
                 global real *restrict y, real fill) {
  EACH_PIXEL(pixels, h, w) {
    global const real *m = matrices + 6 * (p / each);
    const real mid_c = 0.5 * (w - 1), mid_r = 0.5 * (h - 1), u = c - mid_c, v = r - mid_r;
    const real from_c = m[0] * u + m[1] * v + m[2] + mid_c, from_r = m[3] * u + m[4] * v + m[5] + mid_r;
    y[(size_t)line * w + c] = bilinear(x + (size_t)p * h * w, h, w, from_r, from_c, fill);
  }
}

// The inverse of: scale, then skew, then rotate, then shift, each low + range u with u (n, 5)
kernel void random_matrices(int n, int h, int w, global const real *u, global real *matrices, real8 low, real8 range) {
  const int i = get_global_id(0);
  if (i >= n) return;
  const real8 p = low + range * (real8)(vload4(0, u + 5 * i), u[5 * i + 4], 0, 0, 0);
  const real turn = p.s0 / 180, skew = p.s1, scale = p.s2, shift_c = p.s3 * w, shift_r = p.s4 * h;
  const real sine = sinpi(turn), cosine = cospi(turn);
  const real2 from_c = (real2)(cosine - skew * sine, -sine - skew * cosine) / scale, from_r = (real2)(sine, cosine) / scale;
  global real *m = matrices + 6 * i;
  vstore2(from_c, 0, m);
  m[2] = -(from_c.x * shift_c + from_c.y * shift_r);
  vstore2(from_r, 0, m + 3);
  m[5] = -(from_r.x * shift_c + from_r.y * shift_r);
}

// Pixel (c, r) of y comes from (c, r) + alpha field, for the `count` images of `channels` planes from `first` on. field is
// (h, 2, count, w), columns before rows, so that one matrix product each smooths it down and across.
kernel void displace(int pixels, int h, int w, int channels, int first, int count, global const real *x,
                     global const real *field, global real *restrict y, real alpha, real fill) {
  EACH_PIXEL(pixels, h, w) {
    global const real *d = field + (((size_t)2 * r) * count + p / channels) * w;
    const real from_c = c + alpha * d[c], from_r = r + alpha * d[(size_t)count * w + c];
    const size_t plane = ((size_t)first * channels + p) * h * w;
    y[plane + r * w + c] = bilinear(x + plane, h, w, from_r, from_c, fill);
  }
}

// A square of `side` pixels, its middle anywhere in the image: u (images, 2)
kernel void cutout(int pixels, int h, int w, int channels, int side, global const real *x, global const real *u,
                   global real *restrict y, real fill) {
  EACH_PIXEL(pixels, h, w) {
    const real2 v = vload2(p / channels, u);
    const int left = min((int)(v.x * w), w - 1) - side / 2, top = min((int)(v.y * h), h - 1) - side / 2;
    const bool out = c >= left && c < left + side && r >= top && r < top + side;
    const size_t i = (size_t)line * w + c;
    y[i] = out ? fill : x[i];
  }
}

// Rows of w elements: share x + (1 - share) of row order[i] of x
kernel void mixup(int pixels, int h, int w, global const real *x, global const int *order, global const real *share,
                  global real *restrict y) {
  EACH_PIXEL(pixels, h, w) {
    const real s = share[line];
    y[(size_t)line * w + c] = s * x[(size_t)line * w + c] + (1 - s) * x[(size_t)order[line] * w + c];
  }
}
