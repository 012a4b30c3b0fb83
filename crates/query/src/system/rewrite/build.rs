//! Making and reading syntax trees.

use datafusion::sql::sqlparser::ast::{
    Array, ArrayElemTypeDef, CaseWhen, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, ObjectName, ObjectNamePart, Query, Select,
    SelectFlavor, SelectItem, SetExpr, TableAlias, TableFactor, TableWithJoins, Value,
    helpers::attached_token::AttachedToken,
};

/// The parts of a name, folded where not quoted.
pub fn parts(name: &ObjectName) -> Vec<String> {
    name.0.iter().filter_map(ObjectNamePart::as_ident).map(fold).collect()
}

pub fn fold(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// An identifier that means exactly `name`.
pub fn ident(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// The name of a function or type without a system schema in front; none for one in another schema.
pub fn system_name(name: &ObjectName) -> Option<String> {
    let parts = parts(name);
    match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name] => Some(name.to_string()),
        ["pg_catalog" | "information_schema", name] => Some(name.to_string()),
        _ => None,
    }
}

/// Whether a table function's name is this one, with or without its schema.
pub fn is_table_function(name: &ObjectName, wanted: &str) -> bool {
    system_name(name).as_deref() == Some(wanted)
}

pub fn function_name(name: &str) -> ObjectName {
    ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))])
}

/// `name(args…)`.
pub fn call(name: &str, args: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: function_name(name),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.into_iter().map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e))).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// The arguments of a call that has only plain ones.
pub fn arguments(function: &Function) -> Vec<&Expr> {
    match &function.args {
        FunctionArguments::List(list) => list
            .args
            .iter()
            .filter_map(|a| match a {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Some(e),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The call's folded name and arguments, when `expr` is a plain call of a system function.
pub fn as_call(expr: &Expr) -> Option<(String, Vec<&Expr>)> {
    match expr {
        Expr::Function(f) => Some((system_name(&f.name)?, arguments(f))),
        _ => None,
    }
}

pub fn cast(expr: Expr, data_type: DataType) -> Expr {
    Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

pub fn value(value: Value) -> Expr {
    Expr::Value(value.with_empty_span())
}

pub fn number(n: i64) -> Expr {
    value(Value::Number(n.to_string(), false))
}

pub fn null() -> Expr {
    value(Value::Null)
}

pub fn string(text: &str) -> Expr {
    value(Value::SingleQuotedString(text.to_string()))
}

/// The text of a string constant.
pub fn string_value(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(v) => match &v.value {
            Value::SingleQuotedString(s) | Value::EscapedStringLiteral(s) => Some(s),
            _ => None,
        },
        Expr::Nested(inner) => string_value(inner),
        _ => None,
    }
}

pub fn array(elem: Vec<Expr>) -> Expr {
    Expr::Array(Array { elem, named: true })
}

/// `CASE WHEN condition THEN result END`.
pub fn when(condition: Expr, result: Expr) -> Expr {
    Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: None,
        conditions: vec![CaseWhen { condition, result }],
        else_result: None,
    }
}

/// The last part of a column reference, folded.
pub fn column_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(fold(ident)),
        Expr::CompoundIdentifier(parts) => parts.last().map(fold),
        Expr::Nested(inner) => column_name(inner),
        _ => None,
    }
}

/// A relation in FROM.
pub fn table(name: ObjectName, alias: TableAlias) -> TableFactor {
    TableFactor::Table {
        name,
        alias: Some(alias),
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}

/// `ARRAY[]::text[]`.
pub fn empty_texts() -> Expr {
    cast(array(Vec::new()), DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::Text), None)))
}

/// `(SELECT projection FROM relation) AS alias`.
pub fn derived(projection: Vec<SelectItem>, relation: TableFactor, alias: TableAlias) -> TableFactor {
    subquery(projection, vec![TableWithJoins { relation, joins: Vec::new() }], alias)
}

/// `(SELECT item) AS name`.
pub fn values(item: SelectItem, name: Ident) -> TableFactor {
    subquery(vec![item], Vec::new(), TableAlias { explicit: true, name, columns: Vec::new(), at: None })
}

fn subquery(projection: Vec<SelectItem>, from: Vec<TableWithJoins>, alias: TableAlias) -> TableFactor {
    let select = Select {
        select_token: AttachedToken::empty(),
        optimizer_hints: Vec::new(),
        distinct: None,
        select_modifiers: None,
        top: None,
        top_before_distinct: false,
        projection,
        exclude: None,
        into: None,
        from,
        lateral_views: Vec::new(),
        prewhere: None,
        selection: None,
        connect_by: Vec::new(),
        group_by: GroupByExpr::Expressions(Vec::new(), Vec::new()),
        cluster_by: Vec::new(),
        distribute_by: Vec::new(),
        sort_by: Vec::new(),
        having: None,
        named_window: Vec::new(),
        qualify: None,
        window_before_qualify: false,
        value_table_mode: None,
        flavor: SelectFlavor::Standard,
    };
    let query = Query {
        with: None,
        body: Box::new(SetExpr::Select(Box::new(select))),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    };
    TableFactor::Derived { lateral: false, subquery: Box::new(query), alias: Some(alias), sample: None }
}
