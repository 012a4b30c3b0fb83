//! The types `regclass`, `regtype`, `regnamespace`, `regrole`, `regproc`: names that are numbers.
//!
//! A value of such a type is held as its OID. [`rewrite`](crate::system::rewrite) turns `x::regclass` into
//! `regclass_number(x)` and, where the value is shown or made text, into `regclass_name(…)`.

use arrow::array::ArrayRef;
use catalog::types::{self, format_type};
use flow::identifier::quote;
use flow::{Error, Result, SqlState};

use super::{Arguments, Definition, OID, TEXT, ints, stable, texts};
use crate::system::Snapshot;
use crate::system::content::{self, primary_key_index};
use crate::system::layout;
use crate::system::registry::functions_by_name;

pub(super) const FUNCTIONS: &[Definition] = &[
    stable("regclass_number", OID, |s, a| numbers(a, |name| class(s, name), CLASS)),
    stable("regtype_number", OID, |_, a| numbers(a, type_number, TYPE)),
    stable("regnamespace_number", OID, |s, a| numbers(a, |name| namespace(s, name), NAMESPACE)),
    stable("regrole_number", OID, |s, a| numbers(a, |name| role(s, name), ROLE)),
    stable("regproc_number", OID, |_, a| numbers(a, function, FUNCTION)),
    stable("regclass_name", TEXT, |s, a| names(a, |oid| class_name(s, oid))),
    stable("regtype_name", TEXT, |_, a| {
        names(a, |oid| u32::try_from(oid).ok().filter(type_exists).map(|o| format_type(o, -1)))
    }),
    stable("regnamespace_name", TEXT, |s, a| names(a, |oid| namespace_name(s, oid))),
    stable("regrole_name", TEXT, |s, a| names(a, |oid| role_name(s, oid))),
    stable("regproc_name", TEXT, |_, a| names(a, function_name)),
    stable("to_regclass", OID, |s, a| lenient(a, |name| class(s, name))),
    stable("to_regtype", OID, |_, a| lenient(a, type_number)),
    stable("to_regnamespace", OID, |s, a| lenient(a, |name| namespace(s, name))),
    stable("to_regrole", OID, |s, a| lenient(a, |name| role(s, name))),
    stable("to_regproc", OID, |_, a| lenient(a, function)),
];

/// What a name that means nothing is called in the error, and the error's state.
type Kind = (&'static str, SqlState);

const CLASS: Kind = ("relation", SqlState::UndefinedTable);
const TYPE: Kind = ("type", SqlState::UndefinedObject);
const NAMESPACE: Kind = ("schema", SqlState::InvalidSchemaName);
const ROLE: Kind = ("role", SqlState::UndefinedObject);

const FUNCTION: Kind = ("function", SqlState::UndefinedFunction);

/// A name, number or dash as an OID.
fn number(text: &str, find: impl Fn(&str) -> Option<i64>, kind: Kind) -> Result<i64> {
    match text.trim() {
        "-" => Ok(0),
        digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse::<u32>().map(i64::from).map_err(|_| {
                Error::new(SqlState::NumericValueOutOfRange, format!("value \"{digits}\" is out of range for type oid"))
            })
        }
        name => find(name).ok_or_else(|| Error::new(kind.1, format!("{} \"{name}\" does not exist", kind.0))),
    }
}

fn numbers(a: &Arguments, find: impl Fn(&str) -> Option<i64>, kind: Kind) -> Result<ArrayRef> {
    Ok(ints(oids(a, 0, find, kind)?))
}

fn oids(a: &Arguments, i: usize, find: impl Fn(&str) -> Option<i64>, kind: Kind) -> Result<Vec<Option<i64>>> {
    if a.is_text(i) {
        return a.texts(i)?.iter().map(|text| text.map(|t| number(t, &find, kind)).transpose()).collect();
    }
    Ok(a.ints(i)?.iter().collect())
}

/// Argument `i` as OIDs of relations, whether it came as numbers or as names.
pub(super) fn relation_oids(s: &Snapshot, a: &Arguments, i: usize) -> Result<Vec<Option<i64>>> {
    oids(a, i, |name| class(s, name), CLASS)
}

fn names(a: &Arguments, find: impl Fn(i64) -> Option<String>) -> Result<ArrayRef> {
    // Text that is a name already stays as it is.
    if a.is_text(0) {
        return Ok(texts(a.texts(0)?.iter()));
    }
    a.text_of_oid(|oid| Some(if oid == 0 { "-".to_string() } else { find(oid).unwrap_or_else(|| oid.to_string()) }))
}

/// `to_regclass`: NULL instead of an error.
fn lenient(a: &Arguments, find: impl Fn(&str) -> Option<i64>) -> Result<ArrayRef> {
    Ok(ints(a.texts(0)?.iter().map(|name| name.and_then(|n| find(n.trim())))))
}

/// The parts of a dotted name, folded where not quoted; none when it is malformed.
fn split(name: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = name.trim();
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut part = String::new();
                let mut chars = quoted.char_indices().peekable();
                let end = loop {
                    match chars.next()? {
                        (_, '"') if chars.peek().is_some_and(|(_, c)| *c == '"') => {
                            chars.next();
                            part.push('"');
                        }
                        (at, '"') => break at + 1,
                        (_, c) => part.push(c),
                    }
                };
                (part, &quoted[end..])
            }
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                (rest[..end].trim().to_lowercase(), &rest[end..])
            }
        };
        if part.is_empty() {
            return None;
        }
        parts.push(part);
        match after.trim_start().strip_prefix('.') {
            Some(more) => rest = more.trim_start(),
            None if after.trim().is_empty() => return Some(parts),
            None => return None,
        }
    }
}

/// OID of the relation or index that a possibly qualified name means.
fn class(s: &Snapshot, name: &str) -> Option<i64> {
    let mut parts = split(name)?;
    if parts.len() == 3 && parts.first() == Some(&s.session.database) {
        parts.remove(0);
    }
    let in_schema = |schema: &str, name: &str| -> Option<i64> {
        if let Some(r) = layout::relation(schema, name) {
            return Some(r.oid.into());
        }
        if let Some(r) = s.catalog.relation_named(&s.session.database, schema, name) {
            return Some(r.oid.0.into());
        }
        let indexes = s.catalog.relations_in(&s.session.database, schema).filter_map(|r| primary_key_index(r));
        indexes.into_iter().find(|i| i.name == name).map(|i| i.oid.into())
    };
    match &parts[..] {
        [name] => {
            let path = s.session.search_path.iter().map(String::as_str);
            let implicit = (!s.session.search_path.iter().any(|p| p == "pg_catalog")).then_some("pg_catalog");
            implicit.into_iter().chain(path).find_map(|schema| in_schema(schema, name))
        }
        [schema, name] => in_schema(schema, name),
        _ => None,
    }
}

/// The name of a relation or index, qualified where the search path does not find it.
fn class_name(s: &Snapshot, oid: i64) -> Option<String> {
    let (schema, name) = if let Some(r) = s.readable_by_oid(oid) {
        (r.schema.as_str(), r.name.as_str())
    } else if let Some(r) = layout::relations().find(|r| i64::from(r.oid) == oid) {
        (r.schema, r.name)
    } else {
        let index = s.readable().filter_map(|r| primary_key_index(r)).find(|i| i64::from(i.oid) == oid)?;
        (index.table.schema.as_str(), index.name)
    };
    let quoted = quote(name);
    Some(match s.is_visible(schema, name) {
        true => quoted.into_owned(),
        false => format!("{}.{quoted}", quote(schema)),
    })
}

fn type_number(name: &str) -> Option<i64> {
    let (oid, _) = types::parse(name).or_else(|| {
        let element = name.trim().strip_prefix('_')?;
        types::TYPES.iter().find(|t| t.name == element && t.array_oid != 0).map(|t| (t.array_oid, -1))
    })?;
    Some(oid.into())
}

fn type_exists(oid: &u32) -> bool {
    types::by_oid(*oid).is_some() || types::element_of(*oid).is_some()
}

fn namespace(s: &Snapshot, name: &str) -> Option<i64> {
    let parts = split(name)?;
    let [name] = &parts[..] else { return None };
    Some(s.namespace_oid(name)).filter(|oid| *oid != 0).map(i64::from)
}

fn namespace_name(s: &Snapshot, oid: i64) -> Option<String> {
    let found = s.namespaces().into_iter().find(|n| i64::from(n.oid) == oid)?;
    Some(quote(&found.name).into_owned())
}

fn role(s: &Snapshot, name: &str) -> Option<i64> {
    let parts = split(name)?;
    let [name] = &parts[..] else { return None };
    s.roles().into_iter().find(|r| r.name == *name).map(|r| r.oid.into())
}

fn role_name(s: &Snapshot, oid: i64) -> Option<String> {
    let found = s.roles().into_iter().find(|r| i64::from(r.oid) == oid)?;
    Some(quote(&found.name).into_owned())
}

fn function(name: &str) -> Option<i64> {
    let parts = split(name)?;
    let name = parts.last()?;
    let position = functions_by_name().iter().position(|f| f.name == *name)?;
    Some(i64::from(content::FIRST_FUNCTION_OID) + position as i64)
}

fn function_name(oid: i64) -> Option<String> {
    let number = usize::try_from(oid - i64::from(content::FIRST_FUNCTION_OID)).ok()?;
    functions_by_name().get(number).map(|f| f.name.clone())
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn dotted_names_are_split_and_folded() {
        let parts = |text: &str| split(text).map(|p| p.join("|"));
        assert_eq!(parts("Orders").as_deref(), Some("orders"));
        assert_eq!(parts("Sales.\"Odd.\"\"Name\"").as_deref(), Some("sales|Odd.\"Name"));
        assert_eq!(parts(" a . b ").as_deref(), Some("a|b"));
        assert_eq!(parts("a."), None);
        assert_eq!(parts("\"a"), None);
        assert_eq!(parts("\"a\"b"), None);
    }
}
