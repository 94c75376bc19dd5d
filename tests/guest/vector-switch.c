/*
 * vector-switch: do vector registers survive context switches and signals?
 *
 * Two or more processes on one CPU fill every vector register that the CPU has (XMM, YMM, ZMM and masks), MXCSR and the
 * x87 registers with patterns of their own, give the CPU away (by sched_yield, and by spinning until the scheduler takes
 * it), and compare. A timer's signal handler overwrites all of them in between, so that signal frames are proven too.
 *
 *   vector-switch [ROUNDS [PROCESSES]]     200 rounds, 2 processes
 *
 * Exits with 0 when nothing was lost, 1 with one line for each loss, 2 when it could not run.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum level { SSE, AVX, AVX512 };

/* All that one process keeps in registers. The layout is known to the assembly below. */
struct state {
	uint8_t vector[32][64]; /*    0: XMM, YMM or ZMM, zero-extended to 64 bytes */
	uint64_t mask[8];       /* 2048 */
	uint64_t x87[8];        /* 2112: integers that doubles hold exactly */
	uint32_t mxcsr;         /* 2176 */
	uint16_t fcw;           /* 2180 */
	uint16_t pad;
} __attribute__((aligned(64)));

static enum level level;
static volatile sig_atomic_t signals;

static uint64_t xgetbv(void)
{
	uint32_t low, high;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (uint64_t)high << 32 | low;
}

static enum level find_level(void)
{
	uint32_t a, b, c, d;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX))
		return SSE;
	uint64_t xcr0 = xgetbv();
	if ((xcr0 & 6) != 6)
		return SSE;
	if ((xcr0 & 0xe6) != 0xe6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
		return AVX;
	return (b & bit_AVX512F) && (b & bit_AVX512BW) ? AVX512 : AVX;
}

/* Loads everything from `in`, yields or spins `spins` times, stores everything to `out`. */
#define X87_LOAD                                                                                                       \
	"fninit\n fldcw 2180(%[in])\n ldmxcsr 2176(%[in])\n"                                                           \
	"fildll 2112(%[in])\n fildll 2120(%[in])\n fildll 2128(%[in])\n fildll 2136(%[in])\n"                          \
	"fildll 2144(%[in])\n fildll 2152(%[in])\n fildll 2160(%[in])\n fildll 2168(%[in])\n"
#define X87_STORE                                                                                                      \
	"stmxcsr 2176(%[out])\n fnstcw 2180(%[out])\n"                                                                 \
	"fistpll 2168(%[out])\n fistpll 2160(%[out])\n fistpll 2152(%[out])\n fistpll 2144(%[out])\n"                  \
	"fistpll 2136(%[out])\n fistpll 2128(%[out])\n fistpll 2120(%[out])\n fistpll 2112(%[out])\n"                  \
	"fninit\n"
#define GIVE_AWAY                                                                                                      \
	"mov %[spins], %%r8\n"                                                                                         \
	"test %%r8, %%r8\n"                                                                                            \
	"jnz 2f\n"                                                                                                     \
	"mov %[yield], %%eax\n"                                                                                        \
	"syscall\n"                                                                                                    \
	"jmp 3f\n"                                                                                                     \
	"2: dec %%r8\n"                                                                                                \
	"jnz 2b\n"                                                                                                     \
	"3:\n"
#define OPERANDS                                                                                                       \
	:                                                                                                              \
	: [in] "D"(in), [out] "S"(out), [spins] "r"(spins), [yield] "i"(SYS_sched_yield)                               \
	: "rax", "rcx", "r8", "r11", "memory", "cc"
/* Registers 0 to 15 by number and byte offset of their 64 bytes. */
#define EACH16(x)                                                                                                      \
	x(0, 0) x(1, 64) x(2, 128) x(3, 192) x(4, 256) x(5, 320) x(6, 384) x(7, 448) x(8, 512) x(9, 576) x(10, 640)    \
	x(11, 704) x(12, 768) x(13, 832) x(14, 896) x(15, 960)
#define EACH32(x)                                                                                                      \
	EACH16(x)                                                                                                      \
	x(16, 1024) x(17, 1088) x(18, 1152) x(19, 1216) x(20, 1280) x(21, 1344) x(22, 1408) x(23, 1472) x(24, 1536)    \
	x(25, 1600) x(26, 1664) x(27, 1728) x(28, 1792) x(29, 1856) x(30, 1920) x(31, 1984)
#define MASKS(x)                                                                                                       \
	x(0, 2048) x(1, 2056) x(2, 2064) x(3, 2072) x(4, 2080) x(5, 2088) x(6, 2096) x(7, 2104)

#define LOAD_XMM(n, at) "movdqa " #at "(%[in]), %%xmm" #n "\n"
#define STORE_XMM(n, at) "movdqa %%xmm" #n ", " #at "(%[out])\n"
#define LOAD_YMM(n, at) "vmovdqa " #at "(%[in]), %%ymm" #n "\n"
#define STORE_YMM(n, at) "vmovdqa %%ymm" #n ", " #at "(%[out])\n"
#define LOAD_ZMM(n, at) "vmovdqa64 " #at "(%[in]), %%zmm" #n "\n"
#define STORE_ZMM(n, at) "vmovdqa64 %%zmm" #n ", " #at "(%[out])\n"
#define LOAD_K(n, at) "kmovq " #at "(%[in]), %%k" #n "\n"
#define STORE_K(n, at) "kmovq %%k" #n ", " #at "(%[out])\n"

static void carry_sse(const struct state *in, struct state *out, uint64_t spins)
{
	__asm__ volatile(X87_LOAD EACH16(LOAD_XMM) GIVE_AWAY EACH16(STORE_XMM) X87_STORE OPERANDS);
}

static void carry_avx(const struct state *in, struct state *out, uint64_t spins)
{
	__asm__ volatile(X87_LOAD EACH16(LOAD_YMM) GIVE_AWAY EACH16(STORE_YMM) X87_STORE "vzeroupper\n" OPERANDS);
}

static void carry_avx512(const struct state *in, struct state *out, uint64_t spins)
{
	__asm__ volatile(X87_LOAD EACH32(LOAD_ZMM) MASKS(LOAD_K) GIVE_AWAY MASKS(STORE_K) EACH32(STORE_ZMM)
				 X87_STORE "vzeroupper\n" OPERANDS);
}

static void carry(const struct state *in, struct state *out, uint64_t spins)
{
	static void (*const by_level[])(const struct state *, struct state *, uint64_t) = {carry_sse, carry_avx,
											 carry_avx512};
	by_level[level](in, out, spins);
}

static uint64_t next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* A pattern for what this CPU has of the registers; the rest stays zero. */
static void fill(struct state *state, uint64_t *seed)
{
	static const int registers[] = {16, 16, 32}, bytes[] = {16, 32, 64};

	memset(state, 0, sizeof *state);
	for (int at = 0; at < registers[level]; at++)
		for (int word = 0; word < bytes[level]; word += 8) {
			uint64_t value = next(seed);
			memcpy(&state->vector[at][word], &value, sizeof value);
		}
	for (int at = 0; at < 8; at++) {
		if (level == AVX512)
			state->mask[at] = next(seed);
		state->x87[at] = next(seed);
	}
	/* Rounding mode, flush to zero; x87: rounding mode, all exceptions masked, 64-bit precision. */
	state->mxcsr = 0x1f80 | (next(seed) & 3) << 13 | (next(seed) & 1) << 15;
	state->fcw = 0x37f | (next(seed) & 3) << 10;
}

static void on_signal(int signal)
{
	uint64_t seed = 0x5a5a5a5a5a5a5a5b + signal;
	struct state in, out;

	fill(&in, &seed);
	carry(&in, &out, 1);
	signals++;
}

static int compare(const struct state *in, const struct state *out, int process, long round)
{
	int lost = 0;

	for (int at = 0; at < 32; at++)
		if (memcmp(in->vector[at], out->vector[at], 64)) {
			int byte = 0;
			while (in->vector[at][byte] == out->vector[at][byte])
				byte++;
			printf("process %d round %ld: vector register %d differs from byte %d on\n", process, round, at,
			       byte);
			lost++;
		}
	for (int at = 0; at < 8; at++) {
		if (in->mask[at] != out->mask[at])
			printf("process %d round %ld: mask %d differs\n", process, round, at), lost++;
		if (in->x87[at] != out->x87[at])
			printf("process %d round %ld: x87 register %d differs\n", process, round, at), lost++;
	}
	if (in->mxcsr != out->mxcsr)
		printf("process %d round %ld: MXCSR %#x is %#x\n", process, round, in->mxcsr, out->mxcsr), lost++;
	if (in->fcw != out->fcw)
		printf("process %d round %ld: x87 control %#x is %#x\n", process, round, in->fcw, out->fcw), lost++;
	return lost;
}

/* Counters that the processes share: who has begun, and who has done enough. */
static volatile int *begun, *enough;

static int work(int process, int processes, long rounds)
{
	static struct state in, out;
	uint64_t seed = 0x9e3779b97f4a7c15 * (process + 1);
	/* One shot at a time: on a slow host a periodic timer could take all of the CPU. */
	struct itimerval timer = {{0, 0}, {0, 10000}};
	struct rusage usage;
	int lost = 0, counted = 0;
	long round = 0;

	__atomic_add_fetch(begun, 1, __ATOMIC_SEQ_CST);
	while (*begun < processes)
		sched_yield();
	signal(SIGALRM, on_signal);
	/* Nobody stops before all have done enough, so there is always somebody to switch to. */
	while (*enough < processes && lost < 10) {
		if (round % 16 == 0)
			setitimer(ITIMER_REAL, &timer, NULL);
		fill(&in, &seed);
		memset(&out, 0, sizeof out);
		/* Three of four rounds yield; the fourth spins long enough for a tick or a signal. */
		carry(&in, &out, round % 4 == 3 ? 3000000 : 0);
		lost += compare(&in, &out, process, round);
		round++;
		if (!counted && round >= rounds && signals >= 3) {
			counted = 1;
			__atomic_add_fetch(enough, 1, __ATOMIC_SEQ_CST);
		}
	}
	if (!counted)
		__atomic_add_fetch(enough, 1, __ATOMIC_SEQ_CST);
	getrusage(RUSAGE_SELF, &usage);
	printf("process %d: %ld rounds, %ld switches, %ld signals, %d lost\n", process, round,
	       usage.ru_nvcsw + usage.ru_nivcsw, (long)signals, lost);
	return lost != 0;
}

int main(int argc, char **argv)
{
	static const char *const names[] = {"SSE", "AVX", "AVX-512"};
	long rounds = argc > 1 ? atol(argv[1]) : 200;
	int processes = argc > 2 ? atoi(argv[2]) : 2, bad = 0;
	if (rounds < 1 || processes < 2) {
		fprintf(stderr, "usage: vector-switch [ROUNDS [PROCESSES]], at least 1 and 2\n");
		return 2;
	}
	cpu_set_t one;

	setvbuf(stdout, NULL, _IOLBF, 0);
	level = find_level();
	printf("vector-switch: %s, %d processes, %ld rounds\n", names[level], processes, rounds);
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	if (sched_setaffinity(0, sizeof one, &one)) {
		perror("sched_setaffinity");
		return 2;
	}
	begun = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (begun == MAP_FAILED) {
		perror("mmap");
		return 2;
	}
	enough = begun + 1;
	for (int process = 0; process < processes; process++) {
		pid_t child = fork();
		if (child < 0) {
			perror("fork");
			return 2;
		}
		if (child == 0)
			_exit(work(process, processes, rounds));
	}
	for (int process = 0; process < processes; process++) {
		int status;
		if (wait(&status) < 0) {
			perror("wait");
			return 2;
		}
		bad |= !WIFEXITED(status) || WEXITSTATUS(status);
	}
	puts(bad ? "vector-switch: LOST" : "vector-switch: ok");
	return bad;
}
