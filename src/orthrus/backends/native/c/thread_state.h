/* The floating-point state of a thread. A caller may have set flush-to-zero in its own thread only, or before the pool of
 * threads was made: every thread sets the default itself, or the bits of a row would depend on which thread computed it. */
#if defined(__x86_64__)
enum { DEFAULT_MXCSR = 0x1f80 }; /* round to nearest, keep denormals, raise nothing */
typedef unsigned FloatState;
static inline FloatState set_default_state(void) {
    FloatState before = _mm_getcsr();
    _mm_setcsr(DEFAULT_MXCSR);
    return before;
}
static inline void restore_state(const FloatState *before) { _mm_setcsr(*before); }
#else
typedef int FloatState;
static inline FloatState set_default_state(void) { return 0; }
static inline void restore_state(const FloatState *before) { (void)before; }
#endif

/* The default from here to the end of the scope, whichever way that is left. */
#define DEFAULT_FLOAT_STATE                                                                                            \
    __attribute__((cleanup(restore_state), unused)) FloatState state_before = set_default_state();
