/* Products of activations and weights of one scalar type.
 *
 * Every row is summed in fp32 in one fixed order over the depth, whatever the number of rows, so nothing has to be padded. */
#ifndef ORTHRUS_GEMM_H
#define ORTHRUS_GEMM_H

#include <stdint.h>

#include "gemm_bf16.h"
#include "gemm_f32.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"


#endif
