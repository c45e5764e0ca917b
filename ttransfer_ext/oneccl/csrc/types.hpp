// What oneCCL can reduce, and how a call is refused that it cannot serve.
#pragma once

#include <ATen/ATen.h>
#include <oneapi/ccl.hpp>
#include <torch/csrc/distributed/c10d/Types.hpp>
#include <torch/csrc/utils/pybind.h>

#include <sstream>
#include <string>

namespace ttransfer {

// Mistakes of the caller are the library's one error type, so that `except TransferError` sees them; what goes wrong on
// the wire is torch's DistBackendError.
template <typename... Parts>
[[noreturn]] void refuse(const std::string& call, const Parts&... parts) {
  std::ostringstream text;
  text << call << " on backend 'ccl': ";
  (text << ... << parts);
  py::gil_scoped_acquire gil;
  auto type = py::module_::import("ttransfer._errors").attr("TransferError");
  PyErr_SetObject(type.ptr(), py::str(text.str()).ptr());
  throw py::error_already_set();
}

inline std::string shown(const at::Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << (tensor.dim() == 1 ? ",) " : ") ") << c10::toString(tensor.scalar_type());
  return text.str();
}

inline void check_tensor(const std::string& call, const at::Tensor& tensor) {
  if (!tensor.device().is_cpu())
    refuse(call, "got a tensor on ", tensor.device().str(), "; it takes tensors on the CPU");
  if (tensor.layout() != at::kStrided)
    refuse(call, "got a tensor of layout ", tensor.layout(), "; it takes dense tensors: call .to_dense() first");
}

inline void check_same_type(const std::string& call, const at::Tensor& got, const at::Tensor& wanted) {
  if (got.scalar_type() != wanted.scalar_type())
    refuse(call, "got ", shown(got), " together with ", shown(wanted), "; one call takes one dtype");
}

inline ccl::datatype reduced_type(const std::string& call, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return ccl::datatype::float32;
    case at::kDouble: return ccl::datatype::float64;
    case at::kHalf: return ccl::datatype::float16;
    case at::kBFloat16: return ccl::datatype::bfloat16;
    case at::kBool:  // one byte of 0 or 1, for which max is "or" and min is "and"
    case at::kByte: return ccl::datatype::uint8;
    case at::kChar: return ccl::datatype::int8;
    case at::kShort: return ccl::datatype::int16;
    case at::kInt: return ccl::datatype::int32;
    case at::kLong: return ccl::datatype::int64;
    case at::kUInt16: return ccl::datatype::uint16;
    case at::kUInt32: return ccl::datatype::uint32;
    case at::kUInt64: return ccl::datatype::uint64;
    default:
      refuse(call, "cannot reduce ", shown(tensor),
             "; it reduces float32, float64, float16, bfloat16, (u)int8 to (u)int64 and bool");
  }
}

inline const char* name_of(c10d::ReduceOp::RedOpType op) {
  constexpr const char* names[] = {"SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR", "PREMUL_SUM"};
  return op < 9 ? names[op] : "UNUSED";
}

// AVG is a sum here and a division when it has arrived: oneCCL's own average rounds at every hop.
inline ccl::reduction reduction_of(const std::string& call, c10d::ReduceOp::RedOpType op, const at::Tensor& tensor) {
  const bool boolean = tensor.scalar_type() == at::kBool;
  switch (op) {
    case c10d::ReduceOp::SUM: return boolean ? ccl::reduction::max : ccl::reduction::sum;
    case c10d::ReduceOp::AVG:
      if (!at::isFloatingType(tensor.scalar_type()))
        refuse(call, "got ReduceOp.AVG of ", shown(tensor), "; it averages floating-point numbers: cast with .float()");
      return ccl::reduction::sum;
    case c10d::ReduceOp::PRODUCT: return boolean ? ccl::reduction::min : ccl::reduction::prod;
    case c10d::ReduceOp::MIN: return ccl::reduction::min;
    case c10d::ReduceOp::MAX: return ccl::reduction::max;
    default: refuse(call, "got ReduceOp.", name_of(op), "; there are: SUM, AVG, PRODUCT, MIN, MAX");
  }
}

}  // namespace ttransfer
