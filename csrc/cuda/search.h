// Search and scores of the `sign` and `gaussian` kinds: noise made in registers as the A operand of tensor-core
// products, the residual's digits (residual.h) as the B operand. docs/kernels/cuda.md derives the maps.
//
// A warp owns 2 to 4 row tiles of 16 atoms and, of one k step, 4 Philox calls of each atom: lane 4g + t makes call t of
// the step for the atoms of rows g and g + 8 of every row tile. The A registers are the call's words themselves, masked
// or looked up: which coordinate an A column is was settled when the residual was laid out. Where a batch has more rows
// than a warp's accumulators hold, `sign`, whose words are 32 entries each, makes them again; of `gaussian`, the 2, 4 or 8
// warps of a block that have the same atoms and different rows make a part of the entries each and give them to one another
// through shared memory.

#pragma once

#include "search_products.h"
#include "search_scores.h"
#include "search_sharing.h"

namespace ddcm {

template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::operator()(Block& block) const {
  const uint32_t step_word = static_cast<uint32_t>(*step);
  const char* local_table = block.shared();
  Leader* leaders = reinterpret_cast<Leader*>(block.shared() + kLeadersAt);

  block.each([&](int thread, State&) {
    for (int i = thread; i < Traits::kTableBytes / 16; i += kThreads) {
      reinterpret_cast<Vec4*>(block.shared())[i] = load(reinterpret_cast<const Vec4*>(table) + i);
    }
    if (kRanks) leaders[thread] = Leader{quiet_nan(), 0};
  });
  block.sync();

  Place* places = reinterpret_cast<Place*>(block.shared() + kPlacesAt);
  int tile = team(block.index()) % chunks;
  DDCM_NO_UNROLL
  while (tile < tiles) {
    block.each([&](int thread_, State& s) {
      const int thread = opaque(thread_);
      const int in_tile = (thread / 32 / RowGroups >> split_bits) * kWarpAtoms + thread % 32 / 4;
      const uint32_t row = static_cast<uint32_t>(first_atom(tile) + in_tile);
      DDCM_UNROLL
      for (int r = 0; r < 2 * kRowTiles; ++r) {
        s.atom[r] = atom_part(keys, row + 8 * r, step_word);
        // `gaussian` scores have no registers to spare for it.
        if (kPanel == kPlanePanel || (kPanel == kPairPanel && kRanks)) {
          s.atom[r] = AtomPart{kept(s.atom[r].high, one), kept(s.atom[r].low, one)};
        }
        if (kSquares && on_diagonal(thread)) *squares_of(block, thread, r) = 0;
      }
    });
    int begin = 0;
    DDCM_NO_UNROLL
    do {
      block.each([&](int thread, State&) { places[thread] = Place{tile, begin}; });
      start_segment(block, begin);
      const int count = steps_of(begin);
      if constexpr (kExchanges) {
        exchange_segment(block, step_word, count / RowGroups, local_table);
      } else {
        DDCM_NO_UNROLL
        for (int k = 0; k < count; ++k) {
          if (Traits::reads_together(ColumnTiles) && k % kStepsTogether == 0) block.sync();
          make_entries(block, step_word, local_table);
          multiply(block);
        }
      }
      finish_segment(block, places, leaders);
      block.each([&](int thread, State&) { begin = places[thread].begin + steps_of(places[thread].begin); });
    } while (begin < warp_steps);
    block.each([&](int thread, State&) { tile = places[thread].tile + chunks; });
  }
  if (kRanks) {
    if (cut(block.index()) != 0) return;
    Candidate* best = reinterpret_cast<Candidate*>(block.shared() + kPartsAt);
    block.each([&](int thread, State&) {
      best[thread] = candidate_of(leaders[thread], place(block.index()).group);
    });
    block.sync();
    reduce_candidates<kThreads>(block, best, kRows);
    const BlockPlace place = this->place(block.index());
    pick<kThreads, kRows>(block, picking, place.batch_tile * static_cast<int>(geometry.groups) + place.group, place.chunk,
                           best, reinterpret_cast<int*>(places), [&](int slot) {
                             const int64_t row = place.batch_tile * kRows + slot;
                             return row < batch ? row * geometry.groups + place.group : -1;
                           });
  }
}

}  // namespace ddcm
