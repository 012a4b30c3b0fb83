#!/bin/sh
# psqlODBC through unixODBC's isql: list, create, insert, read every basic type, errors, transactions.
# Connection settings come from PGHOST, PGPORT, PGUSER and PGDATABASE. One PASS or FAIL line a check; exit code 1 on any FAIL.
set -u
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
driver=$(find /usr/lib -name 'psqlodbcw.so' | head -n 1)
[ -n "$driver" ] || { echo "FAIL odbc: psqlodbcw.so is not installed"; exit 1; }
failures=0

# check NAME EXPECTED GOT: the same text, apart from the space around.
check() {
    if [ "$2" = "$3" ]; then
        echo "PASS odbc $mode: $1"
    else
        failures=$((failures + 1))
        echo "FAIL odbc $mode: $1: got '$3', expected '$2'" | cut -c1-400
    fi
}
# Results of the SQL on standard input, columns separated by |.
sql() { ODBCINI="$scratch/odbc.ini" ODBCSYSINI="$scratch" isql -v client -b -d'|' 2>&1 | grep -v '^$'; }

dsn() {
    cat > "$scratch/odbcinst.ini" <<INI
[PostgreSQL]
Driver = $driver
INI
    cat > "$scratch/odbc.ini" <<INI
[client]
Driver = $driver
Servername = $PGHOST
Port = $PGPORT
Database = $PGDATABASE
Username = $PGUSER
SSLmode = disable
ConnSettings = SET search_path = client_odbc
$1
INI
}

for mode in prepared unprepared cursors; do
    # The driver sends statements by Parse/Bind/Execute, as simple queries, or through DECLARE and FETCH.
    case $mode in
        prepared) dsn "UseServerSidePrepare = 1" ;;
        unprepared) dsn "UseServerSidePrepare = 0" ;;
        cursors) dsn "UseDeclareFetch = 1
Fetch = 2" ;;
    esac
    sql > /dev/null <<SQL
DROP SCHEMA IF EXISTS client_odbc CASCADE
CREATE SCHEMA client_odbc
CREATE TABLE every (id int4 PRIMARY KEY, b boolean, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric(10,2), t text, v varchar(10), y bytea, d date, tm time, ts timestamp, tz timestamptz, iv interval)
CREATE TABLE orders (id int4 PRIMARY KEY, customer varchar(20) NOT NULL, amount numeric(10,2))
CREATE MATERIALIZED VIEW totals AS SELECT customer, count(*) AS n, sum(amount) AS total FROM orders GROUP BY customer
INSERT INTO every VALUES (1, true, 7, 42, 1000000000000, 1.5, 2.25, 12.34, 'some text', 'varchar', '\\x0001ff', '2024-02-29', '12:34:56', '2024-02-29 01:02:03.456', '2024-02-29 01:02:03+00', '1 day 02:03:04')
INSERT INTO every VALUES (2, false, -32768, -2147483648, -9223372036854775808, -1e10, -1.7976931348623157e308, -99999999.99, '', '', '', '0001-01-01', '00:00:00', '0001-01-01 00:00:00', '1970-01-01 00:00:00+00', '-1 day')
INSERT INTO every (id) VALUES (3)
INSERT INTO orders VALUES (1, 'a', 1), (2, 'b', 2), (3, 'a', 3.5), (4, 'b', 4), (5, 'c', 5)
SQL
    for type in boolean:b:1 int2:i2:7 int4:i4:42 int8:i8:1000000000000 float4:f4:1.5 float8:f8:2.25 numeric:n:12.34 text:t:some\ text \
        varchar:v:varchar bytea:y:0001ff date:d:2024-02-29 timestamp:ts:2024-02-29\ 01:02:03.456; do
        column=$(echo "$type" | cut -d: -f2)
        check "read ${type%%:*}" "$(echo "$type" | cut -d: -f3-)" "$(echo "SELECT $column FROM every WHERE id = 1" | sql)"
        check "read NULL ${type%%:*}" "" "$(echo "SELECT $column FROM every WHERE id = 3" | sql)"
    done
    check "read time" "12:34:56" "$(echo "SELECT tm FROM every WHERE id = 1" | sql)"
    check "read timestamptz" "1" "$(echo "SELECT count(tz) FROM every WHERE id = 1" | sql)"
    check "read interval" "1 day 02:03:04" "$(echo "SELECT iv FROM every WHERE id = 1" | sql)"
    check "read extremes" "0|-32768|-2147483648|-9223372036854775808|-99999999.99|0001-01-01" \
        "$(echo "SELECT b, i2, i4, i8, n, d FROM every WHERE id = 2" | sql)"
    check "read all columns" "3" "$(echo "SELECT * FROM every ORDER BY id" | sql | wc -l)"
    check "several rows" "1 2 3 4 5" "$(echo "SELECT id FROM orders ORDER BY id" | sql | tr '\n' ' ' | sed 's/ $//')"
    [ "$MILLSTREAM" = yes ] || echo "REFRESH MATERIALIZED VIEW totals" | sql > /dev/null
    check "materialized view by key" "a|2|4.50" "$(echo "SELECT customer, n, total FROM totals WHERE customer = 'a'" | sql)"
    check "update" "9.25" "$(printf "UPDATE orders SET amount = 9.25 WHERE id = 1\nSELECT amount FROM orders WHERE id = 1\n" | sql)"
    check "delete" "4" "$(printf "DELETE FROM orders WHERE id = 5\nSELECT count(*) FROM orders\n" | sql)"
    check "23505 duplicate key" "[23505]" "$(echo "INSERT INTO orders VALUES (1, 'a', 1)" | sql | grep -o '^\[.....\]' | head -n 1)"
    check "22012 division by zero" "[22012]" "$(echo "SELECT 1 / (id - 1) FROM orders" | sql | grep -o '^\[.....\]' | head -n 1)"
    check "42P01 no such table" "[42P01]" "$(echo "SELECT * FROM nowhere" | sql | grep -o '^\[.....\]' | head -n 1)"
    check "42601 syntax" "[42601]" "$(echo "SELEC 1" | sql | grep -o '^\[.....\]' | head -n 1)"
    check "help lists tables" "every orders" "$(echo "help" | sql | grep '|client_odbc|' | cut -d'|' -f3 | grep -v totals | sort | tr '\n' ' ' | sed 's/ $//')"
    check "help lists columns" "id customer amount" "$(echo "help orders" | sql | grep '|client_odbc|' | cut -d'|' -f4 | tr '\n' ' ' | sed 's/ $//')"
    check "help gives types" "int4 varchar numeric" "$(echo "help orders" | sql | grep '|client_odbc|' | cut -d'|' -f6 | tr '\n' ' ' | sed 's/ $//')"
    echo "DROP SCHEMA client_odbc CASCADE" | sql > /dev/null
done
echo "odbc: $failures failed"
[ "$failures" = 0 ]
