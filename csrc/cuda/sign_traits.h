// How the entries of `sign` atoms become operands of matrix products.

#pragma once

#include "residual.h"

namespace ddcm {

// Signs: <y, w> = sum(w) - 2 * sum(bit * w): bits are multiplied.
struct SignEntries {
  using Sum = int64_t;
  using Fragment = Vec4;
  static constexpr bool kSigns = true;
  static constexpr int kEntriesPerCall = kSignsPerCall;
  static constexpr uint32_t kStream = kStreamSign;
  static constexpr int64_t kTableBytes = 0;

  static DDCM_FN Fragment no_digits() { return Fragment{}; }
  static DDCM_FN uint32_t digits(const Fragment& fragment, int r) { return fragment.x[r]; }
  static DDCM_FN Words expand(const Words& words, const char*) { return words; }
  static DDCM_FN int64_t shifted(int64_t value, int bits) { return value * (int64_t{1} << bits); }
  static DDCM_FN float score(int64_t sum, int64_t correction, double unit) {
    return static_cast<float>(static_cast<double>(correction - 2 * sum) * unit);
  }
};

// For few rows, whose time is the making of the words: the words are the A registers as they are, 32 entries each, and the
// residual is bit planes. A one bit product takes no longer than a byte product, and does eight times as much.
struct SignPlaneTraits : SignEntries {
  using Mma = MmaBits;
  static DDCM_FN constexpr Panel panel(int) { return kPlanePanel; }
  // A sum counts entries, so it cannot overflow.
  static DDCM_FN constexpr int segment(int) { return 1 << 30; }
  static constexpr bool kSegments = false;
  // Row tiles of 16 atoms a warp: 48 accumulators.
  static DDCM_FN constexpr int row_tiles(int column_tiles) { return column_tiles >= 6 ? 2 : 4; }
  static DDCM_FN constexpr bool reads_together(int) { return false; }
  // 16 warps of 128 registers a multiprocessor.
  static DDCM_FN constexpr int warps(int) { return 8; }
  static DDCM_FN constexpr int min_blocks(int) { return 2; }
  static constexpr int kEntriesPerRegister = 32;
  static constexpr int kProducts = 2, kVectors = 1;  // matrix products a row tile and step; B vectors
  static constexpr int kWordPairs = 1;               // which they take in turn
  static DDCM_FN constexpr int vectors_together(int) { return 1; }  // loaded before any is used

  // First of the two words that a product takes (the other is the next), and the first bit of a byte of it that it takes.
  static DDCM_FN constexpr int word(int product) { return 2 * product; }
  static DDCM_FN constexpr int bit(int) { return 0; }

  // Entry of the call that is number e of a register made from word `word`.
  static DDCM_FN int entry(int word, int, int e) { return 32 * word + e; }

  // Bit of entry e of register r (0, 1: first product's b0, b1; 2, 3: second's) of a fragment.
  static DDCM_FN void put(Fragment& fragment, int r, int e, int bit) {
    fragment.x[r] |= static_cast<uint32_t>(bit) << e;
  }

  // The A register of word number i.
  static DDCM_FN uint32_t fragment(const Words& words, int i, int) { return words.w[i]; }
};

// For many rows, whose time is the products: bytes {0, 1}, a mask and a shift a bit, with the residual's digits.
struct SignTraits : SignEntries {
  using Mma = MmaU8S8;
  static DDCM_FN constexpr Panel panel(int) { return kEightPanel; }
  // A warp's int32 sums of so many steps cannot overflow: steps * 4 calls * 128 entries * 128 < 2^31.
  static DDCM_FN constexpr int segment(int) { return 16384; }
  static constexpr bool kSegments = true;
  // Where there are many rows, each residual that is loaded meets four row tiles: reading it bounds these kernels.
  static DDCM_FN constexpr int row_tiles(int column_tiles) { return reads_together(column_tiles) ? 4 : 2; }
  // Whether a block's warps keep so close that the residual that one reads is in the L1 cache for the others. Then they
  // are many, and there is one such block a multiprocessor.
  static DDCM_FN constexpr bool reads_together(int column_tiles) { return column_tiles >= 6; }
  // 12 warps of 168 registers a multiprocessor, or 8 of 255 where there are 96 accumulators.
  static DDCM_FN constexpr int warps(int column_tiles) { return reads_together(column_tiles) ? 8 : 4; }
  static DDCM_FN constexpr int min_blocks(int column_tiles) { return reads_together(column_tiles) ? 1 : 3; }
  static constexpr int kEntriesPerRegister = 4;
  static constexpr int kProducts = 16, kVectors = 8, kWordPairs = 2;
  static DDCM_FN constexpr int vectors_together(int column_tiles) { return reads_together(column_tiles) ? 1 : 4; }

  static DDCM_FN constexpr int word(int product) { return 2 * (product / 8); }
  static DDCM_FN constexpr int bit(int product) { return product % 8; }

  // Entry of the call that is bit `bit` of byte e of word `word`.
  static DDCM_FN int entry(int word, int bit, int e) { return 32 * word + 8 * e + bit; }

  static DDCM_FN void put(Fragment& fragment, int r, int e, int digit) {
    fragment.x[r] |= (static_cast<uint32_t>(digit) & 255u) << (8 * e);
  }

  static DDCM_FN uint32_t fragment(const Words& words, int i, int bit) { return words.w[i] >> bit & 0x01010101u; }
};

}  // namespace ddcm
