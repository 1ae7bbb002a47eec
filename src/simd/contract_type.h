/* What a header of this folder offers for an element type, by the names that the kernels use, and
 * checked: apply.h includes this once per type. TYPE (F32, F64, F16, BF16) says how elements are in
 * memory, COMPUTE (F32, F64, or what BF16_COMPUTE says) how in registers. Any of it may be a macro or a
 * function. p is char *, and aligned in no way. */
#ifndef NAME
#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(name, suffix) PASTE(name, suffix)

#define VEC PASTE(COMPUTE, VEC)     /* a vector ... */
#define WIDTH PASTE(COMPUTE, WIDTH) /* ... of so many elements: 1, 2, 4, ... 32 */
#define SET(s) PASTE(COMPUTE, SET)(s) /* of a double, rounded */
#define ADD(a, b) PASTE(COMPUTE, ADD)(a, b)
#define MUL(a, b) PASTE(COMPUTE, MUL)(a, b)
/* v where it is not <= 0, else +0; *active: the bits of those. */
#define RELU(v, active) PASTE(COMPUTE, RELU)(v, active)
/* u where bits j ... j + WIDTH - 1 of b are set, else v. */
#define CHOOSE(u, v, b, j) PASTE(COMPUTE, CHOOSE)(u, v, b, j)

#define LOAD(p) PASTE(TYPE, LOAD)(p)
/* The elements at p where bits j ... are set, else +0: what is dropped is gone before it meets
 * arithmetic, infinite and NaN included. */
#define LOAD_KEPT(p, b, j) PASTE(TYPE, LOAD_KEPT)(p, b, j)
#define STORE(p, v) PASTE(TYPE, STORE)(p, v) /* rounds to nearest even */
/* Past the caches, if there is such an instruction; p is at a multiple of the vector's size. */
#define NT_STORE(p, v) PASTE(TYPE, NT_STORE)(p, v)
#define LOAD_SCALARS(p) PASTE(COMPUTE, LOAD)(p) /* of the compute type */
#define STORE_SCALARS(p, v) PASTE(COMPUTE, STORE)(p, v)

#define SUB(a, b) PASTE(COMPUTE, SUB)(a, b)
#define DIV(a, b) PASTE(COMPUTE, DIV)(a, b)
#define MIN(a, b) PASTE(COMPUTE, MIN)(a, b)
#define MAX(a, b) PASTE(COMPUTE, MAX)(a, b) /* as MIN: b, if b is a NaN */
#define POWER(v) PASTE(COMPUTE, POWER)(v) /* 2^n, n in the lowest bits of v */
/* F32 and F64 alone, for noise. */
#define FROM_F32(p) PASTE(COMPUTE, FROM_F32)(p) /* from const float * */
#endif

#define GIVES(type, expression) _Static_assert(_Generic((expression), type: 1), #expression)
static inline void NAME(contract, SUFFIX)(char *p, VEC v, BITS b, uint32_t *active)
{
    GIVES(VEC, SET(1.0));
    GIVES(VEC, ADD(v, v));
    GIVES(VEC, MUL(v, v));
    GIVES(VEC, RELU(v, active));
    GIVES(VEC, CHOOSE(v, v, b, 0));
    GIVES(VEC, LOAD(p));
    GIVES(VEC, LOAD_KEPT(p, b, 0));
    GIVES(VEC, LOAD_SCALARS(p));
    STORE(p, v);
    NT_STORE(p, v);
    STORE_SCALARS(p, v);
    GIVES(VEC, SUB(v, v));
    GIVES(VEC, DIV(v, v));
    GIVES(VEC, MIN(v, v));
    GIVES(VEC, MAX(v, v));
    GIVES(VEC, POWER(v));
#if SIZE >= 4
    GIVES(VEC, FROM_F32((const float *)p));
    GIVES(F32_VEC, F32_SQRT(F32_SET(1.0)));
#endif
    _Static_assert(WIDTH > 0 && 32 % WIDTH == 0, "WIDTH divides 32");
}
#undef GIVES
