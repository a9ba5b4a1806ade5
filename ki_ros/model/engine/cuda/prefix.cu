// What is beside the products in SigLIP and in the backbone: norms, gates, rotation. Rows are tokens, 16 bytes at once.
//
// The compiler is given: KV_HEADS, HEAD_DIM.

#include "common.cuh"

constexpr int ROW_WARPS = 4;  // of a row in the norms
constexpr int ROW_THREADS = 32 * ROW_WARPS;
constexpr int MOST = 3;  // times that a thread reads 8 values of a row

struct Eight {
  float v[8];

  __device__ __forceinline__ Eight() {}
  __device__ __forceinline__ explicit Eight(uint4 u) {
    v[0] = low(u.x), v[1] = high(u.x), v[2] = low(u.y), v[3] = high(u.y);
    v[4] = low(u.z), v[5] = high(u.z), v[6] = low(u.w), v[7] = high(u.w);
  }
  __device__ __forceinline__ uint4 packed() const {
    return make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
  }
};

__device__ __forceinline__ Eight read(const bf16* p) { return Eight(*reinterpret_cast<const uint4*>(p)); }
__device__ __forceinline__ void write(bf16* p, const Eight& e) { *reinterpret_cast<uint4*>(p) = e.packed(); }

// normed = (x - mean) / deviation * gain + shift; then x += bias, that of the product which is added to x next. A block
// is a row.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    layer_norm(bf16* x, const bf16* gain, const bf16* shift, const bf16* bias, bf16* normed, int width) {
  __shared__ float sums[ROW_WARPS], squares[ROW_WARPS];
  const int first = threadIdx.x * 8;
  x += (long long)blockIdx.x * width, normed += (long long)blockIdx.x * width;
  uint4 kept[MOST], gains[MOST], shifts[MOST], biases[MOST];
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    const int c = first + i * ROW_THREADS * 8;
    if (c >= width) continue;
    kept[i] = load(x + c), gains[i] = load(gain + c), shifts[i] = load(shift + c);
    if (bias) biases[i] = load(bias + c);
  }
  float sum = 0.f, square = 0.f;
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    if (first + i * ROW_THREADS * 8 >= width) continue;
    const Eight e(kept[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += e.v[j];
  }
  const float mean = sum_of_block(sum, sums) / width;
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    if (first + i * ROW_THREADS * 8 >= width) continue;
    const Eight e(kept[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) square += (e.v[j] - mean) * (e.v[j] - mean);
  }
  const float scale = rsqrtf(sum_of_block(square, squares) / width + EPS);
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    const int c = first + i * ROW_THREADS * 8;
    if (c >= width) continue;
    Eight e(kept[i]), out;
    const Eight a(gains[i]), b(shifts[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) out.v[j] = (e.v[j] - mean) * scale * a.v[j] + b.v[j];
    write(normed + c, out);
    if (!bias) continue;
    const Eight d(biases[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) e.v[j] += d.v[j];
    write(x + c, e);
  }
}

// normed = x / rms(x) * gain. A block is a row.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    rms_norm(const bf16* x, const float* gain, bf16* normed, int width) {
  __shared__ float squares[ROW_WARPS];
  const int first = threadIdx.x * 8;
  x += (long long)blockIdx.x * width, normed += (long long)blockIdx.x * width;
  uint4 kept[MOST];
  float4 gains[MOST][2];
  float square = 0.f;
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    const int c = first + i * ROW_THREADS * 8;
    if (c >= width) continue;
    kept[i] = load(x + c);
    gains[i][0] = *reinterpret_cast<const float4*>(gain + c);
    gains[i][1] = *reinterpret_cast<const float4*>(gain + c + 4);
  }
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    if (first + i * ROW_THREADS * 8 >= width) continue;
    const Eight e(kept[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) square += e.v[j] * e.v[j];
  }
  const float scale = rsqrtf(sum_of_block(square, squares) / width + EPS);
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    const int c = first + i * ROW_THREADS * 8;
    if (c >= width) continue;
    Eight e(kept[i]);
    const float4 a = gains[i][0], b = gains[i][1];
    const float g[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 8; ++j) e.v[j] *= scale * g[j];
    write(normed + c, e);
  }
}

// hidden (rows, width) = gelu(gate) * up; gate_up (rows, 2 width), gate first.
extern "C" __global__ void __launch_bounds__(256) gated_gelu(const bf16* gate_up, bf16* hidden, int width) {
  const bf16* row = gate_up + (long long)blockIdx.y * 2 * width;
  const int c = (blockIdx.x * 256 + threadIdx.x) * 8;
  if (c >= width) return;
  Eight gate = read(row + c);
  const Eight up = read(row + width + c);
#pragma unroll
  for (int j = 0; j < 8; ++j) gate.v[j] = gelu(gate.v[j]) * up.v[j];
  write(hidden + (long long)blockIdx.y * width + c, gate);
}

// Dimension d of 8 tokens.
__device__ __forceinline__ void put(const Tokens& into, int capacity, int first, int d, const Eight& tokens) {
  if (into.rows) {
#pragma unroll
    for (int j = 0; j < 8; ++j) into.rows[(long long)(first + j) * KV_HEADS * HEAD_DIM + d] = rounded(tokens.v[j]);
  }
  if (into.columns) write(into.columns + (long long)d * capacity + first, tokens);
}

// Of projected (rows, (heads + 2 KV_HEADS) * HEAD_DIM): rotates queries and keys where they are, and writes keys and
// values to the cache too. cosines, sines: (.., HEAD_DIM / 2) of each position, which is the row. Blocks take 8 rows, of
// which the cache has room for all: the first of a column their keys, the second their values, the others their queries.
// heads is 0 where queries are not wanted.
extern "C" __global__ void __launch_bounds__(256)
    rotate_prefix(bf16* projected, const float* cosines, const float* sines, Cache cache, int rows, int heads) {
  constexpr int HALF = HEAD_DIM / 2, PARTS = HALF / 8;
  static_assert(HALF % 8 == 0, "a head's half is read 16 bytes at once");
  const int first = blockIdx.x * 8, width = (heads + 2 * KV_HEADS) * HEAD_DIM;
  for (int i = threadIdx.x; blockIdx.y == 0 && i < KV_HEADS * HALF; i += 256) {
    const int d = i / HALF * HEAD_DIM + i % HALF;
    bf16* p = projected + (long long)first * width + heads * HEAD_DIM + d;
    Eight a, b;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int row = min(j, rows - 1 - first), at = (first + row) * HALF + i % HALF;
      const float x = value(p[row * width]), y = value(p[row * width + HALF]);
      const float cosine = cosines[at], sine = sines[at];
      a.v[j] = x * cosine - y * sine, b.v[j] = y * cosine + x * sine;
    }
    put(cache.keys, cache.capacity, first, d, a), put(cache.keys, cache.capacity, first, d + HALF, b);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (first + j < rows) p[j * width] = rounded(a.v[j]), p[j * width + HALF] = rounded(b.v[j]);
  }
  for (int d = threadIdx.x; blockIdx.y == 1 && d < KV_HEADS * HEAD_DIM; d += 256) {
    const bf16* p = projected + (long long)first * width + (heads + KV_HEADS) * HEAD_DIM + d;
    Eight column;
#pragma unroll
    for (int j = 0; j < 8; ++j) column.v[j] = value(p[min(j, rows - 1 - first) * width]);
    put(cache.values, cache.capacity, first, d, column);
  }
  if (blockIdx.y < 2) return;
  for (int i = threadIdx.x + (blockIdx.y - 2) * 256; i < 8 * heads * PARTS; i += (gridDim.y - 2) * 256) {
    const int part = i % PARTS * 8, row = first + i / PARTS / heads;
    if (row >= rows) continue;
    bf16* p = projected + (long long)row * width + i / PARTS % heads * HEAD_DIM + part;
    Eight a = read(p), b = read(p + HALF);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float cosine = cosines[row * HALF + part + j], sine = sines[row * HALF + part + j];
      const float rotated = a.v[j] * cosine - b.v[j] * sine;
      b.v[j] = b.v[j] * cosine + a.v[j] * sine, a.v[j] = rotated;
    }
    write(p, a), write(p + HALF, b);
  }
}
