#!/usr/bin/env python3
"""The boot of the guest's kernel by phase and by initcall, from a trace of count.c.

   boot.py --ranges SYSTEM-MAP                        what to trace, for the plugin
   boot.py DIR MARK VMLINUX SYSTEM-MAP KVM-RUN [--all]   the tables, of DIR/count.MARK.trace

KVM-RUN is the address at which the host enters a machine: the boot counts from there. An instruction belongs to the
function that one of WATCHED called, whoever ran it: the guest, the host in an exit, or a thread that took its turn.
"""
import bisect
import collections
import struct
import sys

# Whose calls are told apart. Each is taken out of the function that calls it.
WATCHED = ["x86_64_start_kernel", "start_kernel", "setup_arch", "mm_core_init", "rest_init", "kernel_init", "kernel_init_freeable",
           "do_one_initcall"]
LEVELS = ["early", "pure", "core", "postcore", "arch", "subsys", "fs", "rootfs", "device", "late"]
STARTS = ["__initcall_start", "__initcall0_start", "__initcall1_start", "__initcall2_start", "__initcall3_start", "__initcall4_start",
          "__initcall5_start", "__initcallrootfs_start", "__initcall6_start", "__initcall7_start", "__initcall_end"]
# The kernel starts no other program than PID 1.
END = "kernel_execve"


class Kernel:
    """The guest's kernel: names of addresses, and what lies there."""

    def __init__(self, system_map, vmlinux=None):
        with open(system_map) as file:
            rows = [line.split()[:3] for line in file]
        self.address = {name: int(at, 16) for at, _, name in rows}
        code = sorted({(int(at, 16), name) for at, kind, name in rows if kind in "tTwW"})
        self.starts, self.names = [at for at, _ in code], [name for _, name in code]
        self.segments = []
        if vmlinux:
            with open(vmlinux, "rb") as file:
                self.image = file.read()
            at, size, count = struct.unpack_from("<Q", self.image, 32)[0], *struct.unpack_from("<HH", self.image, 54)
            for header in range(at, at + size * count, size):
                kind, _, offset, virtual, _, length = struct.unpack_from("<IIQQQQ", self.image, header)
                if kind == 1:
                    self.segments.append((virtual, virtual + length, offset))

    def bytes(self, address, length):
        for first, last, offset in self.segments:
            if first <= address and address + length <= last:
                return self.image[offset + address - first:offset + address - first + length]
        sys.exit(f"the kernel has nothing at {address:#x}: vmlinux and System.map are not of one build")

    def function(self, address):
        """Name and range of the function at an address."""
        index = bisect.bisect_right(self.starts, address) - 1
        if index < 0 or index + 1 == len(self.starts):
            return hex(address), (address, address)
        return self.names[index], (self.starts[index], self.starts[index + 1])

    def called(self, back):
        """What the call before the address `back` called: a name, "" for a pointer, None if there is no call."""
        before = self.bytes(back - 5, 5)
        if before[0] == 0xE8:
            target = (back + struct.unpack("<i", before[1:])[0]) & (1 << 64) - 1
            name, (first, _) = self.function(target)
            if first == target:
                return name
        return "" if before[3] == 0xFF and before[4] & 0xF8 == 0xD0 else None

    def initcalls(self):
        """Level and name of each, in their order."""
        calls = []
        for level, first, last in zip(LEVELS, STARTS, STARTS[1:]):
            for entry in range(self.address[first], self.address[last], 4):
                target = (entry + struct.unpack("<i", self.bytes(entry, 4))[0]) & (1 << 64) - 1
                calls.append((level, self.function(target)[0]))
        return calls


class Cost:
    def __init__(self, instructions=0, own=0, exits=0):
        self.instructions, self.own, self.exits = instructions, own, exits

    def __add__(self, other):
        return Cost(self.instructions + other.instructions, self.own + other.own, self.exits + other.exits)

    def __str__(self):
        return f"{self.instructions / 1e3:10.1f} {self.own / 1e3:10.1f} {self.exits:6}"


def read(path):
    with open(path) as file:
        return [(int(address, 16), Cost(*map(int, rest))) for address, *rest in (line.split() for line in file)]


def spans(kernel, moments):
    """Who was called between two moments, and what it cost: (caller, callee, cost); the caller itself has callee None."""
    for (address, before), (following, after) in zip(moments, moments[1:]):
        cost = Cost(after.instructions - before.instructions, after.own - before.own, after.exits - before.exits)
        caller, (first, last) = kernel.function(address)
        callee = kernel.called(following) if first < following < last else None
        yield caller, callee, cost


def boot(kernel, moments, kvm_run):
    """The moments from the first entry of the machine to its first program, without further entries."""
    addresses = [address for address, _ in moments]
    if kvm_run not in addresses or kernel.address[END] not in addresses:
        sys.exit("the trace has no whole boot")
    start, end = addresses.index(kvm_run), addresses.index(kernel.address[END])
    return [moments[start]] + [row for row in moments[start + 1:end + 1] if row[0] != kvm_run]


def table(title, rows, first):
    """Rows are (words, cost)."""
    print(f"== {title}\n")
    print(f"{'thousand':>10} {'guest own':>10} {'exits':>6}  {first}")
    for words, cost in rows:
        print(f"{cost}  {words}")
    print()


def main():
    if sys.argv[1] == "--ranges":
        kernel = Kernel(sys.argv[2])
        ranges = [kernel.function(kernel.address[name])[1] for name in WATCHED]
        print(",".join([f"trace={first:#x}-{last:#x}" for first, last in ranges] + [f"trace={kernel.address[END]:#x}"]))
        return
    everything = "--all" in sys.argv
    directory, mark, vmlinux, system_map, kvm_run = [arg for arg in sys.argv[1:] if arg != "--all"]
    kernel = Kernel(system_map, vmlinux)
    moments = boot(kernel, read(f"{directory}/count.{mark}.trace"), int(kvm_run, 16))
    pending = kernel.initcalls()
    total = len(pending)
    calls, phases = [], collections.defaultdict(Cost)
    for caller, callee, cost in spans(kernel, moments):
        if caller == "do_one_initcall" and callee == "":
            if not pending:
                sys.exit(f"more than {total} initcalls were called")
            calls.append((*pending.pop(0), cost))
        elif caller not in WATCHED:
            phases["", "before x86_64_start_kernel"] += cost
        elif callee is None or callee in WATCHED:
            phases[caller, ""] += cost
        else:
            phases[caller, callee or "(a pointer)"] += cost
    if pending:
        sys.exit(f"{len(pending)} of {total} initcalls were not seen to be called, {pending[0][1]} first")
    levels = [(level, [cost for of, _, cost in calls if of == level]) for level in LEVELS]
    whole = moments[-1][1]
    whole = Cost(whole.instructions - moments[0][1].instructions, whole.own - moments[0][1].own, whole.exits - moments[0][1].exits)
    if not whole.exits:
        sys.exit("no entry of a machine was counted: the nested host is no AMD processor any more")
    least = 0 if everything else whole.instructions / 500

    rows = [("everything", whole), ("all initcalls", sum((cost for *_, cost in calls), Cost()))]
    rows += [(f"  {level}: {len(costs)}", sum(costs, Cost())) for level, costs in levels]
    for caller in ["", *WATCHED]:
        mine = {callee: cost for (of, callee), cost in phases.items() if of == caller}
        if not mine:
            continue
        shown = sorted((item for item in mine.items() if item[1].instructions >= least), key=lambda item: -item[1].instructions)
        if caller:
            rows.append((f"{caller} but for what is told elsewhere", sum(mine.values(), Cost())))
        rows += [(f"  {callee or 'itself'}", cost) for callee, cost in shown]
        rest = [cost for cost in mine.values() if cost.instructions < least]
        if rest:
            rows.append((f"  {len(rest)} others", sum(rest, Cost())))
    table("from the first KVM_RUN to PID 1, by phase", rows, "phase")

    ranked = sorted(calls, key=lambda call: -call[2].instructions)
    rows = [(f"{100 * cost.instructions / whole.instructions:5.2f} %  {level:8}  {name}", cost) for level, name, cost in ranked]
    table("initcalls, by their cost", rows, "share    level     name")


if __name__ == "__main__":
    main()
