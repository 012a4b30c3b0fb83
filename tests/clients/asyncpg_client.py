"""asyncpg against a server on the Postgres wire: every basic type by prepared statement, always in binary.

Connection settings come from PGHOST, PGPORT, PGUSER and PGDATABASE. One PASS or FAIL line a check; exit code 1 on any FAIL.
"""

import asyncio
import datetime as dt
import io
import os
import sys
from decimal import Decimal

import asyncpg

from psycopg_client import COLUMNS, ROWS, TYPE_OIDS, expect_rows, same

SCHEMA = "client_asyncpg"
failures = 0


async def check(name, test):
    """Awaits `test()` and prints its line; an exception or anything but True is a FAIL."""
    global failures
    try:
        outcome = await asyncio.wait_for(test(), 30)
    except Exception as error:  # every failure is a line, the rest of the checks still run
        outcome = f"{type(error).__name__}: {error}".replace("\n", " | ")
    if outcome is True:
        print(f"PASS asyncpg: {name}")
    else:
        failures += 1
        print(f"FAIL asyncpg: {name}: {str(outcome)[:300]}")


async def main():
    connection = await asyncpg.connect()
    await connection.execute("SET TimeZone = 'UTC'")
    postgres = "millstream" not in (await connection.fetchval("SELECT version()")).lower()
    await connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await connection.execute(f"SET search_path = {SCHEMA}")
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS)
    await connection.execute(f"CREATE TABLE every (id int4 PRIMARY KEY, {columns})")
    await connection.execute("CREATE TABLE orders (id int4 PRIMARY KEY, customer text NOT NULL, amount numeric(10,2))")
    await connection.execute(
        "CREATE MATERIALIZED VIEW totals AS SELECT customer, count(*) AS n, sum(amount) AS total FROM orders GROUP BY customer"
    )
    insert = await connection.prepare(f"INSERT INTO every VALUES ({', '.join(f'${i + 1}' for i in range(16))})")

    async def parameter_types():
        return expect_rows([p.oid for p in insert.get_parameters()], [23, *TYPE_OIDS])

    await check("parameter types of an insert", parameter_types)
    for offset, (name, row) in enumerate(ROWS.items()):

        async def add():
            await insert.fetch(1 + offset, *row)
            return expect_rows(insert.get_statusmsg(), "INSERT 0 1")

        await check(f"insert {name} row", add)
    select = await connection.prepare("SELECT * FROM every WHERE id = $1")

    async def attribute_types():
        return expect_rows([a.type.oid for a in select.get_attributes()], [23, *TYPE_OIDS])

    await check("result types", attribute_types)

    async def compare(first):
        for offset, (name, row) in enumerate(ROWS.items()):
            got = await select.fetchrow(first + offset)
            if got is None:
                return f"no {name} row"
            for (column, _), expected in zip(COLUMNS, row):
                outcome = same(got[column], expected)
                if outcome is not True:
                    return f"{name} {column}: {outcome}"
        return True

    for (column, kind), position in zip(COLUMNS, range(len(COLUMNS))):

        async def read():
            statement = await connection.prepare(f"SELECT {column} FROM every WHERE id = $1")
            for offset, (name, row) in enumerate(ROWS.items()):
                outcome = same(await statement.fetchval(1 + offset), row[position])
                if outcome is not True:
                    return f"{name}: {outcome}"
            return True

        async def echo():
            statement = await connection.prepare(f"SELECT $1::{kind}")
            for name, row in ROWS.items():
                outcome = same(await statement.fetchval(row[position]), row[position])
                if outcome is not True:
                    return f"{name}: {outcome}"
            return True

        async def find():
            found = await connection.fetch(f"SELECT id FROM every WHERE {column} = $1 AND id = 1", ROWS["ordinary"][position])
            return expect_rows([r["id"] for r in found], [1])

        await check(f"read {kind} of every row", read)
        await check(f"echo {kind}", echo)
        await check(f"find by {kind} parameter", find)

    async def arrays():
        found = await connection.fetch("SELECT id FROM every WHERE id = ANY($1::int4[]) ORDER BY id", [1, 2, 999])
        return expect_rows([r["id"] for r in found], [1, 2])

    async def text_arrays():
        found = await connection.fetchval("SELECT $1::text[]", ["a", None, "b,c"])
        return expect_rows(found, ["a", None, "b,c"])

    await check("array parameter", arrays)
    await check("text array echo", text_arrays)

    async def many():
        await connection.executemany("INSERT INTO orders VALUES ($1, $2, $3)", [(i, "abc"[i % 3], Decimal(i)) for i in range(30)])
        return expect_rows(await connection.fetchval("SELECT count(*) FROM orders"), 30)

    await check("executemany", many)
    if postgres:
        await connection.execute("REFRESH MATERIALIZED VIEW totals")

    async def by_key():
        row = await connection.fetchrow("SELECT customer, n, total FROM totals WHERE customer = $1", "a")
        return expect_rows(tuple(row), ("a", 10, Decimal("135.00")))

    await check("materialized view by key", by_key)

    async def updated():
        status = await connection.execute("UPDATE orders SET amount = amount + $1 WHERE id = $2", Decimal("0.50"), 0)
        return expect_rows(status, "UPDATE 1")

    async def deleted():
        status = await connection.execute("DELETE FROM orders WHERE id = $1", 29)
        return expect_rows(status, "DELETE 1")

    await check("update by prepared statement", updated)
    await check("delete by prepared statement", deleted)

    def fails(state, sql, *parameters):
        async def run():
            try:
                await connection.fetch(sql, *parameters)
            except asyncpg.PostgresError as error:
                return True if error.sqlstate == state else f"got {error.sqlstate} ({error}), expected {state}"
            return f"no error, expected {state}"

        return run

    await check("23505 duplicate key", fails("23505", "INSERT INTO orders VALUES ($1, $2, $3)", 1, "a", Decimal(1)))
    await check("23502 not null", fails("23502", "INSERT INTO orders VALUES ($1, $2, $3)", 1000, None, Decimal(1)))
    await check("22012 division by zero", fails("22012", "SELECT 1 / $1::int4", 0))
    await check("22001 too long", fails("22001", "INSERT INTO every (id, v) VALUES ($1, $2)", 1001, "x" * 11))
    await check("22003 numeric overflow", fails("22003", "INSERT INTO every (id, n) VALUES ($1, $2)", 1002, Decimal("100000000")))
    await check("42P01 no such table", fails("42P01", "SELECT * FROM nowhere WHERE id = $1", 1))
    await check("42601 syntax", fails("42601", "SELEC 1"))

    def transaction(commit):
        key = 501 if commit else 502

        async def run():
            change = connection.transaction()
            await change.start()
            await connection.execute("INSERT INTO orders VALUES ($1, $2, $3)", key, "t", Decimal(1))
            await (change.commit() if commit else change.rollback())
            return expect_rows(await connection.fetchval("SELECT count(*) FROM orders WHERE id = $1", key), 1 if commit else 0)

        return run

    await check("commit", transaction(True))
    await check("rollback", transaction(False))

    async def cursor():
        async with connection.transaction():
            rows = [r["id"] async for r in connection.cursor("SELECT id FROM orders WHERE id < $1 ORDER BY id", 20, prefetch=7)]
        return expect_rows(rows, list(range(20)))

    await check("cursor that fetches 7 rows at a time", cursor)

    async def copy_records():
        records = [(301 + offset, *row) for offset, row in enumerate(ROWS.values())]
        status = await connection.copy_records_to_table("every", records=records, schema_name=SCHEMA)
        if status != f"COPY {len(records)}":
            return status
        return await compare(301)

    async def copy_text():
        lines = "".join(f"{i}\ttext {i}\t{i}.5\n" for i in range(700, 710)).encode()
        status = await connection.copy_to_table("orders", source=io.BytesIO(lines), schema_name=SCHEMA)
        return expect_rows(status, "COPY 10")

    async def copy_csv_out():
        sink = io.BytesIO()
        status = await connection.copy_from_query(
            "SELECT * FROM orders WHERE id >= $1 AND id < 702 ORDER BY id", 700, output=sink, format="csv", header=True
        )
        return expect_rows((status, sink.getvalue()), ("COPY 2", b"id,customer,amount\n700,text 700,700.50\n701,text 701,701.50\n"))

    await check("copy_records_to_table (binary)", copy_records)
    await check("copy_to_table (text)", copy_text)
    await check("copy_from_query (csv)", copy_csv_out)

    async def concurrent():
        pool = await asyncpg.create_pool(min_size=4, max_size=4)
        try:
            sums = await asyncio.gather(
                *(pool.fetchval(f"SELECT count(*) FROM {SCHEMA}.orders WHERE id < $1", n) for n in range(20))
            )
        finally:
            await pool.close()
        return expect_rows(sums, list(range(20)))

    await check("pool of four connections", concurrent)

    async def subscription():
        """What only Millstream has: rows that come as they are made, here one at a time through a portal."""
        await connection.execute(f"CREATE TABLE {SCHEMA}.followed (k int PRIMARY KEY, v text)")
        await connection.execute(f"INSERT INTO {SCHEMA}.followed VALUES (1, 'a')")
        other = await asyncpg.connect()
        try:
            got = []
            async with other.transaction():
                async for row in other.cursor(f"SUBSCRIBE (SELECT v FROM {SCHEMA}.followed)", prefetch=1):
                    got.append((row["op"], row["v"]))
                    if len(got) == 3:
                        break
                    await connection.execute(f"INSERT INTO {SCHEMA}.followed VALUES ($1, $2)", 1 + len(got), "b" * len(got))
        finally:
            await other.close()
        return expect_rows(got, [("insert", "a"), ("insert", "b"), ("insert", "bb")])

    if os.environ.get("MILLSTREAM") == "yes":
        await check("subscription: cursor", subscription)

    async def drop():
        return expect_rows(await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE"), "DROP SCHEMA")

    await check("drop schema", drop)
    await connection.close()
    print(f"asyncpg: {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
