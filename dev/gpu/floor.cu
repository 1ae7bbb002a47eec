// Dropout as it would be written by hand for the least bytes: x read once, y written once, no mask,
// 16 bytes a thread and turn. Philox4x32-7; a random of 32 bits an element of float32, of 16 bits an
// element of float16. What fastdrop is timed beside; the masks are not fastdrop's.
// n: elements, a multiple of 8.

typedef unsigned int u32;

__device__ __forceinline__ uint4 philox(u32 place, u32 high, u32 call, u32 seed) {
  uint4 c = make_uint4(place, high, call, 0);
  u32 k0 = seed, k1 = 0;
#pragma unroll
  for (int round = 0; round < 7; round++) {
    u32 high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    u32 high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

__device__ __forceinline__ u32 one(u32 x, u32 random, u32 threshold, float scale) {
  return random < threshold ? 0u : __float_as_uint(__uint_as_float(x) * scale);
}

// Two halves: scale has the number twice; threshold is compared with 16 bits each.
__device__ __forceinline__ u32 two(u32 x, u32 random, u32 threshold, u32 scale) {
  u32 y;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(y) : "r"(x), "r"(scale));
  u32 low = (random & 0xFFFFu) < threshold ? 0u : 0xFFFFu;
  u32 high = (random >> 16) < threshold ? 0u : 0xFFFF0000u;
  return y & (low | high);
}

extern "C" __global__ void floor_float32(const uint4 *x, uint4 *y, unsigned long long n, u32 threshold,
                                         float scale, u32 seed, u32 call) {
  unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n / 4;
       i += step) {
    uint4 a = x[i], r = philox((u32)i, (u32)(i >> 32), call, seed);
    y[i] = make_uint4(one(a.x, r.x, threshold, scale), one(a.y, r.y, threshold, scale),
                      one(a.z, r.z, threshold, scale), one(a.w, r.w, threshold, scale));
  }
}

extern "C" __global__ void floor_float16(const uint4 *x, uint4 *y, unsigned long long n, u32 threshold,
                                         u32 scale, u32 seed, u32 call) {
  unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n / 8;
       i += step) {
    uint4 a = x[i], r = philox((u32)i, (u32)(i >> 32), call, seed);
    y[i] = make_uint4(two(a.x, r.x, threshold, scale), two(a.y, r.y, threshold, scale),
                      two(a.z, r.z, threshold, scale), two(a.w, r.w, threshold, scale));
  }
}
