// A block of CUDA threads on a CPU: each is a fiber that runs until it must wait for others. Enough of CUDA for the
// kernels of this project, with what the file of this name says in PTX; slow, and for small sizes.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __align__(n)
#define __launch_bounds__(...)
#define __shared__ static

struct uint4 {
  unsigned x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx, gridDim;

inline float __uint_as_float(unsigned v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
template <class T>
T __ldcg(const T* p) {
  return *p;
}

namespace emulated {

constexpr int STACK = 1 << 16;

struct Gate {
  int waiting = 0, round = 0;
};

struct Fiber {
  ucontext_t context;
  jmp_buf place;  // where it goes on; unlike a context, to be changed without the kernel
  bool begun = false, ended = false;
  const Gate* gate = nullptr;  // that it waits at, until this is no longer its round
  int round = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Gate> warps;
  Gate all;
  std::vector<uint4> shared;
  float lanes[32][32], a[32][16][16], b[32][16][8];
};

inline Block* block = nullptr;
inline int running = 0;
inline ucontext_t beginning;
inline jmp_buf scheduler;
inline std::function<void()> body;

inline void yield() {
  if (!_setjmp(block->fibers[running].place)) _longjmp(scheduler, 1);
}

inline void go_on(Fiber& fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  swapcontext(&beginning, &fiber.context);
}

inline void pass(Gate& gate, int members) {
  Fiber& fiber = block->fibers[running];
  const int round = gate.round;
  if (++gate.waiting == members) {
    gate.waiting = 0;
    ++gate.round;
    return;
  }
  fiber.gate = &gate, fiber.round = round;
  yield();
}

inline void entry() {
  body();
  block->fibers[running].ended = true;
  while (true) yield();
}

inline void run(int threads, std::size_t shared, const std::function<void()>& kernel) {
  // Fresh memory is what takes time.
  static std::vector<std::vector<char>> stacks;
  while (int(stacks.size()) < threads) stacks.emplace_back(STACK);
  Block b;
  body = kernel, block = &b;
  b.fibers = std::vector<Fiber>(threads);
  b.warps = std::vector<Gate>((threads + 31) / 32);
  b.shared.resize(shared / sizeof(uint4) + 1);
  // What no one has written is not a number.
  std::memset(b.shared.data(), 0xff, b.shared.size() * sizeof(uint4));
  for (int i = 0; i < threads; ++i) {
    Fiber& f = b.fibers[i];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks[i].data();
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    // Backwards, so that what relies on the order of threads shows.
    for (int i = threads - 1; i >= 0; --i) {
      Fiber& f = b.fibers[i];
      if (f.ended) continue;
      alive = true;
      if (f.gate && f.gate->round == f.round) continue;
      f.gate = nullptr;
      running = threadIdx.x = i;
      go_on(f);
    }
  }
}

}  // namespace emulated

// A block's dynamic shared memory.
#define memory (emulated::block->shared.data())

inline void __syncthreads() { emulated::pass(emulated::block->all, int(emulated::block->fibers.size())); }
inline void __syncwarp() { emulated::pass(emulated::block->warps[emulated::running / 32], 32); }

inline float __shfl_sync(unsigned, float v, int lane) {
  const int i = emulated::running;
  emulated::block->lanes[i / 32][i % 32] = v;
  __syncwarp();
  const float other = emulated::block->lanes[i / 32][lane];
  __syncwarp();
  return other;
}
inline float __shfl_xor_sync(unsigned mask, float v, int offset) {
  return __shfl_sync(mask, v, emulated::running % 32 ^ offset);
}
inline int min(int a, int b) { return a < b ? a : b; }

// What `ptx.cuh` says in PTX

typedef unsigned short bf16;

inline float emulated_value(unsigned short v) { return __uint_as_float(unsigned(v) << 16); }
inline unsigned short emulated_round(float f) {
  unsigned v;
  std::memcpy(&v, &f, 4);
  if (f != f) return 0x7fff;
  return (v + 0x7fff + (v >> 16 & 1)) >> 16;
}
inline unsigned pack(float low, float high) { return emulated_round(low) | unsigned(emulated_round(high)) << 16; }
inline float exp2_fast(float x) { return std::exp2(x); }
inline void copy_async(uint4* shared, const bf16* global) { std::memcpy(shared, global, 16); }
inline void wait_for_copies() {}
template <class T>
T load_early(const T* p) {
  return *p;
}
inline uint4 load(const bf16* p) { return *reinterpret_cast<const uint4*>(p); }
inline void let_next_begin() {}
inline void wait_for_previous() {}

// By the definition of the fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
inline void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  auto& a = emulated::block->a;
  auto& b = emulated::block->b;
  const int i = emulated::running, warp = i / 32, g = i % 32 / 4, t = i % 4;
  const unsigned parts[4] = {a0, a1, a2, a3}, columns[2] = {b0, b1};
  for (int n = 0; n < 4; ++n)
    for (int e = 0; e < 2; ++e)
      a[warp][g + n % 2 * 8][2 * t + e + n / 2 * 8] = emulated_value(parts[n] >> (16 * e));
  for (int n = 0; n < 2; ++n)
    for (int e = 0; e < 2; ++e) b[warp][2 * t + e + 8 * n][g] = emulated_value(columns[n] >> (16 * e));
  __syncwarp();
  for (int e = 0; e < 4; ++e)
    for (int k = 0; k < 16; ++k) c[e] += a[warp][g + e / 2 * 8][k] * b[warp][k][2 * t + e % 2];
  __syncwarp();
}
