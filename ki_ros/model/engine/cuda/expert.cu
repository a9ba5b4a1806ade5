// The action expert for one observation: six kernels for each layer, one for each step of the integration.
//
// A chunk has few rows, so a product takes as long as its weights need to come from memory. Every kernel asks for its
// weights before it waits for the kernel that it depends on. Warps share the summed dimension: each reads its share of
// the weights straight into the operands of the tensor cores, and the shares are added at the end, in a fixed order.
//
// The summed dimension may be taken in any order if both operands agree: in each 32 values, lane t takes the 8 from 8 t
// on, which is one load of 16 bytes, for two products of 16.
//
// The compiler is given: LIVE rows (at most 16), WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, ACTIONS, and how many tiles
// of 8 columns a block computes: QKV_TILES, OUT_TILES, UP_TILES, DOWN_TILES.
//
// Buffers of rows have 16 of them; what is beyond LIVE is finite and means nothing.

#include "common.cuh"

constexpr int ROWS = 16;
constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int ATTEND_WARPS = 4;
constexpr int KEYS = 32;  // that a warp attends to
constexpr int STRIDE = WIDTH + 32;  // of a row in shared memory: 64 bytes more, so that two rows are in different banks

extern __shared__ uint4 memory[];

// Of a lane; in two parts, so that a product waits for fewer others.
template <int TILES>
struct Sums {
  float even[TILES][4] = {};
  float odd[TILES][4] = {};
};

// A warp's share of the weights of TILES tiles, in shared memory. Each thread reads only what it has copied itself, so
// nobody waits for others, and it lies as it is read.
template <int K, int TILES>
struct Weights {
  static constexpr int SHARE = K / WARPS;
  static constexpr int CHUNKS = SHARE / 32;
  static_assert(SHARE % 32 == 0, "each warp takes chunks of 32 of the summed dimension");
  uint4 part[TILES][CHUNKS][THREADS];

  // `row` is the first of the tile's 8 rows of the matrix (out, K).
  __device__ __forceinline__ void copy_tile(int tile, const bf16* weight, int row) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bf16* p = weight + (long long)(row + lane / 4) * K + warp * SHARE + lane % 4 * 8;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) copy_async(&part[tile][c][threadIdx.x], p + 32 * c);
  }

  __device__ __forceinline__ void multiply(Sums<TILES>& sums, int c, uint4 first, uint4 second) const {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      const uint4 w = part[n][c][threadIdx.x];
      mma(sums.even[n], first.x, second.x, first.y, second.y, w.x, w.y);
      mma(sums.odd[n], first.z, second.z, first.w, second.w, w.z, w.w);
    }
  }
};

// Sums of the warps' shares: out[tile][row][column of 8], in the order of the warps.
template <int TILES>
struct Shares {
  float of[WARPS][TILES][ROWS * 8];

  __device__ __forceinline__ void put(const Sums<TILES>& sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      float* p = of[warp][n] + lane / 4 * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(p) = make_float2(sums.even[n][0] + sums.odd[n][0], sums.even[n][1] + sums.odd[n][1]);
      *reinterpret_cast<float2*>(p + 64) =
          make_float2(sums.even[n][2] + sums.odd[n][2], sums.even[n][3] + sums.odd[n][3]);
    }
  }

  __device__ __forceinline__ float sum(int tile, int place) const {
    float s = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) s += of[w][tile][place];
    return s;
  }
};

// What a step does to the norms, and what time 0 does for the rows that are given.
struct Modulation {
  const float* gain;
  const float* shift;
  const float* given_gain;
  const float* given_shift;
  const unsigned char* free;  // of each row; null: all are
};

// Each warp normalises two rows; a lane has the same columns of both, 8 of each 256.
constexpr int LOADS = WIDTH / 256;
static_assert(WIDTH % 256 == 0, "a warp reads 256 values at once");

__device__ __forceinline__ void load_floats(float4 (&into)[2 * LOADS], const float* from) {
#pragma unroll
  for (int i = 0; i < 2 * LOADS; ++i)
    into[i] = load_early(reinterpret_cast<const float4*>(from + i / 2 * 256 + threadIdx.x % 32 * 8 + i % 2 * 4));
}

template <int TILES>
struct NormedProduct {
  Weights<WIDTH, TILES> weights;
  union {
    bf16 rows[ROWS * STRIDE];
    Shares<TILES> shares;
  };

  // x / rms(x) * gain + shift of all rows, given what the step's modulation is.
  __device__ __forceinline__ void normalise(const bf16* x, const Modulation& m, const float4 (&gain)[2 * LOADS],
                                            const float4 (&shift)[2 * LOADS]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint4 v[2][LOADS];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < LOADS; ++i) v[half][i] = load(x + (warp + 8 * half) * WIDTH + i * 256 + lane * 8);
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp + 8 * half;
      float square = 0.f;
#pragma unroll
      for (int i = 0; i < LOADS; ++i) {
        const unsigned w[4] = {v[half][i].x, v[half][i].y, v[half][i].z, v[half][i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) square += low(w[j]) * low(w[j]) + high(w[j]) * high(w[j]);
      }
      const float scale = rsqrtf(sum_of_warp(square) / WIDTH + EPS);
      if (m.free && row < LIVE && !m.free[row]) {
        float4 given_gain[2 * LOADS], given_shift[2 * LOADS];
        load_floats(given_gain, m.given_gain);
        load_floats(given_shift, m.given_shift);
        store_row(row, v[half], scale, given_gain, given_shift);
      } else {
        store_row(row, v[half], scale, gain, shift);
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ void store_row(int row, const uint4 (&v)[LOADS], float scale,
                                            const float4 (&gain)[2 * LOADS], const float4 (&shift)[2 * LOADS]) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const float4 a = gain[2 * i], b = shift[2 * i], c = gain[2 * i + 1], d = shift[2 * i + 1];
      uint4 out;
      out.x = pack(low(v[i].x) * scale * a.x + b.x, high(v[i].x) * scale * a.y + b.y);
      out.y = pack(low(v[i].y) * scale * a.z + b.z, high(v[i].y) * scale * a.w + b.w);
      out.z = pack(low(v[i].z) * scale * c.x + d.x, high(v[i].z) * scale * c.y + d.y);
      out.w = pack(low(v[i].w) * scale * c.z + d.z, high(v[i].w) * scale * c.w + d.w);
      *reinterpret_cast<uint4*>(rows + row * STRIDE + i * 256 + threadIdx.x % 32 * 8) = out;
    }
  }

  // Products of the normalised rows; then `shares` may be read.
  __device__ __forceinline__ void multiply() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Sums<TILES> sums;
    wait_for_copies();
    const bf16* p = rows + lane / 4 * STRIDE + warp * weights.SHARE + lane % 4 * 8;
#pragma unroll
    for (int c = 0; c < weights.CHUNKS; ++c)
      weights.multiply(sums, c, *reinterpret_cast<const uint4*>(p + 32 * c),
                       *reinterpret_cast<const uint4*>(p + 8 * STRIDE + 32 * c));
    __syncthreads();
    shares.put(sums);
    __syncthreads();
  }
};

// Rotated queries (16, HEADS * HEAD_DIM); keys and values of the live rows, written behind those of the prefix.
// keys: (capacity, KV_HEADS * HEAD_DIM); values: (KV_HEADS * HEAD_DIM, capacity); cosines, sines:
// (.., HEAD_DIM / 2) of each position.
// The prefix has `before` tokens and then *count of its prompt. A block computes tiles of a head's first half and those
// of its second that are rotated with them.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    project(const bf16* x, const bf16* weight, Modulation modulation, const float* cosines, const float* sines,
            const long long* count, int before, int capacity, bf16* queries, bf16* keys, bf16* values) {
  auto& shared = *reinterpret_cast<NormedProduct<2 * QKV_TILES>*>(memory);
  constexpr int HALF = HEAD_DIM / 2, BLOCKS = HALF / 8 / QKV_TILES;
  static_assert(HALF % (8 * QKV_TILES) == 0, "a block stays in one head");
  const int head = blockIdx.x / BLOCKS, column = blockIdx.x % BLOCKS * QKV_TILES * 8;
  let_next_begin();
#pragma unroll
  for (int n = 0; n < 2 * QKV_TILES; ++n)
    shared.weights.copy_tile(n, weight, head * HEAD_DIM + n / QKV_TILES * HALF + column + n % QKV_TILES * 8);
  float4 gain[2 * LOADS], shift[2 * LOADS];
  load_floats(gain, modulation.gain);
  load_floats(shift, modulation.shift);
  const int start = before + int(*count);
  // What a thread will rotate.
  constexpr int PLACES = (QKV_TILES * ROWS * 8 + THREADS - 1) / THREADS;
  float cosine[PLACES], sine[PLACES];
#pragma unroll
  for (int n = 0; n < PLACES; ++n) {
    const int i = threadIdx.x + n * THREADS, row = min(i % (ROWS * 8) / 8, LIVE - 1);
    const int at = (start + row) * HALF + column + min(i / (ROWS * 8), QKV_TILES - 1) * 8 + i % 8;
    cosine[n] = load_early(cosines + at), sine[n] = load_early(sines + at);
  }
  wait_for_previous();
  shared.normalise(x, modulation, gain, shift);
  shared.multiply();
#pragma unroll
  for (int n = 0; n < PLACES; ++n) {
    const int i = threadIdx.x + n * THREADS;
    if (i >= QKV_TILES * ROWS * 8) continue;
    const int tile = i / (ROWS * 8), place = i % (ROWS * 8), row = place / 8;
    const int d = column + tile * 8 + place % 8;
    float a = shared.shares.sum(tile, place), b = shared.shares.sum(QKV_TILES + tile, place);
    if (row >= LIVE) continue;
    if (head < HEADS + KV_HEADS) {
      // Rotation is of what the product has become in its dtype.
      a = value(rounded(a)), b = value(rounded(b));
      const float rotated = a * cosine[n] - b * sine[n];
      b = b * cosine[n] + a * sine[n], a = rotated;
    }
    if (head < HEADS) {
      queries[(row * HEADS + head) * HEAD_DIM + d] = rounded(a);
      queries[(row * HEADS + head) * HEAD_DIM + d + HALF] = rounded(b);
    } else if (head < HEADS + KV_HEADS) {
      bf16* p = keys + ((long long)(start + row) * KV_HEADS + head - HEADS) * HEAD_DIM + d;
      p[0] = rounded(a), p[HALF] = rounded(b);
    } else {
      bf16* p = values + (long long)((head - HEADS - KV_HEADS) * HEAD_DIM + d) * capacity + start + row;
      p[0] = rounded(a), p[(long long)HALF * capacity] = rounded(b);
    }
  }
}

// Each thread reads what it has copied itself.
struct KeysValues {
  uint4 keys[HEAD_DIM / 32][4][32 * ATTEND_WARPS];
  uint4 values[HEAD_DIM / 8][32 * ATTEND_WARPS];
};

// Attention of one head to 32 keys by each warp: sums (HEADS, splits, 16, HEAD_DIM) that are not yet divided, and for
// each row (HEADS, splits, 16, 2) their largest score and what to divide by. Scores are in units of a factor of two.
//
// Column c = 2 t + b of score tile j is key 8 t + 2 j + b: so the weights that a lane has are those of 8 keys that
// follow one another, and it reads their values at once.
extern "C" __global__ void __launch_bounds__(32 * ATTEND_WARPS)
    attend(const bf16* queries, const bf16* keys, const bf16* values, const long long* count, int before, int capacity,
           int splits, float* sums, float* scales) {
  constexpr int CHUNKS = HEAD_DIM / 32, TILES = HEAD_DIM / 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.y, kv_head = head / (HEADS / KV_HEADS), split = blockIdx.x * ATTEND_WARPS + warp;
  const int valid = before + int(*count), total = valid + LIVE, base = split * KEYS;
  let_next_begin();
  if (base >= total) {
    wait_for_previous();
    return;
  }
  const bf16* key_row = keys + (long long)(base + g / 2 * 8 + g % 2) * KV_HEADS * HEAD_DIM + kv_head * HEAD_DIM + t * 8;
  const bf16* value_row = values + (long long)(kv_head * HEAD_DIM + g) * capacity + base + t * 8;
  auto& shared = *reinterpret_cast<KeysValues*>(memory);
  // Only the actions' own are younger than the kernel before.
  if (base + KEYS > valid) wait_for_previous();
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      copy_async(&shared.keys[c][j][threadIdx.x], key_row + 2 * j * KV_HEADS * HEAD_DIM + 32 * c);
#pragma unroll
  for (int n = 0; n < TILES; ++n) copy_async(&shared.values[n][threadIdx.x], value_row + (long long)8 * n * capacity);
  wait_for_previous();
  const bf16* query_row = queries + (long long)(g * HEADS + head) * HEAD_DIM + t * 8;
  uint4 first[CHUNKS], second[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
    first[c] = load(query_row + 32 * c), second[c] = load(query_row + 8 * HEADS * HEAD_DIM + 32 * c);
  __syncwarp();
  wait_for_copies();
  float scores[4][4] = {};
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint4 k = shared.keys[c][j][threadIdx.x];
      mma(scores[j], first[c].x, second[c].x, first[c].y, second[c].y, k.x, k.y);
      mma(scores[j], first[c].z, second[c].z, first[c].w, second[c].w, k.z, k.w);
    }
  const float scale = LOG2E * rsqrtf(float(HEAD_DIM));
  unsigned weights[4][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = MINUS_INFINITY;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        float& score = scores[j][2 * half + b];
        score = base + 8 * t + 2 * j + b < total ? score * scale : MINUS_INFINITY;
        largest = fmaxf(largest, score);
      }
    // The first key is there, so the largest score is a number.
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float a = exp2_fast(scores[j][2 * half] - largest), b = exp2_fast(scores[j][2 * half + 1] - largest);
      weights[j][half] = pack(a, b);
      sum += a + b;
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (t == 0) {
      float* p = scales + ((long long)(head * splits + split) * ROWS + g + 8 * half) * 2;
      p[0] = largest, p[1] = sum;
    }
  }
  float* out = sums + ((long long)(head * splits + split) * ROWS + g) * HEAD_DIM + 2 * t;
#pragma unroll 8
  for (int n = 0; n < TILES; ++n) {
    const uint4 v = shared.values[n][threadIdx.x];
    float o[4] = {};
    mma(o, weights[0][0], weights[0][1], weights[1][0], weights[1][1], v.x, v.y);
    mma(o, weights[2][0], weights[2][1], weights[3][0], weights[3][1], v.z, v.w);
    *reinterpret_cast<float2*>(out + 8 * n) = make_float2(o[0], o[1]);
    *reinterpret_cast<float2*>(out + 8 * HEAD_DIM + 8 * n) = make_float2(o[2], o[3]);
  }
}

// What the warps of `attend` found, as one: attended (16, HEADS * HEAD_DIM). A block is a row of a head; each quarter of
// its threads takes every fourth split. At most 32 splits: a lane knows the scale of one.
extern "C" __global__ void __launch_bounds__(HEAD_DIM, 1)
    combine(const float* sums, const float* scales, const long long* count, int before, int splits, bf16* attended) {
  constexpr int QUARTER = HEAD_DIM / 4;
  __shared__ float parts[4][HEAD_DIM];
  const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32;
  const int quarter = threadIdx.x / QUARTER, d = threadIdx.x % QUARTER * 4;
  const int used = (before + int(*count) + LIVE + KEYS - 1) / KEYS;
  let_next_begin();
  wait_for_previous();
  scales += (((long long)head * splits + lane) * ROWS + row) * 2;
  sums += ((long long)head * splits * ROWS + row) * HEAD_DIM + d;
  float largest = MINUS_INFINITY, divisor = 0.f;
  if (lane < used) largest = __ldcg(scales), divisor = __ldcg(scales + 1);
  float4 part[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    part[i] = __ldcg(reinterpret_cast<const float4*>(sums + (long long)min(quarter + 4 * i, used - 1) * ROWS * HEAD_DIM));
  __syncwarp();
  float most = largest;
#pragma unroll
  for (int offset = 16; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
  // Zero for a split that is not there.
  const float factor = exp2_fast(largest - most);
  divisor = sum_of_warp(factor * divisor);
  float4 sum = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float f = __shfl_sync(0xffffffffu, factor, quarter + 4 * i);
    sum.x += f * part[i].x, sum.y += f * part[i].y, sum.z += f * part[i].z, sum.w += f * part[i].w;
  }
  *reinterpret_cast<float4*>(&parts[quarter][d]) = sum;
  __syncthreads();
  const int i = threadIdx.x;
  const float all = parts[0][i] + parts[1][i] + parts[2][i] + parts[3][i];
  attended[(row * HEADS + head) * HEAD_DIM + i] = rounded(all / divisor);
}

template <int K, int TILES>
struct PlainProduct {
  Weights<K, TILES> weights;
  Shares<TILES> shares;
};

// x += gate * (input (16, K) weight.T), in place.
template <int K, int TILES>
__device__ __forceinline__ void add_product(const bf16* input, const bf16* weight, const bf16* gate,
                                            const bf16* given_gate, const unsigned char* free, bf16* x) {
  auto& shared = *reinterpret_cast<PlainProduct<K, TILES>*>(memory);
  constexpr int CHUNKS = Weights<K, TILES>::CHUNKS;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * TILES * 8;
  let_next_begin();
#pragma unroll
  for (int n = 0; n < TILES; ++n) shared.weights.copy_tile(n, weight, column + n * 8);
  constexpr int PLACES = (TILES * ROWS * 8 + THREADS - 1) / THREADS;
  bf16 factor[PLACES], old[PLACES];
#pragma unroll
  for (int n = 0; n < PLACES; ++n) {
    const int i = threadIdx.x + n * THREADS, row = i % (ROWS * 8) / 8;
    const int c = column + min(i / (ROWS * 8), TILES - 1) * 8 + i % 8;
    factor[n] = load_early((free && row < LIVE && !free[row] ? given_gate : gate) + c);
  }
  wait_for_previous();
#pragma unroll
  for (int n = 0; n < PLACES; ++n) {
    const int i = threadIdx.x + n * THREADS, row = i % (ROWS * 8) / 8;
    old[n] = __ldcg(x + row * WIDTH + column + min(i / (ROWS * 8), TILES - 1) * 8 + i % 8);
  }
  const bf16* p = input + (long long)(lane / 4) * K + warp * (K / WARPS) + lane % 4 * 8;
  // As many at once as there are registers for while the next kernel's blocks come to be.
  constexpr int PART = CHUNKS < 8 ? CHUNKS : 8;
  Sums<TILES> sums;
#pragma unroll
  for (int begin = 0; begin < CHUNKS; begin += PART) {
    uint4 first[PART], second[PART];
#pragma unroll
    for (int c = 0; c < PART; ++c)
      first[c] = load(p + 32 * (begin + c)), second[c] = load(p + 8 * K + 32 * (begin + c));
    // All loads are under way before the first is waited for: the compiler moves none across this.
    __syncwarp();
    if (begin == 0) wait_for_copies();
#pragma unroll
    for (int c = 0; c < PART; ++c) shared.weights.multiply(sums, begin + c, first[c], second[c]);
  }
  shared.shares.put(sums);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < PLACES; ++n) {
    const int i = threadIdx.x + n * THREADS, place = i % (ROWS * 8), row = place / 8;
    if (i >= TILES * ROWS * 8 || row >= LIVE) continue;
    const int tile = i / (ROWS * 8);
    x[row * WIDTH + column + tile * 8 + place % 8] =
        rounded(value(old[n]) + value(factor[n]) * shared.shares.sum(tile, place));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    add_attended(const bf16* attended, const bf16* weight, const bf16* gate, const bf16* given_gate,
                 const unsigned char* free, bf16* x) {
  add_product<HEADS * HEAD_DIM, OUT_TILES>(attended, weight, gate, given_gate, free, x);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    add_hidden(const bf16* hidden, const bf16* weight, const bf16* gate, const bf16* given_gate,
               const unsigned char* free, bf16* x) {
  add_product<HIDDEN, DOWN_TILES>(hidden, weight, gate, given_gate, free, x);
}

// hidden (16, HIDDEN) = gelu(gate) * up; weight is (2 * HIDDEN, WIDTH), gate first.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    gate_up(const bf16* x, const bf16* weight, Modulation modulation, bf16* hidden) {
  auto& shared = *reinterpret_cast<NormedProduct<2 * UP_TILES>*>(memory);
  const int column = blockIdx.x * UP_TILES * 8;
  let_next_begin();
#pragma unroll
  for (int n = 0; n < 2 * UP_TILES; ++n)
    shared.weights.copy_tile(n, weight, n / UP_TILES * HIDDEN + column + n % UP_TILES * 8);
  float4 gain[2 * LOADS], shift[2 * LOADS];
  load_floats(gain, modulation.gain);
  load_floats(shift, modulation.shift);
  wait_for_previous();
  shared.normalise(x, modulation, gain, shift);
  shared.multiply();
  for (int i = threadIdx.x; i < UP_TILES * ROWS * 8; i += THREADS) {
    const int tile = i / (ROWS * 8), place = i % (ROWS * 8);
    const float gate = shared.shares.sum(tile, place), up = shared.shares.sum(UP_TILES + tile, place);
    hidden[(long long)(place / 8) * HIDDEN + column + tile * 8 + place % 8] = rounded(gelu(gate) * up);
  }
}

// One row of the chunk by each block: a step of the integration with the velocity that the expert found, unless it is
// the first; then the row as the expert takes it in.
//
// x: (16, WIDTH). actions: (LIVE, ACTIONS) float32, the state of the integration. out_*: (ACTIONS, WIDTH), (ACTIONS);
// in_*: (WIDTH, ACTIONS), (WIDTH), float32. A row that is given stays as it is.
extern "C" __global__ void __launch_bounds__(THREADS)
    advance(int first, float step, Modulation modulation, const float* out_weight, const float* out_bias,
            const float* in_weight, const float* in_bias, bf16* x, float* actions) {
  constexpr int COLUMNS = WIDTH / THREADS;
  __shared__ float normed[WIDTH];
  __shared__ float state[ACTIONS];
  __shared__ float squares[WARPS];
  const int row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool given = modulation.free && !modulation.free[row];
  let_next_begin();
  float gain[COLUMNS], shift[COLUMNS], out[COLUMNS * WARPS];
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) {
    gain[n] = load_early((given ? modulation.given_gain : modulation.gain) + threadIdx.x + n * THREADS);
    shift[n] = load_early((given ? modulation.given_shift : modulation.shift) + threadIdx.x + n * THREADS);
  }
#pragma unroll
  for (int n = 0; n < COLUMNS * WARPS; ++n)
    out[n] = load_early(out_weight + min(warp, ACTIONS - 1) * WIDTH + lane + 32 * n);
  wait_for_previous();
  bf16* hidden = x + (long long)row * WIDTH;
  for (int a = threadIdx.x; a < ACTIONS; a += THREADS) state[a] = __ldcg(actions + row * ACTIONS + a);
  if (!first) {
    float v[COLUMNS], square = 0.f;
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n) v[n] = value(__ldcg(hidden + threadIdx.x + n * THREADS)), square += v[n] * v[n];
    square = sum_of_warp(square);
    if (lane == 0) squares[warp] = square;
    __syncthreads();
    square = 0.f;
    for (int w = 0; w < WARPS; ++w) square += squares[w];
    const float scale = rsqrtf(square / WIDTH + EPS);
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
      normed[threadIdx.x + n * THREADS] = value(rounded(v[n] * scale * gain[n] + shift[n]));
    __syncthreads();
    for (int a = warp; a < ACTIONS; a += WARPS) {
      float velocity = 0.f;
#pragma unroll
      for (int n = 0; n < COLUMNS * WARPS; ++n) {
        const float w = a == warp ? out[n] : out_weight[a * WIDTH + lane + 32 * n];
        velocity += normed[lane + 32 * n] * w;
      }
      velocity = sum_of_warp(velocity) + out_bias[a];
      if (lane == 0 && !given) {
        state[a] += step * velocity;
        actions[row * ACTIONS + a] = state[a];
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) {
    const int c = threadIdx.x + n * THREADS;
    float sum = in_bias[c];
#pragma unroll 8
    for (int a = 0; a < ACTIONS; ++a) sum += state[a] * in_weight[c * ACTIONS + a];
    hidden[c] = rounded(sum);
  }
}

// Bytes of shared memory of the kernels that take it dynamically, for the host.
extern "C" __device__ const int PROJECT_SHARED = sizeof(NormedProduct<2 * QKV_TILES>);
extern "C" __device__ const int GATE_UP_SHARED = sizeof(NormedProduct<2 * UP_TILES>);
extern "C" __device__ const int ADD_ATTENDED_SHARED = sizeof(PlainProduct<HEADS * HEAD_DIM, OUT_TILES>);
extern "C" __device__ const int ADD_HIDDEN_SHARED = sizeof(PlainProduct<HIDDEN, DOWN_TILES>);
extern "C" __device__ const int ATTEND_SHARED = sizeof(KeysValues);
