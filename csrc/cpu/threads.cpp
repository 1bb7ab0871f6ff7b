#include "threads.h"

#ifndef _WIN32
#include <pthread.h>
#endif

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace dafast::cpu {
namespace {

constexpr int kSpins = 500;

thread_local bool in_region = false;

inline void pause() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_ia32_pause();
#endif
}

// One region at a time; it is never destroyed, because its threads run until the process ends.
class Pool {
 public:
  // Whether it ran the region; false if another thread's region is running.
  bool run(int64_t count, const std::function<void()>& body) {
    const std::unique_lock<std::mutex> region(region_, std::try_to_lock);
    if (!region.owns_lock()) return false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      add_threads(count - 1);
      body_ = &body;
      wanted_ = count - 1;
    }
    for (int64_t i = 1; i < count; ++i) start_.notify_one();
    std::exception_ptr error = call(body);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      wanted_ = 0;
    }
    for (int i = 0; i < kSpins && active_.load(std::memory_order_acquire); ++i) pause();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
    body_ = nullptr;
    if (!error) error = error_;
    error_ = nullptr;
    if (error) std::rethrow_exception(error);
    return true;
  }

 private:
  static std::exception_ptr call(const std::function<void()>& body) {
    in_region = true;
    std::exception_ptr error;
    try {
      body();
    } catch (...) {
      error = std::current_exception();
    }
    in_region = false;
    return error;
  }

  void add_threads(int64_t count) {
    try {
      for (; threads_ < count; ++threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads; the others do the work.
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      start_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++active_;
      const std::function<void()>& body = *body_;
      lock.unlock();
      const std::exception_ptr error = call(body);
      lock.lock();
      if (error) error_ = error;
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex region_, mutex_;
  std::condition_variable start_, done_;
  const std::function<void()>* body_ = nullptr;
  int64_t threads_ = 0, wanted_ = 0;
  std::atomic<int64_t> active_{0};
  std::exception_ptr error_;
};

std::atomic<Pool*>& pool() {
  static std::atomic<Pool*> current = [] {
#ifndef _WIN32
    // A forked process has none of the threads, and mutexes that nobody may unlock.
    pthread_atfork(nullptr, nullptr, [] { pool() = new Pool; });
#endif
    return new Pool;
  }();
  return current;
}

}  // namespace

void on_threads(int64_t count, const std::function<void()>& body) {
  if (count > 1 && !in_region && pool().load()->run(count, body)) return;
  body();
}

}  // namespace dafast::cpu
