/* What C lacks, and packed bits: bit i of a run is bit i % 8 of byte i / 8. Both buffers of a copy have
 * room for whole words (paddings.h). */
#ifndef FASTDROP_BITS_H
#define FASTDROP_BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* For loops that are one function with constants for arguments: without, GCC stops making copies. */
#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

/* For what is rarely called, and would take registers from the loop around it. */
#if defined(__GNUC__)
#define NOINLINE __attribute__((noinline))
#else
#define NOINLINE
#endif

/* Before a loop over the vectors of an array: without, they stay in memory. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 32")
#else
#define UNROLL
#endif

#if defined(__GNUC__)
static inline int ctz64(uint64_t v) { return __builtin_ctzll(v); }
ALWAYS_INLINE void prefetch(const char *p) { __builtin_prefetch(p); } /* else GCC takes it for nothing */
#else
ALWAYS_INLINE void prefetch(const char *p) { (void)p; }
static inline int ctz64(uint64_t v)
{
    int n = 0;
    for (; !(v & 1); v >>= 1)
        n++;
    return n;
}
#endif

static inline unsigned popcount64(uint64_t v)
{
    v -= v >> 1 & UINT64_C(0x5555555555555555);
    v = (v & UINT64_C(0x3333333333333333)) + (v >> 2 & UINT64_C(0x3333333333333333));
    v = (v + (v >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (unsigned)(v * UINT64_C(0x0101010101010101) >> 56);
}

/* Little-endian words on any machine; where its own are that, a plain copy: GCC has made vectors of
 * single bytes. */
#if defined(_MSC_VER) || (defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#define LITTLE_ENDIAN_WORD(v) (v)
#else
#define LITTLE_ENDIAN_WORD(v) (sizeof(v) == 8 ? swap64(v) : swap64(v) >> 32)
static inline uint64_t swap64(uint64_t v)
{
    uint64_t swapped = 0;
    for (int i = 0; i < 8; i++)
        swapped |= (v >> 8 * i & 0xff) << (56 - 8 * i);
    return swapped;
}
#endif
static inline uint64_t load_le64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return LITTLE_ENDIAN_WORD(v);
}
static inline void store_le64(uint8_t *p, uint64_t v)
{
    v = LITTLE_ENDIAN_WORD(v);
    memcpy(p, &v, sizeof v);
}
static inline uint32_t load_le32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return (uint32_t)LITTLE_ENDIAN_WORD(v);
}
static inline void store_le32(uint8_t *p, uint32_t v)
{
    v = (uint32_t)LITTLE_ENDIAN_WORD(v);
    memcpy(p, &v, sizeof v);
}

/* Bytes from p up to the next cache line. */
static inline size_t to_line(const char *p) { return -(size_t)(uintptr_t)p % 64; }

enum { BITS_CHUNK = 56 }; /* at any bit offset, that many fit a word */

/* m <= BITS_CHUNK bits from bit `at` on. */
static inline uint64_t bits_get(const uint8_t *src, uint64_t at, size_t m)
{
    return load_le64(src + at / 8) >> at % 8 & ((UINT64_C(1) << m) - 1);
}
/* Bits into zeros that may have anything after them. */
static inline void bits_or(uint8_t *dst, uint64_t at, uint32_t value)
{
    uint8_t *p = dst + at / 8;
    store_le64(p, load_le64(p) | (uint64_t)value << at % 8);
}

/* Bits written run after run, beginning at a byte's; the rest of the last word becomes 0. The byte
 * that is not full yet is held here: to read it back from memory just written takes longer than all
 * the rest. */
typedef struct {
    uint8_t *to;   /* the first byte that is not full */
    uint64_t word; /* its bits so far */
    unsigned held; /* how many */
} bits_writer;

/* m <= BITS_CHUNK bits; those above are 0. */
static inline void bits_put(bits_writer *w, uint64_t bits, size_t m)
{
    w->word |= bits << w->held;
    store_le64(w->to, w->word);
    w->held += (unsigned)m;
    w->to += w->held / 8;
    w->word >>= w->held & ~7u;
    w->held %= 8;
}

/* n bits from bit `from` on. Inline, or the writer would live in memory. */
static inline void bits_copy(bits_writer *w, const uint8_t *src, uint64_t from, size_t n)
{
    if (n >= 64 && from % 8 == 0 && !w->held) {
        memcpy(w->to, src + from / 8, n / 8);
        w->to += n / 8, from += n & ~(size_t)7, n &= 7;
    }
    for (size_t m; n; n -= m, from += m) {
        m = n < BITS_CHUNK ? n : BITS_CHUNK;
        bits_put(w, bits_get(src, from, m), m);
    }
}

#endif
