// What the operations share: memory, the division of work into tasks, and the operations themselves, a file each.
//
// Shapes: B rows (batch), D = dim, G = groups, K = size. Residuals w and sums y are float32 (B, D) in codebook order
// (docs/noise-law.md), dense and row-major. Results are independent of the number of threads. An operation
// throws std::bad_alloc, or Interrupted where a signal ended it (pool.h).

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "kernels.h"
#include "pool.h"

namespace ddcm {
namespace cpu {

// The kernels of the instruction set in use; null before select_kernels.
extern const Kernels* kernels;

// Chooses an instruction set by name, or the best one for "auto". False if it is unknown, was not compiled, this
// machine lacks it, or its Gaussians are wrong.
bool select_kernels(const char* name);

// ---- the operations ------------------------------------------------------------------------------

// How scores become the values that are ranked.
struct Ranking {
  const float* bias;    // (K,), (G, K) or null
  int64_t bias_stride;  // 0 for (K,), K for (G, K)
  bool is_signed;       // |score| + bias instead of score + bias

  const float* bias_of(int64_t group, int64_t first) const {
    return bias == nullptr ? nullptr : bias + group * bias_stride + first;
  }
};

// Where a search or topk writes, (B, G) or (B, G, m): a row with NaN or infinite entries gets index -1.
struct Chosen {
  int64_t* index;
  int8_t* sign;
  float* score;

  void write(int64_t at, int64_t k, float value, bool is_signed) const {
    index[at] = k;
    sign[at] = is_signed && value < 0 ? -1 : 1;
    score[at] = sign[at] < 0 ? -value : value;
  }
};

// residual.cpp. w = R^T of r's rows, each brought into range by a power of two (all by one if `together`), and unit
// (B), what one is worth: ddcm_fast.codebook.reference.enter.
enum class Entered { kPlain, kScaled, kNotFinite };  // every unit is 1; some is not; neither w nor unit was written
Entered enter(const Geometry& g, const float* r, int64_t batch, bool together, float* w, float* unit, int threads);

// rotate.cpp. w = R^T r, z = R y: (B, D) -> (B, D).
void to_codebook_order(const Geometry& g, const float* r, int64_t batch, float* w, int threads);
void to_image_order(const Geometry& g, const float* y, int64_t batch, float* z, int threads);

// search.cpp. All scores: out (B, G, K). norms (G, K), or null: squared norms of all atoms.
void scores(const Geometry& g, const float* w, int64_t batch, uint32_t step, float* out, float* norms, int threads);

// search.cpp. The best atom of each group.
void search(const Geometry& g, const float* w, int64_t batch, uint32_t step, const Ranking& ranking,
            const Chosen& chosen, int threads);

// select.cpp. The m best atoms of each group, best first.
void topk(const Geometry& g, const float* w, int64_t batch, uint32_t step, int64_t m, const Ranking& ranking,
          const Chosen& chosen, int threads);

// trellis.cpp. The letters (B, G) of the best path through a trellis (ddcm_fast.codebook.reference.trellis_search); K is
// a power of two, 2^(memory + letter_bits - 1), memory from letter_bits. A row with NaN or infinite entries gets -1.
void trellis_search(const Geometry& g, const float* w, int64_t batch, uint32_t step, int letter_bits,
                    int64_t* letters, int threads);

// combine.cpp. Weighted sums of atoms (section 6): index, coefficient (B, G, m) -> y (B, D). Indices outside the
// codebook are clamped into it.
void combine(const Geometry& g, const int64_t* index, const float* coefficient, int64_t batch, int64_t m,
             uint32_t step, float* y, int threads);
uint64_t clamp_index(const Geometry& g, int64_t index);

// hadamard.cpp. combine of `hadamard`, and its squared norms: out (G, K).
void combine_hadamard(const Geometry& g, const int64_t* index, const float* coefficient, int64_t batch, int64_t m,
                      uint32_t step, float* y, int threads);
void hadamard_norms(const Geometry& g, uint32_t step, float* out, int threads);

// ---- memory and tasks ----------------------------------------------------------------------------

// 64 byte aligned memory, freed at the end of its scope. Throws std::bad_alloc.
class Memory {
 public:
  explicit Memory(int64_t bytes)
      : raw_(new char[static_cast<size_t>(bytes) + 64]),
        start_(raw_.get() + (64 - reinterpret_cast<uintptr_t>(raw_.get()) % 64) % 64) {}
  char* get() const { return start_; }

 private:
  std::unique_ptr<char[]> raw_;
  char* start_;
};

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Threads worth waking for some amount of work: each should have about 100 microseconds or more. On a
// busy machine a thread can lose its core in the middle of a task, and the caller waits for it.
int useful_threads(double vector_operations, int threads);


// How the scores of a codebook are cut into tasks: (group, run of atoms, run of rows).
struct Plan {
  int64_t chunk;       // atoms a task
  int64_t chunks;      // tasks a group
  int row_block;       // rows a task
  int64_t row_blocks;
  int threads;
  int64_t stride;      // floats of scores a row and task
  int64_t scores_bytes, scratch_bytes;  // a thread

  Plan(const Geometry& g, int64_t rows, int requested);
  int64_t bytes() const { return scores_bytes + scratch_bytes; }
};

// One task's scores in a thread's memory.
struct Chunk {
  int64_t group;
  int64_t first;    // atom
  int count;        // atoms inside the codebook
  int64_t row;      // first row
  int rows;
  const float* scores;
  int64_t stride;
  const uint64_t* norms;  // ScoreTask's
};


// One task in bytes() of memory, a thread's own; norms: ScoreTask's. `task` is what it was scored by.
Chunk make_chunk(const Geometry& g, const Plan& plan, const float* w, int64_t batch, uint32_t step,
                 int64_t group, int64_t chunk, int64_t row_block, char* memory, uint64_t* norms, ScoreTask& task);

// The same, scored.
Chunk score_chunk(const Geometry& g, const Plan& plan, const float* w, int64_t batch, uint32_t step,
                  int64_t group, int64_t chunk, int64_t row_block, char* memory, uint64_t* norms);

// Calls use(chunk, worker) for every task of a codebook. With `norms` (`gaussian` only), the tasks of the
// first rows make their atoms' squared norms too.
template <class Use>
void for_each_chunk(const Geometry& g, const float* w, int64_t batch, uint32_t step, int threads,
                    bool norms, Use&& use) {
  const Plan plan(g, batch, threads);
  const int64_t bytes = plan.bytes() + (norms ? plan.chunk * 8 : 0);
  const Memory memory(bytes * plan.threads);
  parallel(g.groups * plan.chunks * plan.row_blocks, plan.threads, [&](int64_t task, int worker) {
    const int64_t row_block = task % plan.row_blocks;
    const int64_t chunk = task / plan.row_blocks % plan.chunks;
    const int64_t group = task / plan.row_blocks / plan.chunks;
    char* thread_memory = memory.get() + bytes * worker;
    uint64_t* squares =
        norms && row_block == 0 ? reinterpret_cast<uint64_t*>(thread_memory + plan.bytes()) : nullptr;
    use(score_chunk(g, plan, w, batch, step, group, chunk, row_block, thread_memory, squares));
  });
}

// Whether no entry of x is NaN or infinite.
bool finite(const float* x, int64_t count);

}  // namespace cpu
}  // namespace ddcm
