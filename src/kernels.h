/* The kernels of one instruction set. The includer has set the compiler's target, included the
 * simd_*.h that goes with it, and defined KERNELS (the table) and KERNELS_NAME. Everything but the
 * table is static, so that no instruction of one set leaks into another. */
#include "philox.h"
#include "draw.h"

#define SUFFIX f32
#define ELEM float
#define VEC F32_VEC
#define WIDTH F32_WIDTH
#define LOAD_KEPT F32_LOAD_KEPT
#define STORE F32_STORE
#define SET F32_SET
#define MUL F32_MUL
#include "apply.h"

#define SUFFIX f64
#define ELEM double
#define VEC F64_VEC
#define WIDTH F64_WIDTH
#define LOAD_KEPT F64_LOAD_KEPT
#define STORE F64_STORE
#define SET F64_SET
#define MUL F64_MUL
#include "apply.h"

const fd_kernels KERNELS = {
    .name = KERNELS_NAME,
    .draw = draw,
    .apply = {[FD_FLOAT32] = apply_f32, [FD_FLOAT64] = apply_f64},
    .philox = philox_blocks,
};
