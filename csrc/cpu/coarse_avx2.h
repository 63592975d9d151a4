// Coarse scores with AVX2: look-ups of bytes, 32 at once. Included by avx2.cpp.
//
// A table has the 16 partial scores of four neighbouring coordinates, in 2047ths of the tile's largest, as two numbers
// of 6 bits: four such add up in a byte. The bytes of the words of 32 atoms are sorted into vectors of one byte each,
// whose nibbles are then the indices of one table (as in Andre, Kermarrec and Le Scouarnec 2017, "fast scan").

#pragma once

namespace {

// Sums of bytes, of the even and of the odd ones as 16 bit numbers.
struct ByteSums {
  U all, odd;  // 16 bit: even + 256 odd, which may wrap around; odd

  void clear() { all = odd = _mm256_setzero_si256(); }
  void add(U bytes) {
    all = _mm256_add_epi16(all, bytes);
    odd = _mm256_add_epi16(odd, _mm256_srli_epi16(bytes, 8));
  }
  U even() const { return _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8)); }
};

struct Coarse {
  static constexpr int kTogether = 4;
  static constexpr int kRows = 2;  // rows that share the loads of indices
  static constexpr int kAtoms = 4 * L, kHalf = 2048, kDigit = 64;

  struct alignas(32) Table {
    uint8_t low[16], high[16];
  };
  struct Tables {
    Table nibble[kSignTables];
  };
  struct alignas(32) Index {
    uint8_t nibble[kSignTables][kAtoms];
  };

  // Word q of 32 atoms.
  static void store(const U (&words)[4], int q, Index& index) {
    const U nibble = _mm256_set1_epi8(15);
    U plane[4];
    byte_planes(words, plane);
    for (int b = 0; b < 4; ++b) {
      U* at = reinterpret_cast<U*>(index.nibble[q * 8 + b * 2]);
      _mm256_store_si256(at, _mm256_and_si256(plane[b], nibble));
      _mm256_store_si256(at + 1, _mm256_and_si256(_mm256_srli_epi16(plane[b], 4), nibble));
    }
  }

  // Tables of one row and tile, as sign_tables takes them. Returns what one unit is worth, and adds to `margin` by how
  // much the tile's part of a score can be wrong.
  static float make(const float* w, int64_t entries, int nwords, Tables& tables, double& margin) {
    const int ntables = 8 * nwords;
    alignas(32) float padded[kSignTables * 4] = {};
    for (int64_t i = 0; i < entries; ++i) padded[i] = w[i];
    float largest = 0;
    for (int t = 0; t < ntables; ++t) {
      float sum = 0;
      for (int c = 0; c < 4; ++c) sum += __builtin_fabsf(padded[4 * t + c]);
      largest = sum > largest ? sum : largest;
    }
    // Below that its inverse is no number: the tile counts as zero.
    const bool none = largest < 0x1p-100f;
    const float per_unit = none ? 0.0f : (kHalf - 1) / largest;
    const float unit = none ? 0.0f : largest / (kHalf - 1);
    // Half a unit for rounding a sum, and what float32 itself misses.
    margin += ntables * (none ? static_cast<double>(largest) : 0.502 * static_cast<double>(unit));
    const F scale = Simd::set1(per_unit);
    const F sign0 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), sign1 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
    const F sign2 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
    const U half = _mm256_set1_epi16(kHalf), digit = _mm256_set1_epi16(kDigit - 1);
    for (int t = 0; t < ntables; ++t) {
      const float* x = padded + 4 * t;
      const F two = Simd::fma(Simd::set1(x[1]), sign1, Simd::mul(Simd::set1(x[0]), sign0));
      const F three = Simd::mul(Simd::fma(Simd::set1(x[2]), sign2, two), scale);
      const F last = Simd::mul(Simd::set1(x[3]), scale);
      const U both = _mm256_packs_epi32(Simd::to_int(Simd::add(three, last)), Simd::to_int(Simd::sub(three, last)));
      const U value = _mm256_add_epi16(_mm256_permute4x64_epi64(both, 0xd8), half);
      const U digits = _mm256_packus_epi16(_mm256_and_si256(value, digit), _mm256_srli_epi16(value, 6));
      _mm256_store_si256(reinterpret_cast<U*>(tables.nibble + t), _mm256_permute4x64_epi64(digits, 0xd8));
    }
    return unit;
  }

  // One tile, 32 atoms and NR rows: sum * unit[row] is added to scores[row], in the order that the bytes are in.
  template <int NR>
  static void look_up(const Index& index, int nwords, const Tables* tables, const float* unit, float* scores,
                      int64_t stride) {
    const int ntables = 8 * nwords;
    ByteSums low[NR], high[NR];
    for (int r = 0; r < NR; ++r) {
      low[r].clear();
      high[r].clear();
    }
    for (int t = 0; t < ntables; t += 4) {
      U at[4];
      for (int i = 0; i < 4; ++i) at[i] = _mm256_load_si256(reinterpret_cast<const U*>(index.nibble[t + i]));
      for (int r = 0; r < NR; ++r) {
        const Table* own = tables[r].nibble + t;
        U l[4], h[4];
        for (int i = 0; i < 4; ++i) {
          l[i] = _mm256_shuffle_epi8(bytes_of(own[i].low), at[i]);
          h[i] = _mm256_shuffle_epi8(bytes_of(own[i].high), at[i]);
        }
        low[r].add(_mm256_add_epi8(_mm256_add_epi8(l[0], l[1]), _mm256_add_epi8(l[2], l[3])));
        high[r].add(_mm256_add_epi8(_mm256_add_epi8(h[0], h[1]), _mm256_add_epi8(h[2], h[3])));
      }
    }
    const F offset = Simd::set1(static_cast<float>(ntables * kHalf));
    for (int r = 0; r < NR; ++r) {
      const F scale = Simd::set1(unit[r]);
      float* at = scores + r * stride;
      const U even[2] = {low[r].even(), high[r].even()};
      add(_mm256_unpacklo_epi16(even[0], even[1]), offset, scale, at);
      add(_mm256_unpackhi_epi16(even[0], even[1]), offset, scale, at + 8);
      add(_mm256_unpacklo_epi16(low[r].odd, high[r].odd), offset, scale, at + 16);
      add(_mm256_unpackhi_epi16(low[r].odd, high[r].odd), offset, scale, at + 24);
    }
  }

  // 32 scores in the order of the atoms.
  static void sort(float* scores) {
    float sorted[kAtoms];
    for (int i = 0; i < kAtoms; ++i) sorted[atom_at(i)] = scores[i];
    for (int i = 0; i < kAtoms; i += L) Simd::store(scores + i, Simd::load(sorted + i));
  }

 private:
  static U bytes_of(const uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  }

  // Bytes 0, 1, 2, 3 of the words of 32 atoms; byte 16 h + 4 v + i of each vector is of atom 8 v + 4 h + i.
  static void byte_planes(const U (&words)[4], U (&plane)[4]) {
    const U gather = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                      0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    U x[4];
    for (int v = 0; v < 4; ++v) x[v] = _mm256_shuffle_epi8(words[v], gather);
    const U a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpacklo_epi32(x[2], x[3]);
    const U c = _mm256_unpackhi_epi32(x[0], x[1]), d = _mm256_unpackhi_epi32(x[2], x[3]);
    plane[0] = _mm256_unpacklo_epi64(a, b);
    plane[1] = _mm256_unpackhi_epi64(a, b);
    plane[2] = _mm256_unpacklo_epi64(c, d);
    plane[3] = _mm256_unpackhi_epi64(c, d);
  }

  // scores[8] += unit * (low + 64 high - offset) of four 16 bit numbers of each half of two vectors.
  static void add(U low_and_high, F offset, F unit, float* scores) {
    const U total = _mm256_madd_epi16(low_and_high, _mm256_set1_epi32(1 | kDigit << 16));
    Simd::store(scores, Simd::fma(Simd::sub(Simd::to_float(total), offset), unit, Simd::load(scores)));
  }

  // Which of 32 atoms a score is of, by its place.
  static int atom_at(int place) {
    const int odd = place / 16, half = place / 4 % 2, byte = 2 * (place / 8 % 2 * 4 + place % 4) + odd;
    return byte / 4 * 8 + half * 4 + byte % 4;
  }
};

}  // namespace
