// Search and scores of the `sign` and `gaussian` kinds: noise made in registers as the A operand of tensor-core
// products, the residual's digits (residual.h) as the B operand. docs/kernels/cuda.md derives the maps.
//
// A warp owns 2 to 4 row tiles of 16 atoms and, of one k step, 4 Philox calls of each atom: lane 4g + t makes call t of
// the step for the atoms of rows g and g + 8 of every row tile. The A registers are the call's words themselves, masked
// or looked up: which coordinate an A column is was settled when the residual was laid out. Where a batch has more rows
// than a warp's accumulators hold, those with the same atoms and different rows make a part of the entries each and give
// them to one another through shared memory: `gaussian` 2, 4 or 8 warps of a block, `sign`, whose words are 32 entries
// each, 2 to 8 blocks of a cluster.

#pragma once

#include "candidate.h"
#include "residual.h"

namespace ddcm {

// Signs: <y, w> = sum(w) - 2 * sum(bit * w): bits are multiplied, four bytes of them a register.
//
// Where rows are few, making the A registers is dearest. A byte b_7 .. b_0 read as u8 and as s8 and multiplied by x and y
// gives (x + y) * (b_6 .. b_0) + 128 (x - y) * b_7: two readings of one register serve two bits, and what they add for
// lower bits is taken out of the weights of those. A word's eight products, all weights times 256:
//
//   form      0 (u8), 1 (s8)   2 (u8), 3 (s8)                      4 + m, m = 0 .. 3
//   A byte    b_7 .. b_0       b_5 .. b_0, 0, 0                    2^(m+2) b_m
//   B         2 q_6 +- q_7     2 q_4 + q_5 - q_6, 2 q_4 - q_5      2^(6-m) q_m - 4 q_4
//
// That is five masks a word and one shift, which is a multiplication, on another pipe. Where products are many, they are
// dearest: a mask and a shift a bit give {0, 1}, which needs a digit less.
struct SignTraits {
  using Mma = MmaU8S8;
  using OddMma = MmaS8S8;  // of the odd products; the forms 5 and 7, and {0, 1}, read the same either way
  using Sum = int64_t;
  static constexpr bool kSigns = true;
  using Fragment = Vec4;
  // A warp's int32 sums of so many steps cannot overflow: steps * 4 calls * 16 bytes * (the largest A bytes of a word's
  // products: 255 + 128 + 252 + 128 + 4 + 8 + 16 + 32, or 8) * 128 < 2^31.
  static DDCM_FN constexpr int segment(int column_tiles) { return in_eights(column_tiles) ? 16384 : 256; }
  static constexpr bool kSegments = true;
  // Row tiles of 16 atoms a warp: fewer where the accumulators of many column tiles need the registers.
  static DDCM_FN constexpr int row_tiles(int column_tiles) { return column_tiles >= 3 ? 2 : 4; }
  // Whether a cluster of blocks shares the words. Then a block's warps are many, because they share the residual.
  static DDCM_FN constexpr bool in_clusters(int column_tiles) { return column_tiles >= 9; }
  // 16 warps of 128 registers a multiprocessor for small batches, 12 of 168 where accumulators take more, 8 in clusters.
  static DDCM_FN constexpr int warps(int column_tiles) {
    return column_tiles == 1 || in_clusters(column_tiles) ? 8 : 4;
  }
  static DDCM_FN constexpr int min_blocks(int column_tiles) {
    return column_tiles == 1 ? 2 : in_clusters(column_tiles) ? 1 : 3;
  }
  static constexpr int kEntriesPerCall = kSignsPerCall, kEntriesPerRegister = 4;
  static constexpr int kProducts = 16, kVectors = 8;  // matrix products a row tile and step; B vectors
  static constexpr int kWordPairs = 2;                // which they take in turn
  static constexpr uint32_t kStream = kStreamSign;
  static constexpr int64_t kTableBytes = 0;

  // First of the two words that product c takes (the other is the next), its form, and the bit that it is for.
  static DDCM_FN constexpr int word(int product) { return 2 * (product / 8); }
  static DDCM_FN constexpr int form(int product) { return product % 8; }
  static DDCM_FN constexpr int bit(int form, bool eights) {
    return eights ? form : form >= 4 ? form - 4 : form % 2 == 0 ? 6 - form : 8 - form;
  }

  // Entry of the call that is bit `bit` of byte e of word `word`.
  static DDCM_FN int entry(int word, int bit, int e) { return 32 * word + 8 * e + bit; }

  // Digit of entry e of register r (0, 1: first product's b0, b1; 2, 3: second's) of a fragment.
  static DDCM_FN Fragment no_digits() { return Fragment{}; }
  static DDCM_FN void put(Fragment& fragment, int r, int e, int digit) {
    fragment.x[r] |= (static_cast<uint32_t>(digit) & 255u) << (8 * e);
  }
  static DDCM_FN uint32_t digits(const Fragment& fragment, int r) { return fragment.x[r]; }

  static DDCM_FN Words expand(const Words& words, const char*) { return words; }

  // What a form's byte is multiplied with; q(j) is that of its bit j.
  template <class Q>
  static DDCM_FN int weighted(Q q, int form) {
    switch (form) {
      case 0: return 2 * q(6) + q(7);
      case 1: return 2 * q(6) - q(7);
      case 2: return 2 * q(4) + q(5) - q(6);
      case 3: return 2 * q(4) - q(5);
      default: return q(form - 4) * (1 << (10 - form)) - 4 * q(4);
    }
  }

  // The A register of word number i. The odd words are low halves of products, in registers from where they must be copied
  // into their place beside the others: a multiplication by one copies where the compiler's own copies are twice as many.
  template <bool Eights>
  static DDCM_FN uint32_t fragment(const Words& words, int i, int form, uint32_t one) {
    const uint32_t word = words.w[i];
    if (Eights) return word >> form & 0x01010101u;
    if (form < 2) return i % 2 == 0 ? word : kept(word, one);
    return word << 2 & (form < 4 ? 0xfcfcfcfcu : 0x04040404u << (form - 4));
  }

  static DDCM_FN int64_t shifted(int64_t value, int plane) { return value * (int64_t{1} << (8 * plane)); }

  template <bool Eights>
  static DDCM_FN float score(int64_t sum, int64_t correction, double unit) {
    return static_cast<float>(static_cast<double>(correction - 2 * (Eights ? sum : sum / 256)) * unit);
  }
};

// Gaussians: q of the table as float16 (exact), sign from the halfword's top bit. Digits are float16 too; sums
// of products are integers, exact in float32 up to 2^24 (docs/kernels/cuda.md).
struct GaussianTraits {
  using Mma = MmaF16;
  using OddMma = MmaF16;
  using Sum = double;
  static constexpr bool kSigns = false;
  using Fragment = Vec2;
  // Steps of a warp whose sums practically never reach 2^24: a preference, no bound.
  static DDCM_FN constexpr int segment(int) { return 1280; }
  static constexpr bool kSegments = false;
  // Row tiles of 16 atoms a warp: 36 to 144 accumulators.
  static DDCM_FN constexpr int row_tiles(int column_tiles) {
    return column_tiles >= 12 ? 3 : column_tiles >= 3 ? 2 : 4;
  }
  static DDCM_FN constexpr bool in_clusters(int) { return false; }
  // One block a multiprocessor shares one copy of the table.
  static DDCM_FN constexpr int warps(int column_tiles) { return column_tiles >= 12 ? 8 : 16; }
  static DDCM_FN constexpr int min_blocks(int) { return 1; }
  static constexpr int kEntriesPerCall = kGaussiansPerCall, kEntriesPerRegister = 2;
  static constexpr int kProducts = 2, kVectors = 1, kWordPairs = 1;
  static constexpr uint32_t kStream = kStreamGaussian;
  static constexpr int64_t kTableBytes = 2 * kGaussianTableSize;

  static DDCM_FN constexpr int word(int product) { return 2 * product; }
  static DDCM_FN constexpr int form(int) { return 0; }
  static DDCM_FN constexpr int bit(int, bool) { return 0; }
  static DDCM_FN int entry(int word, int, int e) { return 2 * word + e; }

  // A digit waits as the byte digit + 128, four of them half as large as the float16 numbers they become: a large batch's
  // residual is read by every block.
  static DDCM_FN Fragment no_digits() { return Fragment{{0x80808080u, 0x80808080u}}; }
  static DDCM_FN void put(Fragment& fragment, int r, int e, int digit) {
    const int at = 16 * (r % 2) + 8 * e;
    fragment.x[r / 2] = (fragment.x[r / 2] & ~(255u << at)) | static_cast<uint32_t>(digit + 128) << at;
  }
  // A byte u below the exponent of 1024 is 1024 + u.
  static DDCM_FN uint32_t digits(const Fragment& fragment, int r) {
#if defined(__CUDA_ARCH__)
    const uint32_t biased = __byte_perm(fragment.x[r / 2], 0x64646464u, r % 2 == 0 ? 0x4140 : 0x4342);
    uint32_t both;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(both) : "r"(biased), "r"(0xe480e480u));  // - 1152
    return both;
#else
    const uint32_t pair = fragment.x[r / 2] >> (16 * (r % 2));
    return half_of_integer(static_cast<int>(pair & 255u) - 128) |
           half_of_integer(static_cast<int>(pair >> 8 & 255u) - 128) << 16;
#endif
  }

  // Byte offset of a halfword's table entry is twice its low 15 bits; its bit 15 is the sign bit of a float16.
  static DDCM_FN uint32_t pair(uint32_t word, const char* table) {
    const uint32_t low = *reinterpret_cast<const uint16_t*>(table + ((word << 1) & 0xfffeu));
    const uint32_t high = *reinterpret_cast<const uint16_t*>(table + ((word >> 15) & 0xfffeu));
#if defined(__CUDA_ARCH__)
    const uint32_t both = __byte_perm(low, high, 0x5410);
#else
    const uint32_t both = low | high << 16;
#endif
    return both ^ (word & 0x80008000u);
  }

  static DDCM_FN Words expand(const Words& words, const char* table) {
    return Words{{pair(words.w[0], table), pair(words.w[1], table), pair(words.w[2], table),
                  pair(words.w[3], table)}};
  }

  template <class Q>
  static DDCM_FN int weighted(Q q, int) { return q(0); }

  template <bool>
  static DDCM_FN uint32_t fragment(const Words& words, int i, int, uint32_t) { return words.w[i]; }

  static DDCM_FN double shifted(double value, int plane) { return value * (1 << (8 * plane)); }

  template <bool>
  static DDCM_FN float score(double sum, int64_t, double unit) {
    return static_cast<float>(sum * unit * static_cast<double>(kGaussianScale));
  }
};

// What a SearchKernel writes. kBest: results[(b * G + g) * chunks + chunk] = best candidate of the chunk's atoms.
// kScores: scores[(b * G + g) * score_stride + k - first] for first <= k < last. kNorms (`gaussian`): scores and
// norms[g * score_stride + k - first], the atoms' squared norms.
enum Output { kBest = 0, kScores = 1, kNorms = 2 };

// Squared norms cost no generation and hardly an instruction: an A fragment (row g, columns 2t, 2t + 1; 2t + 8, 2t + 9) is,
// register by register, the B fragment of its own upper or lower 8 rows transposed, and the diagonal of
// A A^T is the 16 atoms' sums of squares. A k step's 32 squares start from zero: their sum is an integer, exact in
// float32 below 2^24 (mean 2^21; that 32 entries exceed 2^24 has a probability of 1e-36), and is added up as int64
// in shared memory by the one lane that holds it.
//
// A block's warps are numbered (atom group, split, row group): RowGroups warps share atoms and k steps and have
// different batch rows, `split` such teams share atoms and cut the k steps among them. The block's kWarpAtoms * (warps /
// split / RowGroups) atoms are one tile, its rows_of(ColumnTiles) * RowGroups rows one batch tile. The `cluster` blocks of
// a cluster have the same atoms and consecutive batch tiles. Grid: (cluster, chunks, G, batch tiles / cluster).
template <class Traits, int ColumnTiles, int RowGroups, int Writes>
struct SearchKernel {
  static constexpr bool kRanks = Writes == kBest, kSquares = Writes == kNorms;
  static_assert(!kSquares || !Traits::kSigns, "the norms of signs are known");
  using Sum = typename Traits::Sum;
  using Accumulator = typename Traits::Mma::Accumulator;
  using Fragment = typename Traits::Fragment;
  static constexpr int kWarps = Traits::warps(ColumnTiles), kThreads = 32 * kWarps;
  static constexpr int kMinBlocks = Traits::min_blocks(ColumnTiles);
  static constexpr int kRowTiles = Traits::row_tiles(ColumnTiles), kWarpAtoms = 16 * kRowTiles;
  static constexpr int kStepVectors = Traits::kVectors * ColumnTiles;
  static constexpr bool kEights = in_eights(ColumnTiles), kExchanges = RowGroups > 1;
  static constexpr bool kClusters = Traits::in_clusters(ColumnTiles);
  static constexpr int kWarpRows = rows_of(ColumnTiles), kRows = kWarpRows * RowGroups;  // batch rows
  // Column tiles whose residuals wait in registers together.
  static constexpr int kTogether = kEights ? 3 : ColumnTiles;
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

  Geometry geometry;
  RoundKeys keys;
  Ranking ranking;
  const int64_t* step;       // 0-d, on the device
  const char* table;         // q as float16, 64 KB; `gaussian` only
  const Fragment* fragments; // of PrepareKernel
  const uint32_t* max_bits;  // (B, G)
  const int64_t* correction; // (B, G)
  Candidate* results;
  float* scores;
  float* norms;
  int64_t score_stride;
  int64_t first, last;
  int32_t batch, tiles, chunks;
  int32_t cluster;     // blocks of a cluster: 1 to 8 where kClusters, else 1
  int32_t split_bits;  // split = 2^split_bits
  int32_t warp_steps;  // k steps of a warp; the fragments hold split * warp_steps
  uint32_t one;        // 1, but the compiler does not know: what it multiplies is not computed anew

  // Partial sums meet in shared memory 8 rows of a product (a half of a row tile) of every warp at a time, or more such
  // halves while they stay small. A row has one part, or one of each two digits.
  static constexpr int kPartWidth = kEights ? kWarpRows : 2 * kWarpRows, kHalves = 2 * kRowTiles;
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
  static constexpr int kStageSteps = 2;                          // k steps whose words a cluster shares at a time
  static constexpr int64_t kStepsHeld = kExchanges ? 1 : kClusters ? 2 * kStageSteps : 0;  // of a warp, in shared memory
  static constexpr int64_t kPartsAt = Traits::kTableBytes;
  static constexpr int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
  static constexpr int64_t kLeadersAt =
      kPartsAt + largest(kStepsHeld * kWarps * kVectorsOfWarp * static_cast<int64_t>(sizeof(Vec4)),
                         largest(kRoundHalves * kHalfBytes,
                                 kRanks ? static_cast<int64_t>(sizeof(Candidate)) * kThreads : 0));
  static constexpr int64_t kPlacesAt = kLeadersAt + (kRanks ? static_cast<int64_t>(sizeof(Leader)) * kThreads : 0);
  static constexpr int64_t kCarryAt = kPlacesAt + static_cast<int64_t>(sizeof(Place)) * kThreads;
  static constexpr int64_t kSquaresAt =
      kCarryAt + (Traits::kSegments ? static_cast<int64_t>(sizeof(Sum)) * kWarpAtoms * kRows : 0);
  static constexpr int64_t shared_bytes() {
    return kSquaresAt + (kSquares ? static_cast<int64_t>(sizeof(int64_t)) * kWarps * kWarpAtoms : 0);
  }
  // Threads and slots for rows are powers of two: a thread always has the same row.
  static constexpr int kSlots = kRows == 24 ? 32 : kRows;
  static_assert(kThreads % kSlots == 0 && kRows <= kSlots && kSlots <= kThreads, "a thread has one batch row");
  static_assert(!(kExchanges && Traits::kSegments), "exchanged steps are not cut into segments");
  static_assert(!kClusters || (RowGroups == 1 && Traits::kTableBytes == 0), "a cluster shares words as they are made");

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
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
    int tile = (kClusters ? block.index() / cluster : block.index()) % chunks;
    DDCM_NO_UNROLL
    while (tile < tiles) {
      block.each([&](int thread_, State& s) {
        const int thread = opaque(thread_);
        const int in_tile = (thread / 32 / RowGroups >> split_bits) * kWarpAtoms + thread % 32 / 4;
        const uint32_t row = static_cast<uint32_t>(first_atom(tile) + in_tile);
        DDCM_UNROLL
        for (int r = 0; r < 2 * kRowTiles; ++r) {
          if (!kClusters) {
            s.atom[r] = atom_part(keys, row + 8 * r, step_word);
            // Scores have no registers to spare for it.
            if (!kEights && kRanks) s.atom[r] = AtomPart{kept(s.atom[r].high, one), kept(s.atom[r].low, one)};
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
        } else if constexpr (kClusters) {
          cluster_segment(block, step_word, places, count);
        } else {
          DDCM_NO_UNROLL
          for (int k = 0; k < count; ++k) {
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
      Candidate* best = reinterpret_cast<Candidate*>(block.shared() + kPartsAt);
      block.each([&](int thread, State&) {
        best[thread] = candidate_of(leaders[thread], place(block.index()).group);
      });
      block.sync();
      reduce_candidates<kThreads>(block, best, kSlots);
      block.each([&](int thread, State&) {
        const BlockPlace place = this->place(block.index());
        const int row = place.batch_tile * kRows + thread;
        if (thread >= kRows || row >= batch) return;
        results[(row * geometry.groups + place.group) * chunks + place.chunk] = best[thread];
      });
    }
  }

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
    const int team = kClusters ? index / cluster : index, rest = team / opaque(chunks);
    const int batch_tile = kClusters ? rest / groups * cluster + rank(index) : rest / groups;
    return BlockPlace{team - rest * chunks, rest % groups, batch_tile};
  }

  // Of a block in its cluster.
  DDCM_FN int rank(int index) const { return index % cluster; }

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

  // Adds the squares of one k step's entries.
  template <class Block>
  static DDCM_FN void add_squares(Block& block) {
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

  // Clears the sums and sets every warp to its first k step of a segment.
  template <class Block>
  DDCM_FN void start_segment(Block& block, int begin) const {
    const BlockPlace place = this->place(opaque(block.index()));
    block.each([&](int thread_, State& s) {
      const int thread = opaque(thread_);
      const int warp = thread / 32, row_group = warp % RowGroups;
      const int split = 1 << split_bits, first_step = (warp / RowGroups & (split - 1)) * warp_steps + begin;
      const int64_t batch_part = static_cast<int64_t>(place.batch_tile) * RowGroups + row_group;
      const int64_t tile_group = batch_part * geometry.groups + place.group;
      s.from = fragments + (tile_group * split * warp_steps + first_step) * kStepVectors * 32 + thread % 32;
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
  template <class Block>
  DDCM_FN void make_entries(Block& block, uint32_t step_word, const char* local_table) const {
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

  // Products of the entries of one k step with the warp's rows; to the next step's residual.
  template <class Block>
  DDCM_FN void multiply(Block& block) const {
    constexpr int kOfPair = Traits::kVectors / Traits::kWordPairs;
    DDCM_UNROLL
    for (int pair = 0; pair < Traits::kWordPairs; ++pair) {
      DDCM_UNROLL_BY(kClusters ? 2 : kOfPair)
      for (int in_pair = 0; in_pair < kOfPair; ++in_pair) {
        DDCM_UNROLL
        for (int from = 0; from < ColumnTiles; from += kTogether) {
          block.each([&](int, State& s) {
            DDCM_UNROLL
            for (int i = 0; i < kTogether; ++i) s.b[i] = load(s.from + (from + i) * 32);
          });
          multiply_half<typename Traits::Mma>(block, pair, in_pair, 0, from);
          multiply_half<typename Traits::OddMma>(block, pair, in_pair, 1, from);
        }
        block.each([&](int, State& s) { s.from += ColumnTiles * 32; });
      }
    }
  }

  // The even or odd product of the fragments that s.b holds, with all row tiles.
  template <class Mma, class Block>
  DDCM_FN void multiply_half(Block& block, int pair, int in_pair, int odd, int from) const {
    DDCM_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      DDCM_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        block.template mma<Mma>([&](int, State& s, auto issue) {
          constexpr int kProductsOfPair = Traits::kProducts / Traits::kWordPairs;
          const Words &upper = s.words[2 * m], &lower = s.words[2 * m + 1];
          const int form = Traits::form(2 * in_pair + odd), word = Traits::word(kProductsOfPair * pair + odd);
          auto a = [&](const Words& words, int j) { return Traits::template fragment<kEights>(words, j, form, one); };
          issue(s.sum[m][from + i], a(upper, word), a(lower, word), a(upper, word + 1), a(lower, word + 1),
                Traits::digits(s.b[i], 2 * odd), Traits::digits(s.b[i], 2 * odd + 1));
        });
      }
    }
  }

  // The k steps of a team of RowGroups warps, RowGroups of them a stage. Each makes one step's entries and gives them to
  // the others; what it makes for the next stage waits in registers until all have read this one's.
  template <class Block>
  DDCM_FN void exchange_segment(Block& block, uint32_t step_word, int stages, const char* local_table) const {
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
  template <class Block>
  DDCM_FN void cluster_segment(Block& block, uint32_t step_word, const Place* places, int count) const {
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

  // A barrier of those who share words. A lane takes the words that the same lane of some block made: alone, its own.
  template <class Block>
  DDCM_FN void sync_sharing(Block& block) const {
    if (cluster > 1) block.sync_cluster();
  }

  // Words of half a row tile, 32 vectors further those of the next, that a thread's warp has of k step `step`.
  static DDCM_FN Vec4* stage_words(char* shared, int thread, int step) {
    const int slot = thread / 32 * (2 * kStageSteps) + step % (2 * kStageSteps);
    return reinterpret_cast<Vec4*>(shared + kPartsAt) + slot * kVectorsOfWarp + thread % 32;
  }

  // Makes this block's share of the words of the steps `begin` to begin + kStageSteps - 1 of a segment of `count`.
  template <class Block>
  DDCM_FN void make_stage(Block& block, uint32_t step_word, const Place* places, int count, int begin) const {
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

  // Adds up the digits and the split warps; after the last segment, scores and ranks the tile.
  template <class Block>
  DDCM_FN void finish_segment(Block& block, const Place* places, Leader* leaders) const {
    Sum* parts = reinterpret_cast<Sum*>(block.shared() + kPartsAt);
    Sum* carry = reinterpret_cast<Sum*>(block.shared() + kCarryAt);
    constexpr int kRoundAtoms = 8 * kRoundHalves;  // of a warp
    auto part_at = [](int warp, int atom, int column) { return (warp * kRoundAtoms + atom) * kPartWidth + column; };
    const int split = 1 << split_bits, outputs = (kWarps / RowGroups >> split_bits) * kRoundAtoms * kSlots;
    DDCM_UNROLL
    for (int round = 0; round < kHalves / kRoundHalves; ++round) {
      block.each([&](int thread, State& s) {
        const int warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
        DDCM_UNROLL
        for (int i = 0; i < kRoundHalves; ++i) {
          const int half = round * kRoundHalves + i, m = half / 2, h = half % 2;
          DDCM_UNROLL
          for (int nt = 0; nt < ColumnTiles; nt += panel_tiles(ColumnTiles)) {
            if constexpr (kEights) {
              // Columns 2t and 2t + 1 of each tile: one digit of two rows.
              DDCM_UNROLL
              for (int c = 0; c < 2; ++c) {
                Sum sum = 0;
                DDCM_UNROLL
                for (int plane = 0; plane < 3; ++plane) {
                  sum += Traits::shifted(static_cast<Sum>(s.sum[m][nt + plane][2 * h + c]), plane);
                }
                parts[part_at(warp, 8 * i + g, nt / 3 * 8 + 2 * t + c)] = sum;
              }
            } else {
              // Digits 0, 1 (t even) or 2, 3 (t odd) of the column tile's row t / 2.
              const Sum low = static_cast<Sum>(s.sum[m][nt][2 * h]), high = static_cast<Sum>(s.sum[m][nt][2 * h + 1]);
              parts[part_at(warp, 8 * i + g, t % 2 * kWarpRows + 2 * nt + t / 2)] = low + Traits::shifted(high, 1);
            }
          }
        }
      });
      block.sync();
      block.each([&](int thread, State&) {
        const BlockPlace place = this->place(opaque(block.index()));
        const auto [tile, begin] = places[thread];
        const bool is_last = begin + steps_of(begin) == warp_steps;
        const int slot = thread % kSlots, row = place.batch_tile * kRows + slot;
        if (slot >= kRows || row >= batch) return;
        const int row_group = slot / kWarpRows, column = slot % kWarpRows;
        const int64_t at = row * geometry.groups + place.group;
        const double unit = unit_of(max_bits[at]);
        const int64_t sum_of_weights = Traits::kSigns ? correction[at] : 0;
        DDCM_NO_UNROLL
        for (int o = thread; o < outputs; o += kThreads) {
          const int atom = o / kSlots, warp_atom = atom % kRoundAtoms;
          const int first_warp = atom / kRoundAtoms * split * RowGroups;
          Sum sum = 0;
          for (int w = 0; w < split; ++w) {
            const int warp = first_warp + w * RowGroups + row_group;
            sum += parts[part_at(warp, warp_atom, column)];
            if (!kEights) sum += Traits::shifted(parts[part_at(warp, warp_atom, kWarpRows + column)], 2);
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
          const float score = Traits::template score<kEights>(sum, sum_of_weights, unit);
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
      block.sync();
    }
  }
};

}  // namespace ddcm
