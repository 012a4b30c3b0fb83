//! The functions that plans may call, by name, and the analyser that gives SQL Postgres' meaning over DataFusion.
//!
//! One registry serves ad-hoc and standing queries: [`scalar`], [`aggregate`] and [`window`] find a function by the name
//! that a stored plan holds. Where DataFusion's own function or operator differs from Postgres, ours is registered instead:
//! - [`arithmetic`]: `+ - * / %` and unary minus are checked;
//! - [`cast`]: casts round, range-check, read and write as Postgres does, by [`parse`], [`format`](mod@format) and [`zone`];
//! - [`library`]: functions of numbers, text, binary strings, dates and times, chosen by [`overload`];
//! - [`aggregate`]: `sum` and `avg` neither wrap nor drift;
//! - [`extreme`]: `min` and `max` know every float;
//! - `row_number`, `rank`, `dense_rank` and `ntile` count in signed types;
//! - [`session`] finds sessions of rows.
//!
//! [`rules::analyzer`] rewrites operators and casts into calls of these functions, and [`typing`] brings operands together.
//! It must run, in this form, on every plan before it is optimised, because constants are folded there.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::execution::SessionStateDefaults;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};

pub mod aggregate;
pub mod arithmetic;
pub mod cast;
mod chain;
pub mod conditional;
mod decimal;
pub mod extreme;
pub mod format;
pub mod guard;
mod library;
pub mod overload;
pub mod parse;
mod ranking;
pub mod rules;
pub(crate) mod session;
pub mod single_row;
mod temporal;
pub mod typing;
pub mod varchar;
pub mod zone;

/// The scalar function registered as `name` (or with that alias), if there is one.
pub fn scalar(name: &str) -> Option<Arc<ScalarUDF>> {
    registry().scalars.get(name).map(Arc::clone).or_else(|| chain::by_name(name))
}

/// The argument types of the first form of a function that is declared here with PostgreSQL's types.
pub fn first_form(function: &ScalarUDF) -> Option<Vec<DataType>> {
    library::of(function)?.first_form()
}

/// The scalar function `name` if it is one that is declared here with PostgreSQL's types.
pub fn declared(name: &str) -> Option<Arc<ScalarUDF>> {
    scalar(name).filter(|f| library::of(f).is_some())
}

/// The aggregate function registered as `name` (or with that alias), if there is one.
pub fn aggregate(name: &str) -> Option<Arc<AggregateUDF>> {
    registry().aggregates.get(name).map(Arc::clone)
}

/// The window function registered as `name` (or with that alias), if there is one. Aggregates are not among them.
pub fn window(name: &str) -> Option<Arc<WindowUDF>> {
    registry().windows.get(name).map(Arc::clone)
}

/// Every scalar function once.
pub fn scalars() -> Vec<Arc<ScalarUDF>> {
    let map = &registry().scalars;
    map.iter().filter(|(name, f)| name.as_str() == f.name()).map(|(_, f)| Arc::clone(f)).collect()
}

/// Every aggregate function once.
pub fn aggregates() -> Vec<Arc<AggregateUDF>> {
    let map = &registry().aggregates;
    map.iter().filter(|(name, f)| name.as_str() == f.name()).map(|(_, f)| Arc::clone(f)).collect()
}

/// Every window function once.
pub fn windows() -> Vec<Arc<WindowUDF>> {
    let map = &registry().windows;
    map.iter().filter(|(name, f)| name.as_str() == f.name()).map(|(_, f)| Arc::clone(f)).collect()
}

/// The names by which functions can be called, for suggestions.
pub fn names() -> impl Iterator<Item = &'static str> {
    let r = registry();
    r.scalars.keys().chain(r.aggregates.keys()).chain(r.windows.keys()).map(String::as_str)
}

/// What turns SQL expressions into calls of these functions, to be asked in this order.
pub fn expr_planners() -> Vec<Arc<dyn ExprPlanner>> {
    let mut planners: Vec<Arc<dyn ExprPlanner>> = vec![Arc::new(rules::ArithmeticPlanner)];
    planners.extend(SessionStateDefaults::default_expr_planners());
    planners
}

struct Registry {
    scalars: HashMap<String, Arc<ScalarUDF>>,
    aggregates: HashMap<String, Arc<AggregateUDF>>,
    windows: HashMap<String, Arc<WindowUDF>>,
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let mut scalars = HashMap::new();
        let ours = arithmetic::Op::ALL
            .into_iter()
            .map(|op| ScalarUDF::from(arithmetic::Arithmetic::new(op)))
            .chain([ScalarUDF::from(arithmetic::Negate::new()), ScalarUDF::from(varchar::Varchar::new())])
            .chain(cast::TARGETS.iter().map(|(name, _)| ScalarUDF::from(cast::Cast::new(name))))
            .chain(cast::ARRAY_TARGETS.iter().map(|name| ScalarUDF::from(cast::Cast::new(name))))
            .chain([ScalarUDF::from(single_row::SingleRow::new())])
            .chain(library::functions())
            .map(Arc::new);
        for function in SessionStateDefaults::default_scalar_functions().into_iter().chain(ours) {
            for alias in function.aliases() {
                scalars.insert(alias.clone(), Arc::clone(&function));
            }
            scalars.insert(function.name().to_owned(), function);
        }
        for name in conditional::OneType::NAMES {
            if let Some(inner) = scalars.remove(name) {
                scalars.insert(name.to_owned(), Arc::new(ScalarUDF::from(conditional::OneType::new(inner))));
            }
        }
        // DataFusion's `array_remove` takes away the first of equal elements only.
        if let Some(all) = scalars.get("array_remove_all").cloned() {
            scalars.insert("array_remove".to_owned(), all);
        }
        for name in conditional::Counted::NAMES {
            if let Some(inner) = scalars.remove(name) {
                scalars.insert(name.to_owned(), Arc::new(ScalarUDF::from(conditional::Counted::new(inner))));
            }
        }
        let mut aggregates = HashMap::new();
        let ours = [aggregate::SumOrAverage::sum(), aggregate::SumOrAverage::average()];
        let ours = ours.into_iter().map(|f| Arc::new(AggregateUDF::from(f)));
        for function in SessionStateDefaults::default_aggregate_functions().into_iter().chain(ours) {
            for alias in function.aliases() {
                aggregates.insert(alias.clone(), Arc::clone(&function));
            }
            aggregates.insert(function.name().to_owned(), function);
        }
        for name in extreme::Extreme::NAMES {
            if let Some(inner) = aggregates.remove(name) {
                aggregates.insert(name.to_owned(), Arc::new(AggregateUDF::from(extreme::Extreme::new(inner))));
            }
        }
        // `mean` is an alias of the `avg` that ours replaces; `every` is standard SQL's `bool_and`.
        for (alias, name) in [("mean", "avg"), ("every", "bool_and"), ("variance", "var_samp")] {
            if let Some(function) = aggregates.get(name).cloned() {
                aggregates.insert(alias.to_owned(), function);
            }
        }
        let mut windows = HashMap::new();
        let ranking = SessionStateDefaults::default_window_functions().into_iter().map(ranking::signed);
        for function in ranking.chain(session::functions()) {
            for alias in function.aliases() {
                windows.insert(alias.clone(), Arc::clone(&function));
            }
            windows.insert(function.name().to_owned(), function);
        }
        Registry { scalars, aggregates, windows }
    })
}

/// The type's name as Postgres writes it in messages.
pub fn type_name(t: &DataType) -> String {
    match t {
        DataType::Null => "unknown".to_string(),
        DataType::Boolean => "boolean".to_string(),
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => "smallint".to_string(),
        DataType::UInt16 | DataType::Int32 => "integer".to_string(),
        DataType::UInt32 | DataType::Int64 => "bigint".to_string(),
        DataType::UInt64
        | DataType::Decimal32(_, _)
        | DataType::Decimal64(_, _)
        | DataType::Decimal128(_, _)
        | DataType::Decimal256(_, _) => "numeric".to_string(),
        DataType::Float16 | DataType::Float32 => "real".to_string(),
        DataType::Float64 => "double precision".to_string(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_string(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "bytea".to_string()
        }
        DataType::Date32 | DataType::Date64 => "date".to_string(),
        DataType::Time32(_) | DataType::Time64(_) => "time without time zone".to_string(),
        DataType::Timestamp(_, None) => "timestamp without time zone".to_string(),
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone".to_string(),
        DataType::Interval(_) | DataType::Duration(_) => "interval".to_string(),
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            format!("{}[]", type_name(f.data_type()))
        }
        DataType::Dictionary(_, value) => type_name(value),
        DataType::Struct(_) => "record".to_string(),
        other => other.to_string().to_lowercase(),
    }
}

/// The canonical Arrow type for a result type of DataFusion's: what a column of a table, of a standing view or of an
/// answer has.
pub fn canonical(t: &DataType) -> DataType {
    match t {
        DataType::Null => DataType::Utf8View,
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
        DataType::Decimal256(p, s) => DataType::Decimal128((*p).min(38), (*s).min(38)),
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Date64 => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(_, Some(_)) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Interval(_) | DataType::Duration(_) => {
            DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano)
        }
        DataType::Dictionary(_, value) => canonical(value),
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            DataType::List(Arc::new(arrow::datatypes::Field::new("item", canonical(f.data_type()), true)))
        }
        other => other.clone(),
    }
}
