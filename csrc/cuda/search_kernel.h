// What a search or scores kernel of `sign` and `gaussian` keeps where: its parameters, registers and shared memory. Its
// work is in search.h and the files that it includes.

#pragma once

#include "candidate.h"
#include "gaussian_traits.h"
#include "sign_traits.h"

namespace ddcm {

// What a SearchKernel writes. kBest: the best candidate of all atoms, found by the last of a row's blocks (candidate.h);
// kBestOfCut: the same where the blocks of a cluster cut the k steps. kScores: scores[(b * G + g) * score_stride + k - first]
// for first <= k < last. kNorms (`gaussian`): scores and norms[g * score_stride + k - first], the atoms' squared norms.
enum Output { kBest = 0, kScores = 1, kNorms = 2, kBestOfCut = 3 };

// Whether there is a kernel that cuts the k steps: for few rows, of a search.
template <class Traits>
DDCM_FN constexpr bool can_cut(int column_tiles, int writes) { return writes == kBest && rows_of<Traits>(column_tiles) <= 8; }

// Squared norms cost no generation and hardly an instruction: an A fragment (row g, columns 2t, 2t + 1; 2t + 8, 2t + 9) is,
// register by register, the B fragment of its own upper or lower 8 rows transposed, and the diagonal of
// A A^T is the 16 atoms' sums of squares. A k step's 32 squares start from zero: their sum is an integer, exact in
// float32 below 2^24 (mean 2^21; that 32 entries exceed 2^24 has a probability of 1e-36), and is added up as int64
// in shared memory by the one lane that holds it.
//
// A block's warps are numbered (atom group, split, row group): RowGroups warps share atoms and k steps and have
// different batch rows, `split` such teams share atoms and cut the k steps among them. The block's kWarpAtoms * (warps /
// split / RowGroups) atoms are one tile, its rows_of(ColumnTiles) * RowGroups rows one batch tile. The `cluster` blocks of
// a cluster have the same atoms and rows and cut the k steps, as `split` does among teams; the first block adds up the sums of
// all: grid (cluster, chunks, G, batch tiles).
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
struct SearchKernel {
  static constexpr bool kCuts = Writes == kBestOfCut, kRanks = Writes == kBest || kCuts, kSquares = Writes == kNorms;
  static_assert(!kSquares || !Traits::kSigns, "the norms of signs are known");
  using Sum = typename Traits::Sum;
  using Accumulator = typename Traits::Mma::Accumulator;
  using Fragment = typename Traits::Fragment;
  static constexpr int kWarps = Traits::warps(ColumnTiles), kThreads = 32 * kWarps;
  // A cut makes about one block a multiprocessor, which may have registers for it.
  static constexpr int kMinBlocks = kCuts ? 1 : Traits::min_blocks(ColumnTiles);
  static constexpr int kRowTiles = Traits::row_tiles(ColumnTiles), kWarpAtoms = 16 * kRowTiles;
  static constexpr int kStepVectors = Traits::kVectors * ColumnTiles;
  static constexpr Panel kPanel = Traits::panel(ColumnTiles);
  static constexpr bool kExchanges = RowGroups > 1;
  static constexpr int kWarpRows = rows_of<Traits>(ColumnTiles), kRows = kWarpRows * RowGroups;  // batch rows
  // A block's warps are at most so many k steps apart where they read together: some 100 KB of a residual.
  static constexpr int kStepsTogether = 4;
  // Column tiles whose residuals wait in registers together.
  static constexpr int kTogether = kPanel == kPairPanel ? ColumnTiles : panel_tiles(kPanel);
  struct State {
    AtomPart atom[2 * kRowTiles];  // row tile, then g or g + 8
    Accumulator sum[kRowTiles][ColumnTiles][4];
    Words words[2 * kRowTiles];
    Fragment b[kTogether];
    Accumulator square[kSquares ? 2 : 1][4];  // of a row tile: rows g, then g + 8, on the diagonal
    const Fragment* from;  // this lane's residual fragments of the k step
    uint32_t call;     // Philox block of this lane's call of the k step
    int left;          // kNorms: entries of the group from that call on
  };

  GroupsOf<kRanks> geometry;
  RoundKeys keys;
  Ranking ranking;
  const int64_t* step;       // 0-d, on the device
  const char* table;         // q as float16, 64 KB; `gaussian` only
  const Fragment* fragments; // of PrepareKernel
  const uint32_t* max_bits;  // (B, G)
  const int64_t* correction; // (B, G)
  Picking picking;
  float* scores;
  float* norms;
  int64_t score_stride;
  int64_t first, last;
  int32_t batch, tiles;
  int32_t chunks;      // blocks that share a tile of rows
  int32_t cluster;     // blocks of a cluster: 1 to 8 where kCuts, else 1
  int32_t split_bits;  // split = 2^split_bits
  int32_t warp_steps;  // k steps of a warp; the fragments hold those of all that share them
  uint32_t one;        // 1, but the compiler does not know: what it multiplies is not computed anew

  // Partial sums meet in shared memory 8 rows of a product (a half of a row tile) of every warp at a time, or more such
  // halves while they stay small.
  static constexpr int kPartWidth = panel_parts(kPanel) * kWarpRows, kHalves = 2 * kRowTiles;
  static constexpr int64_t kHalfBytes = static_cast<int64_t>(sizeof(Sum)) * kWarps * 8 * kPartWidth;
  static constexpr int kRoundHalves = []() constexpr {
    int halves = kHalves;
    while (halves > 1 && halves * kHalfBytes > 16384) halves /= 2;
    return halves;
  }();

  // What a thread remembers of the best candidate so far of its batch row; its value is computed anew.
  struct Leader {
    float score;  // NaN: none
    uint32_t index;
  };

  // Where a thread is. The loop over k steps has no registers to spare for it.
  struct Place {
    int32_t tile, begin;
  };

  // Shared memory: table | exchanged entries, partial sums, then candidates | leaders | places | sums of earlier
  // segments | sums of squares of each warp's atoms. Below 99 KB: what a block may have on every GPU from 8.0 on.
  static constexpr int64_t kVectorsOfWarp = 2 * kRowTiles * 32;  // entries of a k step
  static constexpr int64_t kPartsAt = Traits::kTableBytes;
  static constexpr int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
  static constexpr int64_t kLeadersAt =
      kPartsAt + largest((kExchanges ? 1 : 0) * kWarps * kVectorsOfWarp * static_cast<int64_t>(sizeof(Vec4)),
                         largest(kRoundHalves * kHalfBytes,
                                 kRanks ? static_cast<int64_t>(sizeof(Candidate)) * kThreads : 0));
  static constexpr int64_t kPlacesAt = kLeadersAt + (kRanks ? static_cast<int64_t>(sizeof(Leader)) * kThreads : 0);
  static constexpr int64_t kCarryAt = kPlacesAt + static_cast<int64_t>(sizeof(Place)) * kThreads;
  static constexpr int64_t kSquaresAt =
      kCarryAt + (Traits::kSegments ? static_cast<int64_t>(sizeof(Sum)) * kWarpAtoms * kRows : 0);
  static constexpr int64_t shared_bytes() {
    return kSquaresAt + (kSquares ? static_cast<int64_t>(sizeof(int64_t)) * kWarps * kWarpAtoms : 0);
  }
  // A thread always has the same row.
  static_assert(kThreads % kRows == 0, "a thread has one batch row");
  static_assert(!(kExchanges && Traits::kSegments), "exchanged steps are not cut into segments");
  static_assert(!kCuts || !kExchanges, "blocks that cut the k steps share nothing else");

  template <class Block>
  DDCM_FN void operator()(Block& block) const;

  // Steps of the segment from `begin` on.
  DDCM_FN int steps_of(int begin) const {
    const int left = warp_steps - begin;
    constexpr int kSegment = Traits::segment(ColumnTiles);
    return Traits::kSegments && left > kSegment ? kSegment : left;
  }

  DDCM_FN Candidate candidate_of(const Leader& leader, int group) const {
    return leader.score != leader.score ? no_candidate() : ranking.candidate(leader.score, group, leader.index);
  }

  // Block, tile and group numbers are below 2^31 (Driver::run checks the grid): small integers save registers.
  struct BlockPlace {
    int chunk, group, batch_tile;
  };

  DDCM_FN BlockPlace place(int index) const {
    const int groups = opaque(static_cast<int>(geometry.groups));
    const int team = this->team(index), rest = team / opaque(chunks);
    return BlockPlace{team - rest * chunks, rest % groups, rest / groups};
  }

  // Of a cluster.
  DDCM_FN int team(int index) const { return kCuts ? index / cluster : index; }

  // Blocks that the k steps of the same atoms and rows are cut among.
  DDCM_FN int cuts() const { return kCuts ? cluster : 1; }

  // Number of a block among these.
  DDCM_FN int cut(int index) const { return kCuts ? index % cluster : 0; }

  DDCM_FN int64_t first_atom(int tile) const {
    return first + static_cast<int64_t>(tile) * (kWarps / RowGroups >> split_bits) * kWarpAtoms;
  }

  // Whether this lane holds diagonal entries of a row tile's A A^T: (g, 2t) or (g, 2t + 1) with g among them.
  static DDCM_FN bool on_diagonal(int thread) { return thread % 32 / 8 == thread % 4; }

  // Sum of squares of row g + 8 r of the thread's warp.
  template <class Block>
  static DDCM_FN int64_t* squares_of(Block& block, int thread, int r) {
    return reinterpret_cast<int64_t*>(block.shared() + kSquaresAt) + thread / 32 * kWarpAtoms + thread % 32 / 4 + 8 * r;
  }

  // A barrier of those whose partial sums are added up.
  template <class Block>
  DDCM_FN void sync_sums(Block& block) const {
    if constexpr (kCuts) {
      block.sync_cluster();
    } else {
      block.sync();
    }
  }

  // search_products.h
  template <class Block>
  DDCM_FN void start_segment(Block& block, int begin) const;
  template <class Block>
  DDCM_FN void make_entries(Block& block, uint32_t step_word, const char* local_table) const;
  template <class Block>
  static DDCM_FN void add_squares(Block& block);
  template <class Block>
  DDCM_FN void multiply(Block& block) const;

  // search_sharing.h
  template <class Block>
  DDCM_FN void exchange_segment(Block& block, uint32_t step_word, int stages, const char* local_table) const;

  // search_scores.h
  template <class Block>
  DDCM_FN void finish_segment(Block& block, const Place* places, Leader* leaders) const;
};

}  // namespace ddcm
