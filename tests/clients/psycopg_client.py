"""psycopg 3 against a server on the Postgres wire: every basic type by prepared statement, text and binary.

Connection settings come from PGHOST, PGPORT, PGUSER and PGDATABASE. One PASS or FAIL line a check; exit code 1 on any FAIL.
"""

import datetime as dt
import math
import os
import sys
import traceback
from decimal import Decimal

import psycopg

SCHEMA = "client_psycopg"
UTC = dt.timezone.utc
COLUMNS = [
    ("b", "boolean"),
    ("i2", "int2"),
    ("i4", "int4"),
    ("i8", "int8"),
    ("f4", "float4"),
    ("f8", "float8"),
    ("n", "numeric(10,2)"),
    ("t", "text"),
    ("v", "varchar(10)"),
    ("y", "bytea"),
    ("d", "date"),
    ("tm", "time"),
    ("ts", "timestamp"),
    ("tz", "timestamptz"),
    ("iv", "interval"),
]
TYPE_OIDS = [16, 21, 23, 20, 700, 701, 1700, 25, 1043, 17, 1082, 1083, 1114, 1184, 1186]
ROWS = {
    "ordinary": (
        True, 7, 42, 1_000_000_000_000, 1.5, 2.25, Decimal("12.34"), "it's \"text\" \\ ünï", "varchar", b"\x00\x01\xff\\'",
        dt.date(2024, 2, 29), dt.time(12, 34, 56, 789012), dt.datetime(2024, 2, 29, 1, 2, 3, 456789),
        dt.datetime(2024, 2, 29, 1, 2, 3, 456789, UTC), dt.timedelta(days=3, hours=4, minutes=5, seconds=6, microseconds=7),
    ),
    "least": (
        False, -(2**15), -(2**31), -(2**63), -math.inf, -1.7976931348623157e308, Decimal("-99999999.99"), "", "", b"",
        dt.date.min, dt.time.min, dt.datetime.min, dt.datetime(1, 1, 2, tzinfo=UTC), dt.timedelta(days=-9999, microseconds=-1),
    ),
    "greatest": (
        True, 2**15 - 1, 2**31 - 1, 2**63 - 1, math.inf, 1.7976931348623157e308, Decimal("99999999.99"), "x" * 100_000, "y" * 10,
        bytes(range(256)) * 40, dt.date.max, dt.time.max, dt.datetime.max, dt.datetime(9999, 12, 30, 23, 59, 59, 999999, UTC),
        dt.timedelta(days=9999, microseconds=999999),
    ),
    "not a number": (
        None, 0, 0, 0, math.nan, math.nan, Decimal("0.00"), " ", " ", b"\x00",
        dt.date(1970, 1, 1), dt.time(0, 0, 1), dt.datetime(1970, 1, 1), dt.datetime(1970, 1, 1, tzinfo=UTC), dt.timedelta(0),
    ),
    "nulls": (None,) * 15,
}
failures = 0


def check(name, test):
    """Runs `test` and prints its line; an exception or False is a FAIL."""
    global failures
    try:
        outcome = test()
    except Exception as error:  # every failure is a line, the rest of the checks still run
        outcome = False
        text = "".join(traceback.format_exception_only(error)).strip().replace("\n", " | ")
    else:
        text = "" if outcome in (None, True) else repr(outcome)
    if outcome in (None, True):
        print(f"PASS psycopg: {name}")
    else:
        failures += 1
        print(f"FAIL psycopg: {name}: {text[:300]}")


def same(got, expected):
    """True, or a text that says how the two values differ."""
    if isinstance(expected, float) and math.isnan(expected):
        return True if isinstance(got, float) and math.isnan(got) else f"got {got!r}, expected nan"
    return True if got == expected and type(got) is type(expected) else f"got {got!r}, expected {expected!r}"


def expect_rows(got, expected):
    return True if got == expected else f"got {got!r}, expected {expected!r}"


def sqlstate(connection, sql, parameters, state):
    try:
        connection.execute(sql, parameters, prepare=True)
    except psycopg.Error as error:
        connection.rollback()
        return True if error.sqlstate == state else f"got {error.sqlstate} ({error}), expected {state}"
    connection.rollback()
    return f"no error, expected {state}"


def main():
    connection = psycopg.connect(autocommit=True, options="-c TimeZone=UTC")
    postgres = "millstream" not in connection.execute("SELECT version()").fetchone()[0].lower()
    connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    connection.execute(f"CREATE SCHEMA {SCHEMA}")
    connection.execute(f"SET search_path = {SCHEMA}")
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS)
    connection.execute(f"CREATE TABLE every (id int4 PRIMARY KEY, {columns})")
    connection.execute("CREATE TABLE orders (id int4 PRIMARY KEY, customer text NOT NULL, amount numeric(10,2))")
    connection.execute(
        "CREATE MATERIALIZED VIEW totals AS SELECT customer, count(*) AS n, sum(amount) AS total FROM orders GROUP BY customer"
    )

    # Parameters of each format; %b sends binary, %t text. Ids: 1.. for text, 101.. for binary.
    for first, mark in ((1, "%t"), (101, "%b")):
        sql = f"INSERT INTO every VALUES ({', '.join([mark] * 16)})"
        for offset, (name, row) in enumerate(ROWS.items()):
            check(
                f"insert {name} row, {'text' if mark == '%t' else 'binary'} parameters",
                lambda: expect_rows(connection.execute(sql, (first + offset, *row), prepare=True).rowcount, 1),
            )
    for binary in (False, True):
        form = "binary" if binary else "text"
        for first, sent in ((1, "text"), (101, "binary")):
            for offset, (name, row) in enumerate(ROWS.items()):
                for (column, kind), value in zip(COLUMNS, row):
                    cursor = connection.cursor(binary=binary)

                    def read(column=column, value=value, cursor=cursor, key=first + offset):
                        cursor.execute(f"SELECT {column} FROM every WHERE id = %s", (key,), prepare=True)
                        return same(cursor.fetchone()[0], value)

                    check(f"read {kind} of {name} row sent as {sent}, {form} result", read)
        cursor = connection.cursor(binary=binary)
        check(
            f"type oids of a {form} result",
            lambda: expect_rows([c.type_code for c in cursor.execute("SELECT * FROM every").description], [23, *TYPE_OIDS]),
        )
        cursor.execute("SELECT * FROM every")
        check(f"typmods of a {form} result", lambda: expect_rows((cursor.description[7].precision, cursor.description[7].scale), (10, 2)))
        for (column, kind), value in zip(COLUMNS, ROWS["ordinary"]):
            check(
                f"find by {kind} parameter, {form} parameters",
                lambda: expect_rows(
                    connection.execute(
                        f"SELECT id FROM every WHERE {column} = {'%b' if binary else '%t'} AND id < 100 AND id > 0 ORDER BY id LIMIT 1",
                        (value,),
                        prepare=True,
                    ).fetchone(),
                    (1,),
                ),
            )
        for (column, kind), value in zip(COLUMNS, ROWS["ordinary"]):
            mark = "%b" if binary else "%t"
            check(
                f"echo {kind} parameter, {form}",
                lambda: same(connection.cursor(binary=binary).execute(f"SELECT {mark}::{kind}", (value,), prepare=True).fetchone()[0], value),
            )

    check("update by prepared statement", lambda: expect_rows(
        connection.execute("UPDATE every SET t = %s, n = %s WHERE id = %s", ("new", Decimal("1.10"), 1), prepare=True).rowcount, 1))
    check("read the update", lambda: expect_rows(
        connection.execute("SELECT t, n FROM every WHERE id = %s", (1,), prepare=True).fetchone(), ("new", Decimal("1.10"))))
    check("delete by prepared statement", lambda: expect_rows(
        connection.execute("DELETE FROM every WHERE id = %s", (5,), prepare=True).rowcount, 1))
    check("array parameter", lambda: expect_rows(
        connection.execute("SELECT id FROM every WHERE id = ANY(%s) ORDER BY id", ([1, 2, 999],), prepare=True).fetchall(), [(1,), (2,)]))

    def many():
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO orders VALUES (%s, %s, %s)", [(i, "abc"[i % 3], Decimal(i)) for i in range(30)]
            )
            return expect_rows(cursor.rowcount, 30)

    check("executemany (pipeline)", many)
    if postgres:
        connection.execute("REFRESH MATERIALIZED VIEW totals")
    for binary in (False, True):
        check(f"materialized view by key, {'binary' if binary else 'text'}", lambda: expect_rows(
            connection.cursor(binary=binary).execute(
                "SELECT customer, n, total FROM totals WHERE customer = %s", ("a",), prepare=True).fetchall(),
            [("a", 10, Decimal("135.00"))]))
    for attempt in range(8):
        check(f"same prepared statement, run {attempt + 1}", lambda: expect_rows(
            connection.execute("SELECT n FROM totals WHERE customer = %s", ("abc"[attempt % 3],)).fetchone(), (10,)))

    check("23505 duplicate key", lambda: sqlstate(connection, "INSERT INTO orders VALUES (%s, %s, %s)", (1, "a", 1), "23505"))
    check("23502 not null", lambda: sqlstate(connection, "INSERT INTO orders VALUES (%s, %s, %s)", (1000, None, 1), "23502"))
    check("22012 division by zero", lambda: sqlstate(connection, "SELECT 1 / %s::int4", (0,), "22012"))
    check("22003 out of range", lambda: sqlstate(connection, "INSERT INTO every (id, i2) VALUES (%s, %s::int8)", (1001, 40000), "22003"))
    check("22001 too long", lambda: sqlstate(connection, "INSERT INTO every (id, v) VALUES (%s, %s)", (1002, "x" * 11), "22001"))
    check("22P02 bad text", lambda: sqlstate(connection, "SELECT %t::int4", ("abc",), "22P02"))
    check("42P01 no such table", lambda: sqlstate(connection, "SELECT * FROM nowhere WHERE id = %s", (1,), "42P01"))
    check("42703 no such column", lambda: sqlstate(connection, "SELECT nothing FROM orders WHERE id = %s", (1,), "42703"))
    check("42601 syntax", lambda: sqlstate(connection, "SELEC 1", (), "42601"))

    def copied_in(binary):
        head = "COPY every FROM STDIN" + (" (FORMAT binary)" if binary else "")
        first = 301 if binary else 201
        with connection.cursor() as cursor:
            with cursor.copy(head) as copy:
                if binary:
                    copy.set_types(["int4", *(kind.split("(")[0] for _, kind in COLUMNS)])
                for offset, row in enumerate(ROWS.values()):
                    copy.write_row((first + offset, *row))
            if cursor.rowcount != len(ROWS):
                return f"rowcount {cursor.rowcount}"
        for offset, (name, row) in enumerate(ROWS.items()):
            got = connection.execute("SELECT * FROM every WHERE id = %s", (first + offset,)).fetchone()
            for (column, _), one, expected in zip(COLUMNS, got[1:], row):
                if same(one, expected) is not True:
                    return f"{name} {column}: {same(one, expected)}"
        return True

    def copied_out(binary):
        head = "COPY (SELECT * FROM every WHERE id > 200 AND id < 206 ORDER BY id) TO STDOUT" + (" (FORMAT binary)" if binary else "")
        with connection.cursor() as cursor, cursor.copy(head) as copy:
            copy.set_types(["int4", *(kind.split("(")[0] for _, kind in COLUMNS)])
            got = list(copy.rows())
        if len(got) != len(ROWS):
            return f"{len(got)} rows"
        for (name, row), values in zip(ROWS.items(), got):
            for (column, _), one, expected in zip(COLUMNS, values[1:], row):
                if same(one, expected) is not True:
                    return f"{name} {column}: {same(one, expected)}"
        return True

    check("COPY FROM STDIN text", lambda: copied_in(False))
    check("COPY FROM STDIN binary", lambda: copied_in(True))
    check("COPY TO STDOUT text", lambda: copied_out(False))
    check("COPY TO STDOUT binary", lambda: copied_out(True))

    def transaction(commit):
        key = 501 if commit else 502
        connection.autocommit = False
        try:
            connection.execute("INSERT INTO orders VALUES (%s, %s, %s)", (key, "t", 1), prepare=True)
            connection.commit() if commit else connection.rollback()
        finally:
            connection.rollback()
            connection.autocommit = True
        found = connection.execute("SELECT count(*) FROM orders WHERE id = %s", (key,)).fetchone()
        return expect_rows(found, (1 if commit else 0,))

    check("commit", lambda: transaction(True))
    check("rollback", lambda: transaction(False))

    def server_cursor():
        with connection.transaction(), connection.cursor("named") as cursor:
            cursor.execute("SELECT id FROM orders WHERE id < 30 ORDER BY id")
            return expect_rows([row[0] for row in cursor.fetchmany(7)] + [row[0] for row in cursor], list(range(30)))

    check("server-side cursor", server_cursor)

    def pipeline():
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int4", (i,)) for i in range(20)]
        return expect_rows([c.fetchone()[0] for c in cursors], list(range(20)))

    check("pipeline of selects", pipeline)
    def subscriptions():
        """What only Millstream has: rows that come as they are made."""
        connection.execute(f"CREATE TABLE {SCHEMA}.followed (k int PRIMARY KEY, v text)")
        connection.execute(f"CREATE MATERIALIZED VIEW {SCHEMA}.counted AS SELECT v, count(*) AS n FROM {SCHEMA}.followed GROUP BY v")
        connection.execute(f"INSERT INTO {SCHEMA}.followed VALUES (1, 'a'), (2, 'a')")
        insert = lambda k: connection.execute(f"INSERT INTO {SCHEMA}.followed VALUES (%s, 'b')", (k,))

        def streamed():
            with psycopg.connect(autocommit=True) as other, other.cursor() as cursor:
                got, k = [], 10
                for row in cursor.stream(f"SUBSCRIBE {SCHEMA}.counted"):
                    got.append(row[1:])
                    if len(got) in (1, 2, 4):
                        insert(k)
                        k += 1
                    if len(got) == 6:
                        break
            return expect_rows(got, [("insert", "a", 2), ("insert", "b", 1), ("delete", "b", 1), ("insert", "b", 2), ("delete", "b", 2), ("insert", "b", 3)])

        def fetched():
            with psycopg.connect() as other, other.cursor("named") as cursor:
                cursor.execute(f"SUBSCRIBE {SCHEMA}.counted WITH (progress)")
                first = cursor.fetchmany(100)
                if sorted(row[1:] for row in first if row[1] == "insert") != [("insert", "a", 2), ("insert", "b", 3)]:
                    return first
                insert(20)
                changes = []
                while len(changes) < 2:
                    changes += [row[1:] for row in cursor.fetchmany(100) if row[1] != "progress"]
                if changes != [("delete", "b", 3), ("insert", "b", 4)]:
                    return changes
                return True

        def resumed():
            with psycopg.connect() as other:
                other.execute(f"DECLARE c CURSOR FOR SUBSCRIBE {SCHEMA}.counted WITH (progress, snapshot = false)")
                epoch = other.execute("FETCH 1 c").fetchone()[0]
                insert(30)
                with psycopg.connect() as third:
                    third.execute(f"DECLARE d CURSOR FOR SUBSCRIBE {SCHEMA}.counted AS OF EPOCH {epoch}")
                    return expect_rows([row[1:] for row in third.execute("FETCH ALL d")], [("delete", "b", 4), ("insert", "b", 5)])

        def copied():
            with psycopg.connect() as other, other.cursor() as cursor:
                with cursor.copy(f"COPY (SUBSCRIBE {SCHEMA}.counted WITH (snapshot = false)) TO STDOUT") as copy:
                    rows = copy.rows()
                    insert(40)
                    got = [next(rows)[1:], next(rows)[1:]]
                    other.cancel_safe()
                    try:
                        next(rows)
                    except psycopg.errors.QueryCanceled:
                        return expect_rows(got, [("delete", "b", "5"), ("insert", "b", "6")])
                    return "not cancelled"

        check("subscription: stream", streamed)
        check("subscription: server-side cursor", fetched)
        check("subscription: AS OF EPOCH", resumed)
        check("subscription: COPY, cancelled", copied)

    if os.environ.get("MILLSTREAM") == "yes":
        subscriptions()
    check("drop schema", lambda: expect_rows(connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE").statusmessage, "DROP SCHEMA"))
    print(f"psycopg: {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
