#include "fibers.h"

#include <sanitizer/tsan_interface.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace fibers {
namespace {

constexpr int kStackBytes = 256 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* thread = nullptr;  // ThreadSanitizer's
  int index = 0;
  bool running = false;
};

std::vector<std::unique_ptr<Fiber>> pool;
Fiber* current;
ucontext_t scheduler;
void* scheduler_thread;
void (*body)(void*, int);
void* argument;
bool progress;
char start_token, end_token;

void leave() {
  __tsan_switch_to_fiber(scheduler_thread, __tsan_switch_to_fiber_no_sync);
  swapcontext(&current->context, &scheduler);
}

void main_of_fiber() {
  for (;;) {
    __tsan_acquire(&start_token);
    body(argument, current->index);
    __tsan_release(&end_token);
    current->running = false;
    progress = true;
    leave();
  }
}

}  // namespace

void run(int count, void (*body_)(void*, int), void* argument_) {
  body = body_;
  argument = argument_;
  scheduler_thread = __tsan_get_current_fiber();
  while (static_cast<int>(pool.size()) < count) {
    auto fiber = std::make_unique<Fiber>();
    fiber->thread = __tsan_create_fiber(0);
    fiber->index = static_cast<int>(pool.size());
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber->context, main_of_fiber, 0);
    pool.push_back(std::move(fiber));
  }
  __tsan_release(&start_token);
  for (int i = 0; i < count; ++i) pool[i]->running = true;
  for (bool left = true; left;) {
    left = progress = false;
    for (int i = 0; i < count; ++i) {
      if (!pool[i]->running) continue;
      left = true;
      current = pool[i].get();
      __tsan_switch_to_fiber(current->thread, __tsan_switch_to_fiber_no_sync);
      swapcontext(&scheduler, &current->context);
    }
    if (left && !progress) {
      std::fputs("deadlock: not all threads reach a barrier\n", stderr);
      std::exit(3);
    }
  }
  __tsan_acquire(&end_token);
}

void Barrier::wait(void (*last)(void*), void* argument_of_last) {
  const int generation = generation_;
  char* token = &tokens_[generation % 2];
  __tsan_release(token);
  if (++arrived_ == count_) {
    __tsan_acquire(token);
    if (last != nullptr) last(argument_of_last);
    __tsan_release(token);
    arrived_ = 0;
    ++generation_;
    progress = true;
  }
  while (generation_ == generation) leave();
  __tsan_acquire(token);
}

}  // namespace fibers
