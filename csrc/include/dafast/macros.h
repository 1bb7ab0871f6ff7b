// Shared by host and device code; no torch headers here or in anything this folder holds, so that
// plain g++ and plain nvcc compile it.
#pragma once

#if defined(__CUDACC__)
#define DAFAST_HOST_DEVICE __host__ __device__
#elif defined(__GNUC__)
// Never a function of its own: files for different instruction sets share these.
#define DAFAST_HOST_DEVICE __attribute__((always_inline))
#else
#define DAFAST_HOST_DEVICE
#endif

#define DAFAST_RESTRICT __restrict
