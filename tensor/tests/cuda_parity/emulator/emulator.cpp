// A GPU in a page: blocks run one after another, the threads of a block as coroutines that meet at barriers. It shows what a
// kernel computes, whether it stays inside its memory, and whether a barrier is missing (the threads can run in either order);
// it says nothing of speed.
#include <cmath>
#include <cstdlib>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <tuple>
#include <ucontext.h>
#include <unistd.h>
#include <utility>
#include <vector>

struct Dim3 {
    unsigned x, y, z;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

struct Plan {
    Dim3 grid, block;
    unsigned shared_bytes;
    unsigned backward; // run threads from the last to the first
};

enum Verdict { DONE = 0, WRONG_ARGUMENTS = 1, DEADLOCK = 2, SHARED_OVERRUN = 3 };

static const unsigned MOST_THREADS = 1024;
static const size_t STACK = 128 << 10;
static jmp_buf scheduler, places[MOST_THREADS];
static ucontext_t contexts[MOST_THREADS]; // where threads begin; from then on they jump, which asks nothing of the system
static bool started[MOST_THREADS], finished[MOST_THREADS];
static unsigned current, threads;

// From a thread back to the scheduler, until it is its turn again.
static void yield() {
    if (_setjmp(places[current]) == 0) {
        _longjmp(scheduler, 1);
    }
}

static void set_thread(unsigned t) {
    current = t;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
}

struct Barrier {
    unsigned arrived, alive, generation;
    void release_if_all() {
        if (alive > 0 && arrived == alive) {
            arrived = 0;
            generation++;
        }
    }
    void wait() {
        unsigned mine = generation;
        arrived++;
        release_if_all();
        while (generation == mine) {
            yield();
        }
    }
    void leave() {
        alive--;
        release_if_all();
    }
};
static Barrier of_block, of_warp[MOST_THREADS / 32];

static void __syncthreads() { of_block.wait(); }
static void __syncwarp() { of_warp[current / 32].wait(); }

#define __global__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(n)
#define KERNEL extern "C" void
#define DEVICE inline
static unsigned char* dynamic_shared;
#define DYNAMIC_SHARED(name) unsigned char* name = dynamic_shared

typedef long long i64;
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    unsigned short bits;
};

struct alignas(16) Bytes16 {
    u32 word[4];
};

template <class A, class B> static A bits_as(B b) {
    static_assert(sizeof(A) == sizeof(B), "the same bits");
    A a;
    memcpy(&a, &b, sizeof a);
    return a;
}

DEVICE float infinity() { return INFINITY; }
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return bits_as<float>(u32(x.bits) << 16); }
DEVICE bf16 to_bf16(float x) {
    u32 bits = bits_as<u32>(x);
    if (x != x) {
        return bf16{0x7fff};
    }
    return bf16{(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
DEVICE u32 pack_bf16(float low, float high) { return to_bf16(low).bits | u32(to_bf16(high).bits) << 16; }

DEVICE float __fadd_rn(float a, float b) { return a + b; }
DEVICE float __fsub_rn(float a, float b) { return a - b; }
DEVICE float __fmul_rn(float a, float b) { return a * b; }
DEVICE float __fdiv_rn(float a, float b) { return a / b; }
DEVICE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE u32 __float_as_uint(float x) { return bits_as<u32>(x); }
DEVICE float __uint_as_float(u32 x) { return bits_as<float>(x); }
DEVICE int __float2int_rn(float x) { return int(rintf(x)); }

// What the lanes of a warp show one another.
static u64 shown[MOST_THREADS][8];

template <class N> DEVICE N shuffle_from(N x, int lane) {
    memcpy(shown[current], &x, sizeof x);
    __syncwarp();
    N found;
    memcpy(&found, shown[current / 32 * 32 + lane], sizeof found);
    __syncwarp();
    return found;
}
template <class N> DEVICE N shuffle_xor(N x, int mask) { return shuffle_from(x, int(current % 32) ^ mask); }

static float half_of(u64 word, int high) { return to_float(bf16{(unsigned short)(word >> (16 * high))}); }

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": lane l has row l / 4 (and 8 more) of a and d, column l / 4
// of b, and in them the pair l % 4 (and 8 elements further).
DEVICE void multiply_16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u64 mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(shown[current], mine, sizeof mine);
    __syncwarp();
    unsigned first = current / 32 * 32, lane = current % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
        float sum = d[i];
        for (int k = 0; k < 16; k++) {
            // a: register 0 is (row < 8, k < 8), 1 is (row >= 8, k < 8), 2 is (row < 8, k >= 8), 3 is both.
            u64 left = shown[first + row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)];
            u64 right = shown[first + col * 4 + k % 8 / 2][4 + k / 8];
            sum += half_of(left, k % 2) * half_of(right, k % 2);
        }
        d[i] = sum;
    }
    __syncwarp();
}

DEVICE float exp2_near(float x) { return exp2f(x); }
DEVICE float reciprocal_near(float x) { return 1.0f / x; }

typedef u64 Shared;
DEVICE Shared shared_address(const void* p) { return u64(uintptr_t(p)); }

// PTX ISA, ldmatrix: the address of row r of matrix m comes from lane 8 m + r; lane l gets elements 2 (l % 4) and one more of row
// l / 4; transposed, of column l / 4.
static void load_four(u32 (&m)[4], Shared address, bool transposed) {
    if (address % 16 != 0) {
        fprintf(stderr, "ldmatrix at an address that is no multiple of 16\n");
        abort();
    }
    shown[current][0] = address;
    __syncwarp();
    unsigned first = current / 32 * 32, lane = current % 32;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        u32 pair[2];
        for (unsigned i = 0; i < 2; i++) {
            unsigned r = lane / 4, c = lane % 4 * 2 + i;
            if (transposed) {
                std::swap(r, c);
            }
            pair[i] = ((const bf16*)uintptr_t(shown[first + matrix * 8 + r][0]))[c].bits;
        }
        m[matrix] = pair[0] | pair[1] << 16;
    }
    __syncwarp();
}
DEVICE void load_matrices(u32 (&m)[4], Shared row) { load_four(m, row, false); }
DEVICE void load_matrices_transposed(u32 (&m)[4], Shared row) { load_four(m, row, true); }

// A copy that is on its way. It arrives as late as its thread's waits allow, so that whoever forgets to wait reads what was there
// before; where threads run from the last to the first, at once, so that whoever sends too early overwrites what is still read.
struct Sent {
    Shared to;
    const void* from;
    unsigned bytes;
    bool there;
    void arrive() const {
        memset((void*)uintptr_t(to), 0, bytes);
        if (there) {
            memcpy((void*)uintptr_t(to), from, bytes);
        }
    }
};
static std::vector<Sent> sent[MOST_THREADS];
static bool at_once;

static void send(const Sent& copy) {
    if (copy.to % copy.bytes != 0 || (copy.there && uintptr_t(copy.from) % copy.bytes != 0)) {
        fprintf(stderr, "cp.async of %u bytes at an address that is no multiple of them\n", copy.bytes);
        abort();
    }
    if (at_once) {
        copy.arrive();
    } else {
        sent[current].push_back(copy);
    }
}
DEVICE void send_16(Shared to, const void* from, bool there) { send({to, from, 16, there}); }
DEVICE void send_4(Shared to, const void* from, bool there) { send({to, from, 4, there}); }
static void wait_for_sent() {
    for (const Sent& copy : sent[current]) {
        copy.arrive();
    }
    sent[current].clear();
}

// --- running a kernel

struct Call {
    void (*function)(void*, void**);
    void* kernel;
    void** arguments;
};
static Call call;

static void thread_main() {
    call.function(call.kernel, call.arguments);
    finished[current] = true;
    of_warp[current / 32].leave();
    of_block.leave();
    yield();
}

static void resume(unsigned t) {
    if (_setjmp(scheduler) == 0) {
        if (started[t]) {
            _longjmp(places[t], 1);
        }
        started[t] = true;
        setcontext(&contexts[t]);
    }
}

// Until every thread has finished; DEADLOCK where none can move.
static Verdict run_block(bool backward, char* stacks) {
    for (unsigned w = 0; w < threads / 32; w++) {
        of_warp[w] = {0, 32, 0};
    }
    of_block = {0, threads, 0};
    at_once = backward;
    for (unsigned t = 0; t < threads; t++) {
        started[t] = finished[t] = false;
        sent[t].clear();
        getcontext(&contexts[t]);
        contexts[t].uc_stack.ss_sp = stacks + t * STACK;
        contexts[t].uc_stack.ss_size = STACK;
        contexts[t].uc_link = nullptr;
        makecontext(&contexts[t], thread_main, 0);
    }
    unsigned warps = threads / 32;
    unsigned left = threads;
    while (left > 0) {
        u64 before = of_block.generation;
        unsigned had = left;
        bool moved = false;
        for (unsigned i = 0; i < warps; i++) {
            unsigned warp = backward ? warps - 1 - i : i;
            // A warp goes as far as it can before the next one moves: what it must not overtake, it overtakes.
            unsigned generation, lived;
            do {
                generation = of_warp[warp].generation;
                lived = left;
                for (unsigned lane = 0; lane < 32; lane++) {
                    unsigned t = warp * 32 + (backward ? 31 - lane : lane);
                    if (!finished[t]) {
                        set_thread(t);
                        resume(t);
                        left -= finished[t];
                    }
                }
                moved |= of_warp[warp].generation != generation;
            } while (of_warp[warp].generation != generation || left != lived);
        }
        if (!moved && of_block.generation == before && left == had) {
            return DEADLOCK;
        }
    }
    return DONE;
}

static Verdict run_grid(const Plan& plan) {
    gridDim = plan.grid;
    blockDim = plan.block;
    threads = blockDim.x * blockDim.y * blockDim.z;
    if (threads == 0 || threads > MOST_THREADS || threads % 32 != 0) {
        return WRONG_ARGUMENTS;
    }
    static char* stacks = (char*)mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    unsigned char* shared = new unsigned char[plan.shared_bytes + 256 + 16];
    dynamic_shared = (unsigned char*)((uintptr_t(shared) + 15) / 16 * 16);
    Verdict verdict = DONE;
    for (unsigned z = 0; z < plan.grid.z && verdict == DONE; z++) {
        for (unsigned y = 0; y < plan.grid.y && verdict == DONE; y++) {
            for (unsigned x = 0; x < plan.grid.x && verdict == DONE; x++) {
                blockIdx = {x, y, z};
                memset(dynamic_shared, 0xff, plan.shared_bytes + 240);
                verdict = run_block(plan.backward, stacks);
                for (unsigned i = 0; i < 240 && verdict == DONE; i++) {
                    if (dynamic_shared[plan.shared_bytes + i] != 0xff) {
                        verdict = SHARED_OVERRUN;
                    }
                }
            }
        }
    }
    delete[] shared;
    return verdict;
}

template <class... A, size_t... I> static void apply(void* kernel, void** arguments, std::index_sequence<I...>) {
    ((void (*)(A...))kernel)(*(A*)arguments[I]...);
}

template <class... A> static void unpack(void* kernel, void** arguments) {
    apply<A...>(kernel, arguments, std::index_sequence_for<A...>());
}

// Arguments must be as many and as wide as the kernel's parameters.
template <class... A> static int run(void (*kernel)(A...), const Plan* plan, void** arguments, const size_t* sizes, size_t count) {
    const size_t wanted[] = {sizeof(A)...};
    if (count != sizeof...(A) || memcmp(wanted, sizes, sizeof wanted) != 0) {
        return WRONG_ARGUMENTS;
    }
    call = {unpack<A...>, (void*)kernel, arguments};
    return run_grid(*plan);
}

// --- memory between two pages that nobody may touch

static size_t pages(size_t bytes) {
    size_t page = size_t(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}

// Ends where the forbidden page begins, but for what makes the start a multiple of 16; filled with bytes that make NaN.
extern "C" void* emulator_allocate(size_t bytes) {
    size_t page = pages(1), room = pages(bytes + 16);
    char* all = (char*)mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + page, room, PROT_READ | PROT_WRITE) != 0) {
        return nullptr;
    }
    memset(all + page, 0xff, room);
    return all + page + room - (bytes + 15) / 16 * 16;
}

// 0 where nothing was written beside the memory.
extern "C" int emulator_release(void* start, size_t bytes) {
    size_t page = pages(1), room = pages(bytes + 16);
    char* end = (char*)start + (bytes + 15) / 16 * 16;
    char* all = end - room - page;
    int harm = 0;
    for (char* p = all + page; p < end; p++) {
        bool inside = p >= (char*)start && p < (char*)start + bytes;
        harm |= !inside && (unsigned char)*p != 0xff;
    }
    munmap(all, room + 2 * page);
    return harm;
}
