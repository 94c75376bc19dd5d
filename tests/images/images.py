#!/usr/bin/env python3
"""Writes the archives of build.sh into out/, from the layers debian.layer, redis.layer and python.layer and the file busybox-static."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile

import hard

OCI = "application/vnd.oci.image"
CREATED = "2026-01-01T00:00:00Z"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NATIVE = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def encode(value):
    return json.dumps(value, sort_keys=True).encode()


class Archive:
    """A tar of blobs by digest, each once."""

    def __init__(self, name):
        self.tar = tarfile.open(f"out/{name}", "w", format=tarfile.USTAR_FORMAT)
        self.names = set()

    def put(self, name, data):
        if name not in self.names:
            self.names.add(name)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            self.tar.addfile(info, io.BytesIO(data))

    def blob(self, data, kind):
        digest = hashlib.sha256(data).hexdigest()
        self.put(f"blobs/sha256/{digest}", data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    def image(self, layers, architecture=NATIVE, **config):
        """Descriptors of the manifest, the config and the layers. A layer is plain, and kept in gzip."""
        packed = [self.blob(pack(layer), f"{OCI}.layer.v1.tar+gzip") for layer in layers]
        described = self.blob(
            encode({
                "architecture": architecture,
                "os": "linux",
                "created": CREATED,
                "config": {"Env": [PATH], **config},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
                "history": [{"created": CREATED, "created_by": "tests/images/build.sh"} for _ in layers],
            }),
            f"{OCI}.config.v1+json",
        )
        kind = f"{OCI}.manifest.v1+json"
        manifest = self.blob(encode({"schemaVersion": 2, "mediaType": kind, "config": described, "layers": packed}), kind)
        return {**manifest, "platform": {"os": "linux", "architecture": architecture}}, described, packed

    def index(self, manifests):
        kind = f"{OCI}.index.v1+json"
        return self.blob(encode({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}), kind)

    def close(self, manifests):
        self.put("index.json", encode({"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}))
        self.put("oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
        self.tar.close()


packed = {}


def pack(layer):
    key = hashlib.sha256(layer).digest()
    if key not in packed:
        packed[key] = gzip.compress(layer, 6, mtime=0)
    return packed[key]


def named(descriptor, name):
    return {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}


def saved(name, layers, **config):
    """What `docker save` writes, old manifest and new index in one."""
    archive = Archive(f"{name}.tar")
    manifest, described, blobs = archive.image(layers, **config)
    path = lambda descriptor: "blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")
    tag = f"test/{name}:latest"
    archive.put("manifest.json", encode([{"Config": path(described), "RepoTags": [tag], "Layers": list(map(path, blobs))}]))
    manifest["annotations"] = {"io.containerd.image.name": f"docker.io/{tag}", "org.opencontainers.image.ref.name": "latest"}
    archive.close([manifest])


def read(path):
    with open(path, "rb") as file:
        return file.read()


def platforms():
    """A tag that is an index of an index: an attestation first, then two platforms of which the other cannot run here."""
    archive = Archive("multi.tar")
    statement = archive.blob(b"{}", "application/vnd.in-toto+json")
    config = archive.blob(encode({"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": []}}), f"{OCI}.config.v1+json")
    kind = f"{OCI}.manifest.v1+json"
    attestation = archive.blob(encode({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [statement]}), kind)
    attestation["platform"] = {"os": "unknown", "architecture": "unknown"}
    attestation["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    manifests = [attestation]
    for architecture in ("arm64", "amd64"):
        layer = hard.Layer()
        layer.file("arch", f"{architecture}\n".encode())
        layer.file("bin/busybox", read("busybox-static/bin/busybox") if architecture == NATIVE else b"\x7fELF of another", mode=0o755)
        manifests.append(archive.image([layer.bytes()], architecture, Cmd=["/bin/busybox", "cat", "/arch"])[0])
    archive.close([named(archive.index([archive.index(manifests)]), "test/multi:latest")])


def main():
    debian, redis, python = (read(f"{name}.layer") for name in ("debian", "redis", "python"))
    saved("debian", [debian], Cmd=["bash"])
    saved(
        "redis", [debian, redis], User="redis", WorkingDir="/data", Volumes={"/data": {}}, ExposedPorts={"6379/tcp": {}},
        Entrypoint=["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"],
    )
    saved("python", [debian, python], Cmd=["python3"], Env=[PATH, "PYTHONUNBUFFERED=1", "LANG=C.UTF-8"])
    lower, upper, seen = hard.layers()
    archive = Archive("hard.tar")
    manifest = archive.image([debian, python, lower, upper], Cmd=["python3"])[0]
    archive.close([named(manifest, "test/hard:latest")])
    with open("out/hard.json", "w", encoding="ascii") as file:
        json.dump(seen, file, indent=1, sort_keys=True)
    platforms()


main()
