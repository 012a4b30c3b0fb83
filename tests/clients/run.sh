#!/bin/bash
# Runs real clients (psycopg, asyncpg, SQLAlchemy, pgjdbc, psqlODBC's isql, psql, pgbench) against a running server.
#   PORT=7432 tests/clients/run.sh [psycopg] [asyncpg] [sqlalchemy] [jdbc] [odbc] [psql] [pgbench]
# HOST, DATABASE, DBUSER and SCRATCH (for the Python environment and psql's output) may be set too. PostgreSQL 15 passes every check; it is
# the reference. Starts no server. Debian packages that are missing are installed, for which it must run as root.
# One PASS or FAIL line a check; exit code 1 on any FAIL.
set -u
here=$(cd "$(dirname "$0")" && pwd)
: "${PORT:?set PORT to the port of a running server}"
export PGHOST=${HOST:-127.0.0.1} PGPORT=$PORT PGUSER=${DBUSER:-postgres} PGDATABASE=${DATABASE:-postgres} PGCONNECT_TIMEOUT=10
scratch=${SCRATCH:-${TMPDIR:-/tmp}/millstream-clients}
mkdir -p "$scratch"
clients=${*:-psycopg asyncpg sqlalchemy jdbc odbc psql pgbench}

missing=()
for package in libpostgresql-jdbc-java openjdk-17-jdk-headless odbc-postgresql unixodbc postgresql-client-15 python3-venv; do
    dpkg -s "$package" > /dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get install -y --no-install-recommends "${missing[@]}" > "$scratch/apt.log" 2>&1 || { cat "$scratch/apt.log"; exit 1; }
fi
if [ ! -x "$scratch/venv/bin/python" ] || ! "$scratch/venv/bin/python" -c 'import psycopg, asyncpg, sqlalchemy, greenlet, psycopg2, pg8000' 2> /dev/null; then
    python3 -m venv "$scratch/venv" && "$scratch/venv/bin/pip" -q install 'psycopg[binary]' asyncpg 'sqlalchemy[asyncio]' psycopg2-binary pg8000 || exit 1
fi
version=$(psql -X -At -c 'SELECT version()') || exit 1
case $version in *Millstream*) export MILLSTREAM=yes ;; *) export MILLSTREAM=no ;; esac

# What psql must say about the objects of psql.sql: section, then an extended regular expression.
psql_checks() {
    local out=$scratch/psql.out failed=0 section pattern
    psql -X -f "$here/psql.sql" > "$out" 2>&1
    while IFS='~' read -r section pattern; do
        if awk -v s="== $section" '$0 == s {on = 1; next} /^== / {on = 0} on' "$out" | grep -Eq -- "$pattern"; then
            echo "PASS psql: \\$section: $pattern"
        else
            failed=$((failed + 1))
            echo "FAIL psql: \\$section: $pattern (see $out)"
        fi
    done <<'CHECKS'
d~client_psql \| large +\| view +
d~client_psql \| orders \| table +
d~client_psql \| totals \| materialized view
d+~client_psql \| orders \| table .*permanent
dt~client_psql \| orders \| table
dt+~client_psql \| orders \| table
dt pattern~client_psql \| orders \| table
dv~client_psql \| large \| view
dm~client_psql \| totals \| materialized view
di~client_psql \| orders_pkey \| index .*orders
ds~Did not find any relations
d table~customer \| character varying\(10\) +\| +\| not null
d table~amount +\| numeric\(10,2\) +\| +\| +\| 0
d table~at +\| timestamp with time zone
d table~tags +\| text\[\]
d table~"orders_pkey" PRIMARY KEY, btree \(id\)
d+ table~Storage
d view~View "client_psql.large"
d+ view~FROM (client_psql\.)?orders
d materialized~Materialized view "client_psql.totals"
d+ materialized~FROM (client_psql\.)?orders
d nothing~Did not find any relation named "nowhere"
df~List of functions
df pattern~\(0 rows\)
l~(postgres|dev) .*UTF8
dn~client_psql
dn~public
dn+~client_psql
du~Superuser
dT~List of data types
dS~pg_catalog \| pg_class \| table
dp~client_psql \| orders \| table
dx~List of installed extensions
conninfo~You are connected to database
encoding~UTF8
gdesc~customer \| character varying\(10\)
gdesc~amount +\| numeric\(10,2\)
gdesc~tags +\| text\[\]
CHECKS
    grep -n 'ERROR' "$out" && failed=$((failed + 1))
    echo "psql: $failed failed"
    [ "$failed" = 0 ]
}

# pgbench's schema and its TPC-B-like transactions, in each protocol; the balances must agree at the end.
pgbench_checks() {
    local failed=0 out=$scratch/pgbench.out bench=pgbench
    # Debian has it in the server's package, which is not installed for its sake.
    command -v pgbench > /dev/null || bench=/usr/lib/postgresql/15/bin/pgbench
    [ -x "$(command -v "$bench")" ] || { echo "SKIP pgbench: not installed (package postgresql-15)"; return 0; }
    report() {
        if [ "$2" = 0 ]; then echo "PASS pgbench: $1"; else
            failed=$((failed + 1))
            echo "FAIL pgbench: $1: $(tail -n 3 "$out" | tr '\n' ' ')"
        fi
    }
    # Millstream's keys are declared with the table, so the tables are made here and filled by pgbench.
    psql -X -q -v ON_ERROR_STOP=1 > "$out" 2>&1 <<'SQL'
SET client_min_messages = warning;
DROP TABLE IF EXISTS pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers;
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler varchar(22));
CREATE TABLE pgbench_tellers (tid int NOT NULL PRIMARY KEY, bid int, tbalance int, filler varchar(84)) WITH (fillfactor=100);
CREATE TABLE pgbench_accounts (aid int NOT NULL PRIMARY KEY, bid int, abalance int, filler varchar(84)) WITH (fillfactor=100);
CREATE TABLE pgbench_branches (bid int NOT NULL PRIMARY KEY, bbalance int, filler varchar(88)) WITH (fillfactor=100);
SQL
    report "create tables" $?
    "$bench" -i -I gv -s 1 --quiet > "$out" 2>&1
    report "fill and vacuum" $?
    for protocol in simple extended prepared; do
        "$bench" -n -M $protocol -c 4 -j 2 -t 50 > "$out" 2>&1 && grep -q 'processed: 200/200' "$out"
        report "TPC-B-like transactions, $protocol protocol" $?
    done
    "$bench" -n -S -M prepared -c 4 -j 2 -t 100 > "$out" 2>&1
    report "selects, prepared protocol" $?
    psql -X -At -c "SELECT count(*) FROM pgbench_history" \
        -c "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)" \
        -c "SELECT (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(tbalance) FROM pgbench_tellers)" > "$out" 2>&1
    [ "$(tr '\n' ' ' < "$out")" = "600 t t " ]
    report "balances agree" $?
    "$bench" -i -I d --quiet > "$out" 2>&1
    report "drop" $?
    echo "pgbench: $failed failed"
    [ "$failed" = 0 ]
}

status=0
for client in $clients; do
    case $client in
        psycopg | asyncpg | sqlalchemy) "$scratch/venv/bin/python" "$here/${client}_client.py" ;;
        jdbc) java -cp /usr/share/java/postgresql.jar "$here/JdbcClient.java" "$PGHOST" "$PGPORT" "$PGDATABASE" "$PGUSER" ;;
        odbc) sh "$here/odbc.sh" ;;
        psql) psql_checks ;;
        pgbench) pgbench_checks ;;
        *) echo "unknown client $client"; false ;;
    esac || status=1
done
exit $status
