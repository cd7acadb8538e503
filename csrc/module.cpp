// pybind11 module cnnkern._C: build facts, the CPU instruction set, and the shared geometry checks.
// The ops themselves are registered with torch's dispatcher by the binders linked into this
// library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/conv2d_select.h"
#include "cpu/isa.h"
#include "geometry.h"

namespace py = pybind11;
using namespace cnnkern;

#ifndef CNNKERN_BUILT_WITH_TORCH
#define CNNKERN_BUILT_WITH_TORCH "unknown"
#endif
#ifndef CNNKERN_CUDA_VERSION
#define CNNKERN_CUDA_VERSION ""
#endif
#ifndef CNNKERN_CUDA_ARCHS
#define CNNKERN_CUDA_ARCHS ""
#endif

namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] =
#if defined(__clang__)
      "clang " __clang_version__;
#elif defined(__GNUC__)
      "g++ " __VERSION__;
#else
      "unknown";
#endif
  info["torch"] = CNNKERN_BUILT_WITH_TORCH;
  info["cuda_version"] = CNNKERN_CUDA_VERSION;
  info["cuda_archs"] = py::str(CNNKERN_CUDA_ARCHS).attr("split")();
  return info;
}

Ints conv2d_output_size(const std::string& op, const Ints& input, const Ints& weight,
                        const Ints& stride, const Ints& padding, const Ints& dilation,
                        int64_t groups, const std::string& padding_mode) {
  const ConvParams p =
      make_conv_params(op.c_str(), input, weight, stride, padding, dilation, groups, padding_mode);
  return {p.N, p.K, p.P, p.Q};
}

Ints pool2d_output_size(const std::string& op, const Ints& input, const Ints& kernel_size,
                        const Ints& stride, const Ints& padding, const Ints& dilation,
                        bool ceil_mode) {
  const PoolParams p =
      make_pool_params(op.c_str(), input, kernel_size, stride, padding, dilation, ceil_mode);
  return {p.N, p.C, p.P, p.Q};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts, CPU instruction set and geometry checks of cnnkern.";
  m.def("build_info", &build_info,
        "Compiler, torch, CUDA version and archs that the library was built with.");
  m.def(
      "cpu_isa", [] { return isa_name(current_isa()); }, "The instruction set in use.");
  m.def("cpu_isas", &available_isas, "The instruction sets that this CPU and build have.");
  m.def("set_cpu_isa", &set_isa, py::arg("name"),
        "Force an instruction set; ValueError if it is not there.");
  m.def(
      "conv2d_algos",
      [] { return std::vector<std::string>(std::begin(kConvAlgoNames), std::end(kConvAlgoNames)); },
      "The names that algo= takes on the CPU, beside 'auto'.");
  m.def("conv2d_output_size", &conv2d_output_size,
        "[N, K, P, Q] of a convolution; RuntimeError if it is invalid.");
  m.def("pool2d_output_size", &pool2d_output_size,
        "[N, C, P, Q] of a pool; RuntimeError if it is invalid.");
  m.def(
      "check_adaptive_pool2d",
      [](const std::string& op, const Ints& input, const Ints& output_size) {
        make_adaptive_pool_params(op.c_str(), input, output_size);
      },
      "RuntimeError if an adaptive pool's sizes are invalid.");
  m.def(
      "check_act_pool",
      [](const std::string& op, const std::string& activation, const std::string& pool,
         const Ints& pool_kernel_size) {
        check_act_pool(op.c_str(), activation, pool, pool_kernel_size);
      },
      "RuntimeError if the fused block has no such activation or pool.");
}
