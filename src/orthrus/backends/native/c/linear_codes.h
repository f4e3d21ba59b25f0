/* Linear maps whose codes are multiplied by int8 activations: a translation unit of their own (linear_codes.c), as those of
 * linear_dequant.h are. */
#ifndef ORTHRUS_LINEAR_CODES_H
#define ORTHRUS_LINEAR_CODES_H

#include <stdint.h>

#include "linear_weights.h"
#include "quantize.h"
#include "simd.h"
#include "threads.h"

/* The outputs in `range` of a map in one format or in PARTS. */
__attribute__((visibility("hidden"))) void linear_codes_range(QuantizedRows x, const LinearWeights *w, scalar_t *y,
                                                              int64_t rows, Range range);

#endif
