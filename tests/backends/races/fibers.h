// Fibers that ThreadSanitizer takes for threads. fibers.cpp is compiled without it: the scheduler's own data are no one's.

#pragma once

namespace fibers {

// Runs body(argument, 0), ... body(argument, count - 1), each until it waits or ends, in turn, until all have ended. Ends
// the process with status 3 where none can go on. What the caller did before and does after is ordered; nothing else.
void run(int count, void (*body)(void* argument, int index), void* argument);

// Waits for `count` fibers; the last to come runs last(argument) first. Orders what all did before and do after.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait(void (*last)(void* argument) = nullptr, void* argument = nullptr);

 private:
  int count_, arrived_ = 0, generation_ = 0;
  char tokens_[2];  // of even and odd generations: who is already at the next barrier has not been there for the others
};

}  // namespace fibers
