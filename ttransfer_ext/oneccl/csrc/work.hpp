// One operation that was asked for: what `async_op=True` returns.
#pragma once

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <atomic>
#include <chrono>
#include <memory>

namespace ttransfer {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// What the works of one group share with its thread: when something was last finished, and what broke the group.
struct Health {
  std::atomic<Clock::rep> progressed{Clock::now().time_since_epoch().count()};
  std::atomic<bool> broken{false};
  std::mutex mutex;
  std::string reason;

  void step() { progressed = Clock::now().time_since_epoch().count(); }
  Clock::time_point last() const { return Clock::time_point(Clock::duration(progressed.load())); }
  void break_with(const std::string& why) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!broken) reason = why;
    broken = true;
  }
  std::string why() {
    std::lock_guard<std::mutex> lock(mutex);
    return reason;
  }
};

class CclWork : public c10d::Work {
 public:
  CclWork(int rank, c10d::OpType type, const char* call, std::vector<at::Tensor> outputs, std::shared_ptr<Health> health,
          Milliseconds timeout, uint64_t sequence)
      : Work(rank, type, call),
        call_(call),
        outputs_(std::move(outputs)),
        health_(std::move(health)),
        queued_(Clock::now()),
        timeout_(timeout),
        sequence_(sequence),
        future_(c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {}

  // Without a timeout of its own a wait takes the group's, counted from the group's last sign of life: many operations
  // may be under way, and the last must not be blamed for the time of the others.
  bool wait(Milliseconds timeout = kNoTimeout) override {
    std::unique_lock<std::mutex> lock(mutex_);
    if (timeout > kNoTimeout) {
      TORCH_CHECK_WITH(DistBackendError, cv_.wait_for(lock, timeout, [this] { return completed_; }), call_,
                       " on backend 'ccl': no result after the ", timeout.count(), " ms that wait() was given");
    }
    while (!completed_) {
      // The thread of the group notices a timeout by itself; the margin is for when it is stuck inside oneCCL.
      const auto deadline = std::max(queued_, health_->last()) + timeout_ + std::chrono::seconds(1);
      if (Clock::now() >= deadline) {
        health_->break_with(late());
        TORCH_CHECK_WITH(DistBackendError, false, late());
      }
      cv_.wait_until(lock, deadline);
    }
    if (exception_) std::rethrow_exception(exception_);
    return true;
  }

  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  std::vector<at::Tensor> result() override { return outputs_; }
  uint64_t getSequencenumber() const override { return sequence_; }

  std::string late() const {
    return c10::str(call_, " on backend 'ccl': no result after ", timeout_.count(),
                    " ms, the timeout of the group: a peer is slow, has died or did not make the same call. "
                    "The group cannot be used any more");
  }
  Milliseconds limit() const { return timeout_; }

  // The work first, the future after: callbacks of the future may look at the work.
  void complete() {
    finish();
    future_->markCompleted(c10::IValue(outputs_));
  }
  void fail(std::exception_ptr error) {
    finish(error);
    future_->setErrorIfNeeded(error);
  }

 private:
  const std::string call_;
  std::vector<at::Tensor> outputs_;
  std::shared_ptr<Health> health_;
  const Clock::time_point queued_;
  const Milliseconds timeout_;
  const uint64_t sequence_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

}  // namespace ttransfer
