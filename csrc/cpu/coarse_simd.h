// Coarse scores of `sign`, and exact ones of the few atoms that could be the best. Included by avx2.cpp, avx512.cpp
// and avx512vnni.cpp.
//
// A search wants one atom of K. A look-up of bytes or of 16 bit numbers serves four times or twice as many atoms as one
// of int32, so scores are first made from tables of such, with a bound on their error: whatever could still be the best
// is scored again as search_simd.h does it, and nothing else is. What is found is thus what exact scores of all atoms
// would find.
//
// The including file defines, by coarse_avx2.h, coarse_avx512.h or coarse_vnni.h, a struct `Coarse` with
//
//   Index                      indices into the tables of one tile of 4 L atoms, or what they are made of
//   kTogether, store           vectors of atoms, 2 or 4, of which it takes one word at once
//   Tables, make               tables of one row and tile
//   kRows, look_up<NR>         one tile, 4 L atoms and NR rows, 1 to kRows, a power of two
//   sort                       4 L scores, when all tiles are done, in the order of the atoms

#pragma once

namespace {

constexpr int kCoarseAtoms = 4 * L, kCoarseBlocks = 4;  // blocks of atoms whose indices are held at once

// Indices into the tables of one tile of a block of atoms from `first` on. A template, so that only what `Own` has is
// compiled.
template <class Own>
inline void coarse_indices(const Schedule& s, const CallConstants* constants, int calls, uint32_t first, uint32_t step,
                           typename Own::Index& index) {
  AtomLanes atoms[2][2];
  for (int v = 0; v < 4; ++v) {
    const U atom = Simd::add_u(Simd::iota_u(), Simd::set1_u(first + static_cast<uint32_t>(v * L)));
    atoms[v / 2][v % 2] = atom_lanes(s, atom, step);
  }
  for (int c = 0; c < calls; ++c) {
    U out[2][2][4];
    for (int pair = 0; pair < 2; ++pair) {
      philox_atoms<2>(s, atoms[pair], constants[c], out[pair]);
      if constexpr (Own::kTogether == 2)
        for (int q = 0; q < 4; ++q) Own::store({out[pair][0][q], out[pair][1][q]}, c * 4 + q, pair, index);
    }
    if constexpr (Own::kTogether == 4)
      for (int q = 0; q < 4; ++q)
        Own::store({out[0][0][q], out[0][1][q], out[1][0][q], out[1][1][q]}, c * 4 + q, index);
  }
}

// One tile and some blocks of atoms of the rows from the `row`-th on, NR at once, then fewer. Returns the rows' number.
template <int NR>
inline int coarse_rows(const ScoreTask& task, const Coarse::Index* index, int blocks, int nwords, const float* unit,
                       int row, int first) {
  const Coarse::Tables* tables = static_cast<const Coarse::Tables*>(task.scratch);
  for (; row + NR <= task.rows; row += NR)
    for (int b = 0; b < blocks; ++b)
      Coarse::look_up<NR>(index[b], nwords, tables + row, unit + row,
                          task.scores + row * task.stride + first + b * kCoarseAtoms, task.stride);
  if constexpr (NR > 1) row = coarse_rows<NR / 2>(task, index, blocks, nwords, unit, row, first);
  return row;
}

void coarse_sign_scores(const ScoreTask& task, float* margin) {
  const Geometry& geometry = *task.geometry;
  const Schedule s(geometry.key());
  Coarse::Tables* tables = static_cast<Coarse::Tables*>(task.scratch);
  Coarse::Index index[kCoarseBlocks];
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
    const int nwords = static_cast<int>((entries + 31) / 32), calls = (nwords + 3) / 4;
    for (int r = 0; r < task.rows; ++r)
      unit[r] = Coarse::make(task.w + r * task.row_stride + start, entries, nwords, tables[r], wrong[r]);
    CallConstants constants[kSignTileCalls];
    for (int c = 0; c < calls; ++c)
      constants[c] = call_constants(s, geometry.block(task.group, start / kSignsPerCall + c), task.step, kStreamSign);
    for (int first = 0; first < count; first += kCoarseBlocks * kCoarseAtoms) {
      const int rest = (count - first) / kCoarseAtoms, blocks = rest < kCoarseBlocks ? rest : kCoarseBlocks;
      for (int b = 0; b < blocks; ++b) {
        const uint32_t atom = static_cast<uint32_t>(task.first) + static_cast<uint32_t>(first + b * kCoarseAtoms);
        coarse_indices<Coarse>(s, constants, calls, atom, task.step, index[b]);
      }
      coarse_rows<Coarse::kRows>(task, index, blocks, nwords, unit, 0, first);
    }
  }
  for (int r = 0; r < task.rows; ++r) {
    const float total = magnitudes(task.w + r * task.row_stride, task.group_dim);
    // A tile adds a rounding of float32 to both sums, none larger than all magnitudes together.
    const double tiles = static_cast<double>((task.group_dim + tile - 1) / tile);
    margin[r] = static_cast<float>(wrong[r] * 1.0001 + static_cast<double>(total) * (tiles + 2) * 0x1p-22);
    for (int first = 0; first < count; first += kCoarseAtoms) Coarse::sort(task.scores + r * task.stride + first);
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
