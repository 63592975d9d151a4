// How the entries of `sign` atoms become operands of matrix products.

#pragma once

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

}  // namespace ddcm
