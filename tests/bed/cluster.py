#!/usr/bin/env python3
"""A real Kubernetes cluster on loopback, with all of its state in one folder.

    cluster.sh up DIR [--node]         start it: etcd, API server, controller manager, scheduler; --node: containerd
                                       and a kubelet too (root). Writes DIR/admin.kubeconfig.
    cluster.sh up DIR --larder PROGRAM as --node, with an agent of larder whose layers containerd starts containers on,
                                       and to which the kubelet's image calls go. --larder-disk MIB: its images are on
                                       a file system of their own, of that size
    cluster.sh down DIR                end it and remove all that it made, DIR included; also after an `up` that
                                       was interrupted, and more than once
    cluster.sh status DIR              what runs; status 0 if all of it does
    cluster.sh hold DIR ...            as up, then prints `ready`, waits for the end of its input, and does as down
    cluster.sh kill|stop|start|restart PART DIR
                                       SIGKILL; SIGTERM, and SIGKILL after 5 s; start and wait until ready; stop and
                                       start. PART: etcd apiserver controller-manager scheduler registry larder containerd kubelet
    cluster.sh run DIR NAME COMMAND...  a process of yours as one more part: recorded, logged, ended by down
    cluster.sh image DIR NAME PROGRAM  an image of a program with its libraries, as its only content, on the node
    cluster.sh slow-etcd DIR MILLIS    from now on each request to etcd takes so much longer; 0 ends it

What pods mount of a node, such as /var/lib/larder, is better put below DIR/node/host. Settings: DIR/node/conf.d/*.toml for containerd, kubelet.d/*.conf for the kubelet (each as its own settings are
written, and read when it starts), hosts.d for registries as containerd has them. On the node are bed.local/busybox:1 and
the sandbox's image; its registry bed.local has server:1, server:2, private/server:1 and private/ahead:1 (user and password are bed), too,
and takes what is pushed to 10.A.B.1:5000. There is no DNS and no kube-proxy; the service `kubernetes` works.

Status 3: this machine cannot, and the reason on stderr. Several clusters, each in a DIR of its own, do not meet.
Every process is recorded in DIR/pids by itself before it becomes the program it runs, and ended only if the process
of that id is still the one that was recorded.
"""
import argparse
import asyncio
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

# Sources stay as they are.
sys.dont_write_bytecode = True
import node as bed_node  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
PROXY = [sys.executable, str(HERE / "cluster.py"), "proxy"]
# Who waits longer waits in vain.
PATIENCE = 120
# In the order of starting.
CONTROL_PLANE = ["etcd", "etcd-proxy", "apiserver", "controller-manager", "scheduler"]
# What the API server notes, where it is asked to: who wrote what, and when.
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {
            "level": "Metadata",
            "verbs": ["create", "update", "patch", "delete"],
            "resources": [{"group": "larder.dev"}, {"group": "", "resources": ["events", "nodes"]}, {"group": "events.k8s.io"}],
        },
        {"level": "None"},
    ],
}
NODE = ["service-proxy", "registry", "larder", "containerd", "kubelet"]


class Refused(Exception):
    """This machine cannot: status 3."""


class Broken(Exception):
    """It did not work: status 1."""


def say(text):
    print(f"bed: {text}", file=sys.stderr, flush=True)


def wait_for(what, check, alive=lambda: None):
    """Until check() is true. The parts of a cluster announce nothing, so they are asked again and again."""
    end = time.monotonic() + PATIENCE
    while not check():
        alive()
        if time.monotonic() > end:
            raise Broken(f"{what}: not within {PATIENCE} s")
        time.sleep(0.02)


# Processes, by recorded id.


def start_time(pid):
    """In clock ticks since boot: with the id it names a process for good. None if there is none, or a dead one."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in the second field may hold anything.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


class Process:
    """A part of the cluster, as recorded in DIR/pids."""

    def __init__(self, root, name):
        self.name = name
        self.record = root / "pids" / name
        self.log = root / "logs" / f"{name}.log"

    def pid(self):
        """The id if it runs."""
        try:
            pid, started = map(int, self.record.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        return pid if start_time(pid) == started else None

    def start(self, argv, env, cgroups=()):
        if self.pid():
            return

        def before():
            pid = os.getpid()
            # In this order whoever reads the record finds a whole one.
            new = self.record.with_suffix(".new")
            new.write_text(f"{pid} {start_time(pid)}\n")
            new.rename(self.record)
            for procs in cgroups:
                procs.write_text(str(pid))

        with self.log.open("ab") as log:
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True, preexec_fn=before)

    def check(self):
        """Raises if it ended."""
        if not self.pid():
            raise Broken(f"{self.name} ended: {self.tail()}")

    def tail(self):
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
        return "it has no log"

    def end(self, gently=False):
        """SIGKILL; `gently`: 5 s after SIGTERM, which is less than an API server with watches takes for itself."""
        for number, patience in [(signal.SIGTERM, 5)] * gently + [(signal.SIGKILL, 20)]:
            end = time.monotonic() + patience
            while pid := self.pid():
                if number:
                    # It leads a group of its own, with what it started and did not let go.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, number)
                    number = None
                if time.monotonic() > end:
                    break
                time.sleep(0.005)
        if self.pid():
            raise Broken(f"{self.name} does not end")
        self.record.unlink(missing_ok=True)


# What the parts are told.


def free_ports(count):
    """Below the range from which the kernel takes ports by itself, so that a port stays free over a restart."""
    low = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = []
    while len(found) < count:
        port = random.randrange(low - 12000, low) if low > 14000 else random.randrange(20000, 32000)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def openssl(*argv):
    done = subprocess.run(["openssl", *argv], capture_output=True, text=True)
    if done.returncode:
        raise Broken(f"openssl {argv[0]}: {done.stderr.strip()}")


def make_keys(pki, service_ip):
    """A CA, the API server's certificate, its client certificate for kubelets, and the key of service-account tokens."""
    pki.mkdir(mode=0o700)
    config = pki / "openssl.cnf"
    config.write_text("[req]\ndistinguished_name = name\n[name]\n")
    new = ["req", "-x509", "-config", str(config), "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"]

    def certificate(name, subject, *extensions, signed=True):
        files = ["-keyout", str(pki / f"{name}.key"), "-out", str(pki / f"{name}.crt"), "-subj", subject]
        if signed:
            files += ["-CA", str(pki / "ca.crt"), "-CAkey", str(pki / "ca.key")]
        for extension in extensions:
            files += ["-addext", extension]
        openssl(*new, *files)

    certificate("ca", "/CN=larder-bed", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,digitalSignature", signed=False)
    names = f"subjectAltName=IP:127.0.0.1,IP:{service_ip},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    certificate("apiserver", "/CN=kube-apiserver", "basicConstraints=CA:FALSE", "extendedKeyUsage=serverAuth", names)
    certificate("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "basicConstraints=CA:FALSE", "extendedKeyUsage=clientAuth")
    openssl("ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", str(pki / "sa.key"))


def kubeconfig(server, ca, token):
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(ca).decode()}
    return json.dumps({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bed",
        "clusters": [{"name": "bed", "cluster": cluster}],
        "users": [{"name": "bed", "user": {"token": token}}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "bed"}}],
    }, indent=1)


USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}


class Cluster:
    def __init__(self, root):
        self.root = pathlib.Path(root).resolve()
        self.file = self.root / "cluster.json"
        self.set = json.loads(self.file.read_text()) if self.file.exists() else {}

    def process(self, name):
        return Process(self.root, name)

    def parts(self):
        if not self.set:
            return []
        names = CONTROL_PLANE + (NODE if self.set["node"] else [])
        absent = [] if self.set["ports"].get("etcd-proxy") else ["etcd-proxy"]
        absent += [] if self.set.get("larder") else ["larder"]
        return [name for name in names if name not in absent]

    def guests(self):
        """Names that were given to run."""
        records = (self.root / "pids").glob("*") if self.set else []
        return sorted(record.name for record in records if record.suffix != ".new" and record.name not in CONTROL_PLANE + NODE)

    def node(self):
        return bed_node.Node(self.root, self.set["id"], self.set["net"], self.set.get("larder"), self.set.get("larder-disk"))

    def save(self):
        new = self.root / "cluster.new"
        bed_node.private(new, json.dumps(self.set, indent=1))
        new.rename(self.file)

    # Making it.

    def prepare(self, direct):
        """Everything that is decided once, on disk before the first process."""
        if any(name != "cluster.new" for name in os.listdir(self.root)):
            raise Broken(f"{self.root} is not empty, and no cluster of this script")
        if len(str(self.root)) > 70:
            raise Broken(f"{self.root}: sockets need a shorter path, of 70 bytes at most")
        # The roots of pods with user namespaces are others of the machine's users, and come through.
        self.root.chmod(0o711)
        key = hashlib.sha256(str(self.root).encode()).digest()
        net = f"10.{64 + key[0] % 64}.{key[1]}"
        names = ["etcd", "etcd-peer", "etcd-proxy", "apiserver"]
        self.set = {
            "id": key.hex()[:8],
            "ports": dict(zip(names, free_ports(len(names)))),
            # Pods get 10.A.B.2 to .126, the node .1; services .128 and above.
            "net": net,
            "node": False,
        }
        if direct:
            del self.set["ports"]["etcd-proxy"]
        # First of all, so that whatever happens next, `down` knows the folder as a cluster's.
        self.save()
        for folder in ["pids", "logs"]:
            (self.root / folder).mkdir()
        make_keys(self.root / "pki", self.service_ip())
        (self.root / "etcd-delay").write_text("0")
        users = USERS | {"kubelet": (f"system:node:{self.node().name}", "system:nodes")}
        tokens = {user: secrets.token_hex(16) for user in users}
        lines = [f'{tokens[user]},{name},{user},"{groups}"' for user, (name, groups) in users.items()]
        (self.root / "pki/tokens.csv").write_text("\n".join(lines) + "\n")
        ca = (self.root / "pki/ca.crt").read_bytes()
        server = f'https://127.0.0.1:{self.set["ports"]["apiserver"]}'
        for user, token in tokens.items():
            bed_node.private(self.root / f"{user}.kubeconfig", kubeconfig(server, ca, token))
        # Last of all: who finds them finds the rest.
        self.set["tokens"] = tokens

    def service_ip(self):
        """Of the service `kubernetes`: the first one there is."""
        return f'{self.set["net"]}.129'

    def command(self, name):
        root, ports, net = self.root, self.set["ports"], self.set["net"]
        pki = root / "pki"
        etcd, peer = f'http://127.0.0.1:{ports["etcd"]}', f'http://127.0.0.1:{ports["etcd-peer"]}'
        seen = f'http://127.0.0.1:{ports.get("etcd-proxy", ports["etcd"])}'
        issuer = "https://kubernetes.default.svc"
        match name:
            case "etcd":
                return [
                    "etcd", "--name=bed", f"--data-dir={root}/etcd", "--unsafe-no-fsync", "--log-level=warn",
                    f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=bed={peer}",
                ]  # fmt: skip
            case "etcd-proxy":
                return [*PROXY, f'127.0.0.1:{ports["etcd-proxy"]}', str(ports["etcd"]), str(root / "etcd-delay")]
            case "service-proxy":
                # There is no kube-proxy: pods find the API server under the service's address all the same.
                return [*PROXY, f"{self.service_ip()}:443", str(ports["apiserver"])]
            case "registry" | "larder" | "containerd" | "kubelet":
                return self.node().command(name)
            case "apiserver":
                return [
                    "kube-apiserver", f"--etcd-servers={seen}", "--bind-address=127.0.0.1", f'--secure-port={ports["apiserver"]}',
                    f"--advertise-address={net}.1", f"--service-cluster-ip-range={net}.128/25",
                    f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
                    f"--client-ca-file={pki}/ca.crt", f"--token-auth-file={pki}/tokens.csv",
                    f"--kubelet-client-certificate={pki}/kubelet-client.crt", f"--kubelet-client-key={pki}/kubelet-client.key",
                    "--kubelet-preferred-address-types=InternalIP",
                    "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
                    f"--service-account-key-file={pki}/sa.key", f"--service-account-signing-key-file={pki}/sa.key",
                    f"--service-account-issuer={issuer}", f"--api-audiences={issuer}",
                    *([f"--audit-policy-file={root}/audit.json", f"--audit-log-path={root}/audit.log", "--audit-log-maxsize=2000"] if self.set.get("audit") else []),
                ]  # fmt: skip
            case "controller-manager":
                return [
                    "kube-controller-manager", f"--kubeconfig={root}/controller-manager.kubeconfig", "--leader-elect=false",
                    # Node objects of tests have no kubelet that reports; they stay as the test says.
                    "--node-monitor-grace-period=1h", "--secure-port=0", "--use-service-account-credentials=true", f"--root-ca-file={pki}/ca.crt",
                    f"--service-account-private-key-file={pki}/sa.key",
                    f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key",
                ]  # fmt: skip
            case "scheduler":
                return ["kube-scheduler", f"--kubeconfig={root}/scheduler.kubeconfig", "--leader-elect=false", "--secure-port=0"]
        raise Broken(f"no part is called {name}")

    def is_ready(self, name):
        match name:
            case "etcd":
                return self.answers(f'http://127.0.0.1:{self.set["ports"]["etcd"]}/readyz')
            case "etcd-proxy":
                return self.answers(f'http://127.0.0.1:{self.set["ports"]["etcd-proxy"]}/readyz')
            case "apiserver":
                return self.get("/readyz") is not None
            case "controller-manager":
                # The work of two of its controllers.
                return all(self.get(f"/api/v1/namespaces/default/{name}") is not None for name in ["serviceaccounts/default", "configmaps/kube-root-ca.crt"])
            case "registry":
                return self.answers(f"http://{self.node().registry_address()}/v2/bed/tags/list")
            case "larder" | "containerd":
                with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(self.node().sockets[name]))
                    return True
                return False
            case "kubelet":
                # A node that was ready stays so for a while without a kubelet.
                with contextlib.suppress(OSError), socket.create_connection((f'{self.set["net"]}.1', 10250)):
                    return self.node_is_ready()
                return False
        return True

    def node_is_ready(self):
        node = json.loads(self.get(f"/api/v1/nodes/{self.node().name}") or "{}")
        conditions = node.get("status", {}).get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def start(self, name):
        process = self.process(name)
        env = self.environment()
        process.start(self.command(name), env, [self.node().runtime_procs()] if name == "containerd" else [])
        wait_for(f"{name} ready", lambda: self.is_ready(name), process.check)

    def environment(self):
        env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and not key.startswith("LARDER_")}
        return env | {"PATH": f'{self.set["bin"]}:{env.get("PATH", "")}'}

    def run(self, name, argv):
        if not self.set or name in CONTROL_PLANE + NODE or not name.replace("-", "").isalnum():
            raise Broken(f"{name} cannot be a part of a cluster in {self.root}")
        self.process(name).start(argv, self.environment())

    def image(self, name, program):
        if not self.set.get("node"):
            raise Broken(f"no node in {self.root}")
        if not os.access(program, os.X_OK):
            raise Broken(f"{program} is no program")
        self.node().load_program(name, program, self.set["bin"])

    def one(self, verb, name):
        """kill, stop, start or restart."""
        if name not in self.parts() + (self.guests() if verb in ["kill", "stop"] else []):
            raise Broken(f"{name} is no part of the cluster in {self.root}")
        if verb == "kill":
            self.process(name).end()
        if verb in ["stop", "restart"]:
            self.process(name).end(gently=True)
        if verb in ["start", "restart"]:
            self.start(name)

    def slow_etcd(self, millis):
        if "etcd-proxy" not in self.parts():
            raise Broken("no proxy before etcd in this cluster: it was started with --direct-etcd")
        new = self.root / "etcd-delay.new"
        new.write_text(str(millis))
        new.rename(self.root / "etcd-delay")

    def answers(self, url, token=None):
        """The body of a 200; None for everything else."""
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        trust = ssl.create_default_context(cafile=str(self.root / "pki/ca.crt"))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
        try:
            with opener.open(request, timeout=10) as reply:
                return reply.read()
        except (urllib.error.URLError, OSError):
            return None

    def get(self, path):
        return self.answers(f'https://127.0.0.1:{self.set["ports"]["apiserver"]}{path}', self.set["tokens"]["admin"])

    def up(self, folder, direct, node, larder, disk, audit):
        begun = time.monotonic()
        fresh = not self.set
        try:
            if fresh:
                self.prepare(direct)
            if "tokens" not in self.set:
                raise Broken(f"an up was interrupted in {self.root}: end it with down")
            self.set["bin"] = folder
            self.set["node"] |= node
            self.set.setdefault("larder", larder)
            self.set.setdefault("larder-disk", disk)
            self.set.setdefault("audit", audit)
            if audit:
                (self.root / "audit.json").write_text(json.dumps(AUDIT))
            self.save()
            for name in CONTROL_PLANE:
                if name in self.parts():
                    self.start(name)
            say(f"control plane ready after {time.monotonic() - begun:.1f} s")
            if self.set["node"]:
                self.start_node()
                say(f"node {self.node().name} ready after {time.monotonic() - begun:.1f} s")
        except BaseException:
            # One that ran before is left for its owner to look at.
            if fresh:
                self.down()
            raise
        say(f"export KUBECONFIG={self.root}/admin.kubeconfig")

    def start_node(self):
        node = self.node()
        kubelet = (self.root / "kubelet.kubeconfig").read_text()
        node.prepare(self.service_ip(), self.root / "pki/ca.crt", kubelet, self.set["bin"])
        for name in self.parts():
            if name in NODE and name != "kubelet":
                self.start(name)
        node.make_images(self.set["bin"])
        self.start("kubelet")

    # Ending it.

    def down(self):
        if not self.set:
            return
        for name in self.guests():
            self.process(name).end(gently=True)
        for name in reversed(CONTROL_PLANE + NODE):
            self.process(name).end()
        self.node().remove()
        self.unmount()
        shutil.rmtree(self.root)

    def unmount(self):
        """Everything below our folder, the last first. What stays mounted must not be removed as files."""
        below = [point for point, _ in bed_node.mounts() if point.is_relative_to(self.root)]
        for point in reversed(below):
            done = subprocess.run(["umount", "--lazy", str(point)], capture_output=True, text=True)
            if done.returncode:
                raise Broken(f"umount {point}: {done.stderr.strip()}")

    def status(self):
        if not self.set:
            say(f"no cluster in {self.root}")
            return 1
        down = 0
        for name in self.parts() + self.guests():
            pid = self.process(name).pid()
            down += pid is None
            print(f"{name}\t{pid or 'not running'}")
        return 1 if down else 0


def tools(node):
    """The folder with all programs, built if need be."""
    if node and os.geteuid():
        raise Refused("a kubelet needs root")
    for program in ["openssl"] + (["ip", "busybox"] if node else []):
        if not shutil.which(program):
            raise Refused(f"{program} is not installed")
    if node and b"/ld-linux" in pathlib.Path(shutil.which("busybox")).read_bytes()[:8192]:
        raise Refused("busybox is not a static one: install busybox-static")
    names = ["control-plane"] + (["node"] if node else [])
    done = subprocess.run([str(HERE / "tools.sh"), *names], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Refused(f"the programs of {' and '.join(names)} could not be built")
    return done.stdout.strip()


# The proxies before etcd and the API server, processes of their own.


async def proxy(address, target, delay_file):
    async def carry(reader, writer, delay):
        """In order, each piece so much later; what follows does not wait for what is under way."""
        pieces = asyncio.Queue(maxsize=256)

        async def read():
            while data := await reader.read(1 << 16):
                await pieces.put((time.monotonic() + delay(), data))
            await pieces.put(None)

        async def write():
            while piece := await pieces.get():
                due, data = piece
                await asyncio.sleep(max(0, due - time.monotonic()))
                writer.write(data)
                await writer.drain()

        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(read())
                both.create_task(write())
        except* OSError:
            pass
        finally:
            writer.close()

    def delay():
        with contextlib.suppress(OSError, ValueError):
            return int(delay_file.read_text()) / 1000 if delay_file else 0
        return 0

    async def accept(reader, writer):
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        # Requests only: an answer that took its time is what a slow disk looks like.
        await asyncio.gather(carry(reader, to_writer, delay), carry(to_reader, writer, lambda: 0))

    host, port = address.split(":")
    server = await asyncio.start_server(accept, host, int(port))
    await server.serve_forever()


def interrupted(number, frame):
    raise KeyboardInterrupt


@contextlib.contextmanager
def locked(folder, create=False):
    """The cluster of a folder; one command at a time."""
    folder = pathlib.Path(folder).resolve()
    while True:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            yield Cluster(folder)
            return
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever had the lock may have removed the folder.
            if folder.is_dir() and os.path.samestat(os.fstat(lock), folder.stat()):
                yield Cluster(folder)
                return
        finally:
            os.close(lock)


def hold(folder, up):
    """A cluster that lives as long as our input is open: whoever holds the other end may die any death."""
    with locked(folder, create=True) as cluster:
        up(cluster)
    try:
        print("ready", flush=True)
        sys.stdin.buffer.read()
    finally:
        for number in [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]:
            signal.signal(number, signal.SIG_IGN)
        with locked(folder) as cluster:
            cluster.down()


def main():
    if sys.argv[1:2] == ["proxy"]:
        address, target, *delay = sys.argv[2:]
        return asyncio.run(proxy(address, int(target), pathlib.Path(*delay) if delay else None))
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = args.add_subparsers(dest="verb", required=True)
    for verb in ["up", "hold", "down", "status"]:
        one = verbs.add_parser(verb)
        one.add_argument("dir")
        if verb in ["up", "hold"]:
            one.add_argument("--node", action="store_true")
            one.add_argument("--larder", metavar="PROGRAM", type=os.path.abspath)
            one.add_argument("--larder-disk", metavar="MIB", type=int)
            one.add_argument("--direct-etcd", action="store_true", help="no proxy before etcd: slow-etcd does nothing")
            one.add_argument("--audit", action="store_true", help="every write of larder's kinds, events and nodes is in DIR/audit.log")
    for verb in ["kill", "stop", "start", "restart"]:
        one = verbs.add_parser(verb)
        one.add_argument("part")
        one.add_argument("dir")
    one = verbs.add_parser("run")
    one.add_argument("dir")
    one.add_argument("name")
    one.add_argument("command", nargs=argparse.REMAINDER)
    one = verbs.add_parser("image")
    for name in ["dir", "name", "program"]:
        one.add_argument(name)
    one = verbs.add_parser("slow-etcd")
    one.add_argument("dir")
    one.add_argument("millis", type=int)
    args = args.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    if args.verb in ["up", "hold"]:
        node = args.node or bool(args.larder)
        if args.larder and not os.access(args.larder, os.X_OK):
            raise Broken(f"{args.larder} is no program")
        folder = tools(node)

    def up(cluster):
        cluster.up(folder, args.direct_etcd, node, args.larder, args.larder_disk, args.audit)

    if args.verb == "hold":
        hold(args.dir, up)
        return 0
    with locked(args.dir, create=args.verb == "up") as cluster:
        match args.verb:
            case "up":
                up(cluster)
            case "down":
                cluster.down()
            case "status":
                return cluster.status()
            case "run":
                cluster.run(args.name, args.command)
            case "image":
                cluster.image(args.name, args.program)
            case "slow-etcd":
                cluster.slow_etcd(args.millis)
            case verb:
                cluster.one(verb, args.part)
    return 0


try:
    sys.exit(main())
except Refused as why:
    say(why)
    sys.exit(3)
except (Broken, bed_node.Fault) as why:
    say(why)
    sys.exit(1)
except KeyboardInterrupt:
    say("interrupted")
    sys.exit(130)
