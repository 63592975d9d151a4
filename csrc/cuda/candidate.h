// Candidates of a search and the order among them: larger value first, then lower index.

#pragma once

#include "block.h"

namespace ddcm {

struct alignas(16) Candidate {
  double value;    // score (or its magnitude) + bias
  float score;     // <y_k, w>; NaN marks "none"
  uint32_t index;  // k
};

DDCM_FN Candidate no_candidate() {
  return Candidate{-static_cast<double>(bits_float(0x7f800000u)), quiet_nan(), 0xffffffffu};
}

// A NaN value (of a residual that is not finite) is better than nothing, so it never displaces "none".
DDCM_FN bool better(const Candidate& a, const Candidate& b) {
  return (a.value > b.value) | ((a.value == b.value) & (a.index < b.index));  // no branch
}

// How scores become values.
struct Ranking {
  const float* bias;    // (K,), (G, K) or null
  int64_t bias_stride;  // 0 for (K,), K for (G, K)
  int32_t is_signed;
  int32_t reserved;

  DDCM_FN Candidate candidate(float score, int64_t group, int64_t atom) const {
    return biased(score, bias == nullptr ? 0.0f : bias[group * bias_stride + atom], static_cast<uint32_t>(atom));
  }

  // The same where the atom's bias is at hand.
  DDCM_FN Candidate biased(float score, float own_bias, uint32_t atom) const {
    const double value = static_cast<double>(is_signed ? fabsf(score) : score);
    return Candidate{value + static_cast<double>(own_bias), score, atom};
  }
};

// What the operations return.
struct Chosen {
  int64_t* index;
  int8_t* sign;
  float* score;

  DDCM_FN void write(int64_t at, const Candidate& c, bool is_signed) const {
    const bool none = c.score != c.score;
    const bool negative = is_signed && c.score < 0.0f;
    index[at] = none ? -1 : static_cast<int64_t>(c.index);
    sign[at] = negative ? -1 : 1;
    score[at] = negative ? -c.score : c.score;
  }
};

// Leaves the best of shared[thread % keep], shared[thread % keep + keep], ... in shared[0 .. keep - 1].
// Threads and keep are powers of two; needs a sync() before, ends with one.
template <int Threads, class Block>
DDCM_FN void reduce_candidates(Block& block, Candidate* shared, int keep) {
  DDCM_NO_UNROLL
  for (int stride = Threads / 2; stride >= keep; stride /= 2) {
    block.each([&](int thread, auto&) {
      if (thread < stride && better(shared[thread + stride], shared[thread])) {
        shared[thread] = shared[thread + stride];
      }
    });
    block.sync();
  }
}

// Where the blocks of a search leave their candidates, and the last of them its answer. A team is the `chunks` blocks that
// have the same rows.
struct Picking {
  Candidate* results;  // (B, G, chunks)
  int* arrived;        // blocks of each team that have left theirs; zero before
  Chosen chosen;       // (B, G)
  int32_t chunks, is_signed;
};

// Leaves a block's candidates, best[0 .. Slots - 1] of the rows row(0), row(1), ... (b * G + g, or negative: none). The last
// block of a team picks the answer: which one that is does not matter, as better() is a total order. best[0 .. Threads - 1]
// and *last are shared memory; needs a sync() before.
template <int Threads, int Slots, class Block, class Row>
DDCM_FN void pick(Block& block, const Picking& picking, int team, int chunk, Candidate* best, int* last, Row row) {
  const int chunks = picking.chunks;
  block.each([&](int thread, auto&) {
    if (thread < Slots && row(thread) >= 0) picking.results[row(thread) * chunks + chunk] = best[thread];
  });
  block.sync();
  block.each([&](int thread, auto&) {
    if (thread == 0) *last = arrive(picking.arrived + team) == chunks - 1;
  });
  block.sync();
  if (!*last) return;
  block.each([&](int thread, auto&) {
    Candidate found = no_candidate();
    const int64_t own = row(thread % Slots);
    for (int i = own < 0 ? chunks : thread / Slots; i < chunks; i += Threads / Slots) {
      const Candidate c = picking.results[own * chunks + i];
      if (better(c, found)) found = c;
    }
    best[thread] = found;
  });
  block.sync();
  reduce_candidates<Threads>(block, best, Slots);
  block.each([&](int thread, auto&) {
    if (thread < Slots && row(thread) >= 0) picking.chosen.write(row(thread), best[thread], picking.is_signed != 0);
  });
}

}  // namespace ddcm
