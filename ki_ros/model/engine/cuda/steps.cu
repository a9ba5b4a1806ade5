// The steps of the integration as one kernel whose blocks stay: one on each multiprocessor, all of which wait for each
// other between phases. What a phase needs that does not depend on the phase before, its weights above all, is on its
// way while the blocks wait. How many tiles a block computes: OUT_TILES, UP_TILES, DOWN_TILES; of query, key and value,
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
      Weights<WIDTH, 2> project[ROUNDS];
      KeysValues attend[ATTENDING];
    };
    Weights<WIDTH, 2 * UP_TILES> gate_up;
  } wide;
  union {
    struct {
      Weights<HEADS * HEAD_DIM, OUT_TILES> attended;
      Shares<2> project;
    };
    Weights<HIDDEN, DOWN_TILES> hidden;
  } narrow;
  union {
    NormedRows rows;
    Shares<2 * UP_TILES> gate_up;
    Shares<OUT_TILES> attended;
    Shares<DOWN_TILES> hidden;
    Parts parts;
    Row row;
  } small;
};

// All blocks, in two halves between which a block does what need not wait.
struct Barrier {
  unsigned* counter;
  unsigned goal = 0;

  __device__ __forceinline__ void arrive() {
    goal += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) arrive_at(counter);
  }
  __device__ __forceinline__ void wait() {
    if (threadIdx.x == 0) wait_until(counter, goal);
    __syncthreads();
  }
};

// Copies are in groups, in the order in which they were asked for; a phase waits for its own, and for none of those
// after it. For each layer: gate_up's, add_hidden's, then of the next layer project's, attend's and add_attended's.
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

  auto ask_for_project = [&](const Layer& layer, int step, int l) {
    projects[0].copy(shared.wide.project[0], layer.qkv);
    if (second) projects[1].copy(shared.wide.project[1], layer.qkv);
    end_group();
    if (attends && !attention.has_new)
      attention.copy(shared.wide.attend[warp], layer.keys, layer.values, prefix.capacity);
    end_group();
    const Modulation m = modulations.norm(norms, step, 2 * l);
    gains.load(m.gain, m.shift);
  };
  auto ask_for_attended = [&](const Layer& layer) {
    if (adds_attended) add_attended.copy(shared.narrow.attended, layer.out);
    end_group();
  };

  ask_for_project(layers[0], first, 0);
  ask_for_attended(layers[0]);
  for (int step = first; step < last; ++step) {
    for (int l = 0; l < depth; ++l) {
      const Layer layer = layers[l];

      shared.small.rows.normalise(b.x, modulations.norm(norms, step, 2 * l), gains);
      wait_for_groups<2>();
#pragma unroll
      for (int r = 0; r < ROUNDS; ++r) {
        if (r > 0 && !second) break;
        shared.small.rows.multiply(shared.wide.project[r], shared.narrow.project);
        projects[r].finish(shared.narrow.project, prefix.capacity, b.queries, layer.keys, layer.values);
      }
      barrier.arrive();
      barrier.wait();

      if (attends && attention.has_new)
        attention.copy(shared.wide.attend[warp], layer.keys, layer.values, prefix.capacity);
      end_group();
      if (attends) {
        const Attention::Queries q = attention.load_queries(b.queries);
        if (attention.has_new) {
          wait_for_groups<0>();
        } else {
          wait_for_groups<2>();
        }
        attention.run(shared.wide.attend[warp], q, splits, b.sums, b.scales);
      }
      barrier.arrive();
      if (gates) gating.copy(shared.wide.gate_up, layer.gate_up);
      end_group();
      barrier.wait();

      for (int i = block; i < LIVE * HEADS; i += gridDim.x) {
        combine_row(shared.small.parts, i / HEADS, i % HEADS, valid + LIVE, splits, b.sums, b.scales, b.attended);
        __syncthreads();
      }
      barrier.arrive();
      add_attended.load_gate(modulations.gate(norms, step, 2 * l), modulations.given_gate(2 * l), modulations.free);
      barrier.wait();

      if (adds_attended)
        add_attended.run(shared.narrow.attended, shared.small.attended, b.attended, b.x, [] { wait_for_groups<2>(); });
      barrier.arrive();
      if (adds_hidden) add_hidden.copy(shared.narrow.hidden, layer.down);
      end_group();
      const Modulation m = modulations.norm(norms, step, 2 * l + 1);
      gains.load(m.gain, m.shift);
      barrier.wait();

      if (gates) {
        shared.small.rows.normalise(b.x, m, gains);
        wait_for_groups<1>();
        shared.small.rows.multiply(shared.wide.gate_up, shared.small.gate_up);
        gating.finish(shared.small.gate_up, b.hidden);
      }
      barrier.arrive();
      const bool over = l + 1 == depth;
      ask_for_project(layers[over ? 0 : l + 1], over ? min(step + 1, last - 1) : step, over ? 0 : l + 1);
      add_hidden.load_gate(modulations.gate(norms, step, 2 * l + 1), modulations.given_gate(2 * l + 1),
                           modulations.free);
      barrier.wait();

      if (adds_hidden)
        add_hidden.run(shared.narrow.hidden, shared.small.hidden, b.hidden, b.x, [] { wait_for_groups<2>(); });
      barrier.arrive();
      ask_for_attended(layers[over ? 0 : l + 1]);
      barrier.wait();
    }
    for (int row = block; row < LIVE; row += gridDim.x) {
      const Advance advance(row, modulations.norm(norms, step, norms - 1), ends);
      advance.run(shared.small.row, false, size, ends, b.x, b.actions);
      __syncthreads();
    }
    barrier.arrive();
    barrier.wait();
  }
  wait_for_groups<0>();
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
