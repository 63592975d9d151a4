#include "driver.h"

#include <cstring>

namespace ddcm {
namespace cpu {

GaussianTable gaussian_table;
const Kernels* kernels = nullptr;

namespace {

bool supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512vnni"))
    return avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  if (!std::strcmp(name, "avx512")) return avx512;
  if (!std::strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(name, "portable");
}

// Whether a table of kernels makes every one of the 65536 grid Gaussians as the law's table says: some
// 50 microseconds, and a wrong vector unit or rounding mode cannot go unnoticed.
bool makes_gaussians(const Kernels& k) {
  constexpr int64_t halves = 2048;
  uint32_t words[halves / 2];
  float q[halves];
  for (int64_t first = 0; first < 2 * kGaussianTableSize; first += halves) {
    for (int64_t i = 0; i < halves; i += 2)
      words[i / 2] = static_cast<uint32_t>(first + i) | static_cast<uint32_t>(first + i + 1) << 16;
    k.gaussian_integers(words, halves, q);
    for (int64_t i = 0; i < halves; ++i) {
      const float expected = gaussian_table.value[(first + i) & 0x7fff];
      if (q[i] != ((first + i) & 0x8000 ? -expected : expected)) return false;
    }
  }
  return true;
}

}  // namespace

bool select_kernels(const char* name) {
  const Kernels* all[] = {avx512vnni_kernels(), avx512_kernels(), avx2_kernels(), portable_kernels()};
  for (const Kernels* k : all) {
    if (k == nullptr || !supported(k->name)) continue;
    if (std::strcmp(name, "auto") && std::strcmp(name, k->name)) continue;
    if (!makes_gaussians(*k)) continue;
    kernels = k;
    return true;
  }
  return false;
}

int useful_threads(double vector_operations, int threads) {
  const double share = vector_operations / 200000.0;
  return share < threads ? std::max(1, static_cast<int>(share)) : threads;
}

Plan::Plan(const Geometry& g, int64_t rows, int requested) {
  const int64_t atoms = g.size - g.first;
  double work;  // in operations on 16 entries
  if (g.kind == kHadamard) {
    const double n = g.hadamard_n;
    chunk = g.hadamard_n;
    chunks = ceil_div(atoms, chunk);
    work = static_cast<double>(g.groups * chunks * rows) * (g.sub_blocks + 1) * n / 4;
  } else {
    const double per_entry = (g.kind == kSign ? 0.1 : 1.0) + (g.kind == kSign ? 0.05 : 0.1) * rows;
    work = static_cast<double>(atoms) * static_cast<double>(g.dim) * per_entry;
    chunk = round_up(ceil_div(atoms, 4 * std::max(1, requested)), kChunkStep);
    chunk = std::min<int64_t>(std::max<int64_t>(chunk, 512), kMaxChunk);
    chunk = std::min(chunk, round_up(atoms, kChunkStep));
    // A task lasts some 0.1 seconds at most, or a call could not be interrupted in time.
    const int64_t shared_rows = std::min<int64_t>(rows, kMaxRows);
    int64_t longest = kChunkStep;
    if (g.kind == kGaussian) {
      longest = std::max(longest, (int64_t{1} << 28) / (g.max_group_dim * (1 + shared_rows / 8)));
    } else {  // whose tables are made anew for every task; beyond, scores leave the second level cache
      const int64_t interruptible = (int64_t{1} << 31) / (g.max_group_dim * (1 + shared_rows / 4));
      longest = std::max<int64_t>(2048, std::min<int64_t>(interruptible, (int64_t{1} << 17) / shared_rows));
    }
    chunk = std::min(chunk, longest / kChunkStep * kChunkStep);
    chunks = ceil_div(atoms, chunk);
  }
  threads = useful_threads(work, requested);
  row_block = static_cast<int>(std::min<int64_t>(rows, kMaxRows));
  if (g.kind == kHadamard && g.groups * chunks < 2 * threads)  // rows share little: split them
    row_block = static_cast<int>(
        std::min<int64_t>(row_block, ceil_div(rows * g.groups * chunks, 2 * threads)));
  row_blocks = ceil_div(rows, row_block);
  stride = round_up(chunk, 16);
  scores_bytes = round_up(row_block * stride * 4, 64);
  scratch_bytes = round_up(kernels->scratch_bytes(g, row_block), 64);
}

Chunk make_chunk(const Geometry& g, const Plan& plan, const float* w, int64_t batch, uint32_t step,
                 int64_t group, int64_t chunk, int64_t row_block, char* memory, uint64_t* norms, ScoreTask& task) {
  Chunk out;
  out.group = group;
  out.first = g.first + chunk * plan.chunk;
  out.count = static_cast<int>(std::min(plan.chunk, g.size - out.first));
  out.row = row_block * plan.row_block;
  out.rows = static_cast<int>(std::min<int64_t>(plan.row_block, batch - out.row));
  out.scores = reinterpret_cast<float*>(memory);
  out.stride = plan.stride;
  out.norms = norms;
  task.geometry = &g;
  task.w = w + out.row * g.dim + g.group_start(group);
  task.row_stride = g.dim;
  task.rows = out.rows;
  task.group = group;
  task.group_dim = g.group_dim(group);
  task.step = step;
  task.first = static_cast<uint64_t>(out.first);
  task.count = g.kind == kHadamard ? g.hadamard_n : out.count;
  task.scores = reinterpret_cast<float*>(memory);
  task.stride = plan.stride;
  task.norms = norms;
  task.scratch = memory + plan.scores_bytes;
  return out;
}

Chunk score_chunk(const Geometry& g, const Plan& plan, const float* w, int64_t batch, uint32_t step,
                  int64_t group, int64_t chunk, int64_t row_block, char* memory, uint64_t* norms) {
  ScoreTask task;
  const Chunk out = make_chunk(g, plan, w, batch, step, group, chunk, row_block, memory, norms, task);
  kernels->scores(task);
  return out;
}

bool finite(const float* x, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

}  // namespace cpu
}  // namespace ddcm
