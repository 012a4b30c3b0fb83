//! What a query says in Postgres' terms, put into DataFusion's, on the syntax tree.
//!
//! Output columns get Postgres' names (`count`, `?column?`); spellings that DataFusion does not know are replaced by ones
//! that it does; what Millstream has not, and what DataFusion would silently get wrong, is refused with its position.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, CastKind, Expr, Ident, LimitClause, ObjectName, ObjectNamePart, Query, Select, SelectItem,
    SetExpr, Spanned, TableFactor, Value, ValueWithSpan, Visitor, VisitorMut,
};
use flow::{Error, Result, SqlState};

use crate::limits::EXPRESSION_DEPTH_MAX;
use crate::names::{self, Source};
use crate::walk::Walk;
use crate::{clock, forms, rows, types};

pub(crate) use plan::error::{REPEATED_NAME_END as NAME_END, shown_name as shown};

/// What [`rewrite`] found out on the way.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The greatest `$n`.
    pub parameters: usize,
}

/// Rewrites `query` in place. `standing`: the query has no clock.
pub(crate) fn rewrite(query: &mut dyn Walk, source: &Source<'_>, standing: bool) -> Result<Found> {
    let mut rewriter = Rewriter { source, standing, moments: HashSet::new(), found: Found::default() };
    query.try_walk_mut(&mut rewriter)?;
    Ok(rewriter.found)
}

struct Rewriter<'a> {
    source: &'a Source<'a>,
    standing: bool,
    /// Where a standing query asks for the time in a place that has an answer: line and column.
    moments: HashSet<(u64, u64)>,
    found: Found,
}

/// What a standing query can know in WHERE and HAVING.
const PRESENT: [&str; 4] = ["now", "current_timestamp", "transaction_timestamp", "statement_timestamp"];
/// What it can know in a column.
const COMING: [&str; 1] = ["proctime"];

fn function_name(function: &ast::Function) -> String {
    function.name.0.last().and_then(|p| p.as_ident()).map(names::fold).unwrap_or_default()
}

/// Finds calls of some functions.
struct Moments<'a> {
    names: &'a [&'a str],
    found: &'a mut HashSet<(u64, u64)>,
}

impl Visitor for Moments<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && self.names.contains(&function_name(function).as_str())
        {
            let start = expr.span().start;
            self.found.insert((start.line, start.column));
        }
        ControlFlow::Continue(())
    }
}

type Step = ControlFlow<Box<Error>>;

impl Rewriter<'_> {
    /// A comparison of rows as comparisons of their fields.
    fn compare_rows(&self, expr: &mut Expr) -> Step {
        let span = expr.span();
        match forms::compare_rows(std::mem::replace(expr, null())) {
            Ok(fields) => {
                *expr = fields;
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(Box::new(if span.start.line > 0 {
                error.with_position(self.source.position(span.start))
            } else {
                error
            })),
        }
    }

    /// `x = ANY ('{1,2}')` as `x IN ('1', '2')`, whose literals get the type of `x`; `x <> ALL (…)` as its negation.
    fn list_of_literal(&self, expr: &mut Expr) -> Step {
        let (left, right, negated) = match expr {
            Expr::AnyOp { left, right, .. } => (left, right, false),
            Expr::AllOp { left, right, .. } => (left, right, true),
            _ => return ControlFlow::Continue(()),
        };
        let mut literal = right.as_ref();
        while let Expr::Nested(inner) = literal {
            literal = inner;
        }
        let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(array), span }) = literal else {
            return ControlFlow::Continue(());
        };
        let elements = match plan::functions::parse::array_elements(array) {
            Ok(elements) => elements,
            Err(e) => return ControlFlow::Break(Box::new(e.with_position(self.source.position(span.start)))),
        };
        if elements.is_empty() {
            *expr = Expr::Value(Value::Boolean(negated).into());
            return ControlFlow::Continue(());
        }
        let list = elements.iter().map(|e| e.as_deref().map_or_else(null, text)).collect();
        let tested = std::mem::replace(left.as_mut(), null());
        *expr = Expr::InList { expr: Box::new(tested), list, negated };
        ControlFlow::Continue(())
    }

    fn refuse(&self, message: &str, hint: &str, span: datafusion::sql::sqlparser::tokenizer::Span) -> Step {
        let error = Error::unsupported(message).with_hint(hint);
        ControlFlow::Break(Box::new(if span.start.line > 0 {
            error.with_position(self.source.position(span.start))
        } else {
            error
        }))
    }
}

impl VisitorMut for Rewriter<'_> {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut Query) -> Step {
        if !query.locks.is_empty() {
            return self.refuse(
                "SELECT … FOR UPDATE and FOR SHARE are not supported",
                "Readers never block and see one consistent snapshot; leave the clause out.",
                query.span(),
            );
        }
        if let Some(fetch) = query.fetch.take() {
            if fetch.with_ties || fetch.percent {
                return self.refuse("FETCH … WITH TIES is not supported", "Use rank() in a subquery.", query.span());
            }
            let limit = Some(fetch.quantity.unwrap_or_else(|| number("1")));
            query.limit_clause = Some(match query.limit_clause.take() {
                Some(LimitClause::LimitOffset { offset, limit_by, .. }) => {
                    LimitClause::LimitOffset { limit, offset, limit_by }
                }
                _ => LimitClause::LimitOffset { limit, offset: None, limit_by: Vec::new() },
            });
        }
        // Walk the left spine without recursion: a union of thousands is a deep tree.
        let mut pending = vec![query.body.as_mut()];
        while let Some(body) = pending.pop() {
            match body {
                SetExpr::SetOperation { left, right, .. } => {
                    pending.push(left.as_mut());
                    pending.push(right.as_mut());
                }
                SetExpr::Table(table) => {
                    let mut parts = Vec::new();
                    parts.extend(table.schema_name.take().map(Ident::new));
                    parts.extend(table.table_name.take().map(Ident::new));
                    *body = select_all(ObjectName(parts.into_iter().map(ObjectNamePart::Identifier).collect()));
                }
                SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                    return self.refuse(
                        "data-modifying statements in WITH are not supported",
                        "Run the statement on its own.",
                        body.span(),
                    );
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> Step {
        if select.into.is_some() {
            return self.refuse(
                "SELECT INTO is not supported",
                "Create the table, then INSERT INTO … SELECT.",
                select.span(),
            );
        }
        if self.standing {
            let conditions = [&select.selection, &select.having];
            for condition in conditions.into_iter().flatten() {
                condition.walk(&mut Moments { names: &PRESENT, found: &mut self.moments });
            }
            select.projection.walk(&mut Moments { names: &COMING, found: &mut self.moments });
        }
        name_columns(select);
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                unnest_series(expr);
            }
        }
        if let Some(condition) = &mut select.selection {
            rows::condition(condition);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> Step {
        let span = factor.span();
        match factor {
            TableFactor::Table { name, alias, args, version, sample, with_ordinality, with_hints, .. } => {
                if version.is_some() {
                    return self.refuse("FOR SYSTEM_TIME is not supported", "Read the current rows.", span);
                }
                if sample.is_some() {
                    return self.refuse("TABLESAMPLE is not supported", "Use ORDER BY random() LIMIT n.", span);
                }
                if *with_ordinality {
                    return self.refuse("WITH ORDINALITY is not supported", "Use row_number() OVER ().", span);
                }
                if !with_hints.is_empty() {
                    let error = Error::new(SqlState::SyntaxError, "table hints are not supported");
                    return ControlFlow::Break(Box::new(error.with_position(self.source.position(span.start))));
                }
                // The column of a set-returning function is named after the alias, or after the function.
                if args.is_some() {
                    let function = name.0.last().and_then(|p| p.as_ident()).map(names::fold).unwrap_or_default();
                    if function == "generate_series" || function == "range" {
                        let alias = alias.get_or_insert_with(|| table_alias(&function));
                        if alias.columns.is_empty() {
                            alias.columns =
                                vec![ast::TableAliasColumnDef { name: alias.name.clone(), data_type: None }];
                        }
                    }
                }
            }
            TableFactor::Derived { sample: Some(_), .. } => {
                return self.refuse("TABLESAMPLE is not supported", "Use ORDER BY random() LIMIT n.", span);
            }
            TableFactor::MatchRecognize { .. } => {
                return self.refuse("MATCH_RECOGNIZE is not supported yet", "Use joins.", span);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> Step {
        if let Expr::BinaryOp { op: op @ (BinaryOperator::And | BinaryOperator::Or), .. } = expr {
            let op = op.clone();
            balance(expr, &op);
        }
        if let Some(plain) = forms::as_call(expr) {
            *expr = plain;
        }
        if let Some(at) = too_deep(expr) {
            let error = Error::new(SqlState::StatementTooComplex, "expression is nested too deeply")
                .with_detail(format!("An expression may have {EXPRESSION_DEPTH_MAX} levels."))
                .with_hint("Compute parts of it in a subquery, or use IN (…) or a join with VALUES.");
            return ControlFlow::Break(Box::new(match at.line {
                0 => error,
                _ => error.with_position(self.source.position(at)),
            }));
        }
        rows::comparison(expr);
        match expr {
            Expr::Function(function) if self.standing => {
                let name = function_name(function);
                let start = expr.span().start;
                if clock::FUNCTIONS.contains(&name.as_str()) && !self.moments.contains(&(start.line, start.column)) {
                    let hint = match name.as_str() {
                        name if PRESENT.contains(&name) => {
                            "Compare a time of the row with now() in WHERE: ts > now() - INTERVAL '1 hour'; PROCTIME() is the time at which a row came."
                        }
                        name if COMING.contains(&name) => "Select PROCTIME() as a column, and use the column.",
                        _ => "Use now() in WHERE or PROCTIME() as a column, or filter by time where you read the view.",
                    };
                    return self.refuse(
                        &format!("{name} is not supported here in a standing query"),
                        hint,
                        expr.span(),
                    );
                }
            }
            // DataFusion reads a literal as a decimal of up to 76 digits; ours have 38.
            Expr::Value(ValueWithSpan { value: Value::Number(digits, _), .. }) => {
                if let Some(rewritten) = wide_number(digits) {
                    *expr = rewritten;
                }
            }
            Expr::Collate { expr: inner, collation } => {
                let last = collation.0.last().and_then(|p| p.as_ident()).map(names::fold).unwrap_or_default();
                if !matches!(last.to_lowercase().as_str(), "default" | "c" | "posix" | "ucs_basic") {
                    let span = inner.span();
                    return self.refuse(
                        &format!("collation \"{last}\" is not supported"),
                        "Text is compared by its bytes, which is COLLATE \"C\".",
                        span,
                    );
                }
                let inner = std::mem::replace(inner.as_mut(), null());
                *expr = inner;
                return self.pre_visit_expr(expr);
            }
            Expr::BinaryOp { left, op, right } => {
                if let BinaryOperator::PGCustomBinaryOperator(path) = op
                    && let Some(plain) = path.last().and_then(|sign| operator(sign))
                {
                    *op = plain;
                }
                if let (Expr::Tuple(_), Expr::Tuple(_)) = (left.as_ref(), right.as_ref()) {
                    return self.compare_rows(expr);
                }
            }
            Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right)
                if matches!((left.as_ref(), right.as_ref()), (Expr::Tuple(_), Expr::Tuple(_))) =>
            {
                return self.compare_rows(expr);
            }
            Expr::InList { expr: row, list, negated }
                if matches!(row.as_ref(), Expr::Tuple(_)) && list.iter().all(|e| matches!(e, Expr::Tuple(_))) =>
            {
                let (row, list, negated) = (std::mem::replace(row.as_mut(), null()), std::mem::take(list), *negated);
                let tests = list.into_iter().map(|item| binary(row.clone(), BinaryOperator::Eq, item));
                let any = tests.reduce(|a, b| binary(a, BinaryOperator::Or, b)).unwrap_or_else(null);
                let any = Expr::Nested(Box::new(any));
                *expr = if negated { negation(any) } else { any };
            }
            Expr::AnyOp { compare_op: BinaryOperator::Eq, .. } => return self.list_of_literal(expr),
            Expr::AllOp { compare_op: BinaryOperator::NotEq, .. } => return self.list_of_literal(expr),
            Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr: inner, data_type, .. } => {
                if let Some(limit) = types::character_limit(data_type) {
                    // An explicit cast cuts off what is too long.
                    let text = std::mem::replace(inner.as_mut(), null());
                    let cast = Expr::Cast {
                        kind: CastKind::Cast,
                        expr: Box::new(text),
                        // Without its length, so that a parameter inside is a varchar as in PostgreSQL.
                        data_type: ast::DataType::Varchar(None),
                        array: false,
                        format: None,
                    };
                    // The cast around it stays, so that the result is described as what was asked for.
                    **inner = call("left", vec![cast, number(&limit.to_string())]);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> Step {
        if let Value::Placeholder(name) = &value.value {
            match name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()) {
                Some(n) if (1..=PARAMETERS_MAX).contains(&n) => self.found.parameters = self.found.parameters.max(n),
                _ => {
                    let error = Error::new(SqlState::UndefinedParameter, format!("there is no parameter {name}"));
                    let position = self.source.position(value.span.start);
                    return ControlFlow::Break(Box::new(error.with_position(position)));
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// Makes a long chain of AND or of OR a tree as deep as its logarithm, with the operands in the same order.
fn balance(expr: &mut Expr, op: &BinaryOperator) {
    let mut operands = Vec::new();
    let mut pending = vec![std::mem::replace(expr, null())];
    while let Some(next) = pending.pop() {
        match next {
            Expr::BinaryOp { left, op: own, right } if own == *op => {
                pending.push(*right);
                pending.push(*left);
            }
            operand => operands.push(operand),
        }
    }
    while operands.len() > 1 {
        let mut pairs = Vec::with_capacity(operands.len().div_ceil(2));
        let mut rest = operands.into_iter();
        while let Some(left) = rest.next() {
            pairs.push(match rest.next() {
                Some(right) => Expr::BinaryOp { left: Box::new(left), op: op.clone(), right: Box::new(right) },
                None => left,
            });
        }
        operands = pairs;
    }
    if let Some(balanced) = operands.pop() {
        *expr = balanced;
    }
}

/// `generate_series(…)` as a column gives a row for each number: to DataFusion it is a list, to be unnested.
fn unnest_series(expr: &mut Expr) {
    let is_series = match expr {
        Expr::Nested(inner) => return unnest_series(inner),
        Expr::Function(f) => {
            let parts: Vec<String> = f.name.0.iter().filter_map(|p| p.as_ident()).map(names::fold).collect();
            matches!(
                parts.iter().map(String::as_str).collect::<Vec<_>>()[..],
                ["generate_series"] | ["pg_catalog", "generate_series"]
            )
        }
        _ => false,
    };
    if is_series {
        let series = std::mem::replace(expr, null());
        *expr = call("unnest", vec![series]);
    }
}

/// Where a chain of operators ends that would be deeper in the plan than an expression may be. AND and OR are balanced,
/// chains of arithmetic and of `||` become one call, and a chain of literals is one literal by then.
fn too_deep(expr: &Expr) -> Option<datafusion::sql::sqlparser::tokenizer::Location> {
    let mut levels = 0;
    let mut node = expr;
    while levels <= EXPRESSION_DEPTH_MAX {
        node = match node {
            Expr::BinaryOp { op: BinaryOperator::And | BinaryOperator::Or, .. } => return None,
            Expr::BinaryOp { left, op, .. } => {
                levels += usize::from(!makes_chain(op));
                left
            }
            Expr::Nested(inner) => inner,
            _ => return None,
        };
    }
    (!is_literal_chain(node)).then(|| expr.span().start)
}

/// Whether operands of these operators beside each other become operands of one call.
fn makes_chain(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Plus
            | BinaryOperator::Minus
            | BinaryOperator::Multiply
            | BinaryOperator::Divide
            | BinaryOperator::Modulo
            | BinaryOperator::StringConcat
    )
}

/// Whether an operand is a literal, or operators over literals alone along its left side.
fn is_literal_chain(mut expr: &Expr) -> bool {
    loop {
        expr = match expr {
            Expr::Value(_) => return true,
            Expr::Nested(inner) => inner,
            Expr::BinaryOp { left, right, .. } if matches!(right.as_ref(), Expr::Value(_)) => left,
            _ => return false,
        };
    }
}

/// A number literal with an exponent, or with more digits than a decimal has: plain digits where they fit, else a double.
fn wide_number(digits: &str) -> Option<Expr> {
    let significant = digits.bytes().filter(u8::is_ascii_digit).count();
    let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, "0"));
    if significant <= DIGITS_MAX && mantissa.len() == digits.len() {
        return None;
    }
    let exponent: i64 = exponent.parse().unwrap_or(i64::MAX);
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let point = (integer.len() as i64).saturating_add(exponent);
    let all = format!("{integer}{fraction}");
    let reach = DIGITS_MAX as i64;
    if mantissa.len() != digits.len() && point > 0 && point <= reach && all.len() as i64 <= reach {
        let (integer, fraction) = match all.split_at_checked(point as usize) {
            Some((integer, fraction)) => (integer.to_string(), fraction),
            None => (format!("{all:0<width$}", width = point as usize), ""),
        };
        if fraction.is_empty() {
            // Plain digits would be an integer.
            let digits = ast::ExactNumberInfo::PrecisionAndScale(integer.len().max(1) as u64, 0);
            return Some(Expr::Cast {
                kind: CastKind::Cast,
                expr: Box::new(Expr::Value(Value::SingleQuotedString(integer).into())),
                data_type: ast::DataType::Numeric(digits),
                array: false,
                format: None,
            });
        }
        return Some(number(&format!("{integer}.{fraction}")));
    }
    if mantissa.len() != digits.len() && point <= 0 && all.len() as i64 - point <= reach {
        let zeros = "0".repeat(point.unsigned_abs() as usize);
        return Some(number(&format!("0.{zeros}{all}")));
    }
    Some(Expr::Cast {
        kind: CastKind::Cast,
        expr: Box::new(Expr::Value(Value::SingleQuotedString(digits.to_string()).into())),
        data_type: ast::DataType::DoublePrecision,
        array: false,
        format: None,
    })
}

/// Digits of a decimal.
const DIGITS_MAX: usize = 38;

/// As in Postgres' protocol, where the number of parameters is 16 bits wide.
const PARAMETERS_MAX: usize = 65_535;

pub(crate) fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

pub(crate) fn number(text: &str) -> Expr {
    Expr::Value(Value::Number(text.to_string(), false).into())
}

pub(crate) fn text(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.to_string()).into())
}

pub(crate) fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

pub(crate) fn negation(expr: Expr) -> Expr {
    Expr::UnaryOp { op: ast::UnaryOperator::Not, expr: Box::new(expr) }
}

/// `row_number() OVER (PARTITION BY …)`.
pub(crate) fn row_number(partition_by: Vec<Expr>) -> Expr {
    let over = ast::WindowSpec { window_name: None, partition_by, order_by: Vec::new(), window_frame: None };
    let mut number = call("row_number", Vec::new());
    if let Expr::Function(function) = &mut number {
        function.over = Some(ast::WindowType::WindowSpec(over));
    }
    number
}

pub(crate) fn call(name: &str, args: Vec<Expr>) -> Expr {
    Expr::Function(ast::Function {
        name: ObjectName::from(vec![Ident::with_quote('"', name)]),
        uses_odbc_syntax: false,
        parameters: ast::FunctionArguments::None,
        args: ast::FunctionArguments::List(ast::FunctionArgumentList {
            duplicate_treatment: None,
            args: args.into_iter().map(|a| ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(a))).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

pub(crate) fn table_alias(name: &str) -> ast::TableAlias {
    ast::TableAlias { explicit: true, name: Ident::with_quote('"', name), columns: Vec::new(), at: None }
}

/// `SELECT * FROM name`.
pub(crate) fn select_all(name: ObjectName) -> SetExpr {
    SetExpr::Select(Box::new(select_from(name, None, vec![SelectItem::Wildcard(Default::default())], None)))
}

/// `SELECT projection FROM name [AS alias] [WHERE selection]`.
pub(crate) fn select_from(
    name: ObjectName,
    alias: Option<&str>,
    projection: Vec<SelectItem>,
    selection: Option<Expr>,
) -> Select {
    let relation = TableFactor::Table {
        name,
        alias: alias.map(table_alias),
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    };
    Select {
        select_token: ast::helpers::attached_token::AttachedToken::empty(),
        optimizer_hints: Vec::new(),
        distinct: None,
        select_modifiers: None,
        top: None,
        top_before_distinct: false,
        projection,
        exclude: None,
        into: None,
        from: vec![ast::TableWithJoins { relation, joins: Vec::new() }],
        lateral_views: Vec::new(),
        prewhere: None,
        selection,
        connect_by: Vec::new(),
        group_by: ast::GroupByExpr::Expressions(Vec::new(), Vec::new()),
        cluster_by: Vec::new(),
        distribute_by: Vec::new(),
        sort_by: Vec::new(),
        having: None,
        named_window: Vec::new(),
        qualify: None,
        window_before_qualify: false,
        value_table_mode: None,
        flavor: ast::SelectFlavor::Standard,
    }
}

pub(crate) fn query_of(body: SetExpr) -> Query {
    Query {
        with: None,
        body: Box::new(body),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    }
}

/// The operator behind `OPERATOR(pg_catalog.~)`.
fn operator(sign: &str) -> Option<BinaryOperator> {
    Some(match sign {
        "=" => BinaryOperator::Eq,
        "<>" | "!=" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "*" => BinaryOperator::Multiply,
        "/" => BinaryOperator::Divide,
        "%" => BinaryOperator::Modulo,
        "||" => BinaryOperator::StringConcat,
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        _ => return None,
    })
}

/// Gives every output column Postgres' name, and a plan-only suffix to all whose name comes twice, so that a reference to
/// it finds none of them.
fn name_columns(select: &mut Select) {
    let mut given: Vec<String> = Vec::new();
    let mut repeats: Vec<String> = Vec::new();
    for item in &select.projection {
        let name = match item {
            SelectItem::ExprWithAlias { alias, .. } => names::fold(alias),
            SelectItem::UnnamedExpr(expr) => output_name(expr).unwrap_or_else(|| "?column?".to_string()),
            _ => continue,
        };
        if given.contains(&name) {
            repeats.push(name);
        } else {
            given.push(name);
        }
    }
    let bare_wildcard = select.projection.iter().any(|i| matches!(i, SelectItem::Wildcard(_)));
    let qualified: Vec<String> = select
        .projection
        .iter()
        .filter_map(|i| match i {
            SelectItem::QualifiedWildcard(ast::SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                name.0.last().and_then(|p| p.as_ident()).map(names::fold)
            }
            _ => None,
        })
        .collect();
    let mut seen: Vec<String> = Vec::new();
    for item in &mut select.projection {
        let expr = match item {
            SelectItem::ExprWithAlias { alias, .. } => {
                let name = names::fold(alias);
                if repeats.contains(&name) {
                    *alias = Ident::with_quote('"', unique(&name, &seen));
                }
                seen.push(names::fold(alias));
                continue;
            }
            SelectItem::UnnamedExpr(expr) => expr,
            _ => continue,
        };
        let name = output_name(expr).unwrap_or_else(|| "?column?".to_string());
        // A column that a wildcard of the same list gives too would come twice.
        let of_wildcard = match expr {
            Expr::Identifier(_) => bare_wildcard,
            Expr::CompoundIdentifier(parts) => {
                bare_wildcard || parts.len() >= 2 && qualified.contains(&names::fold(&parts[parts.len() - 2]))
            }
            _ => false,
        };
        let plain_column = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
        let repeated = of_wildcard || repeats.contains(&name);
        if plain_column && !repeated {
            seen.push(name);
            continue;
        }
        let alias = if repeated { unique(&name, &seen) } else { name };
        seen.push(alias.clone());
        let expr = std::mem::replace(expr, null());
        *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', alias) };
    }
}

fn unique(name: &str, seen: &[String]) -> String {
    format!("{name}{NAME_END}{}", seen.len())
}

/// The name that Postgres gives to an output column; `None` is `?column?`.
pub(crate) fn output_name(expr: &Expr) -> Option<String> {
    let plain = |s: &str| Some(s.to_string());
    match expr {
        Expr::Identifier(ident) => Some(names::fold(ident)),
        Expr::CompoundIdentifier(parts) => parts.last().map(names::fold),
        Expr::CompoundFieldAccess { root, access_chain } => match access_chain.last() {
            Some(ast::AccessExpr::Dot(Expr::Identifier(ident))) => Some(names::fold(ident)),
            _ => output_name(root),
        },
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => output_name(inner),
        Expr::Function(function) => function.name.0.last().and_then(|p| p.as_ident()).map(names::fold),
        Expr::Cast { expr, data_type, .. } => output_name(expr).or_else(|| Some(internal_type_name(data_type))),
        Expr::TypedString(typed) => Some(internal_type_name(&typed.data_type)),
        Expr::Interval(_) => plain("interval"),
        Expr::Case { else_result, .. } => match else_result.as_deref() {
            Some(otherwise @ (Expr::Identifier(_) | Expr::CompoundIdentifier(_))) => output_name(otherwise),
            _ => plain("case"),
        },
        Expr::Exists { .. } => plain("exists"),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.first() {
                Some(SelectItem::UnnamedExpr(expr)) => output_name(expr),
                Some(SelectItem::ExprWithAlias { alias, .. }) => Some(names::fold(alias)),
                _ => None,
            },
            _ => None,
        },
        Expr::Array(_) => plain("array"),
        Expr::Tuple(_) => plain("row"),
        Expr::Extract { .. } => plain("extract"),
        Expr::Ceil { .. } => plain("ceil"),
        Expr::Floor { .. } => plain("floor"),
        Expr::Position { .. } => plain("position"),
        Expr::Substring { .. } => plain("substring"),
        Expr::Overlay { .. } => plain("overlay"),
        Expr::Trim { trim_where, .. } => plain(match trim_where {
            Some(ast::TrimWhereField::Leading) => "ltrim",
            Some(ast::TrimWhereField::Trailing) => "rtrim",
            _ => "btrim",
        }),
        Expr::AtTimeZone { .. } => plain("timezone"),
        Expr::Value(ValueWithSpan { value: Value::Boolean(_), .. }) => plain("bool"),
        _ => None,
    }
}

/// The name in `pg_type` of a type as written.
fn internal_type_name(data_type: &ast::DataType) -> String {
    use arrow::datatypes::DataType as A;
    if types::character_limit(data_type).is_some() || matches!(data_type, ast::DataType::Varchar(_)) {
        return match data_type {
            ast::DataType::Char(_) | ast::DataType::Character(_) => "bpchar".to_string(),
            _ => "varchar".to_string(),
        };
    }
    match types::arrow_type(data_type) {
        Ok(A::Boolean) => "bool".to_string(),
        Ok(A::Int16) => "int2".to_string(),
        Ok(A::Int32) => "int4".to_string(),
        Ok(A::Int64) => "int8".to_string(),
        Ok(A::Float32) => "float4".to_string(),
        Ok(A::Float64) => "float8".to_string(),
        Ok(A::Decimal128(_, _)) => "numeric".to_string(),
        Ok(A::Utf8View) => "text".to_string(),
        Ok(A::Binary) => "bytea".to_string(),
        Ok(A::Date32) => "date".to_string(),
        Ok(A::Time64(_)) => "time".to_string(),
        Ok(A::Timestamp(_, None)) => "timestamp".to_string(),
        Ok(A::Timestamp(_, Some(_))) => "timestamptz".to_string(),
        Ok(A::Interval(_)) => "interval".to_string(),
        _ => data_type.to_string().to_lowercase(),
    }
}
