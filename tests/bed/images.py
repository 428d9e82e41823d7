#!/usr/bin/env python3
"""Builds images for tests and benchmarks from real Debian and PyPI packages, as OCI layouts.

    images.py OUT [--mirror URL]

Needs root (debootstrap), python3 with pip, and the package registries. A second run with the same OUT does nothing.

OUT/py       about 0.9 GB in 4 layers: Debian minbase | scientific Python | web Python stack | an app with a whiteout
OUT/py-zst   the same layers as zstd instead of gzip
OUT/py-again the same contents built again: every mtime differs, so every layer's digest does too
OUT/base     the first layer alone
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

SCIENCE = ["numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "sympy"]
WEB = ["django", "sqlalchemy", "aiohttp", "boto3", "grpcio", "pydantic", "cryptography", "pillow", "lxml", "babel"]


def run(*argv, **kw):
    subprocess.run(argv, check=True, **kw)


def tar_tree(root: pathlib.Path, prefix: str, out: pathlib.Path, mtime_shift: int = 0, whiteouts=()):
    """One tar of everything below root, sorted, as layers are made: numeric owners, PAX for what ustar cannot say."""

    def fix(info):
        info.uname = info.gname = ""
        info.mtime = int(info.mtime) + mtime_shift
        return info

    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            name = prefix + str(path.relative_to(root))
            tar.add(path, arcname=name, recursive=False, filter=fix)
        for name in whiteouts:
            info = tarfile.TarInfo(name)
            info.mtime = 1700000000 + mtime_shift
            tar.addfile(info, io.BytesIO())


def sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def layout(out: pathlib.Path, tars, compress: str, env):
    blobs = out / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes):
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    layers, diff_ids = [], []
    for tar in tars:
        diff_ids.append("sha256:" + sha256(tar))
        packed = out / "packing"
        with packed.open("wb") as to:
            if compress == "zstd":
                run("zstd", "-3", "-q", "-c", str(tar), stdout=to)
            else:
                run("gzip", "-6", "-n", "-c", str(tar), stdout=to)
        digest = sha256(packed)
        size = packed.stat().st_size
        packed.rename(blobs / digest)
        kind = "zstd" if compress == "zstd" else "gzip"
        layers.append({"mediaType": f"application/vnd.oci.image.layer.v1.tar+{kind}", "digest": f"sha256:{digest}", "size": size})
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": env, "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": f"layer {n}"} for n in range(len(tars))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **put(json.dumps(config).encode())},
        "layers": layers,
    }
    entry = {"mediaType": manifest["mediaType"], **put(json.dumps(manifest).encode())}
    (out / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (out / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def trees(work: pathlib.Path, mirror: str):
    base = work / "base"
    if not (work / "base.done").exists():
        shutil.rmtree(base, ignore_errors=True)
        run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates,openssl,git,perl", "bookworm", str(base), *([mirror] if mirror else []), stdout=sys.stderr)
        for junk in ["var/cache/apt/archives", "var/lib/apt/lists"]:
            shutil.rmtree(base / junk, ignore_errors=True)
        # Device nodes stay out: layers of real base images carry none.
        shutil.rmtree(base / "dev")
        (base / "dev").mkdir()
        (work / "base.done").touch()
    for name, packages in [("science", SCIENCE), ("web", WEB)]:
        tree = work / name
        if not (work / f"{name}.done").exists():
            shutil.rmtree(tree, ignore_errors=True)
            run(sys.executable, "-m", "pip", "install", "-q", "--no-input", "--root-user-action=ignore", "--target", str(tree), *packages, stdout=sys.stderr)
            (work / f"{name}.done").touch()
    app = work / "app"
    (app / "srv/app").mkdir(parents=True, exist_ok=True)
    for n in range(200):
        text = "".join(hashlib.sha256(f"{n}.{line}".encode()).hexdigest() + "\n" for line in range(150))
        (app / f"srv/app/module_{n}.py").write_text(text)
    return base, work / "science", work / "web", app


def main():
    args = argparse.ArgumentParser()
    args.add_argument("out", type=pathlib.Path)
    args.add_argument("--mirror", default="")
    args = args.parse_args()
    out = args.out.resolve()
    if (out / "done").exists():
        return
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    base, science, web, app = trees(work, args.mirror)
    env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH=/opt/science:/opt/web"]

    def tars(tag: str, shift: int):
        made = []
        for name, tree, prefix, gone in [
            ("base", base, "", ()),
            ("science", science, "opt/science/", ()),
            ("web", web, "opt/web/", ()),
            ("app", app, "", ("usr/share/doc/.wh.perl", "opt/web/.wh.bin")),
        ]:
            tar = work / f"{tag}-{name}.tar"
            tar_tree(tree, prefix, tar, shift, gone)
            made.append(tar)
        return made

    for name in ["py", "py-zst", "py-again", "base"]:
        shutil.rmtree(out / name, ignore_errors=True)
    first = tars("first", 0)
    layout(out / "py", first, "gzip", env)
    layout(out / "py-zst", first, "zstd", env)
    layout(out / "base", first[:1], "gzip", env)
    layout(out / "py-again", tars("again", 86400), "gzip", env)
    total = sum(t.stat().st_size for t in first)
    (out / "tar-bytes").write_text(str(total))
    print(f"images: {total / 1e6:.0f} MB of tar in {len(first)} layers", file=sys.stderr)
    for tar in work.glob("*.tar"):
        tar.unlink()
    (out / "done").touch()


main()
