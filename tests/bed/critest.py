#!/usr/bin/env python3
"""Runs the whole of critest twice: against containerd alone, and against containerd on larder's snapshots with the image
service at larder. Whatever passes alone must pass with larder.

    critest.py LARDER OUT [FOCUS]

Needs root, docker-registry, skopeo, a static busybox, and the programs of tools.sh. Leaves the reports and logs in OUT, and
both lists of what passed.
"""
import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree

BED = pathlib.Path(os.environ.get("LARDER_BED", pathlib.Path.home() / ".cache/larder-bed")) / "bin"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
STAGING = "k8s-staging-cri-tools"
WEB = {"Cmd": ["/bin/sh", "-c", "httpd -f -p 80 -h /www"]}
# Names as critest has them, and what their configs say.
IMAGES = {
    "e2e-test-images/busybox:1.29-2": {"Cmd": ["sh"]},
    "e2e-test-images/nginx:1.14-2": WEB,
    "e2e-test-images/httpd:2.4.39-4": WEB,
    f"{STAGING}/hostnet-nginx-{ARCH}:latest": {"Cmd": ["/bin/sh", "-c", "httpd -f -p 12003 -h /www"]},
    "pause:3.9": {"Entrypoint": ["/bin/sleep", "2147483647"]},
    "pause:3.10": {"Entrypoint": ["/bin/sleep", "2147483647"]},
    f"{STAGING}/test-image-user-uid:latest": {"User": "1002"},
    f"{STAGING}/test-image-user-username:latest": {"User": "www-data"},
    f"{STAGING}/test-image-user-uid-group:latest": {"User": "1003:users"},
    f"{STAGING}/test-image-user-username-group:latest": {"User": "www-data:100"},
    f"{STAGING}/test-image-predefined-group:latest": {"User": "1000"},
    f"{STAGING}/test-image-latest:latest": {},
    f"{STAGING}/test-image-tag:test": {},
    f"{STAGING}/test-image-tag:all": {},
    f"{STAGING}/test-image-1:latest": {},
    f"{STAGING}/test-image-2:latest": {},
    f"{STAGING}/test-image-3:latest": {},
    f"{STAGING}/test-image-tags:1": {},
}
SAME = [(f"{STAGING}/test-image-tags:1", f"{STAGING}/test-image-tags:{tag}") for tag in [2, 3]]
# Bound by digest to content that is not ours to copy.
SKIP = "public image with digest"


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def layer():
    busybox = pathlib.Path(shutil.which("busybox"))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def add(name, data=None, mode=0o755, link=None):
            info = tarfile.TarInfo(name)
            info.mode = mode
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            elif data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if data is not None and not link else None)

        for folder in ["bin", "etc", "proc", "sys", "dev", "root", "var", "www", "home", "mnt"]:
            add(folder)
        add("tmp", mode=0o1777)
        add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/www:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n", 0o644)
        add("etc/group", b"root:x:0:\nwww-data:x:33:\nusers:x:100:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n", 0o644)
        add("www/index.html", b"<h1>Welcome to nginx!</h1>\n", 0o644)
        add("bin/busybox", busybox.read_bytes())
        for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True).stdout.split():
            if applet != "busybox":
                add(f"bin/{applet}", link="busybox")
    return out.getvalue()


def push(work, host):
    tar = layer()
    for name, config in IMAGES.items():
        layout = work / "layout"
        shutil.rmtree(layout, ignore_errors=True)
        blobs = layout / "blobs/sha256"
        blobs.mkdir(parents=True)

        def put(kind, data):
            digest = hashlib.sha256(data).hexdigest()
            (blobs / digest).write_bytes(data)
            return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

        config = {
            "architecture": ARCH,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], **({} if "Entrypoint" in config else {"Cmd": ["sh"]}), **config, "Labels": {"name": name}},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": put("config.v1+json", json.dumps(config).encode()),
            "layers": [put("layer.v1.tar+gzip", gzip.compress(tar, 1, mtime=0))],
        }
        entry = put("manifest.v1+json", json.dumps(manifest).encode())
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        for target in [name] + [to for of, to in SAME if of == name]:
            subprocess.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{host}/{target}"], check=True)


class Side:
    """One containerd, with larder or without."""

    def __init__(self, work, out, host, larder, net):
        self.name = "larder" if larder else "alone"
        self.dir = work / self.name
        self.out = out
        self.larder = larder
        self.processes = []
        self.bridge = f"lc{os.getpid() % 100000}{self.name[0]}"
        self.net = net
        for folder in ["cni", "cni.d"]:
            (self.dir / folder).mkdir(parents=True)
        for domain in ["gcr.io", "registry.k8s.io", "k8s.gcr.io"]:
            hosts = self.dir / "hosts.d" / domain
            hosts.mkdir(parents=True)
            (hosts / "hosts.toml").write_text(f'server = "http://{host}"\n[host."http://{host}"]\ncapabilities = ["pull", "resolve"]\n')
        network = {
            "cniVersion": "1.0.0",
            "name": self.bridge,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "isGateway": True,
                    "ipam": {"type": "host-local", "dataDir": str(self.dir / "cni"), "ranges": [[{"subnet": f"{net}.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (self.dir / "cni.d/10.conflist").write_text(json.dumps(network))
        self.socket = self.dir / "c.sock"
        self.images = self.dir / "l.sock" if larder else self.socket
        snapshotter = f"""
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'larder'
[proxy_plugins.larder]
  type = 'snapshot'
  address = '{self.dir}/l.sock'
  capabilities = ['remap-ids']
  [proxy_plugins.larder.exports]
    root = '{self.dir}/root'
"""
        (self.dir / "config.toml").write_text(f"""version = 4
root = '{self.dir}/containerd'
state = '{self.dir}/run'
[plugins.'io.containerd.server.v1.grpc']
  address = '{self.socket}'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '{self.socket}.ttrpc'
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '{self.dir}/s'
[plugins.'io.containerd.internal.v1.opt']
  path = '{self.dir}/opt'
[plugins.'io.containerd.nri.v1.nri']
  disable = true
{snapshotter if larder else ''}
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'registry.k8s.io/pause:3.10'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '{self.dir}/hosts.d'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = '{BED}/runc'
  Root = '{self.dir}/runc'
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['{BED}/cni']
  conf_dir = '{self.dir}/cni.d'
  use_internal_loopback = true
""")

    def spawn(self, name, argv):
        with (self.out / f"{self.name}-{name}.log").open("ab") as log:
            environment = {**os.environ, "PATH": f"{BED}:{os.environ['PATH']}"}
            self.processes.append(subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment))

    def crictl(self, *argv):
        endpoints = ["-r", f"unix://{self.socket}", "-i", f"unix://{self.images}"]
        return subprocess.run([BED / "crictl", *endpoints, "-t", "60s", *argv], capture_output=True, text=True)

    def start(self):
        if self.larder:
            self.spawn("agent", [self.larder, "agent", "--root", self.dir / "root", "--socket", self.images, "--http", "", "--hosts-dir", self.dir / "hosts.d", "--containerd", self.socket])
        self.spawn("containerd", [BED / "containerd", "--config", self.dir / "config.toml"])
        for sought in [["version"], ["images"]]:
            end = time.monotonic() + 60
            while self.crictl(*sought).returncode:
                if time.monotonic() > end:
                    raise SystemExit(f"{self.name}: nobody answers, see {self.out}")
                time.sleep(0.1)
        # The sandbox's image is the runtime's own affair.
        pulled = self.crictl("pull", "registry.k8s.io/pause:3.10")
        if pulled.returncode:
            raise SystemExit(f"{self.name}: {pulled.stderr}")

    def critest(self, focus):
        reports = self.out / self.name
        reports.mkdir(exist_ok=True)
        argv = [BED / "critest", "-runtime-endpoint", f"unix://{self.socket}", "-image-endpoint", f"unix://{self.images}"]
        argv += ["-ginkgo.no-color", "-ginkgo.seed=1", "-ginkgo.skip", SKIP, f"-ginkgo.junit-report={reports}/critest.xml"]
        argv += ["-ginkgo.focus", focus] if focus else []
        with (self.out / f"{self.name}-critest.log").open("wb") as log:
            subprocess.run([str(word) for word in argv], cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        passed, failed = set(), set()
        for report in reports.glob("*.xml"):
            for case in xml.etree.ElementTree.parse(report).iter("testcase"):
                if case.get("status") == "passed":
                    passed.add(case.get("name"))
                elif case.get("status") == "failed":
                    failed.add(case.get("name"))
        (self.out / f"{self.name}-passed.txt").write_text("".join(f"{name}\n" for name in sorted(passed)))
        return passed, failed

    def stop(self):
        self.crictl("rmp", "-f", "-a")
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end = time.monotonic() + 30
        while shims := self.shims():
            for pid in shims:
                os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                print(f"{self.name}: shims {shims} do not end", file=sys.stderr)
                break
            time.sleep(0.1)
        points = [line.split(" ")[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed([point for point in points if point.startswith(f"{self.dir}/")]):
            subprocess.run(["umount", "-l", point], capture_output=True)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True)
        for result in pathlib.Path("/var/lib/cni/results").glob(f"{self.bridge}-*"):
            result.unlink()

    def shims(self):
        found = []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"containerd-shim-runc-v2") and str(self.socket).encode() in words:
                found.append(int(folder.name))
        return found


def main():
    larder, out = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    focus = sys.argv[3] if len(sys.argv) > 3 else ""
    out.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="larder-critest-"))
    # The roots of pods with user namespaces are others of the machine's users, and come through.
    work.chmod(0o711)
    port = free_port()
    (work / "registry.yml").write_text(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {work}/registry}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n")
    registry = subprocess.Popen(["docker-registry", "serve", work / "registry.yml"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = {}
    try:
        end = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if time.monotonic() > end:
                raise SystemExit("the registry does not answer")
            time.sleep(0.05)
        push(work, f"127.0.0.1:{port}")
        for number, program in enumerate([None, larder]):
            side = Side(work, out, f"127.0.0.1:{port}", program, f"10.{200 + os.getpid() % 50}.{number}")
            try:
                side.start()
                results[side.name] = side.critest(focus)
            finally:
                side.stop()
            passed, failed = results[side.name]
            print(f"{side.name}: {len(passed)} passed, {len(failed)} failed", flush=True)
    finally:
        registry.kill()
        registry.wait()
        shutil.rmtree(work, ignore_errors=True)
    lost = sorted(results["alone"][0] - results["larder"][0])
    for name in lost:
        print(f"passes alone and not with larder: {name}")
    for name in sorted(results["larder"][0] - results["alone"][0]):
        print(f"passes with larder only: {name}")
    sys.exit(1 if lost or not results["alone"][0] else 0)


main()
