// The steps of the integration as one kernel whose blocks stay: one on each multiprocessor, all of which wait for each
// other between phases. What a phase needs that does not depend on the phase before, its weights above all, is on its
// way while the blocks wait, by the copy engine. How many tiles a block computes: OUT_TILES, UP_TILES, DOWN_TILES; of query, key and value,
// one of each half at a time.
//
// Shared memory: `wide` for the weights of project and the keys and values of attend, then for those of gate_up;
// `narrow` for the weights of the two additions, one after the other.

#include "expert.cuh"

constexpr int ROUNDS = 2;  // of a block's products in project, and of a warp's attention: most that fit
constexpr int ATTENDING = 2;  // warps of a block that may attend

struct Layer {
  const bf16 *qkv, *out, *gate_up, *down;
  bf16 *keys, *values;
};

// Of all steps: (steps, norms, WIDTH); given: (norms, WIDTH). Two norms of each layer, then the last.
struct Modulations {
  const float *gains, *shifts;
  const bf16* gates;
  const float *given_gains, *given_shifts;
  const bf16* given_gates;
  const unsigned char* free;

  __device__ __forceinline__ Modulation norm(int norms, int step, int n) const {
    const long long at = ((long long)step * norms + n) * WIDTH, given = (long long)n * WIDTH;
    return {gains + at, shifts + at, given_gains + given, given_shifts + given, free};
  }
  __device__ __forceinline__ const bf16* gate(int norms, int step, int n) const {
    return gates + ((long long)step * norms + n) * WIDTH;
  }
  __device__ __forceinline__ const bf16* given_gate(int n) const { return given_gates + (long long)n * WIDTH; }
};

// What passes from phase to phase.
struct Buffers {
  bf16 *x, *queries, *attended, *hidden;
  float *sums, *scales, *actions;
};

struct Shared {
  union {
    struct {
      BulkWeights<WIDTH, 2> project[ROUNDS];
      KeysValues attend[ATTENDING];
    };
    BulkWeights<WIDTH, 2 * UP_TILES> gate_up;
  } wide;
  union {
    struct {
      BulkWeights<HEADS * HEAD_DIM, OUT_TILES> attended;
      Shares<2> project;
    };
    BulkWeights<HIDDEN, DOWN_TILES> hidden;
  } narrow;
  union {
    NormedRows rows;
    Shares<2 * UP_TILES> gate_up;
    Shares<OUT_TILES> attended;
    Shares<DOWN_TILES> hidden;
    Parts parts;
    Row row;
  } small;
  Arrival project, gate_up, attended, hidden;
};

// All blocks, in two halves between which a block does what need not wait.
struct Barrier {
  unsigned* counter;
  unsigned goal = 0;

  __device__ __forceinline__ void arrive() {
    goal += gridDim.x;
    before_bulk();
    __syncthreads();
    if (threadIdx.x == 0) arrive_at(counter);
  }
  __device__ __forceinline__ void wait() {
    if (threadIdx.x == 0) wait_until(counter, goal);
    __syncthreads();
  }
};

// By the first warp.
template <class W, class Part>
__device__ __forceinline__ void ask(W& weights, const Part& part, const bf16* weight, Arrival& arrival) {
  if (threadIdx.x / 32) return;
  if (threadIdx.x == 0) arrival.expect(W::BYTES);
  __syncwarp();
  part.copy(weights, weight, arrival);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    steps(const Layer* layers, int depth, int first, int last, float size, Modulations modulations, Prefix prefix,
          int splits, Ends ends, Buffers b, unsigned* counter) {
  auto& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = threadIdx.x / 32, block = blockIdx.x, norms = 2 * depth + 1;
  const int valid = prefix.valid();
  const int task = warp * gridDim.x + block;
  const Attention attention(task % HEADS, task / HEADS, valid);
  const bool attends = warp < ATTENDING && task < splits * HEADS && !attention.empty();
  using Project = Projection<1>;
  // Positions, and so rotations, are the same in all steps.
  Project projects[ROUNDS] = {Project(block), Project(min(block + gridDim.x, Project::BLOCKS - 1))};
#pragma unroll
  for (int r = 0; r < ROUNDS; ++r) projects[r].load_rotation(prefix);
  const bool second = block + gridDim.x < Project::BLOCKS;
  AttendedAddition add_attended(block);
  HiddenAddition add_hidden(block);
  const Gating<UP_TILES> gating(block);
  const bool adds_attended = block < AttendedAddition::BLOCKS, adds_hidden = block < HiddenAddition::BLOCKS;
  const bool gates = block < Gating<UP_TILES>::BLOCKS;
  Barrier barrier{counter};
  Gains gains;

  if (threadIdx.x == 0) shared.project.init(), shared.gate_up.init(), shared.attended.init(), shared.hidden.init();
  __syncthreads();
  // Of how often each has been waited for.
  unsigned parity = 0;

  auto ask_for_project = [&](const Layer& layer, int step, int l) {
    if (warp == 0) {
      if (threadIdx.x == 0) shared.project.expect((second ? 2 : 1) * BulkWeights<WIDTH, 2>::BYTES);
      __syncwarp();
      projects[0].copy(shared.wide.project[0], layer.qkv, shared.project);
      if (second) projects[1].copy(shared.wide.project[1], layer.qkv, shared.project);
    }
    if (attends) attention.copy(shared.wide.attend[warp], layer.keys, layer.values, prefix.capacity, false);
    const Modulation m = modulations.norm(norms, step, 2 * l);
    gains.load(m.gain, m.shift);
  };

  ask_for_project(layers[0], first, 0);
  if (adds_attended) ask(shared.narrow.attended, add_attended, layers[0].out, shared.attended);
  for (int step = first; step < last; ++step) {
    for (int l = 0; l < depth; ++l) {
      const Layer layer = layers[l];

      shared.small.rows.normalise(b.x, modulations.norm(norms, step, 2 * l), gains);
      shared.project.wait(parity);
#pragma unroll
      for (int r = 0; r < ROUNDS; ++r) {
        if (r > 0 && !second) break;
        shared.small.rows.multiply(shared.wide.project[r], shared.narrow.project);
        projects[r].finish(shared.narrow.project, prefix.capacity, b.queries, layer.keys, layer.values);
      }
      barrier.arrive();
      barrier.wait();

      if (attends) {
        attention.copy(shared.wide.attend[warp], layer.keys, layer.values, prefix.capacity, true);
        const Attention::Queries q = attention.load_queries(b.queries);
        wait_for_copies();
        attention.run(shared.wide.attend[warp], q, splits, b.sums, b.scales);
      }
      barrier.arrive();
      if (gates) ask(shared.wide.gate_up, gating, layer.gate_up, shared.gate_up);
      barrier.wait();

      for (int i = block; i < LIVE * HEADS; i += gridDim.x) {
        combine_row(shared.small.parts, i / HEADS, i % HEADS, valid + LIVE, splits, b.sums, b.scales, b.attended);
        __syncthreads();
      }
      barrier.arrive();
      add_attended.load_gate(modulations.gate(norms, step, 2 * l), modulations.given_gate(2 * l), modulations.free);
      barrier.wait();

      if (adds_attended)
        add_attended.run(shared.narrow.attended, shared.small.attended, b.attended, b.x,
                         [&] { shared.attended.wait(parity); });
      barrier.arrive();
      if (adds_hidden) ask(shared.narrow.hidden, add_hidden, layer.down, shared.hidden);
      const Modulation m = modulations.norm(norms, step, 2 * l + 1);
      gains.load(m.gain, m.shift);
      barrier.wait();

      if (gates) {
        shared.small.rows.normalise(b.x, m, gains);
        shared.gate_up.wait(parity);
        shared.small.rows.multiply(shared.wide.gate_up, shared.small.gate_up);
        gating.finish(shared.small.gate_up, b.hidden);
      }
      barrier.arrive();
      const bool over = l + 1 == depth, end = over && step + 1 == last;
      const int next = over ? 0 : l + 1;
      if (!end) ask_for_project(layers[next], over ? step + 1 : step, next);
      add_hidden.load_gate(modulations.gate(norms, step, 2 * l + 1), modulations.given_gate(2 * l + 1),
                           modulations.free);
      barrier.wait();

      if (adds_hidden)
        add_hidden.run(shared.narrow.hidden, shared.small.hidden, b.hidden, b.x,
                       [&] { shared.hidden.wait(parity); });
      barrier.arrive();
      if (adds_attended && !end) ask(shared.narrow.attended, add_attended, layers[next].out, shared.attended);
      barrier.wait();
      parity ^= 1;
    }
    for (int row = block; row < LIVE; row += gridDim.x) {
      const Advance advance(row, modulations.norm(norms, step, norms - 1), ends);
      advance.run(shared.small.row, false, size, ends, b.x, b.actions);
      __syncthreads();
    }
    barrier.arrive();
    barrier.wait();
  }
}

extern "C" __device__ const int STEPS_SHARED = sizeof(Shared);
extern "C" __device__ const int STEPS_ROUNDS = ROUNDS;
extern "C" __device__ const int STEPS_ATTENDING = ATTENDING;
extern "C" __device__ const int STEPS_PROJECT_BLOCKS = Projection<1>::BLOCKS;
// Most blocks of a phase that each block takes once.
extern "C" __device__ const int STEPS_BLOCKS =
    Gating<UP_TILES>::BLOCKS > AttendedAddition::BLOCKS
        ? (Gating<UP_TILES>::BLOCKS > HiddenAddition::BLOCKS ? Gating<UP_TILES>::BLOCKS : HiddenAddition::BLOCKS)
        : (AttendedAddition::BLOCKS > HiddenAddition::BLOCKS ? AttendedAddition::BLOCKS : HiddenAddition::BLOCKS);
