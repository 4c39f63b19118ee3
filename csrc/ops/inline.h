#pragma once
// Formulas that the CPU kernels and the CUDA kernels share.
#ifdef __CUDACC__
#define GPFAST_INLINE __host__ __device__ __forceinline__
#else
#define GPFAST_INLINE inline __attribute__((always_inline))
#endif
