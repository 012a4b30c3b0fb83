//! PostgreSQL's system information functions as DataFusion scalar functions bound to one [`Snapshot`].
//!
//! Each is an entry of a table: a name, the PostgreSQL type it gives, and a body that works on whole columns. Arguments are
//! taken as they come and cast by the body, because clients pass OIDs as integers, as strings and as casts of either.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, Int64Builder, ListArray, ListBuilder, StringViewArray, StringViewBuilder,
};
use arrow::datatypes::{DataType, Field, FieldRef};
use catalog::types::oid;
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::Snapshot;
use super::layout;
use super::provider::external;

mod lookup;
mod reg;
mod session;
mod text;

/// One function of the table.
pub(super) struct Definition {
    pub name: &'static str,
    /// OID of the result's type.
    pub result: u32,
    pub body: Body,
    pub volatile: bool,
}

/// Computes the result for `arguments.rows` rows.
pub(super) type Body = fn(&Snapshot, &Arguments) -> flow::Result<ArrayRef>;

const fn stable(name: &'static str, result: u32, body: Body) -> Definition {
    Definition { name, result, body, volatile: false }
}

const fn volatile(name: &'static str, result: u32, body: Body) -> Definition {
    Definition { name, result, body, volatile: true }
}

const TEXT: u32 = oid::TEXT;
const NAME: u32 = oid::NAME;
const BOOL: u32 = oid::BOOL;
const INT4: u32 = oid::INT4;
const INT8: u32 = oid::INT8;
const OID: u32 = oid::OID;

fn definitions() -> impl Iterator<Item = &'static Definition> {
    [lookup::FUNCTIONS, session::FUNCTIONS, text::FUNCTIONS, reg::FUNCTIONS].into_iter().flatten()
}

/// Every function, bound to `snapshot`.
pub fn all(snapshot: &Arc<Snapshot>) -> Vec<Arc<ScalarUDF>> {
    definitions().map(|d| bind(snapshot, d)).chain([expand_array()]).collect()
}

/// The function with this name, bound to `snapshot`.
pub fn named(snapshot: &Arc<Snapshot>, name: &str) -> Option<Arc<ScalarUDF>> {
    if name == ExpandArray::NAME {
        return Some(expand_array());
    }
    definitions().find(|d| d.name == name).map(|d| bind(snapshot, d))
}

/// Name and result type of every function that is PostgreSQL's, not one of those that only rewriting calls.
pub fn names_and_results() -> impl Iterator<Item = (&'static str, u32)> {
    let internal = |name: &str| {
        ["like_pattern", "array_prefix", "pg_options_text"].contains(&name)
            || (name.starts_with("reg") && (name.ends_with("_number") || name.ends_with("_name")))
    };
    definitions().filter(move |d| !internal(d.name)).map(|d| (d.name, d.result))
}

fn bind(snapshot: &Arc<Snapshot>, definition: &'static Definition) -> Arc<ScalarUDF> {
    let volatility = if definition.volatile { Volatility::Volatile } else { Volatility::Stable };
    let signature = Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], volatility);
    Arc::new(ScalarUDF::new_from_impl(SystemFunction { snapshot: Arc::clone(snapshot), definition, signature }))
}

/// A function of the table, bound to a snapshot.
struct SystemFunction {
    snapshot: Arc<Snapshot>,
    definition: &'static Definition,
    signature: Signature,
}

impl std::fmt::Debug for SystemFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SystemFunction({})", self.definition.name)
    }
}

impl PartialEq for SystemFunction {
    fn eq(&self, other: &SystemFunction) -> bool {
        Arc::ptr_eq(&self.snapshot, &other.snapshot) && self.definition.name == other.definition.name
    }
}

impl Eq for SystemFunction {}

impl Hash for SystemFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.definition.name.hash(state);
    }
}

impl ScalarUDFImpl for SystemFunction {
    fn name(&self) -> &str {
        self.definition.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(layout::arrow_type(self.definition.result))
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        let field = Field::new(self.name(), layout::arrow_type(self.definition.result), true);
        Ok(Arc::new(field.with_metadata(layout::pg_type_metadata(self.definition.result))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let columns = args.args.iter().map(|a| a.to_array(rows)).collect::<Result<Vec<_>>>()?;
        let result = (self.definition.body)(&self.snapshot, &Arguments { columns, rows }).map_err(external)?;
        let wanted = layout::arrow_type(self.definition.result);
        let result = if result.data_type() == &wanted { result } else { arrow::compute::cast(&result, &wanted)? };
        match constant {
            // A volatile function of constants has one value for the statement, like every function here.
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}

/// The arguments of one call, as columns of equal length.
pub(super) struct Arguments {
    columns: Vec<ArrayRef>,
    pub rows: usize,
}

impl Arguments {
    pub fn count(&self) -> usize {
        self.columns.len()
    }

    /// Argument `i` as it came.
    pub fn column(&self, i: usize) -> Option<&ArrayRef> {
        self.columns.get(i)
    }

    /// Argument `i` as integers; all NULL when there is no such argument. Text that is no number is an error.
    pub fn ints(&self, i: usize) -> flow::Result<Int64Array> {
        match self.columns.get(i) {
            Some(column) => Ok(cast::<Int64Array>(column, &DataType::Int64)?),
            None => Ok(Int64Array::new_null(self.rows)),
        }
    }

    /// Argument `i` as text; all NULL when there is no such argument.
    pub fn texts(&self, i: usize) -> flow::Result<StringViewArray> {
        match self.columns.get(i) {
            Some(column) => Ok(cast::<StringViewArray>(column, &DataType::Utf8View)?),
            None => Ok(StringViewArray::new_null(self.rows)),
        }
    }

    /// Argument `i` as booleans; all NULL when there is no such argument.
    pub fn bools(&self, i: usize) -> flow::Result<BooleanArray> {
        match self.columns.get(i) {
            Some(column) => Ok(cast::<BooleanArray>(column, &DataType::Boolean)?),
            None => Ok(BooleanArray::new_null(self.rows)),
        }
    }

    /// Whether argument `i` is text rather than a number.
    pub fn is_text(&self, i: usize) -> bool {
        let text = [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View];
        self.columns.get(i).is_some_and(|c| text.contains(c.data_type()))
    }

    /// A column of text, one value per row of argument 0 read as an OID; NULL for a NULL.
    pub fn text_of_oid(&self, f: impl Fn(i64) -> Option<String>) -> flow::Result<ArrayRef> {
        Ok(texts(self.ints(0)?.iter().map(|oid| oid.and_then(&f))))
    }

    /// The same value in every row.
    pub fn constant_text(&self, value: Option<&str>) -> ArrayRef {
        texts((0..self.rows).map(|_| value))
    }

    pub fn constant_int(&self, value: Option<i64>) -> ArrayRef {
        ints((0..self.rows).map(|_| value))
    }

    pub fn constant_bool(&self, value: bool) -> ArrayRef {
        bools((0..self.rows).map(|_| Some(value)))
    }
}

fn cast<T: Array + Clone + 'static>(column: &ArrayRef, to: &DataType) -> flow::Result<T> {
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    let array = arrow::compute::cast_with_options(column, to, &options).map_err(|e| {
        flow::Error::new(
            flow::SqlState::InvalidTextRepresentation,
            format!("invalid argument of a system function: {e}"),
        )
    })?;
    match array.as_any().downcast_ref::<T>() {
        Some(typed) => Ok(typed.clone()),
        None => Err(flow::Error::internal(format!("a cast to {to} gave {}", array.data_type()))),
    }
}

fn texts<S: AsRef<str>>(values: impl IntoIterator<Item = Option<S>>) -> ArrayRef {
    let mut builder = StringViewBuilder::new();
    values.into_iter().for_each(|v| builder.append_option(v));
    Arc::new(builder.finish())
}

fn ints(values: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    let mut builder = Int64Builder::new();
    values.into_iter().for_each(|v| builder.append_option(v));
    Arc::new(builder.finish())
}

fn bools(values: impl IntoIterator<Item = Option<bool>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<BooleanArray>())
}

/// One list of texts in every row.
fn text_lists(rows: usize, values: &[String]) -> ArrayRef {
    let mut builder = ListBuilder::new(StringViewBuilder::new());
    for _ in 0..rows {
        values.iter().for_each(|v| builder.values().append_value(v));
        builder.append(true);
    }
    Arc::new(builder.finish())
}

/// The list column that argument `i` is, if it is one.
fn list_argument(a: &Arguments, i: usize) -> flow::Result<Option<ListArray>> {
    let Some(column) = a.column(i) else { return Ok(None) };
    match column.data_type() {
        DataType::List(_) => Ok(column.as_any().downcast_ref::<ListArray>().cloned()),
        DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            Ok(Some(cast::<ListArray>(column, &DataType::List(Arc::clone(f)))?))
        }
        DataType::Null => Ok(None),
        other => Err(flow::Error::new(flow::SqlState::DatatypeMismatch, format!("an array is needed, not {other}"))),
    }
}

fn expand_array() -> Arc<ScalarUDF> {
    let signature = Signature::any(1, Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(ExpandArray { signature }))
}

/// `pg_expandarray(list)`: what `information_schema._pg_expandarray` gives row by row, as one list of `{x: element, n:
/// position}`. Its type follows from the argument's, so it is not an entry of the table.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ExpandArray {
    signature: Signature,
}

impl ExpandArray {
    const NAME: &str = "pg_expandarray";
}

impl ScalarUDFImpl for ExpandArray {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [DataType::List(element)] => Ok(text::expanded_type(element.data_type())),
            _ => Err(external(flow::Error::new(flow::SqlState::DatatypeMismatch, "_pg_expandarray() needs an array"))),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = args.args.iter().map(|a| a.to_array(args.number_rows)).collect::<Result<Vec<_>>>()?;
        let arguments = Arguments { columns, rows: args.number_rows };
        match list_argument(&arguments, 0).map_err(external)? {
            Some(list) => Ok(ColumnarValue::Array(text::expand_array(&list).map_err(external)?)),
            None => Ok(ColumnarValue::Scalar(ScalarValue::try_from(args.return_field.data_type())?)),
        }
    }
}

/// Turns an error that came through DataFusion back into ours, if it was ours.
pub fn our_error(error: &DataFusionError) -> Option<&flow::Error> {
    match error.find_root() {
        DataFusionError::External(inner) => inner.downcast_ref::<flow::Error>(),
        _ => None,
    }
}
