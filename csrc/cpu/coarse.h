// Coarse scores of a task, and exact ones of the atoms that matter (coarse_simd.h).

#pragma once

#include "driver.h"

namespace ddcm {
namespace cpu {

// Whether the tasks have coarse scores. Of few atoms, making the tables takes longer than looking them up saves.
inline bool has_coarse(const Geometry& g, const Plan& plan) {
  return g.kind == kSign && kernels->coarse_scores != nullptr && plan.chunk >= 512;
}

class CoarseTask {
 public:
  // Of a thread's memory.
  static int64_t bytes(const Plan& plan) { return round_up(plan.bytes() + 4 * room(plan) * 4, 64); }

  CoarseTask(const Geometry& g, const Plan& plan, const float* w, int64_t batch, uint32_t step, const Ranking& ranking,
             int64_t group, int64_t chunk, int64_t row_block, char* memory)
      : chunk_(make_chunk(g, plan, w, batch, step, group, chunk, row_block, memory, nullptr, task_)),
        bias_(ranking.bias_of(group, chunk_.first)), is_signed_(ranking.is_signed),
        position_(reinterpret_cast<int*>(memory + plan.bytes())),
        value_(reinterpret_cast<float*>(position_ + room(plan))),
        atoms_(reinterpret_cast<uint32_t*>(value_ + room(plan))),
        exact_(reinterpret_cast<float*>(atoms_ + room(plan))) {
    kernels->coarse_scores(task_, margin_);
  }

  const Chunk& chunk() const { return chunk_; }

  // The best coarse value of a row.
  float best(int r) const { return kernels->argmax(scores(r), bias_, chunk_.count, is_signed_).value; }

  // By how much a coarse value like that can differ from the exact one; with a bias there is another rounding.
  float wrong(int r, float value) const { return margin_[r] + 0x1p-21f * __builtin_fabsf(value); }

  // The atoms whose coarse values are at least that, in order; all of them if it is NaN. Returns how many.
  int list(int r, float least) {
    return kernels->filter(scores(r), bias_, chunk_.count, is_signed_, least == least ? least : -__builtin_inff(),
                           position_, value_);
  }

  // The coarse values of the atoms in the list, which may be changed.
  float* listed() { return value_; }

  // Scores the first `found` atoms of the list exactly and calls use(k, value, score) for each.
  template <class Use>
  void score(int r, int found, Use&& use) {
    if (found == 0) return;
    for (int i = 0; i < found; ++i) atoms_[i] = static_cast<uint32_t>(chunk_.first + position_[i]);
    for (int i = found; i % 16 != 0; ++i) atoms_[i] = atoms_[0];
    kernels->listed_scores(task_, r, atoms_, found, exact_);
    for (int i = 0; i < found; ++i) {
      float own = is_signed_ ? __builtin_fabsf(exact_[i]) : exact_[i];
      if (bias_ != nullptr) own += bias_[position_[i]];
      use(chunk_.first + position_[i], own > -__builtin_inff() ? own : -__builtin_inff(), exact_[i]);
    }
  }

 private:
  static int64_t room(const Plan& plan) { return plan.chunk + 16; }
  const float* scores(int r) const { return chunk_.scores + r * chunk_.stride; }

  ScoreTask task_;
  const Chunk chunk_;
  const float* bias_;
  const bool is_signed_;
  int* position_;
  float* value_;
  uint32_t* atoms_;
  float* exact_;
  float margin_[kMaxRows];
};

}  // namespace cpu
}  // namespace ddcm
