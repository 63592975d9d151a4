// A small persistent pool of threads, and calls that Ctrl-C ends.
//
// Results never depend on the pool: tasks write disjoint outputs or merge with an order-free rule.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <type_traits>

namespace ddcm {
namespace cpu {

// What a call needs of Python's C interface: PyEval_SaveThread, PyEval_RestoreThread and
// PyErr_CheckSignals. Set once at load by a caller that holds the interpreter's lock (the GIL) at every call;
// null for any other.
struct Interpreter {
  void* (*save_thread)();
  void (*restore_thread)(void*);
  int (*check_signals)();
};
extern Interpreter interpreter;

// Thrown by run_tasks in a call that a signal ended: Python's exception is set.
struct Interrupted {};

// One call of the C interface, on the thread that makes it. While it lives the interpreter's lock is
// released; ten times a second the calling thread takes it to let Python's signal handlers run
// (they do on Python's main thread only), and where one raises an exception the call is over.
class Call {
 public:
  Call();
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // The calling thread's innermost.
  static Call& current();

  // Whether to stop. For any thread of the pool between pieces of work; worker 0 asks the interpreter.
  bool interrupted(int worker) {
    if (worker == 0) check_signals();
    return interrupted_.load(std::memory_order_relaxed);
  }

 private:
  using Clock = std::chrono::steady_clock;

  void check_signals();

  Call* const outer_;  // a signal handler can make a call of its own
  void* thread_state_;
  Clock::time_point last_check_;
  std::atomic<bool> interrupted_{false};
};

using TaskFunction = void (*)(void* context, int64_t task, int worker);

// Calls function(context, t, worker) for t = 0 .. tasks - 1, on up to `threads` threads, the calling
// one included; worker (0 .. threads - 1) is the caller's for one thread at a time. A pool already at
// work for another thread is not waited for: the tasks then run on the calling thread alone. Throws
// Interrupted if the current call was, with tasks left out.
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
