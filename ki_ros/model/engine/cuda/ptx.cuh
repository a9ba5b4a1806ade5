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

// Of what is older than the kernel before: stays ahead of `wait_for_previous`.
__device__ __forceinline__ float4 load_early(const float4* p) {
  float4 v;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p)
               : "memory");
  return v;
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

// Bytes that the copy engine brings to shared memory, for which threads wait at an `Arrival`: loads of the threads do
// not queue behind them.
struct Arrival {
  unsigned long long state;

  __device__ __forceinline__ unsigned address() const {
    return static_cast<unsigned>(__cvta_generic_to_shared(&state));
  }

  // By one thread, before all others may see it.
  __device__ __forceinline__ void init() {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(address()) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }

  // By one thread: so many bytes will come.
  __device__ __forceinline__ void expect(unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
  }

  // `parity` is even for the first time that it is waited for, odd for the second, and so on.
  __device__ __forceinline__ void wait(unsigned parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(address()),
        "r"(parity)
        : "memory");
  }
};

// Once through L2, in which other things are to stay.
__device__ __forceinline__ void copy_bulk(bf16* shared, const bf16* global, unsigned bytes, Arrival& arrival) {
  unsigned long long once;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(bytes), "r"(arrival.address()), "l"(once)
      : "memory");
}

// What this thread has written to shared memory is ahead of what the copy engine will write.
__device__ __forceinline__ void before_bulk() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

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

// A kernel may begin before the one that it depends on has ended (programmatic dependent launch): what it reads before
// `wait_for_previous` must be older than that one.
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

// What this thread, and those of its block that it has synchronised with, have written is there for who sees it count.
__device__ __forceinline__ void arrive_at(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ void wait_until(unsigned* counter, unsigned goal) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < goal);
}
