//! Schemas, databases, roles and functions.

use catalog::snapshot::{BOOTSTRAP_ROLE_OID, PG_CATALOG_OID};

use super::Fill;
use crate::system::Snapshot;
use crate::system::registry::functions_by_name;
use crate::system::rows::{Cell, Rows};

/// What PostgreSQL shows in place of a password.
const NO_PASSWORD: &str = "********";

pub fn filler(name: &str) -> Option<Fill> {
    Some(match name {
        "pg_namespace" => pg_namespace,
        "pg_database" => pg_database,
        "pg_roles" => pg_roles,
        "pg_authid" => pg_authid,
        "pg_user" | "pg_shadow" => pg_user,
        "pg_proc" => pg_proc,
        _ => return None,
    })
}

fn pg_namespace(s: &Snapshot, rows: &mut Rows) {
    for n in s.namespaces() {
        rows.push([("oid", n.oid.into()), ("nspname", n.name.into()), ("nspowner", n.owner.into())]);
    }
}

fn pg_database(s: &Snapshot, rows: &mut Rows) {
    for d in s.catalog.databases() {
        rows.push([
            ("oid", d.oid.into()),
            ("datname", (&d.name).into()),
            ("datdba", s.role_oid(&d.owner).into()),
            ("encoding", 6.into()),
            ("datlocprovider", "c".into()),
            ("datistemplate", false.into()),
            ("datallowconn", true.into()),
            ("datconnlimit", (-1).into()),
            ("dattablespace", 1663.into()),
            ("datcollate", "C".into()),
            ("datctype", "C.UTF-8".into()),
        ]);
    }
}

fn pg_roles(s: &Snapshot, rows: &mut Rows) {
    for r in s.roles() {
        rows.push([
            ("rolname", r.name.into()),
            ("rolsuper", r.superuser.into()),
            ("rolinherit", true.into()),
            ("rolcreaterole", r.superuser.into()),
            ("rolcreatedb", r.superuser.into()),
            ("rolcanlogin", r.login.into()),
            ("rolreplication", false.into()),
            ("rolconnlimit", (-1).into()),
            ("rolpassword", NO_PASSWORD.into()),
            ("rolbypassrls", r.superuser.into()),
            ("oid", r.oid.into()),
        ]);
    }
}

fn pg_authid(s: &Snapshot, rows: &mut Rows) {
    for r in s.roles() {
        rows.push([
            ("oid", r.oid.into()),
            ("rolname", r.name.into()),
            ("rolsuper", r.superuser.into()),
            ("rolinherit", true.into()),
            ("rolcreaterole", r.superuser.into()),
            ("rolcreatedb", r.superuser.into()),
            ("rolcanlogin", r.login.into()),
            ("rolbypassrls", r.superuser.into()),
            ("rolconnlimit", (-1).into()),
        ]);
    }
}

fn pg_user(s: &Snapshot, rows: &mut Rows) {
    for r in s.roles().into_iter().filter(|r| r.login) {
        rows.push([
            ("usename", r.name.into()),
            ("usesysid", r.oid.into()),
            ("usecreatedb", r.superuser.into()),
            ("usesuper", r.superuser.into()),
            ("userepl", false.into()),
            ("usebypassrls", r.superuser.into()),
            ("passwd", NO_PASSWORD.into()),
        ]);
    }
}

/// First OID of the input and output functions of the types.
const FIRST_IO_FUNCTION_OID: u32 = 10_000;
/// First OID of the functions, which are numbered in the order in which the server lists them.
pub const FIRST_FUNCTION_OID: u32 = 11_000;

fn pg_proc(_: &Snapshot, rows: &mut Rows) {
    for (i, name) in super::types::io_function_names().into_iter().enumerate() {
        rows.push([
            ("oid", (FIRST_IO_FUNCTION_OID + i as u32).into()),
            ("proname", name.clone().into()),
            ("pronamespace", PG_CATALOG_OID.into()),
            ("proowner", BOOTSTRAP_ROLE_OID.into()),
            ("prolang", 12.into()),
            ("procost", Cell::Float(1.0)),
            ("prokind", "f".into()),
            ("proisstrict", true.into()),
            ("provolatile", "i".into()),
            ("proparallel", "s".into()),
            ("pronargs", 1.into()),
            ("prorettype", catalog::types::oid::RECORD.into()),
            ("proargtypes", vec![0i64].into()),
            ("prosrc", name.into()),
        ]);
    }
    for (i, f) in functions_by_name().iter().enumerate() {
        rows.push([
            ("oid", (FIRST_FUNCTION_OID + i as u32).into()),
            ("proname", (&f.name).into()),
            ("pronamespace", PG_CATALOG_OID.into()),
            ("proowner", BOOTSTRAP_ROLE_OID.into()),
            ("prolang", 12.into()),
            ("procost", Cell::Float(1.0)),
            ("prokind", f.kind.into()),
            ("proisstrict", false.into()),
            ("provolatile", "i".into()),
            ("proparallel", "s".into()),
            ("pronargs", f.arguments.len().into()),
            ("prorettype", f.result.into()),
            ("proargtypes", f.arguments.iter().map(|o| i64::from(*o)).collect::<Vec<_>>().into()),
            ("prosrc", (&f.name).into()),
        ]);
    }
}
