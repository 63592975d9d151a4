// A k step of a search: entries made in registers, their squares, their products with the residual.

#pragma once

#include "search_kernel.h"

namespace ddcm {

// Clears the sums and sets every warp to its first k step of a segment.
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::start_segment(Block& block, int begin) const {
  const BlockPlace place = this->place(opaque(block.index()));
  block.each([&](int thread_, State& s) {
    const int thread = opaque(thread_);
    const int warp = thread / 32, row_group = warp % RowGroups;
    const int split = 1 << split_bits, share = cut(block.index()) * split + (warp / RowGroups & (split - 1));
    const int first_step = share * warp_steps + begin;
    const int64_t batch_part = static_cast<int64_t>(place.batch_tile) * RowGroups + row_group;
    const int64_t tile_group = batch_part * geometry.groups + place.group;
    s.from = fragments + (tile_group * cuts() * split * warp_steps + first_step) * kStepVectors * 32 + thread % 32;
    const int64_t first_call = static_cast<int64_t>(first_step + row_group) * kCallsPerStep + thread % 4;
    s.call = geometry.block(place.group, first_call);
    s.left = static_cast<int>(geometry.group_dim(place.group) - first_call * Traits::kEntriesPerCall);
    DDCM_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      DDCM_UNROLL
      for (int nt = 0; nt < ColumnTiles; ++nt) {
        DDCM_UNROLL
        for (int i = 0; i < 4; ++i) s.sum[m][nt][i] = 0;
      }
    }
  });
}

// Entries of the warp's next k step to make.
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::make_entries(
    Block& block, uint32_t step_word, const char* local_table) const {
  block.each([&](int, State& s) {
    const BlockPart part = block_part(keys, s.call, step_word, Traits::kStream);
    DDCM_UNROLL
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      s.words[r] = Traits::expand(philox_split(keys, s.atom[r], part), local_table);
    }
    if constexpr (kSquares) {
      // Entries past the group's end meet a residual of zero, but not in a square.
      if (s.left < Traits::kEntriesPerCall) {
        DDCM_UNROLL
        for (int word = 0; word < 4; ++word) {
          const uint32_t mask = s.left > 2 * word + 1 ? 0xffffffffu : s.left > 2 * word ? 0xffffu : 0u;
          DDCM_UNROLL
          for (int r = 0; r < 2 * kRowTiles; ++r) s.words[r].w[word] &= mask;
        }
      }
    }
    s.call += kCallsPerStep * RowGroups;
    s.left -= kCallsPerStep * RowGroups * Traits::kEntriesPerCall;
  });
  if constexpr (kSquares) add_squares(block);
}

// Adds the squares of one k step's entries.
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::add_squares(Block& block) {
  using Mma = typename Traits::Mma;
  DDCM_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    block.each([&](int, State& s) {
      DDCM_UNROLL
      for (int i = 0; i < 8; ++i) s.square[i / 4][i % 4] = 0;
    });
    DDCM_UNROLL
    for (int product = 0; product < Traits::kProducts; ++product) {
      DDCM_UNROLL
      for (int half = 0; half < 2; ++half) {
        block.template mma<Mma>([&](int, State& s, auto issue) {
          const int word = Traits::word(product);
          const Words &upper = s.words[2 * m], &lower = s.words[2 * m + 1], &own = s.words[2 * m + half];
          issue(s.square[half], upper.w[word], lower.w[word], upper.w[word + 1], lower.w[word + 1],
                own.w[word], own.w[word + 1]);
        });
      }
    }
    block.each([&](int thread, State& s) {
      if (!on_diagonal(thread)) return;
      // c[0], c[1]: row g, columns 2t, 2t + 1; c[2], c[3]: row g + 8. The diagonal's column is g.
      const bool odd = thread % 8 / 4 != 0;
      *squares_of(block, thread, 2 * m) += static_cast<int32_t>(odd ? s.square[0][1] : s.square[0][0]);
      *squares_of(block, thread, 2 * m + 1) += static_cast<int32_t>(odd ? s.square[1][3] : s.square[1][2]);
    });
  }
}

// Products of the entries of one k step with the warp's rows; to the next step's residual.
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::multiply(Block& block) const {
  constexpr int kOfPair = Traits::kVectors / Traits::kWordPairs;
  DDCM_UNROLL
  for (int pair = 0; pair < Traits::kWordPairs; ++pair) {
    DDCM_UNROLL_BY(Traits::vectors_together(ColumnTiles))
    for (int v = 0; v < kOfPair; ++v) {
      DDCM_UNROLL
      for (int from = 0; from < ColumnTiles; from += kTogether) {
        block.each([&](int, State& s) {
          DDCM_UNROLL
          for (int i = 0; i < kTogether; ++i) s.b[i] = load(s.from + (from + i) * 32);
        });
        DDCM_UNROLL
        for (int odd = 0; odd < 2; ++odd) {
          DDCM_UNROLL
          for (int m = 0; m < kRowTiles; ++m) {
            DDCM_UNROLL
            for (int i = 0; i < kTogether; ++i) {
              block.template mma<typename Traits::Mma>([&](int, State& s, auto issue) {
                const Words &upper = s.words[2 * m], &lower = s.words[2 * m + 1];
                const int word = Traits::word(2 * kOfPair * pair + odd), bit = Traits::bit(2 * v + odd);
                issue(s.sum[m][from + i], Traits::fragment(upper, word, bit), Traits::fragment(lower, word, bit),
                      Traits::fragment(upper, word + 1, bit), Traits::fragment(lower, word + 1, bit),
                      Traits::digits(s.b[i], 2 * odd), Traits::digits(s.b[i], 2 * odd + 1));
              });
            }
          }
        }
      }
      block.each([&](int, State& s) { s.from += ColumnTiles * 32; });
    }
  }
}

}  // namespace ddcm
