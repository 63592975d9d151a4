// How the entries of `gaussian` atoms become operands of matrix products.

#pragma once

#include "residual.h"

namespace ddcm {

// Gaussians: q of the table as float16 (exact), sign from the halfword's top bit. Digits are float16 too; sums
// of products are integers, exact in float32 up to 2^24 (docs/kernels/cuda.md).
struct GaussianTraits {
  using Mma = MmaF16;
  using Sum = double;
  static constexpr bool kSigns = false;
  using Fragment = Vec2;
  static DDCM_FN constexpr Panel panel(int column_tiles) { return column_tiles % 3 == 0 ? kEightPanel : kPairPanel; }
  // Steps of a warp whose sums practically never reach 2^24: a preference, no bound.
  static DDCM_FN constexpr int segment(int) { return 1280; }
  static constexpr bool kSegments = false;
  // Row tiles of 16 atoms a warp: 36 to 144 accumulators.
  static DDCM_FN constexpr int row_tiles(int column_tiles) {
    return column_tiles >= 12 ? 3 : column_tiles >= 3 ? 2 : 4;
  }
  static DDCM_FN constexpr bool reads_together(int) { return false; }
  // One block a multiprocessor shares one copy of the table.
  static DDCM_FN constexpr int warps(int column_tiles) { return column_tiles >= 12 ? 8 : 16; }
  static DDCM_FN constexpr int min_blocks(int) { return 1; }
  static constexpr int kEntriesPerCall = kGaussiansPerCall, kEntriesPerRegister = 2;
  static constexpr int kProducts = 2, kVectors = 1, kWordPairs = 1;
  static DDCM_FN constexpr int vectors_together(int) { return 1; }
  static constexpr uint32_t kStream = kStreamGaussian;
  static constexpr int64_t kTableBytes = 2 * kGaussianTableSize;

  static DDCM_FN constexpr int word(int product) { return 2 * product; }
  static DDCM_FN constexpr int bit(int) { return 0; }
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

  static DDCM_FN uint32_t fragment(const Words& words, int i, int) { return words.w[i]; }

  static DDCM_FN double shifted(double value, int bits) { return value * (1 << bits); }

  static DDCM_FN float score(double sum, int64_t, double unit) {
    return static_cast<float>(sum * unit * static_cast<double>(kGaussianScale));
  }
};

}  // namespace ddcm
