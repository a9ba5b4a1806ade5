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

// gelu in its tanh form: x (1 + tanh u) / 2 = x / (1 + exp(-2 u))
__device__ __forceinline__ float gelu(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.f + exp2_fast(-2.f * LOG2E * u));
}

// The same, and its slope: s + 2 x s (1 - s) u', where s = (1 + tanh u) / 2.
__device__ __forceinline__ float gelu(float x, float& slope) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  const float s = 1.f / (1.f + exp2_fast(-2.f * LOG2E * u));
  slope = s + 2.f * x * s * (1.f - s) * 0.7978845608028654f * (1.f + 3.f * 0.044715f * x * x);
  return x * s;
}
