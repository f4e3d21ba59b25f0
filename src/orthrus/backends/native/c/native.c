/* The C kernels of a forward pass on a CPU, compiled once per scalar type (see build.py), except for those in
 * linear_dequant.c and linear_codes.c.
 *
 * Every row is computed independently and in one fixed order, so its bits do not depend on the other rows of a call. All
 * arithmetic is fp32 or exact integers; `scalar_t` is the type in which values are stored. */
#include "attention.h"
#include "block_softmax.h"
#include "draft_tree.h"
#include "forward.h"
#include "gemm.h"
#include "gemm_int8.h"
#include "kl_div.h"
#include "largest_logits.h"
#include "library.h"
#include "pack_groups.h"
#include "pack_int8.h"
#include "rms_norm.h"
#include "rope.h"
#include "row_candidates.h"
#include "sampled_row.h"
#include "silu_mul.h"
#include "struct_sizes.h"
