#include "interface.h"

#include <new>

#include "driver.h"

using namespace ddcm;
using namespace ddcm::cpu;

namespace {

// Runs an operation as a call that Ctrl-C ends, and makes a status of its exceptions.
template <class Operation>
int status_of(Operation&& operation) {
  try {
    Call call;
    operation();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  } catch (const Interrupted&) {
    return 2;
  }
}

Ranking ranking_of(const Geometry& g, const float* bias, int bias_per_group, int is_signed) {
  return Ranking{bias, bias_per_group ? g.size : 0, is_signed != 0};
}

}  // namespace

DDCM_API void ddcm_cpu_set_table(const int16_t* table) {
  for (int j = 0; j < kGaussianTableSize; ++j) gaussian_table.value[j] = table[j];
}

DDCM_API void ddcm_cpu_set_interpreter(void* (*save_thread)(), void (*restore_thread)(void*), int (*check_signals)()) {
  interpreter = Interpreter{save_thread, restore_thread, check_signals};
}

DDCM_API int ddcm_cpu_select(const char* name) { return select_kernels(name) ? 0 : 1; }

DDCM_API const char* ddcm_cpu_selected() { return kernels == nullptr ? "" : kernels->name; }

DDCM_API void ddcm_cpu_geometry(int kind, int64_t dim, int64_t size, int64_t groups, uint64_t seed, Geometry* out) {
  *out = make_geometry(kind, dim, size, groups, seed);
}

DDCM_API int ddcm_cpu_to_codebook_order(const Geometry* g, const float* r, int64_t batch, float* w, int threads) {
  return status_of([&] { to_codebook_order(*g, r, batch, w, threads); });
}

DDCM_API int ddcm_cpu_enter(const Geometry* g, const float* r, int64_t batch, int together, float* w, float* unit,
                            int threads) {
  Entered entered = Entered::kPlain;
  const int failed = status_of([&] { entered = enter(*g, r, batch, together != 0, w, unit, threads); });
  if (failed) return failed;
  return entered == Entered::kPlain ? 0 : entered == Entered::kScaled ? 3 : 2;
}

DDCM_API int ddcm_cpu_to_image_order(const Geometry* g, const float* y, int64_t batch, float* z, int threads) {
  return status_of([&] { to_image_order(*g, y, batch, z, threads); });
}

DDCM_API int ddcm_cpu_scores(const Geometry* g, const float* w, int64_t batch, uint32_t step, float* out, float* norms,
                             int threads) {
  return status_of([&] { scores(*g, w, batch, step, out, norms, threads); });
}

DDCM_API int ddcm_cpu_search(const Geometry* g, const float* w, int64_t batch, uint32_t step, int is_signed,
                             const float* bias, int bias_per_group, int64_t* index, int8_t* sign, float* score,
                             int threads) {
  return status_of([&] {
    search(*g, w, batch, step, ranking_of(*g, bias, bias_per_group, is_signed), Chosen{index, sign, score}, threads);
  });
}

DDCM_API int ddcm_cpu_topk(const Geometry* g, const float* w, int64_t batch, uint32_t step, int64_t m, int is_signed,
                           const float* bias, int bias_per_group, int64_t* index, int8_t* sign, float* score,
                           int threads) {
  return status_of([&] {
    topk(*g, w, batch, step, m, ranking_of(*g, bias, bias_per_group, is_signed), Chosen{index, sign, score}, threads);
  });
}

DDCM_API int ddcm_cpu_trellis_search(const Geometry* g, const float* w, int64_t batch, uint32_t step, int letter_bits,
                                     int64_t* letters, int threads) {
  return status_of([&] { trellis_search(*g, w, batch, step, letter_bits, letters, threads); });
}

DDCM_API int ddcm_cpu_combine(const Geometry* g, const int64_t* index, const float* coefficient, int64_t batch,
                              int64_t m, uint32_t step, float* y, int threads) {
  return status_of([&] { combine(*g, index, coefficient, batch, m, step, y, threads); });
}
