// The k steps of a search whose entries serve several warps (`gaussian`) or blocks (`sign`).

#pragma once

#include "search_products.h"

namespace ddcm {

// The k steps of a team of RowGroups warps, RowGroups of them a stage. Each makes one step's entries and gives them to
// the others; what it makes for the next stage waits in registers until all have read this one's.
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::exchange_segment(
    Block& block, uint32_t step_word, int stages, const char* local_table) const {
  Vec4* exchange = reinterpret_cast<Vec4*>(block.shared() + kPartsAt);
  // The four A registers of a product of a row tile lie together.
  auto registers_of = [=](int warp, int m, int product, int thread) -> Vec4& {
    return exchange[((warp * kRowTiles + m) * Traits::kProducts + product) * 32 + thread % 32];
  };
  make_entries(block, step_word, local_table);
  DDCM_NO_UNROLL
  for (int stage = 0; stage < stages; ++stage) {
    block.each([&](int thread, State& s) {
      DDCM_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        const Words &upper = s.words[2 * m], &lower = s.words[2 * m + 1];
        DDCM_UNROLL
        for (int product = 0; product < Traits::kProducts; ++product) {
          const int word = Traits::word(product);
          registers_of(thread / 32, m, product, thread) =
              Vec4{{upper.w[word], lower.w[word], upper.w[word + 1], lower.w[word + 1]}};
        }
      }
    });
    block.template sync_part<32 * RowGroups>();
    DDCM_NO_UNROLL
    for (int maker = 0; maker < RowGroups; ++maker) {
      block.each([&](int thread, State& s) {
        const int warp = thread / 32 / RowGroups * RowGroups + maker;
        DDCM_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          DDCM_UNROLL
          for (int product = 0; product < Traits::kProducts; ++product) {
            const int word = Traits::word(product);
            const Vec4 a = registers_of(warp, m, product, thread);
            s.words[2 * m].w[word] = a.x[0];
            s.words[2 * m + 1].w[word] = a.x[1];
            s.words[2 * m].w[word + 1] = a.x[2];
            s.words[2 * m + 1].w[word + 1] = a.x[3];
          }
        }
      });
      multiply(block);
    }
    if (stage + 1 < stages) make_entries(block, step_word, local_table);
    block.template sync_part<32 * RowGroups>();
  }
  block.sync();  // other teams may still read what the partial sums will overwrite
}

// The k steps of a segment where the blocks of a cluster share the words, kStageSteps a stage. For each of its warps a
// block makes one in `cluster` of the row tiles of the stage's steps, and gives the words to the warps of that number in
// all blocks. They take turns between two places: a stage's words are made while the one's before are multiplied.
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::cluster_segment(
    Block& block, uint32_t step_word, const Place* places, int count) const {
  sync_sharing(block);  // others may still be at the partial sums, which words overwrite, or not have started at all
  make_stage(block, step_word, places, count, 0);
  sync_sharing(block);
  DDCM_NO_UNROLL
  for (int begin = 0; begin < count; begin += kStageSteps) {
    make_stage(block, step_word, places, count, begin + kStageSteps);
    DDCM_NO_UNROLL
    for (int k = begin; k < begin + kStageSteps && k < count; ++k) {
      block.each([&](int thread, State& s) {
        DDCM_UNROLL
        for (int r = 0; r < 2 * kRowTiles; ++r) {
          s.words[r] = words_of(stage_words(block.shared(), thread, k)[r * 32]);
        }
      });
      multiply(block);
    }
    sync_sharing(block);
  }
  block.sync();  // other warps may still read what the partial sums will overwrite
}

// Makes this block's share of the words of the steps `begin` to begin + kStageSteps - 1 of a segment of `count`.
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
template <class Block>
DDCM_FN void SearchKernel<Traits, ColumnTiles, RowGroups, Writes>::make_stage(
    Block& block, uint32_t step_word, const Place* places, int count, int begin) const {
  block.each([&](int thread_, State&) {
    const int thread = opaque(thread_), warp = thread / 32;
    const BlockPlace place = this->place(opaque(block.index()));
    const uint32_t atom =
        static_cast<uint32_t>(first_atom(places[thread].tile) + (warp >> split_bits) * kWarpAtoms + thread % 32 / 4);
    const int first_step = (warp & ((1 << split_bits) - 1)) * warp_steps + places[thread].begin;
    const int end = begin + kStageSteps < count ? begin + kStageSteps : count;
    // Row tiles are numbered through all steps and dealt to the blocks in turn.
    int unit = begin * kRowTiles + (rank(block.index()) + cluster - begin * kRowTiles % cluster) % cluster;
    DDCM_NO_UNROLL
    for (; unit < end * kRowTiles; unit += cluster) {
      const int step = unit / kRowTiles, m = unit % kRowTiles;
      const int64_t call = static_cast<int64_t>(first_step + step) * kCallsPerStep + thread % 4;
      const BlockPart part = block_part(keys, geometry.block(place.group, call), step_word, Traits::kStream);
      const Words upper = philox_split(keys, atom_part(keys, atom + 16 * m, step_word), part);
      const Words lower = philox_split(keys, atom_part(keys, atom + 16 * m + 8, step_word), part);
      DDCM_NO_UNROLL
      for (int other = 0; other < cluster; ++other) {
        Vec4* to = stage_words(block.shared_of(other), thread, step) + 2 * m * 32;
        to[0] = vector_of(upper);
        to[32] = vector_of(lower);
      }
    }
  });
}

}  // namespace ddcm
