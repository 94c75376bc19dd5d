// SPDX-License-Identifier: Apache-2.0 OR MIT
// A plugin for QEMU's TCG that counts how often each block of instructions ran, for scripts/profile.sh.
//
//   -plugin file=count.so,out=PATH,marker=ADDRESS[,step=ADDRESS...][,trace=FIRST[-LAST]...][,own=FIRST-LAST]
//
// A block is known by its virtual address, where its first page lies in QEMU's memory (so that host, guest and
// processes are told apart), and its number of instructions. Whenever ADDRESS is executed, and at the end, everything
// so far goes to PATH.N, a line for each block: address, place, instructions, times. When a step's ADDRESS is executed
// for the first time since, everything so far goes to PATH.N.S, S the step's number and N that of the next mark.
//
// A block that begins at FIRST or behind it and before LAST (at FIRST alone, without LAST) is traced: a line in PATH.N.trace, N the next mark, for each
// time that it ran: address, and how many instructions ran before it, how many of those in blocks of the range `own`,
// and how often a machine was entered (AMD's VMRUN). A call that a traced function makes lies between two such lines.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The part of QEMU's qemu-plugin.h (version 1) that is used; Debian does not package the header.
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct { const char *target_name; } qemu_info_t;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0, QEMU_PLUGIN_CB_NO_REGS = 0 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

struct block {
    uint64_t address, place, instructions, times;
    struct block *next;
};

struct range {
    uint64_t first, last;
};

struct moment {
    uint64_t address, instructions, own, entries;
};

enum { BITS = 18, STEPS = 8, RANGES = 32 };
static struct block *table[1 << BITS];
static const char *out = "profile";
static uint64_t marker, steps[STEPS];
static size_t step_count;
static int marks, stepped[STEPS];
static struct range ranges[RANGES], own;
static size_t range_count;
static struct moment now, *moments;
static size_t moment_count, moment_room;

static struct block *find(uint64_t address, uint64_t place, uint64_t instructions)
{
    uint64_t mixed = address * 0x9E3779B97F4A7C15u ^ place * 0xC2B2AE3D27D4EB4Fu ^ instructions * 31;
    struct block **slot = &table[mixed >> (64 - BITS)], *block;
    for (block = *slot; block; block = block->next)
        if (block->address == address && block->place == place && block->instructions == instructions)
            return block;
    block = calloc(1, sizeof *block);
    if (!block)
        abort();
    *block = (struct block){ address, place, instructions, 0, *slot };
    return *slot = block;
}

static void dump(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return;
    for (size_t i = 0; i < 1 << BITS; i++)
        for (struct block *b = table[i]; b; b = b->next)
            if (b->times)
                fprintf(file, "%lx %lx %lu %lu\n", b->address, b->place, b->instructions, b->times);
    fclose(file);
}

static void dump_moments(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return;
    for (struct moment *m = moments; m < moments + moment_count; m++)
        fprintf(file, "%lx %lu %lu %lu\n", m->address, m->instructions, m->own, m->entries);
    fclose(file);
    moment_count = 0;
}

static void mark(void)
{
    char path[4096];
    if (range_count) {
        snprintf(path, sizeof path, "%s.%d.trace", out, marks);
        dump_moments(path);
    }
    snprintf(path, sizeof path, "%s.%d", out, marks++);
    dump(path);
    memset(stepped, 0, sizeof stepped);
}

static void marked(unsigned cpu, void *data) { mark(); }
static void ended(qemu_plugin_id_t id, void *data) { mark(); }

static void step(unsigned cpu, void *data)
{
    size_t number = (size_t)data;
    if (stepped[number]++)
        return;
    char path[4096];
    snprintf(path, sizeof path, "%s.%d.%zu", out, marks, number);
    dump(path);
}

static void traced(unsigned cpu, void *address)
{
    if (moment_count == moment_room) {
        moment_room = moment_room ? 2 * moment_room : 4096;
        moments = realloc(moments, moment_room * sizeof *moments);
        if (!moments)
            abort();
    }
    moments[moment_count] = now;
    moments[moment_count++].address = (uint64_t)address;
}

static int within(struct range range, uint64_t address) { return address >= range.first && address < range.last; }

static int is_vmrun(const struct qemu_plugin_insn *insn)
{
    return qemu_plugin_insn_size(insn) == 3 && !memcmp(qemu_plugin_insn_data(insn), "\x0f\x01\xd8", 3);
}

static void trace(struct qemu_plugin_tb *tb, uint64_t address)
{
    for (size_t i = 0; i < range_count; i++)
        if (within(ranges[i], address))
            qemu_plugin_register_vcpu_tb_exec_cb(tb, traced, QEMU_PLUGIN_CB_NO_REGS, (void *)address);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &now.instructions, qemu_plugin_tb_n_insns(tb));
    if (within(own, address))
        qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &now.own, qemu_plugin_tb_n_insns(tb));
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++)
        if (is_vmrun(qemu_plugin_tb_get_insn(tb, i)))
            qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &now.entries, 1);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    uint64_t address = qemu_plugin_tb_vaddr(tb);
    uint64_t place = (uint64_t)qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0));
    struct block *block = find(address, place, qemu_plugin_tb_n_insns(tb));
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->times, 1);
    if (range_count)
        trace(tb, address);
    if (marker && address == marker)
        qemu_plugin_register_vcpu_tb_exec_cb(tb, marked, QEMU_PLUGIN_CB_NO_REGS, NULL);
    for (size_t i = 0; i < step_count; i++)
        if (address == steps[i])
            qemu_plugin_register_vcpu_tb_exec_cb(tb, step, QEMU_PLUGIN_CB_NO_REGS, (void *)i);
}

static struct range parse(const char *text)
{
    char *end;
    uint64_t first = strtoull(text, &end, 0);
    return (struct range){ first, *end == '-' ? strtoull(end + 1, NULL, 0) : first + 1 };
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4))
            out = strdup(argv[i] + 4);
        if (!strncmp(argv[i], "marker=", 7))
            marker = strtoull(argv[i] + 7, NULL, 0);
        if (!strncmp(argv[i], "step=", 5) && step_count < STEPS)
            steps[step_count++] = strtoull(argv[i] + 5, NULL, 0);
        if (!strncmp(argv[i], "trace=", 6) && range_count < RANGES)
            ranges[range_count++] = parse(argv[i] + 6);
        if (!strncmp(argv[i], "own=", 4))
            own = parse(argv[i] + 4);
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
