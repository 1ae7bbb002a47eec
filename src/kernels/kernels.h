/* The kernels of one instruction set. The includer, a simd/isa_*.c, has set the compiler's target and
 * included a header of simd/, and defined KERNELS (the table) and KERNELS_NAME. Everything except the
 * table is static, so that no instruction of one set leaks into another.
 *
 * In registers float16 is float32, and so is bfloat16 unless the header has a BF16_COMPUTE. */
#include "simd/contract.h"
#include "kernels/philox.h"
#include "kernels/draw.h"
#include "kernels/noise.h"
#include <float.h>
#include <math.h>

#define F32_FROM_F32(p) F32_LOAD((const char *)(p))
#define F32_POWER(v) words_f32(words_add(words_shl(f32_words(v), 23), words_set(0x3f800000)))
#ifndef BF16_COMPUTE
#define BF16_COMPUTE F32
#endif

#define TYPE F32
#define COMPUTE F32
#define SUFFIX f32
#define SIZE 4
#define SCALAR float
#include "kernels/apply.h"

#define TYPE F64
#define COMPUTE F64
#define SUFFIX f64
#define SIZE 8
#define SCALAR double
#include "kernels/apply.h"

#define TYPE F16
#define COMPUTE F32
#define SUFFIX f16
#define SIZE 2
#define SCALAR float
#include "kernels/apply.h"

#define TYPE BF16
#define COMPUTE BF16_COMPUTE
#define SUFFIX bf16
#define SIZE 2
#define SCALAR float
#include "kernels/apply.h"

#define OP(name) {name##_f32, name##_f64, name##_f16, name##_bf16}
const fd_kernels KERNELS = {
    .name = KERNELS_NAME,
    .draw_bits = draw_bits,
    .apply = {OP(dropout), OP(dropout_add), OP(bias_dropout_add), OP(relu_dropout),
              OP(alpha_dropout), OP(zoneout), OP(bias_relu_dropout), OP(bias_gelu_dropout),
              OP(bias_gelu_backward)},
    .forward = {OP(dropout_forward), OP(dropout_add_forward), OP(bias_dropout_add_forward),
                OP(relu_dropout_forward), OP(alpha_dropout_forward), OP(zoneout_forward),
                OP(bias_relu_dropout_forward), OP(bias_gelu_dropout_forward)},
    .stream = {OP(dropout_stream), OP(dropout_add_stream), OP(bias_dropout_add_stream),
               OP(relu_dropout_stream), OP(alpha_dropout_stream), OP(zoneout_stream),
               OP(bias_relu_dropout_stream), OP(bias_gelu_dropout_stream)},
    .draw_noise = draw_noise,
    .apply_noise = {OP(noise_scale), OP(noise_add), OP(noise_gradient), OP(concrete),
                    OP(concrete_gradient)},
    .add_rows = OP(add_rows),
    .softmax = {OP(softmax), OP(softmax_back)},
    .connect = {connect_f32, connect_f64},
    .connect_back = {connect_back_f32, connect_back_f64},
    .philox = philox_blocks,
};
#undef OP
