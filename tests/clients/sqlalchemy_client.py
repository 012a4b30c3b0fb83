"""SQLAlchemy over psycopg, psycopg2, pg8000 and asyncpg: reflection, the ORM, transactions, streaming results.

Connection settings come from PGHOST, PGPORT, PGUSER and PGDATABASE. One PASS or FAIL line a check; exit code 1 on any FAIL.
"""

import asyncio
import datetime as dt
import os
import sys
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

SCHEMA = "client_sqlalchemy"
failures = 0


def check(driver, name, expected, test):
    """Runs `test()` and prints its line; an exception or another value than `expected` is a FAIL."""
    global failures
    try:
        got = test()
        text = "" if got == expected else f"got {got!r}, expected {expected!r}"
    except Exception as error:  # every failure is a line, the rest of the checks still run
        text = f"{type(error).__name__}: {error}".replace("\n", " | ")
    if text:
        failures += 1
        print(f"FAIL sqlalchemy {driver}: {name}: {text[:400]}")
    else:
        print(f"PASS sqlalchemy {driver}: {name}")


class Base(DeclarativeBase):
    metadata = sa.MetaData(schema=SCHEMA)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    customer: Mapped[str] = mapped_column(sa.String(20))
    amount: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2), server_default=sa.text("0"))
    placed: Mapped[dt.datetime | None] = mapped_column(sa.DateTime(timezone=True))
    open: Mapped[bool | None]


AT = dt.datetime(2024, 2, 29, 12, 34, 56, 789000, tzinfo=dt.timezone.utc)


def url(driver):
    env = os.environ
    return f"postgresql+{driver}://{env['PGUSER']}@{env['PGHOST']}:{env['PGPORT']}/{env['PGDATABASE']}"


def run(driver):
    engine = sa.create_engine(url(driver))
    with engine.connect() as connection:
        postgres = "millstream" not in connection.execute(sa.text("SELECT version()")).scalar_one().lower()
        connection.rollback()
    # DDL stands alone in Millstream.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as ddl:
        ddl.execute(sa.text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        ddl.execute(sa.schema.CreateSchema(SCHEMA))
        check(driver, "create_all", None, lambda: Base.metadata.create_all(ddl))
        check(driver, "create_all again", None, lambda: Base.metadata.create_all(ddl))
        ddl.execute(sa.text(f"CREATE VIEW {SCHEMA}.large AS SELECT id, customer FROM {SCHEMA}.orders WHERE amount > 10"))
        ddl.execute(sa.text(
            f"CREATE MATERIALIZED VIEW {SCHEMA}.totals AS SELECT customer, count(*) AS n, sum(amount) AS total "
            f"FROM {SCHEMA}.orders GROUP BY customer"
        ))
        ddl.execute(sa.text(f"COMMENT ON TABLE {SCHEMA}.orders IS 'what was ordered'"))

    def added():
        with Session(engine) as session:
            session.add_all(Order(id=i, customer="abc"[i % 3], amount=Decimal(i), placed=AT, open=i % 2 == 0) for i in range(1, 31))
            session.commit()
            return session.scalar(sa.select(sa.func.count()).select_from(Order))

    check(driver, "add objects", 30, added)
    if postgres:
        with engine.begin() as connection:
            connection.execute(sa.text(f"REFRESH MATERIALIZED VIEW {SCHEMA}.totals"))

    def loaded():
        with Session(engine) as session:
            order = session.get(Order, 7)
            return order.customer, order.amount, order.placed, order.open

    check(driver, "get an object", ("b", Decimal("7.00"), AT, False), loaded)

    def changed():
        with Session(engine) as session:
            session.get(Order, 7).amount = Decimal("70.70")
            session.delete(session.get(Order, 8))
            session.commit()
            return session.scalars(sa.select(Order.amount).where(Order.id.in_([6, 7, 8])).order_by(Order.id)).all()

    check(driver, "change and delete objects", [Decimal("6.00"), Decimal("70.70")], changed)

    def undone():
        with Session(engine) as session:
            session.add(Order(id=500, customer="x"))
            session.flush()
            session.rollback()
            return session.get(Order, 500)

    check(driver, "rollback", None, undone)

    def returned():
        with engine.begin() as connection:
            rows = connection.execute(
                sa.insert(Order).returning(Order.id, Order.amount), [{"id": 100, "customer": "r"}, {"id": 101, "customer": "s"}]
            )
            return sorted(tuple(row) for row in rows)

    check(driver, "insert returning with defaults", [(100, Decimal("0.00")), (101, Decimal("0.00"))], returned)

    def duplicate():
        try:
            with engine.begin() as connection:
                connection.execute(sa.insert(Order), {"id": 100, "customer": "twice"})
        except sa.exc.IntegrityError:
            return "IntegrityError"

    check(driver, "a duplicate is an IntegrityError", "IntegrityError", duplicate)

    def streamed():
        with engine.connect().execution_options(stream_results=True, max_row_buffer=7) as connection:
            result = connection.execute(sa.select(Order.id).where(Order.id < 30).order_by(Order.id))
            return sum(row.id for row in result)

    check(driver, "streamed result", sum(range(1, 30)) - 8, streamed)

    def grouped():
        with Session(engine) as session:
            query = sa.select(Order.customer, sa.func.sum(Order.amount)).where(Order.id < 7).group_by(Order.customer)
            return session.execute(query.having(sa.func.count() > 1).order_by(Order.customer).limit(2)).all()

    check(driver, "grouped query", [("a", Decimal("9.00")), ("b", Decimal("5.00"))], grouped)

    inspector = sa.inspect(engine)
    check(driver, "schema names", True, lambda: {SCHEMA, "public"} <= set(inspector.get_schema_names()))
    check(driver, "default schema", "public", lambda: inspector.default_schema_name)
    check(driver, "table names", ["orders"], lambda: inspector.get_table_names(SCHEMA))
    check(driver, "view names", ["large"], lambda: inspector.get_view_names(SCHEMA))
    check(driver, "materialized view names", ["totals"], lambda: inspector.get_materialized_view_names(SCHEMA))
    check(driver, "has_table", [True, False], lambda: [inspector.has_table(t, SCHEMA) for t in ("orders", "nothing")])
    check(
        driver,
        "columns",
        [
            ("id", "BIGINT", False, None),
            ("customer", "VARCHAR(20)", False, None),
            ("amount", "NUMERIC(10, 2)", True, "0"),
            ("placed", "TIMESTAMP", True, None),
            ("open", "BOOLEAN", True, None),
        ],
        lambda: [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns("orders", SCHEMA)],
    )
    check(driver, "columns of a view", [("id", "BIGINT"), ("customer", "VARCHAR(20)")], lambda: [
        (c["name"], str(c["type"])) for c in inspector.get_columns("large", SCHEMA)])
    check(driver, "primary key", (["id"], "orders_pkey"), lambda: (
        (key := inspector.get_pk_constraint("orders", SCHEMA))["constrained_columns"], key["name"]))
    check(driver, "indexes", [], lambda: inspector.get_indexes("orders", SCHEMA))
    check(driver, "foreign keys", [], lambda: inspector.get_foreign_keys("orders", SCHEMA))
    check(driver, "unique constraints", [], lambda: inspector.get_unique_constraints("orders", SCHEMA))
    check(driver, "check constraints", [], lambda: inspector.get_check_constraints("orders", SCHEMA))
    check(driver, "table comment", {"text": "what was ordered"}, lambda: inspector.get_table_comment("orders", SCHEMA))
    check(driver, "view definition", True, lambda: "SELECT" in inspector.get_view_definition("large", SCHEMA).upper())
    check(driver, "sequences", [], lambda: inspector.get_sequence_names(SCHEMA))
    check(driver, "enums", [], lambda: inspector.get_enums(SCHEMA))

    def reflected():
        metadata = sa.MetaData()
        metadata.reflect(engine, schema=SCHEMA, views=True)
        table = metadata.tables[f"{SCHEMA}.orders"]
        return sorted(metadata.tables), [c.name for c in table.primary_key], table.c.customer.type.length

    names = [f"{SCHEMA}.{name}" for name in ("large", "orders", "totals")]
    check(driver, "reflect everything", (names, ["id"], 20), reflected)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as ddl:
        check(driver, "drop schema", None, lambda: ddl.execute(sa.text(f"DROP SCHEMA {SCHEMA} CASCADE")) and None)
    engine.dispose()


async def run_async():
    engine = create_async_engine(url("asyncpg"))
    async with engine.connect() as connection:
        total = await connection.scalar(sa.text("SELECT sum(i) FROM generate_series(1, 10) AS s(i) WHERE i > :least"), {"least": 5})
        check("asyncpg", "scalar with a parameter", 40, lambda: int(total))
        names = await connection.run_sync(lambda c: sa.inspect(c).get_schema_names())
        check("asyncpg", "schema names", True, lambda: "public" in names)
    await engine.dispose()


if __name__ == "__main__":
    for name in ("psycopg", "psycopg2", "pg8000"):
        try:
            run(name)
        except Exception as error:
            failures += 1
            print(f"FAIL sqlalchemy {name}: stopped: {type(error).__name__}: {error}".replace("\n", " | ")[:500])
    try:
        asyncio.run(run_async())
    except Exception as error:
        failures += 1
        print(f"FAIL sqlalchemy asyncpg: stopped: {type(error).__name__}: {error}".replace("\n", " | ")[:500])
    print(f"sqlalchemy: {failures} failed")
    sys.exit(1 if failures else 0)
