// The next token of a text, drawn from a model's scores of all tokens. A group of WIDTH work-items, 1 on CPUs, works on a text.
#include "group.cl"
#if WIDTH > 1
#define MEET barrier(CLK_LOCAL_MEM_FENCE);
#else
#define MEET
#endif
#define WEIGHT(i) exp((x[i] - top) / heat)          // of score x[i], the largest of which is top: its probability, but for a factor

// The first of n scores up to which the weights add up to `target`, and what they add up to; where rounding leaves all of them
// below it, the last that has a weight. part[w] is the sum of those from w * each on.
INLINE int reach(real target, int n, int each, global const real *x, real top, real heat, local const real *part, real *sum) {
  TOTAL(real, whole);
  int at = -1;
  for (int w = 0; w < WIDTH && at < 0; w++) {
    if (WHOLE(whole) + part[w] < target) ADD_TO(real, whole, part[w])
    else for (int i = w * each; i < min(n, (w + 1) * each) && at < 0; i++) {
      const real weight = WEIGHT(i);
      ADD_TO(real, whole, weight)
      if (weight > 0 && WHOLE(whole) >= target) at = i;
    }
  }
  *sum = WHOLE(whole);
  if (at < 0) for (at = n - 1; at > 0 && !(WEIGHT(at) > 0); at--);
  return at;
}

// scores (texts, tokens). With `order`, `ranked` has them sorted, the largest first, and order says which tokens these are. how =
// (temperature, p, k): of the k largest scores the fewest are drawn from whose probabilities add up to p; temperature 0 takes the
// largest. state[0] is the number of this draw: uniform[draw] in [0, 1) decides, and the token goes to text[draw], the largest
// score to top_of[draw], the scores to told[draw], if given; all (draws, texts). next (texts, width) are the tokens that the next
// step reads: they move up by one. Where the largest score is no number or infinite, the token is 0.
kernel void draw_token(int tokens, int texts, int width, global const real *scores, global const real *ranked, global const int *order,
                       global const real *how, global const real *uniform, global const int *state, global int *next,
                       global int *text, global real *top_of, global real *told) {
  local real part[WIDTH];
  local int best[WIDTH];
  const int r = get_group_id(0), id = get_local_id(0);
  const size_t to = (size_t)state[0] * texts + r;
  global const real *x = (order ? ranked : scores) + (size_t)r * tokens;
  const real heat = how[0];
  const int n = order ? min(tokens, (int)how[2]) : tokens, each = (tokens + WIDTH - 1) / WIDTH;
  const int first = min(tokens, id * each), end = min(tokens, first + each);
  int high = first;
  for (int i = first + 1; i < end; i++) if (x[i] > x[high] || x[i] != x[i]) high = i;
  best[id] = first < end ? high : 0;
  MEET
  high = best[0];
  for (int w = 1; w < WIDTH; w++) if (x[best[w]] > x[high] || x[best[w]] != x[best[w]]) high = best[w];
  const real top = x[high];
  TOTAL(real, mine);
  if (heat > 0) for (int i = first; i < min(n, end); i++) ADD_TO(real, mine, WEIGHT(i))
  part[id] = WHOLE(mine);
  if (told) for (int i = first; i < end; i++) told[to * tokens + i] = scores[(size_t)r * tokens + i];
  MEET
  if (id) return;
  int at = high;
  if (!(fabs(top) < INFINITY)) at = -1;
  else if (heat > 0) {
    TOTAL(real, whole);
    for (int w = 0; w < WIDTH; w++) ADD_TO(real, whole, part[w])
    real sum = WHOLE(whole);
    int kept = n;
    if (how[1] < 1) kept = reach(how[1] * sum, n, each, x, top, heat, part, &sum) + 1;
    real found;
    at = reach(uniform[to] * sum, kept, each, x, top, heat, part, &found);
  }
  const int token = at < 0 ? 0 : order ? order[(size_t)r * tokens + at] : at;
  next += (size_t)r * width;
  for (int j = 1; j < width; j++) next[j - 1] = next[j];
  next[width - 1] = token;
  text[to] = token;
  top_of[to] = top;
}
