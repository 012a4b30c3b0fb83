#!/usr/bin/env bash
# Things that no client should do, done to a running server; after each it must be the same process and answer SELECT 1.
#
# usage: robustness.sh PORT [BINARY [WORD…]]
#   PORT     of a running server's Postgres wire on loopback, trust authentication
#   BINARY   of the server: also tests a full disk (needs root, for a tmpfs of 64 MB) and two servers on one folder
#   WORD     runs only the cases whose name holds it
# Needs bash and python3 (standard library). Ends with status 1 if anything failed.
set -u
exec python3 - "$@" <<'PYTHON'
import os, random, shutil, signal, socket, struct, subprocess, sys, tempfile, time

PORT = int(sys.argv[1])
BINARY = sys.argv[2] if len(sys.argv) > 2 else None
ONLY = sys.argv[3:]
FAILURES = []


class SqlError(Exception):
    def __init__(self, fields):
        self.fields = fields
        self.state = fields.get("C")
        super().__init__(f"{self.state}: {fields.get('M')}")


class Client:
    """The simple query protocol, version 3.0."""

    def __init__(self, port=PORT, timeout=60):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        body = struct.pack("!I", 196608) + b"user\0test\0database\0dev\0\0"
        self.sock.sendall(struct.pack("!I", len(body) + 4) + body)
        self.until_ready()

    def exactly(self, count):
        out = b""
        while len(out) < count:
            part = self.sock.recv(count - len(out))
            if not part:
                raise ConnectionError("the server closed the connection")
            out += part
        return out

    def until_ready(self):
        rows, error = [], None
        while True:
            kind, length = struct.unpack("!cI", self.exactly(5))
            body = self.exactly(length - 4)
            if kind == b"E":
                fields = {}
                for part in body.split(b"\0"):
                    if part:
                        fields[chr(part[0])] = part[1:].decode("utf8", "replace")
                error = SqlError(fields)
                if fields.get("S") == "FATAL":
                    raise error
            elif kind == b"D":
                columns, at, row = struct.unpack("!H", body[:2])[0], 2, []
                for _ in range(columns):
                    size = struct.unpack("!i", body[at:at + 4])[0]
                    at += 4
                    row.append(None if size < 0 else body[at:at + size].decode())
                    at += max(size, 0)
                rows.append(row)
            elif kind == b"Z":
                if error:
                    raise error
                return rows

    def query(self, text):
        body = text.encode() + b"\0"
        self.sock.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        return self.until_ready()

    def close(self):
        self.sock.close()


def pid_of(port):
    """The process that listens on the port."""
    inode = None
    for line in open("/proc/net/tcp").readlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == port:
            inode = fields[9]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]":
                    return int(pid)
        except OSError:
            pass
    return None


PID = pid_of(PORT)


def alive():
    client = Client(timeout=30)
    assert client.query("SELECT 1") == [["1"]]
    client.close()
    assert pid_of(PORT) == PID, f"the process was {PID} and is {pid_of(PORT)}"


def case(name, run):
    if ONLY and not any(word in name for word in ONLY):
        return
    start = time.time()
    try:
        note = run()
        alive()
        print(f"ok      {name} ({time.time() - start:.1f} s){': ' + note if note else ''}", flush=True)
    except Exception as error:
        FAILURES.append(name)
        print(f"FAILED  {name} ({time.time() - start:.1f} s): {type(error).__name__} {str(error)[:300]}", flush=True)


def answer(text, client=None):
    """The rows or the error, which must carry a SQLSTATE other than an internal error's."""
    own = client or Client(timeout=120)
    try:
        return own.query(text)
    except SqlError as error:
        assert error.state and not error.state.startswith("XX"), str(error)
        return error
    finally:
        if client is None:
            own.close()


def told(found):
    return str(found)[:120]


def garbage():
    rng = random.Random(1)
    for round in range(200):
        sock = socket.create_connection(("127.0.0.1", PORT), timeout=10)
        if round % 2:
            body = struct.pack("!I", 196608) + b"user\0test\0database\0dev\0\0"
            sock.sendall(struct.pack("!I", len(body) + 4) + body)
        try:
            sock.sendall(rng.randbytes(rng.randrange(1, 5000)))
            # A message that claims far more than anyone may send.
            sock.sendall(b"Q" + struct.pack("!I", 0xFFFFFFF0))
        except OSError:
            pass
        sock.close()


def half_open():
    held = []
    for round in range(200):
        sock = socket.create_connection(("127.0.0.1", PORT), timeout=10)
        if round % 4 == 1:
            sock.sendall(b"\0\0")
        elif round % 4 == 2:
            sock.sendall(struct.pack("!II", 8, 80877103))
        elif round % 4 == 3:
            body = struct.pack("!I", 196608) + b"user\0test\0database\0dev\0\0"
            sock.sendall(struct.pack("!I", len(body) + 4) + body + b"Q\0\0")
        held.append(sock)
    alive()
    for sock in held:
        # An abrupt reset, not a polite end.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def gone_in_the_middle():
    for _ in range(20):
        client = Client()
        body = b"SELECT x FROM generate_series(1, 2000000) AS x\0"
        client.sock.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        client.sock.recv(10)
        client.close()


def long_sum():
    found = answer("SELECT " + " + ".join(["1"] * 2000))
    assert found == [["2000"]], told(found)


def nested():
    found = answer("SELECT " + "(" * 10_000 + "1" + ")" * 10_000)
    assert isinstance(found, SqlError) or found == [["1"]], told(found)
    for text in ["SELECT " + "NOT " * 10_000 + "true", "SELECT " + "-(" * 10_000 + "1" + ")" * 10_000,
                 "SELECT * FROM " + "(SELECT * FROM " * 5_000 + "t" + ") x" * 5_000,
                 "SELECT " + "CASE WHEN true THEN " * 5_000 + "1" + " END" * 5_000,
                 "SELECT 1 " + "UNION ALL SELECT 1 " * 5_000]:
        other = answer(text)
        if isinstance(other, SqlError):
            assert other.state in ("54001", "42601", "42P01", "54000"), f"{text[:20]}: {other}"
        alive()
    return told(found)


def long_list():
    found = answer("SELECT 99999 IN (" + ", ".join(map(str, range(100_000))) + ")")
    assert found == [["t"]] or (isinstance(found, SqlError) and found.state.startswith("54")), told(found)
    first = told(found)
    found = answer("SELECT count(*) FROM generate_series(1, 1000) AS x WHERE x IN (" + ", ".join(map(str, range(100_000))) + ")")
    assert found == [["1000"]] or (isinstance(found, SqlError) and found.state.startswith("54")), told(found)
    return first + " / " + told(found)


def long_view():
    client = Client(timeout=120)
    for text in ["DROP TABLE IF EXISTS robust CASCADE", "CREATE TABLE robust (k int PRIMARY KEY, v int)"]:
        client.query(text)
    text = "CREATE MATERIALIZED VIEW robust_sum AS SELECT k, " + " + ".join(["v"] * 2000) + " AS s FROM robust"
    found = answer(text, client)
    if isinstance(found, SqlError):
        assert found.state.startswith("54"), str(found)
        note = str(found)
    else:
        client.query("INSERT INTO robust VALUES (1, 3)")
        client.query("FLUSH")
        found = client.query("SELECT s FROM robust_sum")
        assert found == [["6000"]], told(found)
        note = "6000"
    text = "CREATE MATERIALIZED VIEW robust_or AS SELECT k FROM robust WHERE " + " OR ".join(f"v = {n}" for n in range(2000))
    found = answer(text, client)
    assert not isinstance(found, SqlError) or found.state.startswith("54"), str(found)
    text = "CREATE MATERIALIZED VIEW robust_in AS SELECT k FROM robust WHERE v IN (" + ", ".join(map(str, range(20_000))) + ")"
    found = answer(text, client)
    assert not isinstance(found, SqlError) or found.state.startswith("54"), str(found)
    client.query("DROP TABLE robust CASCADE")
    return note


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(folder, wait=True):
    port = free_port()
    log = open(folder + ".log", "ab")
    process = subprocess.Popen([BINARY, "server", "--data-dir", folder, "--pg-addr", f"127.0.0.1:{port}",
                                "--http-addr", f"127.0.0.1:{free_port()}"], stdout=log, stderr=log)
    end = time.time() + 60
    while wait:
        try:
            Client(port).close()
            break
        except (OSError, SqlError):
            assert process.poll() is None, f"the server ended with {process.returncode}: {open(folder + '.log').read()[-300:]}"
            assert time.time() < end, "the server does not answer"
            time.sleep(0.05)
    return process, port


def stop(process, how=signal.SIGTERM):
    process.send_signal(how)
    return process.wait(timeout=60)


def full_disk():
    folder = tempfile.mkdtemp()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    process, notes = None, []
    try:
        data = folder + "/data"
        process, port = start_in(data)
        client = Client(port)
        client.query("CREATE TABLE t (id bigint PRIMARY KEY, pad text)")
        client.query("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM t")
        # Ballast fills the disk but for 6 MB, so that the log meets its end soon, and can be taken away again.
        ballast = folder + "/ballast"
        room = os.statvfs(folder)
        with open(ballast, "wb") as file:
            file.write(b"\0" * (room.f_bavail * room.f_frsize - (6 << 20)))
        acknowledged, refused, states = 0, 0, {}
        for batch in range(2000):
            rows = ", ".join(f"({batch * 100 + n}, '{random.randbytes(200).hex()}')" for n in range(100))
            try:
                client.query("INSERT INTO t VALUES " + rows)
                acknowledged += 100
            except SqlError as error:
                states[error.state] = states.get(error.state, 0) + 1
                refused += 1
                if refused > 20:
                    break
        assert refused, "the disk never was full"
        notes.append(f"{acknowledged} rows acknowledged, refused with {states}")
        assert set(states) == {"53100"}, f"refused with {states}"
        assert process.poll() is None, "the server died"
        count = int(Client(port).query("SELECT count(*) FROM t")[0][0])
        assert count >= acknowledged, f"{acknowledged} acknowledged, {count} there"
        os.remove(ballast)
        end = time.time() + 30
        while True:
            try:
                client.query("INSERT INTO t VALUES (-1, 'after')")
                break
            except SqlError as error:
                assert time.time() < end, f"still refused after space was freed: {error}"
                time.sleep(0.2)
        acknowledged += 1
        client.query("FLUSH")
        n, there = int(client.query("SELECT n FROM v")[0][0]), int(client.query("SELECT count(*) FROM t")[0][0])
        assert n == there >= acknowledged, f"view {n}, table {there}, acknowledged {acknowledged}"
        stop(process, signal.SIGKILL)
        process, port = start_in(data)
        client = Client(port)
        n, again = int(client.query("SELECT n FROM v")[0][0]), int(client.query("SELECT count(*) FROM t")[0][0])
        assert n == again == there, f"after a crash: view {n}, table {again}, before {there}"
        assert client.query("SELECT pad FROM t WHERE id = -1") == [["after"]]
    finally:
        if process and process.poll() is None:
            process.kill()
            process.wait()
        subprocess.run(["umount", folder])
        shutil.rmtree(folder, ignore_errors=True)
    return "; ".join(notes)


def start_in(data):
    """The log must not be on the disk that fills up."""
    shadow = tempfile.mkdtemp()
    link = shadow + "/data"
    os.symlink(data, link)
    os.makedirs(data, exist_ok=True)
    return start(link)


def two_servers():
    folder = tempfile.mkdtemp()
    data = folder + "/data"
    first, port = start(data)
    try:
        Client(port).query("CREATE TABLE t (k int)")
        second, _ = start(data, wait=False)
        try:
            code = second.wait(timeout=20)
        except subprocess.TimeoutExpired:
            second.kill()
            raise AssertionError("a second server runs on the same folder")
        assert code != 0
        Client(port).query("INSERT INTO t VALUES (1)")
        assert Client(port).query("SELECT k FROM t") == [["1"]]
        last = open(data + ".log").read().strip().splitlines()
        assert stop(first) == 0, "the first server did not end well"
        # The lock ends with its holder.
        first, port = start(data)
        assert Client(port).query("SELECT k FROM t") == [["1"]]
        return last[-1] if last else ""
    finally:
        if first.poll() is None:
            first.kill()
            first.wait()
        shutil.rmtree(folder, ignore_errors=True)


case("the server answers", lambda: f"pid {PID}")
case("garbage bytes", garbage)
case("half-open connections", half_open)
case("clients that leave in the middle of an answer", gone_in_the_middle)
case("a sum of 2,000 terms", long_sum)
case("10,000 nested parentheses and others", nested)
case("a list of 100,000 elements", long_list)
case("2,000 terms in a materialized view", long_view)
if BINARY:
    case("a full disk", full_disk)
    case("two servers on one folder", two_servers)
print(f"{len(FAILURES)} failed")
sys.exit(1 if FAILURES else 0)
PYTHON
