/* What other compiled code calls: see fastdrop/include/fastdrop_api.h. */
#ifndef API_H
#define API_H

#include "fastdrop.h"
#include "fastdrop_api.h"

/* The table of functions; they run as `fd_current` says. */
extern const fastdrop_api fd_api;

/* The handler of XLA's foreign function interface. */
void *fd_xla_dropout(void *call_frame);

#endif
