// pybind11 module cnnkern._C: build facts, the CPU instruction set, and the shared geometry checks.
// The ops themselves are registered with torch's dispatcher by the binders linked into this
// library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>

#include "cpu/caching_allocator.h"
#include "cpu/conv2d_select.h"
#include "cpu/isa.h"
#include "cpu/output.h"
#include "cuda/conv2d_select.h"
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

ConvQuery make_cuda_query(const std::string& pass, const std::string& dtype, const Ints& input,
                          const Ints& weight, const Ints& stride, const Ints& padding,
                          const Ints& dilation, int64_t groups, const std::string& padding_mode,
                          bool channels_last, bool weight_channels_last, int arch) {
  const auto index_of = [](const char* argument, const std::string& name,
                           const std::vector<std::string>& names) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end())
      throw std::invalid_argument(std::string(argument) + " is unknown: '" + name + "'");
    return int(found - names.begin());
  };
  ConvQuery q;
  q.p = make_conv_params("conv2d", input, weight, stride, padding, dilation, groups, padding_mode);
  q.dtype = DType(index_of("dtype", dtype, {"float32", "float64", "bfloat16", "float16"}));
  q.pass = ConvPass(index_of("pass", pass, {"fprop", "dgrad", "wgrad"}));
  q.nhwc = channels_last;
  q.weight_nhwc = weight_channels_last;
  q.arch = arch;
  return q;
}

// (name of the chosen algorithm, {name: why it does not apply, or "" where it does}).
template <typename... Args>
std::pair<std::string, std::map<std::string, std::string>> cuda_conv2d_selection(
    Args... args, const std::string& algo) {
  const ConvQuery query = make_cuda_query(args...);
  std::map<std::string, std::string> reasons;
  for (const ConvAlgorithm& a : kCudaConvAlgorithms) reasons[a.name] = a.supports(query);
  return {select_cuda_conv2d("conv2d", query, algo).name, reasons};
}

// cnnkern.fused._traced_parameters, whose loop in Python takes longer than LeNet's convolutions.
py::object plain_parameters(const py::iterable& modules) {
  static PyObject* const hooks[] = {PyUnicode_InternFromString("_forward_hooks"),
                                    PyUnicode_InternFromString("_forward_pre_hooks"),
                                    PyUnicode_InternFromString("_backward_hooks"),
                                    PyUnicode_InternFromString("_backward_pre_hooks")};
  static PyObject* const parameters = PyUnicode_InternFromString("_parameters");
  static PyObject* const names[] = {PyUnicode_InternFromString("weight"),
                                    PyUnicode_InternFromString("bias")};
  auto dict_in = [](PyObject* dict, PyObject* name) {  // borrowed; null if there is none
    PyObject* found = PyDict_GetItemWithError(dict, name);
    if (PyErr_Occurred()) throw py::error_already_set();
    return found && PyDict_Check(found) ? found : nullptr;
  };
  py::list result;
  for (py::handle module : modules) {
    const auto dict =
        py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module.ptr(), nullptr));
    if (!dict) throw py::error_already_set();
    for (PyObject* name : hooks) {
      PyObject* of_kind = dict_in(dict.ptr(), name);
      if (!of_kind || PyDict_Size(of_kind) != 0) return py::none();
    }
    PyObject* own = dict_in(dict.ptr(), parameters);
    if (!own) return py::none();
    if (PyDict_Size(own) == 0) continue;
    for (PyObject* name : names) {
      PyObject* parameter = PyDict_GetItemWithError(own, name);
      if (!parameter || parameter == Py_None) return py::none();
      result.append(py::handle(parameter));
    }
  }
  return result;
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
  m.def("cpu_cached_bytes", &cached_bytes, "Bytes of freed memory that wait for the next output.");
  m.def("empty_cpu_cache", &empty_cache, "Give the memory of freed outputs back to the system.");
  m.def("poison_cpu_outputs", &poison_outputs, py::arg("on"),
        "Tests only: fill new CPU outputs with NaN, so that what is not written is seen.");
  m.def("plain_parameters", &plain_parameters, py::arg("modules"),
        "Weight and bias of each module that has parameters; None if one has a hook or only one of "
        "the two.");
  m.def(
      "conv2d_algos",
      [] { return std::vector<std::string>(std::begin(kConvAlgoNames), std::end(kConvAlgoNames)); },
      "The names that algo= takes on the CPU, beside 'auto'.");
  m.def(
      "cuda_conv2d_algos",
      [] {
        std::vector<std::string> names;
        for (const ConvAlgorithm& a : kCudaConvAlgorithms) names.push_back(a.name);
        return names;
      },
      "The names that algo= takes on CUDA, beside 'auto' and Triton's.");
  m.def(
      "cuda_conv2d_selection",
      &cuda_conv2d_selection<const std::string&, const std::string&, const Ints&, const Ints&,
                             const Ints&, const Ints&, const Ints&, int64_t, const std::string&,
                             bool, bool, int>,
      py::arg("pass_"), py::arg("dtype"), py::arg("input"), py::arg("weight"),
      py::arg("stride") = Ints{1, 1}, py::arg("padding") = Ints{0, 0, 0, 0},
      py::arg("dilation") = Ints{1, 1}, py::arg("groups") = 1, py::arg("padding_mode") = "zeros",
      py::arg("channels_last") = false, py::arg("weight_channels_last") = false,
      py::arg("arch") = 80, py::arg("algo") = "auto",
      "Which CUDA algorithm computes a problem, and for each the reason why it does not apply, '' "
      "where it does. No GPU needed; arch 80 is compute capability 8.0.");
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
