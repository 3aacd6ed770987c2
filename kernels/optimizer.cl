// One launch updates a whole flat store of parameters: w, its gradient g, and what the rule keeps (s0, s1).
// A rule is one function. Weight decay and L1 reach elements before `decays` only (weights; biases lie behind them).
// rate holds this step's row of the optimizer's table: (-lr, beta) for decaying and for other parameters, as sinks use
// them, then (lr, a) and (b, c), which the rule defines.
#include "common.cl"

#define RULE_ARGS real *w, real g, real *s0, real *s1, real lr, real a, real b, real c
static inline real sign_of(real x) { return x > 0 ? (real)1 : x < 0 ? (real)-1 : (real)0; }

// w -= lr g
static inline void sgd(RULE_ARGS) { *w -= lr * g; }
// v = a v + g; w -= lr v (Sutskever et al. 2013, in PyTorch's form)
static inline void momentum(RULE_ARGS) { *s0 = a * *s0 + g; *w -= lr * *s0; }
static inline void nesterov(RULE_ARGS) { *s0 = a * *s0 + g; *w -= lr * (g + a * *s0); }
// g is the velocity already: the weight gradient's GEMM added a v to it
static inline void fused_momentum(RULE_ARGS) { *w -= lr * g; }
// Kingma and Ba 2015, algorithm 1: a = beta1, b = beta2, lr and c corrected on the host for the step's number
static inline void adam(RULE_ARGS) {
  *s0 = a * *s0 + (1 - a) * g;
  *s1 = b * *s1 + (1 - b) * g * g;
  *w -= lr * *s0 / (sqrt(*s1) + c);
}

#ifndef FACTOR
#define FACTOR 1   // of the learning rate, for these parameters
#endif

#ifdef RULE
kernel void update(int n, int decays, global real *g, global real *w, global real *s0, global real *s1,
                   global const real2 *table, global const int *at, real decay, real l1) {
  const int i = get_global_id(0);
  if (i >= n) return;
  const real2 x = SCALE(table, at, 2), y = SCALE(table, at, 3);
  real v = w[i], d = g[i];
#ifdef L2
  if (i < decays) {
    d += decay * v + l1 * sign_of(v);
#ifdef FUSED
    g[i] = d;                                // the velocity takes the decay in
#endif
  }
#endif
#ifdef DECOUPLED
  if (i < decays) v *= 1 + FACTOR * (SCALE(table, at, 0).y - 1);   // 1 - lr decay
#endif
  real t0 = 0, t1 = 0;
#if STATES > 0
  t0 = s0[i];
#endif
#if STATES > 1
  t1 = s1[i];
#endif
  RULE(&v, d, &t0, &t1, FACTOR * x.x, x.y, y.x, y.y);
  w[i] = v;
#if STATES > 0
  s0[i] = t0;
#endif
#if STATES > 1
  s1[i] = t1;
#endif
}
#endif
