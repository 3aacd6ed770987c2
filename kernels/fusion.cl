// How the work-items of a step that became one kernel share out its work (clnn/runtime/fusion.py writes that kernel). A step
// is a row of stages, a stage some tickets: each work-item has a queue of neighbouring ones. It takes those of its own queue
// first, and then others', so that what a core works on in a stage is mostly what it wrote in those before, and in its caches.
// Before a stage it waits until all tickets before that are done. Each of them was taken by a work-item that runs, so
// nobody waits for ever, however few of the work-items run at the same time. They wait busily: a stage lasts microseconds,
// and a core that sleeps takes tens of them to wake.
#define DONE 0                             // how many tickets are done; each of these numbers is in a cache line of its own
#define GONE 32                            // how many work-items have left this launch
#define SEEN 64                            // in a trial of a device what they saw of each other, and that one gave up
#define GAVE_UP 65
#define QUEUE(q) (96 + 32 * (q))           // how many of a queue's tickets are taken
#include "denormals.cl"

int take(global int *turn, int queue, int end) {  // the next of a queue's tickets before `end`; -1 where all are taken
  int ticket = *(volatile global int *)(turn + QUEUE(queue));
  while (ticket < end) {
    const int seen = __sync_val_compare_and_swap(turn + QUEUE(queue), ticket, ticket + 1);
    if (seen == ticket) return ticket;
    ticket = seen;
  }
  return -1;
}

void done(global int *turn) { __sync_fetch_and_add(turn + DONE, 1); }

void wait_for(global int *turn, int tickets) {
#ifdef PATIENCE                            // a trial
  int left = PATIENCE;
#endif
  while (*(volatile global int *)(turn + DONE) < tickets) {
#ifdef PATIENCE
    if (!left--) turn[GAVE_UP] = 1;
    if (*(volatile global int *)(turn + GAVE_UP)) return;
#endif
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }
  __sync_synchronize();                    // what others have written is read after this
}

void leave(global int *turn, int workers) {  // the last one out prepares the next launch
  if (__sync_add_and_fetch(turn + GONE, 1) < workers) return;
  turn[DONE] = turn[GONE] = 0;
  for (int q = 0; q < workers; q++) turn[QUEUE(q)] = 0;
}
