// Coarse scores with AVX-512 VBMI and VNNI: look-ups of bytes, 64 at once. Included by avx512vnni.cpp.
//
// A lane of 32 bits is an atom, and each byte of its word has two nibbles, the indices of two tables of 16 partial
// scores of four neighbouring coordinates. Four such tables, one a byte of the lane, fill a vector: vpermb looks up four
// nibbles of 16 atoms, and vpdpbusd adds them up, each times its table's weight. An entry has 8 bits and counts in
// 127ths of its own table's largest, up to a weight's rounding; one scale for the whole tile would err twice as much.
//
// On Zen 4 the two instructions share a unit: 1.33 cycles for 256 products, of 16 bit look-ups and sums 2 (measured).

#pragma once

namespace {

struct Coarse {
  static constexpr int kTogether = 2;
  static constexpr int kRows = 2;                    // rows that share the loads of words; more spill (measured)
  static constexpr int kSets = kSignTables / 4;      // vectors of four tables of a tile
  static constexpr int kLargest = 127, kZero = 128;  // of an entry and of a weight; the entry that stands for 0

  struct alignas(64) Tables {
    uint8_t entry[kSets][4][16];  // of the low nibbles of a word's bytes, then of the high ones
    uint32_t weight[kSets];       // of the four, a byte each
    int32_t offset;               // what the entries' kZero make of a sum
  };
  struct alignas(64) Index {
    uint32_t word[kSets / 2][4][L];  // of 4 L atoms
  };

  // Word q of the atoms of vectors 2 v and 2 v + 1.
  static void store(const U (&words)[2], int q, int v, Index& index) {
    Simd::store_u(index.word[q][2 * v], words[0]);
    Simd::store_u(index.word[q][2 * v + 1], words[1]);
  }

  // Tables of one row and tile, as sign_tables takes them. Returns what one unit is worth, and adds to `margin` by how
  // much the tile's part of a score can be wrong.
  static float make(const float* w, int64_t entries, int nwords, Tables& tables, double& margin) {
    alignas(64) float x[kSignTables * 4], scale[kSignTables];
    alignas(64) uint32_t weight[kSignTables];
    for (int i = 0; i < kSignTables * 4; i += L) {
      const int64_t left = entries - i;
      const uint32_t there = left >= L ? 0xffffu : left > 0 ? (1u << left) - 1 : 0u;
      Simd::store(x + i, _mm512_maskz_loadu_ps(static_cast<__mmask16>(there), w + i));
    }
    // Each table's sum of magnitudes, which is its largest entry.
    const int ntables = 8 * nwords;
    F sums[kSignTables / L], most = Simd::set1(0.0f);
    for (int v = 0; v < kSignTables / L; ++v) {
      sums[v] = sums_of_four(x + 4 * v * L);
      most = Simd::max_(most, sums[v]);
    }
    const float largest = _mm512_reduce_max_ps(most);
    // Below that its inverse is no number: the tile counts as zero.
    const bool none = largest < 0x1p-100f;
    const float unit = none ? 0.0f : largest / (kLargest * kLargest), per_unit = none ? 0.0f : kLargest / largest;
    U weights = Simd::set1_u(0);
    for (int v = 0; v < kSignTables / L; ++v) {
      // The least weight by which the largest entry, sum / (unit weight), is at most kLargest.
      const F least = _mm512_roundscale_ps(Simd::mul(sums[v], Simd::set1(per_unit)), _MM_FROUND_TO_POS_INF);
      const F own = _mm512_min_ps(Simd::max_(least, Simd::set1(1.0f)), Simd::set1(kLargest));
      Simd::store(scale + v * L, _mm512_div_ps(Simd::set1(per_unit * kLargest), own));
      Simd::store_u(weight + v * L, Simd::to_int(own));
      weights = Simd::add_u(weights, Simd::to_int(own));
    }
    const int total = _mm512_reduce_add_epi32(weights) - (kSignTables - ntables);  // those that are not there have 1
    // An entry is wrong by half of its unit, `unit` times its weight, and by what float32 itself misses: of a value up to
    // 127 less than 0.001. The sum is exact.
    margin += none ? static_cast<double>(largest) * ntables : 0.501 * static_cast<double>(unit) * total;
    for (int t = 0; t < ntables; ++t) {
      const U value = Simd::to_int(Simd::mul(signed_sums(x + 4 * t), Simd::set1(scale[t])));
      const int set = t / 8 * 2 + t % 2, byte = t % 8 / 2;
      const __m128i entry = _mm_xor_si128(_mm512_cvtsepi32_epi8(value), _mm_set1_epi8(static_cast<char>(kZero)));
      _mm_store_si128(reinterpret_cast<__m128i*>(tables.entry[set][byte]), entry);
    }
    for (int q = 0; q < nwords; ++q)
      for (int odd = 0; odd < 2; ++odd) {
        const uint32_t* own = weight + 8 * q + odd;
        tables.weight[2 * q + odd] = own[0] | own[2] << 8 | own[4] << 16 | own[6] << 24;
      }
    tables.offset = kZero * total;
    return unit;
  }

  // One tile, 4 L atoms and NR rows: sum * unit[row] is added to scores[row].
  template <int NR>
  static void look_up(const Index& index, int nwords, const Tables* tables, const float* unit, float* scores,
                      int64_t stride) {
    U acc[NR][4];
    for (int r = 0; r < NR; ++r)
      for (int v = 0; v < 4; ++v) acc[r][v] = _mm512_set1_epi32(-tables[r].offset);
    for (int q = 0; q < nwords; ++q) {
      U words[4];
      for (int v = 0; v < 4; ++v) words[v] = Simd::load_u(index.word[q][v]);
      add_set<NR>(words, tables, 2 * q, acc);
      for (int v = 0; v < 4; ++v) words[v] = Simd::shift4(words[v]);
      add_set<NR>(words, tables, 2 * q + 1, acc);
    }
    for (int r = 0; r < NR; ++r) {
      const F scale = Simd::set1(unit[r]);
      for (int v = 0; v < 4; ++v) {
        float* out = scores + r * stride + v * L;
        Simd::store(out, Simd::fma(Simd::to_float(acc[r][v]), scale, Simd::load(out)));
      }
    }
  }

  // Scores are in the order of the atoms as they are.
  static void sort(float*) {}

 private:
  // What the low nibbles of four vectors' bytes pick from a set of tables.
  template <int NR>
  static void add_set(const U (&words)[4], const Tables* tables, int set, U (&acc)[NR][4]) {
    const U nibbles = Simd::set1_u(0x0f0f0f0fu), place = Simd::set1_u(0x30201000u);
    U at[4];
    for (int v = 0; v < 4; ++v) at[v] = _mm512_ternarylogic_epi32(words[v], nibbles, place, 0xea);  // & nibbles | place
    for (int r = 0; r < NR; ++r) {
      const U entries = _mm512_load_si512(tables[r].entry[set]);
      const U weights = Simd::set1_u(tables[r].weight[set]);
      for (int v = 0; v < 4; ++v)
        acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], _mm512_permutexvar_epi8(at[v], entries), weights);
    }
  }

  // |x[4 i]| + .. + |x[4 i + 3]|, 0 <= i < L.
  static F sums_of_four(const float* x) {
    F sum[4];
    for (int v = 0; v < 4; ++v) {
      const F one = Simd::abs_(Simd::load(x + v * L)), two = Simd::add(one, _mm512_permute_ps(one, 0xb1));
      sum[v] = Simd::add(two, _mm512_permute_ps(two, 0x4e));  // four times over
    }
    const U pick = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const F low = _mm512_permutex2var_ps(sum[0], pick, sum[1]), high = _mm512_permutex2var_ps(sum[2], pick, sum[3]);
    return _mm512_mask_blend_ps(0xff00, low, high);
  }
};

}  // namespace
