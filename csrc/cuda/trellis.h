// The best path through a trellis: the Viterbi algorithm on scores that are there, and the way back.
//
// A state is (high, low): `high` the letter of `letter_bits` bits that the next state forgets. States come in pairs,
// 2 j and 2 j + 1, whose last letters differ in the sign of the same atom: pair j follows from the states
// (high, j >> (letter_bits - 1)) of every `high` by the scores of the atoms high * pairs + j. Sums are single float32
// additions, and of equal paths the one whose `high` is lower stays: letters are those of reference.best_path on the
// same scores.

#pragma once

#include "candidate.h"

namespace ddcm {

struct Trellis {
  int32_t letter_bits, memory;

  DDCM_FN int64_t states() const { return int64_t{1} << memory; }
  DDCM_FN int64_t pairs() const { return states() / 2; }
};

DDCM_FN float lowest_sum() { return bits_float(0xff800000u); }

struct alignas(8) SumPair {
  float plus, minus;
};

// Extends the paths of every row by a few groups, a thread a pair of states. A cluster's blocks share a row and meet
// after every group; where more blocks do, a launch takes one group. Sums are in global memory, which the barrier of a
// cluster orders as well as it does shared memory; half of them are written while the others are read.
// Grid: (parts, B).
struct PathKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  struct State {};

  Trellis trellis;
  const float* scores;  // (B, count, K): of the groups first .. first + count - 1
  float* sums;          // (B, 2, states): of the best path to each state before a group of even, of odd number
  uint8_t* origins;     // (B, G, states): the `high` it comes from
  int64_t size, groups, first, count;
  int64_t begin, end;   // groups of the range that are extended here
  int32_t parts;        // blocks of a row

  static constexpr int64_t shared_bytes() { return 0; }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t row = block.index() / parts, part = block.index() % parts, states = trellis.states();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = first + i;
      const float* from = scores + (row * count + i) * size;
      const float* before = sums + (2 * row + group % 2) * states;
      SumPair* after = reinterpret_cast<SumPair*>(sums + (2 * row + (group + 1) % 2) * states);
      uint16_t* origin = reinterpret_cast<uint16_t*>(origins + (row * groups + group) * states);
      block.each([&](int thread, State&) {
        for (int64_t j = part * kThreads + thread; j < trellis.pairs(); j += int64_t{parts} * kThreads) {
          extend(from, group == 0 ? nullptr : before, j, after[j], origin[j]);
        }
      });
      if (i + 1 < end) block.sync_cluster();
    }
  }

  // The best paths to a pair of states. before: null at the start, where there is a path to state 0 only.
  DDCM_FN void extend(const float* from, const float* before, int64_t j, SumPair& after, uint16_t& origin) const {
    const int bits = trellis.letter_bits, letters = 1 << bits;
    const int64_t pairs = trellis.pairs(), low_states = trellis.states() >> bits, low = j >> (bits - 1);
    float plus = lowest_sum(), minus = lowest_sum();
    int plus_from = 0, minus_from = 0;
    DDCM_UNROLL_BY(8)
    for (int high = 0; high < letters; ++high) {
      const float score = from[high * pairs + j];
      float path = high == 0 && low == 0 ? 0.0f : lowest_sum();
      if (before != nullptr) path = before[high * low_states + low];
      const float with = add(path, score), without = add(path, -score);
      if (with > plus) {
        plus = with;
        plus_from = high;
      }
      if (without > minus) {
        minus = without;
        minus_from = high;
      }
    }
    after = SumPair{plus, minus};
    origin = static_cast<uint16_t>(plus_from | minus_from << 8);
  }
};

// The letters (B, G) of the best path, backwards from the state with the largest sum, the lower of equals; -1 where
// that is not finite (a score that is NaN extends no path). Its steps wait for each other, so origins come to shared
// memory first, as many groups at a time as fit, unless a group has so many that fetching one is less. Grid: B.
struct TraceKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static constexpr int64_t kStaged = 32 * 1024;  // bytes
  struct State {
    int64_t at;  // the path's state after the next group, of thread 0
  };

  Trellis trellis;
  const float* sums;       // of PathKernel
  const uint8_t* origins;  // of PathKernel
  int64_t* letters;
  int64_t groups;

  static constexpr int64_t shared_bytes() { return kStaged; }  // of candidates, then of origins
  static_assert(kThreads * static_cast<int64_t>(sizeof(Candidate)) <= kStaged, "candidates fit");

  // Groups whose origins are staged together; 0: none.
  DDCM_FN int64_t staged_groups() const {
    const int64_t states = trellis.states();
    return states < static_cast<int64_t>(sizeof(Vec4)) || 4 * states > kStaged ? 0 : kStaged / states;
  }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t row = block.index(), states = trellis.states();
    const uint8_t* from = origins + row * groups * states;
    int64_t* to = letters + row * groups;
    Candidate* best = reinterpret_cast<Candidate*>(block.shared());
    block.each([&](int thread, State&) {
      const float* last = sums + (2 * row + groups % 2) * states;
      Candidate found = no_candidate();
      for (int64_t state = thread; state < states; state += kThreads) {
        const Candidate c{static_cast<double>(last[state]), 0.0f, static_cast<uint32_t>(state)};
        if (better(c, found)) found = c;
      }
      best[thread] = found;
    });
    block.sync();
    reduce_candidates<kThreads>(block, best, 1);
    const bool finite = is_finite(best[0].value);
    block.each([&](int thread, State& s) {
      s.at = best[0].index;
      for (int64_t g = finite ? groups : thread; g < groups; g += kThreads) to[g] = -1;
    });
    if (!finite) return;
    block.sync();  // the candidates are read; origins may take their place
    const int64_t together = staged_groups();
    for (int64_t end = groups; end > 0; end -= together == 0 ? groups : together) {
      const int64_t begin = together == 0 || end < together ? 0 : end - together;
      const uint8_t* staged = from + begin * states;
      if (together != 0) {
        block.each([&](int thread, State&) {
          const Vec4* in = reinterpret_cast<const Vec4*>(from + begin * states);
          Vec4* out = reinterpret_cast<Vec4*>(block.shared());
          const int64_t vectors = (end - begin) * states / static_cast<int64_t>(sizeof(Vec4));
          DDCM_UNROLL_BY(4)
          for (int64_t i = thread; i < vectors; i += kThreads) out[i] = load(in + i);
        });
        block.sync();
        staged = reinterpret_cast<const uint8_t*>(block.shared());
      }
      block.each([&](int thread, State& s) {
        if (thread == 0) s.at = walk(staged, begin, end, s.at, to);
      });
      if (together != 0) block.sync();
    }
  }

  // Letters of the groups begin .. end - 1, whose origins are at `from`; the state before them.
  DDCM_FN int64_t walk(const uint8_t* from, int64_t begin, int64_t end, int64_t state, int64_t* to) const {
    const int bits = trellis.letter_bits;
    for (int64_t g = end - 1; g >= begin; --g) {
      const int64_t high = from[(g - begin) * trellis.states() + state];
      to[g] = state & ((1 << bits) - 1);
      state = (high << (trellis.memory - bits)) + (state >> bits);
    }
    return state;
  }

  static DDCM_FN bool is_finite(double value) { return value - value == 0.0; }
};

}  // namespace ddcm
