#pragma once
// The CUDA runtime as the C++ files see it: without its headers.

extern "C" {
const char* gpfast_cuda_error(int error);
int gpfast_cuda_device_count();
const char* gpfast_cuda_targets();
}
