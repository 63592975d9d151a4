// The noise law, version 1 (docs/noise-law.md), as integer operations for host and device.
//
// Everything a backend must agree on to the last bit is here and only here: Philox4x32-10, how its
// words become signs and grid Gaussians, which call serves which entry of which atom, the geometry
// of groups and blocks, the interleaving permutation and the rotation's flips. Plain C++17 without
// dependencies: nvcc compiles it for the device (functions are then __host__ __device__), any C++
// compiler for the host. Names follow docs/noise-law.md: D = dim, K = size, G = groups, n, b, a.
//
// Integer widths: block, atom, step and stream are counter words (uint32_t). Coordinates and counts
// are int64_t because products of two of them (K * D, a * i, g * D) exceed 32 bits.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DDCM_FN __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Always inlined, so that no copy compiled for one instruction set is linked into another's code.
#define DDCM_FN inline __attribute__((always_inline))
#else
#define DDCM_FN inline
#endif

namespace ddcm {

constexpr int kNoiseLawVersion = 1;

enum Kind : int { kGaussian = 0, kSign = 1, kHadamard = 2 };

// Philox streams (section 2).
enum Stream : uint32_t {
  kStreamInitial = 0,
  kStreamGaussian = 1,
  kStreamSign = 2,
  kStreamInner = 3,  // hadamard's e
  kStreamOuter = 4,  // hadamard's d
  kStreamRotation = 5
};

constexpr int kGaussiansPerCall = 8;   // halfwords of a Philox call
constexpr int kSignsPerCall = 128;     // bits of a Philox call
constexpr float kGaussianScale = 1.0f / 256.0f;
constexpr int kGaussianTableSize = 32768;
constexpr int kMaxRotationBlock = 4096;
constexpr int kMinHadamard = 64;
constexpr int kMaxHadamard = 16384;

// ---- base randomness (section 2) ----------------------------------------------------------------

// Philox4x32-10's multipliers and Weyl key increments (Salmon et al., SC 2011).
constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

struct Key {
  uint32_t k0, k1;
};

struct Words {
  uint32_t w[4];
};

DDCM_FN Key make_key(uint64_t seed) {
  return Key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

DDCM_FN uint32_t mul_high(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
#endif
}

// P(block, atom, step, stream): the four words of one Philox4x32-10 call.
DDCM_FN Words philox10(Key key, uint32_t block, uint32_t atom, uint32_t step, uint32_t stream) {
  uint32_t c0 = block, c1 = atom, c2 = step, c3 = stream;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = mul_high(kPhiloxM0, c0), low0 = kPhiloxM0 * c0;
    const uint32_t high1 = mul_high(kPhiloxM1, c2), low1 = kPhiloxM1 * c2;
    c0 = high1 ^ c1 ^ key.k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key.k1;
    c3 = low0;
    key.k0 += kPhiloxW0;
    key.k1 += kPhiloxW1;
  }
  return Words{{c0, c1, c2, c3}};
}

// Bit p (0..127) of a call: 0 or 1. Read as a sign it is +1 for 0 and -1 for 1.
DDCM_FN uint32_t bit(const Words& words, int p) { return (words.w[p >> 5] >> (p & 31)) & 1u; }

// Sign p (0..127) of a call: +1.0f or -1.0f.
DDCM_FN float sign(const Words& words, int p) { return 1.0f - 2.0f * static_cast<float>(bit(words, p)); }

// Halfword p (0..7) of a call: 0..65535.
DDCM_FN uint32_t halfword(const Words& words, int p) {
  return (words.w[p >> 1] >> (16 * (p & 1))) & 0xffffu;
}

// The integer q of a grid Gaussian, from its halfword: table is T of section 4 (32768 int16, upper
// half of the normal quantile function in 1/256ths; ddcm_fast.codebook.law.gaussian_table()). |q| <= 1107.
DDCM_FN int gaussian_integer(uint32_t half, const int16_t* table) {
  const int q = table[half & 0x7fffu];
  return (half & 0x8000u) ? -q : q;
}

// The grid Gaussian q / 256 of a halfword: exact in float32, float16 and (as q) int16.
DDCM_FN float gaussian(uint32_t half, const int16_t* table) {
  return static_cast<float>(gaussian_integer(half, table)) * kGaussianScale;
}

// ---- geometry (sections 1, 3, 4, 5): the twin of ddcm_fast.codebook.law.CodebookSpec ----------------------

DDCM_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Geometry {
  int32_t kind;             // Kind
  int32_t hadamard_n;       // n: length of a `hadamard` sub-block, a power of 4 from 64 to 16384
  int32_t rotation_block;   // b: length of the rotation's blocks, a power of 4 from 1 to 4096
  int32_t reserved;         // keeps the layout free of padding
  int64_t dim;              // D, 1 to 2^31 - 1
  int64_t size;             // K, 1 to 2^32
  int64_t groups;           // G, 1 to D
  uint64_t seed;
  int64_t max_group_dim;    // dmax = ceil(D / G)
  int64_t sub_blocks;       // ns: `hadamard` sub-blocks a group
  int64_t calls_per_group;  // nb: Philox blocks a group and atom (`hadamard`: a group, pair, stream)
  int64_t stride;           // a of pi(i) = a * i % D, coprime to D
  int64_t first;            // first atom that is searched, 0 for all (`hadamard`: a multiple of n; the cpu backend's)

  // First codebook-order coordinate of a group; group_start(G) = D.
  DDCM_FN int64_t group_start(int64_t group) const { return group * dim / groups; }

  // Entries of a group: dmax or dmax - 1.
  DDCM_FN int64_t group_dim(int64_t group) const {
    return group_start(group + 1) - group_start(group);
  }

  // Philox block of call number `call` (0 .. calls_per_group - 1) of a group.
  // gaussian: call = i / 8; sign: call = i / 128; hadamard: call = c * calls_per_sub_block() + l / 128.
  DDCM_FN uint32_t block(int64_t group, int64_t call) const {
    return static_cast<uint32_t>(group * calls_per_group + call);
  }

  // hadamard: Philox calls a sub-block, ceil(n / 128): 1 for n = 64 (its first 64 signs are used).
  DDCM_FN int64_t calls_per_sub_block() const { return ceil_div(hadamard_n, kSignsPerCall); }

  // hadamard: sign pairs, each n atoms (the last may be cut short): atom k is row k % n of pair k / n.
  DDCM_FN int64_t pairs() const { return ceil_div(size, hadamard_n); }

  // pi(i): image-order position of codebook-order coordinate i.
  DDCM_FN int64_t image_position(int64_t i) const {
    return static_cast<int64_t>(static_cast<uint64_t>(stride) * static_cast<uint64_t>(i) %
                                static_cast<uint64_t>(dim));
  }

  // Entries covered by full rotation blocks; if less than D, the last b entries are one more block.
  DDCM_FN int64_t rotation_full() const { return dim / rotation_block * rotation_block; }

  DDCM_FN bool rotated() const { return kind != kGaussian; }

  DDCM_FN Key key() const { return make_key(seed); }
};

// P(i / 128, 0, 0, 5): the call whose sign i % 128 is the rotation's flip f(i).
DDCM_FN Words rotation_words(Key key, int64_t i) {
  return philox10(key, static_cast<uint32_t>(i / kSignsPerCall), 0, 0, kStreamRotation);
}

// 1 / sqrt(b) of a power of 4, exact: the scale that ends Had_b.
DDCM_FN float hadamard_scale(int64_t b) {
  float scale = 1.0f;
  for (; b > 1; b /= 4) scale *= 0.5f;
  return scale;
}

DDCM_FN int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// All derived numbers of a codebook. The arguments must lie in the law's ranges (the Python side
// checks them, and that G * calls_per_group < 2^32).
DDCM_FN Geometry make_geometry(int kind, int64_t dim, int64_t size, int64_t groups, uint64_t seed) {
  Geometry g{};
  g.kind = kind;
  g.dim = dim;
  g.size = size;
  g.groups = groups;
  g.seed = seed;
  g.max_group_dim = ceil_div(dim, groups);

  const int64_t need = size < g.max_group_dim ? size : g.max_group_dim;
  g.hadamard_n = kMinHadamard;
  while (g.hadamard_n < need && g.hadamard_n < kMaxHadamard) g.hadamard_n *= 4;
  g.sub_blocks = ceil_div(g.max_group_dim, g.hadamard_n);

  if (kind == kGaussian) {
    g.calls_per_group = ceil_div(g.max_group_dim, kGaussiansPerCall);
  } else if (kind == kSign) {
    g.calls_per_group = ceil_div(g.max_group_dim, kSignsPerCall);
  } else {
    g.calls_per_group = g.sub_blocks * g.calls_per_sub_block();
  }

  g.rotation_block = 1;
  while (g.rotation_block * 4 <= dim && g.rotation_block < kMaxRotationBlock) g.rotation_block *= 4;

  // a >= D * 0x9E3779B97F4A7C15 / 2^64, in two 32 bit halves of the constant (the product needs 95 bits).
  const uint64_t d = static_cast<uint64_t>(dim);
  const uint64_t high = d * 0x9E3779B9u, low = d * 0x7F4A7C15u;
  int64_t a = static_cast<int64_t>((high + (low >> 32)) >> 32);
  if (a < 1) a = 1;
  while (greatest_common_divisor(a, dim) != 1) ++a;
  g.stride = a;
  return g;
}

}  // namespace ddcm
