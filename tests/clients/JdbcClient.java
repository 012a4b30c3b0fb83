// pgjdbc against a server on the Postgres wire: every basic type by PreparedStatement, text and binary transfer, metadata, COPY.
// Run by run.sh as `java -cp postgresql.jar JdbcClient.java HOST PORT DATABASE USER`.
// One PASS or FAIL line a check; exit code 1 on any FAIL.

import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.*;
import java.time.*;
import java.util.*;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.util.PGInterval;
import org.postgresql.util.PGobject;

public class JdbcClient {
    interface Test { Object run() throws Exception; }

    static final String SCHEMA = "client_jdbc";
    static final String[][] COLUMNS = {
        {"b", "boolean"}, {"i2", "int2"}, {"i4", "int4"}, {"i8", "int8"}, {"f4", "float4"}, {"f8", "float8"},
        {"n", "numeric(10,2)"}, {"t", "text"}, {"v", "varchar(10)"}, {"y", "bytea"}, {"d", "date"}, {"tm", "time"},
        {"ts", "timestamp"}, {"tz", "timestamptz"}, {"iv", "interval"}};
    static int failures = 0;
    static String mode = "";

    static void check(String name, Object expected, Test test) {
        String text;
        try {
            Object got = test.run();
            if (same(got, expected)) {
                System.out.println("PASS jdbc " + mode + ": " + name);
                return;
            }
            text = "got " + show(got) + ", expected " + show(expected);
        } catch (Throwable e) {
            text = e.toString().replace('\n', ' ');
        }
        failures++;
        System.out.println("FAIL jdbc " + mode + ": " + name + ": " + text.substring(0, Math.min(300, text.length())));
    }

    static boolean same(Object a, Object b) {
        if (a instanceof byte[] && b instanceof byte[]) return Arrays.equals((byte[]) a, (byte[]) b);
        return Objects.equals(a, b);
    }

    static String show(Object o) {
        return o instanceof byte[] ? Arrays.toString((byte[]) o) : String.valueOf(o);
    }

    static Object[] row(Object... values) { return values; }

    static final Map<String, Object[]> ROWS = new LinkedHashMap<>();
    static {
        try {
            byte[] bytes = new byte[10000];
            for (int i = 0; i < bytes.length; i++) bytes[i] = (byte) i;
            ROWS.put("ordinary", row(true, (short) 7, 42, 1_000_000_000_000L, 1.5f, 2.25, new BigDecimal("12.34"), "it's \"text\" \\ ünï",
                "varchar", new byte[] {0, 1, -1, '\\', '\''}, LocalDate.of(2024, 2, 29), LocalTime.of(12, 34, 56, 789012000),
                LocalDateTime.of(2024, 2, 29, 1, 2, 3, 456789000), OffsetDateTime.of(2024, 2, 29, 1, 2, 3, 456789000, ZoneOffset.UTC),
                new PGInterval(1, 2, 3, 4, 5, 6.5)));
            ROWS.put("least", row(false, Short.MIN_VALUE, Integer.MIN_VALUE, Long.MIN_VALUE, Float.NEGATIVE_INFINITY, -Double.MAX_VALUE,
                new BigDecimal("-99999999.99"), "", "", new byte[0], LocalDate.of(1, 1, 1), LocalTime.MIDNIGHT,
                LocalDateTime.of(1, 1, 1, 0, 0), OffsetDateTime.of(1, 1, 2, 0, 0, 0, 0, ZoneOffset.UTC), new PGInterval(-1, -2, -3, -4, -5, -6.5)));
            ROWS.put("greatest", row(true, Short.MAX_VALUE, Integer.MAX_VALUE, Long.MAX_VALUE, Float.POSITIVE_INFINITY, Double.MAX_VALUE,
                new BigDecimal("99999999.99"), "x".repeat(100000), "y".repeat(10), bytes, LocalDate.of(9999, 12, 31),
                LocalTime.of(23, 59, 59, 999999000), LocalDateTime.of(9999, 12, 31, 23, 59, 59, 999999000),
                OffsetDateTime.of(9999, 12, 30, 23, 59, 59, 999999000, ZoneOffset.UTC), new PGInterval(0, 0, 99999, 0, 0, 0.000001)));
            ROWS.put("not a number", row(null, (short) 0, 0, 0L, Float.NaN, Double.NaN, new BigDecimal("0.00"), " ", " ", new byte[] {0},
                LocalDate.of(1970, 1, 1), LocalTime.of(0, 0, 1), LocalDateTime.of(1970, 1, 1, 0, 0),
                OffsetDateTime.of(1970, 1, 1, 0, 0, 0, 0, ZoneOffset.UTC), new PGInterval(0, 0, 0, 0, 0, 0)));
            ROWS.put("nulls", new Object[15]);
        } catch (Exception e) {
            throw new RuntimeException(e);
        }
    }

    static Object read(ResultSet rs, int column, String type) throws SQLException {
        Object value;
        switch (type) {
            case "boolean": value = rs.getBoolean(column); break;
            case "int2": value = rs.getShort(column); break;
            case "int4": value = rs.getInt(column); break;
            case "int8": value = rs.getLong(column); break;
            case "float4": value = rs.getFloat(column); break;
            case "float8": value = rs.getDouble(column); break;
            case "numeric(10,2)": value = rs.getBigDecimal(column); break;
            case "text": case "varchar(10)": value = rs.getString(column); break;
            case "bytea": value = rs.getBytes(column); break;
            case "date": value = rs.getObject(column, LocalDate.class); break;
            case "time": value = rs.getObject(column, LocalTime.class); break;
            case "timestamp": value = rs.getObject(column, LocalDateTime.class); break;
            case "timestamptz": value = rs.getObject(column, OffsetDateTime.class); break;
            default: value = rs.getObject(column);
        }
        return rs.wasNull() ? null : value;
    }

    static final int[] JDBC_TYPES = {Types.BOOLEAN, Types.SMALLINT, Types.INTEGER, Types.BIGINT, Types.REAL, Types.DOUBLE, Types.NUMERIC,
        Types.VARCHAR, Types.VARCHAR, Types.BINARY, Types.DATE, Types.TIME, Types.TIMESTAMP, Types.TIMESTAMP_WITH_TIMEZONE, Types.OTHER};

    static void set(PreparedStatement s, int place, Object value, int type) throws SQLException {
        if (value == null) s.setNull(place, type);
        else if (value instanceof byte[] && mode.equals("simple")) {
            // The driver's simple mode writes parameters into the text and knows no literal for setBytes.
            StringBuilder hex = new StringBuilder("\\x");
            for (byte b : (byte[]) value) hex.append(String.format("%02x", b));
            PGobject literal = new PGobject();
            literal.setType("bytea");
            literal.setValue(hex.toString());
            s.setObject(place, literal);
        } else if (value instanceof byte[]) s.setBytes(place, (byte[]) value);
        else s.setObject(place, value);
    }

    static String list(ResultSet rs, String... columns) throws SQLException {
        List<String> rows = new ArrayList<>();
        while (rs.next()) {
            StringJoiner line = new StringJoiner("/");
            for (String c : columns) line.add(rs.getString(c));
            rows.add(line.toString());
        }
        rs.close();
        return String.join(" ", rows);
    }

    static String state(Connection c, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement s = c.prepareStatement(sql)) {
            for (int i = 0; i < parameters.length; i++) s.setObject(i + 1, parameters[i]);
            s.execute();
            return "no error";
        } catch (SQLException e) {
            return e.getSQLState();
        }
    }

    static void run(String url, Properties properties, boolean simple) throws Exception {
        Connection c = DriverManager.getConnection(url, properties);
        Statement st = c.createStatement();
        ResultSet version = st.executeQuery("SELECT version()");
        version.next();
        boolean postgres = !version.getString(1).toLowerCase().contains("millstream");
        st.execute("DROP SCHEMA IF EXISTS " + SCHEMA + " CASCADE");
        st.execute("CREATE SCHEMA " + SCHEMA);
        st.execute("SET search_path = " + SCHEMA);
        StringJoiner definition = new StringJoiner(", ");
        for (String[] column : COLUMNS) definition.add(column[0] + " " + column[1]);
        st.execute("CREATE TABLE every (id int4 PRIMARY KEY, " + definition + ")");
        st.execute("CREATE TABLE orders (id int4, line int4, customer varchar(20) NOT NULL, amount numeric(10,2) DEFAULT 0, PRIMARY KEY (id, line))");
        st.execute("CREATE VIEW large AS SELECT id, amount FROM orders WHERE amount > 10");
        st.execute("CREATE MATERIALIZED VIEW totals AS SELECT customer, count(*) AS n, sum(amount) AS total FROM orders GROUP BY customer");

        try (PreparedStatement s = c.prepareStatement("INSERT INTO every VALUES (?" + ", ?".repeat(15) + ")")) {
            int id = 0;
            for (Map.Entry<String, Object[]> e : ROWS.entrySet()) {
                id++;
                s.setInt(1, id);
                for (int i = 0; i < 15; i++) set(s, i + 2, e.getValue()[i], JDBC_TYPES[i]);
                check("insert " + e.getKey() + " row", 1, s::executeUpdate);
            }
            if (!simple) {
                check("parameter metadata", "int4 bool int2 int4 int8 float4 float8 numeric text varchar bytea date time timestamp timestamptz interval", () -> {
                    StringJoiner names = new StringJoiner(" ");
                    try (PreparedStatement fresh = c.prepareStatement("INSERT INTO every VALUES (?" + ", ?".repeat(15) + ")")) {
                        ParameterMetaData m = fresh.getParameterMetaData();
                        for (int i = 1; i <= m.getParameterCount(); i++) names.add(m.getParameterTypeName(i));
                    }
                    return names.toString();
                });
            }
        }
        for (int i = 0; i < 15; i++) {
            final int place = i;
            String type = COLUMNS[i][1];
            try (PreparedStatement s = c.prepareStatement("SELECT " + COLUMNS[i][0] + " FROM every WHERE id = ?")) {
                for (int repeat = 0; repeat < 2; repeat++) {
                    int id = 0;
                    for (Map.Entry<String, Object[]> e : ROWS.entrySet()) {
                        final int key = ++id;
                        check("read " + type + " of " + e.getKey() + " row" + (repeat == 0 ? "" : ", again"), e.getValue()[place], () -> {
                            s.setInt(1, key);
                            try (ResultSet rs = s.executeQuery()) {
                                if (!rs.next()) return "no row";
                                return read(rs, 1, type);
                            }
                        });
                    }
                }
            }
            check("find by " + type + " parameter", 1, () -> {
                try (PreparedStatement s = c.prepareStatement("SELECT id FROM every WHERE " + COLUMNS[place][0] + " = ? AND id = 1")) {
                    set(s, 1, ROWS.get("ordinary")[place], JDBC_TYPES[place]);
                    try (ResultSet rs = s.executeQuery()) {
                        return rs.next() ? (Object) rs.getInt(1) : "no row";
                    }
                }
            });
        }
        check("result metadata",
            "int4 bool int2 int4 int8 float4 float8 numeric text varchar bytea date time timestamp timestamptz interval 10,2 10", () -> {
                try (ResultSet rs = st.executeQuery("SELECT * FROM every")) {
                    ResultSetMetaData m = rs.getMetaData();
                    StringJoiner names = new StringJoiner(" ");
                    for (int i = 1; i <= m.getColumnCount(); i++) names.add(m.getColumnTypeName(i));
                    return names + " " + m.getPrecision(8) + "," + m.getScale(8) + " " + m.getPrecision(10);
                }
            });
        check("batch insert", 30, () -> {
            try (PreparedStatement s = c.prepareStatement("INSERT INTO orders VALUES (?, ?, ?, ?)")) {
                for (int i = 0; i < 30; i++) {
                    s.setInt(1, i);
                    s.setInt(2, 1);
                    s.setString(3, "abc".substring(i % 3, i % 3 + 1));
                    s.setBigDecimal(4, new BigDecimal(i));
                    s.addBatch();
                }
                return Arrays.stream(s.executeBatch()).sum();
            }
        });
        if (postgres) st.execute("REFRESH MATERIALIZED VIEW totals");
        try (PreparedStatement s = c.prepareStatement("SELECT customer, n, total FROM totals WHERE customer = ?")) {
            for (int i = 0; i < 8; i++) {
                check("materialized view by key, run " + (i + 1), "a/10/135.00", () -> {
                    s.setString(1, "a");
                    return list(s.executeQuery(), "customer", "n", "total");
                });
            }
        }
        check("update", 1, () -> {
            try (PreparedStatement s = c.prepareStatement("UPDATE orders SET amount = amount + ? WHERE id = ? AND line = ?")) {
                s.setBigDecimal(1, new BigDecimal("0.50"));
                s.setInt(2, 0);
                s.setInt(3, 1);
                return s.executeUpdate();
            }
        });
        check("delete", 1, () -> {
            try (PreparedStatement s = c.prepareStatement("DELETE FROM orders WHERE id = ?")) {
                s.setInt(1, 29);
                return s.executeUpdate();
            }
        });
        check("23505 duplicate key", "23505", () -> state(c, "INSERT INTO orders VALUES (?, 1, 'a', 1)", 1));
        check("23502 not null", "23502", () -> state(c, "INSERT INTO orders VALUES (?, 1, null, 1)", 100));
        check("22012 division by zero", "22012", () -> state(c, "SELECT 1 / ?", 0));
        check("22001 too long", "22001", () -> state(c, "INSERT INTO every (id, v) VALUES (1001, ?)", "x".repeat(11)));
        check("42P01 no such table", "42P01", () -> state(c, "SELECT * FROM nowhere WHERE id = ?", 1));
        check("42703 no such column", "42703", () -> state(c, "SELECT nothing FROM orders WHERE id = ?", 1));
        check("42601 syntax", "42601", () -> state(c, "SELEC 1"));
        for (boolean commit : new boolean[] {true, false}) {
            int key = commit ? 501 : 502;
            check(commit ? "commit" : "rollback", commit ? 1L : 0L, () -> {
                c.setAutoCommit(false);
                try (PreparedStatement s = c.prepareStatement("INSERT INTO orders VALUES (?, 1, 't', 1)")) {
                    s.setInt(1, key);
                    s.executeUpdate();
                    if (commit) c.commit(); else c.rollback();
                } finally {
                    c.rollback();
                    c.setAutoCommit(true);
                }
                try (ResultSet rs = st.executeQuery("SELECT count(*) FROM orders WHERE id = " + key)) {
                    rs.next();
                    return rs.getLong(1);
                }
            });
        }
        check("fetch size", 29, () -> {
            c.setAutoCommit(false);
            int rows = 0;
            try (PreparedStatement s = c.prepareStatement("SELECT * FROM orders WHERE id < ? ORDER BY id")) {
                s.setFetchSize(7);
                s.setInt(1, 29);
                try (ResultSet rs = s.executeQuery()) {
                    while (rs.next()) if (rs.getInt(1) == rows) rows++;
                }
            } finally {
                c.commit();
                c.setAutoCommit(true);
            }
            return rows;
        });
        check("read-only transaction at serializable", "t", () -> {
            c.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
            c.setReadOnly(true);
            try (ResultSet rs = st.executeQuery("SELECT true")) {
                rs.next();
                return rs.getString(1);
            } finally {
                c.setReadOnly(false);
            }
        });
        check("array parameter", "1 2", () -> {
            try (PreparedStatement s = c.prepareStatement("SELECT id FROM every WHERE id = ANY(?) ORDER BY id")) {
                s.setArray(1, c.createArrayOf("int4", new Object[] {1, 2, 999}));
                return list(s.executeQuery(), "id");
            }
        });
        check("isValid", true, () -> c.isValid(5));
        check("getSchema", SCHEMA, c::getSchema);
        DatabaseMetaData m = c.getMetaData();
        check("getTables names and types", "every/TABLE orders/TABLE", () ->
            list(m.getTables(null, SCHEMA, "%", new String[] {"TABLE"}), "TABLE_NAME", "TABLE_TYPE"));
        check("getTables of views", "totals/MATERIALIZED VIEW large/VIEW", () ->
            list(m.getTables(null, SCHEMA, "%", new String[] {"VIEW", "MATERIALIZED VIEW"}), "TABLE_NAME", "TABLE_TYPE"));
        check("getColumns", "id/int4/10/0/1 line/int4/10/0/2 customer/varchar/20/0/3 amount/numeric/10/1/4", () ->
            list(m.getColumns(null, SCHEMA, "orders", "%"), "COLUMN_NAME", "TYPE_NAME", "COLUMN_SIZE", "NULLABLE", "ORDINAL_POSITION"));
        check("getColumns default", "0", () -> list(m.getColumns(null, SCHEMA, "orders", "amount"), "COLUMN_DEF"));
        check("getColumns of every type", "16", () -> list(m.getColumns(null, SCHEMA, "every", "%"), "TYPE_NAME").split(" ").length + "");
        check("getPrimaryKeys", "id/1 line/2", () -> list(m.getPrimaryKeys(null, SCHEMA, "orders"), "COLUMN_NAME", "KEY_SEQ"));
        check("getIndexInfo", "id line", () -> list(m.getIndexInfo(null, SCHEMA, "orders", true, false), "COLUMN_NAME"));
        check("getSchemas", true, () -> list(m.getSchemas(), "TABLE_SCHEM").contains(SCHEMA));
        check("getCatalogs", true, () -> !list(m.getCatalogs(), "TABLE_CAT").isEmpty());
        check("getTypeInfo", true, () -> list(m.getTypeInfo(), "TYPE_NAME").contains("timestamptz"));
        check("getTableTypes", true, () -> list(m.getTableTypes(), "TABLE_TYPE").contains("MATERIALIZED VIEW"));
        check("getImportedKeys", "", () -> list(m.getImportedKeys(null, SCHEMA, "orders"), "FKTABLE_NAME"));
        check("getFunctions", "", () -> list(m.getFunctions(null, SCHEMA, "%"), "FUNCTION_NAME"));
        check("getProcedures", "", () -> list(m.getProcedures(null, SCHEMA, "%"), "PROCEDURE_NAME"));
        check("getBestRowIdentifier", "id line", () ->
            list(m.getBestRowIdentifier(null, SCHEMA, "orders", DatabaseMetaData.bestRowSession, false), "COLUMN_NAME"));
        check("getTablePrivileges", true, () -> list(m.getTablePrivileges(null, SCHEMA, "orders"), "TABLE_NAME", "PRIVILEGE") != null);
        check("getDatabaseProductName", "PostgreSQL", m::getDatabaseProductName);
        CopyManager copy = ((PGConnection) c).getCopyAPI();
        check("COPY FROM STDIN", 2L, () -> copy.copyIn("COPY orders FROM STDIN WITH (FORMAT csv)", new StringReader("700,1,x,1.5\n701,1,\"y,z\",\n")));
        check("COPY TO STDOUT", "700,1,x,1.50\n701,1,\"y,z\",\n", () -> {
            StringWriter out = new StringWriter();
            copy.copyOut("COPY (SELECT * FROM orders WHERE id >= 700 ORDER BY id) TO STDOUT WITH (FORMAT csv)", out);
            return out.toString();
        });
        check("drop schema", false, () -> st.execute("DROP SCHEMA " + SCHEMA + " CASCADE"));
        c.close();
    }

    public static void main(String[] args) throws Exception {
        TimeZone.setDefault(TimeZone.getTimeZone("UTC"));
        String url = "jdbc:postgresql://" + args[0] + ":" + args[1] + "/" + args[2];
        String[][] modes = {
            {"text", "binaryTransfer", "false", "prepareThreshold", "1"},
            {"binary", "binaryTransfer", "true", "prepareThreshold", "-1"},
            {"simple", "preferQueryMode", "simple"},
            {"default"}};
        for (String[] each : modes) {
            mode = each[0];
            Properties properties = new Properties();
            properties.setProperty("user", args[3]);
            for (int i = 1; i < each.length; i += 2) properties.setProperty(each[i], each[i + 1]);
            try {
                run(url, properties, mode.equals("simple"));
            } catch (Throwable e) {
                failures++;
                System.out.println("FAIL jdbc " + mode + ": stopped: " + e.toString().replace('\n', ' '));
            }
        }
        System.out.println("jdbc: " + failures + " failed");
        System.exit(failures == 0 ? 0 : 1);
    }
}
