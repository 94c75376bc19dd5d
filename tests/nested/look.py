"""look.py SOCKET: asks QEMU's monitor what the machine does: its registers at three moments, its interrupt controllers, and
then its kernel, by an interrupt that cannot be masked, for the place it is at."""
import socket
import sys
import time

monitor = socket.socket(socket.AF_UNIX)
monitor.settimeout(10)
monitor.connect(sys.argv[1])


def answer():
    said = b""
    while not said.endswith(b"(qemu) "):
        more = monitor.recv(65536)
        if not more:
            break
        said += more
    return said.decode(errors="replace")


answer()
for question in ["info registers", "info lapic", "info pic", "info registers", "info lapic", "info registers", "nmi"]:
    monitor.sendall(question.encode() + b"\n")
    # A line of the monitor is drawn letter by letter: what follows the last return is the answer.
    for line in answer().replace("\r", "").split("\n")[1:-1]:
        if not line.startswith(("FPR", "XMM", "YMM", "ST0", "(qemu)")):
            print("qemu:", line)
    time.sleep(0.5)
time.sleep(2)
