// Search and scores of the `sign` and `gaussian` kinds: noise made in registers as the A operand of tensor-core
// products, the residual's digits (residual.h) as the B operand. docs/kernels.md derives the maps.
//
// A warp owns 64 atoms (4 row tiles of 16; 32 where it serves 8 or more batch rows) and, of one k step, 4 Philox calls of
// each atom: lane 4g + t makes call t of the step for the atoms of rows g and g + 8 of every row tile. The A registers
// are the call's words themselves, masked or looked up: which coordinate an A column is was settled when the residual
// was laid out.

#pragma once

#include "candidate.h"
#include "residual.h"

namespace ddcm {

// Row tiles of 16 atoms a warp: fewer where the accumulators of 4 and more column tiles need the registers.
DDCM_FN constexpr int row_tiles(int column_tiles) { return column_tiles >= 4 ? 2 : 4; }

constexpr int kStepsPerSegment = 1024;  // int32 sums of 2^19 `sign` coordinates cannot overflow:
                                        // 1024 steps * 4 calls * 16 bytes * 255 * 128 < 2^31

// Signs: a word masked by 0x01010101 << j is four entries {0, 2^j} as unsigned bytes, one operation. The weight
// 2^j is taken out of the residual. <y, w> = sum(w) - 2 * sum(bit * w).
struct SignTraits {
  using Mma = MmaU8S8;
  using Sum = int64_t;
  static constexpr bool kSigns = true;
  // Column tiles a warp can have: powers of two up to this, 2 batch rows each. 16 would not fit the registers.
  static constexpr int kMaxColumnTiles = 8;
  // 16 warps of 128 registers a multiprocessor for small batches; 12 of 168, then 8 of 255 where accumulators take more.
  static DDCM_FN constexpr int warps(int column_tiles) { return column_tiles == 1 ? 8 : 4; }
  static DDCM_FN constexpr int min_blocks(int column_tiles) {
    return column_tiles == 1 || column_tiles == 8 ? 2 : 3;
  }
  // Making the noise costs about as much as multiplying it with so many column tiles (estimate, docs/kernels.md).
  static constexpr int kNoiseTiles = 2;
  static constexpr int kEntriesPerCall = kSignsPerCall, kEntriesPerRegister = 4;
  static constexpr int kProducts = 16, kVectors = 8;  // matrix products a row tile and step; B vectors
  static constexpr uint32_t kStream = kStreamSign;
  static constexpr int64_t kTableBytes = 0;

  // First of the two words that product c takes (the other is the next), and its shift j.
  static DDCM_FN constexpr int word(int product) { return 2 * (product / 8); }
  static DDCM_FN constexpr int shift(int product) { return product % 8; }

  // Entry of the call that byte e of word `word`, shifted by j, holds.
  static DDCM_FN int entry(int word, int shift, int e) { return 32 * word + 8 * e + shift; }

  static DDCM_FN uint32_t encode(int digit) { return static_cast<uint32_t>(digit) & 255u; }

  static DDCM_FN Words expand(const Words& words, const char*) { return words; }

  static DDCM_FN uint32_t fragment(uint32_t word, int product) {
    return word & (0x01010101u << shift(product));
  }

  static DDCM_FN int64_t shifted(int64_t value, int plane) { return value * (int64_t{1} << (8 * plane)); }

  static DDCM_FN float score(int64_t sum, int64_t correction, double unit) {
    return static_cast<float>(static_cast<double>(correction - 2 * sum) * unit);
  }
};

// Gaussians: q of the table as float16 (exact), sign from the halfword's top bit. Digits are float16 too; sums
// of products are integers, exact in float32 up to 2^24 (docs/kernels.md).
struct GaussianTraits {
  using Mma = MmaF16;
  using Sum = double;
  static constexpr bool kSigns = false;
  // One block a multiprocessor shares one copy of the table.
  static constexpr int kMaxColumnTiles = 16;
  static DDCM_FN constexpr int warps(int column_tiles) { return column_tiles >= 8 ? 8 : 16; }
  static DDCM_FN constexpr int min_blocks(int) { return 1; }
  static constexpr int kNoiseTiles = 16;  // see SignTraits
  static constexpr int kEntriesPerCall = kGaussiansPerCall, kEntriesPerRegister = 2;
  static constexpr int kProducts = 2, kVectors = 1;
  static constexpr uint32_t kStream = kStreamGaussian;
  static constexpr int64_t kTableBytes = 2 * kGaussianTableSize;

  static DDCM_FN constexpr int word(int product) { return 2 * product; }
  static DDCM_FN constexpr int shift(int) { return 0; }
  static DDCM_FN int entry(int word, int, int e) { return 2 * word + e; }
  static DDCM_FN uint32_t encode(int digit) { return half_of_integer(digit); }

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

  static DDCM_FN uint32_t fragment(uint32_t word, int) { return word; }

  static DDCM_FN double shifted(double value, int plane) { return value * (1 << (8 * plane)); }

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
// ColumnTiles NT column tiles of two batch rows share every generated word. A block's kWarpAtoms * (warps / split)
// atoms are one tile; `split` warps share atoms and cut the k steps among them. Grid: (chunks, G, batch tiles).
template <class Traits, int ColumnTiles, int Writes>
struct SearchKernel {
  static constexpr bool kRanks = Writes == kBest, kSquares = Writes == kNorms;
  static_assert(!kSquares || !Traits::kSigns, "the norms of signs are known");
  using Sum = typename Traits::Sum;
  using Accumulator = typename Traits::Mma::Accumulator;
  static constexpr int kWarps = Traits::warps(ColumnTiles), kThreads = 32 * kWarps;
  static constexpr int kMinBlocks = Traits::min_blocks(ColumnTiles);
  static constexpr int kRowTiles = row_tiles(ColumnTiles), kWarpAtoms = 16 * kRowTiles;
  static constexpr int kStepVectors = Traits::kVectors * ColumnTiles;
  // Column tiles whose residuals wait in registers together.
  static constexpr int kTogether = ColumnTiles >= 4 ? 4 : ColumnTiles;
  struct State {
    AtomPart atom[2 * kRowTiles];  // row tile, then g or g + 8
    Accumulator sum[kRowTiles][ColumnTiles][4];
    Words words[2 * kRowTiles];
    Vec4 b[kTogether];
    Accumulator square[kSquares ? 2 : 1][4];  // of a row tile: rows g, then g + 8, on the diagonal
    const Vec4* from;  // this lane's residual fragments of the k step
    uint32_t call;     // Philox block of this lane's call of the k step
    int left;          // kNorms: entries of the group from that call on
  };

  Geometry geometry;
  RoundKeys keys;
  Ranking ranking;
  const int64_t* step;       // 0-d, on the device
  const char* table;         // q as float16, 64 KB; `gaussian` only
  const Vec4* fragments;     // of PrepareKernel
  const uint32_t* max_bits;  // (B, G)
  const int64_t* correction; // (B, G)
  Candidate* results;
  float* scores;
  float* norms;
  int64_t score_stride;
  int64_t first, last;
  int32_t batch, tiles, chunks;
  int32_t split, warp_steps;  // k steps of a warp; the fragments hold split * warp_steps

  // Shared memory: table | partial sums of one column tile | best candidates | sums of earlier segments | sums of
  // squares of each warp's atoms.
  static constexpr int64_t kPartsAt = Traits::kTableBytes;
  static constexpr int64_t kBestAt =
      kPartsAt + static_cast<int64_t>(sizeof(Sum)) * kWarps * 2 * kWarpAtoms * kRowsPerColumnTile;
  static constexpr int64_t kCarryAt =
      kBestAt + (kRanks ? static_cast<int64_t>(sizeof(Candidate)) * ColumnTiles * kThreads : 0);
  static constexpr int64_t kSquaresAt =
      kCarryAt + static_cast<int64_t>(sizeof(Sum)) * ColumnTiles * kWarpAtoms * kRowsPerColumnTile;
  static constexpr int64_t shared_bytes() {
    return kSquaresAt + (kSquares ? static_cast<int64_t>(sizeof(int64_t)) * kWarps * kWarpAtoms : 0);
  }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const uint32_t step_word = static_cast<uint32_t>(*step);
    const char* local_table = block.shared();
    Candidate* best = reinterpret_cast<Candidate*>(block.shared() + kBestAt);

    block.each([&](int thread, State&) {
      for (int i = thread; i < Traits::kTableBytes / 16; i += kThreads) {
        reinterpret_cast<Vec4*>(block.shared())[i] = load_vec4(reinterpret_cast<const Vec4*>(table) + i);
      }
      if (kRanks) {
        for (int nt = 0; nt < ColumnTiles; ++nt) best[nt * kThreads + thread] = no_candidate();
      }
    });
    block.sync();

    DDCM_NO_UNROLL
    for (int tile = block.index() % chunks; tile < tiles; tile += chunks) {
      block.each([&](int thread, State& s) {
        const uint32_t row = static_cast<uint32_t>(first_atom(tile)) +
                             static_cast<uint32_t>(thread / 32 / split * kWarpAtoms + thread % 32 / 4);
        DDCM_UNROLL
        for (int r = 0; r < 2 * kRowTiles; ++r) {
          s.atom[r] = atom_part(keys, row + 8 * r, step_word);
          if (kSquares) *squares_of(block, thread, r) = 0;
        }
      });
      DDCM_NO_UNROLL
      for (int begin = 0; begin < warp_steps; begin += kStepsPerSegment) {
        const int end = begin + kStepsPerSegment < warp_steps ? begin + kStepsPerSegment : warp_steps;
        multiply_segment(block, step_word, begin, end, local_table);
        finish_segment(block, opaque(tile), opaque(begin), best);
      }
    }
    if (kRanks) {
      for (int nt = 0; nt < ColumnTiles; ++nt) {
        reduce_candidates<kThreads>(block, best + nt * kThreads, kRowsPerColumnTile);
      }
      block.each([&](int thread, State&) {
        const Place place = this->place(block.index());
        const int row = place.batch_tile * ColumnTiles * kRowsPerColumnTile + thread;
        if (thread >= ColumnTiles * kRowsPerColumnTile || row >= batch) return;
        results[(row * geometry.groups + place.group) * chunks + place.chunk] =
            best[thread / kRowsPerColumnTile * kThreads + thread % kRowsPerColumnTile];
      });
    }
  }

  // Block, tile and group numbers are below 2^31 (Driver::run checks the grid): small integers save registers.
  struct Place {
    int chunk, group, batch_tile;
  };

  DDCM_FN Place place(int index) const {
    const int groups = static_cast<int>(geometry.groups), rest = index / chunks;
    return Place{index % chunks, rest % groups, rest / groups};
  }

  DDCM_FN int64_t first_atom(int tile) const {
    return first + static_cast<int64_t>(tile) * (kWarps / split) * kWarpAtoms;
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

  // Sums over the k steps begin .. end - 1 of every warp.
  template <class Block>
  DDCM_FN void multiply_segment(Block& block, uint32_t step_word, int begin, int end,
                                const char* local_table) const {
    const Place place = this->place(opaque(block.index()));
    block.each([&](int thread, State& s) {
      const int64_t first_step = static_cast<int64_t>(thread / 32 % split) * warp_steps + begin;
      const int64_t group_step = (place.batch_tile * geometry.groups + place.group) * split * warp_steps + first_step;
      s.from = fragments + group_step * kStepVectors * 32 + thread % 32;
      const int64_t first_call = first_step * kCallsPerStep + thread % 4;
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
    DDCM_NO_UNROLL
    for (int k = begin; k < end; ++k) {
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
      });
      DDCM_UNROLL
      for (int vector = 0; vector < Traits::kVectors; ++vector) {
        DDCM_UNROLL
        for (int from = 0; from < ColumnTiles; from += kTogether) {
          block.each([&](int, State& s) {
            DDCM_UNROLL
            for (int i = 0; i < kTogether; ++i) s.b[i] = load_vec4(s.from + (vector * ColumnTiles + from + i) * 32);
          });
          DDCM_UNROLL
          for (int product = 2 * vector; product < 2 * vector + 2; ++product) {
            DDCM_UNROLL
            for (int m = 0; m < kRowTiles; ++m) {
              DDCM_UNROLL
              for (int i = 0; i < kTogether; ++i) {
                block.template mma<typename Traits::Mma>([&](int, State& s, auto issue) {
                  const int word = Traits::word(product);
                  const Words &upper = s.words[2 * m], &lower = s.words[2 * m + 1];
                  const Vec4& b = s.b[i];
                  issue(s.sum[m][from + i], Traits::fragment(upper.w[word], product),
                        Traits::fragment(lower.w[word], product),
                        Traits::fragment(upper.w[word + 1], product),
                        Traits::fragment(lower.w[word + 1], product), b.x[2 * (product % 2)],
                        b.x[2 * (product % 2) + 1]);
                });
              }
            }
          }
        }
      }
      if constexpr (kSquares) add_squares(block);
      block.each([&](int, State& s) {
        s.from += kStepVectors * 32;
        s.call += kCallsPerStep;
        s.left -= kCallsPerStep * Traits::kEntriesPerCall;
      });
    }
  }

  // Adds up the digits' columns and the split warps; after the last segment, scores and ranks the tile.
  template <class Block>
  DDCM_FN void finish_segment(Block& block, int tile, int begin, Candidate* best) const {
    const Place place = this->place(opaque(block.index()));
    const bool is_last = begin + kStepsPerSegment >= warp_steps;
    Sum* parts = reinterpret_cast<Sum*>(block.shared() + kPartsAt);
    Sum* carry = reinterpret_cast<Sum*>(block.shared() + kCarryAt);
    // Partial sum of (warp, half of the digits, atom of the warp, slot); slot is the batch row in the column tile.
    auto part_at = [](int warp, int half, int atom, int slot) {
      return ((warp * 2 + half) * kWarpAtoms + atom) * kRowsPerColumnTile + slot;
    };
    const int outputs = kWarps / split * kWarpAtoms * kRowsPerColumnTile;
    DDCM_UNROLL
    for (int nt = 0; nt < ColumnTiles; ++nt) {
      block.each([&](int thread, State& s) {
        // Columns 2t and 2t + 1 of the product: digits 0, 1 (t even) or 2, 3 (t odd) of slot t / 2.
        const int warp = thread / 32, row = thread % 32 / 4, t = thread % 4;
        DDCM_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          DDCM_UNROLL
          for (int h = 0; h < 2; ++h) {
            const Sum low = static_cast<Sum>(s.sum[m][nt][2 * h]);
            const Sum high = static_cast<Sum>(s.sum[m][nt][2 * h + 1]);
            parts[part_at(warp, t % 2, 16 * m + 8 * h + row, t / 2)] =
                Traits::shifted(low, 0) + Traits::shifted(high, 1);
          }
        }
      });
      block.sync();
      block.each([&](int thread, State&) {
        // Threads is even: a thread always has the same slot, and its atoms ascend.
        DDCM_NO_UNROLL
        for (int o = thread; o < outputs; o += kThreads) {
          const int slot = o % kRowsPerColumnTile, atom = o / kRowsPerColumnTile;
          const int row = (place.batch_tile * ColumnTiles + nt) * kRowsPerColumnTile + slot;
          if (row >= batch) continue;
          Sum sum = 0;
          for (int w = 0; w < split; ++w) {
            const int warp = atom / kWarpAtoms * split + w;
            sum += parts[part_at(warp, 0, atom % kWarpAtoms, slot)];
            sum += Traits::shifted(parts[part_at(warp, 1, atom % kWarpAtoms, slot)], 2);
          }
          // More than one segment implies split = warps, so that o < 2 * kWarpAtoms and every thread has one output.
          if (begin > 0) sum += carry[nt * kWarpAtoms * kRowsPerColumnTile + o];
          if (!is_last) {
            carry[nt * kWarpAtoms * kRowsPerColumnTile + o] = sum;
            continue;
          }
          const int64_t k = first_atom(tile) + atom;
          if (k >= last) continue;
          const int64_t at = row * geometry.groups + place.group;
          const float score = Traits::score(sum, Traits::kSigns ? correction[at] : 0, unit_of(max_bits[at]));
          if (kRanks) {
            const Candidate c = ranking.candidate(score, place.group, k);
            if (better(c, best[nt * kThreads + thread])) best[nt * kThreads + thread] = c;
            continue;
          }
          scores[at * score_stride + k - first] = score;
          if (kSquares && row == 0) {
            const int64_t* squares = reinterpret_cast<const int64_t*>(block.shared() + kSquaresAt);
            int64_t total = 0;
            for (int w = 0; w < split; ++w) {
              total += squares[(atom / kWarpAtoms * split + w) * kWarpAtoms + atom % kWarpAtoms];
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
