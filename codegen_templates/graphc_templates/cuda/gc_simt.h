// gc_simt.h: runs CUDA kernels on a CPU, in one thread of the operating system, to read, run and debug them.
//
// A source that includes this header instead of <cuda_runtime.h> compiles with g++ or clang++ (-std=c++17): kernels
// become functions, device memory is host memory, and streams work at once. The threads of a block are fibres that
// take turns, so everything is deterministic; the blocks of a grid run one after the other. That is slower than the
// device, and sees more: barriers that some threads miss, shared memory that nobody wrote (with -DGC_SIMT_DEBUG),
// and with -fsanitize=address every access outside an array.
//
// What depends on the compiler stands in two macros. nvcc does not include this header; there a source defines
//
//   #define GC_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
//   #define GC_SHARED(type, name, extents) __shared__ type name extents
//
// Switches, to be the same in all translation units of a program:
//
//   GC_SIMT_DEBUG         threads run in a random order, memory starts as NaNs, and copies are as late as they may be
//   GC_SIMT_SEED=n        (macro or environment variable) the seed of that order, 1 by default
//   GC_SIMT_FAIL_AFTER=n  (macro or environment variable) the n-th allocation, stream or launch (of a graph, too) fails
//   GC_SIMT_FAIL_COPY=n   (environment variable) the n-th call that copies fails
//   GC_SIMT_DEVICE_BYTES=n  (macro or environment variable) the memory of the device, 8 GiB by default
//   GC_SIMT_REPORT=f      what is called with the text of an error instead of printing it and aborting
//   GC_SIMT_STACK=bytes   of every thread
//   GC_SIMT_UCONTEXT      switches fibres by <ucontext.h>, which is there for processors without a switch below
//
// Contents
//    1. The language: qualifiers and vector types
//    2. Where a thread finds itself: threadIdx and its kin
//    3. Fibres: stacks and the switch between them
//    4. Errors of a kernel
//    5. The scheduler: which thread runs next
//    6. Barriers of a block
//    7. Functions of a warp
//    8. Shared memory
//    9. Arithmetic and atomics
//   10. Formats of 16 bits, and matrix fragments
//   11. Asynchronous copies
//   12. The runtime: errors, memory, streams, events, graphs
//   13. Launches
#ifndef GC_SIMT_H
#define GC_SIMT_H

#ifdef __CUDACC__
#error "gc_simt.h stands in for CUDA where there is none; nvcc needs <cuda_runtime.h> instead"
#endif

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define GC_SIMT_MMAP 1
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GC_SIMT_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define GC_SIMT_ASAN 1
#endif
#ifdef GC_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(GC_SIMT_UCONTEXT) && !(defined(__x86_64__) && !defined(__ILP32__)) && !defined(__aarch64__)
#define GC_SIMT_UCONTEXT 1
#endif
#ifdef GC_SIMT_UCONTEXT
#include <ucontext.h>
#endif

// Variables of the emulator. Translation units share them; shared libraries do not, since a process may load one that
// was built for debugging beside one that was not.
#define GC_SIMT_STATE inline __attribute__((visibility("hidden")))

// The place of a call, as default arguments: a barrier knows the source line that it stands in without a macro.
#define GC_SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- 1. The language: qualifiers and vector types --------------------------------------------------------------

// Where code and data live is all the same here. __noinline__ is missing: libstdc++ uses that word itself.
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// The alignments are CUDA's: a float4 is loaded by one instruction, and a sanitizer finds one that cannot be.
#define GC_SIMT_VECTORS(scalar, name, two, four)                                                                    \
    struct alignas(two) name##2 { scalar x, y; };                                                                   \
    struct name##3 { scalar x, y, z; };                                                                             \
    struct alignas(four) name##4 { scalar x, y, z, w; };                                                            \
    constexpr name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                                         \
    constexpr name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                            \
    constexpr name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
GC_SIMT_VECTORS(float, float, 8, 16)
GC_SIMT_VECTORS(int, int, 8, 16)
GC_SIMT_VECTORS(unsigned, uint, 8, 16)
GC_SIMT_VECTORS(double, double, 16, 16)
#undef GC_SIMT_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// ---- 2. Where a thread finds itself: threadIdx and its kin -----------------------------------------------------

constexpr int warpSize = 32;

namespace gc_simt {

constexpr unsigned lanes_of_warp = 32, most_threads = 1024, most_shared_bytes = 48 * 1024;

// Only one thread runs at any time, so "the thread's index" is a variable, set whenever another takes its turn.
struct position {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
GC_SIMT_STATE position here{};

} // namespace gc_simt

// References, so that kernels cannot assign to them; compilers see through these to the variable.
GC_SIMT_STATE const uint3 &threadIdx = gc_simt::here.thread;
GC_SIMT_STATE const uint3 &blockIdx = gc_simt::here.block;
GC_SIMT_STATE const dim3 &blockDim = gc_simt::here.block_dim;
GC_SIMT_STATE const dim3 &gridDim = gc_simt::here.grid_dim;

// ---- 3. Fibres: stacks and the switch between them -------------------------------------------------------------
//
// A thread that waits must keep its local variables, so it keeps its stack. A fibre is a stack with the place where
// its code goes on. The idea is Conway's coroutine (1963, "Design of a separable transition-diagram compiler").

namespace gc_simt {

#ifndef GC_SIMT_STACK
#ifdef GC_SIMT_ASAN
#define GC_SIMT_STACK (256 * 1024) // sanitizers put gaps between local variables
#else
#define GC_SIMT_STACK (64 * 1024)
#endif
#endif

struct fibre {
#ifdef GC_SIMT_UCONTEXT
    ucontext_t context;
#else
    void *stack_pointer;
#endif
    const void *stack; // lowest byte, and how many
    size_t stack_bytes;
    void *fake_stack; // AddressSanitizer's own stack for variables whose address is taken
    unsigned number;
};

// The fibre that runs, the one that ran before it, and the one that launched the kernel.
GC_SIMT_STATE fibre *running = nullptr, *left_behind = nullptr;
GC_SIMT_STATE fibre host{};

// Tells AddressSanitizer on which stack we are now; it says in return which one we come from.
inline void arrive(fibre *self)
{
#ifdef GC_SIMT_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, &left_behind->stack, &left_behind->stack_bytes);
#endif
    (void)self;
}

#if defined(__GNUC__) && !defined(__clang__)
#define GC_SIMT_OPAQUE __attribute__((noinline, noipa)) // callers may assume nothing about registers
#else
#define GC_SIMT_OPAQUE __attribute__((noinline))
#endif

// Saves where `from` is and goes on where `to` was left. The assembly keeps only the stack pointer, the frame pointer
// and the address to go on at: it says that it changes all other registers, so the compiler saves those that matter.
inline GC_SIMT_OPAQUE void switch_fibre(fibre *from, fibre *to)
{
    running = to;
    left_behind = from;
#ifdef GC_SIMT_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#if defined(GC_SIMT_UCONTEXT)
    swapcontext(&from->context, &to->context);
#elif defined(__x86_64__)
    void **save = &from->stack_pointer;
    void *target = to->stack_pointer;
    // The first line steps over the red zone, 128 bytes below the stack pointer that a function may use. The jump is
    // none by `ret`, whose target the processor would guess wrong every time.
    asm volatile("subq $128, %%rsp\n\t"
                 "pushq %%rbp\n\t"
                 "leaq 1f(%%rip), %%rax\n\t"
                 "pushq %%rax\n\t"
                 "movq %%rsp, (%0)\n\t"
                 "movq %1, %%rsp\n\t"
                 "popq %%rax\n\t"
                 "jmp *%%rax\n"
                 "1:\tpopq %%rbp\n\t"
                 "addq $128, %%rsp"
                 : "+D"(save), "+S"(target)
                 :
                 : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1",
                   "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
                   "xmm14", "xmm15", "cc", "memory");
#else // aarch64
    register void **save asm("x0") = &from->stack_pointer;
    register void *target asm("x1") = to->stack_pointer;
    asm volatile("adr x9, 1f\n\t"
                 "stp x29, x9, [sp, #-16]!\n\t"
                 "mov x9, sp\n\t"
                 "str x9, [%0]\n\t"
                 "mov sp, %1\n\t"
                 "ldp x29, x9, [sp], #16\n\t"
                 "ret x9\n"
                 "1:"
                 : "+r"(save), "+r"(target)
                 :
                 : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16",
                   "x17", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x30", "v0", "v1",
                   "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16",
                   "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30",
                   "v31",
                   "cc", "memory");
#endif
    arrive(from);
}

inline void fibre_main(); // what every fibre runs; it stands in section 5

// Lets a fibre begin with fibre_main when it is switched to, whatever it did before.
inline void prepare(fibre *f)
{
    char *const bottom = static_cast<char *>(const_cast<void *>(f->stack));
    f->fake_stack = nullptr;
#ifdef GC_SIMT_ASAN
    __asan_unpoison_memory_region(bottom, f->stack_bytes);
#endif
#ifdef GC_SIMT_UCONTEXT
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = bottom;
    f->context.uc_stack.ss_size = f->stack_bytes;
    f->context.uc_link = nullptr;
    makecontext(&f->context, fibre_main, 0);
#else
    // All stacks begin a multiple of 64 KiB apart, at addresses that share one set of the first cache and few of the
    // second; each starts some lines lower than the one before instead.
    char *const top = bottom + f->stack_bytes - 64 - f->number % 43 * 192;
    void **const words = reinterpret_cast<void **>(top - reinterpret_cast<uintptr_t>(top) % 16) - 4;
    const auto begin = reinterpret_cast<void *>(&fibre_main);
    for (int k = 0; k < 4; k++) words[k] = nullptr; // debuggers stop where the return address is 0
#if defined(__x86_64__)
    words[0] = begin;
#else
    words[1] = begin;
#endif
    f->stack_pointer = words;
#endif
}

// Returns a new fibre. Where pages can be protected, the one below the stack is: a thread that needs more stack than
// there is ends the program instead of writing over another thread's.
inline fibre *make_fibre(unsigned number)
{
    fibre *const f = static_cast<fibre *>(calloc(1, sizeof(fibre)));
    f->number = number;
    f->stack_bytes = GC_SIMT_STACK;
#ifdef GC_SIMT_MMAP
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    f->stack_bytes = (f->stack_bytes + page - 1) / page * page;
    void *const memory =
        mmap(nullptr, page + f->stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
        fputs("graphc's emulator: no memory for a thread's stack\n", stderr);
        abort();
    }
    f->stack = static_cast<char *>(memory) + page;
#else
    f->stack = malloc(f->stack_bytes);
#endif
    prepare(f);
    return f;
}

// All fibres, those on top free. The last that became free is the next to be used: its stack is in the cache.
struct fibre_pool {
    fibre *all[most_threads + 1], *free[most_threads + 1];
    unsigned made, free_count;

    fibre *take()
    {
        if (free_count > 0) return free[--free_count];
        fibre *const f = make_fibre(made);
        return all[made++] = f;
    }
    void give(fibre *f) { free[free_count++] = f; }
    void reset() // after a block that was given up in the middle
    {
        for (free_count = 0; free_count < made; free_count++) prepare(free[free_count] = all[free_count]);
    }
};
GC_SIMT_STATE fibre_pool pool{};

} // namespace gc_simt

// ---- 4. Errors of a kernel -------------------------------------------------------------------------------------
//
// What a kernel does wrong has no error code on a device: it hangs, or its results are undefined. Here it is
// reported with names and lines, and the program ends. A test may define GC_SIMT_REPORT as a function of its own;
// if that returns, the block is given up and the launch fails with cudaErrorLaunchFailure.

#ifdef GC_SIMT_REPORT
void GC_SIMT_REPORT(const char *message);
inline void gc_simt_report(const char *message) { GC_SIMT_REPORT(message); }
#else
inline void gc_simt_report(const char *message)
{
    fputs(message, stderr);
    abort();
}
#endif

namespace gc_simt {

// A call that waits: its name, and the line that it stands in.
struct site {
    const char *name, *file;
    int line;
};
inline bool same_text(const char *a, const char *b) { return a == b || strcmp(a, b) == 0; }
inline bool operator==(const site &a, const site &b)
{
    return a.line == b.line && same_text(a.name, b.name) && same_text(a.file, b.file);
}

// Text of bounded length, made without an allocation: it is written on a kernel's stack.
struct message {
    char text[4096];
    size_t length = 0;

    template <class... A> message &add(const char *format, A... values)
    {
        const int more = snprintf(text + length, sizeof text - length, format, values...);
        if (more > 0) length = length + static_cast<size_t>(more) < sizeof text ? length + more : sizeof text - 1;
        return *this;
    }
    message &add(const char *plain) { return add("%s", plain); }
};

// ---- 5. The scheduler: which thread runs next ------------------------------------------------------------------
//
// Threads are started one after the other, and most end without waiting for anybody. So a fibre starts a thread, and
// when that has ended, the next: a kernel without barriers runs as a loop on one fibre. Only when a thread waits must
// it keep its stack, and another fibre starts the next thread. When the last of those that wait for each other
// arrives, they become ready, in the order of their numbers. If nobody can run and some wait, they wait for ever:
// that is the error which hangs a device.

// What is known of a thread that waits.
struct waiting_thread {
    uint3 index;
    unsigned mask;     // of a warp's function, 0 at a barrier
    fibre *on;         // null: this thread does not wait
    const site *where; // on the stack of this thread, as is the operand
    void *operand;
};

struct block_state {
    // of the launch
    const char *kernel;
    site launch;
    void (*start_threads)(const void *body); // runs threads, one after the other, until none is left to start
    const void *body;
    unsigned threads; // of a block
    unsigned long long serial; // of the block, over the whole program; 0 is before the first
    bool in_kernel, given_up;

    // of the block
    unsigned current, started; // the number of the thread that runs; how many ran or run
    unsigned next_y, next_z, next_x; // the index of the thread that is started next
    unsigned waiting_count;
    waiting_thread waiting[most_threads];
    unsigned waiting_lanes[most_threads / lanes_of_warp]; // of each warp, those that wait in functions of the warp
    unsigned ready[most_threads], ready_first, ready_count; // a ring of numbers
    unsigned order[most_threads];                           // in which threads are started (debug mode)
    const site *barrier; // where the first of them waits
    unsigned arrived, votes, result; // of the barrier
    bool mixed; // some threads wait at one barrier and some at another
    size_t shared_bytes;
};
GC_SIMT_STATE block_state now{};

inline void make_ready(unsigned thread)
{
    now.ready[(now.ready_first + now.ready_count++) % most_threads] = thread;
}

// In debug mode any order that the device could have may come: what is right in some orders only is wrong.
struct random_order {
    uint64_t state = 0;

    void seed(uint64_t number) { state = (number + 1) * 0x9e3779b97f4a7c15u; }
    unsigned below(unsigned count) // xorshift64* of Vigna 2016, "An experimental exploration of Marsaglia's..."
    {
        if (state == 0) {
            const char *const text = getenv("GC_SIMT_SEED");
#ifdef GC_SIMT_SEED
            seed(text ? strtoull(text, nullptr, 10) : GC_SIMT_SEED);
#else
            seed(text ? strtoull(text, nullptr, 10) : 1);
#endif
        }
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<unsigned>(((state * 0x2545f4914f6cdd1du) >> 32) * count >> 32);
    }
};
GC_SIMT_STATE random_order chance{};

inline uint3 index_of(unsigned thread)
{
    const dim3 d = here.block_dim;
    return {thread % d.x, thread / d.x % d.y, thread / d.x / d.y};
}

// Makes another thread the one that runs, and says whether there was one to start.
inline bool next_thread()
{
    if (now.started == now.threads) return false;
#ifdef GC_SIMT_DEBUG
    const unsigned other = now.started + chance.below(now.threads - now.started);
    const unsigned thread = now.order[other];
    now.order[other] = now.order[now.started];
    now.order[now.started] = thread;
    now.current = thread;
    here.thread = index_of(thread);
#else
    now.current = now.started;
    here.thread.x = now.next_x; // counted, since divisions would cost more than all the rest
    here.thread.y = now.next_y;
    here.thread.z = now.next_z;
    if (++now.next_x == here.block_dim.x) {
        now.next_x = 0;
        if (++now.next_y == here.block_dim.y) now.next_y = 0, now.next_z++;
    }
#endif
    now.started++;
    return true;
}

[[noreturn]] inline void give_up(message &text); // reports, and leaves the block
inline void report_stuck();

// The running thread waits, or its fibre has no thread left to run: goes on with whoever can.
inline void run_another()
{
    fibre *const from = running, *to = nullptr;
    const unsigned unstarted = now.threads - now.started;
    bool start = unstarted > 0 && now.ready_count == 0;
#ifdef GC_SIMT_DEBUG
    if (now.ready_count > 0) {
        const unsigned other = chance.below(now.ready_count + unstarted);
        start = other >= now.ready_count;
        if (!start) { // take any of the ready instead of the first
            unsigned &a = now.ready[(now.ready_first + other) % most_threads], &b = now.ready[now.ready_first];
            const unsigned thread = a;
            a = b;
            b = thread;
        }
    }
#endif
    if (start) {
        to = pool.take();
    } else if (now.ready_count > 0) {
        now.current = now.ready[now.ready_first];
        now.ready_first = (now.ready_first + 1) % most_threads;
        now.ready_count--;
        waiting_thread &t = now.waiting[now.current];
        here.thread = t.index;
        to = t.on;
        t.on = nullptr;
        now.waiting_count--;
    } else {
        if (now.waiting_count > 0) report_stuck();
        to = &host;
    }
    if (to != from) switch_fibre(from, to);
}

// What every fibre does for ever.
inline void fibre_main()
{
    arrive(running);
    for (;;) {
        now.start_threads(now.body);
        pool.give(running);
        run_another();
    }
}

inline void wait_at(const site &where, unsigned mask, void *operand)
{
    if (!now.in_kernel) {
        fprintf(stderr, "graphc's emulator: %s outside a kernel, at %s:%d\n", where.name, where.file, where.line);
        abort();
    }
    waiting_thread &t = now.waiting[now.current];
    t.index = here.thread;
    t.mask = mask;
    t.on = running;
    t.where = &where;
    t.operand = operand;
    now.waiting_count++;
}

inline void start_message(message &text, const char *what)
{
    text.add("graphc's emulator: %s in kernel %s, block (%u, %u, %u) of %u threads, launched at %s:%d\n", what,
        now.kernel, here.block.x, here.block.y, here.block.z, now.threads, now.launch.file, now.launch.line);
}

// Adds the numbers of all threads for which `holds`, as ranges.
template <class Condition> void add_threads(message &text, Condition holds)
{
    const char *comma = "";
    for (unsigned k = 0; k < now.threads; k++) {
        if (!holds(k)) continue;
        const unsigned first = k;
        while (k + 1 < now.threads && holds(k + 1)) k++;
        if (first == k) text.add("%s%u", comma, k);
        else text.add("%s%u-%u", comma, first, k);
        comma = ", ";
    }
}

// Says which threads wait where, when none can go on.
inline void report_stuck()
{
    message text;
    unsigned live = 0;
    for (unsigned k = 0; k < now.threads; k++) live += now.waiting[k].on != nullptr;
    start_message(text, "barrier divergence");
    if (live < now.threads) {
        text.add("  threads that have ended: ");
        add_threads(text, [](unsigned k) { return !now.waiting[k].on; });
        text.add("\n");
    }
    for (unsigned k = 0; k < now.threads; k++) {
        const waiting_thread &t = now.waiting[k];
        const auto together = [&t](unsigned other) {
            const waiting_thread &o = now.waiting[other];
            return o.on && o.mask == t.mask && *o.where == *t.where;
        };
        bool first = t.on;
        for (unsigned before = 0; before < k && first; before++) first = !together(before);
        if (!first) continue;
        text.add("  threads that wait for others in %s at %s:%d", t.where->name, t.where->file, t.where->line);
        if (t.mask) text.add(", mask 0x%08x", t.mask);
        text.add(": ");
        add_threads(text, together);
        text.add("\n");
    }
    give_up(text);
}

inline void give_up(message &text)
{
    gc_simt_report(text.text);
    now.given_up = true;
    switch_fibre(running, &host);
    abort(); // nobody comes back to a fibre that was left here
}

// Runs all threads of one block.
inline void run_block()
{
    now.serial++;
    now.started = now.ready_first = now.ready_count = now.arrived = now.votes = 0;
    now.next_x = now.next_y = now.next_z = now.waiting_count = 0;
    now.mixed = false;
    now.shared_bytes = 0;
#ifdef GC_SIMT_DEBUG
    for (unsigned k = 0; k < now.threads; k++) now.order[k] = k;
#endif
    now.in_kernel = true;
    switch_fibre(&host, pool.take());
    now.in_kernel = false;
    if (!now.given_up) return;
    for (waiting_thread &t : now.waiting) t.on = nullptr;
    for (unsigned &lanes : now.waiting_lanes) lanes = 0;
    pool.reset();
}

// Runs the blocks of a grid in the order of their numbers; `body` is what one thread does. Says whether it went well.
template <class Body>
bool run_grid(const char *kernel, const site &launch, dim3 grid, dim3 block, const Body &body)
{
    if (now.in_kernel) return false; // a kernel that launches kernels is not modelled
    now.kernel = kernel;
    now.launch = launch;
    now.body = &body;
    now.start_threads = [](const void *made) {
        while (next_thread()) (*static_cast<const Body *>(made))();
    };
    now.threads = block.x * block.y * block.z;
    now.given_up = false;
    here.grid_dim = grid;
    here.block_dim = block;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x && !now.given_up; x++) {
                here.block = {x, y, z};
                run_block();
            }
        }
    }
    return !now.given_up;
}

// ---- 6. Barriers of a block ------------------------------------------------------------------------------------
//
// CUDA allows a barrier in a branch only if all threads of the block take it. So the threads must meet in one line of
// the source, and none may have ended. (Devices since Volta count threads that have ended as having arrived; the
// programming guide promises that for no older one, and a thread that ends early is mostly one that was forgotten.)

inline unsigned wait_for_block(const site &where, bool vote)
{
    wait_at(where, 0, nullptr);
    if (now.arrived == 0) now.barrier = &where;
    else if (!(*now.barrier == where)) now.mixed = true;
    now.arrived++;
    now.votes += vote;
    if (now.arrived == now.threads && !now.mixed) {
        now.result = now.votes; // nobody changes it before all have read it, since the next barrier needs all
        now.arrived = now.votes = 0;
        for (unsigned k = 0; k < now.threads; k++) make_ready(k);
    }
    run_another();
    return now.result;
}

} // namespace gc_simt

inline void __syncthreads(GC_SIMT_HERE)
{
    gc_simt::wait_for_block({"__syncthreads", file, line}, false);
}
inline int __syncthreads_count(int vote, GC_SIMT_HERE)
{
    return static_cast<int>(gc_simt::wait_for_block({"__syncthreads_count", file, line}, vote != 0));
}
inline int __syncthreads_or(int vote, GC_SIMT_HERE)
{
    return gc_simt::wait_for_block({"__syncthreads_or", file, line}, vote != 0) > 0;
}
inline int __syncthreads_and(int vote, GC_SIMT_HERE)
{
    return gc_simt::wait_for_block({"__syncthreads_and", file, line}, vote != 0) == gc_simt::now.threads;
}

// Memory is always up to date with one thread of the operating system; the compiler must not keep it in registers.
inline void __threadfence() { asm volatile("" ::: "memory"); }
inline void __threadfence_block() { asm volatile("" ::: "memory"); }
inline void __threadfence_system() { asm volatile("" ::: "memory"); }

// ---- 7. Functions of a warp ------------------------------------------------------------------------------------
//
// All lanes that the mask names must call the same function, from one line, with the same mask. Each brings an
// operand, a structure on its stack; the last that arrives computes the results of all, and then all go on. (Every
// stack is ordinary memory, so that one thread can write into another's.)

namespace gc_simt {

constexpr uint64_t poison_word = 0x7ff47ff47ff47ff4u; // a NaN as double, float, bfloat16 and half

using finish_function = void (*)(void *const *operands, unsigned lanes);

inline unsigned lane() { return now.current % lanes_of_warp; }

// The lanes of this thread's warp that exist: the last warp of a block may have fewer than 32.
inline unsigned existing_lanes()
{
    const unsigned first = now.current - lane(), count = now.threads - first;
    return count >= lanes_of_warp ? ~0u : (1u << count) - 1;
}

inline void wait_for_warp(const site &where, unsigned mask, void *operand, finish_function finish)
{
    wait_at(where, mask, operand);
    const unsigned warp = now.current / lanes_of_warp, first = warp * lanes_of_warp, needed = mask & existing_lanes();
    if (!(mask >> lane() & 1)) {
        message text;
        start_message(text, "a mask that does not name the thread which gives it");
        text.add("  thread %u, mask 0x%08x, in %s at %s:%d\n", now.current, mask, where.name, where.file, where.line);
        give_up(text);
    }
    now.waiting_lanes[warp] |= 1u << lane();
    bool complete = (now.waiting_lanes[warp] & needed) == needed;
    void *operands[lanes_of_warp] = {};
    for (unsigned k = 0; k < lanes_of_warp && complete; k++) {
        if (!(needed >> k & 1)) continue;
        const waiting_thread &other = now.waiting[first + k];
        complete = other.mask == mask && *other.where == where;
        operands[k] = other.operand;
    }
    if (complete) {
        finish(operands, needed);
        now.waiting_lanes[warp] &= ~needed;
        for (unsigned k = 0; k < lanes_of_warp; k++) {
            if (needed >> k & 1) make_ready(first + k);
        }
    }
    run_another();
}

template <class Visit> void for_lanes(unsigned lanes, Visit visit)
{
    for (unsigned k = 0; k < lanes_of_warp; k++) {
        if (lanes >> k & 1) visit(k);
    }
}

struct shuffled {
    uint64_t value, result;
    unsigned source; // the lane whose value is asked for
};

// What a lane gets from one that takes no part is undefined: NaN in debug mode, its own value otherwise.
inline void finish_shuffle(void *const *operands, unsigned lanes)
{
    for_lanes(lanes, [=](unsigned k) {
        shuffled &own = *static_cast<shuffled *>(operands[k]);
        const shuffled *const other = static_cast<shuffled *>(operands[own.source]);
#ifdef GC_SIMT_DEBUG
        own.result = other ? other->value : poison_word;
#else
        own.result = other ? other->value : own.value;
#endif
    });
}

template <class T> T shuffle(const site &where, unsigned mask, T value, unsigned source)
{
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "32 or 64 bits are exchanged");
    shuffled operand{0, 0, source};
    memcpy(&operand.value, &value, sizeof value);
    wait_for_warp(where, mask, &operand, finish_shuffle);
    memcpy(&value, &operand.result, sizeof value);
    return value;
}

inline unsigned segment_start(const site &where, int width)
{
    if (width < 1 || width > warpSize || (width & (width - 1)) != 0) {
        message text;
        start_message(text, "a width that is no power of two up to 32");
        text.add("  thread %u, width %d, in %s at %s:%d\n", now.current, width, where.name, where.file, where.line);
        give_up(text);
    }
    return lane() & ~static_cast<unsigned>(width - 1);
}

template <class T> struct reduced {
    T value, result;
};

// Every lane of the mask gets all values combined, from the lowest lane up.
template <class T, class Combine> T reduce(const site &where, unsigned mask, T value, Combine)
{
    static_assert(std::is_empty<Combine>::value, "the lane that arrives last combines for all");
    reduced<T> operand{value, value};
    wait_for_warp(where, mask, &operand, [](void *const *operands, unsigned lanes) {
        T total{};
        bool first = true;
        for_lanes(lanes, [&](unsigned k) {
            const T more = static_cast<reduced<T> *>(operands[k])->value;
            total = first ? more : Combine::of(total, more);
            first = false;
        });
        for_lanes(lanes, [&](unsigned k) { static_cast<reduced<T> *>(operands[k])->result = total; });
    });
    return operand.result;
}

struct sum {
    static unsigned of(unsigned a, unsigned b) { return a + b; }
    static int of(int a, int b) { return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)); }
};
struct least {
    template <class T> static T of(T a, T b) { return b < a ? b : a; }
};
struct greatest {
    template <class T> static T of(T a, T b) { return a < b ? b : a; }
};
struct bits {
    static unsigned of(unsigned a, unsigned b) { return a | b; }
};

inline unsigned ballot(const site &where, unsigned mask, int vote)
{
    return reduce(where, mask, vote ? 1u << lane() : 0u, bits{});
}

} // namespace gc_simt

inline void __syncwarp(unsigned mask = 0xffffffffu, GC_SIMT_HERE)
{
    gc_simt::wait_for_warp({"__syncwarp", file, line}, mask, nullptr, [](void *const *, unsigned) {});
}

// A segment is `width` lanes; lane numbers count from its start.
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, GC_SIMT_HERE)
{
    const gc_simt::site where{"__shfl_sync", file, line};
    const unsigned start = gc_simt::segment_start(where, width);
    return gc_simt::shuffle(where, mask, value, start + (static_cast<unsigned>(source) & (width - 1)));
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, GC_SIMT_HERE)
{
    const gc_simt::site where{"__shfl_up_sync", file, line};
    const unsigned start = gc_simt::segment_start(where, width), lane = gc_simt::lane();
    return gc_simt::shuffle(where, mask, value, delta <= lane - start ? lane - delta : lane);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, GC_SIMT_HERE)
{
    const gc_simt::site where{"__shfl_down_sync", file, line};
    const unsigned start = gc_simt::segment_start(where, width), lane = gc_simt::lane();
    return gc_simt::shuffle(where, mask, value, delta < start + width - lane ? lane + delta : lane);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = warpSize, GC_SIMT_HERE)
{
    const gc_simt::site where{"__shfl_xor_sync", file, line};
    const unsigned start = gc_simt::segment_start(where, width), lane = gc_simt::lane();
    const unsigned source = lane ^ static_cast<unsigned>(flipped); // may lie in a segment before this one
    return gc_simt::shuffle(where, mask, value, source < start + width ? source : lane);
}

inline unsigned __ballot_sync(unsigned mask, int vote, GC_SIMT_HERE)
{
    return gc_simt::ballot({"__ballot_sync", file, line}, mask, vote);
}
inline int __any_sync(unsigned mask, int vote, GC_SIMT_HERE)
{
    return gc_simt::ballot({"__any_sync", file, line}, mask, vote) != 0;
}
inline int __all_sync(unsigned mask, int vote, GC_SIMT_HERE)
{
    return gc_simt::ballot({"__all_sync", file, line}, mask, !vote) == 0;
}

// Which lanes run together is the device's choice, and CUDA promises nothing. Here: all that the warp has, so that
// a kernel which takes this for "the lanes in my branch" is found.
inline unsigned __activemask() { return gc_simt::existing_lanes(); }

#define GC_SIMT_REDUCE(type)                                                                                        \
    inline type __reduce_add_sync(unsigned mask, type value, GC_SIMT_HERE)                                          \
    {                                                                                                               \
        return gc_simt::reduce({"__reduce_add_sync", file, line}, mask, value, gc_simt::sum{});                     \
    }                                                                                                               \
    inline type __reduce_min_sync(unsigned mask, type value, GC_SIMT_HERE)                                          \
    {                                                                                                               \
        return gc_simt::reduce({"__reduce_min_sync", file, line}, mask, value, gc_simt::least{});                   \
    }                                                                                                               \
    inline type __reduce_max_sync(unsigned mask, type value, GC_SIMT_HERE)                                          \
    {                                                                                                               \
        return gc_simt::reduce({"__reduce_max_sync", file, line}, mask, value, gc_simt::greatest{});                \
    }
GC_SIMT_REDUCE(unsigned)
GC_SIMT_REDUCE(int)
#undef GC_SIMT_REDUCE

// ---- 8. Shared memory ------------------------------------------------------------------------------------------
//
// A shared array is a static variable: blocks run one after the other, so one array serves all. As on the device, it
// holds at first what the last block left; in debug mode NaNs, from the moment when the first thread of the block
// meets the declaration, which is before any thread can use the array.

namespace gc_simt {

inline void fill_with_poison(void *memory, size_t bytes)
{
    unsigned char word[sizeof poison_word];
    memcpy(word, &poison_word, sizeof word);
    for (size_t k = 0; k < bytes; k++) static_cast<unsigned char *>(memory)[k] = word[k % sizeof word];
}

// `serial` is the last block that used the array.
inline void enter_shared(void *memory, size_t bytes, const char *name, unsigned long long &serial)
{
    if (serial == now.serial) return;
    serial = now.serial;
    fill_with_poison(memory, bytes);
    now.shared_bytes += bytes;
    if (now.shared_bytes <= most_shared_bytes) return;
    message text;
    start_message(text, "too much shared memory");
    text.add("  %zu bytes with the array %s, of %u\n", now.shared_bytes, name, most_shared_bytes);
    give_up(text);
}

// A compiler that sees no address of an array leave the function could keep elements in registers across a barrier.
inline void escape(void *memory) { asm volatile("" : : "r"(memory) : "memory"); }

// What lies around an array is forbidden. AddressSanitizer does that for static variables by itself, but not in
// templates, whose variables the linker may take from another translation unit.
constexpr size_t gap_bytes = 64;
inline void forbid_gaps(const void *before, const void *after)
{
#ifdef GC_SIMT_ASAN
    __asan_poison_memory_region(before, gap_bytes);
    __asan_poison_memory_region(after, gap_bytes);
#else
    (void)before, (void)after;
#endif
}

} // namespace gc_simt

#ifdef GC_SIMT_ASAN
#define GC_SIMT_ARRAY(type, name, extents)                                                                          \
    static struct {                                                                                                 \
        alignas(gc_simt::gap_bytes) char before[gc_simt::gap_bytes];                                                \
        type array extents;                                                                                         \
        char after[gc_simt::gap_bytes];                                                                             \
    } gc_simt_guarded_##name;                                                                                       \
    gc_simt::forbid_gaps(gc_simt_guarded_##name.before, gc_simt_guarded_##name.after);                              \
    auto &name = gc_simt_guarded_##name.array
#else
#define GC_SIMT_ARRAY(type, name, extents) static type name extents
#endif

#ifdef GC_SIMT_DEBUG
#define GC_SHARED(type, name, extents)                                                                              \
    GC_SIMT_ARRAY(type, name, extents);                                                                             \
    static unsigned long long gc_simt_serial_##name = 0;                                                            \
    gc_simt::enter_shared(&name, sizeof name, #name, gc_simt_serial_##name)
#else
#define GC_SHARED(type, name, extents)                                                                              \
    GC_SIMT_ARRAY(type, name, extents);                                                                             \
    gc_simt::escape(&name)
#endif

// ---- 9. Arithmetic and atomics ---------------------------------------------------------------------------------
//
// Functions with the device's names. <math.h> has the rest; its last bits differ from the device's. Compile with
// -ffp-contract=off: these are rounded one by one, as their names say.

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }

namespace gc_simt {

template <class To, class From> To same_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// Conversions end at the bounds of int, and make 0 of NaN.
inline int to_int(float rounded)
{
    if (rounded != rounded) return 0;
    if (rounded >= 2147483648.0f) return INT32_MAX;
    return rounded < -2147483648.0f ? INT32_MIN : static_cast<int>(rounded);
}

} // namespace gc_simt

inline int __float2int_rn(float a) { return gc_simt::to_int(rintf(a)); }
inline int __float2int_rz(float a) { return gc_simt::to_int(truncf(a)); }
inline int __float2int_rd(float a) { return gc_simt::to_int(floorf(a)); }
inline int __float2int_ru(float a) { return gc_simt::to_int(ceilf(a)); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __int_as_float(int a) { return gc_simt::same_bits<float>(a); }
inline int __float_as_int(float a) { return gc_simt::same_bits<int>(a); }
inline float __uint_as_float(unsigned a) { return gc_simt::same_bits<float>(a); }
inline unsigned __float_as_uint(float a) { return gc_simt::same_bits<unsigned>(a); }
inline double __longlong_as_double(long long a) { return gc_simt::same_bits<double>(a); }
inline long long __double_as_longlong(double a) { return gc_simt::same_bits<long long>(a); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __ffsll(long long a) { return __builtin_ffsll(a); }
inline int __clz(int a) { return a ? __builtin_clz(static_cast<unsigned>(a)) : 32; }
inline int __clzll(long long a) { return a ? __builtin_clzll(static_cast<unsigned long long>(a)) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}

// CUDA's, outside of any namespace. Of a number and a NaN both give the number.
#define GC_SIMT_BOUNDS(type)                                                                                        \
    constexpr type min(type a, type b) { return b < a ? b : a; }                                                    \
    constexpr type max(type a, type b) { return a < b ? b : a; }
GC_SIMT_BOUNDS(int)
GC_SIMT_BOUNDS(unsigned)
GC_SIMT_BOUNDS(long)
GC_SIMT_BOUNDS(unsigned long)
GC_SIMT_BOUNDS(long long)
GC_SIMT_BOUNDS(unsigned long long)
#undef GC_SIMT_BOUNDS
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <class T> T __ldg(const T *address) { return *address; }

namespace gc_simt {

// Only one thread runs at any time, so reading and writing back is atomic. Returns what was there before.
template <class T, class Change> T replace(T *address, Change change)
{
    const T before = *address;
    *address = change(before);
    return before;
}
template <class T> struct same_type { // keeps an argument from deciding what T is
    using type = T;
};

} // namespace gc_simt

inline int atomicAdd(int *address, int value)
{
    return gc_simt::replace(address, [=](int before) { return gc_simt::sum::of(before, value); });
}
#define GC_SIMT_ADD(T)                                                                                              \
    inline T atomicAdd(T *address, T value)                                                                         \
    {                                                                                                               \
        return gc_simt::replace(address, [=](T before) { return before + value; });                                 \
    }
GC_SIMT_ADD(unsigned)
GC_SIMT_ADD(unsigned long long)
GC_SIMT_ADD(float)
GC_SIMT_ADD(double)
#undef GC_SIMT_ADD

#define GC_SIMT_ATOMIC(T)                                                                                           \
    inline T atomicMax(T *address, T value)                                                                         \
    {                                                                                                               \
        return gc_simt::replace(address, [=](T before) { return before < value ? value : before; });                \
    }                                                                                                               \
    inline T atomicMin(T *address, T value)                                                                         \
    {                                                                                                               \
        return gc_simt::replace(address, [=](T before) { return value < before ? value : before; });                \
    }                                                                                                               \
    inline T atomicCAS(T *address, T expected, T value)                                                             \
    {                                                                                                               \
        return gc_simt::replace(address, [=](T before) { return before == expected ? value : before; });            \
    }
GC_SIMT_ATOMIC(int)
GC_SIMT_ATOMIC(unsigned)
GC_SIMT_ATOMIC(long long)
GC_SIMT_ATOMIC(unsigned long long)
#undef GC_SIMT_ATOMIC

template <class T> T atomicExch(T *address, typename gc_simt::same_type<T>::type value)
{
    static_assert(std::is_arithmetic<T>::value && sizeof(T) >= 4, "32 or 64 bits are exchanged");
    return gc_simt::replace(address, [=](T) { return value; });
}

// ---- 10. Formats of 16 bits, and matrix fragments --------------------------------------------------------------

namespace gc_simt {

// Both round to nearest, ties to even: adding half of the last kept place, less one if that place is even, carries
// where it must. NaNs stay NaNs.
inline uint16_t to_bfloat16(float value)
{
    const uint32_t word = same_bits<uint32_t>(value);
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1)) >> 16);
}
inline float from_bfloat16(uint16_t half_word) { return same_bits<float>(static_cast<uint32_t>(half_word) << 16); }

inline uint16_t to_half(float value)
{
    const uint32_t word = same_bits<uint32_t>(value), sign = word >> 16 & 0x8000, magnitude = word & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00); // 65536 and more
    if (magnitude < 0x38800000) { // below 2^-14 all places are 2^-24: the sum with 1/2 has that place last
        const uint32_t rounded = same_bits<uint32_t>(same_bits<float>(magnitude) + 0.5f) - 0x3f000000;
        return static_cast<uint16_t>(sign | rounded);
    }
    return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}
inline float from_half(uint16_t half_word)
{
    const uint32_t sign = (half_word & 0x8000u) << 16, magnitude = half_word & 0x7fffu;
    if (magnitude >= 0x7c00) return same_bits<float>(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
    const float scaled = same_bits<float>(magnitude << 13) * 0x1p112f; // the exponent's other bias, 127 - 15
    return same_bits<float>(sign | same_bits<uint32_t>(scaled));
}

} // namespace gc_simt

// No initial value, so that an array of them can be shared.
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float value) : bits(gc_simt::to_bfloat16(value)) {}
    operator float() const { return gc_simt::from_bfloat16(bits); }
};
struct __half {
    uint16_t bits;
    __half() = default;
    __half(float value) : bits(gc_simt::to_half(value)) {}
    operator float() const { return gc_simt::from_half(bits); }
};
using half = __half;
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline float __half2float(__half value) { return value; }

// The product of two small matrices by a warp. Which lane holds which element is the device's secret; here element e
// of a matrix, row by row, lies in lane e % 32. The sum over k is taken in float, in ascending order; the
// device sums in an order and with a rounding of its own.
namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

// Rounds to 10 bits behind the point, ties away from zero (PTX's cvt.rna.tf32.f32).
inline float __float_to_tf32(float value)
{
    if (value != value || value - value != 0) return value;
    return __uint_as_float((__float_as_uint(value) + 0x1000u) & 0xffffe000u);
}

template <class T> struct element { // what a fragment of T holds
    using type = T;
    static float read(T value) { return value; }
};
template <> struct element<precision::tf32> {
    using type = float;
    // Bits that __float_to_tf32 would have rounded are not seen.
    static float read(float value) { return __uint_as_float(__float_as_uint(value) & 0xffffe000u); }
};

template <class Use, int M, int N, int K> struct extents;
template <int M, int N, int K> struct extents<matrix_a, M, N, K> {
    static constexpr int rows = M, columns = K;
};
template <int M, int N, int K> struct extents<matrix_b, M, N, K> {
    static constexpr int rows = K, columns = N;
};
template <int M, int N, int K> struct extents<accumulator, M, N, K> {
    static constexpr int rows = M, columns = N;
};

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    using storage_element_type = typename element<T>::type;
    using element_type = storage_element_type;
    static constexpr int rows = extents<Use, M, N, K>::rows, columns = extents<Use, M, N, K>::columns;
    static constexpr int num_elements = rows * columns / warpSize;
    static constexpr bool transposed = std::is_same<Layout, col_major>::value;
    static_assert(M == 16 && N == 16 && K == (std::is_same<T, precision::tf32>::value ? 8 : K),
        "16x16x16, and 16x16x8 for tf32");
    element_type x[num_elements];
#ifdef GC_SIMT_DEBUG
    fragment() { gc_simt::fill_with_poison(x, sizeof x); }
#endif
};

// Calls visit(x[k], place in memory) for all elements of this lane.
template <class Fragment, class Visit> void each_place(Fragment &f, unsigned stride, bool by_columns, Visit visit)
{
    for (int k = 0; k < Fragment::num_elements; k++) {
        const size_t place = static_cast<size_t>(k) * warpSize + gc_simt::lane();
        const size_t row = place / Fragment::columns, column = place % Fragment::columns;
        visit(f.x[k], by_columns ? column * stride + row : row * stride + column);
    }
}

template <class Use, int M, int N, int K, class T, class Layout, class V>
void fill_fragment(fragment<Use, M, N, K, T, Layout> &f, const V &value)
{
    for (auto &x : f.x) x = value;
}

template <class Use, int M, int N, int K, class T, class Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &f,
    const typename fragment<Use, M, N, K, T, Layout>::element_type *memory, unsigned stride, GC_SIMT_HERE)
{
    gc_simt::wait_for_warp({"load_matrix_sync", file, line}, ~0u, nullptr, [](void *const *, unsigned) {});
    each_place(f, stride, f.transposed, [=](auto &x, size_t place) { x = memory[place]; });
}
template <int M, int N, int K, class T>
void load_matrix_sync(
    fragment<accumulator, M, N, K, T> &f, const T *memory, unsigned stride, layout_t layout, GC_SIMT_HERE)
{
    gc_simt::wait_for_warp({"load_matrix_sync", file, line}, ~0u, nullptr, [](void *const *, unsigned) {});
    each_place(f, stride, layout == mem_col_major, [=](auto &x, size_t place) { x = memory[place]; });
}
template <int M, int N, int K, class T>
void store_matrix_sync(
    T *memory, const fragment<accumulator, M, N, K, T> &f, unsigned stride, layout_t layout, GC_SIMT_HERE)
{
    gc_simt::wait_for_warp({"store_matrix_sync", file, line}, ~0u, nullptr, [](void *const *, unsigned) {});
    each_place(f, stride, layout == mem_col_major, [=](const auto &x, size_t place) { memory[place] = x; });
}

// Fragments of all lanes are on their stacks, so the lane that arrives last multiplies for all.
template <int M, int N, int K, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float> &d, const fragment<matrix_a, M, N, K, T, LayoutA> &a,
    const fragment<matrix_b, M, N, K, T, LayoutB> &b, const fragment<accumulator, M, N, K, float> &c, GC_SIMT_HERE)
{
    struct fragments {
        fragment<accumulator, M, N, K, float> *d;
        const fragment<matrix_a, M, N, K, T, LayoutA> *a;
        const fragment<matrix_b, M, N, K, T, LayoutB> *b;
        const fragment<accumulator, M, N, K, float> *c;
    } own{&d, &a, &b, &c};
    const auto multiply = [](void *const *operands, unsigned lanes) {
        float left[M * K], right[K * N], sums[M * N];
        if (lanes != ~0u) return; // a warp of fewer lanes has no whole matrices, and its results are undefined
        const auto of = [=](int place) { return static_cast<const fragments *>(operands[place % warpSize]); };
        for (int e = 0; e < M * K; e++) left[e] = element<T>::read(of(e)->a->x[e / warpSize]);
        for (int e = 0; e < K * N; e++) right[e] = element<T>::read(of(e)->b->x[e / warpSize]);
        for (int e = 0; e < M * N; e++) sums[e] = of(e)->c->x[e / warpSize];
        for (int i = 0; i < M; i++) {
            for (int k = 0; k < K; k++) {
                for (int j = 0; j < N; j++) sums[i * N + j] += left[i * K + k] * right[k * N + j];
            }
        }
        for (int e = 0; e < M * N; e++) of(e)->d->x[e / warpSize] = sums[e];
    };
    gc_simt::wait_for_warp({"mma_sync", file, line}, ~0u, &own, multiply);
}

} // namespace wmma
} // namespace nvcuda

// ---- 11. Asynchronous copies -----------------------------------------------------------------------------------
//
// What <cuda_pipeline.h> has: a thread asks for copies into shared memory, ends a batch of them with commit, and
// waits until at most some batches are left. The device copies at any time between; so at once is right, and so is as
// late as possible. In debug mode it is late, with NaNs until then.

namespace gc_simt {

#ifdef GC_SIMT_DEBUG
struct late_copy {
    void *target;
    const void *source;
    size_t bytes, zeros;
    unsigned batch;
};
// Of each thread of the running block; `serial` says of which block the rest is.
struct copies_of_thread {
    std::vector<late_copy> waiting;
    unsigned batch = 0;
    unsigned long long serial = 0;
};
GC_SIMT_STATE copies_of_thread copies[most_threads];

inline copies_of_thread &own_copies()
{
    copies_of_thread &own = copies[now.current];
    if (own.serial != now.serial) {
        own.waiting.clear();
        own.serial = now.serial;
        own.batch = 0;
    }
    return own;
}
#endif

inline void copy_with_zeros(void *target, const void *source, size_t bytes, size_t zeros)
{
    memcpy(target, source, bytes - zeros);
    memset(static_cast<char *>(target) + (bytes - zeros), 0, zeros);
}

} // namespace gc_simt

inline void __pipeline_memcpy_async(void *target, const void *source, size_t bytes, size_t zeros = 0, GC_SIMT_HERE)
{
    const uintptr_t places = reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source);
    if ((bytes != 4 && bytes != 8 && bytes != 16) || places % bytes != 0 || zeros > bytes) {
        gc_simt::message text;
        gc_simt::start_message(text, "an asynchronous copy not of 4, 8 or 16 bytes at multiples of that");
        text.add("  %zu bytes, %zu of them zero, from %p to %p at %s:%d\n", bytes, zeros, source, target, file, line);
        gc_simt::give_up(text);
    }
#ifdef GC_SIMT_DEBUG
    gc_simt::copies_of_thread &own = gc_simt::own_copies();
    gc_simt::fill_with_poison(target, bytes);
    own.waiting.push_back({target, source, bytes, zeros, own.batch});
#else
    gc_simt::copy_with_zeros(target, source, bytes, zeros);
#endif
}

inline void __pipeline_commit()
{
#ifdef GC_SIMT_DEBUG
    gc_simt::own_copies().batch++;
#endif
}

// Returns when at most `left` of the batches that this thread committed are not copied.
inline void __pipeline_wait_prior(size_t left)
{
#ifdef GC_SIMT_DEBUG
    gc_simt::copies_of_thread &own = gc_simt::own_copies();
    std::vector<gc_simt::late_copy> later;
    for (const gc_simt::late_copy &c : own.waiting) {
        if (c.batch + left < own.batch) gc_simt::copy_with_zeros(c.target, c.source, c.bytes, c.zeros);
        else later.push_back(c);
    }
    own.waiting.swap(later);
#else
    (void)left;
#endif
}

// ---- 12. The runtime: errors, memory, streams, events, graphs --------------------------------------------------

// Names, numbers and texts are CUDA's.
#define GC_SIMT_ERRORS(X)                                                                                           \
    X(cudaSuccess, 0, "no error")                                                                                   \
    X(cudaErrorInvalidValue, 1, "invalid argument")                                                                 \
    X(cudaErrorMemoryAllocation, 2, "out of memory")                                                                \
    X(cudaErrorInitializationError, 3, "initialization error")                                                      \
    X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                           \
    X(cudaErrorInvalidSymbol, 13, "invalid device symbol")                                                          \
    X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                                     \
    X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")              \
    X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                                \
    X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                                 \
    X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                        \
    X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")             \
    X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                               \
    X(cudaErrorIllegalState, 401, "the operation cannot be performed in the present state")                         \
    X(cudaErrorNotReady, 600, "device not ready")                                                                   \
    X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                                     \
    X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                                \
    X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                                    \
    X(cudaErrorNotSupported, 801, "operation not supported")                                                        \
    X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")                   \
    X(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")            \
    X(cudaErrorStreamCaptureMerge, 902, "operation would result in a merge of separate capture sequences")          \
    X(cudaErrorStreamCaptureUnmatched, 903, "capture was not ended in the same stream as it began")                 \
    X(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                                    \
    X(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")               \
    X(cudaErrorStreamCaptureImplicit, 906,                                                                          \
        "operation would make the legacy stream depend on a capturing blocking stream")                             \
    X(cudaErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream")       \
    X(cudaErrorUnknown, 999, "unknown error")

#define GC_SIMT_NAME(name, number, text) name = number,
enum cudaError_t : int { GC_SIMT_ERRORS(GC_SIMT_NAME) };
#undef GC_SIMT_NAME

inline const char *cudaGetErrorName(cudaError_t error)
{
#define GC_SIMT_NAME(name, number, text) if (error == name) return #name;
    GC_SIMT_ERRORS(GC_SIMT_NAME)
#undef GC_SIMT_NAME
    return "unrecognized error code";
}
inline const char *cudaGetErrorString(cudaError_t error)
{
#define GC_SIMT_TEXT(name, number, text) if (error == name) return text;
    GC_SIMT_ERRORS(GC_SIMT_TEXT)
#undef GC_SIMT_TEXT
    return "unrecognized error code";
}
#undef GC_SIMT_ERRORS

enum cudaMemcpyKind : int { // with a type, so that other values may be asked for and refused
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventBlockingSync = 1,
                   cudaEventDisableTiming = 2, cudaHostAllocDefault = 0, cudaHostAllocPortable = 1,
                   cudaHostAllocMapped = 2, cudaHostAllocWriteCombined = 4;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, totalConstMem, sharedMemPerMultiprocessor, sharedMemPerBlockOptin;
    int regsPerBlock, warpSize, maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3], major, minor,
        multiProcessorCount, maxThreadsPerMultiProcessor, l2CacheSize, integrated, concurrentKernels;
};

// A graph is a list of what to do; that of a captured sequence does it in the order of capture.
struct gc_simt_graph {
    std::vector<std::function<void()>> nodes;
};
using cudaGraph_t = gc_simt_graph *;
struct gc_simt_executable { // changing or destroying the graph later does not change it
    std::shared_ptr<const std::vector<std::function<void()>>> nodes;
};
using cudaGraphExec_t = gc_simt_executable *;

// A capture: the graph that it makes, and the stream that it began in.
struct gc_simt_capture {
    gc_simt_graph *graph;
    struct gc_simt_stream *origin;
    cudaStreamCaptureMode mode;
    bool invalid;
};
// What a stream was given and has not done. In debug mode copies wait here until the stream gets other work, or
// somebody waits for it or for an event behind them: a program that lacks the wait reads what was there before.
struct gc_simt_queue {
    std::vector<std::function<void()>> waiting;
    size_t done = 0; // how many have left
};
struct gc_simt_stream {
    unsigned flags = 0;
    std::shared_ptr<gc_simt_queue> queue = std::make_shared<gc_simt_queue>();
    gc_simt_capture *capture = nullptr;
    unsigned work = 0, joined = 0; // pieces captured here, and how many of them another stream has waited for
};
using cudaStream_t = gc_simt_stream *;

struct gc_simt_event {
    unsigned flags = 0;
    bool recorded = false;
    std::chrono::steady_clock::time_point time;
    std::shared_ptr<gc_simt_queue> queue; // behind how much of what it was recorded
    size_t place = 0;
    gc_simt_capture *capture = nullptr; // if recorded in a capturing stream: which, and behind how much work
    gc_simt_stream *stream = nullptr;
    unsigned work = 0;
};
using cudaEvent_t = gc_simt_event *;

namespace gc_simt {

struct allocation {
    void *memory;
    size_t bytes;
};
struct countdown { // to a call that shall fail
    unsigned long long wish = 0, counted = 0;
};
struct runtime_state {
    cudaError_t last_error = cudaSuccess;
    bool broken = false; // a kernel failed: every later call does
    std::vector<allocation> device, pinned;
    std::vector<gc_simt_stream *> streams, capturing;
    countdown resources, copies;
};
GC_SIMT_STATE runtime_state runtime;

#ifndef GC_SIMT_DEVICE_BYTES
#define GC_SIMT_DEVICE_BYTES (8ull << 30)
#endif
inline size_t device_bytes()
{
    const char *const text = getenv("GC_SIMT_DEVICE_BYTES");
    return static_cast<size_t>(text ? strtoull(text, nullptr, 10) : GC_SIMT_DEVICE_BYTES);
}
inline size_t device_bytes_left()
{
    size_t used = 0;
    for (const allocation &a : runtime.device) used += a.bytes;
    return used < device_bytes() ? device_bytes() - used : 0;
}

// The last error is kept until cudaGetLastError asks for it.
inline cudaError_t status(cudaError_t error)
{
    if (error == cudaSuccess && runtime.broken) error = cudaErrorLaunchFailure;
    if (error != cudaSuccess) runtime.last_error = error;
    return error;
}

// Whether this is the call that shall fail. Counting starts anew whenever the wish changes.
inline bool counts_down(countdown &state, const char *variable, unsigned long long otherwise)
{
    const char *const text = getenv(variable);
    const unsigned long long wish = text ? strtoull(text, nullptr, 10) : otherwise;
    if (wish != state.wish) state = {wish, 0};
    return ++state.counted == wish;
}
#ifndef GC_SIMT_FAIL_AFTER
#define GC_SIMT_FAIL_AFTER 0
#endif
inline bool shall_fail() { return counts_down(runtime.resources, "GC_SIMT_FAIL_AFTER", GC_SIMT_FAIL_AFTER); }

// Does what waits in a queue, up to a place.
inline void catch_up(gc_simt_queue &queue, size_t place = SIZE_MAX)
{
    size_t count = 0;
    for (; count < queue.waiting.size() && queue.done < place; queue.done++) queue.waiting[count++]();
    queue.waiting.erase(queue.waiting.begin(), queue.waiting.begin() + static_cast<ptrdiff_t>(count));
}
inline void catch_up_all(unsigned but = ~0u)
{
    for (gc_simt_stream *s : runtime.streams)
        if (s->flags != but) catch_up(*s->queue);
}

// While a stream captures, calls that touch all streams are errors, which end the capture as well: they would not
// happen when the graph runs.
inline bool spoils_capture(bool also_relaxed)
{
    bool spoils = false;
    for (gc_simt_stream *s : runtime.capturing) {
        if (!also_relaxed && s->capture->mode == cudaStreamCaptureModeRelaxed) continue;
        s->capture->invalid = spoils = true;
    }
    return spoils;
}

// Does work in a stream: at once, or as a node of the graph that the stream captures.
template <class Work> cudaError_t submit(cudaStream_t stream, const Work &work)
{
    if (!stream) { // the default stream waits for all streams that do not refuse it
        bool implicit = false;
        for (gc_simt_stream *s : runtime.capturing) {
            if (!(s->flags & cudaStreamNonBlocking)) s->capture->invalid = implicit = true;
        }
        if (implicit) return status(cudaErrorStreamCaptureImplicit);
        catch_up_all(cudaStreamNonBlocking);
    } else if (stream->capture) {
        if (stream->capture->invalid) return status(cudaErrorStreamCaptureInvalidated);
        stream->capture->graph->nodes.push_back(work);
        stream->work++;
        return status(cudaSuccess);
    } else {
        catch_up(*stream->queue);
    }
    work();
    return status(cudaSuccess);
}

inline cudaError_t allocate(std::vector<allocation> &list, void **memory, size_t bytes, size_t room)
{
    if (!memory) return status(cudaErrorInvalidValue);
    if (spoils_capture(false)) return status(cudaErrorStreamCaptureUnsupported);
    *memory = nullptr;
    if (shall_fail() || bytes > room) return status(cudaErrorMemoryAllocation);
    if (bytes == 0) return status(cudaSuccess);
    if (posix_memalign(memory, 256, bytes) != 0) {
        *memory = nullptr;
        return status(cudaErrorMemoryAllocation);
    }
#ifdef GC_SIMT_DEBUG
    fill_with_poison(*memory, bytes);
#endif
    list.push_back({*memory, bytes});
    return status(cudaSuccess);
}

inline cudaError_t release(std::vector<allocation> &list, void *memory)
{
    if (!memory) return status(cudaSuccess);
    catch_up_all();
    for (size_t k = list.size(); k-- > 0;) {
        if (list[k].memory != memory) continue;
        free(memory);
        list.erase(list.begin() + static_cast<ptrdiff_t>(k));
        return status(cudaSuccess);
    }
    return status(cudaErrorInvalidValue);
}

inline cudaError_t copy(void *target, const void *source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    if (counts_down(runtime.copies, "GC_SIMT_FAIL_COPY", 0)) return status(cudaErrorUnknown);
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return status(cudaErrorInvalidMemcpyDirection);
    if (bytes == 0) return status(cudaSuccess);
    if (!target || !source) return status(cudaErrorInvalidValue);
    const auto work = [=] { memmove(target, source, bytes); };
#ifdef GC_SIMT_DEBUG
    if (stream && !stream->capture) {
        stream->queue->waiting.push_back(work);
        return status(cudaSuccess);
    }
#endif
    return submit(stream, work);
}

inline cudaError_t fill(void *target, int value, size_t bytes, cudaStream_t stream)
{
    if (bytes == 0) return status(cudaSuccess);
    if (!target) return status(cudaErrorInvalidValue);
    return submit(stream, [=] { memset(target, value, bytes); });
}

} // namespace gc_simt

inline cudaError_t cudaPeekAtLastError() { return gc_simt::status(gc_simt::runtime.last_error); }
inline cudaError_t cudaGetLastError()
{
    const cudaError_t error = cudaPeekAtLastError();
    gc_simt::runtime.last_error = cudaSuccess;
    return error;
}

// Memory. Which kind a pointer is of is not checked: all of it is the host's.
template <class T> cudaError_t cudaMalloc(T **memory, size_t bytes)
{
    const size_t room = gc_simt::device_bytes_left();
    return gc_simt::allocate(gc_simt::runtime.device, reinterpret_cast<void **>(memory), bytes, room);
}
// Managed memory, which host and device see, is that of the device here; there may be more of it than the device has.
constexpr unsigned cudaMemAttachGlobal = 1;
template <class T> cudaError_t cudaMallocManaged(T **memory, size_t bytes, unsigned = cudaMemAttachGlobal)
{
    return gc_simt::allocate(gc_simt::runtime.device, reinterpret_cast<void **>(memory), bytes, SIZE_MAX);
}
template <class T> cudaError_t cudaHostAlloc(T **memory, size_t bytes, unsigned)
{
    return gc_simt::allocate(gc_simt::runtime.pinned, reinterpret_cast<void **>(memory), bytes, SIZE_MAX);
}
template <class T> cudaError_t cudaMallocHost(T **memory, size_t bytes, unsigned flags = 0)
{
    return cudaHostAlloc(memory, bytes, flags);
}
inline cudaError_t cudaFree(void *memory)
{
    if (gc_simt::spoils_capture(false)) return gc_simt::status(cudaErrorStreamCaptureUnsupported);
    return gc_simt::release(gc_simt::runtime.device, memory);
}
inline cudaError_t cudaFreeHost(void *memory) { return gc_simt::release(gc_simt::runtime.pinned, memory); }

inline cudaError_t cudaMemcpyAsync(
    void *target, const void *source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream = nullptr)
{
    return gc_simt::copy(target, source, bytes, kind, stream);
}
inline cudaError_t cudaMemcpy(void *target, const void *source, size_t bytes, cudaMemcpyKind kind)
{
    return gc_simt::copy(target, source, bytes, kind, nullptr);
}
inline cudaError_t cudaMemsetAsync(void *target, int value, size_t bytes, cudaStream_t stream = nullptr)
{
    return gc_simt::fill(target, value, bytes, stream);
}
inline cudaError_t cudaMemset(void *target, int value, size_t bytes)
{
    return gc_simt::fill(target, value, bytes, nullptr);
}
template <class T>
cudaError_t cudaMemcpyToSymbol(
    T &symbol, const void *source, size_t bytes, size_t offset = 0, cudaMemcpyKind kind = cudaMemcpyHostToDevice)
{
    if (offset + bytes > sizeof symbol) return gc_simt::status(cudaErrorInvalidValue);
    char *const begin = reinterpret_cast<char *>(const_cast<typename std::remove_const<T>::type *>(&symbol));
    return gc_simt::copy(begin + offset, source, bytes, kind, nullptr);
}
inline cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    *total_bytes = gc_simt::device_bytes();
    *free_bytes = gc_simt::device_bytes_left();
    return gc_simt::status(cudaSuccess);
}

// The device.
inline cudaError_t cudaDeviceSynchronize()
{
    if (gc_simt::spoils_capture(true)) return gc_simt::status(cudaErrorStreamCaptureUnsupported);
    gc_simt::catch_up_all();
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaSetDevice(int device)
{
    return gc_simt::status(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device)
{
    if (device != 0) return gc_simt::status(cudaErrorInvalidDevice);
    *properties = cudaDeviceProp{};
    snprintf(properties->name, sizeof properties->name, "graphc's emulator");
    properties->totalGlobalMem = gc_simt::device_bytes();
    properties->sharedMemPerBlock = gc_simt::most_shared_bytes;
    properties->sharedMemPerBlockOptin = gc_simt::most_shared_bytes;
    properties->sharedMemPerMultiprocessor = gc_simt::most_shared_bytes;
    properties->totalConstMem = 64 * 1024;
    properties->regsPerBlock = 65536;
    properties->warpSize = warpSize;
    properties->maxThreadsPerBlock = properties->maxThreadsPerMultiProcessor = gc_simt::most_threads;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = INT32_MAX;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->major = 9;
    properties->multiProcessorCount = 1;
    properties->l2CacheSize = 1 << 20;
    return gc_simt::status(cudaSuccess);
}
template <class Kernel> cudaError_t cudaFuncSetAttribute(Kernel *kernel, cudaFuncAttribute, int)
{
    return gc_simt::status(kernel ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}

// Streams. Work is done when it is submitted, but for copies in debug mode.
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    if (stream) *stream = nullptr;
    if (!stream || flags > cudaStreamNonBlocking) return gc_simt::status(cudaErrorInvalidValue);
    if (gc_simt::shall_fail()) return gc_simt::status(cudaErrorMemoryAllocation);
    *stream = new gc_simt_stream;
    (*stream)->flags = flags;
    gc_simt::runtime.streams.push_back(*stream);
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    if (!stream) return gc_simt::status(cudaErrorInvalidResourceHandle);
    if (stream->capture) return gc_simt::status(cudaErrorStreamCaptureUnsupported);
    gc_simt::catch_up(*stream->queue);
    std::vector<gc_simt_stream *> &streams = gc_simt::runtime.streams;
    for (size_t k = streams.size(); k-- > 0;)
        if (streams[k] == stream) streams.erase(streams.begin() + static_cast<ptrdiff_t>(k));
    delete stream;
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (stream && stream->capture) {
        stream->capture->invalid = true;
        return gc_simt::status(cudaErrorStreamCaptureUnsupported);
    }
    if (stream) gc_simt::catch_up(*stream->queue);
    else gc_simt::catch_up_all(cudaStreamNonBlocking);
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

// Events.
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    if (!event) return gc_simt::status(cudaErrorInvalidValue);
    *event = new gc_simt_event;
    (*event)->flags = flags;
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    if (!event) return gc_simt::status(cudaErrorInvalidResourceHandle);
    delete event;
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr)
{
    if (!event) return gc_simt::status(cudaErrorInvalidResourceHandle);
    event->capture = stream ? stream->capture : nullptr;
    if (event->capture) { // marks a place in the graph; the event itself is not recorded
        event->stream = stream;
        event->work = stream->work;
        return gc_simt::status(cudaSuccess);
    }
    event->time = std::chrono::steady_clock::now();
    event->recorded = true;
    event->queue = stream ? stream->queue : nullptr;
    event->place = stream ? stream->queue->done + stream->queue->waiting.size() : 0;
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (!event) return gc_simt::status(cudaErrorInvalidResourceHandle);
    if (event->capture) return gc_simt::status(cudaErrorCapturedEvent);
    if (event->queue) gc_simt::catch_up(*event->queue, event->place);
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    const bool usable = milliseconds && start && end && start->recorded && end->recorded &&
                        !((start->flags | end->flags) & cudaEventDisableTiming);
    if (!usable) return gc_simt::status(cudaErrorInvalidResourceHandle);
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return gc_simt::status(cudaSuccess);
}

// Waiting for an event of a capturing stream brings the waiting one into the capture, or joins what ran beside it.
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0)
{
    if (!event) return gc_simt::status(cudaErrorInvalidResourceHandle);
    if (!event->capture) {
        if (!stream || !stream->capture || !event->recorded) {
            if (event->queue) gc_simt::catch_up(*event->queue, event->place);
            return gc_simt::status(cudaSuccess);
        }
        stream->capture->invalid = true; // a graph cannot wait for what is outside
        return gc_simt::status(cudaErrorStreamCaptureIsolation);
    }
    if (!stream) return gc_simt::status(cudaErrorStreamCaptureImplicit);
    if (stream->capture && stream->capture != event->capture) {
        stream->capture->invalid = event->capture->invalid = true;
        return gc_simt::status(cudaErrorStreamCaptureMerge);
    }
    if (!stream->capture) {
        stream->capture = event->capture;
        stream->work = 1; // so a stream that did nothing must be joined too
        stream->joined = 0;
        gc_simt::runtime.capturing.push_back(stream);
    }
    if (event->stream->joined < event->work) event->stream->joined = event->work;
    return gc_simt::status(cudaSuccess);
}

// Graphs.
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    if (!stream) return gc_simt::status(cudaErrorStreamCaptureUnsupported);
    if (stream->capture) return gc_simt::status(cudaErrorIllegalState);
    stream->capture = new gc_simt_capture{new gc_simt_graph, stream, mode, false};
    stream->work = stream->joined = 0;
    gc_simt::runtime.capturing.push_back(stream);
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    if (!graph) return gc_simt::status(cudaErrorInvalidValue);
    *graph = nullptr;
    if (!stream || !stream->capture) return gc_simt::status(cudaErrorIllegalState);
    gc_simt_capture *const capture = stream->capture;
    if (capture->origin != stream) {
        capture->invalid = true;
        return gc_simt::status(cudaErrorStreamCaptureUnmatched);
    }
    cudaError_t error = capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    std::vector<gc_simt_stream *> others;
    for (gc_simt_stream *s : gc_simt::runtime.capturing) {
        if (s->capture != capture) {
            others.push_back(s);
            continue;
        }
        if (s != stream && s->joined < s->work && !capture->invalid) error = cudaErrorStreamCaptureUnjoined;
        s->capture = nullptr;
    }
    gc_simt::runtime.capturing.swap(others);
    if (error == cudaSuccess) *graph = capture->graph;
    else delete capture->graph;
    delete capture;
    return gc_simt::status(error);
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *answer)
{
    const gc_simt_capture *const capture = stream ? stream->capture : nullptr;
    *answer = !capture           ? cudaStreamCaptureStatusNone
              : capture->invalid ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long = 0)
{
    if (executable) *executable = nullptr;
    if (!executable || !graph) return gc_simt::status(cudaErrorInvalidValue);
    *executable = new gc_simt_executable{
        std::make_shared<const std::vector<std::function<void()>>>(graph->nodes)};
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream)
{
    if (!executable) return gc_simt::status(cudaErrorInvalidValue);
    if (gc_simt::shall_fail()) return gc_simt::status(cudaErrorLaunchOutOfResources);
    return gc_simt::submit(stream, [nodes = executable->nodes] {
        for (const std::function<void()> &node : *nodes) node();
    });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    if (!graph) return gc_simt::status(cudaErrorInvalidValue);
    delete graph;
    return gc_simt::status(cudaSuccess);
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    if (!executable) return gc_simt::status(cudaErrorInvalidValue);
    delete executable;
    return gc_simt::status(cudaSuccess);
}

// ---- 13. Launches ----------------------------------------------------------------------------------------------

namespace gc_simt {

inline cudaError_t check_launch(dim3 grid, dim3 block)
{
    const bool empty = !(grid.x && grid.y && grid.z && block.x && block.y && block.z);
    const bool large = grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || block.x > most_threads ||
                       block.y > most_threads || block.z > 64 || block.x * block.y * block.z > most_threads;
    if (empty || large) return cudaErrorInvalidConfiguration;
    return shall_fail() ? cudaErrorLaunchOutOfResources : cudaSuccess;
}

// Runs a kernel, or makes a node of it that keeps the arguments of this moment.
template <class Kernel, class... A>
void launch(
    const char *name, const site &place, dim3 grid, dim3 block, cudaStream_t stream, Kernel kernel, A... values)
{
    if (runtime.broken || status(check_launch(grid, block)) != cudaSuccess) return;
    submit(stream, [=] {
        const auto thread = [&] { kernel(values...); };
        if (!run_grid(name, place, grid, block, thread)) {
            runtime.broken = true;
            status(cudaSuccess);
        }
    });
}

} // namespace gc_simt

// A lambda, so that a kernel's name may stand for several functions, and compilers can inline it in the loop over
// threads. Every thread gets copies of the arguments.
#define GC_LAUNCH(kernel, grid, block, stream, ...)                                                                 \
    gc_simt::launch(                                                                                                \
        #kernel, {"launch", __FILE__, __LINE__}, grid, block, stream,                                               \
        [=](auto... gc_simt_values) { kernel(gc_simt_values...); }, ##__VA_ARGS__)

#undef GC_SIMT_MMAP
#endif
