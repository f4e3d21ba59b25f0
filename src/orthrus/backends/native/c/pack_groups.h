/* Packs the groups of a file straight into the order in which the products read them: see group_quantized.h, and
 * quantization.py for the reference implementation of every layout. */
#ifndef ORTHRUS_PACK_GROUPS_H
#define ORTHRUS_PACK_GROUPS_H

#include <stdint.h>
#include <string.h>

#include "group_quantized.h"
#include "team.h"
#include "threads.h"

/* TILES for gemm_dequant_amx.h, DOTS for gemm_dequant.h, W4A8 for gemm_w4a8.h. */
enum { LAYOUT_TILES, LAYOUT_DOTS, LAYOUT_W4A8 };

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

/* The output l + 4 q of a group whose codes of five bits belong to the place `n` of 32 in the words of q: the order of K-quants,
 * in which those of the outputs l and l + 8 are neighbours. */
static inline int long_output(int q, int n) { return n / 16 * 4 + n % 2 * 8 + q; }

/* At five bits: words of four bits of one output, eight inputs apart, then words of the fifth bits of four by four. */
static inline uint8_t *pack_long_dots(GroupCodes codes, uint8_t *out) {
    for (int q = 0; q < 4; q++)
        for (int n = 0; n < 32; n++) {
            const uint8_t *own = codes[long_output(q, n)] + n / 2 % 8;
            out = put_word(out, (uint16_t)((own[0] & 15) | (own[8] & 15) << 4 | (own[16] & 15) << 8 | (own[24] & 15) << 12));
        }
    for (int n = 0; n < 32; n++) {
        uint16_t word = 0;
        for (int b = 0; b < 16; b++) word |= (uint16_t)(codes[long_output(b / 4, n)][b % 4 * 8 + n / 2 % 8] >> 4 << b);
        out = put_word(out, word);
    }
    return out;
}

/* Words of four codes of one output, eight inputs apart; at eight bits the same order, a byte each. */
static inline uint8_t *pack_dots(const StoredGroups *from, GroupCodes codes, uint8_t *out) {
    if (from->bits == 8) {
        for (int k = 0; k < 4; k++)
            for (int b = 0; b < 4; b++)
                for (int a = 0; a < 4; a++, out += 8) memcpy(out, codes[4 * a + b] + 8 * k, 8);
        return out;
    }
    if (from->bits == 5) return pack_long_dots(codes, out);
    for (int b = 0; b < 4; b++)
        for (int a = 0; a < 4; a++)
            for (int e = 0; e < 8; e++) {
                const uint8_t *own = codes[4 * a + b] + e;
                out = put_word(out, (uint16_t)(own[0] | own[8] << 4 | own[16] << 8 | own[24] << 12));
            }
    return out;
}

/* Bytes of two codes: of one output, four inputs apart, or, for matrix instructions, of one input, eight outputs apart. */
static inline uint8_t *pack_w4a8(GroupCodes codes, uint8_t *out) {
    for (int k = 0; k < GROUP; k += 8)
#ifdef HAVE_I8MM
        for (int o = 0; o < 8; o++)
            for (int e = k; e < k + 8; e++) *out++ = (uint8_t)(codes[o][e] | codes[o + 8][e] << 4);
#else
        for (int o = 0; o < LANES; o++)
            for (int e = k; e < k + 4; e++) *out++ = (uint8_t)(codes[o][e] | codes[o][e + 4] << 4);
#endif
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
            uint8_t *to = call->out + bytes * (from->layout == LAYOUT_DOTS ? panel * groups + group : paired);
            GroupCodes codes;
            unpack_stored_codes(from, panel, group, codes);
            if (from->layout == LAYOUT_TILES) to = pack_tiles(from, codes, to);
            else if (from->layout == LAYOUT_DOTS) to = pack_dots(from, codes, to);
            else to = pack_w4a8(codes, to);
            for (int64_t o = 0; o < LANES; o++)
                memcpy(to + 2 * o, from->scales + (panel * LANES + o) * groups + group, 2);
            for (int64_t o = 0; o < LANES && from->mins; o++)
                memcpy(to + 2 * (LANES + o), from->mins + (panel * LANES + o) * groups + group, 2);
        }
}

/* [outputs / 16, groups] packed groups for DOTS; [outputs / 32, groups, 2] for the others. `outputs` is a multiple of 32. */
void pack_groups(const StoredGroups *from, uint8_t *out, int64_t threads) {
    parallel(threads, pack_groups_share, &(GroupPacking){from, out});
}

#endif
