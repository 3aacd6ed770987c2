// How the work-items of a step that became one kernel share out its work (clnn/runtime/fusion.py writes that kernel). A step
// is a row of stages, a stage some tickets. Tickets are numbered through the steps of a launch, and each work-item takes the
// next one. Before a stage it waits until all tickets before that are done. Each of them was taken by a work-item that
// runs, so nobody waits for ever, however few of the work-items run at the same time. They wait busily: a stage lasts
// microseconds, and a core that sleeps takes tens of them to wake.
#define TAKEN 0                            // the next ticket, and how many are done; each in a cache line of its own
#define DONE 32
#define GONE 64                            // how many work-items have left this launch
#define SEEN 96                            // in a trial of a device what they saw of each other, and that one gave up
#define GAVE_UP 97
#include "denormals.cl"

int take(global int *turn) { return __sync_fetch_and_add(turn + TAKEN, 1); }

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
  if (__sync_add_and_fetch(turn + GONE, 1) == workers) turn[TAKEN] = turn[DONE] = turn[GONE] = 0;
}
