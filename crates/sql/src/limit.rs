//! LIMIT and OFFSET: constant expressions are computed before the query is planned, where their values are checked.

use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{Expr, LimitClause, Query, Value, ValueWithSpan, Visitor, VisitorMut};
use flow::{Error, Result, SqlState};

use crate::planner::Planner;
use crate::rewrite::{null, number};
use crate::walk::Walk;

/// Computes what stands in the LIMIT and OFFSET clauses of `query`. Parameters stay.
///
/// Errors: `2201W` and `2201X` for negative numbers, and what the expressions give.
pub(crate) fn compute(query: &mut dyn Walk, planner: &Planner<'_>, source: &str) -> Result<()> {
    query.try_walk_mut(&mut Limits { planner, source })
}

struct Limits<'a> {
    planner: &'a Planner<'a>,
    source: &'a str,
}

impl VisitorMut for Limits<'_> {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Box<Error>> {
        let Some(LimitClause::LimitOffset { limit, offset, .. }) = &mut query.limit_clause else {
            return ControlFlow::Continue(());
        };
        let mut done = Ok(());
        if let Some(limit) = limit {
            done = self.value(limit, SqlState::InvalidRowCountInLimit, "LIMIT");
        }
        if let (Ok(()), Some(offset)) = (&done, offset) {
            done = self.value(&mut offset.value, SqlState::InvalidRowCountInOffset, "OFFSET");
            // OFFSET NULL is OFFSET 0.
            if matches!(&offset.value, Expr::Value(ValueWithSpan { value: Value::Null, .. })) {
                offset.value = number("0");
            }
        }
        match done {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Box::new(error)),
        }
    }
}

impl Limits<'_> {
    fn value(&self, expr: &mut Expr, state: SqlState, clause: &str) -> Result<()> {
        let plain = matches!(expr, Expr::Value(ValueWithSpan { value: Value::Number(digits, _), .. })
            if digits.bytes().all(|b| b.is_ascii_digit()));
        if plain || has_parameter_or_query(expr) {
            return Ok(());
        }
        match self.planner.constant(expr, self.source, &DataType::Int64)? {
            ScalarValue::Int64(Some(n)) if n < 0 => Err(Error::new(state, format!("{clause} must not be negative"))),
            ScalarValue::Int64(Some(n)) => {
                *expr = number(&n.to_string());
                Ok(())
            }
            _ => {
                *expr = null();
                Ok(())
            }
        }
    }
}

fn has_parameter_or_query(expr: &Expr) -> bool {
    struct Find(bool);
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.0 = true;
            ControlFlow::Break(())
        }
        fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
            self.0 |= matches!(value.value, Value::Placeholder(_));
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(false);
    expr.walk(&mut find);
    find.0
}
