#!/usr/bin/env python3
"""What ran between two counts of count.c: by part, by function; or the names of the functions of one part alone.

   report.py DIR FIRST SECOND SERVIN SYSTEM-MAP [--top N] [--guest-functions | --servin-functions]

DIR holds count.N, count.N.S and the nested host's kallsyms; FIRST and SECOND are such numbers. SERVIN is the program with its
symbols.
"""
import bisect
import collections
import re
import subprocess
import sys

# What the host's kernel does, by words in its functions' names: the first that fits.
WORK = [
    ("returns, as AMD's SRSO has them mitigated", r"^srso_"),
    ("clearing and copying memory", r"clear_page|copy_page|copy_user|memcpy|memset|copy_mc|_copy_|copyout|copyin"),
    ("taking down what was mapped", r"unmap|zap_|free_pages|free_unref|release_pages|remove_rmap|tlb_|exit_mm|free_pgt|pte_free|lru_add_drain"),
    ("faults, mapping, accounting of pages", r"fault|filemap|set_pte|rmap|lruvec|memcg|folio|follow_page|gup|get_user_pages|"
     r"next_uptodate|pte_|pmd|pud|p4d|pgd|mtree|mas_|vma|vm_normal|_page|pages|compound|node_page_state|rstat|lru|mmap|huge|cgroup"),
    ("filter of system calls", r"seccomp|bpf|do_jit|bpf_jit"),
    ("system calls, files, sockets", r"sys_|syscall|entry_SYSCALL|vfs|file|fd|path|link|dentry|d_|inode|namei|ext4|shmem|xas_|"
     r"sock|unix_|skb|pipe|poll|epoll|security|apparmor|read|write|iov|lookup|strn|open|close|stat|permission"),
    ("processes and scheduling", r"sched|task|fork|clone|dup_|exec|wake|switch|signal|wait|futex|clock|timer|tick|irq|idle|"
     r"rcu|rb_|mutex|spin|lock|sem|preempt|exit|enqueue|dequeue|update_|pick_"),
]
KERNEL = 0xFFFFFFFF80000000
MODULES = 0xFFFFFFFFC0000000
# Where an executable lies when addresses are not randomised.
PROGRAM = 0x555555554000


class Symbols:
    def __init__(self, lines):
        rows = sorted({(int(at, 16), name) for at, kind, name in lines if kind in "tTwW"})
        self.at = [at for at, _ in rows]
        self.names = [name for _, name in rows]

    def name(self, address):
        index = bisect.bisect_right(self.at, address) - 1
        return self.names[index] if index >= 0 else hex(address)


def read(path):
    counts = {}
    with open(path) as file:
        for line in file:
            address, place, instructions, times = line.split()
            counts[int(address, 16), int(place, 16), int(instructions)] = int(times)
    return counts


def symbols(path):
    with open(path) as file:
        return Symbols(line.split()[:3] for line in file)


def linkage_names(servin, before, after):
    """Of servin's functions that ran: the names that the linker knows, without the hashes that each build gives anew.

    One such name may stand for many functions, of which few ran: those come last.
    """
    def nameless(name):
        name = re.sub(r"17h[0-9a-f]{16}E(\.llvm\.\d+)?$", "", name)
        return re.sub(r"\.llvm\.\d+$", ".llvm.*", re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name))

    lines = subprocess.run(["nm", "-S", "--defined-only", servin], capture_output=True, text=True, check=True).stdout
    functions = {}
    for line in lines.splitlines():
        row = line.split(None, 3)
        if len(row) == 4 and row[2] in "tTwW":
            functions.setdefault(int(row[0], 16), (int(row[1], 16), set()))[1].add(nameless(row[3]))
    starts = sorted(functions)
    ran = set()
    for (address, place, instructions), times in after.items():
        if PROGRAM <= address < PROGRAM + (64 << 20) and times > before.get((address, place, instructions), 0):
            index = bisect.bisect_right(starts, address - PROGRAM) - 1
            if index >= 0:
                ran.add(starts[index])
    size, wanted = collections.Counter(), collections.Counter()
    for start, (length, names) in functions.items():
        for name in names:
            size[name] += length
            wanted[name] += length if start in ran else 0
    names = [name for name, length in wanted.items() if length]
    return sorted(names, key=lambda name: (-round(4 * wanted[name] / size[name]), name))


def main():
    args = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    top = 40
    if "--top" in sys.argv:
        top = int(sys.argv[sys.argv.index("--top") + 1])
        args.remove(str(top))
    directory, first, second, servin, system_map = args
    before, after = (read(f"{directory}/count.{n}") for n in (first, second))
    if "--servin-functions" in sys.argv:
        print("\n".join(linkage_names(servin, before, after)))
        return
    host, guest = symbols(f"{directory}/kallsyms"), symbols(system_map)
    lines = subprocess.run(["nm", "-C", servin], capture_output=True, text=True, check=True).stdout.splitlines()
    own = Symbols(row for line in lines if len(row := line.split(None, 2)) == 3)
    # The host's kernel lies in one piece: its blocks have one distance between address and place.
    distances = collections.Counter()
    for (address, place, _), times in before.items():
        if KERNEL <= address < MODULES:
            distances[place - address] += times
    (distance, _), = distances.most_common(1)
    parts, functions, works = collections.Counter(), collections.Counter(), collections.Counter()
    for (address, place, instructions), times in after.items():
        ran = instructions * (times - before.get((address, place, instructions), 0))
        if not ran:
            continue
        if address >= MODULES:
            where = "host: kvm", host.name(address)
        elif address >= KERNEL:
            is_host = place - address == distance
            where = ("host: kernel", host.name(address)) if is_host else ("guest: kernel", guest.name(address))
        elif PROGRAM <= address < PROGRAM + (64 << 20):
            where = "servin", own.name(address - PROGRAM)
        elif address >> 40 == 0x7F:
            where = "libraries", hex(address >> 12)
        else:
            where = "other programs, the guest's too", hex(address >> 16)
        parts[where[0]] += ran
        if where[0] == "host: kernel":
            works[next((work for work, names in WORK if re.search(names, where[1])), "the rest")] += ran
        functions[where] += ran
    if "--guest-functions" in sys.argv:
        names = {name for (part, name) in functions if part == "guest: kernel"}
        print("\n".join(sorted(names)))
        return
    print(f"{sum(parts.values()) / 1e6:8.2f} million instructions")
    for part, ran in parts.most_common():
        print(f"{ran / 1e6:8.2f}  {part}")
        if part == "host: kernel":
            for work, spent in works.most_common():
                print(f"    {spent / 1e6:8.2f}  {work}")
    print()
    for (part, name), ran in functions.most_common(top):
        print(f"{ran / 1e3:9.1f} thousand  {part:14} {name[:100]}")


if __name__ == "__main__":
    main()
