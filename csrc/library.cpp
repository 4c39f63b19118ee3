// gpfast._C: importing it registers the kernels of this folder. The ops that also have a plain PyTorch path are declared beside it,
// in Python; declared here is what only the extension has.
#include <Python.h>

#include <torch/library.h>
#include <torch/version.h>

#include <string>

#include "device.h"

namespace {

#ifdef GPFAST_WITH_CUDA
std::string cuda_targets() { return gpfast_cuda_targets(); }
int64_t cuda_device_count() { return gpfast_cuda_device_count(); }
#else
std::string cuda_targets() { return ""; }
int64_t cuda_device_count() { return 0; }
#endif

#ifdef __clang__
#define GPFAST_COMPILER __VERSION__
#else
#define GPFAST_COMPILER "GCC " __VERSION__
#endif

// JSON.
std::string build_info() {
  return R"({"cuda_targets": ")" + cuda_targets() + R"(", "compiler": ")" GPFAST_COMPILER R"(", "torch": ")" TORCH_VERSION R"("})";
}

}  // namespace

TORCH_LIBRARY(gpfast, m) {
  m.def("build_info() -> str", &build_info);
  m.def("cuda_device_count() -> int", &cuda_device_count);
  m.def("interpolate_cuda(Tensor real, Tensor fake, Tensor alpha) -> Tensor");
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
