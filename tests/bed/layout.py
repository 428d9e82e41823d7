"""OCI layouts made on the spot, as tar files that `ctr images import` takes: no registry and no builder is needed."""
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

KIND = "application/vnd.oci.image"
AUTHORITIES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")


@dataclasses.dataclass
class Image:
    name: str
    # As `config` of an image's configuration has it.
    config: dict
    # Tars.
    layers: list


class Layer:
    """One tar, with the folders of what is put into it."""

    def __init__(self):
        self.out = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.out, mode="w")
        self.folders = set()

    def folder(self, name, mode=0o755):
        parent = os.path.dirname(name)
        if name in self.folders or not name:
            return
        self.folder(parent)
        self.folders.add(name)
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        self.tar.addfile(info)

    def file(self, name, data, mode=0o755):
        self.folder(os.path.dirname(name))
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), mode
        self.tar.addfile(info, io.BytesIO(data))

    def link(self, name, target):
        self.folder(os.path.dirname(name))
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        self.tar.addfile(info)

    def bytes(self):
        self.tar.close()
        return self.out.getvalue()


def shell():
    """A layer with the machine's static busybox and its applets."""
    busybox = pathlib.Path(shutil.which("busybox"))
    layer = Layer()
    for name in ["bin", "etc", "proc", "sys", "dev"]:
        layer.folder(name)
    layer.folder("tmp", 0o1777)
    layer.file("bin/busybox", busybox.read_bytes())
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True).stdout.split():
        if applet != "busybox":
            layer.link(f"bin/{applet}", "busybox")
    return layer.bytes()


def program(file, name):
    """A layer with a program as /NAME, what it is linked with, and the authorities that this machine trusts."""
    layer = Layer()
    layer.folder("tmp", 0o1777)
    with tempfile.NamedTemporaryFile() as small:
        # Symbols are most of its size; without strip it works all the same.
        if shutil.which("strip") and not subprocess.run(["strip", "--strip-debug", "-o", small.name, file]).returncode:
            layer.file(name, pathlib.Path(small.name).read_bytes())
        else:
            layer.file(name, pathlib.Path(file).read_bytes())
    # A static program has none, and ldd says so with a status.
    linked = subprocess.run(["ldd", file], capture_output=True, text=True)
    for library in re.findall(r"(?:=>\s+|^\s+)(/\S+)", linked.stdout, re.MULTILINE):
        layer.file(library.lstrip("/"), pathlib.Path(library).read_bytes())
    if AUTHORITIES.exists():
        layer.file(str(AUTHORITIES).lstrip("/"), AUTHORITIES.read_bytes(), 0o644)
    return layer.bytes()


def manifest(image, put):
    """Its manifest's descriptor; `put` keeps a content."""

    def descriptor(media_type, content):
        return {"mediaType": media_type, "digest": put(content), "size": len(content)}

    layers = [descriptor(f"{KIND}.layer.v1.tar", layer) for layer in image.layers]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    content = {
        "schemaVersion": 2,
        "mediaType": f"{KIND}.manifest.v1+json",
        "config": descriptor(f"{KIND}.config.v1+json", json.dumps(config).encode()),
        "layers": layers,
    }
    return descriptor(content["mediaType"], json.dumps(content).encode())


def layout(images):
    """All of them in one tar; layers that are equal are there once."""
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def put(content):
        name = hashlib.sha256(content).hexdigest()
        files[f"blobs/sha256/{name}"] = content
        return f"sha256:{name}"

    manifests = []
    for image in images:
        names = {"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name}
        manifests.append({**manifest(image, put), "annotations": names})
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def push(images, store):
    """Into the files of a registry."""
    for image in images:
        entry = manifest(image, store.put)
        repository, tag = image.name.partition("/")[2].rsplit(":", 1)
        store.name(repository, tag, entry["digest"], entry["mediaType"])
