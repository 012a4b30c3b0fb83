#!/usr/bin/env python3
"""Check the sqllogictest corpus of this folder against PostgreSQL, or write PostgreSQL's answers into it.

The expected rows of every file are PostgreSQL 15's own text output. Each file runs in a fresh database that is dropped
afterwards, so a run leaves nothing behind and can be repeated.

    check_postgres.py 'host=127.0.0.1 port=5432 user=postgres'                  checks every file
    check_postgres.py 'host=...' joins/ traps/not_in_null.slt                   checks some
    check_postgres.py --write 'host=...' joins/new.slt                          fills in type letters, rows, counts

What a check covers, for every file:
  1. `plain`: the records in order, as written.
  2. `shuffled`: the same in another database, where the stored rows of every table are rewritten in a random order and
     other join and aggregate methods are chosen before each query. An answer that depends on row order shows here.
  3. `standing`: after the last record, each query that is not `# batch only` is made a materialized view; it must be
     accepted as one (unique column names) and hold the expected rows. So the final contents of the tables alone give
     the answer of every such query.
README.md says what the rendering and the marks mean. Needs `psycopg` (libpq through its `pq` module).
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import conninfo, pq

ROOT = Path(__file__).resolve().parent
ENGINE = "postgres"
BATCH_ONLY = "# batch only"
INTEGER_TYPES = {20, 21, 23}
REAL_TYPES = {700, 701, 1700}
SESSION = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1;"
    " SET bytea_output = 'hex'; SET client_min_messages = 'warning'"
)
PLANNERS = (
    "SET enable_hashjoin = on; SET enable_hashagg = on; SET enable_mergejoin = on; SET enable_sort = on",
    "SET enable_hashjoin = off; SET enable_hashagg = off",
    "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_hashagg = on",
)


@dataclass
class Record:
    """One `statement` or `query` with the lines of the file it came from."""

    line: int
    kind: str  # statement | query
    expect: str  # ok | count | error | rows
    sql: str
    count: int = 0
    pattern: str = ""
    types: str = ""
    sort: str = "nosort"
    rows: list[str] = field(default_factory=list)
    connection: str = "default"
    batch_only: bool = False
    skip: bool = False
    span: tuple[int, int] = (0, 0)  # first line of the record's head, line after its last


class Malformed(Exception):
    """The file is not in the subset of the format that the corpus uses."""


def parse(path: Path) -> tuple[list[str], list[Record]]:
    """The file's lines and its records."""
    lines = path.read_text(encoding="utf-8").split("\n")
    records: list[Record] = []
    connection, batch_only, skip = "default", False, False
    at = 0
    while at < len(lines):
        line = lines[at]
        words = line.split()
        if not words:
            at += 1
        elif line.startswith("#"):
            batch_only = batch_only or line.strip() == BATCH_ONLY
            at += 1
        elif words[0] in ("onlyif", "skipif") and len(words) == 2:
            skip = skip or (words[1] == ENGINE) != (words[0] == "onlyif")
            at += 1
        elif words[0] == "connection" and len(words) == 2:
            connection = words[1]
            at += 1
        elif words[0] in ("statement", "query"):
            record, at = parse_record(path, lines, at)
            record.connection, record.batch_only, record.skip = connection, batch_only, skip
            connection, batch_only, skip = "default", False, False
            records.append(record)
        elif words[0] == "halt":
            raise Malformed(f"{path}:{at + 1}: halt is for debugging only")
        else:
            raise Malformed(f"{path}:{at + 1}: unknown record {line!r}")
    return lines, records


def parse_record(path: Path, lines: list[str], start: int) -> tuple[Record, int]:
    words = lines[start].split()
    kind, rest = words[0], words[1:]
    record = Record(line=start + 1, kind=kind, expect="rows" if kind == "query" else "ok", sql="")
    if rest[:1] == ["error"]:
        record.expect, record.pattern = "error", " ".join(rest[1:])
    elif kind == "statement":
        if rest[:1] == ["count"]:
            record.expect, record.count = "count", int(rest[1])
        elif rest != ["ok"]:
            raise Malformed(f"{path}:{start + 1}: {lines[start]!r}")
    else:
        record.types = rest[0] if rest else ""
        record.sort = rest[1] if len(rest) > 1 else "nosort"
        if record.sort not in ("nosort", "rowsort"):
            raise Malformed(f"{path}:{start + 1}: sort mode {record.sort!r}")
    at = start + 1
    sql: list[str] = []
    while at < len(lines) and lines[at] != "" and lines[at] != "----":
        sql.append(lines[at])
        at += 1
    if at < len(lines) and lines[at] == "----":
        if record.expect != "rows":
            raise Malformed(f"{path}:{at + 1}: only a query with rows has '----'")
        at += 1
        while at < len(lines) and lines[at] != "":
            record.rows.append(lines[at])
            at += 1
    if not sql:
        raise Malformed(f"{path}:{start + 1}: no SQL")
    record.sql = "\n".join(sql)
    record.span = (start, at)
    return record, at


@dataclass
class Answer:
    """What the server said to one statement."""

    error: str | None = None  # `message (SQLSTATE)`
    columns: int = 0
    types: str = ""
    rows: list[list[str]] = field(default_factory=list)
    count: int = 0


def render(value: bytes | None) -> str:
    if value is None:
        return "NULL"
    text = value.decode("utf-8")
    return text if text else "(empty)"


def letter(oid: int) -> str:
    return "I" if oid in INTEGER_TYPES else "R" if oid in REAL_TYPES else "T"


class Session:
    """One connection to one database."""

    def __init__(self, target: str, **options: object) -> None:
        self.pg = pq.PGconn.connect(conninfo.make_conninfo(target, **options).encode())
        if self.pg.status != pq.ConnStatus.OK:
            raise ConnectionError(self.pg.get_error_message())
        self.pg.notice_handler = None
        self.must(SESSION)

    def run(self, sql: str) -> Answer:
        result = self.pg.exec_(sql.encode("utf-8"))
        if result.status == pq.ExecStatus.TUPLES_OK:
            width = result.nfields
            return Answer(
                columns=width,
                types="".join(letter(result.ftype(i)) for i in range(width)),
                rows=[[render(result.get_value(r, c)) for c in range(width)] for r in range(result.ntuples)],
                count=int(result.command_tuples or 0),
            )
        if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY):
            return Answer(count=int(result.command_tuples or 0))
        state = result.error_field(pq.DiagnosticField.SQLSTATE) or b"?????"
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"?"
        return Answer(error=f"{message.decode()} ({state.decode()})")

    def must(self, sql: str) -> Answer:
        answer = self.run(sql)
        if answer.error:
            raise RuntimeError(f"{answer.error}: {sql}")
        return answer

    def idle(self) -> bool:
        return self.pg.transaction_status == pq.TransactionStatus.IDLE

    def close(self) -> None:
        self.pg.finish()


class Database:
    """A fresh database with its named connections; dropped on exit."""

    numbers = itertools.count()

    def __init__(self, target: str) -> None:
        self.target = target
        self.name = f"slt_{os.getpid()}_{next(self.numbers)}"
        self.sessions: dict[str, Session] = {}

    def __enter__(self) -> "Database":
        self.admin = Session(self.target)
        self.admin.must(
            f"CREATE DATABASE {self.name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        return self

    def session(self, name: str) -> Session:
        if name not in self.sessions:
            self.sessions[name] = Session(self.target, dbname=self.name)
        return self.sessions[name]

    def __exit__(self, *_: object) -> None:
        for session in self.sessions.values():
            session.close()
        self.admin.must(f"DROP DATABASE {self.name} WITH (FORCE)")
        self.admin.close()

    def shuffle(self, seed: int) -> None:
        """Rewrites every table's rows in a random order and changes the planner's methods."""
        session = self.session("default")
        names = session.must(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname !~ '^pg_'"
            " AND n.nspname <> 'information_schema' ORDER BY 1"
        )
        session.must(f"SELECT setseed({(seed % 1000) / 1000.0})")
        for (name,) in names.rows:
            session.must(
                f"BEGIN; CREATE TEMP TABLE slt_copy ON COMMIT DROP AS SELECT * FROM {name} ORDER BY random();"
                f" TRUNCATE {name}; INSERT INTO {name} SELECT * FROM slt_copy; COMMIT"
            )
        session.must(PLANNERS[seed % len(PLANNERS)])


def row_key(row: list[str]) -> list[bytes]:
    return [value.encode("utf-8") for value in row]


def expected_lines(record: Record, rows: list[list[str]]) -> list[str]:
    ordered = sorted(rows, key=row_key) if record.sort == "rowsort" else rows
    return [" ".join(row) for row in ordered]


def unclear(rows: list[list[str]]) -> str | None:
    """A value whose white space the runner's comparison would not see, or that breaks the file's format."""
    for value in itertools.chain.from_iterable(rows):
        if value != " ".join(value.split()) or "<slt:ignore>" in value:
            return value
    return None


def first_word(sql: str) -> str:
    return sql.lstrip("( \n").split(None, 1)[0].upper()


def reads_only(sql: str) -> bool:
    return first_word(sql) in ("SELECT", "WITH", "VALUES", "TABLE")


def differences(record: Record, answer: Answer) -> list[str]:
    """How the answer differs from the record's expectation; empty when it does not."""
    if record.expect == "error":
        if answer.error is None:
            return [f"expected error {record.pattern}, but it succeeded"]
        if not re.fullmatch(r"\\\([0-9A-Z]{5}\\\)", record.pattern):
            return [f"the pattern must be the SQLSTATE alone, as \\(22012\\): {record.pattern!r}"]
        if not re.search(record.pattern, answer.error):
            return [f"expected error {record.pattern}, got {answer.error}"]
        return []
    if answer.error is not None:
        return [f"error: {answer.error}"]
    if record.expect == "count" and answer.count != record.count:
        return [f"expected {record.count} rows affected, got {answer.count}"]
    if record.expect != "rows":
        return []
    found = []
    if (value := unclear(answer.rows)) is not None:
        found.append(f"white space of {value!r} would not be compared: wrap it in brackets or take its length")
    if answer.types != record.types:
        found.append(f"types: expected {record.types}, got {answer.types}")
    lines = expected_lines(record, answer.rows)
    if lines != record.rows:
        found.append("expected:\n  " + "\n  ".join(record.rows) + "\ngot:\n  " + "\n  ".join(lines))
    return found


def is_standing(record: Record) -> bool:
    return record.kind == "query" and record.expect == "rows" and not record.batch_only and not record.skip


def standing_difference(database: Database, record: Record) -> str | None:
    """How the query differs when it is a materialized view over the final tables."""
    session = database.session("default")
    session.run("ROLLBACK")
    session.must("BEGIN")
    try:
        created = session.run(f"CREATE MATERIALIZED VIEW slt_standing AS {record.sql}")
        if created.error:
            return f"not accepted as a materialized view: {created.error}"
        answer = session.must("SELECT * FROM slt_standing")
        if answer.types != record.types:
            return f"types as a view: {answer.types}"
        got = sorted(" ".join(row) for row in answer.rows)
        if got != sorted(record.rows):
            return "as a view over the final tables:\n  " + "\n  ".join(got)
        return None
    finally:
        session.run("ROLLBACK")


def run_file(target: str, path: Path, records: list[Record], seed: int | None) -> list[str]:
    """Runs all records in one fresh database; with a seed, shuffled, and the standing queries at the end."""
    found: list[str] = []
    with Database(target) as database:
        for record in records:
            if record.skip:
                continue
            session = database.session(record.connection)
            quiet = all(s.idle() for s in database.sessions.values())
            if seed is not None and record.kind == "query" and reads_only(record.sql) and quiet:
                database.shuffle(seed + record.line)
            for text in differences(record, session.run(record.sql)):
                found.append(f"{path}:{record.line}: {text}")
        if seed is not None:
            for name, session in database.sessions.items():
                if not session.idle():
                    found.append(f"{path}: connection {name} ends inside a transaction")
            for record in filter(is_standing, records):
                if not reads_only(record.sql):
                    found.append(f"{path}:{record.line}: a query that changes data must be '{BATCH_ONLY}'")
                elif text := standing_difference(database, record):
                    found.append(f"{path}:{record.line}: {text}")
    return found


def check(target: str, path: Path, seed: int) -> tuple[int, int, list[str]]:
    """Queries, standing queries and what is wrong."""
    try:
        _, records = parse(path)
    except Malformed as problem:
        return 0, 0, [str(problem)]
    found = run_file(target, path, records, None)
    found += [f"(shuffled) {text}" for text in run_file(target, path, records, seed)]
    queries = sum(1 for r in records if r.kind == "query")
    return queries, sum(1 for r in records if is_standing(r)), found


def ends_ordered(sql: str) -> bool:
    """Whether an ORDER BY stands outside all parentheses."""
    depth, words = 0, []
    for token in re.findall(r"'(?:[^']|'')*'|\"[^\"]*\"|[()]|\w+", sql):
        depth += (token == "(") - (token == ")")
        if depth == 0:
            words.append(token.upper())
    return any(a == "ORDER" and b == "BY" for a, b in zip(words, words[1:]))


def write(target: str, path: Path) -> list[str]:
    """Fills in type letters, sort mode, rows, SQLSTATEs and counts from what PostgreSQL answers."""
    lines, records = parse(path)
    found: list[str] = []
    with Database(target) as database:
        for record in records:
            if record.skip:
                continue
            answer = database.session(record.connection).run(record.sql)
            if (answer.error is not None) != (record.expect == "error"):
                found.append(f"{path}:{record.line}: {answer.error or 'no error'}\n    {record.sql}")
            elif record.expect == "error" and record.pattern and not re.search(record.pattern, answer.error or ""):
                found.append(f"{path}:{record.line}: {answer.error}, not {record.pattern}\n    {record.sql}")
            record.pattern = re.sub(r".*(\((.{5})\))$", r"\\(\2\\)", answer.error or "", flags=re.S)
            record.count, record.types = answer.count, answer.types
            if record.expect == "rows":
                record.sort = "nosort" if ends_ordered(record.sql) else "rowsort"
                record.rows = expected_lines(record, answer.rows)
    for record in reversed(records):
        if record.skip:
            continue
        head = {
            "ok": "statement ok",
            "count": f"statement count {record.count}",
            "error": f"{record.kind} error {record.pattern}",
            "rows": f"query {record.types} {record.sort}",
        }[record.expect]
        text = [head, *record.sql.split("\n")]
        if record.expect == "rows":
            text += ["----", *record.rows]
        lines[record.span[0] : record.span[1]] = text
    path.write_text("\n".join(lines), encoding="utf-8")
    return found


def files(arguments: list[str]) -> list[Path]:
    found: list[Path] = []
    for argument in arguments or ["."]:
        path = Path(argument) if Path(argument).exists() and argument != "." else ROOT / argument
        found += sorted(path.rglob("*.slt")) if path.is_dir() else [path]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("target", help="libpq connection string or URI of a role that may create databases")
    parser.add_argument("paths", nargs="*", help="files or folders; all when none is given")
    parser.add_argument("--write", action="store_true", help="write PostgreSQL's answers into the files")
    parser.add_argument("--seed", type=int, default=1, help="of the shuffled run")
    parser.add_argument("--jobs", type=int, default=4)
    options = parser.parse_args()
    paths = files(options.paths)
    if not paths:
        print("no .slt files", file=sys.stderr)
        return 2
    bad = queries = standing = 0
    if options.write:
        with ThreadPoolExecutor(options.jobs) as pool:
            for found in pool.map(lambda p: write(options.target, p), paths):
                bad += bool(found)
                print("\n".join(found)) if found else None
    with ThreadPoolExecutor(options.jobs) as pool:
        for number, views, found in pool.map(lambda p: check(options.target, p, options.seed), paths):
            queries, standing, bad = queries + number, standing + views, bad + bool(found)
            if found:
                print("\n".join(found))
    print(f"{len(paths)} files, {queries} queries ({standing} standing), {bad} files differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
