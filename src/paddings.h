/* How far beyond what was asked for the kernels read and write: every such rule stands here.
 *
 * Kernels take whole words of bits and whole vectors of elements. Where an array belongs to the
 * caller they copy its end first, and need no room; what fastdrop allocates itself has room instead:
 *
 *     array                              room                             behind
 *     packed mask, keep bits of a tile   FD_BITS_PAD bytes                the byte of its last bit
 *     noise, drawn or given              FD_NOISE_PAD floats              its last variate
 *     operand that repeats (bias, sigma) FD_REPEAT_PAD elements           its last element
 *     row of weights in a tile           zeros to a multiple of FD_GROUP  its last column
 *     indices of pieces                  FD_PIECE_PAD, of any value       its last index
 */
#ifndef FASTDROP_PADDINGS_H
#define FASTDROP_PADDINGS_H

/* Elements drawn at a time: their random bytes, bits and operands stay in the L1 cache. */
#define FD_TILE 4096
/* A run may begin anywhere, but is drawn from the 128-element boundary below it. */
#define FD_ALIGN 128
#define FD_DRAW_MAX (FD_TILE + FD_ALIGN)
/* Pieces of so many elements, which may lie anywhere, are drawn together: two tiles', as their ties are then
 * enough for vectors. */
#define FD_PIECES (2 * FD_TILE / FD_ALIGN + 1)
/* A turn of the drawing loop takes two. */
#define FD_PIECE_PAD 1

/* Bits are read and written in words of 64. */
#define FD_BITS_PAD 8
#define FD_BITS_BYTES (FD_DRAW_MAX / 8 + FD_BITS_PAD)

/* Philox blocks of noise are written by whole steps of vectors, up to 32 blocks of 16 bytes at once. */
#define FD_STEP_BYTES 512

/* A run of variates may begin inside a Philox block. Ops read 64 at once, which is less. */
#define FD_NOISE_BLOCK 4 /* variates of a Philox block */
#define FD_NOISE_PAD (2 * FD_NOISE_BLOCK + FD_STEP_BYTES / 4)

/* A tile, and what the cache lines of y shift it by, find their part in one piece, wherever in the
 * operand they begin. So the operand goes on from its beginning. There is room, too, for two periods of a
 * bias that is read from there alone (fd_bias_skip). */
#define FD_REPEAT_PAD (FD_TILE + 64)

/* Columns of weights that are summed at once; one load of bits has as many. */
#define FD_GROUP 32

#endif
