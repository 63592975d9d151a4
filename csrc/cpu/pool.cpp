#include "pool.h"

#include <pthread.h>

#include <exception>
#include <mutex>
#include <thread>

namespace ddcm {
namespace cpu {

Interpreter interpreter{};

namespace {

thread_local Call* current_call = nullptr;

struct Job {
  TaskFunction function;
  void* context;
  int64_t tasks;
  Call& call;
  std::atomic<int64_t> next{0};

  void work(int worker) {
    for (int64_t t = next.fetch_add(1); t < tasks; t = next.fetch_add(1)) {
      function(context, t, worker);
      if (call.interrupted(worker)) return;
    }
  }
};

// As std::condition_variable, whose wait got a new symbol version in GCC 12: a library compiled there
// would not load on older systems.
class Condition {
 public:
  template <class Predicate>
  void wait(std::unique_lock<std::mutex>& lock, Predicate&& predicate) {
    while (!predicate()) pthread_cond_wait(&condition_, lock.mutex()->native_handle());
  }
  void notify_one() { pthread_cond_signal(&condition_); }
  void notify_all() { pthread_cond_broadcast(&condition_); }

 private:
  pthread_cond_t condition_ = PTHREAD_COND_INITIALIZER;
};

class Pool {
 public:
  // The caller works too and never waits for a thread that has not begun: a late thread finds the
  // job closed and goes back to sleep. Waking costs the caller one system call.
  void run(Job& job, int threads) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (started_ < threads - 1) {
        try {
          std::thread(&Pool::loop, this).detach();
        } catch (const std::exception&) {
          break;  // the machine gives no more threads: the tasks run on those there are
        }
        ++started_;
      }
      job_ = &job;
      places_ = threads - 1;
      next_worker_ = 1;
    }
    wake_.notify_all();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ != nullptr && places_ > 0; });
      Job* job = job_;
      --places_;
      ++active_;
      const int worker = next_worker_++;
      lock.unlock();
      job->work(worker);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  Condition wake_, done_;
  Job* job_ = nullptr;
  int started_ = 0, places_ = 0, active_ = 0, next_worker_ = 1;
};

// Never destroyed: its threads sleep until the process ends. After a fork the child has none of
// them, so it starts with a new pool.
std::atomic<Pool*> pool{nullptr};
std::atomic<bool> busy{false};

void forget_pool() {
  pool.store(nullptr);
  busy.store(false);
}

Pool* get_pool() {
  Pool* p = pool.load();
  if (p == nullptr) {
    p = new Pool;
    pool.store(p);
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
    (void)registered;
  }
  return p;
}

}  // namespace

Call::Call()
    : outer_(current_call),
      thread_state_(interpreter.save_thread != nullptr ? interpreter.save_thread() : nullptr),
      last_check_(Clock::now()) {
  current_call = this;
}

Call::~Call() {
  current_call = outer_;
  if (thread_state_ != nullptr) interpreter.restore_thread(thread_state_);
}

Call& Call::current() { return *current_call; }

void Call::check_signals() {
  if (thread_state_ == nullptr || interrupted_.load(std::memory_order_relaxed)) return;
  const Clock::time_point now = Clock::now();
  if (now - last_check_ < std::chrono::milliseconds(100)) return;
  last_check_ = now;
  interpreter.restore_thread(thread_state_);
  if (interpreter.check_signals() != 0) interrupted_.store(true, std::memory_order_relaxed);
  thread_state_ = interpreter.save_thread();
}

void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context) {
  Job job{function, context, tasks, Call::current()};
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads > 1 && !busy.exchange(true)) {
    struct Release {
      ~Release() { busy.store(false); }
    } release;  // also where making the pool throws
    get_pool()->run(job, threads);
  } else {
    job.work(0);
  }
  if (job.call.interrupted(1)) throw Interrupted{};
}

}  // namespace cpu
}  // namespace ddcm
