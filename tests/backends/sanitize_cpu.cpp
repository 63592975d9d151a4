// Calls every function of the cpu backend's C interface on arrays of exactly the sizes it is promised, for
// test_cpu_sanitizers.py, which builds it with AddressSanitizer and UndefinedBehaviorSanitizer.
//
//   sanitize_cpu TABLE < SHAPES     TABLE: 32768 int16; SHAPES: lines "kind D K G B"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/interface.h"

using ddcm::Geometry;

namespace {

uint64_t state = 1;

uint32_t next() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 33);
}

// An array of its own, so that the sanitizer sees the first step past its end.
template <class T>
struct Array {
  std::unique_ptr<T[]> data;
  explicit Array(int64_t count) : data(new T[static_cast<size_t>(count)]) {}
  operator T*() { return data.get(); }
};

void fill(float* x, int64_t count, float size) {
  for (int64_t i = 0; i < count; ++i) x[i] = (static_cast<float>(next() % 2001) / 1000 - 1) * size;
}

void expect(int status, int wanted, const char* what) {
  if (status == wanted) return;
  std::fprintf(stderr, "%s returned %d\n", what, status);
  std::exit(3);
}

void check(int kind, int64_t dim, int64_t size, int64_t groups, int64_t batch, int threads) {
  constexpr uint64_t seed = 0x8000000123456789u;
  constexpr uint32_t step = 0xffffffffu;
  Geometry g;
  ddcm_cpu_geometry(kind, dim, size, groups, seed, &g);
  Array<float> r(batch * dim), w(batch * dim), z(batch * dim), unit(batch), bias(groups * size), shared(size);
  fill(bias, groups * size, 3);
  fill(shared, size, 3);
  shared[size / 2] = -std::numeric_limits<float>::infinity();
  const struct { float size; int scaled; } sizes[] = {{1, 0}, {1e-40f, 3}, {3e38f, 3}};
  for (const auto& s : sizes)
    for (int together = 0; together < 2; ++together) {
      fill(r, batch * dim, s.size);
      for (int64_t row = 0; row < batch; ++row) r[row * dim] = s.size;
      expect(ddcm_cpu_enter(&g, r, batch, together, w, unit, threads), s.scaled, "enter");
    }
  r[batch * dim - 1] = std::nanf("");
  expect(ddcm_cpu_enter(&g, r, batch, 0, w, unit, threads), 2, "enter");

  // Numbers that overflow, are lost or are none must be harmless too, whatever they give.
  for (const float scale : {1.0f, 1e-42f, 3e38f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    fill(r, batch * dim, 1);
    r[(batch - 1) * dim + dim / 2] *= scale;
    expect(ddcm_cpu_to_codebook_order(&g, r, batch, w, threads), 0, "to_codebook_order");
    expect(ddcm_cpu_to_image_order(&g, w, batch, z, threads), 0, "to_image_order");
    Array<float> scores(batch * groups * size), norms(groups * size);
    expect(ddcm_cpu_scores(&g, w, batch, step, scores, nullptr, threads), 0, "scores");
    expect(ddcm_cpu_scores(&g, w, batch, step, scores, norms, threads), 0, "scores");
    for (int way = 0; way < (scale == 1 ? 6 : 1); ++way) {
      const float* b = way < 2 ? nullptr : way < 4 ? static_cast<float*>(shared) : static_cast<float*>(bias);
      Array<int64_t> index(batch * groups);
      Array<int8_t> sign(batch * groups);
      Array<float> score(batch * groups);
      expect(ddcm_cpu_search(&g, w, batch, step, way & 1, b, way >= 4, index, sign, score, threads), 0, "search");
      for (const int64_t m : {int64_t{1}, std::min<int64_t>(3, size), std::min<int64_t>(1024, size)}) {
        Array<int64_t> indices(batch * groups * m);
        Array<int8_t> signs(batch * groups * m);
        Array<float> best(batch * groups * m);
        expect(ddcm_cpu_topk(&g, w, batch, step, m, way & 1, b, way >= 4, indices, signs, best, threads), 0, "topk");
      }
    }
  }
  for (const int bits : {1, 3, 8}) {  // a trellis of the largest memory, up to 8 bits, that has `size` atoms or fewer
    int memory = 8;
    while (memory >= bits && (int64_t{1} << (memory + bits - 1)) > size) --memory;
    if (memory < bits) continue;
    ddcm::Geometry trellis;
    ddcm_cpu_geometry(kind, dim, int64_t{1} << (memory + bits - 1), groups, 3, &trellis);
    Array<int64_t> letters(batch * groups);
    expect(ddcm_cpu_trellis_search(&trellis, w, batch, step, bits, letters, threads), 0, "trellis_search");
  }
  for (const int64_t m : {0, 1, 3}) {
    Array<int64_t> index(batch * groups * m);
    Array<float> coefficient(batch * groups * m);
    for (int64_t i = 0; i < batch * groups * m; ++i) index[i] = next() % size;
    if (m > 1) index[0] = -1, index[1] = std::numeric_limits<int64_t>::max(), index[2] = size - 1;
    fill(coefficient, batch * groups * m, 2);
    expect(ddcm_cpu_combine(&g, index, coefficient, batch, m, step, z, threads), 0, "combine");
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int16_t> table(ddcm::kGaussianTableSize);
  std::FILE* file = argc == 2 ? std::fopen(argv[1], "rb") : nullptr;
  if (file == nullptr || std::fread(table.data(), 2, table.size(), file) != table.size()) return 2;
  std::fclose(file);
  ddcm_cpu_set_table(table.data());
  std::vector<std::vector<long long>> shapes;
  long long kind, dim, size, groups, batch;
  while (std::scanf("%lld %lld %lld %lld %lld", &kind, &dim, &size, &groups, &batch) == 5)
    shapes.push_back({kind, dim, size, groups, batch});
  for (const char* name : {"portable", "avx2", "avx512", "avx512vnni"}) {
    if (ddcm_cpu_select(name) != 0) continue;
    for (const auto& s : shapes)
      for (const int threads : {1, 3}) check(static_cast<int>(s[0]), s[1], s[2], s[3], s[4], threads);
    std::printf("%s: %zu shapes\n", name, shapes.size());
  }
  return 0;
}
