//! PostgreSQL's scalar functions: their declared types, and kernels over whole columns.
//!
//! A [`Function`] is all functions of one name. Which of them a call means is decided by [`overload::resolve`], in the
//! planner and again where the call is bound, by the types of its arguments alone. Where a function reads the session's time
//! zone, the analyser appends the zone to its arguments, so that a standing query keeps the one it was created with.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use flow::{Error, SqlState};

use super::overload::{self, Arguments, Type};
use super::{cast, zone::Zone};

mod binary;
mod calendar;
mod cells;
mod datetime;
mod digest;
mod math;
mod numeric_format;
mod regex;
mod strings;
mod time_format;
pub(super) mod windows;

use cells::Call;

/// What a function gives, by the types of its arguments.
#[derive(Clone, Copy)]
enum Gives {
    Is(Type),
    /// The type of an argument.
    As(usize),
    /// Computed from the types of the arguments and from those that are constants.
    By(fn(&[DataType], &[Option<ScalarValue>]) -> DataType),
}

type Kernel = fn(&Call<'_>) -> flow::Result<ArrayRef>;

/// One of the functions of a name.
struct Overload {
    arguments: Arguments,
    gives: Gives,
    /// Whether the session's time zone may follow the arguments.
    zoned: bool,
    kernel: Kernel,
}

/// All functions of one name.
pub struct Function {
    name: &'static str,
    overloads: Vec<Overload>,
    signature: Signature,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Function) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// Declarations as they are collected.
#[derive(Default)]
struct Declared(Vec<(&'static str, Overload)>);

impl Declared {
    /// A function of exactly these arguments.
    fn of(&mut self, name: &'static str, types: &'static [Type], gives: Gives, kernel: Kernel) {
        let arguments = Arguments { types, variadic: false };
        self.0.push((name, Overload { arguments, gives, zoned: false, kernel }));
    }

    /// A function whose last argument may be repeated.
    fn variadic(&mut self, name: &'static str, types: &'static [Type], gives: Gives, kernel: Kernel) {
        let arguments = Arguments { types, variadic: true };
        self.0.push((name, Overload { arguments, gives, zoned: false, kernel }));
    }

    /// A function that reads the time zone.
    fn zoned(&mut self, name: &'static str, types: &'static [Type], gives: Gives, kernel: Kernel) {
        let arguments = Arguments { types, variadic: false };
        self.0.push((name, Overload { arguments, gives, zoned: true, kernel }));
    }
}

/// Every function of this library once.
pub(super) fn functions() -> Vec<ScalarUDF> {
    let mut declared = Declared::default();
    math::declare(&mut declared);
    strings::declare(&mut declared);
    regex::declare(&mut declared);
    binary::declare(&mut declared);
    datetime::declare(&mut declared);
    time_format::declare(&mut declared);
    numeric_format::declare(&mut declared);
    windows::declare(&mut declared);
    let mut functions: Vec<Function> = Vec::new();
    for (name, overload) in declared.0 {
        match functions.iter_mut().find(|f| f.name == name) {
            Some(function) => function.overloads.push(overload),
            None => functions.push(Function {
                name,
                overloads: vec![overload],
                signature: Signature::user_defined(Volatility::Immutable),
            }),
        }
    }
    functions.into_iter().map(ScalarUDF::from).collect()
}

/// The function behind `f`, if it is one of this library.
pub(super) fn of(f: &ScalarUDF) -> Option<&Function> {
    f.inner().downcast_ref::<Function>()
}

impl Function {
    /// The argument types of the first form, where they do not depend on the call.
    pub(super) fn first_form(&self) -> Option<Vec<DataType>> {
        let first = self.overloads.first()?;
        if first.arguments.variadic || first.arguments.types.contains(&Type::Other) {
            return None;
        }
        Some(first.arguments.types.iter().map(|t| t.arrow(&DataType::Null)).collect())
    }

    /// Which overload a call with arguments of these types means, and whether the zone is among them.
    fn find(&self, given: &[DataType]) -> Option<(&Overload, bool)> {
        let types: Vec<Type> = given.iter().map(Type::of).collect();
        let candidates: Vec<Arguments> = self.overloads.iter().map(|o| o.arguments).collect();
        if let Some(i) = overload::resolve(&candidates, &types) {
            return Some((&self.overloads[i], false));
        }
        let (last, front) = types.split_last()?;
        if !matches!(last, Type::Text | Type::Unknown) {
            return None;
        }
        let zoned: Vec<&Overload> = self.overloads.iter().filter(|o| o.zoned).collect();
        let candidates: Vec<Arguments> = zoned.iter().map(|o| o.arguments).collect();
        overload::resolve(&candidates, front).map(|i| (zoned[i], true))
    }

    /// As [`find`](Self::find); integer literals are still of type bigint while the SQL planner is at work, so one may also
    /// stand where an integer is wanted.
    fn find_leniently(&self, given: &[DataType]) -> Option<(&Overload, bool)> {
        self.find(given).or_else(|| {
            let narrowed: Vec<DataType> =
                given.iter().map(|t| if *t == DataType::Int64 { DataType::Int32 } else { t.clone() }).collect();
            self.find(&narrowed)
        })
    }

    /// The types to which arguments of `given` types are brought. `strict`: the literals have their types.
    ///
    /// Errors: `42883`.
    pub(super) fn argument_types(&self, given: &[DataType], strict: bool) -> flow::Result<Vec<DataType>> {
        let found = if strict { self.find(given) } else { self.find_leniently(given) };
        let Some((overload, with_zone)) = found else {
            return Err(overload::no_function(self.name, given));
        };
        let own = given.len() - usize::from(with_zone);
        let types = overload.arguments.types;
        let mut wanted: Vec<DataType> =
            given[..own].iter().enumerate().map(|(i, t)| types[i.min(types.len() - 1)].arrow(t)).collect();
        if with_zone {
            wanted.push(DataType::Utf8View);
        }
        Ok(wanted)
    }

    /// Whether a call with these arguments still lacks the session's time zone.
    pub(super) fn wants_zone(&self, given: &[DataType]) -> bool {
        self.find(given).is_some_and(|(overload, with_zone)| overload.zoned && !with_zone)
    }

    fn result(&self, given: &[DataType], constants: &[Option<ScalarValue>]) -> Result<DataType> {
        let Some((overload, _)) = self.find_leniently(given) else {
            return Err(external(overload::no_function(self.name, given)));
        };
        Ok(match overload.gives {
            Gives::Is(t) => t.arrow(&DataType::Null),
            Gives::As(i) => given.get(i).cloned().unwrap_or(DataType::Utf8View),
            Gives::By(f) => f(given, constants),
        })
    }
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.argument_types(given, false).map_err(external)
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        self.result(given, &vec![None; given.len()])
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let given: Vec<DataType> = args.arg_fields.iter().map(|f| f.data_type().clone()).collect();
        let constants: Vec<Option<ScalarValue>> = args.scalar_arguments.iter().map(|s| s.cloned()).collect();
        Ok(Arc::new(Field::new(self.name, self.result(&given, &constants)?, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let given: Vec<DataType> = args.args.iter().map(ColumnarValue::data_type).collect();
        let Some((overload, with_zone)) = self.find_leniently(&given) else {
            return Err(external(overload::no_function(self.name, &given)));
        };
        let constant = args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let own = args.args.len() - usize::from(with_zone);
        let zone = match args.args.get(own) {
            Some(ColumnarValue::Scalar(z)) => zone_of(z.try_as_str().flatten().unwrap_or("UTC")).map_err(external)?,
            _ => Zone::UTC,
        };
        let mut columns = Vec::with_capacity(own);
        for arg in &args.args[..own] {
            columns.push(match arg {
                ColumnarValue::Array(array) => (Arc::clone(array), false),
                ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
            });
        }
        let result = args.return_field.data_type();
        let call = Call { columns: &columns, rows, result, zone };
        let array = (overload.kernel)(&call).map_err(external)?;
        Ok(if constant {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)
        } else {
            ColumnarValue::Array(array)
        })
    }
}

/// `22023` for a zone that does not exist.
fn zone_of(name: &str) -> flow::Result<Zone> {
    Zone::parse(name)
        .ok_or_else(|| Error::new(SqlState::InvalidParameterValue, format!("time zone \"{name}\" not recognized")))
}

/// `22023` with a message.
fn bad_argument(message: impl Into<String>) -> Error {
    Error::new(SqlState::InvalidParameterValue, message)
}
