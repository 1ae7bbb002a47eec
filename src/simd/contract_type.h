/* What a header of this folder offers for the element type TYPE (F32, F64, F16, BF16), by the names
 * that the kernels use, and checked: kernels.h includes this once per type. Any of it may be a macro or
 * a function. 16-bit types are float32 in registers. */
#ifndef NAME
#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(name, suffix) PASTE(name, suffix)

#define VEC PASTE(TYPE, VEC)     /* a vector in the compute type ... */
#define WIDTH PASTE(TYPE, WIDTH) /* ... of so many elements: 1, 2, 4, ... 32 */
#define SET(s) PASTE(TYPE, SET)(s) /* of a double, rounded to the compute type */
#define LOAD(p) PASTE(TYPE, LOAD)(p) /* p is char *, and aligned in no way */
/* The elements at p where bits j ... j + WIDTH - 1 of b are set, else +0: what is dropped is gone before
 * it meets arithmetic, infinite and NaN included. */
#define LOAD_KEPT(p, b, j) PASTE(TYPE, LOAD_KEPT)(p, b, j)
#define STORE(p, v) PASTE(TYPE, STORE)(p, v) /* rounds to nearest even */
#define NT_STORE(p, v) PASTE(TYPE, NT_STORE)(p, v) /* past the caches, if there is such; p is aligned */
#define LOAD_SCALARS(p) PASTE(TYPE, LOAD_SCALARS)(p) /* from the compute type in memory */
#define STORE_SCALARS(p, v) PASTE(TYPE, STORE_SCALARS)(p, v)
#define ADD(a, b) PASTE(TYPE, ADD)(a, b)
#define MUL(a, b) PASTE(TYPE, MUL)(a, b)
#define RELU(v, active) PASTE(TYPE, RELU)(v, active) /* v where not v <= 0, whose bits go to *active; else +0 */
#define CHOOSE(u, v, b, j) PASTE(TYPE, CHOOSE)(u, v, b, j) /* u where bit j + i of b is set, else v */

/* F32 and F64 alone: noise. */
#define SUB(a, b) PASTE(TYPE, SUB)(a, b)
#define DIV(a, b) PASTE(TYPE, DIV)(a, b)
#define MIN(a, b) PASTE(TYPE, MIN)(a, b)
#define MAX(a, b) PASTE(TYPE, MAX)(a, b)
#define POWER(v) PASTE(TYPE, POWER)(v) /* 2^n, n in the lowest bits of v */
#define FROM_F32(p) PASTE(TYPE, FROM_F32)(p) /* from const float * */
#endif

#define GIVES(type, expression) _Static_assert(_Generic((expression), type: 1), #expression)
static inline void NAME(contract, SUFFIX)(char *p, VEC v, BITS b, uint32_t *active)
{
    GIVES(VEC, SET(1.0));
    GIVES(VEC, LOAD(p));
    GIVES(VEC, LOAD_KEPT(p, b, 0));
    GIVES(VEC, LOAD_SCALARS(p));
    GIVES(VEC, ADD(v, v));
    GIVES(VEC, MUL(v, v));
    GIVES(VEC, RELU(v, active));
    GIVES(VEC, CHOOSE(v, v, b, 0));
    STORE(p, v);
    NT_STORE(p, v);
    STORE_SCALARS(p, v);
#if SIZE >= 4
    GIVES(VEC, SUB(v, v));
    GIVES(VEC, DIV(v, v));
    GIVES(VEC, MIN(v, v));
    GIVES(VEC, MAX(v, v));
    GIVES(VEC, POWER(v));
    GIVES(VEC, FROM_F32((const float *)p));
    GIVES(F32_VEC, F32_SQRT(F32_SET(1.0)));
#endif
    _Static_assert(WIDTH > 0 && 32 % WIDTH == 0, "WIDTH divides 32");
}
#undef GIVES
