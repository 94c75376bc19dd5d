#!/usr/bin/env python3
"""Makes the image servin/base; build.sh says how it is called.

The root file system is a busybox userland of our own, named for what it is (ID=servin-base), or Alpine's
minirootfs where the user has one. The same inputs give the same bytes: names are sorted, times are fixed,
nothing of the machine gets in.
"""

import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

ARCHITECTURES = {"x86_64": ("amd64", 62), "aarch64": ("arm64", 183)}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CREATED = "1970-01-01T00:00:00Z"

DIRECTORIES = """
bin dev etc etc/profile.d home lib media mnt opt proc run sbin srv sys usr usr/bin usr/lib usr/local
usr/local/bin usr/local/lib usr/local/sbin usr/local/share usr/sbin usr/share var var/cache var/empty
var/lib var/log var/spool
""".split()
SPECIAL_MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}

FILES = {
    "etc/passwd": """root:x:0:0:root:/root:/bin/sh
bin:x:1:1:bin:/bin:/sbin/nologin
daemon:x:2:2:daemon:/sbin:/sbin/nologin
mail:x:8:12:mail:/var/mail:/sbin/nologin
www-data:x:82:82:www-data:/var/www:/sbin/nologin
nobody:x:65534:65534:nobody:/:/sbin/nologin
""",
    "etc/group": """root:x:0:root
bin:x:1:root,bin,daemon
daemon:x:2:root,bin,daemon
sys:x:3:root,bin
adm:x:4:root,daemon
tty:x:5:
disk:x:6:root
mail:x:12:mail
wheel:x:10:root
www-data:x:82:www-data
users:x:100:
nogroup:x:65533:
nobody:x:65534:
""",
    "etc/shadow": """root:*::0:::::
bin:!::0:::::
daemon:!::0:::::
mail:!::0:::::
www-data:!::0:::::
nobody:!::0:::::
""",
    "etc/shells": "/bin/sh\n/bin/ash\n",
    "etc/hosts": "127.0.0.1\tlocalhost localhost.localdomain\n::1\tlocalhost localhost.localdomain\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
    "etc/issue": "servin base\n",
    "etc/profile": f"""export PATH={PATH}
export PAGER=less
umask 022
if [ -n "$PS1" ]; then
    PS1='\\h:\\w\\$ '
fi
for script in /etc/profile.d/*.sh; do
    [ -r "$script" ] && . "$script"
done
unset script
""",
    "etc/protocols": "ip\t0\tIP\nicmp\t1\tICMP\ntcp\t6\tTCP\nudp\t17\tUDP\nipv6\t41\tIPv6\nipv6-icmp\t58\tIPv6-ICMP\n",
    "etc/services": "".join(
        f"{name}\t{port}\n"
        for name, port in [
            ("ftp", "21/tcp"), ("ssh", "22/tcp"), ("telnet", "23/tcp"), ("smtp", "25/tcp"), ("domain", "53/tcp"),
            ("domain", "53/udp"), ("tftp", "69/udp"), ("http", "80/tcp"), ("ntp", "123/udp"), ("https", "443/tcp"),
        ]
    ),
}


def say(text):
    print(f"base: {text}", file=sys.stderr)


def fail(text):
    say(f"error: {text}")
    sys.exit(1)


def elf(data):
    """Machine number of an ELF file, and whether it is static; None for anything else."""
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    machine = int.from_bytes(data[18:20], "little")
    start, size, count = (int.from_bytes(data[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    kinds = [int.from_bytes(data[start + n * size :][:4], "little") for n in range(count)]
    return machine, 3 not in kinds  # PT_INTERP


def read_static(path, machine):
    with open(path, "rb") as file:
        data = file.read()
    return data if elf(data) == (machine, True) else None


def busybox(machine):
    """The bytes of a static busybox, and where they are from."""
    given = os.environ.get("SERVIN_BUSYBOX")
    if given:
        data = read_static(given, machine)
        return (data, given) if data else fail(f"SERVIN_BUSYBOX={given} is not a static program for this machine")
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path) and (data := read_static(path, machine)):
            return data, path
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        fail("no static busybox here: set SERVIN_BUSYBOX=FILE")
    say("fetching Debian's busybox-static")
    with tempfile.TemporaryDirectory() as work:
        fetch = subprocess.run(["apt-get", "download", "busybox-static"], cwd=work, capture_output=True, text=True, timeout=120)
        packages = [name for name in os.listdir(work) if name.endswith(".deb")]
        if fetch.returncode or not packages:
            fail(f"apt-get download busybox-static failed ({fetch.stderr.strip()[-200:]}): install it, or set SERVIN_BUSYBOX=FILE")
        subprocess.run(["dpkg-deb", "-x", packages[0], "root"], cwd=work, check=True, timeout=60)
        for path in ("bin/busybox", "usr/bin/busybox"):
            if os.path.exists(f"{work}/root/{path}") and (data := read_static(f"{work}/root/{path}", machine)):
                return data, packages[0]
    fail("the package busybox-static has no static busybox for this machine")


def applets(data, emulator):
    """Paths of all applets, as busybox itself lists them, and its version."""
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "busybox")
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o755)
        run = lambda *words: subprocess.run([*emulator, path, *words], capture_output=True, text=True, timeout=30, check=True).stdout
        names = run("--list-full").split()
        version = re.match(r"BusyBox v(\S+)", run()).group(1)
    known = {name for name in names if re.fullmatch(r"(usr/)?s?bin/[\w.\[-]+", name)} - {"bin/busybox"}
    if "bin/sh" not in known:
        fail("this busybox has no sh")
    return sorted(known), version


def userland(machine, emulator):
    """A layer with the busybox userland."""
    data, source = busybox(machine)
    names, version = applets(data, emulator)
    files = dict(FILES)
    files["etc/os-release"] = (
        'NAME="servin base"\nID=servin-base\nID_LIKE=alpine\n'
        f'VERSION_ID={version}\nPRETTY_NAME="servin base (busybox {version})"\n'
    )
    entries = {name: ("dir", SPECIAL_MODES.get(name, 0o755)) for name in [*DIRECTORIES, *SPECIAL_MODES]}
    entries |= {name: ("file", 0o640 if name == "etc/shadow" else 0o644, text.encode()) for name, text in files.items()}
    entries["bin/busybox"] = ("file", 0o755, data)
    entries |= {name: ("link", "/bin/busybox") for name in names}
    entries["var/run"] = ("link", "/run")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, (kind, *rest) in sorted(entries.items()):
            info = tarfile.TarInfo(name)
            info.uname = info.gname = "root"
            if kind == "dir":
                info.type, info.mode = tarfile.DIRTYPE, rest[0]
                tar.addfile(info)
            elif kind == "link":
                info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, rest[0]
                tar.addfile(info)
            else:
                info.mode, info.size = rest[0], len(rest[1])
                tar.addfile(info, io.BytesIO(rest[1]))
    say(f"busybox {version} from {source}, {len(names)} commands")
    return out.getvalue(), f"servin base: busybox {version}"


def alpine(path, machine):
    """Alpine's minirootfs as a layer, untouched."""
    try:
        with open(path, "rb") as file:
            packed = file.read()
        layer = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            members = {member.name.removeprefix("./").strip("/"): member for member in tar}
            shell = tar.extractfile(members["bin/busybox"]).read()
            release = tar.extractfile(members.get("etc/os-release") or members["usr/lib/os-release"]).read().decode()
    except (OSError, EOFError, KeyError, AttributeError, tarfile.TarError) as error:
        fail(f"SERVIN_MINIROOTFS={path} is no root file system with bin/busybox and etc/os-release ({error!r})")
    if (elf(shell) or (0,))[0] != machine:
        fail(f"SERVIN_MINIROOTFS={path} is for another machine")
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.M)
    name = name.group(1) if name else "minirootfs"
    say(f"{name} from {path}, sha256 {hashlib.sha256(packed).hexdigest()}")
    return layer, f"{name} minirootfs"


def image(layer, what, architecture):
    """The files of the archive, and the image's id."""
    files = {}

    def blob(data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    encode = lambda value: json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    oci = "application/vnd.oci.image"
    rootfs = blob(layer, f"{oci}.layer.v1.tar")
    config = blob(
        encode({
            "architecture": architecture,
            "os": "linux",
            "created": CREATED,
            "config": {
                "Cmd": ["/bin/sh"],
                "Env": [f"PATH={PATH}"],
                "Labels": {"servin.base": "1", "org.opencontainers.image.title": what},
            },
            "rootfs": {"type": "layers", "diff_ids": [rootfs["digest"]]},
            "history": [
                {"created": CREATED, "created_by": f"engine/base/build.sh # {what}"},
                {"created": CREATED, "created_by": 'CMD ["/bin/sh"]', "empty_layer": True},
            ],
        }),
        f"{oci}.config.v1+json",
    )
    manifest = {"schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json", "config": config, "layers": [rootfs]}
    described = blob(encode(manifest), f"{oci}.manifest.v1+json")
    described["platform"] = {"architecture": architecture, "os": "linux"}
    described["annotations"] = {
        "io.containerd.image.name": "docker.io/servin/base:latest",
        "org.opencontainers.image.ref.name": "latest",
    }
    path = lambda descriptor: "blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")
    files["index.json"] = encode({"schemaVersion": 2, "mediaType": f"{oci}.index.v1+json", "manifests": [described]})
    files["manifest.json"] = encode([{"Config": path(config), "RepoTags": ["servin/base:latest"], "Layers": [path(rootfs)]}])
    files["oci-layout"] = encode({"imageLayoutVersion": "1.0.0"})
    return files, config["digest"]


def publish(path, data):
    """Writes a file whole or not at all."""
    part = f"{path}.{os.getpid()}"
    with open(part, "wb") as file:
        file.write(data)
    os.replace(part, path)


def main(out, arch):
    if arch not in ARCHITECTURES:
        fail(f"no base image for {arch} (known: {', '.join(ARCHITECTURES)})")
    architecture, machine = ARCHITECTURES[arch]
    emulator = [] if arch == platform.machine() else [f"qemu-{arch}-static"]
    minirootfs = os.environ.get("SERVIN_MINIROOTFS")
    layer, what = alpine(minirootfs, machine) if minirootfs else userland(machine, emulator)
    files, digest = image(layer, what, architecture)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("blobs", "blobs/sha256"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.mode, info.size = 0o644, len(data)
            tar.addfile(info, io.BytesIO(data))
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, "base.tar")
    publish(path, archive.getvalue())
    publish(os.path.join(out, "base.id"), f"{digest}\n".encode())
    say(f"{os.path.relpath(path)}: {what}, {len(archive.getvalue())} bytes, {digest[:19]}")


main(*sys.argv[1:])
