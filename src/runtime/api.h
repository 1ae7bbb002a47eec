/* What other compiled code calls: see fastdrop/include/fastdrop_api.h. */
#ifndef API_H
#define API_H

#include "fastdrop.h"
#include "fastdrop_api.h"

/* The table of functions; they run as `fd_current` says. */
extern const fastdrop_api fd_api;

/* A block of a larger array, whose elements are contiguous, and where they lie in its mask array. */
typedef struct {
    int ndim;
    uint64_t shared; /* a bit per axis that shares a draw */
    int64_t shape[FD_MAX_DIMS], start[FD_MAX_DIMS], whole[FD_MAX_DIMS];
} fd_block;

/* An op on a block. bits: NULL if its elements have consecutive indices (`fd_is_run`), else room for those
 * of `most` elements that are drawn at once. */
int fd_is_run(const fd_block *block);
void fd_forward_block(fd_task *task, const fd_block *block, uint64_t most, uint8_t *bits);
/* Its place in the mask array. */
fd_place fd_place_of(const fd_block *block);

/* The handler of XLA's foreign function interface. */
void *fd_xla_dropout(void *call_frame);

#endif
