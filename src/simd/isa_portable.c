#include "kernels/bits.h"
#include "kernels/table.h"
#include "simd/portable.h"
#define KERNELS fd_portable
#define KERNELS_NAME "portable"
#include "kernels/kernels.h"
