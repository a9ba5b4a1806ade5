// The backward pass of the action expert, for a chunk that is guided: what pulls the actions, through all layers to the
// state of the integration. Eight phases for each layer; what the forward pass has kept is in the buffers of `expert.py`.
//
// Weights are given transposed, so that these products read theirs as those of the forward pass do. `slope` (16, WIDTH)
// is the gradient with respect to what a norm takes in, and becomes that of the norm ahead of it.

#include "expert.cuh"

constexpr int FEATURES = HEADS * HEAD_DIM;
constexpr int PROJECTED = FEATURES + 2 * KV_HEADS * HEAD_DIM;

// Through a gated residual and the product ahead of it

// Products of slope * gate with TILES tiles of a weight (.., WIDTH); then `finish` of each value, which others may wait for.
template <int TILES, class Finish>
__device__ __forceinline__ void back_through(const bf16* slope, const bf16* gate, const bf16* weight, Finish finish) {
  auto& shared = *reinterpret_cast<NormedProduct<TILES>*>(memory);
  const int column = blockIdx.x * TILES * 8;
  let_next_begin();
#pragma unroll
  for (int n = 0; n < TILES; ++n) shared.weights.copy_tile(n, weight, column + n * 8);
  uint4 gates[LOADS];
#pragma unroll
  for (int i = 0; i < LOADS; ++i)
    gates[i] = load_early(reinterpret_cast<const uint4*>(gate + i * 256 + threadIdx.x % 32 * 8));
  wait_for_previous();
  shared.rows.gate(slope, gates);
  wait_for_copies();
  shared.rows.multiply(shared.weights, shared.shares);
  for (int i = threadIdx.x; i < TILES * TILE; i += THREADS)
    finish(i % TILE / 8, column + i / TILE * 8 + i % 8, shared.shares.sum(i / TILE, i % TILE));
}

// slopes (2, 16, HIDDEN), of gate and of up, from both (16, 2 * HIDDEN).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    back_through_down(const bf16* slope, const bf16* gate, const bf16* weight, const bf16* both, bf16* slopes) {
  back_through<2 * UP_TILES>(slope, gate, weight, [&](int row, int column, float hidden) {
    const bf16* p = both + row * 2 * HIDDEN + column;
    const float x = value(__ldcg(p)), up = value(__ldcg(p + HIDDEN));
    float slope_of_gelu;
    const float y = gelu(x, slope_of_gelu);
    slopes[row * HIDDEN + column] = rounded(hidden * up * slope_of_gelu);
    slopes[(ROWS + row) * HIDDEN + column] = rounded(hidden * y);
  });
}

// slopes (16, FEATURES), of what was attended to.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    back_through_out(const bf16* slope, const bf16* gate, const bf16* weight, bf16* slopes) {
  back_through<UP_TILES>(slope, gate, weight, [&](int row, int column, float attended) {
    slopes[row * FEATURES + column] = rounded(attended);
  });
}

// Through the products behind a norm

// parts (.., 16, WIDTH) = slopes (.., 16, K) weight.T (.., WIDTH, K), a part for each row of blocks.
template <int K, int TILES>
__device__ __forceinline__ void back_to_width(const bf16* slopes, const bf16* weight, float* parts) {
  auto& shared = *reinterpret_cast<PlainProduct<K, TILES>*>(memory);
  const int column = blockIdx.x * TILES * 8, part = blockIdx.y;
  let_next_begin();
#pragma unroll
  for (int n = 0; n < TILES; ++n) shared.weights.copy_tile(n, weight + (long long)part * WIDTH * K, column + n * 8);
  wait_for_previous();
  multiply_rows(shared.weights, slopes + part * ROWS * K, shared.shares);
  for (int i = threadIdx.x; i < TILES * TILE; i += THREADS)
    parts[(part * ROWS + i % TILE / 8) * WIDTH + column + i / TILE * 8 + i % 8] = shared.shares.sum(i / TILE, i % TILE);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    back_through_gate_up(const bf16* slopes, const bf16* weight, float* parts) {
  back_to_width<HIDDEN, DOWN_TILES>(slopes, weight, parts);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    back_through_project(const bf16* slopes, const bf16* weight, float* parts) {
  back_to_width<PROJECTED, OUT_TILES>(slopes, weight, parts);
}

// Through a norm

// Of a row x with 1 / rms(x) = scale, from the gradient with respect to what came out: that with respect to x. The norm
// is y = x scale gain + shift, so dx = scale (gain dy - x scale^2 mean(gain dy x)).
__device__ __forceinline__ void back_through_norm(const float (&x)[COLUMNS], float scale, const float (&gain)[COLUMNS],
                                                  float (&slope)[COLUMNS], float (&sums)[WARPS]) {
  float product = 0.f;
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) slope[n] *= gain[n], product += slope[n] * x[n];
  product = sum_of_block(product, sums) / WIDTH * scale * scale;
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) slope[n] = scale * (slope[n] - x[n] * product);
}

// slope += that of the sum of `count` parts (.., 16, WIDTH) through the norm of x (16, WIDTH). A block is a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    back_through_norm_of(const float* parts, int count, const bf16* x, const float* gains, bf16* slope) {
  __shared__ float sums[2][WARPS];
  const int row = blockIdx.x * WIDTH;
  let_next_begin();
  float gain[COLUMNS], at[COLUMNS], before[COLUMNS], change[COLUMNS] = {}, square = 0.f;
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) gain[n] = load_early(gains + threadIdx.x + n * THREADS);
  wait_for_previous();
  load_columns(at, x + row);
  load_columns(before, slope + row);
  for (int part = 0; part < count; ++part)
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n) change[n] += __ldcg(parts + part * ROWS * WIDTH + row + threadIdx.x + n * THREADS);
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) square += at[n] * at[n];
  const float scale = rsqrtf(sum_of_block(square, sums[0]) / WIDTH + EPS);
  back_through_norm(at, scale, gain, change, sums[1]);
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) slope[row + threadIdx.x + n * THREADS] = rounded(before[n] + change[n]);
}

// Through attention

struct KeysValuesKeys {
  TokenRows keys, values;
  TokenColumns keys_again;
};

// Of a warp's 32 keys, from slopes (16, FEATURES) of what was attended to: sums (HEADS, splits, 16, HEAD_DIM), which add up
// to those of the queries, and for each key of the chunk its weight and the slope of its score, news (2, HEADS, 16, 16).
extern "C" __global__ void __launch_bounds__(32 * ATTEND_WARPS)
    back_through_attention(const bf16* queries, const bf16* attended, const bf16* slopes, const float* divisors,
                           Cache cache, Prefix prefix, int splits, float* sums, float* news) {
  const int g = threadIdx.x % 32 / 4;
  auto& shared = reinterpret_cast<KeysValuesKeys*>(memory)[threadIdx.x / 32];
  const Split split(ATTEND_WARPS, prefix);
  let_next_begin();
  if (!split.wait_for_keys()) return;
  shared.keys.copy(cache.keys.rows, split.base, split.kv_head());
  shared.values.copy(cache.values.rows, split.base, split.kv_head());
  shared.keys_again.copy(cache.keys.columns, cache.capacity, split.base, split.kv_head());
  wait_for_previous();
  HeadRows rows;
  rows.load(queries, split.head);
  float divisor[2];
  for (int half = 0; half < 2; ++half) divisor[half] = __ldcg(divisors + split.head * ROWS + g + 8 * half);
  __syncwarp();
  wait_for_copies();
  float scores[4][4] = {}, towards[4][4] = {}, mean[2] = {};
  rows.multiply(shared.keys, scores);
  // What all of a row's weights have in common drops out: their sum is one.
  rows.load(slopes, split.head);
  {
    HeadRows found;
    found.load(attended, split.head);
    __syncwarp();
    rows.multiply(shared.values, towards);
    rows.dot(found, mean);
  }
  unsigned weights[4][2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float change[2];
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int i = 2 * half + b, row = g + 8 * half, token = split.token(j, b);
        const float score = scores[j][i] * LOG2E * score_scale();
        const float weight = token < split.total ? exp2_fast(score - divisor[half]) : 0.f;
        change[b] = weight * (towards[j][i] - mean[half]) * score_scale();
        if (token < split.valid || token >= split.total) continue;
        float* p = news + (split.head * ROWS + row) * ROWS + token - split.valid;
        p[0] = weight, p[HEADS * ROWS * ROWS] = change[b];
      }
      weights[j][half] = pack(change[0], change[1]);
    }
  shared.keys_again.sum(weights, sums + (long long)(split.head * splits + split.split) * ROWS * HEAD_DIM);
}

// projected (16, PROJECTED): the slopes of queries, keys and values before they were rotated, of one row and head of them.
extern "C" __global__ void __launch_bounds__(THREADS)
    back_through_rotation(const float* sums, const float* news, const bf16* queries, const bf16* slopes, Prefix prefix,
                          int splits, bf16* projected) {
  constexpr int HALF = HEAD_DIM / 2, DIMS = HEAD_DIM / 32, GROUP = HEADS / KV_HEADS;
  static_assert(DIMS % 4 == 0 && HEAD_DIM <= THREADS, "a lane reads 4 dimensions at once, a thread finishes one");
  __shared__ float shares[WARPS][HEAD_DIM], whole[HEAD_DIM];
  const int row = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / 32, first = threadIdx.x % 32 * DIMS;
  const int used = (prefix.valid() + LIVE + KEYS - 1) / KEYS, at = (prefix.valid() + row) * HALF + threadIdx.x % HALF;
  let_next_begin();
  const float cosine = load_early(prefix.cosines + at), sine = load_early(prefix.sines + at);
  wait_for_previous();
  float part[DIMS] = {};
  if (head < HEADS) {
    for (int split = warp; split < used; split += WARPS) {
      const float* p = sums + ((long long)(head * splits + split) * ROWS + row) * HEAD_DIM + first;
#pragma unroll
      for (int d = 0; d < DIMS; d += 4) {
        const float4 v = __ldcg(reinterpret_cast<const float4*>(p + d));
        part[d] += v.x, part[d + 1] += v.y, part[d + 2] += v.z, part[d + 3] += v.w;
      }
    }
  } else {
    const bool is_key = head < HEADS + KV_HEADS;
    const int begin = (head - HEADS) % KV_HEADS * GROUP;
    // A key's scores are of queries, a value's weights of what was attended to.
    const bf16* of = (is_key ? queries : slopes) + first;
    for (int h = begin + warp; h < begin + GROUP; h += WARPS) {
      const float* factors = news + ((is_key ? HEADS : 0) + h) * ROWS * ROWS + row;
#pragma unroll
      for (int i = 0; i < LIVE; ++i) {
        const float factor = __ldcg(factors + i * ROWS);
#pragma unroll
        for (int d = 0; d < DIMS; d += 4) {
          const uint2 v = __ldcg(reinterpret_cast<const uint2*>(of + (i * HEADS + h) * HEAD_DIM + d));
          part[d] += factor * low(v.x), part[d + 1] += factor * high(v.x);
          part[d + 2] += factor * low(v.y), part[d + 3] += factor * high(v.y);
        }
      }
    }
  }
#pragma unroll
  for (int d = 0; d < DIMS; ++d) shares[warp][first + d] = part[d];
  __syncthreads();
  if (threadIdx.x < HEAD_DIM) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += shares[w][threadIdx.x];
    whole[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= HEAD_DIM) return;
  float slope = whole[threadIdx.x];
  if (head < HEADS + KV_HEADS)
    slope = threadIdx.x < HALF ? slope * cosine + whole[threadIdx.x + HALF] * sine
                               : slope * cosine - whole[threadIdx.x - HALF] * sine;
  projected[row * PROJECTED + head * HEAD_DIM + threadIdx.x] = rounded(slope);
}

// Into and out of the expert

// What a chunk is drawn to, see `Guidance`: (LIVE, ACTIONS) each, and a number. Weights beyond the guided values are zero.
struct Guide {
  const float* target;
  const float* weights;
  const float* max_weight;
};

// Of the row that came out: its velocity, how far the action that it points at is from the target, both (LIVE, ACTIONS),
// and the slope. A block is a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    aim(float time, Modulation modulation, Ends ends, Guide guide, const bf16* out, const float* actions, float* velocity,
        float* apart, bf16* slope) {
  __shared__ Row row;
  const int at = blockIdx.x;
  let_next_begin();
  const Leaving leaving(false, modulation, ends);
  wait_for_previous();
  float x[COLUMNS], change[COLUMNS] = {};
  load_columns(x, out + at * WIDTH);
  const float scale = leaving.find(row, ends, x);
  for (int a = threadIdx.x; a < ACTIONS; a += THREADS) {
    const int i = at * ACTIONS + a;
    const float pointed_at = __ldcg(actions + i) - time * row.velocity[a];
    velocity[i] = row.velocity[a];
    apart[i] = row.state[a] = guide.weights[i] * (guide.target[i] - pointed_at);
  }
  __syncthreads();
#pragma unroll 4
  for (int a = 0; a < ACTIONS; ++a)
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
      change[n] -= time * row.state[a] * ends.out_weight[a * WIDTH + threadIdx.x + n * THREADS];
  back_through_norm(x, scale, leaving.gain, change, row.sums[1]);
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) slope[at * WIDTH + threadIdx.x + n * THREADS] = rounded(change[n]);
}

// A step of a row with its velocity and the pull, which weighs `ratio` and no more than the guide says; then the row as it
// goes in. A block is a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    draw(float step, float ratio, Ends ends, Guide guide, const float* velocity, const float* apart, const bf16* slope,
         bf16* in, float* actions) {
  __shared__ Row row;
  __shared__ float pulls[WARPS][ACTIONS];
  const int at = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  let_next_begin();
  wait_for_previous();
  float x[COLUMNS];
  load_columns(x, slope + at * WIDTH);
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n) row.normed[threadIdx.x + n * THREADS] = x[n];
  __syncthreads();
  for (int a = lane; a < ACTIONS; a += 32) {
    float sum = 0.f;
#pragma unroll 8
    for (int c = warp; c < WIDTH; c += WARPS) sum += row.normed[c] * ends.in_weight[c * ACTIONS + a];
    pulls[warp][a] = sum;
  }
  __syncthreads();
  for (int a = threadIdx.x; a < ACTIONS; a += THREADS) {
    const int i = at * ACTIONS + a;
    float pull = __ldcg(apart + i);
    for (int w = 0; w < WARPS; ++w) pull += pulls[w][a];
    const float weight = fminf(ratio, *guide.max_weight);
    actions[i] = row.state[a] = __ldcg(actions + i) + step * (__ldcg(velocity + i) - weight * pull);
  }
  __syncthreads();
  enter(row, ends, in + at * WIDTH);
}

extern "C" __device__ const int BACK_THROUGH_DOWN_SHARED = sizeof(NormedProduct<2 * UP_TILES>);
extern "C" __device__ const int BACK_THROUGH_OUT_SHARED = sizeof(NormedProduct<UP_TILES>);
extern "C" __device__ const int BACK_THROUGH_GATE_UP_SHARED = sizeof(PlainProduct<HIDDEN, DOWN_TILES>);
extern "C" __device__ const int BACK_THROUGH_PROJECT_SHARED = sizeof(PlainProduct<PROJECTED, OUT_TILES>);
extern "C" __device__ const int BACK_THROUGH_ATTENTION_SHARED = sizeof(KeysValuesKeys) * ATTEND_WARPS;
extern "C" __device__ const int ATTENDING_WARPS = ATTEND_WARPS;
extern "C" __device__ const int BACK_THROUGH_DOWN_BLOCKS = HIDDEN / 8 / (2 * UP_TILES);
extern "C" __device__ const int BACK_THROUGH_OUT_BLOCKS = FEATURES / 8 / UP_TILES;
extern "C" __device__ const int BACK_THROUGH_GATE_UP_BLOCKS = WIDTH / 8 / DOWN_TILES;
extern "C" __device__ const int BACK_THROUGH_PROJECT_BLOCKS = WIDTH / 8 / OUT_TILES;
