#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace ddcm {
namespace cpu {
namespace {

struct Job {
  TaskFunction function;
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};

  void work(int worker) {
    for (int64_t t = next.fetch_add(1); t < tasks; t = next.fetch_add(1))
      function(context, t, worker);
  }
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
        } catch (const std::system_error&) {
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
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int started_ = 0, places_ = 0, active_ = 0, next_worker_ = 1;
};

// Never destroyed: its threads sleep until the process ends. After a fork the child has none of
// them, so it starts with a new pool.
std::atomic<Pool*> pool{nullptr};
std::mutex* busy = new std::mutex;

void forget_pool() {
  pool.store(nullptr);
  busy = new std::mutex;
}

Pool* get_pool() {
  Pool* p = pool.load();
  if (p == nullptr) {
    p = new Pool;
    pool.store(p);
#if !defined(_WIN32)
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
    (void)registered;
#endif
  }
  return p;
}

}  // namespace

void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context) {
  Job job{function, context, tasks};
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads > 1) {
    std::unique_lock<std::mutex> lock(*busy, std::try_to_lock);
    if (lock.owns_lock()) {
      get_pool()->run(job, threads);
      return;
    }
  }
  job.work(0);
}

}  // namespace cpu
}  // namespace ddcm
