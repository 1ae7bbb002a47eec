/* What a header of this folder offers, checked: kernels.h includes this behind it. README.md says how
 * to add one; portable.h is the one to copy. */
#if defined(__GNUC__)
#pragma GCC diagnostic error "-Wimplicit-function-declaration"
#endif

/* Of a function: that it is there and has this type. Nothing is compiled for it. */
#define OFFERS(name, ...) \
    _Static_assert(_Generic(&name, __VA_ARGS__: 1), "simd/README.md: " #name)

/* Lanes: a vector of LANES 64-bit numbers, each a Philox word in its low half. The upper half of what
 * goes into lanes_mul32 does not count. */
_Static_assert(sizeof(Lanes) == LANES * sizeof(uint64_t), "LANES words of 64 bits");
OFFERS(lanes_set, Lanes (*)(uint64_t));                 /* the same in all lanes */
OFFERS(lanes_load, Lanes (*)(const uint64_t *));
OFFERS(lanes_store, void (*)(uint64_t *, Lanes));
OFFERS(lanes_add, Lanes (*)(Lanes, Lanes));
OFFERS(lanes_mul32, Lanes (*)(Lanes, Lanes));           /* low half times low half, 64 bits */
OFFERS(lanes_swap, Lanes (*)(Lanes));                   /* the halves of each lane, exchanged */
OFFERS(lanes_low, Lanes (*)(Lanes));                    /* the upper halves become 0 */
OFFERS(lanes_shr, Lanes (*)(Lanes, int));
OFFERS(lanes_xor, Lanes (*)(Lanes, Lanes));
OFFERS(lanes_xor3, Lanes (*)(Lanes, Lanes, Lanes));     /* the first comes last, if that matters */
/* Which Philox block, of LANES that follow each other, each lane computes: such that the two halves of
 * blocks, interleaved in the simplest way, are in natural order. */
OFFERS(lanes_order, Lanes (*)(void));

/* 2 * LANES halves of blocks, as bytes in natural order: low and high half of block 0, 1, ... */
OFFERS(halves_store, void (*)(Lanes low, Lanes high, uint8_t *to));
/* Those bytes against t, one bit each, in words of 64, or in the lowest bits of one: not below t, equal
 * to t. They have been through lanes_ordered, which is an xor with a constant (0 where bytes compare
 * unsigned). */
OFFERS(lanes_ordered, Lanes (*)(Lanes));
OFFERS(halves_compare, void (*)(Lanes low, Lanes high, uint8_t t, uint64_t *least, uint64_t *equal));
/* Word index % 4 of the block in each lane, as a number; and one bit for each lane that is below b. Both
 * are less than 2^32. */
OFFERS(lanes_word, Lanes (*)(Lanes low, Lanes high, Lanes index));
OFFERS(lanes_below, uint32_t (*)(Lanes a, uint32_t b));

/* Words: a vector of F32_WIDTH 32-bit words, for continuous noise; the arithmetic wraps. */
_Static_assert(sizeof(Words) == F32_WIDTH * sizeof(uint32_t), "F32_WIDTH words of 32 bits");
OFFERS(words_of, Words (*)(Lanes, int part));           /* the part-th vector of words in lanes */
OFFERS(lanes_of, Lanes (*)(const Words *part));         /* and back, from all parts */
OFFERS(words_set, Words (*)(uint32_t));
OFFERS(words_add, Words (*)(Words, Words));
OFFERS(words_sub, Words (*)(Words, Words));
OFFERS(words_and, Words (*)(Words, Words));
OFFERS(words_xor, Words (*)(Words, Words));
OFFERS(words_shl, Words (*)(Words, int));
OFFERS(words_shr, Words (*)(Words, int));               /* zeros come in */
OFFERS(words_sar, Words (*)(Words, int));               /* the sign comes in */
OFFERS(words_float, F32_VEC (*)(Words));                /* signed number to float32, to nearest even */
OFFERS(words_f32, F32_VEC (*)(Words));                  /* the same bits as float32 */
OFFERS(f32_words, Words (*)(F32_VEC));                  /* and back */

/* BITS: 32 keep bits, in whatever form LOAD_KEPT likes. */
OFFERS(bits_of, BITS (*)(uint32_t));
#undef OFFERS
