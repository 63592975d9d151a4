// Scores of `sign` to 12 bits, and the exact ones of the few atoms that could be the best. Included by avx2.cpp.
//
// A search wants one atom of K. A look-up of bytes serves 32 atoms where one of int32 serves 8, so scores are first
// made from tables of 12 bits, with a bound on their error: whatever could still be the best is scored again as
// search_simd.h does it, and nothing else is. What is found is thus what exact scores of all atoms would find.
//
// A table has the 16 partial scores of four neighbouring coordinates, in 2047ths of the tile's largest, as two numbers
// of 6 bits: four such add up in a byte. The bytes of the words of 32 atoms are sorted into vectors of one byte each,
// whose nibbles are then the indices of one table (as in Andre, Kermarrec and Le Scouarnec 2017, "fast scan").

#pragma once

namespace {

constexpr int kCoarseAtoms = 32, kCoarseBlocks = 4;  // blocks of atoms whose indices are held at once
constexpr int kCoarseHalf = 2048, kCoarseDigit = 64;

struct alignas(32) CoarseTable {
  uint8_t low[16], high[16];
};

inline U bytes_of(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}

// Bytes 0, 1, 2, 3 of the words of 32 atoms; byte 16 h + 4 v + i of each vector is of atom 8 v + 4 h + i.
inline void byte_planes(const U (&words)[4], U (&plane)[4]) {
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

// Tables of one row and tile, as sign_tables takes them. Returns what one unit is worth, and adds to `margin` by how
// much the tile's part of a score can be wrong.
inline float coarse_tables(const float* w, int64_t entries, int ntables, CoarseTable* tables, double& margin) {
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
  const float per_unit = none ? 0.0f : (kCoarseHalf - 1) / largest;
  const float unit = none ? 0.0f : largest / (kCoarseHalf - 1);
  // Half a unit for rounding a sum, and what float32 itself misses.
  margin += ntables * (none ? static_cast<double>(largest) : 0.502 * static_cast<double>(unit));
  const F scale = Simd::set1(per_unit);
  const F sign0 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), sign1 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
  const F sign2 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
  const U half = _mm256_set1_epi16(kCoarseHalf), digit = _mm256_set1_epi16(kCoarseDigit - 1);
  for (int t = 0; t < ntables; ++t) {
    const float* x = padded + 4 * t;
    const F two = Simd::fma(Simd::set1(x[1]), sign1, Simd::mul(Simd::set1(x[0]), sign0));
    const F three = Simd::mul(Simd::fma(Simd::set1(x[2]), sign2, two), scale);
    const F last = Simd::mul(Simd::set1(x[3]), scale);
    const U both = _mm256_packs_epi32(Simd::to_int(Simd::add(three, last)), Simd::to_int(Simd::sub(three, last)));
    const U value = _mm256_add_epi16(_mm256_permute4x64_epi64(both, 0xd8), half);
    const U digits = _mm256_packus_epi16(_mm256_and_si256(value, digit), _mm256_srli_epi16(value, 6));
    _mm256_store_si256(reinterpret_cast<U*>(tables + t), _mm256_permute4x64_epi64(digits, 0xd8));
  }
  return unit;
}

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

// scores[8] += unit * (low + 64 high - offset) of four 16 bit numbers of each half of two vectors.
inline void add_coarse(U low_and_high, F offset, F unit, float* scores) {
  const U total = _mm256_madd_epi16(low_and_high, _mm256_set1_epi32(1 | kCoarseDigit << 16));
  Simd::store(scores, Simd::fma(Simd::sub(Simd::to_float(total), offset), unit, Simd::load(scores)));
}

// One tile, 32 atoms and NR rows: index[table][32]; a row's tables are kSignTables further than those of the row
// before. Scores are in the order that the bytes are in, see coarse_place.
template <int NR>
inline void coarse_lookups(const uint8_t* index, int ntables, const CoarseTable* tables, const float* unit,
                           float* scores, int64_t stride) {
  ByteSums low[NR], high[NR];
  for (int r = 0; r < NR; ++r) {
    low[r].clear();
    high[r].clear();
  }
  for (int t = 0; t < ntables; t += 4) {
    U at[4];
    for (int i = 0; i < 4; ++i) at[i] = _mm256_load_si256(reinterpret_cast<const U*>(index + (t + i) * kCoarseAtoms));
    for (int r = 0; r < NR; ++r) {
      const CoarseTable* own = tables + r * kSignTables + t;
      U l[4], h[4];
      for (int i = 0; i < 4; ++i) {
        l[i] = _mm256_shuffle_epi8(bytes_of(own[i].low), at[i]);
        h[i] = _mm256_shuffle_epi8(bytes_of(own[i].high), at[i]);
      }
      low[r].add(_mm256_add_epi8(_mm256_add_epi8(l[0], l[1]), _mm256_add_epi8(l[2], l[3])));
      high[r].add(_mm256_add_epi8(_mm256_add_epi8(h[0], h[1]), _mm256_add_epi8(h[2], h[3])));
    }
  }
  const F offset = Simd::set1(static_cast<float>(ntables * kCoarseHalf));
  for (int r = 0; r < NR; ++r) {
    const F scale = Simd::set1(unit[r]);
    float* at = scores + r * stride;
    const U even[2] = {low[r].even(), high[r].even()};
    add_coarse(_mm256_unpacklo_epi16(even[0], even[1]), offset, scale, at);
    add_coarse(_mm256_unpackhi_epi16(even[0], even[1]), offset, scale, at + 8);
    add_coarse(_mm256_unpacklo_epi16(low[r].odd, high[r].odd), offset, scale, at + 16);
    add_coarse(_mm256_unpackhi_epi16(low[r].odd, high[r].odd), offset, scale, at + 24);
  }
}

// Which of 32 atoms a score is of, by its place.
inline int coarse_place(int place) {
  const int odd = place / 16, half = place / 4 % 2, byte = 2 * (place / 8 % 2 * 4 + place % 4) + odd;
  return byte / 4 * 8 + half * 4 + byte % 4;
}

// Indices into the tables of one tile of the 32 atoms from `first` on.
inline void coarse_indices(const Schedule& s, const CallConstants* constants, int calls, uint32_t first, uint32_t step,
                           uint8_t* index) {
  AtomLanes atoms[2][2];
  for (int v = 0; v < 4; ++v) {
    const U atom = Simd::add_u(Simd::iota_u(), Simd::set1_u(first + static_cast<uint32_t>(v * L)));
    atoms[v / 2][v % 2] = atom_lanes(s, atom, step);
  }
  const U nibble = _mm256_set1_epi8(15);
  for (int c = 0; c < calls; ++c) {
    U out[2][2][4];
    for (int pair = 0; pair < 2; ++pair) philox_atoms<2>(s, atoms[pair], constants[c], out[pair]);
    for (int q = 0; q < 4; ++q) {
      const U words[4] = {out[0][0][q], out[0][1][q], out[1][0][q], out[1][1][q]};
      U plane[4];
      byte_planes(words, plane);
      for (int b = 0; b < 4; ++b) {
        U* at = reinterpret_cast<U*>(index + ((c * 4 + q) * 8 + b * 2) * kCoarseAtoms);
        _mm256_store_si256(at, _mm256_and_si256(plane[b], nibble));
        _mm256_store_si256(at + 1, _mm256_and_si256(_mm256_srli_epi16(plane[b], 4), nibble));
      }
    }
  }
}

void coarse_sign_scores(const ScoreTask& task, float* margin) {
  const Geometry& geometry = *task.geometry;
  const Schedule s(geometry.key());
  CoarseTable* tables = static_cast<CoarseTable*>(task.scratch);
  alignas(32) uint8_t index[kCoarseBlocks][kSignTables * kCoarseAtoms];
  const int count = (task.count + kCoarseAtoms - 1) / kCoarseAtoms * kCoarseAtoms;
  float unit[kMaxRows];
  double wrong[kMaxRows];
  for (int r = 0; r < task.rows; ++r) {
    wrong[r] = 0;
    for (int i = 0; i < count; i += L) Simd::store(task.scores + r * task.stride + i, Simd::set1(0.0f));
  }
  constexpr int64_t tile = kSignTileCalls * kSignsPerCall;
  for (int64_t start = 0; start < task.group_dim; start += tile) {
    const int64_t left = task.group_dim - start;
    const int64_t entries = left < tile ? left : tile;
    const int nwords = static_cast<int>((entries + 31) / 32), ntables = nwords * 8, calls = (nwords + 3) / 4;
    for (int r = 0; r < task.rows; ++r)
      unit[r] = coarse_tables(task.w + r * task.row_stride + start, entries, ntables, tables + r * kSignTables,
                              wrong[r]);
    CallConstants constants[kSignTileCalls];
    for (int c = 0; c < calls; ++c)
      constants[c] = call_constants(s, geometry.block(task.group, start / kSignsPerCall + c), task.step, kStreamSign);
    for (int first = 0; first < count; first += kCoarseBlocks * kCoarseAtoms) {
      const int rest = (count - first) / kCoarseAtoms, blocks = rest < kCoarseBlocks ? rest : kCoarseBlocks;
      for (int b = 0; b < blocks; ++b) {
        const uint32_t atom = static_cast<uint32_t>(task.first) + static_cast<uint32_t>(first + b * kCoarseAtoms);
        coarse_indices(s, constants, calls, atom, task.step, index[b]);
      }
      for (int r = 0; r < task.rows; r += 2) {
        const CoarseTable* own = tables + r * kSignTables;
        float* scores = task.scores + r * task.stride + first;
        for (int b = 0; b < blocks; ++b, scores += kCoarseAtoms) {
          if (r + 2 <= task.rows)
            coarse_lookups<2>(index[b], ntables, own, unit + r, scores, task.stride);
          else
            coarse_lookups<1>(index[b], ntables, own, unit + r, scores, task.stride);
        }
      }
    }
  }
  for (int r = 0; r < task.rows; ++r) {
    float total = 0;
    for (int64_t i = 0; i < task.group_dim; ++i) total += __builtin_fabsf(task.w[r * task.row_stride + i]);
    // A tile adds a rounding of float32 to both sums, none larger than all magnitudes together.
    const double tiles = static_cast<double>((task.group_dim + tile - 1) / tile);
    margin[r] = static_cast<float>(wrong[r] * 1.0001 + static_cast<double>(total) * (tiles + 2) * 0x1p-22);
    for (int first = 0; first < count; first += kCoarseAtoms) {
      float* scores = task.scores + r * task.stride + first;
      float sorted[kCoarseAtoms];
      for (int i = 0; i < kCoarseAtoms; ++i) sorted[coarse_place(i)] = scores[i];
      for (int i = 0; i < kCoarseAtoms; i += L) Simd::store(scores + i, Simd::load(sorted + i));
    }
  }
}

void listed_sign_scores(const ScoreTask& task, int row, const uint32_t* atoms, int count, float* out) {
  const Geometry& geometry = *task.geometry;
  const Schedule s(geometry.key());
  int32_t* tables = static_cast<int32_t*>(task.scratch);
  alignas(64) uint32_t words[kSignTileCalls * 4 * kSignVectors * L];
  for (int i = 0; i < count; i += L) Simd::store(out + i, Simd::set1(0.0f));
  constexpr int64_t tile = kSignTileCalls * kSignsPerCall;
  for (int64_t start = 0; start < task.group_dim; start += tile) {
    const int64_t left = task.group_dim - start;
    const int64_t entries = left < tile ? left : tile;
    const int nwords = static_cast<int>((entries + 31) / 32), calls = (nwords + 3) / 4;
    const float unit = sign_tables(task.w + row * task.row_stride + start, entries, nwords * 8, tables, 1);
    for (int i = 0; i < count; i += L) {
      const AtomLanes own[1] = {atom_lanes(s, Simd::load_u(atoms + i), task.step)};
      for (int c = 0; c < calls; ++c) {
        U words_of_call[1][4];
        const CallConstants constants =
            call_constants(s, geometry.block(task.group, start / kSignsPerCall + c), task.step, kStreamSign);
        philox_atoms<1>(s, own, constants, words_of_call);
        for (int q = 0; q < 4; ++q) Simd::store_u(words + (c * 4 + q) * kSignVectors * L, words_of_call[0][q]);
      }
      sign_lookups<1, 1>(words, nwords, tables, &unit, out + i, 0);
    }
  }
}

}  // namespace
