// simt.cu: kernels as graphc emits them, right and wrong ones, for nvcc and for graphc's emulator (test_simt.py).
//
//   simt CASE [NUMBER...] < values > results      floats on both sides, or lines of text
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <mma.h>
#define GC_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#define GC_SHARED(type, name, extents) __shared__ type name extents
#else
#include "gc_simt.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FULL 0xffffffffu

// ---- help for the cases ----

static void check(cudaError_t error, int line)
{
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s in line %d\n", cudaGetErrorName(error), line);
    exit(3);
}
#define CHECK(call) check(call, __LINE__)

static float *device_floats(size_t count)
{
    float *memory;
    CHECK(cudaMalloc(&memory, count * sizeof(float)));
    return memory;
}

static float *read_floats(size_t count) // from stdin, into device memory
{
    float *const values = static_cast<float *>(malloc(count * sizeof(float))), *const memory = device_floats(count);
    if (fread(values, sizeof(float), count, stdin) != count) exit(4);
    CHECK(cudaMemcpy(memory, values, count * sizeof(float), cudaMemcpyHostToDevice));
    free(values);
    return memory;
}

static void write_floats(float *memory, size_t count) // to stdout, and frees the memory
{
    float *const values = static_cast<float *>(malloc(count * sizeof(float)));
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(values, memory, count * sizeof(float), cudaMemcpyDeviceToHost));
    if (fwrite(values, sizeof(float), count, stdout) != count) exit(5);
    free(values);
    CHECK(cudaFree(memory));
}

// ---- sums of blocks ----

__global__ void __launch_bounds__(256) sum_shared(const float *__restrict__ in, float *__restrict__ out)
{
    GC_SHARED(float, partial, [256]);
    partial[threadIdx.x] = __ldg(&in[blockIdx.x * blockDim.x + threadIdx.x]);
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}

__device__ __forceinline__ float warp_sum(float value)
{
    for (int delta = warpSize / 2; delta > 0; delta /= 2) value += __shfl_down_sync(FULL, value, delta);
    return value;
}

template <int WARPS> __global__ void sum_shuffled(const float *in, float *out)
{
    GC_SHARED(float, partial, [WARPS]);
    GC_SHARED(float, total, );
    const float sum = warp_sum(in[blockIdx.x * blockDim.x + threadIdx.x]);
    if (threadIdx.x % warpSize == 0) partial[threadIdx.x / warpSize] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        total = 0;
        for (int k = 0; k < WARPS; k++) total += partial[k];
    }
    __syncthreads();
    if (threadIdx.x == 1) out[blockIdx.x] = total;
}

static void sums()
{
    float *const in = read_floats(1024), *const shared = device_floats(4), *const shuffled = device_floats(4);
    GC_LAUNCH(sum_shared, 4, 256, nullptr, in, shared);
    GC_LAUNCH((sum_shuffled<8>), dim3(4), dim3(256), nullptr, in, shuffled);
    write_floats(shared, 4);
    write_floats(shuffled, 4);
    CHECK(cudaFree(in));
}

// ---- a product of matrices ----

__global__ void product(const float *a, const float *b, float *c, int rows, int inner, int columns)
{
    GC_SHARED(float, left, [16][17]);
    GC_SHARED(float, right, [16][17]);
    const int y = threadIdx.y, x = threadIdx.x, row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    float sum = 0;
    for (int tile = 0; tile < inner; tile += 16) {
        left[y][x] = row < rows && tile + x < inner ? a[row * inner + tile + x] : 0;
        right[y][x] = column < columns && tile + y < inner ? b[(tile + y) * columns + column] : 0;
        __syncthreads();
        for (int k = 0; k < 16; k++) sum += left[y][k] * right[k][x];
        __syncthreads();
    }
    if (row < rows && column < columns) c[row * columns + column] = sum;
}

static void matmul()
{
    const int rows = 37, inner = 50, columns = 29;
    float *const a = read_floats(rows * inner), *const b = read_floats(inner * columns);
    float *const c = device_floats(rows * columns);
    const dim3 grid((columns + 15) / 16, (rows + 15) / 16), block(16, 16);
    GC_LAUNCH(product, grid, block, nullptr, a, b, c, rows, inner, columns);
    write_floats(c, rows * columns);
    CHECK(cudaFree(a));
    CHECK(cudaFree(b));
}

// ---- functions of a warp ----

// Results of lane l of a block of 40 threads lie at out[l], out[40 + l], ...: the second warp is not full.
__global__ void warp_functions(float *out)
{
    const int t = threadIdx.x, lane = t % 32;
    const unsigned mask = t < 32 ? FULL : 0xffu;
    int row = 0;
    out[40 * row++ + t] = __shfl_sync(mask, static_cast<double>(t), 3, 8);
    out[40 * row++ + t] = __shfl_up_sync(mask, t, 2u, 8);
    out[40 * row++ + t] = __shfl_down_sync(mask, static_cast<unsigned>(t), 3u, 8);
    out[40 * row++ + t] = __shfl_xor_sync(mask, static_cast<long long>(t), 5, 8);
    out[40 * row++ + t] = __popc(__ballot_sync(mask, lane % 3 == 0));
    out[40 * row++ + t] = __any_sync(mask, t == 35) * 2 + __all_sync(mask, t < 32);
    out[40 * row++ + t] = __reduce_add_sync(mask, lane);
    out[40 * row++ + t] = __reduce_max_sync(mask, static_cast<unsigned>(t));
    out[40 * row++ + t] = __reduce_min_sync(mask, -t);
    out[40 * row++ + t] = __syncthreads_count(t % 4 == 0);
    out[40 * row++ + t] = __syncthreads_or(t == 39) * 2 + __syncthreads_and(t != 39);
    if (t % 2) { // halves of a warp, each in a branch of its own
        out[40 * row++ + t] = __shfl_xor_sync(mask & 0xaaaaaaaau, t, 2);
    } else {
        out[40 * row++ + t] = __shfl_xor_sync(mask & 0x55555555u, t, 4);
    }
    __syncwarp(mask);
}

static void warps()
{
    float *const out = device_floats(12 * 40);
    GC_LAUNCH(warp_functions, 1, 40, nullptr, out);
    write_floats(out, 12 * 40);
}

// ---- places, bits and numbers ----

__global__ void places(float *out)
{
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned count = blockDim.x * blockDim.y * blockDim.z;
    out[block * count + thread] = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z + 1000 * blockIdx.x +
                                  10000 * blockIdx.y + 100000 * blockIdx.z;
}

__global__ void numbers(const float *in, float *out, int count)
{
    const int i = threadIdx.x;
    if (i >= count) return;
    out[i] = __bfloat162float(__float2bfloat16(in[i]));
    out[count + i] = __int_as_float(__float_as_int(in[i]) ^ 1);
    out[2 * count + i] = static_cast<float>(__float2int_rn(in[i]));
    out[3 * count + i] = __fmaf_rn(in[i], in[i], -1.0f);
    out[4 * count + i] = static_cast<float>(__popc(i) + 100 * __ffs(i) + 10000 * __clz(i));
    out[5 * count + i] = max(min(in[i], 2.0f), -2.0f) + rsqrtf(4.0f);
    out[6 * count + i] = nvcuda::wmma::__float_to_tf32(in[i]);
    out[7 * count + i] = __half2float(__float2half(in[i]));
}

static void arithmetic()
{
    float *const where = device_floats(720), *const in = read_floats(200), *const out = device_floats(1600);
    GC_LAUNCH(places, dim3(2, 3, 2), dim3(5, 4, 3), nullptr, where);
    GC_LAUNCH(numbers, 1, 256, nullptr, in, out, 200);
    write_floats(where, 720);
    write_floats(out, 1600);
    CHECK(cudaFree(in));
}

// ---- atomics ----

__global__ void count_all(int *whole, unsigned *less, unsigned long long *more, float *real, double *wide)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&whole[0], -1);
    atomicMax(&whole[1], i);
    atomicMin(&whole[2], -i);
    atomicAdd(less, 2u);
    atomicAdd(more, 1ull << 33);
    atomicAdd(real, 0.5f);
    atomicAdd(wide, 0.25);
    if (atomicCAS(&whole[3], 0, 7) == 0) atomicAdd(&whole[4], 1);
    if (i == 5) whole[5] = atomicExch(&whole[6], 9);
}

static void atomics()
{
    char *memory, host[64];
    CHECK(cudaMalloc(&memory, sizeof host));
    CHECK(cudaMemset(memory, 0, sizeof host));
    GC_LAUNCH(count_all, 3, 100, nullptr, reinterpret_cast<int *>(memory), reinterpret_cast<unsigned *>(memory + 28),
        reinterpret_cast<unsigned long long *>(memory + 32), reinterpret_cast<float *>(memory + 40),
        reinterpret_cast<double *>(memory + 48));
    CHECK(cudaMemcpy(host, memory, sizeof host, cudaMemcpyDeviceToHost));
    if (fwrite(host, 1, sizeof host, stdout) != sizeof host) exit(5);
    CHECK(cudaFree(memory));
}

// ---- matrix fragments ----

using namespace nvcuda;

// d = 2 a b + c; a lies row by row, b column by column.
__global__ void multiply_bf16(const float *a, const float *b, const float *c, float *d)
{
    GC_SHARED(__nv_bfloat16, left, [256]);
    GC_SHARED(__nv_bfloat16, right, [256]);
    for (int k = threadIdx.x; k < 256; k += warpSize) {
        left[k] = __float2bfloat16(a[k]);
        right[k] = __float2bfloat16(b[k]);
    }
    __syncwarp();
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum, start;
    wmma::load_matrix_sync(x, left, 16);
    wmma::load_matrix_sync(y, right, 16);
    wmma::load_matrix_sync(start, c, 16, wmma::mem_row_major);
    wmma::fill_fragment(sum, 0.0f);
    wmma::mma_sync(sum, x, y, sum);
    wmma::mma_sync(sum, x, y, sum);
    for (int k = 0; k < sum.num_elements; k++) sum.x[k] += start.x[k];
    wmma::store_matrix_sync(d, sum, 16, wmma::mem_row_major);
}

__global__ void multiply_tf32(const float *a, const float *b, const float *c, float *d)
{
    wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 8, float> sum;
    wmma::load_matrix_sync(sum, c, 16, wmma::mem_col_major);
    for (int step = 0; step < 16; step += 8) {
        wmma::load_matrix_sync(x, a + step, 16);
        wmma::load_matrix_sync(y, b + step * 16, 16);
        for (int k = 0; k < x.num_elements; k++) x.x[k] = wmma::__float_to_tf32(x.x[k]);
        for (int k = 0; k < y.num_elements; k++) y.x[k] = wmma::__float_to_tf32(y.x[k]);
        wmma::mma_sync(sum, x, y, sum);
    }
    wmma::store_matrix_sync(d, sum, 16, wmma::mem_col_major);
}

static void fragments()
{
    float *const a = read_floats(256), *const b = read_floats(256), *const c = read_floats(256);
    float *const bf16 = device_floats(256), *const tf32 = device_floats(256);
    GC_LAUNCH(multiply_bf16, 1, 32, nullptr, a, b, c, bf16);
    GC_LAUNCH(multiply_tf32, 1, 32, nullptr, a, b, c, tf32);
    write_floats(bf16, 256);
    write_floats(tf32, 256);
    CHECK(cudaFree(a));
    CHECK(cudaFree(b));
    CHECK(cudaFree(c));
}

// ---- mistakes ----

__global__ void reverse(const float *in, float *out, int with_barrier)
{
    GC_SHARED(float, tile, [64]);
    tile[threadIdx.x] = in[threadIdx.x];
    if (with_barrier) __syncthreads();
    out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void read_unwritten(float *out)
{
    GC_SHARED(float, tile, [64]);
    GC_SHARED(double, wide, [64]);
    if (threadIdx.x % 2) tile[threadIdx.x] = 1;
    if (threadIdx.x % 4) wide[threadIdx.x] = 2;
    out[threadIdx.x] = tile[threadIdx.x];
    out[64 + threadIdx.x] = static_cast<float>(wide[threadIdx.x]);
}

template <int THREADS> __global__ void read_shared_at(float *out, int place)
{
    GC_SHARED(float, tile, [THREADS]);
    tile[threadIdx.x] = 1;
    __syncthreads();
    const float *const begin = tile;
    out[threadIdx.x] = begin[static_cast<int>(threadIdx.x) + place];
}

__global__ void read_at(const float *in, float *out, int place)
{
    out[threadIdx.x] = in[static_cast<int>(threadIdx.x) + place];
}

__global__ void part_ways(float *out)
{
    if (threadIdx.y < 5) {
        __syncthreads(); // the first barrier
    } else {
        __syncthreads(); // the second barrier
    }
    out[threadIdx.x] = 1;
}

__global__ void leave_early(float *out, int count)
{
    if (static_cast<int>(threadIdx.x) >= count) return;
    __syncthreads(); // the barrier that some miss
    out[threadIdx.x] = 1;
}

__global__ void miss_lanes(float *out)
{
    if (threadIdx.x % 32 < 30) out[threadIdx.x] = __shfl_xor_sync(FULL, 1.0f, 1); // the shuffle that two lanes miss
}

__global__ void wrong_mask(float *out)
{
    out[threadIdx.x] = __shfl_xor_sync(0xfu, 1.0f, 1); // the mask of four lanes
}

// Argument 0 is the place or the count, if a kernel has one.
static void mistake(const char *name, int number)
{
    const bool reads = strcmp(name, "reverse") == 0;
    float *const out = device_floats(128), *const in = reads ? read_floats(64) : device_floats(64);
    CHECK(cudaMemset(out, 0, 128 * sizeof(float)));
    if (reads) GC_LAUNCH(reverse, 1, 64, nullptr, in, out, number);
    if (strcmp(name, "read_unwritten") == 0) GC_LAUNCH(read_unwritten, 2, 64, nullptr, out);
    if (strcmp(name, "read_shared_at") == 0) GC_LAUNCH((read_shared_at<64>), 1, 64, nullptr, out, number);
    if (strcmp(name, "read_at") == 0) GC_LAUNCH(read_at, 1, 64, nullptr, in, out, number);
    if (strcmp(name, "part_ways") == 0) GC_LAUNCH(part_ways, dim3(1, 2), dim3(8, 8), nullptr, out);
    if (strcmp(name, "leave_early") == 0) GC_LAUNCH(leave_early, 1, 64, nullptr, out, number);
    if (strcmp(name, "miss_lanes") == 0) GC_LAUNCH(miss_lanes, 1, 64, nullptr, out);
    if (strcmp(name, "wrong_mask") == 0) GC_LAUNCH(wrong_mask, 1, 64, nullptr, out);
    write_floats(out, 128);
    CHECK(cudaFree(in));
}

// ---- asynchronous copies ----

__global__ void copy_late(const float *in, float *out, int left_out)
{
    GC_SHARED(float, tile, [2][64]);
    const int t = threadIdx.x;
    __pipeline_memcpy_async(&tile[0][t], &in[t], sizeof(float));
    __pipeline_commit();
    __pipeline_memcpy_async(&tile[1][t], &in[64 + t], sizeof(float), t == 3 ? 4 : 0);
    __pipeline_commit();
    __pipeline_wait_prior(left_out);
    out[t] = tile[0][t];
    out[64 + t] = tile[1][t];
}

static void copies(int left_out)
{
    float *const in = read_floats(128), *const out = device_floats(128);
    GC_LAUNCH(copy_late, 1, 64, nullptr, in, out, left_out);
    write_floats(out, 128);
    CHECK(cudaFree(in));
}

// ---- streams, events, graphs ----

__global__ void scale_and_add(float *x, float scale, const float *add)
{
    x[threadIdx.x] = x[threadIdx.x] * scale + add[threadIdx.x];
}

// Captures x = 2 (3 x + a) + b, half of it in a second stream, and replays it with other data.
static void graph()
{
    float *const x = read_floats(32), *const a = read_floats(32), *const b = read_floats(32);
    float *const result = device_floats(32), scale = 3;
    cudaStream_t first, second;
    cudaEvent_t fork, join;
    cudaGraph_t captured;
    cudaGraphExec_t executable;
    CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CHECK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    CHECK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    CHECK(cudaStreamBeginCapture(first, cudaStreamCaptureModeGlobal));
    float factor = scale;
    GC_LAUNCH(scale_and_add, 1, 32, first, x, factor, a);
    factor = 2;
    CHECK(cudaEventRecord(fork, first));
    CHECK(cudaStreamWaitEvent(second, fork, 0));
    GC_LAUNCH(scale_and_add, 1, 32, second, x, factor, b);
    CHECK(cudaMemcpyAsync(result, x, 32 * sizeof(float), cudaMemcpyDeviceToDevice, second));
    CHECK(cudaMemsetAsync(a, 0, 16 * sizeof(float), second));
    CHECK(cudaEventRecord(join, second));
    CHECK(cudaStreamWaitEvent(first, join, 0));
    factor = 100; // too late
    CHECK(cudaStreamEndCapture(first, &captured));
    CHECK(cudaGraphInstantiate(&executable, captured, 0));
    CHECK(cudaGraphDestroy(captured));
    for (int turn = 0; turn < 2; turn++) CHECK(cudaGraphLaunch(executable, first));
    CHECK(cudaStreamSynchronize(first));
    CHECK(cudaMemcpy(x, b, 32 * sizeof(float), cudaMemcpyDefault));
    CHECK(cudaGraphLaunch(executable, first));
    CHECK(cudaDeviceSynchronize());
    write_floats(result, 32);
    write_floats(x, 32);
    CHECK(cudaGraphExecDestroy(executable));
    CHECK(cudaEventDestroy(fork));
    CHECK(cudaEventDestroy(join));
    CHECK(cudaStreamDestroy(first));
    CHECK(cudaStreamDestroy(second));
    CHECK(cudaFree(a));
    CHECK(cudaFree(b));
}

static void show(const char *what, cudaError_t error) { printf("%s: %s\n", what, cudaGetErrorName(error)); }

// What illegal calls answer.
static void errors()
{
    float *const x = device_floats(1024), *nothing = nullptr, milliseconds;
    cudaStream_t stream, other;
    cudaEvent_t event, silent;
    cudaGraph_t captured;
    GC_LAUNCH(read_at, 1, 1025, nullptr, x, x, 0);
    show("1025 threads, peeked", cudaPeekAtLastError());
    show("1025 threads", cudaGetLastError());
    show("asked again", cudaGetLastError());
    GC_LAUNCH(read_at, 0, 32, nullptr, x, x, 0);
    show("empty grid", cudaGetLastError());
    GC_LAUNCH(read_at, dim3(1, 65536), 32, nullptr, x, x, 0);
    show("tall grid", cudaGetLastError());
    GC_LAUNCH(read_at, 1, dim3(1, 1, 65), nullptr, x, x, 0);
    show("deep block", cudaGetLastError());
    show("no target", cudaMemcpy(nothing, x, 4, cudaMemcpyDeviceToDevice));
    show("direction", cudaMemcpy(x, x, 4, static_cast<cudaMemcpyKind>(9)));
    show("device 7", cudaSetDevice(7));
    cudaGetLastError();
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaStreamCreate(&other));
    CHECK(cudaEventCreate(&event));
    CHECK(cudaEventCreateWithFlags(&silent, cudaEventDisableTiming));
    show("no time", cudaEventElapsedTime(&milliseconds, event, silent));
    show("not capturing", cudaStreamEndCapture(stream, &captured));
    show("default stream", cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    show("synchronised", cudaStreamSynchronize(stream));
    show("invalidated", cudaStreamEndCapture(stream, &captured));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    GC_LAUNCH(read_at, 1, 32, nullptr, x, x, 0);
    show("default stream meanwhile", cudaGetLastError());
    cudaStreamEndCapture(stream, &captured);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    show("allocated meanwhile", cudaMalloc(&nothing, 4));
    cudaStreamEndCapture(stream, &captured);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    CHECK(cudaEventRecord(event, stream));
    CHECK(cudaStreamWaitEvent(other, event, 0));
    GC_LAUNCH(read_at, 1, 32, other, x, x, 0);
    show("wrong stream ends", cudaStreamEndCapture(other, &captured));
    show("and so", cudaStreamEndCapture(stream, &captured));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    CHECK(cudaEventRecord(event, stream));
    CHECK(cudaStreamWaitEvent(other, event, 0));
    GC_LAUNCH(read_at, 1, 32, other, x, x, 0);
    show("unjoined", cudaStreamEndCapture(stream, &captured));
    cudaGetLastError();
    CHECK(cudaStreamDestroy(stream));
    CHECK(cudaStreamDestroy(other));
    CHECK(cudaEventDestroy(event));
    CHECK(cudaEventDestroy(silent));
    CHECK(cudaFree(x));
}

// Three allocations and three launches, one of which the environment lets fail.
static void failing()
{
    float *memory[3] = {};
    for (auto &m : memory) show("cudaMalloc", cudaMalloc(&m, 256));
    for (int k = 0; k < 3; k++) {
        GC_LAUNCH(read_at, 1, 32, nullptr, memory[2], memory[2], 0);
        show("launch", cudaGetLastError());
    }
    for (auto m : memory) CHECK(cudaFree(m));
}

// Events around work in two streams: the second stream sees what the first did.
static void streams()
{
    float *const x = read_floats(32), *const a = read_floats(32), *pinned, milliseconds = -1;
    cudaStream_t first, second;
    cudaEvent_t begin, end;
    cudaDeviceProp properties;
    size_t unused, total;
    CHECK(cudaStreamCreate(&first));
    CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    CHECK(cudaMallocHost(&pinned, 32 * sizeof(float)));
    CHECK(cudaEventRecord(begin, first));
    GC_LAUNCH(scale_and_add, 1, 32, first, x, 2.0f, a);
    CHECK(cudaEventRecord(end, first));
    CHECK(cudaStreamWaitEvent(second, end, 0));
    GC_LAUNCH(scale_and_add, 1, 32, second, x, 2.0f, a);
    CHECK(cudaMemcpyAsync(pinned, x, 32 * sizeof(float), cudaMemcpyDeviceToHost, second));
    CHECK(cudaStreamSynchronize(second));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    CHECK(cudaGetDeviceProperties(&properties, 0));
    CHECK(cudaMemGetInfo(&unused, &total));
    if (milliseconds < 0 || unused >= total || properties.maxThreadsPerBlock != 1024) exit(6);
    if (fwrite(pinned, sizeof(float), 32, stdout) != 32) exit(5);
    CHECK(cudaFreeHost(pinned));
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    CHECK(cudaStreamDestroy(first));
    CHECK(cudaStreamDestroy(second));
    CHECK(cudaFree(x));
    CHECK(cudaFree(a));
}

// A batch that a second stream copies while another is computed: the first stream must wait for it, unless it is to be
// seen that it does not. What was copied before, and what is behind the event, has its turn all the same.
static void staged(int waits)
{
    float *const x = read_floats(32), *const a = read_floats(32), *const place = device_floats(32);
    float *const out = device_floats(64), *pinned;
    cudaStream_t first, second;
    cudaEvent_t copied;
    CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CHECK(cudaEventCreateWithFlags(&copied, cudaEventDisableTiming));
    CHECK(cudaHostAlloc(&pinned, 32 * sizeof(float), cudaHostAllocDefault));
    CHECK(cudaMemcpy(pinned, x, 32 * sizeof(float), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpyAsync(place, pinned, 32 * sizeof(float), cudaMemcpyHostToDevice, second));
    CHECK(cudaEventRecord(copied, second));
    CHECK(cudaMemcpyAsync(out, a, 32 * sizeof(float), cudaMemcpyDeviceToDevice, second));
    if (waits) CHECK(cudaStreamWaitEvent(first, copied, 0));
    GC_LAUNCH(scale_and_add, 1, 32, first, place, 2.0f, a);
    CHECK(cudaMemcpyAsync(out + 32, place, 32 * sizeof(float), cudaMemcpyDeviceToDevice, first));
    CHECK(cudaStreamSynchronize(first));
    CHECK(cudaStreamSynchronize(second));
    CHECK(cudaFreeHost(pinned));
    CHECK(cudaEventDestroy(copied));
    CHECK(cudaStreamDestroy(first));
    CHECK(cudaStreamDestroy(second));
    for (float *m : {x, a, place}) CHECK(cudaFree(m));
    write_floats(out, 64);
}

#ifdef GC_SIMT_REPORT
void GC_SIMT_REPORT(const char *message) { printf("reported: %s", message); }

// After a report that returns, the launch has failed, and so does all that follows.
static void reported()
{
    float *const out = device_floats(128);
    GC_LAUNCH(part_ways, 2, dim3(8, 8), nullptr, out);
    show("after it", cudaDeviceSynchronize());
    GC_LAUNCH(read_at, 1, 32, nullptr, out, out, 0);
    show("the next launch", cudaGetLastError());
    cudaFree(out);
}
#endif

int main(int count, char **words)
{
    const char *const name = count > 1 ? words[1] : "";
    const int number = count > 2 ? atoi(words[2]) : 0;
    if (strcmp(name, "sums") == 0) sums();
    else if (strcmp(name, "matmul") == 0) matmul();
    else if (strcmp(name, "warps") == 0) warps();
    else if (strcmp(name, "arithmetic") == 0) arithmetic();
    else if (strcmp(name, "atomics") == 0) atomics();
    else if (strcmp(name, "fragments") == 0) fragments();
    else if (strcmp(name, "copies") == 0) copies(number);
    else if (strcmp(name, "graph") == 0) graph();
    else if (strcmp(name, "errors") == 0) errors();
    else if (strcmp(name, "failing") == 0) failing();
    else if (strcmp(name, "streams") == 0) streams();
    else if (strcmp(name, "staged") == 0) staged(number);
#ifdef GC_SIMT_REPORT
    else if (strcmp(name, "reported") == 0) reported();
#endif
    else mistake(name, number);
    return 0;
}
