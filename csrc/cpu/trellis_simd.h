// One step of the Viterbi algorithm over a trellis's states. Included by simd.h.

#pragma once

namespace {

void extend_paths(const PathTask& task) {
  const int b = task.letter_bits, letters = 1 << b;
  const int64_t pairs = int64_t{1} << (task.memory - 1), low_states = int64_t{1} << (task.memory - b);
  int64_t j = task.first;
  uint32_t lanes[L];
  for (int l = 0; l < L; ++l) lanes[l] = static_cast<uint32_t>(l >> (b - 1));
  const U spread = Simd::load_u(lanes);
  const F lowest = Simd::set1(-__builtin_inff());
  for (; j + L <= task.last; j += L) {
    // The letters forgotten differ from one turn to the next, the pairs of new states from lane to lane.
    F plus = lowest, minus = lowest;
    U from_plus = Simd::set1_u(0), from_minus = Simd::set1_u(0);
    for (int high = 0; high < letters; ++high) {
      const F score = Simd::load(task.scores + high * pairs + j);
      const F path = Simd::permute(Simd::load(task.metric + high * low_states + (j >> (b - 1))), spread);
      const U at = Simd::set1_u(static_cast<uint32_t>(high));
      Simd::keep_larger(Simd::add(path, score), at, plus, from_plus);
      Simd::keep_larger(Simd::sub(path, score), at, minus, from_minus);
    }
    float values[2][L];
    uint32_t origins[2][L];
    Simd::store(values[0], plus);
    Simd::store(values[1], minus);
    Simd::store_u(origins[0], from_plus);
    Simd::store_u(origins[1], from_minus);
    for (int l = 0; l < 2 * L; ++l) task.next[2 * j + l] = values[l & 1][l >> 1];
    for (int l = 0; l < 2 * L; ++l) task.origin[2 * j + l] = static_cast<uint8_t>(origins[l & 1][l >> 1]);
  }
  for (; j < task.last; ++j) {
    for (int odd = 0; odd < 2; ++odd) {
      float best = -__builtin_inff();
      int from = 0;
      for (int high = 0; high < letters; ++high) {
        const float score = task.scores[high * pairs + j];
        const float path = task.metric[high * low_states + (j >> (b - 1))];
        const float value = odd ? path - score : path + score;
        if (value > best) {
          best = value;
          from = high;
        }
      }
      task.next[2 * j + odd] = best;
      task.origin[2 * j + odd] = static_cast<uint8_t>(from);
    }
  }
}

}  // namespace
