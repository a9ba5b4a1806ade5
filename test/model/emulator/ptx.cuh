// A block of CUDA threads on a CPU: each is a fiber that runs until it must wait for others. Enough of CUDA for the
// kernels of this project, with what the file of this name says in PTX; slow, and for small sizes.

#pragma once

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
inline Index threadIdx, blockIdx;

// A block's dynamic shared memory.
static uint4 memory[1 << 14];

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

constexpr int STACK = 1 << 17;

struct Gate {
  int waiting = 0, round = 0;
};

struct Block {
  std::vector<ucontext_t> fibers;
  std::vector<std::vector<char>> stacks;
  std::vector<char> ended;
  std::vector<Gate> warps;
  Gate all;
  ucontext_t scheduler;
  std::function<void()> body;
  int threads = 0, running = 0;
};
inline Block* block = nullptr;

inline void yield() { swapcontext(&block->fibers[block->running], &block->scheduler); }

inline void pass(Gate& gate, int members) {
  const int round = gate.round;
  if (++gate.waiting == members) {
    gate.waiting = 0;
    ++gate.round;
    return;
  }
  while (gate.round == round) yield();
}

inline void entry() {
  block->body();
  block->ended[block->running] = 1;
  while (true) yield();
}

inline void run_block(int threads, const std::function<void()>& body) {
  Block b;
  b.threads = threads;
  b.body = body;
  b.fibers.resize(threads);
  b.stacks.assign(threads, std::vector<char>(STACK));
  b.ended.assign(threads, 0);
  b.warps.resize((threads + 31) / 32);
  block = &b;
  for (int i = 0; i < threads; ++i) {
    getcontext(&b.fibers[i]);
    b.fibers[i].uc_stack.ss_sp = b.stacks[i].data();
    b.fibers[i].uc_stack.ss_size = STACK;
    b.fibers[i].uc_link = nullptr;
    makecontext(&b.fibers[i], entry, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    // Backwards, so that what relies on the order of threads shows.
    for (int i = threads - 1; i >= 0; --i) {
      if (b.ended[i]) continue;
      alive = true;
      b.running = i;
      threadIdx.x = i;
      swapcontext(&b.scheduler, &b.fibers[i]);
    }
  }
}

inline Gate& warp() { return block->warps[block->running / 32]; }

}  // namespace emulated

inline void __syncthreads() {
  emulated::pass(emulated::block->all, emulated::block->threads);
  threadIdx.x = emulated::block->running;
}
inline void __syncwarp() {
  emulated::pass(emulated::warp(), 32);
  threadIdx.x = emulated::block->running;
}

inline float __shfl_sync(unsigned, float v, int lane) {
  static float values[64][32];
  const int i = emulated::block->running;
  values[i / 32][i % 32] = v;
  __syncwarp();
  const float other = values[i / 32][lane];
  __syncwarp();
  return other;
}
inline float __shfl_xor_sync(unsigned mask, float v, int offset) {
  return __shfl_sync(mask, v, emulated::block->running % 32 ^ offset);
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
  static float a[64][16][16], b[64][16][8];
  const int i = emulated::block->running, warp = i / 32, g = i % 32 / 4, t = i % 4;
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
