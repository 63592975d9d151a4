// What one instruction set must provide: the table of kernels that portable.cpp, avx2.cpp,
// avx512.cpp and avx512vnni.cpp each fill from the same templates (simd.h). driver.cpp picks a table at run
// time, divides the work into tasks and merges their results.
//
// The files behind these tables are compiled with different -m flags. They therefore share no inline
// function that the linker could merge: noise.h is always_inline, everything else sits in anonymous
// namespaces, and no standard library template is used in them.

#pragma once

#include <cstdint>

#include "../noise.h"

namespace ddcm {
namespace cpu {

// Rows of a residual batch that share one generation of the noise in one task.
constexpr int kMaxRows = 256;

// Atoms of a `gaussian` or `sign` task; scores are written in whole vectors of at most 16 atoms.
constexpr int kMaxChunk = 8192;
constexpr int kChunkStep = 64;

// Scores of one run of atoms of one group against the rows of a batch.
struct ScoreTask {
  const Geometry* geometry;
  const float* w;      // first entry of the group in row 0, codebook order
  int64_t row_stride;  // entries from one row to the next (D)
  int rows;            // 1 .. kMaxRows
  int64_t group;
  int64_t group_dim;   // entries of this group
  uint32_t step;
  uint64_t first;      // first atom; `hadamard`: pair * n
  int count;           // atoms; `hadamard`: n (also where K cuts the pair short)
  float* scores;       // out: [rows][stride], 64 byte aligned, stride >= count rounded up to 16
  int64_t stride;
  uint64_t* norms;     // `gaussian`: out, or null: squared norms in 1/65536ths, count rounded up to 32
  void* scratch;       // scratch_bytes() bytes, 64 byte aligned, the calling thread's own
};

// One group's step through a trellis of 2^memory states (trellis.cpp): from state (high, low), high of letter_bits bits,
// a letter leads to the state (low, letter).
struct PathTask {
  const float* scores;  // of atom state * 2^(letter_bits - 1) + letter / 2
  const float* metric;  // of the best path to each state, and 16 more floats that may be read
  float* next;          // out: of the best path to each state after this group
  uint8_t* origin;      // out: high of the state that this path came from; the lowest of equals
  int letter_bits;
  int memory;
  int64_t first, last;  // of the pairs of new states (2 i, 2 i + 1) to make; first a multiple of 64
};

struct Best {
  float value;  // score + bias (or |score| + bias); -inf if no value exceeded -inf
  int index;    // within the chunk; the lowest index of equal values
};

struct Kernels {
  const char* name;

  // Bytes of scratch a task of this many rows needs.
  int64_t (*scratch_bytes)(const Geometry& geometry, int rows);

  // <y_k, w> of `count` atoms and all rows. The order of the additions depends on the atom and the
  // group only, so that results do not depend on chunks, rows or threads.
  void (*scores)(const ScoreTask& task);

  // Of `sign`, or both null: scores that are wrong by at most margin[row], and the exact ones, as `scores` makes them,
  // of the atoms of a list. `atoms` and `out` have room for count rounded up to 16.
  void (*coarse_scores)(const ScoreTask& task, float* margin);
  void (*listed_scores)(const ScoreTask& task, int row, const uint32_t* atoms, int count, float* out);

  // The best of `count` scores: |s| + bias[k] if is_signed, else s + bias[k]; bias may be null.
  Best (*argmax)(const float* scores, const float* bias, int count, bool is_signed);

  // Writes the positions of all values >= threshold, ascending, to `position` and their values to
  // `value`; returns how many. Values that are NaN count as -inf.
  int (*filter)(const float* scores, const float* bias, int count, bool is_signed, float threshold,
                int* position, float* value);

  // Extends the best paths by one group: + score for an even letter, - score for an odd one.
  void (*extend_paths)(const PathTask& task);

  // Words of the calls (block .. block + count - 1, atom, step, stream): out[call * 4 + word].
  void (*block_words)(Key key, uint32_t block, int64_t count, uint32_t atom, uint32_t step,
                      uint32_t stream, uint32_t* out);

  // x[i] *= sign i of the words (bit 1: -1), 0 <= i < count; out may be x.
  void (*flip)(const float* x, const uint32_t* words, int64_t count, float* out);

  // y[i] = y[i] + c * sign i of the words.
  void (*add_signs)(float* y, const uint32_t* words, int64_t count, float c);

  // y[i] = y[i] + c * gaussian i of the words (halfwords in order), the product rounded first.
  void (*add_gaussians)(float* y, const uint32_t* words, int64_t count, float c);

  // The integers q of section 4 of `count` halfwords, two a word.
  void (*gaussian_integers)(const uint32_t* words, int64_t count, float* out);

  // y[l] = y[l] + c * (sign l of the words * s[l ^ row]), 0 <= l < count <= n: section 4, hadamard.
  // s has n entries, a multiple of 64, and is 64 byte aligned.
  void (*add_hadamard)(float* y, const uint32_t* words, const float* s, int row, int64_t count,
                       float c);

  // Had_n without its scale, in place, stages in the law's order (section 5); n a power of 4.
  void (*transform)(float* x, int n);

  // x[i] *= factor.
  void (*scale)(float* x, int64_t count, float factor);

  // out[i] = x[(start + i * stride) % dim], 0 <= start, stride < dim < 2^31.
  void (*gather)(const float* x, int64_t dim, int64_t start, int64_t stride, int64_t count,
                 float* out);
};

// The table T of section 4 as float32 in 1/256ths, and its int16 original; set once at load.
struct GaussianTable {
  float value[kGaussianTableSize];
};
extern GaussianTable gaussian_table;

// Null where the file was compiled for another machine.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512vnni_kernels();

}  // namespace cpu
}  // namespace ddcm
