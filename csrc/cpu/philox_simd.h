// Philox with the work that atoms or blocks share taken out. Included by simd.h.

#pragma once

namespace {

// Keys of the ten rounds.
struct Schedule {
  uint32_t k0[10], k1[10];
  explicit Schedule(Key key) {
    for (int r = 0; r < 10; ++r) {
      k0[r] = key.k0 + static_cast<uint32_t>(r) * kPhiloxW0;
      k1[r] = key.k1 + static_cast<uint32_t>(r) * kPhiloxW1;
    }
  }
};

// Counter (block, atom, step, stream): the first round multiplies block and step only, so after it
// c0 depends on the atom alone and c1, c2, c3 on the block alone; the second round leaves c0, c1 to
// the block and c3 to the atom, and c2 is an exclusive or of both. Two and a half of the ten rounds
// are thus done once a call for all atoms (CallConstants) or once an atom for all calls (AtomLanes).
struct CallConstants {
  uint32_t x2;  // c2 of round 3 = atom's high ^ x2
  uint32_t x0;  // c0 after round 3 = high(M1 * c2) ^ x0
  uint32_t y2;  // c2 after round 3 = atom's low ^ y2
  uint32_t y3;  // c3 after round 3
};

inline CallConstants call_constants(const Schedule& s, uint32_t block, uint32_t step,
                                    uint32_t stream) {
  const uint32_t c1 = kPhiloxM1 * step;
  const uint32_t c2 = mul_high(kPhiloxM0, block) ^ stream ^ s.k1[0];
  const uint32_t c3 = kPhiloxM0 * block;
  const uint32_t d0 = mul_high(kPhiloxM1, c2) ^ c1 ^ s.k0[1];
  const uint32_t d1 = kPhiloxM1 * c2;
  CallConstants out;
  out.x2 = c3 ^ s.k1[1];
  out.x0 = d1 ^ s.k0[2];
  out.y2 = mul_high(kPhiloxM0, d0) ^ s.k1[2];
  out.y3 = kPhiloxM0 * d0;
  return out;
}

struct AtomLanes {
  Wide high, low;  // of M0 * c0 in round 2
};

inline AtomLanes atom_lanes(const Schedule& s, U atom, uint32_t step) {
  const U c0 = Simd::xor_u(atom, Simd::set1_u(mul_high(kPhiloxM1, step) ^ s.k0[0]));
  AtomLanes out;
  out.low = Simd::product(Simd::widen(c0), kPhiloxM0);
  out.high = Simd::high(out.low);
  return out;
}

// Rounds `first` (0 based) to the last of NV vectors of calls at once. Wide holds a word in the low
// half of a 64 bit lane; what is left in the high half never matters, because products read low
// halves only.
template <int NV>
inline void finish_rounds(const Schedule& s, int first, Wide (&c0)[NV], Wide (&c1)[NV],
                          Wide (&c2)[NV], Wide (&c3)[NV]) {
  for (int r = first; r < 10; ++r) {
    for (int v = 0; v < NV; ++v) {
      const Wide p0 = Simd::product(c0[v], kPhiloxM0);
      const Wide p1 = Simd::product(c2[v], kPhiloxM1);
      c0[v] = Simd::xor3(Simd::high(p1), c1[v], s.k0[r]);
      c2[v] = Simd::xor3(Simd::high(p0), c3[v], s.k1[r]);
      c1[v] = p1;
      c3[v] = p0;
    }
  }
}

// One call for NV vectors of atoms: out[v][word].
template <int NV>
inline void philox_atoms(const Schedule& s, const AtomLanes (&atoms)[NV], const CallConstants& c,
                         U (&out)[NV][4]) {
  Wide c0[NV], c1[NV], c2[NV], c3[NV];
  for (int v = 0; v < NV; ++v) {
    const Wide p1 = Simd::product(Simd::xor2(atoms[v].high, c.x2), kPhiloxM1);
    c0[v] = Simd::xor2(Simd::high(p1), c.x0);
    c1[v] = p1;
    c2[v] = Simd::xor2(atoms[v].low, c.y2);
    c3[v] = Simd::widen(Simd::set1_u(c.y3));
  }
  finish_rounds<NV>(s, 3, c0, c1, c2, c3);
  for (int v = 0; v < NV; ++v) {
    out[v][0] = Simd::narrow(c0[v]);
    out[v][1] = Simd::narrow(c1[v]);
    out[v][2] = Simd::narrow(c2[v]);
    out[v][3] = Simd::narrow(c3[v]);
  }
}

void block_words(Key key, uint32_t block, int64_t count, uint32_t atom, uint32_t step,
                 uint32_t stream, uint32_t* out) {
  const Schedule s(key);
  alignas(64) uint32_t words[4][L];
  for (int64_t first = 0; first < count; first += L) {
    const U lane = Simd::add_u(Simd::iota_u(), Simd::set1_u(block + static_cast<uint32_t>(first)));
    Wide c0[1] = {Simd::widen(lane)}, c1[1] = {Simd::widen(Simd::set1_u(atom))};
    Wide c2[1] = {Simd::widen(Simd::set1_u(step))}, c3[1] = {Simd::widen(Simd::set1_u(stream))};
    finish_rounds<1>(s, 0, c0, c1, c2, c3);
    Simd::store_u(words[0], Simd::narrow(c0[0]));
    Simd::store_u(words[1], Simd::narrow(c1[0]));
    Simd::store_u(words[2], Simd::narrow(c2[0]));
    Simd::store_u(words[3], Simd::narrow(c3[0]));
    const int64_t calls = count - first < L ? count - first : L;
    for (int64_t l = 0; l < calls; ++l)
      for (int q = 0; q < 4; ++q) out[(first + l) * 4 + q] = words[q][l];
  }
}

}  // namespace
