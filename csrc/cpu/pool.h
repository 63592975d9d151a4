// A small persistent pool of threads.
//
// Results never depend on it: tasks write disjoint outputs or merge with an order-free rule.

#pragma once

#include <cstdint>
#include <type_traits>

namespace ddcm {
namespace cpu {

using TaskFunction = void (*)(void* context, int64_t task, int worker);

// Calls function(context, t, worker) for t = 0 .. tasks - 1, on up to `threads` threads, the calling
// one included; worker (0 .. threads - 1) is the caller's for one thread at a time. A pool already at
// work for another thread is not waited for: the tasks then run on the calling thread alone.
void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context);

template <class Function>
void parallel(int64_t tasks, int threads, Function&& function) {
  run_tasks(
      tasks, threads,
      [](void* context, int64_t task, int worker) {
        (*static_cast<typename std::remove_reference<Function>::type*>(context))(task, worker);
      },
      &function);
}

}  // namespace cpu
}  // namespace ddcm
