// Attention within a view. A block takes 64 queries of a head, and each of its warps 16 of them with all of their
// scores in registers: a view has few tokens.
//
// The compiler is given: TOKENS of a view, VISION_HEADS and VISION_HEAD_DIM.

#include "common.cuh"

constexpr int QUERIES = 64, ATTEND_THREADS = 128;
constexpr int CHUNKS = (VISION_HEAD_DIM + 31) / 32;
constexpr int KEY_TILES = TOKENS / 8, VALUE_TILES = VISION_HEAD_DIM / 8;
// An odd number of 16 bytes, so that eight rows are in all banks.
constexpr int PADDED = VISION_HEAD_DIM / 8 % 2 ? VISION_HEAD_DIM : VISION_HEAD_DIM + 8;

extern __shared__ uint4 memory[];

struct Views {
  bf16 keys[TOKENS][PADDED];
  bf16 values[TOKENS][PADDED];
};

// projected: (views * TOKENS, 3 * width), queries first; attended: (views * TOKENS, width).
extern "C" __global__ void __launch_bounds__(ATTEND_THREADS) attend_views(const bf16* projected, bf16* attended) {
  constexpr int WIDTH = VISION_HEADS * VISION_HEAD_DIM;
  auto& shared = *reinterpret_cast<Views*>(memory);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int view = blockIdx.y / VISION_HEADS, head = blockIdx.y % VISION_HEADS;
  const bf16* first = projected + (long long)view * TOKENS * 3 * WIDTH + head * VISION_HEAD_DIM;
  for (int i = threadIdx.x; i < TOKENS * VALUE_TILES; i += ATTEND_THREADS) {
    const int row = i / VALUE_TILES, part = i % VALUE_TILES * 8;
    const bf16* p = first + (long long)row * 3 * WIDTH + WIDTH + part;
    copy_async(reinterpret_cast<uint4*>(&shared.keys[row][part]), p);
    copy_async(reinterpret_cast<uint4*>(&shared.values[row][part]), p + WIDTH);
  }
  const int query = blockIdx.x * QUERIES + warp * 16 + g;
  const bf16* p = first + (long long)query * 3 * WIDTH + t * 8;
  const uint4 none = make_uint4(0, 0, 0, 0);
  uint4 upper[CHUNKS], lower[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const bool there = c * 32 + t * 8 < VISION_HEAD_DIM;
    upper[c] = there ? load(p + 32 * c) : none;
    lower[c] = there ? load(p + 8 * 3 * WIDTH + 32 * c) : none;
  }
  wait_for_copies();
  __syncthreads();
  float scores[KEY_TILES][4];
#pragma unroll
  for (int n = 0; n < KEY_TILES; ++n) {
    scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const bool there = c * 32 + t * 8 < VISION_HEAD_DIM;
      const uint4 k = there ? *reinterpret_cast<const uint4*>(&shared.keys[n * 8 + g][c * 32 + t * 8]) : none;
      mma(scores[n], upper[c].x, lower[c].x, upper[c].y, lower[c].y, k.x, k.y);
      mma(scores[n], upper[c].z, lower[c].z, upper[c].w, lower[c].w, k.z, k.w);
    }
  }
  const float scale = LOG2E * rsqrtf(float(VISION_HEAD_DIM));
  unsigned weights[KEY_TILES][2];
  float divisor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = MINUS_INFINITY, sum = 0.f;
#pragma unroll
    for (int n = 0; n < KEY_TILES; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2)) * scale;
#pragma unroll
    for (int n = 0; n < KEY_TILES; ++n) {
      const float a = exp2_fast(scores[n][2 * half] * scale - largest);
      const float b = exp2_fast(scores[n][2 * half + 1] * scale - largest);
      weights[n][half] = pack(a, b);
      sum += a + b;
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    divisor[half] = sum + __shfl_xor_sync(0xffffffffu, sum, 2);
  }
  float sums[VALUE_TILES][4] = {};
#pragma unroll
  for (int k = 0; k < KEY_TILES / 2; ++k) {
    const unsigned a = weights[2 * k][0], b = weights[2 * k][1], c = weights[2 * k + 1][0], d = weights[2 * k + 1][1];
    const bf16* row = &shared.values[16 * k + lane % 16][lane / 16 * 8];
#pragma unroll
    for (int n = 0; n + 1 < VALUE_TILES; n += 2) {
      unsigned v[4];
      load_transposed(v, row + 8 * n);
      mma(sums[n], a, b, c, d, v[0], v[1]);
      mma(sums[n + 1], a, b, c, d, v[2], v[3]);
    }
    if (VALUE_TILES % 2) {
      // Of the four, the last two are those of the first lanes again.
      unsigned v[4];
      load_transposed(v, &shared.values[16 * k + lane % 16][8 * (VALUE_TILES - 1)]);
      mma(sums[VALUE_TILES - 1], a, b, c, d, v[0], v[1]);
    }
  }
  bf16* out = attended + ((long long)view * TOKENS + query) * WIDTH + head * VISION_HEAD_DIM + 2 * t;
#pragma unroll
  for (int n = 0; n < VALUE_TILES; ++n) {
    *reinterpret_cast<unsigned*>(out + 8 * n) = pack(sums[n][0] / divisor[0], sums[n][1] / divisor[0]);
    *reinterpret_cast<unsigned*>(out + 8 * WIDTH + 8 * n) = pack(sums[n][2] / divisor[1], sums[n][3] / divisor[1]);
  }
}

extern "C" __device__ const int ATTEND_VIEWS_SHARED = sizeof(Views);
