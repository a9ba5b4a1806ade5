// The phases of the expert as kernels. How many tiles a block computes: QKV_TILES, OUT_TILES, UP_TILES, DOWN_TILES; how
// many warps of a block attend: ATTEND_WARPS.

#include "expert.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    project(const bf16* x, const bf16* weight, Modulation modulation, Prefix prefix, Cache cache, bf16* queries) {
  auto& shared = *reinterpret_cast<NormedProduct<2 * QKV_TILES>*>(memory);
  let_next_begin();
  Projection<QKV_TILES> projection(blockIdx.x);
  projection.copy(shared.weights, weight);
  Gains gains;
  gains.load(modulation.gain, modulation.shift);
  projection.load_rotation(prefix);
  wait_for_previous();
  shared.rows.normalise(x, modulation, gains);
  wait_for_copies();
  shared.rows.multiply(shared.weights, shared.shares);
  projection.finish(shared.shares, cache, queries);
}

extern "C" __global__ void __launch_bounds__(32 * ATTEND_WARPS)
    attend(const bf16* queries, Cache cache, Prefix prefix, int splits, float* sums, float* scales) {
  auto& shared = reinterpret_cast<KeysValues*>(memory)[threadIdx.x / 32];
  const Split split(ATTEND_WARPS, prefix);
  let_next_begin();
  if (!split.wait_for_keys()) return;
  shared.keys.copy(cache.keys.rows, split.base, split.kv_head());
  shared.values.copy(cache.values.columns, cache.capacity, split.base, split.kv_head());
  wait_for_previous();
  HeadRows q;
  q.load(queries, split.head);
  // All loads are under way before the first is waited for: the compiler moves none across this.
  __syncwarp();
  wait_for_copies();
  attend_to(split, shared, q, splits, sums, scales);
}

// A block is a row of a head.
extern "C" __global__ void __launch_bounds__(HEAD_DIM, 1)
    combine(const float* sums, const float* scales, Prefix prefix, int splits, bf16* attended, float* divisors) {
  __shared__ Parts parts;
  const int total = prefix.valid() + LIVE;
  let_next_begin();
  wait_for_previous();
  combine_row(parts, blockIdx.x, blockIdx.y, total, splits, sums, scales, attended, divisors);
}

template <class Sum, int K, int TILES>
__device__ __forceinline__ void add(const bf16* input, const bf16* weight, const bf16* gate, const bf16* given_gate,
                                    const unsigned char* free, const bf16* x, bf16* out) {
  auto& shared = *reinterpret_cast<PlainProduct<K, TILES>*>(memory);
  let_next_begin();
  Sum addition(blockIdx.x);
  addition.copy(shared.weights, weight);
  addition.load_gate(gate, given_gate, free);
  wait_for_previous();
  addition.run(shared.weights, shared.shares, input, x, out);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    add_attended(const bf16* attended, const bf16* weight, const bf16* gate, const bf16* given_gate,
                 const unsigned char* free, const bf16* x, bf16* out) {
  add<AttendedAddition, HEADS * HEAD_DIM, OUT_TILES>(attended, weight, gate, given_gate, free, x, out);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    add_hidden(const bf16* hidden, const bf16* weight, const bf16* gate, const bf16* given_gate,
               const unsigned char* free, const bf16* x, bf16* out) {
  add<HiddenAddition, HIDDEN, DOWN_TILES>(hidden, weight, gate, given_gate, free, x, out);
}

template <bool KEPT>
__device__ __forceinline__ void gate(const bf16* x, const bf16* weight, const Modulation& modulation, bf16* hidden,
                                     bf16* both) {
  auto& shared = *reinterpret_cast<NormedProduct<2 * UP_TILES>*>(memory);
  let_next_begin();
  const Gating<UP_TILES> gating(blockIdx.x);
  gating.copy(shared.weights, weight);
  Gains gains;
  gains.load(modulation.gain, modulation.shift);
  wait_for_previous();
  shared.rows.normalise(x, modulation, gains);
  wait_for_copies();
  shared.rows.multiply(shared.weights, shared.shares);
  gating.finish<KEPT>(shared.shares, hidden, both);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    gate_up(const bf16* x, const bf16* weight, Modulation modulation, bf16* hidden) {
  gate<false>(x, weight, modulation, hidden, nullptr);
}

// A kernel of its own: a choice at run time would cost registers that there are not.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    gate_up_kept(const bf16* x, const bf16* weight, Modulation modulation, bf16* hidden, bf16* both) {
  gate<true>(x, weight, modulation, hidden, both);
}

// A step of a row of the chunk with the velocity of what came out, unless it is the first; then the row as it goes in. A
// block is a row. out, in: (16, WIDTH). actions: (LIVE, ACTIONS), the state of the integration; a row that is given stays.
extern "C" __global__ void __launch_bounds__(THREADS)
    advance(int first, float step, Modulation modulation, Ends ends, const bf16* out, bf16* in, float* actions) {
  __shared__ Row row;
  const int at = blockIdx.x;
  const bool given = is_given(modulation.free, at);
  let_next_begin();
  const Leaving leaving(given, modulation, ends);
  wait_for_previous();
  for (int a = threadIdx.x; a < ACTIONS; a += THREADS) row.state[a] = __ldcg(actions + at * ACTIONS + a);
  if (!first) {
    float x[COLUMNS];
    load_columns(x, out + at * WIDTH);
    leaving.find(row, ends, x);
    for (int a = threadIdx.x; a < ACTIONS && !given; a += THREADS)
      actions[at * ACTIONS + a] = row.state[a] += step * row.velocity[a];
  }
  __syncthreads();
  enter(row, ends, in + at * WIDTH);
}

// Bytes of shared memory of the kernels that take it dynamically, and how many blocks there are of each.
extern "C" __device__ const int PROJECT_SHARED = sizeof(NormedProduct<2 * QKV_TILES>);
extern "C" __device__ const int GATE_UP_SHARED = sizeof(NormedProduct<2 * UP_TILES>);
extern "C" __device__ const int GATE_UP_KEPT_SHARED = sizeof(NormedProduct<2 * UP_TILES>);
extern "C" __device__ const int ADD_ATTENDED_SHARED = sizeof(PlainProduct<HEADS * HEAD_DIM, OUT_TILES>);
extern "C" __device__ const int ADD_HIDDEN_SHARED = sizeof(PlainProduct<HIDDEN, DOWN_TILES>);
extern "C" __device__ const int ATTEND_SHARED = sizeof(KeysValues) * ATTEND_WARPS;
extern "C" __device__ const int ATTENDING_WARPS = ATTEND_WARPS;
extern "C" __device__ const int PROJECT_BLOCKS = Projection<QKV_TILES>::BLOCKS;
extern "C" __device__ const int GATE_UP_BLOCKS = Gating<UP_TILES>::BLOCKS;
extern "C" __device__ const int GATE_UP_KEPT_BLOCKS = Gating<UP_TILES>::BLOCKS;
extern "C" __device__ const int ADD_ATTENDED_BLOCKS = AttendedAddition::BLOCKS;
extern "C" __device__ const int ADD_HIDDEN_BLOCKS = HiddenAddition::BLOCKS;
