// Philox4x32-10 with the work that depends on the block alone or on the atom alone hoisted out.
//
// A search makes P(block, atom) for every pair of many blocks and many atoms. Of the first three rounds all
// but one multiplication depend on only one of the two counters, so a thread that owns several atoms and
// walks over blocks pays 15 multiplications and 17 exclusive-ors a call instead of 20 and 20.

#pragma once

#include "block.h"

namespace ddcm {

// Round keys k0 + r * W0 and k1 + r * W1; kernels keep them in constant memory (their parameters).
struct RoundKeys {
  uint32_t k0[10], k1[10];
};

inline RoundKeys make_round_keys(uint64_t seed) {
  RoundKeys keys{};
  const Key key = make_key(seed);
  for (uint32_t r = 0; r < 10; ++r) {
    keys.k0[r] = key.k0 + r * kPhiloxW0;
    keys.k1[r] = key.k1 + r * kPhiloxW1;
  }
  return keys;
}

struct Wide {
  uint32_t high, low;
};

DDCM_FN Wide multiply_wide(uint32_t a, uint32_t b) {
  const uint64_t product = static_cast<uint64_t>(a) * b;
  return Wide{static_cast<uint32_t>(product >> 32), static_cast<uint32_t>(product)};
}

// What a call needs of its atom.
struct AtomPart {
  uint32_t high, low;
};

// What a call needs of its block.
struct BlockPart {
  uint32_t x, y, p, z;
};

DDCM_FN AtomPart atom_part(const RoundKeys& keys, uint32_t atom, uint32_t step) {
  const Wide s = multiply_wide(kPhiloxM1, step);
  const Wide h = multiply_wide(kPhiloxM0, s.high ^ atom ^ keys.k0[0]);
  return AtomPart{h.high, h.low};
}

DDCM_FN BlockPart block_part(const RoundKeys& keys, uint32_t block, uint32_t step, uint32_t stream) {
  const Wide s = multiply_wide(kPhiloxM1, step);
  const Wide b = multiply_wide(kPhiloxM0, block);
  const Wide h = multiply_wide(kPhiloxM1, b.high ^ stream ^ keys.k1[0]);
  const Wide y = multiply_wide(kPhiloxM0, h.high ^ s.low ^ keys.k0[1]);
  return BlockPart{b.low ^ keys.k1[1], h.low ^ keys.k0[2], y.high ^ keys.k1[2], y.low};
}

// P(block, atom, step, stream), equal to philox10 of noise.h.
DDCM_FN Words philox_split(const RoundKeys& keys, AtomPart atom, BlockPart block) {
  const Wide first = multiply_wide(kPhiloxM1, atom.high ^ block.x);
  uint32_t c0 = first.high ^ block.y, c1 = first.low, c2 = block.p ^ atom.low, c3 = block.z;
  DDCM_UNROLL
  for (int r = 3; r < 10; ++r) {
    const Wide a = multiply_wide(kPhiloxM0, c0), b = multiply_wide(kPhiloxM1, c2);
    c0 = b.high ^ c1 ^ keys.k0[r];
    c1 = b.low;
    c2 = a.high ^ c3 ^ keys.k1[r];
    c3 = a.low;
  }
  return Words{{c0, c1, c2, c3}};
}

}  // namespace ddcm
