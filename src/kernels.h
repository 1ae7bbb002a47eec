/* The kernels of one instruction set. The includer has set the compiler's target, included the
 * simd_*.h that goes with it, and defined KERNELS (the table) and KERNELS_NAME. Everything but the
 * table is static, so that no instruction of one set leaks into another.
 *
 * A simd_*.h gives each type T its T_VEC, T_WIDTH, T_LOAD, ... (see apply.h); float16 is
 * vectors of float32 that are loaded and stored in another way, and so is bfloat16 if the header does
 * not say otherwise. */
#include "philox.h"
#include "draw.h"

#ifndef BF16_VEC
#define BF16_VEC F32_VEC
#define BF16_WIDTH F32_WIDTH
#define BF16_SET F32_SET
#define BF16_ADD F32_ADD
#define BF16_MUL F32_MUL
#define BF16_RELU F32_RELU
#define BF16_STORE_SCALARS F32_STORE
#endif
#define F32_STORE_SCALARS F32_STORE
#define F64_STORE_SCALARS F64_STORE

#define SUFFIX f32
#define SIZE 4
#define VEC F32_VEC
#define SCALAR float
#define STORE_SCALARS F32_STORE_SCALARS
#define WIDTH F32_WIDTH
#define LOAD F32_LOAD
#define LOAD_KEPT F32_LOAD_KEPT
#define STORE F32_STORE
#define STREAM F32_STREAM
#define SET F32_SET
#define ADD F32_ADD
#define MUL F32_MUL
#define RELU F32_RELU
#include "apply.h"

#define SUFFIX f64
#define SIZE 8
#define VEC F64_VEC
#define SCALAR double
#define STORE_SCALARS F64_STORE_SCALARS
#define WIDTH F64_WIDTH
#define LOAD F64_LOAD
#define LOAD_KEPT F64_LOAD_KEPT
#define STORE F64_STORE
#define STREAM F64_STREAM
#define SET F64_SET
#define ADD F64_ADD
#define MUL F64_MUL
#define RELU F64_RELU
#include "apply.h"

#define SUFFIX f16
#define SIZE 2
#define VEC F32_VEC
#define SCALAR float
#define STORE_SCALARS F32_STORE_SCALARS
#define WIDTH F32_WIDTH
#define LOAD F16_LOAD
#define LOAD_KEPT F16_LOAD_KEPT
#define STORE F16_STORE
#define STREAM F16_STREAM
#define SET F32_SET
#define ADD F32_ADD
#define MUL F32_MUL
#define RELU F32_RELU
#include "apply.h"

#define SUFFIX bf16
#define SIZE 2
#define VEC BF16_VEC
#define SCALAR float
#define STORE_SCALARS BF16_STORE_SCALARS
#define WIDTH BF16_WIDTH
#define LOAD BF16_LOAD
#define LOAD_KEPT BF16_LOAD_KEPT
#define STORE BF16_STORE
#define STREAM BF16_STREAM
#define SET BF16_SET
#define ADD BF16_ADD
#define MUL BF16_MUL
#define RELU BF16_RELU
#include "apply.h"

#define OP(name) {name##_f32, name##_f64, name##_f16, name##_bf16}
const fd_kernels KERNELS = {
    .name = KERNELS_NAME,
    .draw = draw,
    .apply = {OP(dropout), OP(dropout_add), OP(bias_dropout_add), OP(relu_dropout)},
    .add_to = OP(add_to),
    .philox = philox_blocks,
};
#undef OP
