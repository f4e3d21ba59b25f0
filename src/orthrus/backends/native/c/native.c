/* All kernels of a pass on a CPU, compiled on the user's machine, once per type of value: see compiled.py.
 *
 * Every row is computed alone, in one fixed order, so its bits cannot depend on the rows beside it. All arithmetic is
 * fp32; VALUE is how numbers are stored.
 */
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include "thread_state.h"
#include "small.h"
#include "training.h"
#include "tiles.h"
#include "products.h"
#include "blocks.h"
#include "int8.h"
#include "grouped.h"
#include "attention.h"
#include "stack.h"
