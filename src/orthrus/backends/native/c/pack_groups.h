/* Packs the groups of a file straight into the order in which the products read them: see group_quantized.h, and
 * quantization.py for the reference implementation of every layout. */
#ifndef ORTHRUS_PACK_GROUPS_H
#define ORTHRUS_PACK_GROUPS_H

#include <stdint.h>
#include <string.h>

#include "code_fields.h"
#include "group_quantized.h"
#include "team.h"
#include "threads.h"

/* See code_fields.h. */
int64_t lanes_in_pairs(void) { return LANES_IN_PAIRS; }

/* TILES for gemm_dequant_amx.h, DOTS for gemm_dequant.h, CODES for gemm_codes.h. */
enum { LAYOUT_TILES, LAYOUT_DOTS, LAYOUT_CODES };

/* A matrix [outputs, 32 groups] in groups of `bits` bits. The codes of a group begin `stride` bytes after those of the group
 * before it, the fifth bits before the lower ones; scales and minima are [outputs, groups] in fp16. `mins` is null where the
 * packed groups hold none. */
typedef struct {
    const uint8_t *codes;
    const uint16_t *scales, *mins;
    int64_t outputs, groups, stride, bits, layout;
} StoredGroups;

/* One group of sixteen outputs: their codes, one byte each. */
typedef uint8_t GroupCodes[LANES][GROUP];

static inline void unpack_stored_codes(const StoredGroups *from, int64_t panel, int64_t group, GroupCodes codes) {
    for (int64_t o = 0; o < LANES; o++) {
        const uint8_t *stored = from->codes + ((panel * LANES + o) * from->groups + group) * from->stride;
        if (from->bits == 8) {
            memcpy(codes[o], stored, GROUP);
            continue;
        }
        const uint8_t *low = from->bits == 5 ? stored + GROUP / 8 : stored;
        for (int i = 0; i < GROUP / 2; i++) {
            codes[o][i] = low[i] & 15;
            codes[o][i + GROUP / 2] = low[i] >> 4;
        }
        for (int i = 0; i < GROUP && from->bits == 5; i++) codes[o][i] |= (uint8_t)((stored[i / 8] >> i % 8 & 1) << 4);
    }
}

static inline uint8_t *put_word(uint8_t *out, uint16_t word) {
    memcpy(out, &word, 2);
    return out + 2;
}

/* Words of four bits of four neighbouring outputs, then words of the fifth bits of all outputs. */
static inline uint8_t *pack_tiles(const StoredGroups *from, GroupCodes codes, uint8_t *out) {
    if (from->bits == 8) return (uint8_t *)memcpy(out, codes, sizeof(GroupCodes)) + sizeof(GroupCodes);
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < GROUP; i++) {
            uint16_t word = 0;
            for (int j = 0; j < 4; j++) word |= (uint16_t)((codes[4 * k + j][i] & 15) << 4 * j);
            out = put_word(out, word);
        }
    for (int i = 0; i < GROUP && from->bits == 5; i++) {
        uint16_t word = 0;
        for (int o = 0; o < LANES; o++) word |= (uint16_t)(codes[o][i] >> 4 << o);
        out = put_word(out, word);
    }
    return out;
}

static inline uint32_t rotated(uint32_t word, int bits) { return bits % 32 ? word << bits % 32 | word >> (32 - bits % 32) : word; }

/* Words of four codes of one output, eight inputs apart: see dequantize_quads.h. */
static inline uint8_t *pack_quads(GroupCodes codes, uint8_t *out) {
    for (int q = 0; q < 4; q++)
        for (int l = 0; l < 4; l++)
            for (int e = 0; e < 8; e++) {
                const uint8_t *own = codes[4 * l + q] + e;
                out = put_word(out, (uint16_t)(own[0] | own[8] << 4 | own[16] << 8 | own[24] << 12));
            }
    return out;
}

/* Bit fields of words: see code_fields.h. */
static inline uint8_t *pack_dots(const StoredGroups *from, GroupCodes codes, uint8_t *out) {
    const int bits = (int)from->bits, fields = fields_of_word(bits);
    if (LANES_IN_PAIRS && bits == 4) return pack_quads(codes, out);
    uint32_t words[8][LANES] = {{0}};
    for (int half = 0; half < HALVES; half++)
        for (int l = 0; l < LANES; l++) {
            uint32_t code = codes[half_output(half, l)][half_input(half, l)] ^ (bits == 8 ? 128 : 0);
            int f = half % fields;
            if (!is_spare(bits, half)) words[half / fields][l] |= rotated(code, field_place(bits, f) + field_shift(bits, f) + 32);
            for (int b = 0; b < bits && is_spare(bits, half); b++) {
                int at = half % 2 * bits + b;
                words[at / 2][l] |= (code >> b & 1) << (spare_at(bits) + at % 2);
            }
        }
    memcpy(out, words, (size_t)(bits * 4 * LANES));
    return out + bits * 4 * LANES;
}

/* Byte `n` of vector `j` of the codes of a group: see group_codes.h. */
static inline uint8_t code_at(GroupCodes codes, int j, int n) {
#ifdef HAVE_I8MM
    return codes[n / 8 + j % 2 * 8][j / 2 * 8 + n % 8];
#else
    return codes[n / 4][4 * j + n % 4];
#endif
}

/* Bytes of four bits of two vectors, then bytes of the fifth bits of all; at eight bits, the vectors. */
static inline uint8_t *pack_codes(const StoredGroups *from, GroupCodes codes, uint8_t *out) {
    if (from->bits == 8) {
        for (int j = 0; j < 8; j++)
            for (int n = 0; n < 64; n++) *out++ = (uint8_t)(code_at(codes, j, n) + INT8_SHIFT);
        return out;
    }
    for (int j = 0; j < 8; j += 2)
        for (int n = 0; n < 64; n++) *out++ = (uint8_t)((code_at(codes, j, n) & 15) | code_at(codes, j + 1, n) << 4);
    for (int n = 0; n < 64 && from->bits == 5; n++) {
        uint8_t fifth = 0;
        for (int j = 0; j < 8; j++) fifth |= (uint8_t)(code_at(codes, j, n) >> 4 << j);
        *out++ = fifth;
    }
    return out;
}

typedef struct {
    const StoredGroups *from;
    uint8_t *out;
} GroupPacking;

static void pack_groups_share(void *argument, Thread thread) {
    const GroupPacking *call = argument;
    const StoredGroups *from = call->from;
    int64_t groups = from->groups, bytes = GROUP_WEIGHTS / 8 * from->bits + (from->mins ? 4 : 2) * LANES;
    Range own = split(from->outputs / LANES, thread);
    for (int64_t panel = own.begin; panel < own.end; panel++)
        for (int64_t group = 0; group < groups; group++) {
            int64_t paired = (panel / 2 * groups + group) * 2 + panel % 2;
            uint8_t *to = call->out + bytes * (from->layout == LAYOUT_TILES ? paired : panel * groups + group);
            GroupCodes codes;
            unpack_stored_codes(from, panel, group, codes);
            if (from->layout == LAYOUT_TILES) to = pack_tiles(from, codes, to);
            else if (from->layout == LAYOUT_DOTS) to = pack_dots(from, codes, to);
            else to = pack_codes(from, codes, to);
            for (int64_t o = 0; o < LANES; o++)
                memcpy(to + 2 * o, from->scales + (panel * LANES + o) * groups + group, 2);
            for (int64_t o = 0; o < LANES && from->mins; o++)
                memcpy(to + 2 * (LANES + o), from->mins + (panel * LANES + o) * groups + group, 2);
        }
}

/* [outputs / 16, groups] packed groups; [outputs / 32, groups, 2] for TILES. `outputs` is a multiple of 32. */
void pack_groups(const StoredGroups *from, uint8_t *out, int64_t threads) {
    parallel(threads, pack_groups_share, &(GroupPacking){from, out});
}

#endif
