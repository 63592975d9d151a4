// Scores of `sign` by table lookup and of `gaussian` by multiplication. Included by simd.h.

#pragma once

namespace {

// ---- sign: scores by table lookup ---------------------------------------------------------------
//
// Four neighbouring coordinates have 16 patterns of signs and so 16 partial scores, which are made
// once for all atoms of a task; an atom then costs one 16 entry lookup in registers and one addition
// per four entries. Tables of one tile of coordinates and the words of a block of atoms stay in the
// first level cache; rows of the batch share the words.
//
// Partial scores are fixed point: a tile's coordinates are multiplied by a power of two that brings
// the sum of their magnitudes just below 2^30, and rounded to integers. Sums of a tile are then exact,
// and integer additions run on more units than float ones. Rounding the coordinates adds at most
// 2^-30 of that sum's mean magnitude to each: as little as float32 itself.

constexpr int kSignTileCalls = 2;
constexpr int kSignTables = kSignTileCalls * kSignsPerCall / 4;
constexpr int kSignVectors = 8;  // vectors of atoms whose words are held at once

// scores of NV vectors of atoms and NR rows, one tile: nwords Philox words of 8 tables each.
// words: [word][kSignVectors][L]; tables: [table][NR][16]; sum * unit[row] is added to
// scores[row][vector].
template <int NV, int NR>
inline void sign_lookups(const uint32_t* words, int nwords, const int32_t* tables, const float* unit,
                         float* scores, int64_t stride) {
  U acc[NV][NR];
  for (int v = 0; v < NV; ++v)
    for (int r = 0; r < NR; ++r) acc[v][r] = Simd::set1_u(0);
  for (int q = 0; q < nwords; ++q) {
    U index[NV];
    for (int v = 0; v < NV; ++v) index[v] = Simd::load_u(words + (q * kSignVectors + v) * L);
// Not unrolled: GCC would reassociate the sums and spill.
#pragma GCC unroll 1
    for (int j = 0; j < 8; ++j) {
      for (int r = 0; r < NR; ++r)
        for (int v = 0; v < NV; ++v)
          acc[v][r] = Simd::add_u(acc[v][r], Simd::lookup16(tables + r * 16, index[v]));
      for (int v = 0; v < NV; ++v) index[v] = Simd::shift4(index[v]);
      tables += NR * 16;
    }
  }
  for (int r = 0; r < NR; ++r) {
    const F scale = Simd::set1(unit[r]);
    for (int v = 0; v < NV; ++v) {
      float* s = scores + r * stride + v * L;
      Simd::store(s, Simd::fma(Simd::to_float(acc[v][r]), scale, Simd::load(s)));
    }
  }
}

template <int NR>
inline void sign_lookup_block(const uint32_t* words, int vectors, int nwords, const int32_t* tables,
                              const float* unit, float* scores, int64_t stride) {
  constexpr int NV = NR == 1 ? 8 : 4;  // many sums in flight, few loads of tables (measured)
  int v = 0;
  for (; v + NV <= vectors; v += NV)
    sign_lookups<NV, NR>(words + v * L, nwords, tables, unit, scores + v * L, stride);
  for (; v < vectors; ++v)
    sign_lookups<1, NR>(words + v * L, nwords, tables, unit, scores + v * L, stride);
}

// The sum of |x[i]|, 0 <= i < count.
inline float magnitudes(const float* x, int64_t count) {
  F total = Simd::set1(0.0f);
  int64_t i = 0;
  for (; i + L <= count; i += L) total = Simd::add(total, Simd::abs_(Simd::load(x + i)));
  alignas(64) float part[L];
  Simd::store(part, total);
  float sum = 0;
  for (int l = 0; l < L; ++l) sum += part[l];
  for (; i < count; ++i) sum += __builtin_fabsf(x[i]);
  return sum;
}

// Tables of one row and tile: `entries` coordinates from w on, zeros up to `ntables` * 4. Returns what
// one unit of the tables is worth, a power of two.
inline float sign_tables(const float* w, int64_t entries, int ntables, int32_t* tables, int nr) {
  alignas(64) float padded[kSignTables * 4] = {};
  alignas(64) uint32_t fixed[kSignTables * 4];
  for (int64_t i = 0; i < entries; ++i) padded[i] = w[i];
  const float sum = magnitudes(padded, ntables * 4);
  // sum < 2^exponent. The bounds keep 2^(30 - exponent) and its inverse normal float32 numbers; 256
  // finite entries stay below 2^136, and infinite ones make numbers that the caller discards.
  int exponent = 136;
  if (sum <= 0x1.fp127f) __builtin_frexpf(sum, &exponent);
  if (exponent < -90) exponent = -90;
  const F per_unit = Simd::set1(__builtin_ldexpf(1.0f, 30 - exponent));
  for (int i = 0; i < ntables * 4; i += L)
    Simd::store_u(fixed + i, Simd::to_int(Simd::mul(Simd::load(padded + i), per_unit)));

  // -x is ~x + 1: table = sum over c of (x_c ^ mask_c), plus the number of ones of the pattern.
  alignas(64) uint32_t mask[4][16], ones[16];
  for (uint32_t p = 0; p < 16; ++p) {
    ones[p] = 0;
    for (int c = 0; c < 4; ++c) {
      mask[c][p] = (p >> c) & 1 ? ~0u : 0u;
      ones[p] += (p >> c) & 1;
    }
  }
  for (int at = 0; at < 16; at += L) {
    U negative[4];
    for (int c = 0; c < 4; ++c) negative[c] = Simd::load_u(mask[c] + at);
    const U count = Simd::load_u(ones + at);
    for (int t = 0; t < ntables; ++t) {
      U x[4];
      for (int c = 0; c < 4; ++c) x[c] = Simd::xor_u(Simd::set1_u(fixed[t * 4 + c]), negative[c]);
      const U value = Simd::add_u(Simd::add_u(Simd::add_u(x[0], x[1]), Simd::add_u(x[2], x[3])), count);
      Simd::store_u(reinterpret_cast<uint32_t*>(tables) + static_cast<int64_t>(t) * nr * 16 + at, value);
    }
  }
  return __builtin_ldexpf(1.0f, exponent - 30);
}

// Rows are taken in blocks of 4, then 2, then 1, whose tables are interleaved: [block][table][row][16].
inline int row_block(int rows_left) { return rows_left >= 4 ? 4 : rows_left >= 2 ? 2 : 1; }

void sign_scores(const ScoreTask& task) {
  const Geometry& geometry = *task.geometry;
  const Schedule s(geometry.key());
  int32_t* tables = static_cast<int32_t*>(task.scratch);
  float unit[kMaxRows];
  alignas(64) uint32_t words[kSignTileCalls * 4 * kSignVectors * L];
  const int vectors = (task.count + L - 1) / L;
  for (int r = 0; r < task.rows; ++r)
    for (int v = 0; v < vectors; ++v)
      Simd::store(task.scores + r * task.stride + v * L, Simd::set1(0.0f));

  constexpr int64_t tile = kSignTileCalls * kSignsPerCall;
  for (int64_t start = 0; start < task.group_dim; start += tile) {
    const int64_t left = task.group_dim - start;
    const int64_t entries = left < tile ? left : tile;
    const int nwords = static_cast<int>((entries + 31) / 32);
    const int calls = (nwords + 3) / 4;
    for (int r = 0; r < task.rows;) {
      const int nr = row_block(task.rows - r);
      for (int i = 0; i < nr; ++i)
        unit[r + i] = sign_tables(task.w + (r + i) * task.row_stride + start, entries, nwords * 8,
                                  tables + static_cast<int64_t>(r) * kSignTables * 16 + i * 16, nr);
      r += nr;
    }
    CallConstants constants[kSignTileCalls];
    for (int c = 0; c < calls; ++c)
      constants[c] = call_constants(s, geometry.block(task.group, start / kSignsPerCall + c),
                                    task.step, kStreamSign);

    for (int v0 = 0; v0 < vectors; v0 += kSignVectors) {
      const int nv = vectors - v0 < kSignVectors ? vectors - v0 : kSignVectors;
      for (int v = 0; v < nv; v += 2) {
        // Past the last vector the second half of a pair is made too, and not used.
        AtomLanes atoms[2];
        for (int i = 0; i < 2; ++i) {
          const uint32_t first = static_cast<uint32_t>(task.first) +
                                 static_cast<uint32_t>((v0 + v + i) * L);
          atoms[i] = atom_lanes(s, Simd::add_u(Simd::iota_u(), Simd::set1_u(first)), task.step);
        }
        for (int c = 0; c < calls; ++c) {
          U out[2][4];
          philox_atoms<2>(s, atoms, constants[c], out);
          for (int q = 0; q < 4; ++q)
            for (int i = 0; i < 2; ++i)
              Simd::store_u(words + ((c * 4 + q) * kSignVectors + v + i) * L, out[i][q]);
        }
      }
      for (int r = 0; r < task.rows;) {
        const int nr = row_block(task.rows - r);
        const int32_t* t = tables + static_cast<int64_t>(r) * kSignTables * 16;
        float* scores = task.scores + r * task.stride + v0 * L;
        if (nr == 4)
          sign_lookup_block<4>(words, nv, nwords, t, unit + r, scores, task.stride);
        else if (nr == 2)
          sign_lookup_block<2>(words, nv, nwords, t, unit + r, scores, task.stride);
        else
          sign_lookup_block<1>(words, nv, nwords, t, unit + r, scores, task.stride);
        r += nr;
      }
    }
  }
}

// ---- gaussian: scores by multiplication ---------------------------------------------------------

constexpr int kGaussianTileCalls = 4;
constexpr int kGaussianTile = kGaussianTileCalls * kGaussiansPerCall;
constexpr int kGaussianVectors = 2;

// Grid Gaussians in 1/256ths of one tile and two vectors of atoms: values[entry][vector][L].
inline void gaussian_values(const Schedule& s, const AtomLanes (&atoms)[kGaussianVectors],
                            const CallConstants* constants, int calls, float* values) {
  for (int c = 0; c < calls; ++c) {
    U out[kGaussianVectors][4];
    philox_atoms<kGaussianVectors>(s, atoms, constants[c], out);
    for (int q = 0; q < 4; ++q) {
      const U words[2] = {out[0][q], out[1][q]};
      F low[2], high[2];
      Simd::gaussians(words, low, high);
      float* at = values + (c * 8 + q * 2) * kGaussianVectors * L;
      for (int v = 0; v < kGaussianVectors; ++v) {
        Simd::store(at + v * L, low[v]);
        Simd::store(at + (kGaussianVectors + v) * L, high[v]);
      }
    }
  }
}

template <int NR>
inline void gaussian_products(const float* values, const float* w, int64_t row_stride,
                              int64_t entries, float* scores, int64_t stride) {
  F acc[NR][kGaussianVectors];
  for (int r = 0; r < NR; ++r)
    for (int v = 0; v < kGaussianVectors; ++v) acc[r][v] = Simd::set1(0.0f);
  for (int64_t i = 0; i < entries; ++i) {
    F y[kGaussianVectors];
    for (int v = 0; v < kGaussianVectors; ++v)
      y[v] = Simd::load(values + (i * kGaussianVectors + v) * L);
    for (int r = 0; r < NR; ++r) {
      const F x = Simd::set1(w[r * row_stride + i]);
      for (int v = 0; v < kGaussianVectors; ++v) acc[r][v] = Simd::fma(y[v], x, acc[r][v]);
    }
  }
  const F scale = Simd::set1(kGaussianScale);
  for (int r = 0; r < NR; ++r)
    for (int v = 0; v < kGaussianVectors; ++v) {
      float* at = scores + r * stride + v * L;
      Simd::store(at, Simd::fma(acc[r][v], scale, Simd::load(at)));
    }
}

// norms[vector][L] += the squares of a tile's entries. A call at a time: the sum of 8 squares of at most
// 1107 is below 2^24, so float32 is exact.
inline void add_gaussian_squares(const float* values, int64_t entries, uint64_t* norms) {
  alignas(64) uint32_t part[L];
  for (int v = 0; v < kGaussianVectors; ++v) {
    U total = Simd::set1_u(0);
    for (int64_t start = 0; start < entries; start += kGaussiansPerCall) {
      const int64_t left = entries - start;
      const int64_t count = left < kGaussiansPerCall ? left : kGaussiansPerCall;
      F sum = Simd::set1(0.0f);
      for (int64_t i = start; i < start + count; ++i) {
        const F y = Simd::load(values + (i * kGaussianVectors + v) * L);
        sum = Simd::fma(y, y, sum);
      }
      total = Simd::add_u(total, Simd::to_int(sum));
    }
    Simd::store_u(part, total);
    for (int l = 0; l < L; ++l) norms[v * L + l] += part[l];
  }
}

void gaussian_scores(const ScoreTask& task) {
  const Geometry& geometry = *task.geometry;
  const Schedule s(geometry.key());
  alignas(64) float values[kGaussianTile * kGaussianVectors * L];
  // The last pair of vectors may be half unused: it is written to the scratch and copied.
  const int vectors = (task.count + L - 1) / L;
  float* odd = static_cast<float*>(task.scratch);  // [rows][2][L]
  for (int r = 0; r < task.rows; ++r) {
    for (int v = 0; v < vectors; ++v)
      Simd::store(task.scores + r * task.stride + v * L, Simd::set1(0.0f));
    for (int v = 0; v < kGaussianVectors; ++v)
      Simd::store(odd + (r * kGaussianVectors + v) * L, Simd::set1(0.0f));
  }
  if (task.norms)
    for (int i = 0; i < (vectors + 1) / kGaussianVectors * kGaussianVectors * L; ++i) task.norms[i] = 0;

  for (int64_t start = 0; start < task.group_dim; start += kGaussianTile) {
    const int64_t left = task.group_dim - start;
    const int64_t entries = left < kGaussianTile ? left : kGaussianTile;
    const int calls = static_cast<int>((entries + 7) / 8);
    CallConstants constants[kGaussianTileCalls];
    for (int c = 0; c < calls; ++c)
      constants[c] = call_constants(s, geometry.block(task.group, start / kGaussiansPerCall + c),
                                    task.step, kStreamGaussian);
    for (int v = 0; v < vectors; v += kGaussianVectors) {
      AtomLanes atoms[kGaussianVectors];
      for (int i = 0; i < kGaussianVectors; ++i) {
        const uint32_t first =
            static_cast<uint32_t>(task.first) + static_cast<uint32_t>((v + i) * L);
        atoms[i] = atom_lanes(s, Simd::add_u(Simd::iota_u(), Simd::set1_u(first)), task.step);
      }
      gaussian_values(s, atoms, constants, calls, values);
      if (task.norms) add_gaussian_squares(values, entries, task.norms + v * L);
      const bool complete = v + kGaussianVectors <= vectors;
      float* scores = complete ? task.scores + v * L : odd;
      const int64_t stride = complete ? task.stride : kGaussianVectors * L;
      const float* w = task.w + start;
      int r = 0;
      for (; r + 8 <= task.rows; r += 8)
        gaussian_products<8>(values, w + r * task.row_stride, task.row_stride, entries,
                             scores + r * stride, stride);
      for (; r + 4 <= task.rows; r += 4)
        gaussian_products<4>(values, w + r * task.row_stride, task.row_stride, entries,
                             scores + r * stride, stride);
      for (; r < task.rows; ++r)
        gaussian_products<1>(values, w + r * task.row_stride, task.row_stride, entries,
                             scores + r * stride, stride);
    }
  }
  if (vectors % kGaussianVectors)
    for (int r = 0; r < task.rows; ++r)
      Simd::store(task.scores + r * task.stride + (vectors - 1) * L,
                  Simd::load(odd + r * kGaussianVectors * L));
}

}  // namespace
