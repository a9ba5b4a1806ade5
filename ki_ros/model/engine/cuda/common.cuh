// What the kernels share.

#pragma once

#include "ptx.cuh"

constexpr float EPS = 1e-6f;  // of every norm
constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ float low(unsigned v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high(unsigned v) { return __uint_as_float(v & 0xffff0000u); }
__device__ __forceinline__ float value(bf16 v) { return __uint_as_float(unsigned(v) << 16); }
__device__ __forceinline__ bf16 rounded(float v) { return bf16(pack(v, 0.f) & 0xffffu); }

#define MINUS_INFINITY __uint_as_float(0xff800000u)

__device__ __forceinline__ float sum_of_warp(float v) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Over the threads of a block of WARPS warps; each use in a kernel has a `sums` of its own.
template <int WARPS>
__device__ __forceinline__ float sum_of_block(float v, float (&sums)[WARPS]) {
  v = sum_of_warp(v);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) v += sums[w];
  return v;
}

// gelu in its tanh form: x (1 + tanh u) / 2 = x / (1 + exp(-2 u)), where u = A (x + B x^3)
constexpr float GELU_A = 0.7978845608028654f, GELU_B = 0.044715f;

__device__ __forceinline__ float exp_of_gelu(float x) {
  return exp2_fast(-2.f * LOG2E * (GELU_A * (x + GELU_B * x * x * x)));
}

__device__ __forceinline__ float gelu(float x) { return x / (1.f + exp_of_gelu(x)); }

// The same, and its slope: s + 2 x s (1 - s) u', where s = (1 + tanh u) / 2.
__device__ __forceinline__ float gelu(float x, float& slope) {
  const float s = 1.f / (1.f + exp_of_gelu(x));
  slope = s + 2.f * x * s * (1.f - s) * GELU_A * (1.f + 3.f * GELU_B * x * x);
  return x * s;
}

// Keys or values of a layer: rows (capacity, KV_HEADS * HEAD_DIM), columns (KV_HEADS * HEAD_DIM, capacity). Null where
// nobody reads them.
struct Tokens {
  bf16* rows;
  bf16* columns;
};

// Those of the prefix, and of the chunk behind them.
struct Cache {
  Tokens keys, values;
  int capacity;
};
