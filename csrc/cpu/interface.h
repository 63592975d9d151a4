// The cpu backend's C interface: codebook operations on host memory. interface.cpp defines it; the operations are in
// driver.h.
//
// Every operation takes the geometry of a codebook (ddcm_cpu_geometry), dense row-major arrays and the number of
// threads to use, and returns 0, 1 if memory ran out, or 2 if a signal ended it (pool.h). Shapes: B rows (batch),
// D = dim, G = groups, K = size. Residuals `w` and sums `y` are float32 (B, D) in codebook order (docs/noise-law.md).
// The caller checks shapes and ranges. Results are independent of the number of threads.

#pragma once

#include <cstdint>

#include "../noise.h"

#if defined(_WIN32)
#define DDCM_API extern "C" __declspec(dllexport)
#else
#define DDCM_API extern "C" __attribute__((visibility("default")))
#endif

// Takes T of section 4 (32768 int16). Must be called once, before anything else.
DDCM_API void ddcm_cpu_set_table(const int16_t* table);

// Takes Python's functions: see Interpreter in pool.h. For a caller that holds the interpreter's lock.
DDCM_API void ddcm_cpu_set_interpreter(void* (*save_thread)(), void (*restore_thread)(void*), int (*check_signals)());

// Chooses the instruction set: "avx512vnni", "avx512", "avx2", "portable", or "auto" for the best one here.
// Returns 0, or 1 if it is unknown, was not compiled, this machine lacks it, or its Gaussians are wrong.
DDCM_API int ddcm_cpu_select(const char* name);

// Name of the chosen instruction set.
DDCM_API const char* ddcm_cpu_selected();

DDCM_API void ddcm_cpu_geometry(int kind, int64_t dim, int64_t size, int64_t groups, uint64_t seed,
                                ddcm::Geometry* out);

// w = R^T r: (B, D) -> (B, D).
DDCM_API int ddcm_cpu_to_codebook_order(const ddcm::Geometry* g, const float* r, int64_t batch, float* w, int threads);

// The same of rows brought into range: ddcm_fast.codebook.reference.enter, by whose rule unit (B) is filled. Returns 3
// if any of them is not 1, 2 if r has NaN or infinite entries (w and unit are then not written).
DDCM_API int ddcm_cpu_enter(const ddcm::Geometry* g, const float* r, int64_t batch, int together, float* w,
                            float* unit, int threads);

// z = R y: (B, D) -> (B, D).
DDCM_API int ddcm_cpu_to_image_order(const ddcm::Geometry* g, const float* y, int64_t batch, float* z, int threads);

// All scores: out (B, G, K). norms (G, K), or null: squared norms of all atoms.
DDCM_API int ddcm_cpu_scores(const ddcm::Geometry* g, const float* w, int64_t batch, uint32_t step, float* out,
                             float* norms, int threads);

// The best atom of each group: index, sign, score (B, G). bias is null, (K,) or, with bias_per_group, (G, K). A row
// with NaN or infinite entries gets index -1.
DDCM_API int ddcm_cpu_search(const ddcm::Geometry* g, const float* w, int64_t batch, uint32_t step, int is_signed,
                             const float* bias, int bias_per_group, int64_t* index, int8_t* sign, float* score,
                             int threads);

// The m best atoms of each group, best first: index, sign, score (B, G, m); otherwise as search.
DDCM_API int ddcm_cpu_topk(const ddcm::Geometry* g, const float* w, int64_t batch, uint32_t step, int64_t m,
                           int is_signed, const float* bias, int bias_per_group, int64_t* index, int8_t* sign,
                           float* score, int threads);

// The letters (B, G) of the best path through a trellis of letter_bits, 1 to 8: see driver.h.
DDCM_API int ddcm_cpu_trellis_search(const ddcm::Geometry* g, const float* w, int64_t batch, uint32_t step,
                                     int letter_bits, int64_t* letters, int threads);

// Weighted sums of atoms (section 6): index, coefficient (B, G, m) -> y (B, D). Indices outside the codebook are
// clamped into it.
DDCM_API int ddcm_cpu_combine(const ddcm::Geometry* g, const int64_t* index, const float* coefficient, int64_t batch,
                              int64_t m, uint32_t step, float* y, int threads);
