-- What psql's backslash commands send, and what its -E shows. run.sh checks the answers.
\set ON_ERROR_STOP 0
SET client_min_messages = warning;
DROP SCHEMA IF EXISTS client_psql CASCADE;
CREATE SCHEMA client_psql;
SET search_path = client_psql;
CREATE TABLE orders (id int8 PRIMARY KEY, customer varchar(10) NOT NULL, amount numeric(10,2) DEFAULT 0, at timestamptz, tags text[]);
CREATE VIEW large AS SELECT id, amount FROM orders WHERE amount > 100;
CREATE MATERIALIZED VIEW totals AS SELECT customer, count(*) AS n, sum(amount) AS total FROM orders GROUP BY customer;
\pset pager off
\echo == d
\d
\echo == d+
\d+
\echo == dt
\dt
\echo == dt+
\dt+
\echo == dt pattern
\dt client_psql.*
\echo == dv
\dv
\echo == dm
\dm
\echo == di
\di
\echo == ds
\ds
\echo == d table
\d orders
\echo == d+ table
\d+ orders
\echo == d view
\d large
\echo == d+ view
\d+ large
\echo == d materialized
\d totals
\echo == d+ materialized
\d+ totals
\echo == d nothing
\d nowhere
\echo == df
\df
\echo == df pattern
\df client_psql.*
\echo == df builtin
\df pg_catalog.length
\echo == l
\l
\echo == dn
\dn
\echo == dn+
\dn+
\echo == du
\du
\echo == dT
\dT client_psql.*
\echo == dS
\dt pg_catalog.pg_class
\echo == dp
\dp orders
\echo == dx
\dx
\echo == conninfo
\conninfo
\echo == encoding
\encoding
\echo == gdesc
SELECT id, customer, amount, at, tags FROM orders \gdesc
\echo == end
DROP SCHEMA client_psql CASCADE;
