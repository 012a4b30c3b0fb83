//! The stored form of a view's query, and SHOW CREATE.
//!
//! A stored definition names every relation by its id and the number of columns it had, as the quoted identifier `"#17:3"`
//! with the relation's name at the time as alias. So it means the same after a rename, in another session and with another search path. To a reader it is
//! shown with the names of now.

use std::fmt::Write;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, Ident, ObjectName, ObjectNamePart, Query, SetExpr, TableFactor, Value, VisitorMut,
};
use flow::{Error, RelationId, Result};

use crate::context::undefined_table;
use crate::limits::with_large_stack;
use crate::names::{self, Source, quote};
use crate::resolver::Resolver;
use crate::rewrite::{select_all, table_alias};
use crate::statement::Name;
use crate::walk::Walk;

/// A definition to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    pub text: String,
    /// The relations that the text names, without repetition: what the view depends on.
    pub relations: Vec<RelationId>,
}

/// The id in a stored relation name, and how many columns the relation had when the definition was written: a `*` in it
/// means those, also when more have been added since.
pub(crate) fn marker_id(name: &str) -> Option<(RelationId, Option<usize>)> {
    let (id, width) = match name.strip_prefix('#')?.split_once(':') {
        Some((id, width)) => (id, Some(width.parse().ok()?)),
        None => (name.strip_prefix('#')?, None),
    };
    Some((RelationId(id.parse().ok()?), width))
}

/// A stored definition that reads a relation of `from` columns, for when the relation will have another number of columns:
/// with `to`, the definition is to see so many of them.
pub fn resized(text: &str, relation: RelationId, from: usize, to: usize) -> String {
    let now = format!("\"#{relation}:{to}\"");
    // Definitions of old carry no number.
    text.replace(&format!("\"#{relation}\""), &now).replace(&format!("\"#{relation}:{from}\""), &now)
}

/// The stored form of `query`, which was parsed from `source`.
///
/// Errors: `42P01` with the position of a relation that does not exist.
pub fn qualify(query: &Query, source: &str, resolver: &dyn Resolver) -> Result<Definition> {
    with_large_stack(|| {
        let mut query = query.clone();
        let text = Source::new(source);
        let mut relations = Vec::new();
        Qualifier { resolver, source: &text, scopes: Vec::new(), relations: &mut relations, known: Vec::new() }
            .run(&mut query)?;
        relations.sort();
        relations.dedup();
        Ok(Definition { text: printed(&mut query), relations })
    })
}

/// Names of the relations that a query reads directly, CTEs aside, each once.
pub fn referenced_relations(query: &Query, source: &str, resolver: &dyn Resolver) -> Result<Vec<RelationId>> {
    Ok(qualify(query, source, resolver)?.relations)
}

/// A stored definition with the names of now. `name_of` gives a relation's name, qualified as far as it should be shown.
pub fn display(text: &str, name_of: &dyn Fn(RelationId) -> Option<Name>) -> Result<String> {
    with_large_stack(|| {
        let mut query = crate::parse_query(text)?;
        let mut namer = Namer { name_of };
        query.walk_mut(&mut namer);
        Ok(printed(&mut query))
    })
}

/// The text of a query, which reads as the query. The parser prints `- -3` as `--3`, which would begin a comment.
fn printed(query: &mut Query) -> String {
    struct Signs;

    impl VisitorMut for Signs {
        type Break = ();

        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::UnaryOp { expr: inner, .. } = expr
                && matches!(inner.as_ref(), Expr::UnaryOp { .. })
            {
                let signed = std::mem::replace(inner.as_mut(), Expr::Value(Value::Null.into()));
                **inner = Expr::Nested(Box::new(signed));
            }
            ControlFlow::Continue(())
        }
    }

    query.walk_mut(&mut Signs);
    query.to_string()
}

struct Qualifier<'a> {
    resolver: &'a dyn Resolver,
    source: &'a Source<'a>,
    /// Names of the CTEs in scope, by query.
    scopes: Vec<Vec<String>>,
    relations: &'a mut Vec<RelationId>,
    /// (schema, name) of relations seen, to shorten `schema.table.column`.
    known: Vec<(String, String)>,
}

impl Qualifier<'_> {
    fn run(&mut self, query: &mut Query) -> Result<()> {
        query.try_walk_mut(self)
    }

    fn is_cte(&self, name: &str) -> bool {
        self.scopes.iter().flatten().any(|n| n == name)
    }

    /// The ids in place of a relation's name and alias.
    fn replace(&mut self, name: &mut ObjectName) -> Result<Option<String>> {
        let written = names::relation_name(name, self.source)?;
        let bare = written.schema.is_none();
        if bare && (marker_id(&written.name).is_some() || self.is_cte(&written.name)) {
            return Ok(None);
        }
        let relation = self.resolver.relation(&written).ok_or_else(|| {
            let error = undefined_table(&written.to_string(), &written.name, self.resolver);
            if written.position > 0 { error.with_position(written.position) } else { error }
        })?;
        self.relations.push(relation.id);
        self.known.push((relation.schema.clone(), relation.name.clone()));
        let marker = Ident::with_quote('"', format!("#{}:{}", relation.id, relation.columns.len()));
        name.0 = vec![ObjectNamePart::Identifier(marker)];
        Ok(Some(written.name))
    }
}

impl VisitorMut for Qualifier<'_> {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        self.scopes.push(Vec::new());
        if let Some(with) = &mut query.with {
            // A CTE sees those before it, and itself only if RECURSIVE. The visitor will come to these queries again;
            // by then what is a relation has its id, and the rest is a CTE.
            for cte in &mut with.cte_tables {
                let name = names::fold(&cte.alias.name);
                if with.recursive
                    && let Some(scope) = self.scopes.last_mut()
                {
                    scope.push(name.clone());
                }
                if let Err(error) = self.run(&mut cte.query) {
                    return ControlFlow::Break(Box::new(error));
                }
                if let Some(scope) = self.scopes.last_mut() {
                    scope.push(name);
                }
            }
        }
        let mut pending = vec![query.body.as_mut()];
        while let Some(body) = pending.pop() {
            match body {
                SetExpr::SetOperation { left, right, .. } => pending.extend([left.as_mut(), right.as_mut()]),
                SetExpr::Table(table) => {
                    let parts = [table.schema_name.take(), table.table_name.take()];
                    let parts = parts.into_iter().flatten().map(|p| ObjectNamePart::Identifier(Ident::new(p)));
                    *body = select_all(ObjectName(parts.collect()));
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Self::Break> {
        self.scopes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Self::Break> {
        let TableFactor::Table { name, alias, args: None, .. } = factor else {
            return ControlFlow::Continue(());
        };
        match self.replace(name) {
            Ok(Some(written)) => {
                alias.get_or_insert_with(|| table_alias(&written));
                ControlFlow::Continue(())
            }
            Ok(None) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Box::new(error)),
        }
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        // `public.orders.id`: the alias has no schema any more.
        if let Expr::CompoundIdentifier(parts) = expr
            && parts.len() >= 3
        {
            let at = parts.len() - 3;
            let (schema, table) = (names::fold(&parts[at]), names::fold(&parts[at + 1]));
            if self.known.iter().any(|(s, t)| *s == schema && *t == table) {
                parts.drain(..=at);
            }
        }
        ControlFlow::Continue(())
    }
}

struct Namer<'a> {
    name_of: &'a dyn Fn(RelationId) -> Option<Name>,
}

impl VisitorMut for Namer<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, alias, args: None, .. } = factor
            && let Some(id) = name.0.first().and_then(|p| p.as_ident()).and_then(|i| marker_id(&i.value))
            && let Some(now) = (self.name_of)(id.0)
        {
            if alias.as_ref().is_some_and(|a| a.name.value == now.name && a.columns.is_empty()) {
                *alias = None;
            } else if let Some(alias) = alias {
                alias.name = plain_ident(&alias.name.value);
            }
            let parts = [now.database, now.schema, Some(now.name)];
            name.0 = parts.into_iter().flatten().map(|p| ObjectNamePart::Identifier(plain_ident(&p))).collect();
        }
        ControlFlow::Continue(())
    }
}

/// Quoted only where needed.
fn plain_ident(name: &str) -> Ident {
    if quote(name) == name { Ident::new(name) } else { Ident::with_quote('"', name) }
}

/// The text of a query in one canonical form: keywords upper case, spaces single.
pub fn canonical_query_text(text: &str) -> Result<String> {
    with_large_stack(|| Ok(printed(&mut *crate::parse_query(text)?)))
}

/// `CREATE [MATERIALIZED] VIEW name (columns) [WITH (options)] AS query`, as SHOW CREATE gives it. `query` is from
/// [`display`].
pub fn create_view_text(
    name: &Name,
    materialized: bool,
    columns: &[String],
    options: &[(String, String)],
    query: &str,
) -> String {
    let kind = if materialized { "MATERIALIZED VIEW" } else { "VIEW" };
    let columns: Vec<String> = columns.iter().map(|c| quote(c)).collect();
    let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    let mut text = format!("CREATE {kind} {name}{columns}");
    push_options(&mut text, " WITH", options);
    text + " AS " + query
}

/// A column as SHOW CREATE writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnText {
    pub name: String,
    /// SQL type.
    pub sql_type: String,
    pub not_null: bool,
    pub default: Option<String>,
}

/// `WATERMARK FOR column AS expression` as SHOW CREATE writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatermarkText<'a> {
    pub column: &'a str,
    pub expression: &'a str,
}

/// `CREATE TABLE`. `options` are those of the watermark.
pub fn create_table_text(
    name: &Name,
    columns: &[ColumnText],
    primary_key: &[String],
    watermark: Option<WatermarkText<'_>>,
    append_only: bool,
    on_conflict: crate::statement::OnConflict,
    options: &[(String, String)],
) -> String {
    let mut text = format!("CREATE TABLE {name} ({})", columns_text(columns, primary_key, watermark));
    if append_only {
        text.push_str(" APPEND ONLY");
    }
    match on_conflict {
        crate::statement::OnConflict::Error => {}
        crate::statement::OnConflict::Overwrite => text.push_str(" ON CONFLICT OVERWRITE"),
        crate::statement::OnConflict::DoNothing => text.push_str(" ON CONFLICT DO NOTHING"),
    }
    push_options(&mut text, " WITH", options);
    text
}

/// `CREATE SOURCE`; `include` holds kinds and columns of INCLUDE, which are not among `columns`. Values of options are shown as they are: hide secrets before.
pub fn create_source_text(
    name: &Name,
    columns: &[ColumnText],
    primary_key: &[String],
    watermark: Option<WatermarkText<'_>>,
    include: &[(String, String)],
    options: &[(String, String)],
    format: Option<&crate::statement::Format>,
) -> String {
    let mut text = format!("CREATE SOURCE {name}");
    if !columns.is_empty() {
        let _ = write!(text, " ({})", columns_text(columns, primary_key, watermark));
    }
    for (kind, column) in include {
        let _ = write!(text, " INCLUDE {kind} AS {}", quote(column));
    }
    push_options(&mut text, " WITH", options);
    push_format(&mut text, format);
    text
}

/// `CREATE SINK`. `from` is `FROM name` or `AS query`.
pub fn create_sink_text(
    name: &Name,
    into: Option<&Name>,
    from: &str,
    options: &[(String, String)],
    format: Option<&crate::statement::Format>,
) -> String {
    let mut text = format!("CREATE SINK {name}");
    if let Some(into) = into {
        let _ = write!(text, " INTO {into}");
    }
    let _ = write!(text, " {from}");
    push_options(&mut text, " WITH", options);
    push_format(&mut text, format);
    text
}

fn columns_text(columns: &[ColumnText], primary_key: &[String], watermark: Option<WatermarkText<'_>>) -> String {
    let mut items: Vec<String> = columns
        .iter()
        .map(|c| {
            let default = c.default.as_ref().map(|d| format!(" DEFAULT {d}")).unwrap_or_default();
            let not_null = if c.not_null && !primary_key.contains(&c.name) { " NOT NULL" } else { "" };
            format!("{} {}{default}{not_null}", quote(&c.name), c.sql_type)
        })
        .collect();
    if !primary_key.is_empty() {
        let key: Vec<String> = primary_key.iter().map(|c| quote(c)).collect();
        items.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    if let Some(WatermarkText { column, expression }) = watermark {
        items.push(format!("WATERMARK FOR {} AS {expression}", quote(column)));
    }
    items.join(", ")
}

fn push_options(text: &mut String, before: &str, options: &[(String, String)]) {
    if options.is_empty() {
        return;
    }
    let options: Vec<String> = options
        .iter()
        .map(|(name, value)| format!("{} = '{}'", option_name(name), value.replace('\'', "''")))
        .collect();
    let _ = write!(text, "{before} ({})", options.join(", "));
}

/// An option's name as the parser reads it back: words with dots as they are, anything else as a string.
fn option_name(name: &str) -> String {
    let plain = name.split('.').all(|word| {
        word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && word.bytes().next().is_some_and(|b| !b.is_ascii_digit())
    });
    if plain { name.to_string() } else { format!("'{}'", name.replace('\'', "''")) }
}

fn push_format(text: &mut String, format: Option<&crate::statement::Format>) {
    if let Some(format) = format {
        let _ = write!(text, " FORMAT {} ENCODE {}", format.format, format.encode);
        push_options(text, "", &format.options);
    }
}
