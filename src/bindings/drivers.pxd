# The C side, as far as the bindings use it; the headers say what things mean.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "paddings.h" nogil:
    int FD_BITS_PAD, FD_REPEAT_PAD, FD_NOISE_PAD

cdef extern from "kernels/table.h" nogil:
    ctypedef struct fd_draw:
        pass
    ctypedef enum fd_dtype:
        FD_FLOAT32, FD_FLOAT64, FD_FLOAT16, FD_BFLOAT16
    ctypedef enum fd_op:
        FD_DROPOUT, FD_DROPOUT_ADD, FD_BIAS_DROPOUT_ADD, FD_RELU_DROPOUT
        FD_ALPHA_DROPOUT, FD_ZONEOUT
        FD_BIAS_RELU_DROPOUT, FD_BIAS_GELU_DROPOUT
        FD_DRAWN_OPS, FD_BIAS_GELU_BACKWARD, FD_OPS
    bint fd_reads_residual(fd_op)
    bint fd_reads_bias(fd_op)
    bint fd_is_relu(fd_op)
    ctypedef struct fd_constants:
        double scale, shift, dropped
    ctypedef struct fd_operands:
        const char *x
        const char *residual
        const char *bias
        char *y
        uint8_t *active
        fd_constants constants
        size_t bias_skip
    ctypedef enum fd_noise:
        FD_NORMAL, FD_LOGISTIC
    ctypedef enum fd_noise_op:
        FD_NOISE_SCALE, FD_NOISE_ADD, FD_CONCRETE
    ctypedef struct fd_noise_constants:
        double sigma, logit, p, inverse_temperature, scale
    ctypedef struct fd_noise_operands:
        const char *x
        const char *g
        const char *sigma
        const float *noise
        char *y
        fd_noise_constants constants
    ctypedef struct fd_softmax:
        const char *x
        char *weights
        char *y
        const uint8_t *bits
        const int64_t *live
        const uint8_t *mask
        const int64_t *mask_row
        size_t mask_bytes, length
        double factor, scale
    ctypedef struct fd_kernels:
        const char *name
        void (*philox)(const uint32_t *counters, const uint32_t *key, int rounds, size_t n,
                       uint32_t *words)

cdef extern from "fastdrop.h" nogil:
    int FD_MAX_DIMS, FD_PARTS
    size_t FD_WORDS(size_t bits)
    const fd_kernels *fd_kernels_at(int i)
    uint64_t fd_cache_bytes()
    const char *fd_compiler()
    ctypedef struct fd_machine:
        pass
    fd_draw fd_draw_of(uint64_t seed, uint64_t call, double p)
    double fd_scale(double p)

    ctypedef struct fd_rows:
        pass
    ctypedef struct fd_task:
        fd_machine machine
        fd_draw draw
        uint64_t start
        fd_rows rows
        fd_op op
        fd_dtype dtype
        fd_operands operands
        size_t bias_length, n
    size_t fd_bias_skip(const fd_task *)
    void fd_forward(const fd_task *, uint8_t *saved)
    void fd_backward(const fd_task *, const uint8_t *bits)
    uint64_t fd_parts_of(uint64_t rows)
    void fd_backward_sums(const fd_task *, const uint8_t *bits, size_t row, double *sums)
    void fd_lookup(const fd_task *, const int64_t *ids, const uint8_t *bits, size_t row)
    void fd_add_rows(fd_machine, fd_dtype, const char *x, const int64_t *ids, size_t n, size_t row,
                     double *sums)
    ctypedef struct fd_axis:
        int64_t n, x, y, bit
    void fd_apply(const fd_task *, const uint8_t *bits, int ndim, const fd_axis *)

    ctypedef struct fd_place:
        uint64_t start
        const int64_t *rows
        int ndim
        int64_t *shape  # in truth an array of FD_MAX_DIMS, as stride is
        int64_t *stride
    bint fd_rows_of(const fd_place *, fd_rows *)
    void fd_draw_bits(fd_machine, const fd_draw *, const fd_place *, uint8_t *bits)
    void fd_draw_noise(fd_machine, const fd_draw *, fd_noise, const fd_place *, float *noise)
    void fd_forward_walk(const fd_task *, const fd_place *, const fd_axis *, uint64_t most,
                         uint8_t *bits)

    ctypedef struct fd_noise_task:
        fd_machine machine
        fd_draw draw
        uint64_t start
        fd_noise kind
        fd_noise_op op
        fd_dtype dtype
        fd_noise_operands operands
        size_t sigma_length, n
    void fd_noise_forward(const fd_noise_task *)
    void fd_noise_backward(const fd_noise_task *, char *dx, char *t, size_t row, double *sums)

    ctypedef struct fd_softmax_task:
        fd_machine machine
        int back
        fd_dtype dtype
        fd_softmax operands
        uint64_t rows
    void fd_softmax_rows(const fd_softmax_task *)

    ctypedef struct fd_linear:
        fd_dtype dtype
        size_t batch, inputs, outputs
        const char *x
        const char *weight
        const char *bias
        char *y
        const char *dy
        char *dx
        char *dweight
        char *dbias
        char *room
    size_t fd_connect_room(fd_machine, const fd_linear *)
    void fd_connect(fd_machine, const fd_draw *, uint64_t first, const fd_linear *)
    void fd_connect_back(fd_machine, const fd_draw *, uint64_t first, const fd_linear *)

    ctypedef struct fd_squares:
        size_t maps, height, width, square_height, square_width
    void fd_drop_squares(fd_machine, fd_squares, size_t examples, const uint8_t *seeds,
                         uint64_t *keep)
    void fd_apply_examples(const fd_task *, const uint64_t *keep, size_t bits, int ndim,
                           const fd_axis *)

cdef extern from "runtime/settings.h" nogil:
    ctypedef struct fd_settings:
        const fd_kernels *kernels
        int threads
        uint64_t non_temporal_bytes
        int64_t piece
        int bfloat16
    fd_settings settings "fd_current"
    fd_machine machine "fd_machine_now"()

cdef extern from "runtime/pool.h" nogil:
    void (*pool_refused)() noexcept

cdef extern from "runtime/api.h":
    ctypedef struct fastdrop_api:
        pass
    const fastdrop_api fd_api
    void *fd_xla_dropout(void *call_frame)
