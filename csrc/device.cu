#include "device.h"

extern "C" __attribute__((visibility("hidden"))) const char* gpfast_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

// A machine without a driver has no device: that is no error here.
extern "C" __attribute__((visibility("hidden"))) int gpfast_cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

extern "C" __attribute__((visibility("hidden"))) const char* gpfast_cuda_targets() { return GPFAST_CUDA_TARGETS; }
