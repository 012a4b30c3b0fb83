//! Names, types and operators: the rules that hold for every query.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    AccessExpr, ArrayElemTypeDef, BinaryOperator, DataType, Expr, Function, FunctionArguments, Ident, Query, Subscript,
    TimezoneInfo, Value, ValueWithSpan, VisitorMut,
};

use super::build;

/// Columns of type int2vector and oidvector: their subscripts count from 0.
const VECTOR_COLUMNS: [&str; 5] = ["indkey", "indcollation", "indclass", "indoption", "proargtypes"];

/// Columns of type regproc, which are held as text: no function is a dash, which PostgreSQL compares to 0.
const FUNCTION_COLUMNS: [&str; 9] = [
    "typinput",
    "typoutput",
    "typreceive",
    "typsend",
    "typmodin",
    "typmodout",
    "typanalyze",
    "typsubscript",
    "amhandler",
];

/// Functions without parentheses, which the parser takes for columns when it does not know them as keywords.
const BARE_FUNCTIONS: [&str; 6] =
    ["current_schema", "current_catalog", "current_user", "current_role", "session_user", "user"];

pub struct Names;

impl VisitorMut for Names {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        rewrite_expr(expr);
        ControlFlow::Continue(())
    }
}

/// Whether the column is one of those vectors.
pub fn is_vector(expr: &Expr) -> bool {
    build::column_name(expr).is_some_and(|name| VECTOR_COLUMNS.contains(&name.as_str()))
}

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, build::null())
}

fn rewrite_expr(expr: &mut Expr) {
    match expr {
        Expr::Function(f) => function(f),
        Expr::Identifier(ident) if ident.quote_style.is_none() => {
            let name = ident.value.to_lowercase();
            if BARE_FUNCTIONS.contains(&name.as_str()) {
                *expr = build::call(&name, Vec::new());
            }
        }
        Expr::Collate { expr: inner, collation } => {
            // Text has one order here, by code point. Other collations are left for the planner to refuse.
            let name = build::system_name(collation).unwrap_or_default();
            if ["default", "c", "posix", "ucs_basic"].contains(&name.to_lowercase().as_str()) {
                *expr = take(inner);
            }
        }
        Expr::BinaryOp { left, op, right } => {
            operator(op);
            registered_operand(op, left);
            registered_operand(op, right);
            function_comparison(op, left, right);
        }
        Expr::AnyOp { left, compare_op, right, .. } => {
            operator(compare_op);
            array_operand(left, right);
        }
        Expr::AllOp { left, compare_op, right } => {
            operator(compare_op);
            array_operand(left, right);
        }
        Expr::Cast { expr: inner, data_type, .. } => {
            if let Some(replaced) = cast(inner, data_type) {
                *expr = replaced;
            }
        }
        Expr::TypedString(typed) => {
            // regclass 'name'
            if let (Some(kind), Value::SingleQuotedString(text)) = (registered(&typed.data_type), &typed.value.value) {
                *expr = registered_value(kind, build::string(text));
            }
        }
        Expr::CompoundFieldAccess { root, access_chain } => {
            // i.indkey[0] has its column in the chain, indkey[0] in the root.
            let zero_based = match &access_chain[..] {
                [.., AccessExpr::Dot(column), AccessExpr::Subscript(_)] => is_vector(column),
                [AccessExpr::Subscript(_)] => is_vector(root),
                _ => false,
            };
            if let (Some(AccessExpr::Subscript(Subscript::Index { index })), true) =
                (access_chain.last_mut(), zero_based)
            {
                let one = Box::new(build::number(1));
                *index = Expr::BinaryOp { left: Box::new(take(index)), op: BinaryOperator::Plus, right: one };
            }
        }
        Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => {
            like_pattern(pattern, escape_char)
        }
        _ => {}
    }
}

/// DataFusion escapes LIKE patterns with a backslash only.
fn like_pattern(pattern: &mut Expr, escape: &mut Option<ValueWithSpan>) {
    let Some(Value::SingleQuotedString(character)) = escape.as_ref().map(|e| &e.value) else { return };
    if character != "\\" {
        *pattern = build::call("like_pattern", vec![take(pattern), build::string(character)]);
        *escape = None;
    }
}

/// Takes the schema off a system function's name.
fn function(f: &mut Function) {
    let parts = build::parts(&f.name);
    if let [schema, name] = &parts[..]
        && (schema == "pg_catalog" || schema == "information_schema")
    {
        f.name = build::function_name(name);
    }
    // current_user and its like come without arguments, and DataFusion wants a list.
    if matches!(f.args, FunctionArguments::None)
        && let Some(name) = build::system_name(&f.name)
        && BARE_FUNCTIONS.contains(&name.as_str())
        && let Expr::Function(call) = build::call(&name, Vec::new())
    {
        *f = call;
    }
}

/// `OPERATOR(pg_catalog.~)` is `~`.
fn operator(op: &mut BinaryOperator) {
    let BinaryOperator::PGCustomBinaryOperator(parts) = op else { return };
    let plain = match parts.last().map(String::as_str) {
        Some("=") => BinaryOperator::Eq,
        Some("<>" | "!=") => BinaryOperator::NotEq,
        Some("<") => BinaryOperator::Lt,
        Some("<=") => BinaryOperator::LtEq,
        Some(">") => BinaryOperator::Gt,
        Some(">=") => BinaryOperator::GtEq,
        Some("+") => BinaryOperator::Plus,
        Some("-") => BinaryOperator::Minus,
        Some("*") => BinaryOperator::Multiply,
        Some("/") => BinaryOperator::Divide,
        Some("%") => BinaryOperator::Modulo,
        Some("||") => BinaryOperator::StringConcat,
        Some("~") => BinaryOperator::PGRegexMatch,
        Some("~*") => BinaryOperator::PGRegexIMatch,
        Some("!~") => BinaryOperator::PGRegexNotMatch,
        Some("!~*") => BinaryOperator::PGRegexNotIMatch,
        Some("~~") => BinaryOperator::PGLikeMatch,
        Some("~~*") => BinaryOperator::PGILikeMatch,
        Some("!~~") => BinaryOperator::PGNotLikeMatch,
        Some("!~~*") => BinaryOperator::PGNotILikeMatch,
        _ => return,
    };
    *op = plain;
}

/// `typreceive <> 0` asks whether there is a function, and `pg_proc.oid = typreceive` which one.
fn function_comparison(op: &BinaryOperator, left: &mut Expr, right: &mut Expr) {
    let compares = matches!(op, BinaryOperator::Eq | BinaryOperator::NotEq);
    let is_function = |e: &Expr| build::column_name(e).is_some_and(|n| FUNCTION_COLUMNS.contains(&n.as_str()));
    if compares && is_function(right) {
        by_name(left);
    } else if compares && is_function(left) {
        by_name(right);
    }
    let zero = matches!(right, Expr::Value(v) if matches!(&v.value, Value::Number(n, _) if n == "0"));
    if compares && zero && is_function(left) {
        *right = build::string("-");
    }
}

/// `p.oid` as `p.proname`.
fn by_name(number: &mut Expr) {
    if let Expr::CompoundIdentifier(parts) = number
        && let Some(column) = parts.last_mut().filter(|c| build::fold(c) == "oid")
    {
        *column = Ident::new("proname");
    }
}

/// The right side of ANY and ALL: array literals in braces are spelled out, and parameters get a type.
fn array_operand(left: &Expr, right: &mut Expr) {
    let numeric =
        build::column_name(left).is_some_and(|n| n.ends_with("oid") || n.ends_with("relid") || n.ends_with("typid"));
    let element = if numeric { DataType::BigInt(None) } else { DataType::Text };
    if let Some(text) = build::string_value(right) {
        if let Some(elements) = array_literal(text, &element) {
            *right = elements;
        }
    } else {
        let list = DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(element), None));
        type_placeholder(right, list);
    }
}

fn type_placeholder(expr: &mut Expr, data_type: DataType) {
    match expr {
        Expr::Value(v) if matches!(v.value, Value::Placeholder(_)) => *expr = build::cast(take(expr), data_type),
        Expr::Nested(inner) => type_placeholder(inner, data_type),
        _ => {}
    }
}

/// `{a,b}` as `ARRAY[a, b]` of that element type; none when it has quotes or nested braces.
pub fn array_literal(text: &str, element: &DataType) -> Option<Expr> {
    let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    if inner.contains(['{', '"', '\\']) {
        return None;
    }
    let list = DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(element.clone()), None));
    let items = inner.split(',').map(str::trim).filter(|i| !i.is_empty());
    let items = items.map(|i| build::cast(build::string(i), element.clone())).collect();
    Some(build::cast(build::array(items), list))
}

/// The types whose values are names and numbers at once.
fn registered(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::Regclass => Some("regclass"),
        DataType::Custom(name, _) => match build::system_name(name)?.as_str() {
            "regclass" => Some("regclass"),
            "regtype" => Some("regtype"),
            "regnamespace" => Some("regnamespace"),
            "regrole" => Some("regrole"),
            "regproc" | "regprocedure" | "regoper" | "regoperator" => Some("regproc"),
            _ => None,
        },
        _ => None,
    }
}

fn registered_value(kind: &'static str, mut inner: Expr) -> Expr {
    // Functions are held by name: see FUNCTION_COLUMNS.
    if kind == "regproc" {
        return build::call("regproc_name", vec![inner]);
    }
    type_placeholder(&mut inner, DataType::Text);
    build::call(&format!("{kind}_number"), vec![inner])
}

/// The name of a registered value, when `expr` is one: what it looks like as text.
fn registered_text(expr: &mut Expr) -> Option<Expr> {
    let (name, _) = build::as_call(expr)?;
    let kind = name.strip_prefix("to_").or_else(|| name.strip_suffix("_number")).filter(|k| k.starts_with("reg"))?;
    let shown = format!("{kind}_name");
    Some(build::call(&shown, vec![take(expr)]))
}

/// Registered values are shown by name when they are joined to text.
fn registered_operand(op: &BinaryOperator, side: &mut Expr) {
    if matches!(op, BinaryOperator::StringConcat)
        && let Some(text) = registered_text(side)
    {
        *side = text;
    }
}

/// What a cast becomes; none when it stays (with its type in the parser's own words).
fn cast(inner: &mut Expr, data_type: &mut DataType) -> Option<Expr> {
    if let Some(kind) = registered(data_type) {
        return Some(registered_value(kind, take(inner)));
    }
    plain_type(data_type);
    // 'upper'::regproc::oid
    if let Some((name, arguments)) = build::as_call(inner)
        && name == "regproc_name"
        && is_number(data_type)
    {
        // The cast stays, so that the number is not shown by name again.
        let number = build::call("regproc_number", arguments.into_iter().cloned().collect());
        return Some(build::cast(number, data_type.clone()));
    }
    if is_text(data_type)
        && let Some(text) = registered_text(inner)
    {
        return Some(text);
    }
    if let (DataType::Array(ArrayElemTypeDef::SquareBracket(element, _)), Some(text)) =
        (&*data_type, build::string_value(inner))
    {
        return array_literal(text, element);
    }
    None
}

fn is_number(data_type: &DataType) -> bool {
    match data_type {
        DataType::BigInt(_) => true,
        DataType::Custom(name, _) => build::system_name(name).as_deref() == Some("oid"),
        _ => false,
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Text | DataType::Varchar(_) | DataType::CharacterVarying(_) | DataType::Char(_) | DataType::String(_)
    )
}

/// PostgreSQL's internal type names, with or without `pg_catalog.`, as the SQL types that they are.
fn plain_type(data_type: &mut DataType) {
    if let DataType::Array(ArrayElemTypeDef::SquareBracket(element, _)) = data_type {
        if registered(element).is_some() {
            **element = DataType::BigInt(None);
        }
        return plain_type(element);
    }
    // "char" is one byte of text, not character(1), whose length DataFusion would refuse to know.
    if matches!(data_type, DataType::Char(None)) {
        *data_type = DataType::Text;
    }
    let DataType::Custom(name, _) = data_type else { return };
    let Some(name) = build::system_name(name) else { return };
    *data_type = match name.as_str() {
        // It stays an oid, so that the result is described as one.
        "oid" => DataType::Custom(build::function_name("oid"), Vec::new()),
        "xid" | "xid8" | "cid" | "int8" => DataType::BigInt(None),
        "int4" => DataType::Integer(None),
        "int2" => DataType::SmallInt(None),
        "float4" => DataType::Real,
        "float8" => DataType::DoublePrecision,
        "bool" => DataType::Boolean,
        "text" | "name" | "char" | "bpchar" | "varchar" | "cstring" | "unknown" | "json" | "jsonb" | "pg_node_tree"
        | "inet" | "aclitem" | "sql_identifier" | "character_data" | "yes_or_no" => DataType::Text,
        "cardinal_number" => DataType::Integer(None),
        "timestamptz" => DataType::Timestamp(None, TimezoneInfo::WithTimeZone),
        "timestamp" => DataType::Timestamp(None, TimezoneInfo::None),
        "date" => DataType::Date,
        "int2vector" => DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::SmallInt(None)), None)),
        "oidvector" => DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::BigInt(None)), None)),
        _ => return,
    };
}

/// Registered values among the query's own output columns are shown by name.
pub fn show_registered(query: &mut Query) {
    super::for_each_output_select(&mut query.body, &mut |projection| {
        for expr in projection.iter_mut().filter_map(super::item_expr) {
            if let Some(text) = registered_text(expr) {
                *expr = text;
            }
        }
    });
}
