/* probe.cu: what there is to compute on. */
#include "probe.h"

#include <stdio.h>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "gc_simt.h"
#endif

int32_t probe_device(char *text, size_t size)
{
    int device = 0;
    cudaDeviceProp found = {};
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&found, device);
    if (error == cudaSuccess) snprintf(text, size, "%s, %d multiprocessors", found.name, found.multiProcessorCount);
    else snprintf(text, size, "%s", cudaGetErrorString(error));
    return error != cudaSuccess;
}
