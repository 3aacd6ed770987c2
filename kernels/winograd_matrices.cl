// Winograd's matrices (Lavin and Gray 2016), M 2 or 4, A = M + 2, along one axis of arrays of A inputs d, 3 weights g, A products m,
// M gradients y; of type T. Included.
#define A (M + 2)
#if M == 2
#define BT(o, d) { o[0] = d[0] - d[2]; o[1] = d[1] + d[2]; o[2] = d[2] - d[1]; o[3] = d[1] - d[3]; }
#define GW(o, g) { const T a = (g[0] + g[2]) / 2, b = g[1] / 2; o[0] = g[0]; o[1] = a + b; o[2] = a - b; o[3] = g[2]; }
#define AT(o, m) { o[0] = m[0] + m[1] + m[2]; o[1] = m[1] - m[2] - m[3]; }
#define AY(o, y) { o[0] = y[0]; o[1] = y[0] + y[1]; o[2] = y[0] - y[1]; o[3] = -y[1]; }
#define GT(o, m) { const T a = (m[1] + m[2]) / 2; o[0] = m[0] + a; o[1] = (m[1] - m[2]) / 2; o[2] = a + m[3]; }
#else
#define BT(o, d)                                                                                                          \
  { const T a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], s = d[4] - d[2], t = 2 * (d[3] - d[1]);                             \
    o[0] = 4 * d[0] - 5 * d[2] + d[4]; o[1] = a + b; o[2] = a - b; o[3] = s + t; o[4] = s - t; o[5] = 4 * d[1] - 5 * d[3] + d[5]; }
#define GW(o, g)                                                                                                          \
  { const T a = (g[0] + g[2]) / -6, b = g[1] / -6, s = g[0] / 24 + g[2] / 6, t = g[1] / 12;                               \
    o[0] = g[0] / 4; o[1] = a + b; o[2] = a - b; o[3] = s + t; o[4] = s - t; o[5] = g[2]; }
#define AT(o, m)                                                                                                          \
  { const T a = m[1] + m[2], b = m[1] - m[2], s = m[3] + m[4], t = m[3] - m[4];                                           \
    o[0] = m[0] + a + s; o[1] = b + 2 * t; o[2] = a + 4 * s; o[3] = b + 8 * t + m[5]; }
#define AY(o, y)                                                                                                          \
  { const T a = y[0] + y[2], b = y[1] + y[3], s = y[0] + 4 * y[2], t = 2 * y[1] + 8 * y[3];                               \
    o[0] = y[0]; o[1] = a + b; o[2] = a - b; o[3] = s + t; o[4] = s - t; o[5] = y[3]; }
#define GT(o, m)                                                                                                          \
  { const T a = (m[1] + m[2]) / 6, s = m[3] + m[4];                                                                       \
    o[0] = m[0] / 4 - a + s / 24; o[1] = (m[2] - m[1]) / 6 + (m[3] - m[4]) / 12; o[2] = s / 6 - a + m[5]; }
#endif
