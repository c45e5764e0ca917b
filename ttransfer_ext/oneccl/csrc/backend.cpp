// torch.distributed's backend "ccl": each collective of c10d as calls of oneCCL. Needs torch 2.8 or later.
//
// What only moves data is moved as bytes, so it takes every dtype; what reduces is limited to oneCCL's own.
#include "engine.hpp"
#include "types.hpp"

#include <pybind11/chrono.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <cstring>

namespace ttransfer {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using Counts = ccl::vector_class<size_t>;
using Pointers = ccl::vector_class<void*>;
using c10d::OpType;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

bool plain(const Tensor& tensor) { return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg(); }

// What oneCCL may read: the tensor itself or a contiguous copy.
Tensor readable(const Tensor& tensor) {
  return plain(tensor) ? tensor : tensor.resolve_conj().resolve_neg().contiguous();
}

// What oneCCL may write to: the tensor itself, or a contiguous one that `deliver` copies from.
Tensor writable(const Tensor& tensor) {
  return plain(tensor) ? tensor : at::empty(tensor.sizes(), tensor.options());
}

void deliver(const Tensor& from, const Tensor& to) {
  if (!from.is_same(to)) to.copy_(from);
}

void divide(const Tensor& tensor, c10d::ReduceOp::RedOpType op, int64_t by) {
  if (op == c10d::ReduceOp::AVG) tensor.div_(by);
}

Events events(ccl::event&& event) {
  Events result;
  result.push_back(std::move(event));
  return result;
}

class CclBackend : public c10d::Backend {
 public:
  CclBackend(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, Milliseconds timeout)
      : Backend(rank, size), timeout_(timeout), engine_(Engine::start(store, rank, size, timeout)) {}
  ~CclBackend() override { engine_->stop(std::chrono::milliseconds(0)); }

  const std::string getBackendName() const override { return "ccl"; }
  void shutdown() override { engine_->stop(std::min<Milliseconds>(timeout_, std::chrono::seconds(10))); }
  void abort() override {
    engine_->health->break_with("it was aborted");
    engine_->stop(std::chrono::milliseconds(0));
  }
  // No `override`: torch 2.8 has some of these under these names only, and the rest not at all.
  void setTimeout(Milliseconds timeout) { timeout_ = timeout; }
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) override {
    const char* call = "broadcast";
    auto tensor = only(call, tensors);
    const int root = checked_rank(call, opts.rootRank);
    auto flat = std::make_shared<Tensor>();
    return submit(
        OpType::BROADCAST, call, {tensor}, opts.timeout, tensor.numel() == 0,
        [=, this](const ccl::communicator& comm) {
          *flat = root == rank_ ? readable(tensor) : writable(tensor);
          return events(ccl::broadcast(flat->data_ptr(), flat->nbytes(), ccl::datatype::uint8, root, comm));
        },
        [=, this] {
          if (root != rank_) deliver(*flat, tensor);
        });
  }

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) override {
    return reduce_all("all_reduce", OpType::ALLREDUCE, {only("all_reduce", tensors)}, opts);
  }

  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& opts) override {
    for (const auto& tensor : tensors) check_tensor("all_reduce_coalesced", tensor);
    return reduce_all("all_reduce_coalesced", OpType::ALLREDUCE_COALESCED, tensors, opts);
  }

  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& opts) override {
    const char* call = "reduce";
    auto tensor = only(call, tensors);
    const auto type = reduced_type(call, tensor);
    const c10d::ReduceOp::RedOpType op = opts.reduceOp;
    const auto reduction = reduction_of(call, op, tensor);
    const int root = checked_rank(call, opts.rootRank);
    auto flat = std::make_shared<Tensor>(), out = std::make_shared<Tensor>();
    return submit(
        OpType::REDUCE, call, {tensor}, opts.timeout, tensor.numel() == 0,
        [=, this](const ccl::communicator& comm) {
          *flat = readable(tensor);
          // oneCCL uses the output of other ranks than the root as scratch.
          *out = at::empty_like(*flat);
          return events(
              ccl::reduce(flat->data_ptr(), out->data_ptr(), flat->numel(), type, reduction, root, comm));
        },
        [=, this] {
          if (root != rank_) return;
          divide(*out, op, size_);
          tensor.copy_(*out);
        });
  }

  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& opts) override {
    const char* call = "all_gather";
    auto input = only(call, inputs);
    auto list = only_list(call, outputs, input);
    if (list[rank_].numel() != input.numel())
      refuse(call, "got ", shown(input), " and for this rank's own part the output ", shown(list[rank_]));
    auto flat = std::make_shared<Tensor>();
    auto parts = std::make_shared<Tensors>();
    return submit(
        OpType::ALLGATHER, call, list, opts.timeout, total(list) == 0,
        [=, this](const ccl::communicator& comm) {
          *flat = readable(input);
          *parts = all_writable(list);
          return events(ccl::allgatherv(flat->data_ptr(), flat->nbytes(), pointers(*parts), bytes(*parts),
                                        ccl::datatype::uint8, comm));
        },
        [=, this] { deliver_all(*parts, list); });
  }

  WorkPtr _allgather_base(Tensor& output, Tensor& input, const c10d::AllgatherOptions& opts) override {
    return gather_all("all_gather_single", OpType::_ALLGATHER_BASE, {output}, {input}, opts.timeout);
  }

  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& opts) override {
    return gather_all("all_gather_single_coalesced", OpType::COALESCED, outputs, inputs,
                      opts.timeout);
  }

  WorkPtr allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& opts) override {
    const char* call = "all_gather_coalesced";
    if (static_cast<int>(outputs.size()) != size_)
      refuse(call, "got ", outputs.size(), " lists of outputs; the group has ", size_, " ranks");
    Tensors all, flat_list;
    for (size_t i = 0; i < inputs.size(); ++i) {
      check_tensor(call, inputs[i]);
      all.push_back(at::empty({size_ * inputs[i].numel()}, inputs[i].options()));
      for (auto& list : outputs) {
        if (list.size() != inputs.size() || list[i].numel() != inputs[i].numel())
          refuse(call, "got outputs that are not as many or as large as the ", inputs.size(), " inputs");
        check_same_type(call, list[i], inputs[i]);
        flat_list.push_back(list[i]);
      }
    }
    const size_t ranks = size_;
    return gather_all(call, OpType::ALLGATHER_COALESCED, all, inputs, opts.timeout, [=, this] {
      for (size_t i = 0; i < all.size(); ++i) {
        const auto parts = all[i].chunk(ranks);
        for (size_t r = 0; r < parts.size(); ++r) {
          const auto& to = flat_list[i * ranks + r];
          to.copy_(parts[r].view(to.sizes()));
        }
      }
    });
  }

  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& opts) override {
    const char* call = "reduce_scatter";
    auto output = only(call, outputs);
    auto list = only_list(call, inputs, output);
    if (list[rank_].numel() != output.numel())
      refuse(call, "got ", shown(output), " and for it the input ", shown(list[rank_]));
    const auto type = reduced_type(call, output);
    const c10d::ReduceOp::RedOpType op = opts.reduceOp;
    const auto reduction = reduction_of(call, op, output);
    auto flats = std::make_shared<Tensors>(), outs = std::make_shared<Tensors>();
    auto own = std::make_shared<Tensor>();
    return submit(
        OpType::REDUCE_SCATTER, call, {output}, opts.timeout, total(list) == 0,
        [=, this](const ccl::communicator& comm) {
          // The parts may differ in size, which oneCCL's reduce_scatter does not know: one reduce to each rank.
          Events result;
          for (int root = 0; root < size_; ++root) {
            if (list[root].numel() == 0) continue;
            flats->push_back(readable(list[root]));
            outs->push_back(at::empty_like(flats->back()));
            result.push_back(ccl::reduce(flats->back().data_ptr(), outs->back().data_ptr(), list[root].numel(), type,
                                         reduction, root, comm));
            if (root == rank_) *own = outs->back();
          }
          return result;
        },
        [=, this] {
          if (output.numel() == 0) return;
          divide(*own, op, size_);
          output.copy_(own->view(output.sizes()));
        });
  }

  WorkPtr _reduce_scatter_base(Tensor& output, Tensor& input, const c10d::ReduceScatterOptions& opts) override {
    return scatter_sums("reduce_scatter_single", OpType::_REDUCE_SCATTER_BASE, {output}, {input}, opts);
  }

  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& opts) override {
    return scatter_sums("reduce_scatter_single_coalesced", OpType::COALESCED, outputs, inputs,
                        opts);
  }

  WorkPtr alltoall_base(Tensor& output, Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits, const c10d::AllToAllOptions& opts) override {
    const char* call = "all_to_all_single";
    check_tensor(call, output);
    check_tensor(call, input);
    check_same_type(call, output, input);
    auto sent = split(call, input, input_splits), received = split(call, output, output_splits);
    auto flat = std::make_shared<Tensor>(), out = std::make_shared<Tensor>();
    auto in = input, to = output;
    return submit(
        OpType::ALLTOALL_BASE, call, {output}, opts.timeout, false,
        [=, this](const ccl::communicator& comm) {
          *flat = readable(in);
          *out = writable(to);
          return events(ccl::alltoallv(flat->data_ptr(), sent, out->data_ptr(), received, ccl::datatype::uint8, comm));
        },
        [=, this] { deliver(*out, to); });
  }

  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& opts) override {
    const char* call = "all_to_all";
    return exchange(call, OpType::ALLTOALL, whole_list(call, outputs), whole_list(call, inputs), opts.timeout);
  }

  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& opts) override {
    const char* call = "gather";
    auto input = only(call, inputs);
    const int root = checked_rank(call, opts.rootRank);
    Tensors from(size_), to(size_);
    from[root] = input;
    if (rank_ == root) to = only_list(call, outputs, input);
    return exchange(call, OpType::GATHER, to, from, opts.timeout);
  }

  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& opts) override {
    const char* call = "scatter";
    auto output = only(call, outputs);
    const int root = checked_rank(call, opts.rootRank);
    Tensors from(size_), to(size_);
    to[root] = output;
    if (rank_ == root) from = only_list(call, inputs, output);
    return exchange(call, OpType::SCATTER, to, from, opts.timeout);
  }

  WorkPtr send(Tensors& tensors, int to, int) override {
    const char* call = "send";
    auto tensor = only(call, tensors);
    checked_rank(call, to);
    auto flat = std::make_shared<Tensor>();
    return submit(
        OpType::SEND, call, {tensor}, c10d::kUnsetTimeout, tensor.numel() == 0,
        [=, this](const ccl::communicator& comm) {
          *flat = readable(tensor);
          return events(ccl::send(flat->data_ptr(), flat->nbytes(), ccl::datatype::uint8, to, comm));
        },
        {}, true);
  }

  WorkPtr recv(Tensors& tensors, int from, int) override {
    const char* call = "recv";
    auto tensor = only(call, tensors);
    checked_rank(call, from);
    auto flat = std::make_shared<Tensor>();
    return submit(
        OpType::RECV, call, {tensor}, c10d::kUnsetTimeout, tensor.numel() == 0,
        [=, this](const ccl::communicator& comm) {
          *flat = writable(tensor);
          return events(ccl::recv(flat->data_ptr(), flat->nbytes(), ccl::datatype::uint8, from, comm));
        },
        [=, this] { deliver(*flat, tensor); }, true);
  }

  WorkPtr recvAnysource(Tensors&, int) override {
    refuse("recv", "got no source; oneCCL receives from a named rank only: give src=");
  }

  WorkPtr barrier(const c10d::BarrierOptions& opts) override {
    return submit(OpType::BARRIER, "barrier", {}, opts.timeout, false,
                  [](const ccl::communicator& comm) { return events(ccl::barrier(comm)); }, {});
  }

 private:
  WorkPtr submit(OpType type, const char* call, Tensors outputs, Milliseconds timeout, bool nothing,
                 std::function<Events(const ccl::communicator&)> start, std::function<void()> finish,
                 bool pairwise = false) {
    auto work = c10::make_intrusive<CclWork>(rank_, type, call, std::move(outputs), engine_->health,
                                             timeout > kNoTimeout ? timeout : timeout_, ++sequence_);
    if (nothing) {
      start = [](const ccl::communicator&) { return Events(); };
      finish = {};
    }
    engine_->push(Task{work, std::move(start), std::move(finish), pairwise, {}, {}});
    return work;
  }

  WorkPtr reduce_all(const char* call, OpType kind, const Tensors& tensors, const c10d::AllreduceOptions& opts) {
    const c10d::ReduceOp::RedOpType op = opts.reduceOp;
    for (const auto& tensor : tensors) {
      reduced_type(call, tensor);
      reduction_of(call, op, tensor);
    }
    auto flats = std::make_shared<Tensors>();
    return submit(
        kind, call, tensors, opts.timeout, false,
        [=, this](const ccl::communicator& comm) {
          Events result;
          for (const auto& tensor : tensors) {
            flats->push_back(readable(tensor));
            auto* data = flats->back().data_ptr();
            if (tensor.numel() > 0)
              result.push_back(ccl::allreduce(data, data, tensor.numel(), reduced_type(call, tensor),
                                              reduction_of(call, op, tensor), comm));
          }
          return result;
        },
        [=, this] {
          for (size_t i = 0; i < tensors.size(); ++i) {
            divide((*flats)[i], op, size_);
            deliver((*flats)[i], tensors[i]);
          }
        });
  }

  WorkPtr gather_all(const char* call, OpType kind, const Tensors& outputs, const Tensors& inputs,
                     Milliseconds timeout, std::function<void()> then = {}) {
    check_pairs(call, outputs, inputs);
    for (size_t i = 0; i < inputs.size(); ++i)
      if (outputs[i].numel() != size_ * inputs[i].numel())
        refuse(call, "got ", shown(inputs[i]), " to gather into ", shown(outputs[i]), "; it wants ", size_,
               " times as many elements");
    auto flats = std::make_shared<Tensors>(), outs = std::make_shared<Tensors>();
    return submit(
        kind, call, outputs, timeout, false,
        [=, this](const ccl::communicator& comm) {
          Events result;
          for (size_t i = 0; i < inputs.size(); ++i) {
            flats->push_back(readable(inputs[i]));
            outs->push_back(writable(outputs[i]));
            if (inputs[i].numel() > 0)
              result.push_back(ccl::allgather(flats->back().data_ptr(), outs->back().data_ptr(), flats->back().nbytes(),
                                              ccl::datatype::uint8, comm));
          }
          return result;
        },
        [=, this] {
          deliver_all(*outs, outputs);
          if (then) then();
        });
  }

  WorkPtr scatter_sums(const char* call, OpType kind, const Tensors& outputs, const Tensors& inputs,
                       const c10d::ReduceScatterOptions& opts) {
    check_pairs(call, outputs, inputs);
    const c10d::ReduceOp::RedOpType op = opts.reduceOp;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].numel() != size_ * outputs[i].numel())
        refuse(call, "got ", shown(inputs[i]), " to scatter into ", shown(outputs[i]), "; it wants an input of ", size_,
               " times as many elements");
      reduced_type(call, inputs[i]);
      reduction_of(call, op, inputs[i]);
    }
    auto flats = std::make_shared<Tensors>(), outs = std::make_shared<Tensors>();
    return submit(
        kind, call, outputs, opts.timeout, false,
        [=, this](const ccl::communicator& comm) {
          Events result;
          for (size_t i = 0; i < inputs.size(); ++i) {
            flats->push_back(readable(inputs[i]));
            outs->push_back(writable(outputs[i]));
            if (outputs[i].numel() > 0)
              result.push_back(ccl::reduce_scatter(flats->back().data_ptr(), outs->back().data_ptr(),
                                                   outputs[i].numel(), reduced_type(call, inputs[i]),
                                                   reduction_of(call, op, inputs[i]), comm));
          }
          return result;
        },
        [=, this] {
          for (const auto& out : *outs) divide(out, op, size_);
          deliver_all(*outs, outputs);
        });
  }

  // Rank i gets from[i] and sends what lands in to[i]; an undefined tensor is nothing. On the CPU oneCCL exchanges parts
  // of one buffer only, so lists are copied into one and out of one.
  WorkPtr exchange(const char* call, OpType kind, Tensors to, Tensors from, Milliseconds timeout) {
    auto sent = std::make_shared<Tensor>(), received = std::make_shared<Tensor>();
    Tensors results;
    for (const auto& tensor : to)
      if (tensor.defined()) results.push_back(tensor);
    return submit(
        kind, call, results, timeout, false,
        [=, this](const ccl::communicator& comm) {
          const auto from_bytes = bytes(from), to_bytes = bytes(to);
          *sent = buffer(from_bytes);
          *received = buffer(to_bytes);
          auto* at = static_cast<char*>(sent->data_ptr());
          for (const auto& tensor : from) {
            if (!tensor.defined() || tensor.numel() == 0) continue;
            const auto flat = readable(tensor);
            std::memcpy(at, flat.data_ptr(), flat.nbytes());
            at += flat.nbytes();
          }
          return events(ccl::alltoallv(sent->data_ptr(), from_bytes, received->data_ptr(), to_bytes,
                                       ccl::datatype::uint8, comm));
        },
        [=, this] {
          const auto* at = static_cast<const char*>(received->data_ptr());
          for (const auto& tensor : to) {
            if (!tensor.defined() || tensor.numel() == 0) continue;
            const auto flat = writable(tensor);
            std::memcpy(flat.data_ptr(), at, flat.nbytes());
            at += flat.nbytes();
            deliver(flat, tensor);
          }
        });
  }

  // One byte more than asked for: oneCCL looks at the pointer of an empty buffer too.
  static Tensor buffer(const Counts& parts) {
    int64_t size = 1;
    for (const auto part : parts) size += static_cast<int64_t>(part);
    return at::empty({size}, at::kByte);
  }

  static Tensors all_writable(const Tensors& tensors) {
    Tensors result;
    for (const auto& tensor : tensors) result.push_back(tensor.defined() ? writable(tensor) : tensor);
    return result;
  }

  static void deliver_all(const Tensors& from, const Tensors& to) {
    for (size_t i = 0; i < to.size(); ++i)
      if (to[i].defined()) deliver(from[i], to[i]);
  }

  static Pointers pointers(const Tensors& tensors) {
    // oneCCL looks at the pointers of empty parts too.
    static char nothing[64];
    Pointers result;
    for (const auto& tensor : tensors)
      result.push_back(tensor.defined() && tensor.numel() > 0 ? tensor.data_ptr() : static_cast<void*>(nothing));
    return result;
  }

  static Counts bytes(const Tensors& tensors) {
    Counts result;
    for (const auto& tensor : tensors) result.push_back(tensor.defined() ? tensor.nbytes() : 0);
    return result;
  }

  static int64_t total(const Tensors& tensors) {
    int64_t result = 0;
    for (const auto& tensor : tensors) result += tensor.numel();
    return result;
  }

  int checked_rank(const char* call, int64_t rank) const {
    if (rank < 0 || rank >= size_) refuse(call, "got rank ", rank, "; the group has ranks 0 to ", size_ - 1);
    return static_cast<int>(rank);
  }

  static Tensor only(const char* call, const Tensors& tensors) {
    if (tensors.size() != 1) refuse(call, "got ", tensors.size(), " tensors; it takes one");
    check_tensor(call, tensors[0]);
    return tensors[0];
  }

  Tensors whole_list(const char* call, const Tensors& tensors) const {
    if (static_cast<int>(tensors.size()) != size_)
      refuse(call, "got a list of ", tensors.size(), " tensors; the group has ", size_, " ranks");
    for (const auto& tensor : tensors) {
      check_tensor(call, tensor);
      check_same_type(call, tensor, tensors[0]);
    }
    return tensors;
  }

  Tensors only_list(const char* call, const std::vector<Tensors>& lists, const Tensor& like) const {
    if (lists.size() != 1) refuse(call, "got ", lists.size(), " lists of tensors; it takes one");
    auto list = whole_list(call, lists[0]);
    check_same_type(call, list[0], like);
    return list;
  }

  static void check_pairs(const char* call, const Tensors& outputs, const Tensors& inputs) {
    if (outputs.size() != inputs.size())
      refuse(call, "got ", outputs.size(), " outputs for ", inputs.size(), " inputs");
    for (size_t i = 0; i < inputs.size(); ++i) {
      check_tensor(call, outputs[i]);
      check_tensor(call, inputs[i]);
      check_same_type(call, outputs[i], inputs[i]);
    }
  }

  Counts split(const char* call, const Tensor& tensor, const std::vector<int64_t>& sizes) const {
    const int64_t rows = tensor.dim() > 0 ? tensor.size(0) : 0;
    if (sizes.empty()) {
      if (tensor.dim() == 0 || rows % size_ != 0)
        refuse(call, "got ", shown(tensor), " without splits; its first dimension must be a multiple of ", size_);
      return Counts(size_, tensor.nbytes() / size_);
    }
    int64_t sum = 0;
    Counts result;
    for (const auto size : sizes) {
      if (size < 0) refuse(call, "got a split of ", size, " rows");
      sum += size;
      result.push_back(rows ? size * (tensor.nbytes() / rows) : 0);
    }
    if (static_cast<int>(sizes.size()) != size_ || sum != rows)
      refuse(call, "got ", sizes.size(), " splits with ", sum, " rows in all for ", shown(tensor), "; it wants ", size_,
             " splits with ", rows, " rows in all");
    return result;
  }

  Milliseconds timeout_;
  std::atomic<uint64_t> sequence_{0};
  std::shared_ptr<Engine> engine_;
};

c10::intrusive_ptr<c10d::Backend> create(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                         const std::chrono::duration<float>& timeout) {
  return c10::make_intrusive<CclBackend>(store, rank, size, std::chrono::duration_cast<Milliseconds>(timeout));
}

std::string version() {
  const auto version = ccl::get_library_version();
  return c10::str(version.major, ".", version.minor, ".", version.update);
}

}  // namespace ttransfer

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("create", &ttransfer::create, py::call_guard<py::gil_scoped_release>());
  module.def("version", &ttransfer::version);
}
