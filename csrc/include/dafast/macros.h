// Macros for host and device code. No file in this folder includes torch headers, so that plain g++
// and plain nvcc compile it.
#pragma once

#if defined(__CUDACC__)
#define DAFAST_HOST_DEVICE __host__ __device__
#elif defined(__GNUC__)
// Always inlined, because kernels for different instruction sets share these functions; see
// cpu/each_isa.h.
#define DAFAST_HOST_DEVICE __attribute__((always_inline))
#else
#define DAFAST_HOST_DEVICE
#endif

#define DAFAST_RESTRICT __restrict
