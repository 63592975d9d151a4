// The C interface of the operations: kernels.cu and emulate.cpp define DDCM_LAUNCH and include this once.
//
// Pointers are to device memory (host memory in the emulation); `stream` is a cudaStream_t. Shapes are those of
// ddcm_fast.codebook.reference. 0 is success; other codes go to ddcm_error_string. Workspaces have the size the ddcm_*_workspace
// function of the operation returns.

#pragma once

#include "driver.h"

#define DDCM_API extern "C" __attribute__((visibility("default")))

using namespace ddcm;

DDCM_API int64_t ddcm_search_workspace(const Spec* spec, int64_t batch) {
  Arena arena{nullptr};
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{}, *spec, nullptr, nullptr);
  driver.search(arena, nullptr, batch, Ranking{}, Chosen{});
  return arena.used;
}

DDCM_API int64_t ddcm_scores_workspace(const Spec* spec, int64_t batch, int64_t count) {
  Arena arena{nullptr};
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{}, *spec, nullptr, nullptr);
  driver.scores(arena, nullptr, batch, 0, count, nullptr, nullptr);
  return arena.used;
}

DDCM_API int64_t ddcm_topk_workspace(const Spec* spec, int64_t batch, int64_t m) {
  Arena arena{nullptr};
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{}, *spec, nullptr, nullptr);
  driver.topk(arena, nullptr, batch, m, Ranking{}, Chosen{});
  return arena.used;
}

DDCM_API int64_t ddcm_trellis_workspace(const Spec* spec, int64_t batch, int64_t letter_bits) {
  Arena arena{nullptr};
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{}, *spec, nullptr, nullptr);
  driver.trellis(arena, nullptr, batch, static_cast<int>(letter_bits), nullptr);
  return arena.used;
}

DDCM_API int ddcm_rotate(const Spec* spec, const float* in, float* out, int64_t batch, int inverse,
                         void* stream) {
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{stream}, *spec, nullptr, nullptr);
  return driver.rotate(in, out, batch, inverse != 0);
}

// ddcm_rotate to codebook order of rows brought into range: peaks (B) with stride 1, or one with stride 0; unit (B).
DDCM_API int ddcm_enter(const Spec* spec, const float* in, const float* peaks, int64_t stride, float* out, float* unit,
                        int64_t batch, void* stream) {
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{stream}, *spec, nullptr, nullptr);
  return driver.rotate(in, out, batch, false, Entering{peaks, stride, unit});
}

DDCM_API int ddcm_search(const Spec* spec, const float* w, int64_t batch, const int64_t* step,
                         const float* bias, int64_t bias_stride, int is_signed, const void* tables,
                         void* workspace, int64_t* index, int8_t* sign, float* score, void* stream) {
  Arena arena{static_cast<char*>(workspace)};
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{stream}, *spec, step, tables);
  return driver.search(arena, w, batch, Ranking{bias, bias_stride, is_signed, 0}, Chosen{index, sign, score});
}

DDCM_API int ddcm_topk(const Spec* spec, const float* w, int64_t batch, const int64_t* step, int64_t m,
                       const float* bias, int64_t bias_stride, int is_signed, const void* tables,
                       void* workspace, int64_t* index, int8_t* sign, float* score, void* stream) {
  Arena arena{static_cast<char*>(workspace)};
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{stream}, *spec, step, tables);
  return driver.topk(arena, w, batch, m, Ranking{bias, bias_stride, is_signed, 0}, Chosen{index, sign, score});
}

// Scores of atoms first .. first + count - 1 (`hadamard`: first is a multiple of n): out (B, G, count). norms is null or,
// with first = 0 and count = K, (G, K): squared norms of all atoms.
DDCM_API int ddcm_scores(const Spec* spec, const float* w, int64_t batch, const int64_t* step, int64_t first,
                         int64_t count, const void* tables, void* workspace, float* out, float* norms,
                         void* stream) {
  Arena arena{static_cast<char*>(workspace)};
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{stream}, *spec, step, tables);
  return driver.scores(arena, w, batch, first, count, out, norms);
}

// K = 2^(memory + letter_bits - 1): letters (B, G).
DDCM_API int ddcm_trellis(const Spec* spec, const float* w, int64_t batch, const int64_t* step, int64_t letter_bits,
                          const void* tables, void* workspace, int64_t* letters, void* stream) {
  Arena arena{static_cast<char*>(workspace)};
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{stream}, *spec, step, tables);
  return driver.trellis(arena, w, batch, static_cast<int>(letter_bits), letters);
}

DDCM_API int ddcm_combine(const Spec* spec, const int64_t* index, const float* coefficient, int64_t batch,
                          int64_t m, const int64_t* step, const void* tables, float* y, void* stream) {
  Driver<DDCM_LAUNCH> driver(DDCM_LAUNCH{stream}, *spec, step, tables);
  return driver.combine(index, coefficient, y, batch, m);
}

DDCM_API const char* ddcm_error_string(int code) {
  return code == kTooLarge ? "the operation needs more than 2^31 - 1 thread blocks" : DDCM_LAUNCH::describe(code);
}
