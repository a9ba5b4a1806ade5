// The action expert for one observation, in phases: six for each layer, one for each step of the integration. The
// kernels of `expert.cu` are one phase each.
//
// A chunk has few rows, so a product takes as long as its weights need to come from memory. Each phase can ask for its
// weights before what it depends on is there. Warps share the summed dimension: each reads its share of the weights
// straight into the operands of the tensor cores, and the shares are added at the end, in a fixed order.
//
// The summed dimension may be taken in any order if both operands agree: in each 32 values, lane t takes the 8 from 8 t
// on, which is one load of 16 bytes, for two products of 16.
//
// The compiler is given: LIVE rows (at most 16), WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, ACTIONS.
// Buffers of rows have 16 of them; what is beyond LIVE is finite and means nothing. What only a backward pass reads (see
// `gradient.cu`) is written unless its pointer is null.

#pragma once

#include "common.cuh"

constexpr int ROWS = 16;
constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int KEYS = 32;           // that a warp attends to
constexpr int STRIDE = WIDTH + 32;  // of a row in shared memory: 64 bytes more, so that two rows are in different banks
constexpr int TILE = ROWS * 8;     // values of a tile: 8 columns

extern __shared__ uint4 memory[];

// Products

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
  float of[WARPS][TILES][TILE];

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

// Norms

// Whether a row is given, by what is `free` of each row; null: all are.
__device__ __forceinline__ bool is_given(const unsigned char* free, int row) { return free && row < LIVE && !free[row]; }

// What a step does to the norms, and what time 0 does for the rows that are given.
struct Modulation {
  const float* gain;
  const float* shift;
  const float* given_gain;
  const float* given_shift;
  const unsigned char* free;
};

// Each warp normalises two rows; a lane has the same columns of both, 8 of each 256.
constexpr int LOADS = WIDTH / 256;
static_assert(WIDTH % 256 == 0, "a warp reads 256 values at once");

struct Gains {
  float4 gain[2 * LOADS], shift[2 * LOADS];

  __device__ __forceinline__ void load(const float* gains, const float* shifts) {
    const int begin = threadIdx.x % 32 * 8;
#pragma unroll
    for (int i = 0; i < 2 * LOADS; ++i) {
      const int c = begin + i / 2 * 256 + i % 2 * 4;
      gain[i] = load_early(reinterpret_cast<const float4*>(gains + c));
      shift[i] = load_early(reinterpret_cast<const float4*>(shifts + c));
    }
  }
};

struct NormedRows {
  bf16 rows[ROWS * STRIDE];

  // x / rms(x) * gain + shift of all rows; `gains` are those of the step.
  __device__ __forceinline__ void normalise(const bf16* x, const Modulation& m, const Gains& gains) {
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
      if (is_given(m.free, row)) {
        Gains given;
        given.load(m.given_gain, m.given_shift);
        put(row, v[half], scale, given);
      } else {
        put(row, v[half], scale, gains);
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ void put(int row, const uint4 (&v)[LOADS], float scale, const Gains& gains) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const float4 a = gains.gain[2 * i], b = gains.shift[2 * i];
      const float4 c = gains.gain[2 * i + 1], d = gains.shift[2 * i + 1];
      uint4 out;
      out.x = pack(low(v[i].x) * scale * a.x + b.x, high(v[i].x) * scale * a.y + b.y);
      out.y = pack(low(v[i].y) * scale * a.z + b.z, high(v[i].y) * scale * a.w + b.w);
      out.z = pack(low(v[i].z) * scale * c.x + d.x, high(v[i].z) * scale * c.y + d.y);
      out.w = pack(low(v[i].w) * scale * c.z + d.z, high(v[i].w) * scale * c.w + d.w);
      *reinterpret_cast<uint4*>(rows + row * STRIDE + i * 256 + threadIdx.x % 32 * 8) = out;
    }
  }

  // x * gate of all rows; `gates` as a lane has the columns.
  __device__ __forceinline__ void gate(const bf16* x, const uint4 (&gates)[LOADS]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < LOADS; ++i) {
        const uint4 a = load(x + (warp + 8 * half) * WIDTH + i * 256 + lane * 8), b = gates[i];
        uint4 out;
        out.x = pack(low(a.x) * low(b.x), high(a.x) * high(b.x)), out.y = pack(low(a.y) * low(b.y), high(a.y) * high(b.y));
        out.z = pack(low(a.z) * low(b.z), high(a.z) * high(b.z)), out.w = pack(low(a.w) * low(b.w), high(a.w) * high(b.w));
        *reinterpret_cast<uint4*>(rows + (warp + 8 * half) * STRIDE + i * 256 + lane * 8) = out;
      }
    __syncthreads();
  }

  // Products of the rows with weights that have arrived; `shares` may lie where the rows do.
  template <int TILES>
  __device__ __forceinline__ void multiply(const Weights<WIDTH, TILES>& weights, Shares<TILES>& shares) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Sums<TILES> sums;
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

// How many of a block's values each thread has to finish.
template <int TILES>
constexpr int PLACES = (TILES * TILE + THREADS - 1) / THREADS;

// Where an observation's keys and values are, and how many there are.
struct Prefix {
  const float* cosines;  // (.., HEAD_DIM / 2), of each position
  const float* sines;
  const long long* count;  // tokens of the prompt
  int before;              // tokens ahead of the prompt

  __device__ __forceinline__ int valid() const { return before + int(*count); }
};

// Of one token, dimension d of a head and that of the head's second half.
__device__ __forceinline__ void put(const Tokens& into, int capacity, int token, int head, int d, float a, float b) {
  constexpr int HALF = HEAD_DIM / 2;
  if (into.rows) {
    bf16* p = into.rows + ((long long)token * KV_HEADS + head) * HEAD_DIM + d;
    p[0] = rounded(a), p[HALF] = rounded(b);
  }
  if (into.columns) {
    bf16* p = into.columns + (long long)(head * HEAD_DIM + d) * capacity + token;
    p[0] = rounded(a), p[(long long)HALF * capacity] = rounded(b);
  }
}

// Query, key and value: TILES tiles of a head's first half and those of its second that are rotated with them.
//
// queries: (16, HEADS * HEAD_DIM). Keys and values of the live rows come behind those of the prefix.
template <int TILES>
struct Projection {
  static constexpr int HALF = HEAD_DIM / 2, PER_HEAD = HALF / 8 / TILES;
  static constexpr int BLOCKS = (HEADS + 2 * KV_HEADS) * PER_HEAD;
  static_assert(HALF % (8 * TILES) == 0, "a block stays in one head");
  int head, column, start;
  float cosine[PLACES<TILES>], sine[PLACES<TILES>];

  __device__ __forceinline__ explicit Projection(int block)
      : head(block / PER_HEAD), column(block % PER_HEAD * TILES * 8), start(0) {}

  __device__ __forceinline__ void copy(Weights<WIDTH, 2 * TILES>& weights, const bf16* weight) const {
#pragma unroll
    for (int n = 0; n < 2 * TILES; ++n)
      weights.copy_tile(n, weight, head * HEAD_DIM + n / TILES * HALF + column + n % TILES * 8);
  }

  __device__ __forceinline__ void load_rotation(const Prefix& prefix) {
    start = prefix.valid();
#pragma unroll
    for (int n = 0; n < PLACES<TILES>; ++n) {
      const int i = threadIdx.x + n * THREADS, row = min(i % TILE / 8, LIVE - 1);
      const int at = (start + row) * HALF + column + min(i / TILE, TILES - 1) * 8 + i % 8;
      cosine[n] = load_early(prefix.cosines + at), sine[n] = load_early(prefix.sines + at);
    }
  }

  __device__ __forceinline__ void finish(const Shares<2 * TILES>& shares, const Cache& cache, bf16* queries) const {
#pragma unroll
    for (int n = 0; n < PLACES<TILES>; ++n) {
      const int i = threadIdx.x + n * THREADS;
      if (i >= TILES * TILE) continue;
      const int tile = i / TILE, place = i % TILE, row = place / 8, d = column + tile * 8 + place % 8;
      if (row >= LIVE) continue;
      float a = shares.sum(tile, place), b = shares.sum(TILES + tile, place);
      if (head < HEADS + KV_HEADS) {
        // Rotation is of what the product has become in its dtype.
        a = value(rounded(a)), b = value(rounded(b));
        const float rotated = a * cosine[n] - b * sine[n];
        b = b * cosine[n] + a * sine[n], a = rotated;
      }
      if (head < HEADS) {
        bf16* p = queries + (row * HEADS + head) * HEAD_DIM + d;
        p[0] = rounded(a), p[HALF] = rounded(b);
      } else if (head < HEADS + KV_HEADS) {
        put(cache.keys, cache.capacity, start + row, head - HEADS, d, a, b);
      } else {
        put(cache.values, cache.capacity, start + row, head - HEADS - KV_HEADS, d, a, b);
      }
    }
  }
};

// Attention

// Of a head: 32 keys or values as a warp's lanes read them, each what it has copied itself, where the product sums over
// dimensions, and where it sums over the tokens.
struct TokenRows {
  static constexpr int CHUNKS = HEAD_DIM / 32;
  uint4 part[CHUNKS][4][32];

  // Column c = 2 t + b of tile j is token 8 t + 2 j + b: so what a lane has of a product is of 8 tokens that follow one
  // another, and it reads their `TokenColumns` at once.
  __device__ __forceinline__ void copy(const bf16* rows, int first, int head) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bf16* p = rows + ((long long)(first + g / 2 * 8 + g % 2) * KV_HEADS + head) * HEAD_DIM + t * 8;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int j = 0; j < 4; ++j) copy_async(&part[c][j][lane], p + 2 * j * KV_HEADS * HEAD_DIM + 32 * c);
  }
};

// Of bf16 pairs.
__device__ __forceinline__ float dot(uint4 a, uint4 b) {
  return low(a.x) * low(b.x) + high(a.x) * high(b.x) + low(a.y) * low(b.y) + high(a.y) * high(b.y) + low(a.z) * low(b.z) +
         high(a.z) * high(b.z) + low(a.w) * low(b.w) + high(a.w) * high(b.w);
}

struct TokenColumns {
  static constexpr int TILES = HEAD_DIM / 8;
  uint4 part[TILES][32];

  __device__ __forceinline__ void copy(const bf16* columns, int capacity, int first, int head) {
    const int lane = threadIdx.x % 32;
    const bf16* p = columns + (long long)(head * HEAD_DIM + lane / 4) * capacity + first + lane % 4 * 8;
#pragma unroll
    for (int n = 0; n < TILES; ++n) copy_async(&part[n][lane], p + (long long)8 * n * capacity);
  }

  // out (16, HEAD_DIM) = weights (16, 32) of these.
  __device__ __forceinline__ void sum(const unsigned (&weights)[4][2], float* out) const {
    const int lane = threadIdx.x % 32;
    out += lane / 4 * HEAD_DIM + lane % 4 * 2;
#pragma unroll 8
    for (int n = 0; n < TILES; ++n) {
      const uint4 v = part[n][lane];
      float o[4] = {};
      mma(o, weights[0][0], weights[0][1], weights[1][0], weights[1][1], v.x, v.y);
      mma(o, weights[2][0], weights[2][1], weights[3][0], weights[3][1], v.z, v.w);
      *reinterpret_cast<float2*>(out + 8 * n) = make_float2(o[0], o[1]);
      *reinterpret_cast<float2*>(out + 8 * HEAD_DIM + 8 * n) = make_float2(o[2], o[3]);
    }
  }
};

// The rows of a head of (16, HEADS * HEAD_DIM), as operands.
struct HeadRows {
  static constexpr int CHUNKS = HEAD_DIM / 32;
  uint4 first[CHUNKS], second[CHUNKS];

  __device__ __forceinline__ void load(const bf16* rows, int head) {
    const bf16* row = rows + (threadIdx.x % 32 / 4 * HEADS + head) * HEAD_DIM + threadIdx.x % 4 * 8;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
      first[c] = ::load(row + 32 * c), second[c] = ::load(row + 8 * HEADS * HEAD_DIM + 32 * c);
  }

  // Products of rows g and g + 8 with those of another.
  __device__ __forceinline__ void dot(const HeadRows& other, float (&out)[2]) const {
    float sums[2] = {};
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      sums[0] += ::dot(first[c], other.first[c]), sums[1] += ::dot(second[c], other.second[c]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += __shfl_xor_sync(0xffffffffu, sums[half], 1);
      out[half] = sums[half] + __shfl_xor_sync(0xffffffffu, sums[half], 2);
    }
  }

  // Each row's product with each token: out[j][2 * half + b] is of row g + 8 half and of token 8 t + 2 j + b.
  __device__ __forceinline__ void multiply(const TokenRows& tokens, float (&out)[4][4]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 k = tokens.part[c][j][lane];
        mma(out[j], first[c].x, second[c].x, first[c].y, second[c].y, k.x, k.y);
        mma(out[j], first[c].z, second[c].z, first[c].w, second[c].w, k.z, k.w);
      }
  }
};

struct KeysValues {
  TokenRows keys;
  TokenColumns values;
};

// Which 32 keys of which head a warp attends to.
struct Split {
  int head, split, base, valid, total;

  // Of a warp of a block that is a head's.
  __device__ __forceinline__ Split(int warps, const Prefix& prefix)
      : head(blockIdx.y), split(blockIdx.x * warps + threadIdx.x / 32), base(split * KEYS), valid(prefix.valid()),
        total(valid + LIVE) {}

  __device__ __forceinline__ int kv_head() const { return head / (HEADS / KV_HEADS); }
  __device__ __forceinline__ bool empty() const { return base >= total; }
  // Whether it has keys that are not the prefix's.
  __device__ __forceinline__ bool has_new() const { return base + KEYS > valid; }
  // Before the keys are read: true where there are any. Those of the chunk come from the kernel ahead.
  __device__ __forceinline__ bool wait_for_keys() const {
    if (empty() || has_new()) wait_for_previous();
    return !empty();
  }

  // Of what a lane has of a product.
  __device__ __forceinline__ int token(int j, int b) const { return base + 8 * (threadIdx.x % 4) + 2 * j + b; }
};

__device__ __forceinline__ float score_scale() { return rsqrtf(float(HEAD_DIM)); }

// sums (HEADS, splits, 16, HEAD_DIM) that are not yet divided, and for each row (HEADS, splits, 16, 2) their largest
// score, in units of a factor of two, and what to divide by.
__device__ __forceinline__ void attend_to(const Split& s, const KeysValues& of, const HeadRows& queries, int splits,
                                          float* sums, float* scales) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float scores[4][4] = {};
  queries.multiply(of.keys, scores);
  const float scale = LOG2E * score_scale();
  unsigned weights[4][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = MINUS_INFINITY;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        float& score = scores[j][2 * half + b];
        score = s.token(j, b) < s.total ? score * scale : MINUS_INFINITY;
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
      float* p = scales + ((long long)(s.head * splits + s.split) * ROWS + g + 8 * half) * 2;
      p[0] = largest, p[1] = sum;
    }
  }
  of.values.sum(weights, sums + (long long)(s.head * splits + s.split) * ROWS * HEAD_DIM);
}

struct Parts {
  float of[4][HEAD_DIM];
};

// What the warps found of a row of a head, as one, into attended (16, HEADS * HEAD_DIM); the binary logarithm of what
// all was divided by, into divisors (HEADS, 16). Each quarter of HEAD_DIM threads takes every fourth split. At most 32
// splits: a lane knows the scale of one.
__device__ __forceinline__ void combine_row(Parts& parts, int row, int head, int total, int splits, const float* sums,
                                            const float* scales, bf16* attended, float* divisors) {
  constexpr int QUARTER = HEAD_DIM / 4;
  static_assert(QUARTER % 32 == 0 && HEAD_DIM <= THREADS, "a quarter is of whole warps");
  const int lane = threadIdx.x % 32, i = threadIdx.x, used = (total + KEYS - 1) / KEYS;
  const int quarter = i / QUARTER, d = i % QUARTER * 4;
  float divisor = 0.f;
  if (i < HEAD_DIM) {
    const float* scale = scales + (((long long)head * splits + lane) * ROWS + row) * 2;
    const float* sum = sums + ((long long)head * splits * ROWS + row) * HEAD_DIM + d;
    float largest = MINUS_INFINITY;
    if (lane < used) largest = __ldcg(scale), divisor = __ldcg(scale + 1);
    float4 part[8];
#pragma unroll
    for (int n = 0; n < 8; ++n)
      part[n] = __ldcg(
          reinterpret_cast<const float4*>(sum + (long long)min(quarter + 4 * n, used - 1) * ROWS * HEAD_DIM));
    __syncwarp();
    float most = largest;
#pragma unroll
    for (int offset = 16; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
    // Zero for a split that is not there.
    const float factor = exp2_fast(largest - most);
    divisor = sum_of_warp(factor * divisor);
    if (divisors && i == 0) divisors[head * ROWS + row] = most + log2f(divisor);
    float4 all = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float f = __shfl_sync(0xffffffffu, factor, quarter + 4 * n);
      all.x += f * part[n].x, all.y += f * part[n].y, all.z += f * part[n].z, all.w += f * part[n].w;
    }
    *reinterpret_cast<float4*>(&parts.of[quarter][d]) = all;
  }
  __syncthreads();
  if (i < HEAD_DIM) {
    const float all = parts.of[0][i] + parts.of[1][i] + parts.of[2][i] + parts.of[3][i];
    attended[(row * HEADS + head) * HEAD_DIM + i] = rounded(all / divisor);
  }
}

// Back to the width

// What a product has in shared memory: of rows that are prepared there, or are read as they are.
template <int TILES>
struct NormedProduct {
  Weights<WIDTH, TILES> weights;
  union {
    NormedRows rows;
    Shares<TILES> shares;
  };
};

template <int K, int TILES>
struct PlainProduct {
  Weights<K, TILES> weights;
  Shares<TILES> shares;
};

// Products of input (16, K) with weights that may still be on their way.
template <int K, int TILES>
__device__ __forceinline__ void multiply_rows(const Weights<K, TILES>& weights, const bf16* input, Shares<TILES>& shares) {
  constexpr int CHUNKS = Weights<K, TILES>::CHUNKS;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bf16* p = input + (long long)(lane / 4) * K + warp * (K / WARPS) + lane % 4 * 8;
  // As many at once as there are registers for while the next kernel's blocks come to be.
  constexpr int PART = CHUNKS < 8 ? CHUNKS : 8;
  Sums<TILES> sums;
#pragma unroll
  for (int begin = 0; begin < CHUNKS; begin += PART) {
    uint4 first[PART], second[PART];
#pragma unroll
    for (int c = 0; c < PART; ++c)
      if (begin + c < CHUNKS) first[c] = load(p + 32 * (begin + c)), second[c] = load(p + 8 * K + 32 * (begin + c));
    // All loads are under way before the first is waited for: the compiler moves none across this.
    __syncwarp();
    if (begin == 0) wait_for_copies();
#pragma unroll
    for (int c = 0; c < PART; ++c)
      if (begin + c < CHUNKS) weights.multiply(sums, begin + c, first[c], second[c]);
  }
  shares.put(sums);
  __syncthreads();
}

// out = x + gate * (input (16, K) weight.T), for TILES tiles of columns.
template <int K, int TILES>
struct Addition {
  static constexpr int BLOCKS = WIDTH / 8 / TILES;
  static_assert(WIDTH % (8 * TILES) == 0, "blocks are whole");
  int column;
  bf16 factor[PLACES<TILES>];

  __device__ __forceinline__ explicit Addition(int block) : column(block * TILES * 8) {}

  __device__ __forceinline__ void copy(Weights<K, TILES>& weights, const bf16* weight) const {
#pragma unroll
    for (int n = 0; n < TILES; ++n) weights.copy_tile(n, weight, column + n * 8);
  }

  __device__ __forceinline__ void load_gate(const bf16* gate, const bf16* given_gate, const unsigned char* free) {
#pragma unroll
    for (int n = 0; n < PLACES<TILES>; ++n) {
      const int i = threadIdx.x + n * THREADS, row = i % TILE / 8;
      factor[n] = load_early((is_given(free, row) ? given_gate : gate) + at(i));
    }
  }

  __device__ __forceinline__ int at(int i) const { return column + min(i / TILE, TILES - 1) * 8 + i % 8; }

  __device__ __forceinline__ void run(const Weights<K, TILES>& weights, Shares<TILES>& shares, const bf16* input,
                                      const bf16* x, bf16* out) const {
    bf16 old[PLACES<TILES>];
#pragma unroll
    for (int n = 0; n < PLACES<TILES>; ++n) {
      const int i = threadIdx.x + n * THREADS;
      old[n] = __ldcg(x + i % TILE / 8 * WIDTH + at(i));
    }
    multiply_rows(weights, input, shares);
#pragma unroll
    for (int n = 0; n < PLACES<TILES>; ++n) {
      const int i = threadIdx.x + n * THREADS, row = i % TILE / 8;
      if (i >= TILES * TILE || row >= LIVE) continue;
      out[row * WIDTH + at(i)] = rounded(value(old[n]) + value(factor[n]) * shares.sum(i / TILE, i % TILE));
    }
  }
};

using AttendedAddition = Addition<HEADS * HEAD_DIM, OUT_TILES>;
using HiddenAddition = Addition<HIDDEN, DOWN_TILES>;

// hidden (16, HIDDEN) = gelu(gate) * up, for TILES tiles of columns; weight is (2 * HIDDEN, WIDTH), gate first, and both
// (16, 2 * HIDDEN), which is written where it is KEPT.
template <int TILES>
struct Gating {
  static constexpr int BLOCKS = HIDDEN / 8 / TILES;
  static_assert(HIDDEN % (8 * TILES) == 0, "blocks are whole");
  int column;

  __device__ __forceinline__ explicit Gating(int block) : column(block * TILES * 8) {}

  __device__ __forceinline__ void copy(Weights<WIDTH, 2 * TILES>& weights, const bf16* weight) const {
#pragma unroll
    for (int n = 0; n < 2 * TILES; ++n) weights.copy_tile(n, weight, n / TILES * HIDDEN + column + n % TILES * 8);
  }

  template <bool KEPT>
  __device__ __forceinline__ void finish(const Shares<2 * TILES>& shares, bf16* hidden, bf16* both) const {
    for (int i = threadIdx.x; i < TILES * TILE; i += THREADS) {
      const int tile = i / TILE, place = i % TILE, row = place / 8, c = column + tile * 8 + place % 8;
      const float gate = shares.sum(tile, place), up = shares.sum(TILES + tile, place);
      hidden[row * HIDDEN + c] = rounded(gelu(gate) * up);
      if (KEPT) both[row * 2 * HIDDEN + c] = rounded(gate), both[row * 2 * HIDDEN + HIDDEN + c] = rounded(up);
    }
  }
};

// The integration

// (ACTIONS, WIDTH), (ACTIONS), (WIDTH, ACTIONS), (WIDTH)
struct Ends {
  const float* out_weight;
  const float* out_bias;
  const float* in_weight;
  const float* in_bias;
};

// A row of the chunk, by a block.
struct Row {
  float normed[WIDTH];
  float state[ACTIONS];
  float velocity[ACTIONS];
  float sums[2][WARPS];
};

// A thread has every THREADS-th column.
constexpr int COLUMNS = WIDTH / THREADS;
static_assert(WIDTH % THREADS == 0, "threads have whole columns");

// The last norm and the projection to a velocity.
struct Leaving {
  float gain[COLUMNS], shift[COLUMNS], out[COLUMNS * WARPS];

  __device__ __forceinline__ Leaving(bool given, const Modulation& m, const Ends& ends) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n) {
      gain[n] = load_early((given ? m.given_gain : m.gain) + threadIdx.x + n * THREADS);
      shift[n] = load_early((given ? m.given_shift : m.shift) + threadIdx.x + n * THREADS);
    }
#pragma unroll
    for (int n = 0; n < COLUMNS * WARPS; ++n)
      out[n] = load_early(ends.out_weight + min(warp, ACTIONS - 1) * WIDTH + lane + 32 * n);
  }

  // The velocity of a row that came out as x; gives 1 / rms(x).
  __device__ __forceinline__ float find(Row& r, const Ends& ends, const float (&x)[COLUMNS]) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float square = 0.f;
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n) square += x[n] * x[n];
    const float scale = rsqrtf(sum_of_block(square, r.sums[0]) / WIDTH + EPS);
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
      r.normed[threadIdx.x + n * THREADS] = value(rounded(x[n] * scale * gain[n] + shift[n]));
    __syncthreads();
    for (int a = warp; a < ACTIONS; a += WARPS) {
      float velocity = 0.f;
#pragma unroll
      for (int n = 0; n < COLUMNS * WARPS; ++n) {
        const float w = a == warp ? out[n] : ends.out_weight[a * WIDTH + lane + 32 * n];
        velocity += r.normed[lane + 32 * n] * w;
      }
      velocity = sum_of_warp(velocity) + ends.out_bias[a];
      if (lane == 0) r.velocity[a] = velocity;
    }
    __syncthreads();
    return scale;
  }
};

__device__ __forceinline__ void load_columns(float (&x)[COLUMNS], const bf16* row) {
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) x[n] = value(__ldcg(row + threadIdx.x + n * THREADS));
}

// A row's state as the expert takes it in.
__device__ __forceinline__ void enter(const Row& r, const Ends& ends, bf16* row) {
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) {
    const int c = threadIdx.x + n * THREADS;
    float sum = ends.in_bias[c];
#pragma unroll 8
    for (int a = 0; a < ACTIONS; ++a) sum += r.state[a] * ends.in_weight[c * ACTIONS + a];
    row[c] = rounded(sum);
  }
}
