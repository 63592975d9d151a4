// From a search's sums to scores, and to the best of them.

#pragma once

#include "search_kernel.h"

namespace ddcm {

// Adds up the digits, the split warps and the blocks that cut the k steps, in the first of them; after the last segment, scores and ranks the tile.
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::finish_segment(
    Block& block, const Place* places, Leader* leaders) const {
  Sum* parts = reinterpret_cast<Sum*>(block.shared() + kPartsAt);
  Sum* carry = reinterpret_cast<Sum*>(block.shared() + kCarryAt);
  constexpr int kRoundAtoms = 8 * kRoundHalves;  // of a warp
  auto part_at = [](int warp, int atom, int column) { return (warp * kRoundAtoms + atom) * kPartWidth + column; };
  const int split = 1 << split_bits, outputs = (kWarps / RowGroups >> split_bits) * kRoundAtoms * kRows;
  DDCM_UNROLL
  for (int round = 0; round < kHalves / kRoundHalves; ++round) {
    block.each([&](int thread, State& s) {
      const int warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
      DDCM_UNROLL
      for (int i = 0; i < kRoundHalves; ++i) {
        const int half = round * kRoundHalves + i, m = half / 2, h = half % 2;
        DDCM_UNROLL
        for (int nt = 0; nt < ColumnTiles; nt += panel_tiles(kPanel)) {
          if constexpr (kPanel == kEightPanel) {
            // Columns 2t and 2t + 1 of each tile: one digit of two rows.
            DDCM_UNROLL
            for (int c = 0; c < 2; ++c) {
              Sum sum = 0;
              DDCM_UNROLL
              for (int plane = 0; plane < 3; ++plane) {
                sum += Traits::shifted(static_cast<Sum>(s.sum[m][nt + plane][2 * h + c]), 8 * plane);
              }
              parts[part_at(warp, 8 * i + g, nt / 3 * 8 + 2 * t + c)] = sum;
            }
          } else if constexpr (kPanel == kPlanePanel) {
            // Columns 2t and 2t + 1 of each tile: two bits of the row's q, the last of all of them negative.
            Sum sum = 0;
            DDCM_UNROLL
            for (int c = 0; c < 6; ++c) {
              const int plane = 8 * (c / 2) + 2 * t + c % 2;
              const Sum own = Traits::shifted(static_cast<Sum>(s.sum[m][nt + c / 2][2 * h + c % 2]), plane);
              sum += plane == kPlanes - 1 ? -own : own;
            }
            parts[part_at(warp, 8 * i + g, t * kWarpRows + nt / 3)] = sum;
          } else {
            // Digits 0, 1 (t even) or 2, 3 (t odd) of the column tile's row t / 2.
            const Sum low = static_cast<Sum>(s.sum[m][nt][2 * h]), high = static_cast<Sum>(s.sum[m][nt][2 * h + 1]);
            parts[part_at(warp, 8 * i + g, t % 2 * kWarpRows + 2 * nt + t / 2)] = low + Traits::shifted(high, 8);
          }
        }
      }
    });
    sync_sums(block);
    block.each([&](int thread, State&) {
      if (cut(block.index()) != 0) return;
      const int blocks = cuts();
      const BlockPlace place = this->place(opaque(block.index()));
      const auto [tile, begin] = places[thread];
      const bool is_last = begin + steps_of(begin) == warp_steps;
      const int slot = thread % kRows, row = place.batch_tile * kRows + slot;
      if (row >= batch) return;
      const int row_group = slot / kWarpRows, column = slot % kWarpRows;
      const int64_t at = row * geometry.groups + place.group;
      const double unit = unit_of(max_bits[at]);
      const int64_t sum_of_weights = Traits::kSigns ? correction[at] : 0;
      DDCM_NO_UNROLL
      for (int o = thread; o < outputs; o += kThreads) {
        const int atom = o / kRows, warp_atom = atom % kRoundAtoms;
        const int first_warp = atom / kRoundAtoms * split * RowGroups;
        Sum sum = 0;
        for (int b = 0; b < blocks; ++b) {
          const char* memory = kCuts ? block.shared_of(b) : block.shared();
          const Sum* from = reinterpret_cast<const Sum*>(memory + kPartsAt);
          for (int w = 0; w < split; ++w) {
            const int warp = first_warp + w * RowGroups + row_group;
            DDCM_UNROLL
            for (int part = 0; part < panel_parts(kPanel); ++part) {
              const Sum own = from[part_at(warp, warp_atom, part * kWarpRows + column)];
              sum += kPanel == kPairPanel ? Traits::shifted(own, 16 * part) : own;
            }
          }
        }
        const int in_tile = atom / kRoundAtoms * kWarpAtoms + round * kRoundAtoms + warp_atom;
        if constexpr (Traits::kSegments) {
          // More than one segment implies split = warps: the tile is the atoms of one warp.
          if (begin > 0) sum += carry[in_tile * kRows + slot];
          if (!is_last) {
            carry[in_tile * kRows + slot] = sum;
            continue;
          }
        }
        const int64_t k = first_atom(tile) + in_tile;
        if (k >= last) continue;
        const float score = Traits::score(sum, sum_of_weights, unit);
        if (kRanks) {
          if (better(ranking.candidate(score, place.group, k), candidate_of(leaders[thread], place.group))) {
            leaders[thread] = Leader{score, static_cast<uint32_t>(k)};
          }
          continue;
        }
        scores[at * score_stride + k - first] = score;
        if (kSquares && row == 0) {
          const int64_t* squares = reinterpret_cast<const int64_t*>(block.shared() + kSquaresAt);
          int64_t total = 0;
          for (int w = 0; w < split * RowGroups; ++w) {
            total += squares[(first_warp + w) * kWarpAtoms + in_tile % kWarpAtoms];
          }
          norms[place.group * score_stride + k - first] = static_cast<float>(static_cast<double>(total) / 65536.0);
        }
      }
    });
    sync_sums(block);
  }
}

}  // namespace ddcm
