#include "fastdrop.h"
#include "bits.h"
#include <string.h>
#include "simd_portable.h"
#define KERNELS fd_portable
#define KERNELS_NAME "portable"
#include "kernels.h"
