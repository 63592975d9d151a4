// The kernels as templates over one instruction set. The including file defines, in an anonymous
// namespace inside ddcm::cpu, a struct `Simd` with
//
//   lanes                      8 or 16
//   F, U, Wide                 vectors of `lanes` float32, uint32, and 64 bit products
//   load, store, set1, add, sub, mul, fma, max_, abs_   on F (load and store unaligned)
//   load_u, store_u, set1_u, iota_u, add_u, shift4      on U
//   widen, narrow, product, high, xor2, xor3            Philox arithmetic (see philox() below)
//   lookup16(table, index)     table[index & 15] of 16 int32
//   to_float, to_int           between F and U read as int32; to the nearest integer
//   gaussians(words, low, high)  grid Gaussians, in 1/256ths, of the low and high halfwords of two vectors
//   flip(x, bits)              x with the sign of lane l flipped where bit l is set
//   butterfly<h>(x)            one Hadamard stage inside a vector, h = 1, 2, 4 (and 8)
//   exchange(x, row)           lane l <- lane l ^ row
//   above(a, b)                bit l: a[l] > b[l]; at_least(a, b): a[l] >= b[l]
//   select(bits, a, b)         lane l: bit l ? a : b; select_u the same for U
//   gather(x, position)        x[position[l]]
//   advance(position, stride, dim)  (position + stride) mod dim, unsigned, sums below 2^32
//
// Lanes are atoms in the score kernels and neighbouring coordinates everywhere else.

namespace {

using F = Simd::F;
using U = Simd::U;
using Wide = Simd::Wide;
constexpr int L = Simd::lanes;

// ---- Philox with the work that atoms or blocks share taken out ----------------------------------

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
    const int64_t here = count - first < L ? count - first : L;
    for (int64_t l = 0; l < here; ++l)
      for (int q = 0; q < 4; ++q) out[(first + l) * 4 + q] = words[q][l];
  }
}

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

// Tables of one row and tile: `entries` coordinates from w on, zeros up to `ntables` * 4. Returns what
// one unit of the tables is worth, a power of two.
inline float sign_tables(const float* w, int64_t entries, int ntables, int32_t* tables, int nr) {
  alignas(64) float padded[kSignTables * 4] = {};
  alignas(64) uint32_t fixed[kSignTables * 4];
  for (int64_t i = 0; i < entries; ++i) padded[i] = w[i];
  F total = Simd::set1(0.0f);
  for (int i = 0; i < ntables * 4; i += L) total = Simd::add(total, Simd::abs_(Simd::load(padded + i)));
  alignas(64) float part[L];
  Simd::store(part, total);
  float sum = 0;
  for (int l = 0; l < L; ++l) sum += part[l];
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
      const bool whole = v + kGaussianVectors <= vectors;
      float* scores = whole ? task.scores + v * L : odd;
      const int64_t stride = whole ? task.stride : kGaussianVectors * L;
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

// ---- Hadamard transforms ------------------------------------------------------------------------

inline void small_transform(float* x, int n) {
  for (int h = 1; h < n; h *= 2)
    for (int i = 0; i < n; ++i)
      if (!(i & h)) {
        const float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
}

inline F vector_stages(F v) {
  v = Simd::butterfly<1>(v);
  v = Simd::butterfly<2>(v);
  v = Simd::butterfly<4>(v);
  if constexpr (L == 16) v = Simd::butterfly<8>(v);
  return v;
}

// log2(R) stages h, 2h, .., h * R / 2 (h counted in vectors), h >= 1.
template <int R>
inline void vector_pass(float* x, int vectors, int h) {
  for (int base = 0; base < vectors; base += h * R)
    for (int i = base; i < base + h; ++i) {
      F v[R];
      for (int r = 0; r < R; ++r) v[r] = Simd::load(x + (i + r * h) * L);
#pragma GCC unroll 4
      for (int step = 1; step < R; step *= 2)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
          if (!(r & step)) {
            const F a = v[r], b = v[r + step];
            v[r] = Simd::add(a, b);
            v[r + step] = Simd::sub(a, b);
          }
      for (int r = 0; r < R; ++r) Simd::store(x + (i + r * h) * L, v[r]);
    }
}

void transform(float* x, int n) {
  if (n < L) {
    small_transform(x, n);
    return;
  }
  const int vectors = n / L;
  for (int v = 0; v < vectors; ++v)
    Simd::store(x + v * L, vector_stages(Simd::load(x + v * L)));
  int h = 1;
  for (; h * 8 <= vectors; h *= 8) vector_pass<8>(x, vectors, h);
  if (h * 4 <= vectors) {
    vector_pass<4>(x, vectors, h);
    h *= 4;
  }
  if (h * 2 <= vectors) vector_pass<2>(x, vectors, h);
}

void scale(float* x, int64_t count, float factor) {
  int64_t i = 0;
  const F f = Simd::set1(factor);
  for (; i + L <= count; i += L) Simd::store(x + i, Simd::mul(Simd::load(x + i), f));
  for (; i < count; ++i) x[i] *= factor;
}

// Bits i .. i + L - 1 of a run of words, i a multiple of L.
inline uint32_t lane_bits(const uint32_t* words, int64_t i) {
  return words[i >> 5] >> (i & 31) & (L == 32 ? ~0u : (1u << L) - 1);
}

inline float scalar_sign(const uint32_t* words, int64_t i) {
  return words[i >> 5] >> (i & 31) & 1 ? -1.0f : 1.0f;
}

void flip(const float* x, const uint32_t* words, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + L <= count; i += L)
    Simd::store(out + i, Simd::flip(Simd::load(x + i), lane_bits(words, i)));
  for (; i < count; ++i) out[i] = x[i] * scalar_sign(words, i);
}

// ---- hadamard: scores by two transforms ---------------------------------------------------------

// Scratch: d and e words (n / 32 each), then one buffer of n floats.
void hadamard_scores(const ScoreTask& task) {
  const Geometry& geometry = *task.geometry;
  const int n = geometry.hadamard_n;
  const int64_t calls = geometry.calls_per_sub_block();
  uint32_t* outer = static_cast<uint32_t*>(task.scratch);
  uint32_t* inner = outer + calls * 4;
  float* x = reinterpret_cast<float*>(inner + calls * 4);
  const uint32_t pair = static_cast<uint32_t>(task.first / static_cast<uint64_t>(n));
  for (int64_t c = 0; c < geometry.sub_blocks; ++c) {
    const uint32_t block = geometry.block(task.group, c * calls);
    block_words(geometry.key(), block, calls, pair, task.step, kStreamInner, inner);
    block_words(geometry.key(), block, calls, pair, task.step, kStreamOuter, outer);
    const int64_t left = task.group_dim - c * n;
    const int64_t entries = left < 0 ? 0 : left < n ? left : n;
    for (int r = 0; r < task.rows; ++r) {
      float* sum = task.scores + r * task.stride;
      float* buffer = c == 0 ? sum : x;
      flip(task.w + r * task.row_stride + c * n, outer, entries, buffer);
      for (int64_t i = entries; i < n; ++i) buffer[i] = 0.0f;
      transform(buffer, n);
      for (int i = 0; i < n; i += L) {
        const F y = Simd::flip(Simd::load(buffer + i), lane_bits(inner, i));
        Simd::store(sum + i, c == 0 ? y : Simd::add(Simd::load(sum + i), y));
      }
    }
  }
  for (int r = 0; r < task.rows; ++r) {
    transform(task.scores + r * task.stride, n);
    scale(task.scores + r * task.stride, n, hadamard_scale(n));
  }
}

int64_t scratch_bytes(const Geometry& geometry, int rows) {
  if (geometry.kind == kHadamard)
    return geometry.calls_per_sub_block() * 32 + geometry.hadamard_n * 4;
  if (geometry.kind == kSign) return static_cast<int64_t>(rows) * kSignTables * 16 * 4;
  return static_cast<int64_t>(rows) * kGaussianVectors * L * 4;
}

void scores(const ScoreTask& task) {
  if (task.geometry->kind == kGaussian)
    gaussian_scores(task);
  else if (task.geometry->kind == kSign)
    sign_scores(task);
  else
    hadamard_scores(task);
}

// ---- selection ----------------------------------------------------------------------------------

inline float scalar_value(const float* scores, const float* bias, int i, bool is_signed) {
  float v = scores[i];
  if (is_signed && v < 0) v = -v;
  return bias ? v + bias[i] : v;
}

inline F vector_value(const float* scores, const float* bias, int i, bool is_signed) {
  F v = Simd::load(scores + i);
  if (is_signed) v = Simd::abs_(v);
  return bias ? Simd::add(v, Simd::load(bias + i)) : v;
}

Best argmax(const float* scores, const float* bias, int count, bool is_signed) {
  const float lowest = -__builtin_inff();
  Best best{lowest, 0};
  int i = 0;
  if (count >= L) {
    // Each lane keeps its first largest value, so the lower index wins inside a lane.
    F value = Simd::set1(lowest);
    U index = Simd::iota_u(), at = Simd::iota_u();
    const U lanes = Simd::set1_u(L);
    for (; i + L <= count; i += L) {
      const F v = vector_value(scores, bias, i, is_signed);
      const uint32_t better = Simd::above(v, value);
      value = Simd::select(better, v, value);
      index = Simd::select_u(better, at, index);
      at = Simd::add_u(at, lanes);
    }
    float values[L];
    uint32_t indices[L];
    Simd::store(values, value);
    Simd::store_u(indices, index);
    best.index = static_cast<int>(indices[0]);
    best.value = values[0];
    for (int l = 1; l < L; ++l) {
      const int k = static_cast<int>(indices[l]);
      if (values[l] > best.value || (values[l] == best.value && k < best.index))
        best = Best{values[l], k};
    }
  }
  for (; i < count; ++i) {
    const float v = scalar_value(scores, bias, i, is_signed);
    if (v > best.value) best = Best{v, i};
  }
  return best;
}

int filter(const float* scores, const float* bias, int count, bool is_signed, float threshold,
           int* position, float* value) {
  const float lowest = -__builtin_inff();
  const F least = Simd::set1(threshold), floor = Simd::set1(lowest);
  int found = 0, i = 0;
  for (; i + L <= count; i += L) {
    // max_ takes its second operand where the first is NaN.
    const F v = Simd::max_(vector_value(scores, bias, i, is_signed), floor);
    uint32_t bits = Simd::at_least(v, least);
    if (!bits) continue;
    float values[L];
    Simd::store(values, v);
    for (; bits; bits &= bits - 1) {
      const int l = __builtin_ctz(bits);
      position[found] = i + l;
      value[found++] = values[l];
    }
  }
  for (; i < count; ++i) {
    float v = scalar_value(scores, bias, i, is_signed);
    if (!(v > lowest)) v = lowest;
    if (v >= threshold) {
      position[found] = i;
      value[found++] = v;
    }
  }
  return found;
}

// ---- synthesis: bit for bit the law -------------------------------------------------------------

void add_signs(float* y, const uint32_t* words, int64_t count, float c) {
  const F value = Simd::set1(c);
  int64_t i = 0;
  for (; i + L <= count; i += L)
    Simd::store(y + i, Simd::add(Simd::load(y + i), Simd::flip(value, lane_bits(words, i))));
  for (; i < count; ++i) y[i] = y[i] + c * scalar_sign(words, i);
}

// The integers q of 2 * L words in order: out[4 * L].
inline void ordered_gaussians(const uint32_t* words, float* out) {
  const U in[2] = {Simd::load_u(words), Simd::load_u(words + L)};
  F low[2], high[2];
  Simd::gaussians(in, low, high);
  alignas(64) float even[2 * L], odd[2 * L];
  for (int v = 0; v < 2; ++v) {
    Simd::store(even + v * L, low[v]);
    Simd::store(odd + v * L, high[v]);
  }
  for (int l = 0; l < 2 * L; ++l) {
    out[2 * l] = even[l];
    out[2 * l + 1] = odd[l];
  }
}

void gaussian_integers(const uint32_t* words, int64_t count, float* out) {
  alignas(64) uint32_t in[2 * L] = {};
  alignas(64) float q[4 * L];
  for (int64_t i = 0; i < count; i += 4 * L) {
    const int64_t here = count - i < 4 * L ? count - i : 4 * L;
    for (int64_t l = 0; l < (here + 1) / 2; ++l) in[l] = words[i / 2 + l];
    ordered_gaussians(in, q);
    for (int64_t l = 0; l < here; ++l) out[i + l] = q[l];
  }
}

void add_gaussians(float* y, const uint32_t* words, int64_t count, float c) {
  const F value = Simd::set1(c), grid = Simd::set1(kGaussianScale);
  alignas(64) float q[4 * L];
  for (int64_t i = 0; i < count; i += 4 * L) {
    if (i + 4 * L <= count) {
      ordered_gaussians(words + i / 2, q);
      for (int part = 0; part < 4 * L; part += L) {
        const F entry = Simd::mul(Simd::load(q + part), grid);
        Simd::store(y + i + part, Simd::add(Simd::load(y + i + part), Simd::mul(value, entry)));
      }
    } else {
      gaussian_integers(words + i / 2, count - i, q);
      for (int64_t l = 0; i + l < count; ++l) {
        const float entry = q[l] * kGaussianScale;
        y[i + l] = y[i + l] + c * entry;
      }
    }
  }
}

void add_hadamard(float* y, const uint32_t* words, const float* s, int row, int64_t count,
                  float c) {
  const F value = Simd::set1(c);
  const int within = row & (L - 1), across = row & ~(L - 1);
  int64_t l = 0;
  for (; l + L <= count; l += L) {
    const F entry = Simd::flip(Simd::exchange(Simd::load(s + (l ^ across)), within),
                               lane_bits(words, l));
    Simd::store(y + l, Simd::add(Simd::load(y + l), Simd::mul(value, entry)));
  }
  for (; l < count; ++l) y[l] = y[l] + c * (scalar_sign(words, l) * s[l ^ row]);
}

void gather(const float* x, int64_t dim, int64_t start, int64_t stride, int64_t count, float* out) {
  int64_t i = 0;
  if (count >= L) {
    alignas(64) uint32_t first[L];
    for (int l = 0; l < L; ++l) first[l] = static_cast<uint32_t>((start + l * stride) % dim);
    U position = Simd::load_u(first);
    const U jump = Simd::set1_u(static_cast<uint32_t>(L * stride % dim));
    const U d = Simd::set1_u(static_cast<uint32_t>(dim));
    for (; i + L <= count; i += L) {
      Simd::store(out + i, Simd::gather(x, position));
      position = Simd::advance(position, jump, d);
    }
  }
  for (; i < count; ++i) out[i] = x[(start + i * stride) % dim];
}

constexpr Kernels make_kernels(const char* name) {
  return Kernels{name,      scratch_bytes, scores,       argmax,    filter,
                 block_words, flip, add_signs, add_gaussians, gaussian_integers, add_hadamard,
                 transform, scale, gather};
}

}  // namespace
