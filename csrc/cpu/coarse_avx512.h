// Coarse scores with AVX-512: look-ups of 16 bit numbers, 32 at once. Included by avx512.cpp.
//
// A halfword of a Philox word has the signs of 16 coordinates: 5, 5 and 6 bits of it are the indices of three tables,
// whose entries are in 32700ths of the sum of the tile's magnitudes. A sum of a tile thus fits 16 bits, whatever its
// parts did on the way, and a look-up and an addition serve 32 atoms and up to 6 coordinates.

#pragma once

namespace {

struct Coarse {
  static constexpr int kTogether = 2;
  static constexpr int kRows = 4;                // rows that share the loads of indices
  static constexpr int kHalves = kSignTables / 4;  // halfwords of a tile
  static constexpr float kLargest = 32700;       // what rounding adds stays below 2^15

  struct alignas(64) Table {
    int16_t a[32], b[32], c[64];  // of bits 0 to 4, 5 to 9 and 10 to 15
  };
  struct Tables {
    Table half[kHalves];
  };
  struct alignas(64) Index {
    uint32_t half[kHalves][2][L];  // of atoms 2 L v + i and 2 L v + L + i in the halves of lane i of vector v
  };

  // Word q of the atoms of vectors 2 v and 2 v + 1.
  static void store(const U (&words)[2], int q, int v, Index& index) {
    Simd::store_u(index.half[2 * q][v], _mm512_mask_blend_epi16(kOdd, words[0], _mm512_slli_epi32(words[1], 16)));
    Simd::store_u(index.half[2 * q + 1][v], _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(words[0], 16), words[1]));
  }

  // Tables of one row and tile, as sign_tables takes them. Returns what one unit is worth, and adds to `margin` by how
  // much the tile's part of a score can be wrong.
  static float make(const float* w, int64_t entries, int nwords, Tables& tables, double& margin) {
    alignas(64) float x[kSignTables * 4] = {};
    const float total = magnitudes(w, entries);
    // Below that its inverse is no number: the tile counts as zero.
    const bool none = total < 0x1p-100f;
    const float unit = none ? 0.0f : total / kLargest, per_unit = none ? 0.0f : kLargest / total;
    for (int64_t i = 0; i < entries; ++i) x[i] = w[i];
    for (int i = 0; i < 32 * nwords; i += L) Simd::store(x + i, Simd::mul(Simd::load(x + i), Simd::set1(per_unit)));
    // Half a unit for rounding a sum, and what float32 itself misses.
    margin += none ? static_cast<double>(total) : 6 * nwords * 0.51 * static_cast<double>(unit);
    for (int h = 0; h < 2 * nwords; ++h) {
      const float* own = x + 16 * h;
      Table& table = tables.half[h];
      const F a = signed_sums(own), b = signed_sums(own + 5), c = signed_sums(own + 10);
      store(add(a, own[4]), sub(a, own[4]), table.a);
      store(add(b, own[9]), sub(b, own[9]), table.b);
      const F plus = add(c, own[14]), minus = sub(c, own[14]);
      store(add(plus, own[15]), add(minus, own[15]), table.c);
      store(sub(plus, own[15]), sub(minus, own[15]), table.c + 32);
    }
    return unit;
  }

  // One tile, 4 L atoms and NR rows: sum * unit[row] is added to scores[row].
  template <int NR>
  static void look_up(const Index& index, int nwords, const Tables* tables, const float* unit, float* scores,
                      int64_t stride) {
    U acc[NR][2];
    for (int r = 0; r < NR; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_si512();
    for (int h = 0; h < 2 * nwords; ++h) {
      U at[2][3];
      for (int v = 0; v < 2; ++v) {
        at[v][0] = Simd::load_u(index.half[h][v]);
        at[v][1] = _mm512_srli_epi16(at[v][0], 5);
        at[v][2] = _mm512_srli_epi16(at[v][0], 10);
      }
      for (int r = 0; r < NR; ++r) {
        const Table& own = tables[r].half[h];
        const U a = load(own.a), b = load(own.b), low = load(own.c), high = load(own.c + 32);
        for (int v = 0; v < 2; ++v) {
          // These read the low five and six bits of an index only.
          acc[r][v] = _mm512_add_epi16(acc[r][v], _mm512_permutexvar_epi16(at[v][0], a));
          acc[r][v] = _mm512_add_epi16(acc[r][v], _mm512_permutexvar_epi16(at[v][1], b));
          acc[r][v] = _mm512_add_epi16(acc[r][v], _mm512_permutex2var_epi16(low, at[v][2], high));
        }
      }
    }
    for (int r = 0; r < NR; ++r) {
      const F scale = Simd::set1(unit[r]);
      for (int v = 0; v < 2; ++v) {
        const U even = _mm512_srai_epi32(_mm512_slli_epi32(acc[r][v], 16), 16), odd = _mm512_srai_epi32(acc[r][v], 16);
        float* out = scores + r * stride + 2 * v * L;
        Simd::store(out, Simd::fma(Simd::to_float(even), scale, Simd::load(out)));
        Simd::store(out + L, Simd::fma(Simd::to_float(odd), scale, Simd::load(out + L)));
      }
    }
  }

  // Scores are in the order of the atoms as they are.
  static void sort(float*) {}

 private:
  static constexpr __mmask32 kOdd = 0xaaaaaaaau;

  static U load(const int16_t* p) { return _mm512_load_si512(p); }
  static F add(F x, float y) { return Simd::add(x, Simd::set1(y)); }
  static F sub(F x, float y) { return Simd::sub(x, Simd::set1(y)); }

  // To the nearest integers, which fit.
  static void store(F first, F second, int16_t* table) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(table), _mm512_cvtepi32_epi16(Simd::to_int(first)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(table + 16), _mm512_cvtepi32_epi16(Simd::to_int(second)));
  }
};

}  // namespace
