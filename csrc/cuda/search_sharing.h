// The k steps of a search whose entries serve several warps (`gaussian`).

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

}  // namespace ddcm
