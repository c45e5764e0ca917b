// The thread of one group, the only one that talks to oneCCL about its communicator.
#pragma once

#include "work.hpp"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <dlfcn.h>
#include <oneapi/ccl.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <list>
#include <thread>

namespace ttransfer {

using Events = std::vector<ccl::event>;

struct Task {
  c10::intrusive_ptr<CclWork> work;
  std::function<Events(const ccl::communicator&)> start;
  std::function<void()> finish;
  bool pairwise = false;
  Events events;
  Clock::time_point started;
};

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  // Returns when all ranks have the communicator. The ranks meet in the store first: oneCCL would wait for a missing one
  // without end, and nobody may hold its lock meanwhile.
  static std::shared_ptr<Engine> start(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                       Milliseconds timeout) {
    auto engine = std::shared_ptr<Engine>(new Engine());
    ccl::shared_ptr_class<ccl::kvs> kvs;
    try {
      kvs = meet(*store, rank, size, timeout);
    } catch (const ccl::exception& error) {
      TORCH_CHECK_WITH(DistBackendError, false, "starting backend 'ccl': ", error.what());
    }
    engine->enlist();
    std::thread([engine, rank, size, held = std::move(kvs)]() mutable {
      engine->run(std::move(held), rank, size);
    }).detach();
    engine->await_start(timeout);
    return engine;
  }

  void push(Task task) {
    TORCH_CHECK_WITH(DistBackendError, !health->broken, "this group of backend 'ccl' cannot be used any more: ",
                     health->why());
    std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK_WITH(DistBackendError, !stopping_, "this group of backend 'ccl' has been shut down");
    queue_.push_back(std::move(task));
    changed_.notify_all();
  }

  // Lets what is under way end, within the limit.
  void stop(Milliseconds limit) {
    std::unique_lock<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    if (!health->broken) changed_.wait_for(lock, limit, [this] { return done_; });
  }

  const std::shared_ptr<Health> health = std::make_shared<Health>();

 private:
  Engine() = default;

  static ccl::shared_ptr_class<ccl::kvs> meet(c10d::Store& store, int rank, int size, Milliseconds timeout) {
    ccl::init();
    ccl::shared_ptr_class<ccl::kvs> kvs;
    if (rank == 0) {
      kvs = ccl::create_main_kvs();
      const auto address = kvs->get_address();
      store.set("ccl/address", std::vector<uint8_t>(address.begin(), address.end()));
    } else {
      store.wait({"ccl/address"}, timeout);
      const auto bytes = store.get("ccl/address");
      ccl::kvs::address_type address;
      TORCH_CHECK_WITH(DistBackendError, bytes.size() == address.size(), "backend 'ccl': rank 0 has another oneCCL");
      std::copy(bytes.begin(), bytes.end(), address.begin());
      kvs = ccl::create_kvs(address);
    }
    std::vector<std::string> keys;
    for (int i = 0; i < size; ++i) keys.push_back("ccl/ready/" + std::to_string(i));
    store.set(keys[rank], std::vector<uint8_t>{1});
    store.wait(keys, timeout);
    return kvs;
  }

  void await_start(Milliseconds timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!changed_.wait_for(lock, timeout, [this] { return started_ || health->broken; }))
      health->break_with(c10::str("oneCCL did not connect the ranks in ", timeout.count(), " ms"));
    TORCH_CHECK_WITH(DistBackendError, !health->broken, "starting backend 'ccl': ", health->why());
  }

  void run(ccl::shared_ptr_class<ccl::kvs> kvs, int rank, int size) {
    keep_to_one_thread();
    at::AutoDispatchBelowADInplaceOrView below;
    std::unique_ptr<ccl::communicator> comm;
    try {
      {
        std::lock_guard<std::mutex> lock(oneccl());
        comm = std::make_unique<ccl::communicator>(ccl::create_communicator(size, rank, kvs));
      }
      tell([this] { started_ = true; });
      while (next(*comm)) {
      }
      // Never freed. A communicator's destructor talks to rank 0, which may have ended; and after a timeout oneCCL still
      // writes into the tensors.
      comm.release();
      new auto(kvs);
      new auto(std::move(flying_));
    } catch (const std::exception& error) {
      health->break_with(error.what());
    }
    tell([this] { done_ = true; });
  }

  // One round: start what may start, look at what is under way. False when the thread is to end.
  bool next(const ccl::communicator& comm) {
    std::list<Task> fresh;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (flying_.empty()) {
        changed_.wait(lock, [this] { return stopping_ || !queue_.empty() || health->broken; });
        if (queue_.empty() && stopping_) return false;
        health->step();
        idle_ = 0;
      }
      // Collectives go one by one, so each sees what the one before has written. Sends and receives wait for other
      // ranks in an order that is theirs: they all go at once.
      const bool busy = std::any_of(flying_.begin(), flying_.end(), [](const Task& t) { return !t.pairwise; });
      while (!queue_.empty() && (queue_.front().pairwise || (!busy && fresh.empty()))) {
        const bool alone = !queue_.front().pairwise;
        fresh.push_back(std::move(queue_.front()));
        queue_.pop_front();
        if (alone) break;
      }
    }
    for (auto& task : fresh) {
      task.started = Clock::now();
      try {
        std::lock_guard<std::mutex> lock(oneccl());
        task.events = task.start(comm);
        flying_.push_back(std::move(task));
      } catch (const std::exception& error) {
        task.work->fail(wrapped(error));
      }
    }
    return look();
  }

  bool look() {
    bool moved = false;
    for (auto task = flying_.begin(); task != flying_.end();) {
      try {
        if (!arrived(task->events)) {
          if (Clock::now() - std::max(task->started, health->last()) > task->work->limit()) {
            give_up(task->work->late());
            return false;
          }
          ++task;
          continue;
        }
        if (task->finish) task->finish();
        health->step();
        task->work->complete();
      } catch (const std::exception& error) {
        task->work->fail(wrapped(error));
      }
      moved = true;
      task = flying_.erase(task);
    }
    if (health->broken) {
      give_up(health->why());
      return false;
    }
    rest(moved);
    return true;
  }

  static bool arrived(Events& events) {
    while (!events.empty()) {
      if (!events.back().test()) return false;
      events.pop_back();
    }
    return true;
  }

  void give_up(const std::string& why) {
    health->break_with(why);
    const auto error = failure(why);
    std::deque<Task> waiting;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      waiting.swap(queue_);
    }
    for (auto& task : flying_) task.work->fail(error);
    for (auto& task : waiting) task.work->fail(error);
  }

  static std::exception_ptr failure(const std::string& text) {
    return std::make_exception_ptr(c10::DistBackendError({__func__, __FILE__, __LINE__}, text));
  }
  static std::exception_ptr wrapped(const std::exception& error) {
    return failure(c10::str("backend 'ccl': ", error.what()));
  }

  // oneCCL's workers and the compute threads want the same cores: poll a little, then sleep longer and longer.
  void rest(bool moved) {
    if (moved || flying_.empty()) {
      idle_ = 0;
    } else if (++idle_ < 64) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(std::min<int64_t>(idle_ / 4, 500)));
    }
  }

  template <typename Change>
  void tell(Change change) {
    std::lock_guard<std::mutex> lock(mutex_);
    change();
    changed_.notify_all();
  }

  // Copies on this thread would otherwise start a team of compute threads of their own. The first parallel_for of a
  // thread sets its number, so one is made before.
  static void keep_to_one_thread() {
    at::parallel_for(0, 1, 1, [](int64_t, int64_t) {});
    if (auto* set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) set(1);
  }

  // Calls that start something are made one at a time in a process. Never destroyed: threads may outlive main().
  static std::mutex& oneccl() {
    static auto* mutex = new std::mutex();
    return *mutex;
  }

  struct All {
    std::mutex mutex;
    std::vector<std::weak_ptr<Engine>> engines;
    std::terminate_handler otherwise = nullptr;
  };
  static All& all() {
    static auto* all = new All();
    return *all;
  }

  // Called once oneCCL is initialised, so that what it does at exit comes later than what is registered here.
  void enlist() {
    auto& group = all();
    std::lock_guard<std::mutex> lock(group.mutex);
    group.engines.push_back(weak_from_this());
    if (group.otherwise) return;
    group.otherwise = std::set_terminate(&on_terminate);
    on_exit(&at_exit, nullptr);
  }

  // oneCCL's worker throws where nobody can catch when a peer's connection breaks. The process lives on: the thread stays
  // here, and what waits gets an exception.
  [[noreturn]] static void on_terminate() {
    std::string why;
    try {
      if (auto error = std::current_exception()) std::rethrow_exception(error);
    } catch (const std::exception& error) {
      why = error.what();
    } catch (...) {
    }
    if (why.rfind("oneCCL", 0) != 0) {
      all().otherwise();
      std::abort();
    }
    {
      std::lock_guard<std::mutex> lock(all().mutex);
      for (auto& weak : all().engines)
        if (auto engine = weak.lock()) engine->health->break_with("backend 'ccl': a peer has died or the network has failed: " + why);
    }
    for (;;) pause();
  }

  // oneCCL's own destructors wait for peers, and throw when these are gone: they are not run. Python has run its handlers
  // and flushed its files by now.
  static void at_exit(int status, void*) {
    for (auto& weak : all().engines)
      if (auto engine = weak.lock()) engine->stop(std::chrono::seconds(2));
    std::fflush(nullptr);
    _exit(status);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> queue_;
  bool started_ = false;
  bool stopping_ = false;
  bool done_ = false;
  // Of the thread alone:
  std::list<Task> flying_;
  int64_t idle_ = 0;
};

}  // namespace ttransfer
