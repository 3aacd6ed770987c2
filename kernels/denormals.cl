// Denormal numbers are zero in this thread from here on, as -cl-denorms-are-zero has it; for programs built without that option
// (clnn/runtime/program.py says which). On x86 each denormal number costs a hundred times as much; elsewhere they cost little.
static inline void flush_denormals() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
#endif
}
