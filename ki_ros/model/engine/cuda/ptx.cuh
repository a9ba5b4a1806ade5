// Instructions that CUDA C++ has no word for. Lane l of a warp has g = l / 4 and t = l % 4.

#pragma once

typedef unsigned short bf16;

// 16 bytes into shared memory, past L1 and without registers; there after `wait_for_copies` of the same thread.
__device__ __forceinline__ void copy_async(uint4* shared, const bf16* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}

__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Of what no kernel of the call writes: stays ahead of `wait_for_previous`.
__device__ __forceinline__ uint4 load_early(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

__device__ __forceinline__ float4 load_early(const float4* p) {
  const uint4 v = load_early(reinterpret_cast<const uint4*>(p));
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}

__device__ __forceinline__ float load_early(const float* p) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
  return v;
}

__device__ __forceinline__ bf16 load_early(const bf16* p) {
  bf16 v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
  return v;
}

// From L2: another multiprocessor may have written it.
__device__ __forceinline__ uint4 load(const bf16* p) { return __ldcg(reinterpret_cast<const uint4*>(p)); }

// c (16 x 8) += a (16 x 16) b (16 x 8). a: rows g, g + 8; b: column g; c: rows g, g + 8, columns 2 t, 2 t + 1.
__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two values as bf16, the first in the lower half.
__device__ __forceinline__ unsigned pack(float low, float high) {
  unsigned v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A kernel may begin before the one ahead of it has ended (programmatic dependent launch). That one may itself be waiting
// for the one ahead of it, and so on: what is read before `wait_for_previous` must be older than the first kernel of
// such a row.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
