/* What every call reads, and any thread may set meanwhile: each by itself, in no order. */
#ifndef FASTDROP_SETTINGS_H
#define FASTDROP_SETTINGS_H

#include "fastdrop.h"

#if defined(_MSC_VER)
#define FD_SHARED volatile /* no atomics in its C; it reads and writes an aligned word whole */
#else
#define FD_SHARED _Atomic
#endif

typedef struct {
    const fd_kernels *FD_SHARED kernels;
    FD_SHARED int threads;
    FD_SHARED uint64_t non_temporal_bytes;
    FD_SHARED int64_t piece; /* elements of a mask that are drawn at once where none is kept */
    FD_SHARED int bfloat16;  /* NumPy's number of ml_dtypes' type, once one has been seen, or -1 */
} fd_settings;

extern fd_settings fd_current;

/* The machine as it is now. */
static inline fd_machine fd_machine_now(void)
{
    return (fd_machine){fd_current.kernels, fd_current.threads, fd_current.non_temporal_bytes};
}

#endif
