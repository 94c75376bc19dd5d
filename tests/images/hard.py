"""The hard cases: two layers with every kind of tar entry, and what is to be seen of them in a container below /hard.

A path is text of Latin-1: each character is one byte of the name.
"""

import hashlib
import io
import os
import random
import struct
import subprocess
import tarfile
import tempfile

TIME = 1_600_000_000


class Layer:
    """A tar whose entries choose their dialects themselves."""

    def __init__(self):
        self.out = io.BytesIO()

    def entry(self, name, kind=tarfile.REGTYPE, data=b"", dialect=tarfile.PAX_FORMAT, link="", records=None, **fields):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.mtime = kind, len(data), link, TIME
        info.pax_headers = records or {}
        for field, value in fields.items():
            setattr(info, field, value)
        # Latin-1 keeps bytes as they are; a PAX record is UTF-8 by its standard, so names of other bytes go as GNU's.
        self.out.write(info.tobuf(dialect, "latin-1" if dialect != tarfile.PAX_FORMAT else "utf-8", "surrogateescape"))
        self.out.write(data + b"\0" * (-len(data) % 512))

    def file(self, name, data=b"", **fields):
        fields.setdefault("mode", 0o644)
        self.entry(name, data=data, **fields)

    def directory(self, name, **fields):
        fields.setdefault("mode", 0o755)
        self.entry(name, tarfile.DIRTYPE, **fields)

    def raw(self, data):
        self.out.write(data)

    def bytes(self):
        return self.out.getvalue() + b"\0" * 1024


def sparse(name, data, *options):
    """The entry that GNU tar makes of a file with holes, without the archive's end."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path))
        with open(path, "wb") as file:
            for at, piece in data:
                file.seek(at)
                file.write(piece)
        os.chmod(path, 0o644)
        os.utime(path, (TIME, TIME))
        command = ["tar", "--sparse", "--hole-detection=raw", *options, "--owner=0", "--group=0", "--numeric-owner", "-C", folder, "-cf", "-", name]
        made = subprocess.run(command, capture_output=True, check=True).stdout
    while made.endswith(b"\0" * 512):
        made = made[:-512]
    return made


class Seen:
    """What is to be seen: attributes by path."""

    def __init__(self):
        self.paths = {}

    def add(self, path, kind, mode, **more):
        self.paths[path] = {"kind": kind, "mode": mode, "uid": 0, "gid": 0, "mtime": TIME * 10**9, **more}

    def file(self, path, data=b"", mode=0o644, **more):
        self.add(path, "file", mode, size=len(data), sha256=hashlib.sha256(data).hexdigest(), **more)


def layers():
    """The lower layer, the upper one, and what is to be seen."""
    lower, upper, seen = Layer(), Layer(), Seen()
    gnu, ustar, pax = tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT

    def file(name, data=b"", mode=0o644, dialect=pax, records=None, see=None, **fields):
        lower.file(f"hard/{name}", data, mode=mode, dialect=dialect, records=records, **fields)
        seen.file(name, data, mode, **{**fields, **(see or {})})

    # A comment for all entries, as git's archives have it.
    lower.raw(tarfile.TarInfo.create_pax_global_header({"comment": "0123456789"}))
    lower.directory("hard/")

    # Kinds.
    big = random.Random(1).randbytes(3_000_000)
    file("regular", b"regular\n", see={"links": 3})
    file("empty")
    file("big", big)
    file("old", b"old\n", dialect=ustar, type=tarfile.AREGTYPE)
    del seen.paths["old"]["type"]
    file("contiguous", b"contiguous\n", type=tarfile.CONTTYPE)
    del seen.paths["contiguous"]["type"]
    lower.entry("hard/fifo", tarfile.FIFOTYPE, mode=0o622)
    seen.add("fifo", "fifo", 0o622)
    for name, kind, major, minor in (("null", "char", 1, 3), ("far", "char", 240, 1_048_575), ("loop", "block", 7, 0)):
        lower.entry(f"hard/{name}", tarfile.CHRTYPE if kind == "char" else tarfile.BLKTYPE, mode=0o666, devmajor=major, devminor=minor)
        seen.add(name, kind, 0o666, device=[major, minor])
    targets = {"absolute": "/etc/passwd", "relative": "../etc/passwd", "dangling": "nowhere", "self": "self", "long": "x/" * 400 + "x"}
    for name, target in targets.items():
        lower.entry(f"hard/link-{name}", tarfile.SYMTYPE, link=target, mode=0o777, dialect=gnu if name == "long" else pax)
        seen.add(f"link-{name}", "link", 0o777, target=target)
    lower.entry("hard/same", tarfile.LNKTYPE, link="./hard/regular")
    upper.entry("hard/sub/late", tarfile.LNKTYPE, link="hard/regular")
    for name in ("same", "sub/late"):
        seen.file(name, b"regular\n", links=3)

    # Sparse files, in each of GNU tar's formats.
    pieces = [(0, b"start"), (1 << 20, b"middle" * 100), ((5 << 20) + 17, b"end")]
    whole = bytearray((5 << 20) + 20)
    for at, piece in pieces:
        whole[at : at + len(piece)] = piece
    for name, options in (
        ("old", ["--format=gnu"]), ("0.0", ["--format=pax", "--sparse-version=0.0"]),
        ("0.1", ["--format=pax", "--sparse-version=0.1"]), ("1.0", ["--format=pax", "--sparse-version=1.0"]),
    ):
        lower.raw(sparse(f"hard/sparse-{name}", pieces, *options))
        seen.file(f"sparse-{name}", bytes(whole))

    # Owners, modes, times.
    file("setuid", b"x", 0o4755)
    file("setgid", b"x", 0o2711, uid=1000, gid=50)
    file("none", b"x", 0o000, uid=4_000_000_000, gid=4_000_000_001, dialect=gnu)
    file("owned", b"x", 0o640, uid=3_000_000, gid=70_000)
    lower.directory("hard/sticky", mode=0o1777)
    seen.add("sticky", "directory", 0o1777)
    for name, text, nanoseconds in (("fraction", "1234567890.123456789", 1234567890123456789), ("late-time", "8589934592", 8589934592 * 10**9),
                                    ("early", "-86400", -86400 * 10**9), ("zero", "0", 0)):
        lower.file(f"hard/{name}", b"t", mtime=int(float(text)) if name == "zero" else 1, records={"mtime": text})
        seen.file(name, b"t", mtime=nanoseconds)

    # Attributes.
    capability = struct.pack("<5I", 0x0200_0001, 1 << 10, 0, 0, 0)
    attributes = {"user.note": b"a\nnote", "user.empty": b"", "security.capability": capability}
    records = {f"SCHILY.xattr.{name}": value.decode("latin-1") for name, value in attributes.items()}
    file("attributes", b"x", 0o755, records=records, see={"attributes": {name: value.hex() for name, value in attributes.items()}})

    # Names.
    for name in ("with space", "-dash", "back\\slash", "new\nline", "...", "quote'\"", "n" * 255):
        file(f"names/{name}", name.encode(), dialect=gnu if len(name) > 100 else pax)
    file("names/\xff\xfe", b"bytes", dialect=gnu)
    file("names/\u00c3\u00a9", b"two bytes", dialect=gnu)
    deep = "/".join(["d" * 90] * 12)
    file(f"{deep}/file", b"deep")
    file("p" * 80 + "/" + "q" * 80, b"prefix", dialect=ustar)
    for number in range(1500):
        file(f"many/{number:04}", b"%d" % number, dialect=ustar)
    lower.file("./hard/dotted", b"dotted")
    seen.file("dotted", b"dotted")
    lower.file("hard/twice", b"the first")
    file("twice", b"the second", 0o600)

    # What the upper layer takes away, and what it puts in its place.
    for name in ("gone", "gone-tree/a", "gone-tree/b/c", "opaque/a", "opaque/b/c", "late-opaque/a", "again", "again-late", "flat/a", "to-link/a"):
        lower.file(f"hard/{name}", b"from below")
    file("kept/a", b"from below")
    lower.file("hard/turns", b"a file")
    for name in (".wh.gone", ".wh.gone-tree", ".wh.again", "opaque/.wh..wh..opq"):
        upper.file(f"hard/{name}")
    upper.file("hard/again", b"again")
    seen.file("again", b"again")
    # A whiteout is about lower layers only, wherever it stands in its own.
    upper.file("hard/again-late", b"again")
    upper.file("hard/.wh.again-late")
    seen.file("again-late", b"again")
    upper.file("hard/opaque/c", b"above")
    seen.file("opaque/c", b"above")
    upper.file("hard/late-opaque/c", b"above")
    upper.file("hard/late-opaque/.wh..wh..opq")
    seen.file("late-opaque/c", b"above")
    upper.directory("hard/kept", mode=0o700, uid=7)
    seen.add("kept", "directory", 0o700, uid=7)
    upper.file("hard/turns/into/a", b"a tree")
    seen.file("turns/into/a", b"a tree")
    upper.file("hard/flat", b"a file")
    seen.file("flat", b"a file")
    upper.entry("hard/to-link", tarfile.SYMTYPE, link="kept", mode=0o777)
    seen.add("to-link", "link", 0o777, target="kept")
    # A link of the lower layer is no way for the upper one: a directory takes its place, as where layers are mounted one over another.
    lower.entry("hard/way", tarfile.SYMTYPE, link="kept", mode=0o777)
    upper.file("hard/way/b", b"in its place")
    seen.file("way/b", b"in its place")
    return lower.bytes(), upper.bytes(), seen.paths
