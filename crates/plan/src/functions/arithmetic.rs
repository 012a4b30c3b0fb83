//! `+ - * / %` and unary minus as Postgres computes them: checked, and between the types that Postgres knows.
//!
//! DataFusion's own operators wrap on overflow and give infinity for a division by zero. These are scalar functions named
//! by their sign, so that ad-hoc and standing queries run the same kernels; the planner turns operators into calls of them
//! before types are coerced.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, AsArray, Datum, PrimitiveArray};
use arrow::compute::kernels::numeric;
use arrow::datatypes::*;
use arrow::error::ArrowError;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use datafusion::physical_expr_common::datum::apply;
use flow::{Error, SqlState};

use super::chain::Chain;
use super::{decimal, temporal, type_name};

/// A binary operator on numbers, dates, times and intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
}

impl Op {
    pub const ALL: [Op; 5] = [Op::Add, Op::Sub, Op::Mul, Op::Div, Op::Rem];

    /// The sign, which is also the function's name.
    pub fn sign(self) -> &'static str {
        match self {
            Op::Add => "+",
            Op::Sub => "-",
            Op::Mul => "*",
            Op::Div => "/",
            Op::Rem => "%",
        }
    }
}

/// Types that an operator works with: both operands after coercion, and the result.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Types {
    pub left: DataType,
    pub right: DataType,
    pub result: DataType,
}

/// How `left op right` is typed; `None` if Postgres has no such operator.
pub(super) fn types(op: Op, left: &DataType, right: &DataType) -> Option<Types> {
    let (left, right) = (canonical(left), canonical(right));
    // A bare string literal or NULL takes the type that the other side suggests.
    let (left, right) = match (is_unknown(&left), is_unknown(&right)) {
        (true, true) if left == DataType::Null && right == DataType::Null => (DataType::Int32, DataType::Int32),
        (true, true) => return None,
        (true, false) => (partner(op, &right, true), right),
        (false, true) => {
            let partner = partner(op, &left, false);
            (left, partner)
        }
        (false, false) => (left, right),
    };
    if let Some(types) = temporal::types(op, &left, &right) {
        return Some(types);
    }
    let (left, right) = match (&left, &right) {
        _ if left.is_integer() && right.is_integer() => {
            let wider = if width(&left) >= width(&right) { left } else { right };
            (wider.clone(), wider)
        }
        (DataType::Float32, DataType::Float32) => (DataType::Float32, DataType::Float32),
        _ if left.is_floating() && is_number(&right) || right.is_floating() && is_number(&left) => {
            (DataType::Float64, DataType::Float64)
        }
        _ if is_number(&left) && is_number(&right) => (as_decimal(&left), as_decimal(&right)),
        _ => return None,
    };
    let result = match (&left, &right) {
        (DataType::Decimal128(p1, s1), DataType::Decimal128(p2, s2)) => {
            let (p, s) = decimal::result_type(op, (*p1, *s1), (*p2, *s2));
            DataType::Decimal128(p, s)
        }
        _ => left.clone(),
    };
    Some(Types { left, right, result })
}

/// The type that an operand of a type nobody can declare is first cast to.
fn canonical(t: &DataType) -> DataType {
    match t {
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
        DataType::Decimal256(_, s) => DataType::Decimal128(38, (*s).min(38)),
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Date64 => DataType::Date32,
        DataType::Interval(_) | DataType::Duration(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::Dictionary(_, value) => canonical(value),
        other => other.clone(),
    }
}

/// A literal that has no type yet: see [`overload`](super::overload).
fn is_unknown(t: &DataType) -> bool {
    matches!(t, DataType::Null | DataType::Utf8)
}

fn is_number(t: &DataType) -> bool {
    t.is_integer() || t.is_floating() || matches!(t, DataType::Decimal128(_, _))
}

fn width(t: &DataType) -> usize {
    t.primitive_width().unwrap_or(0)
}

fn as_decimal(t: &DataType) -> DataType {
    match t {
        DataType::Int16 => DataType::Decimal128(5, 0),
        DataType::Int32 => DataType::Decimal128(10, 0),
        DataType::Int64 => DataType::Decimal128(19, 0),
        other => other.clone(),
    }
}

/// What an untyped literal beside `known` means.
fn partner(op: Op, known: &DataType, literal_is_left: bool) -> DataType {
    let interval = DataType::Interval(IntervalUnit::MonthDayNano);
    match known {
        DataType::Timestamp(_, _) | DataType::Time64(_) if op == Op::Add => interval,
        DataType::Date32 if op == Op::Add => DataType::Int32,
        DataType::Interval(_) if matches!(op, Op::Mul | Op::Div) => DataType::Float64,
        DataType::Interval(_) if op == Op::Sub && literal_is_left => DataType::Timestamp(TimeUnit::Microsecond, None),
        other => other.clone(),
    }
}

/// The function of one operator.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Arithmetic {
    op: Op,
    signature: Signature,
}

impl Arithmetic {
    pub fn new(op: Op) -> Arithmetic {
        Arithmetic { op, signature: Signature::user_defined(Volatility::Immutable) }
    }

    pub fn op(&self) -> Op {
        self.op
    }

    fn types_of(&self, arguments: &[DataType]) -> Result<Types> {
        let [left, right] = arguments else {
            return plan_err!("operator {} takes two operands", self.op.sign());
        };
        types(self.op, left, right).ok_or_else(|| {
            let error = if is_unknown(left) && is_unknown(right) {
                let message = format!("operator is not unique: unknown {} unknown", self.op.sign());
                Error::new(SqlState::AmbiguousFunction, message)
                    .with_hint("Could not choose a best candidate operator. You might need to add explicit type casts.")
            } else {
                super::overload::no_operator(self.op.sign(), left, right)
            };
            datafusion::common::DataFusionError::External(Box::new(error))
        })
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        self.op.sign()
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        let mut text = String::new();
        display(self.op, args, &mut text);
        Ok(text)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let types = self.types_of(arguments)?;
        Ok(vec![types.left, types.right])
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(self.types_of(arguments)?.result)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = args.args.as_slice() else {
            return plan_err!("operator {} takes two operands", self.op.sign());
        };
        apply_to(self.op, left, right, args.return_field.data_type())
    }
}

/// `left op right` over columns or constants; the operands have the types of [`types`].
pub(super) fn apply_to(
    op: Op,
    left: &ColumnarValue,
    right: &ColumnarValue,
    result: &DataType,
) -> Result<ColumnarValue> {
    apply(left, right, |l, r| evaluate(op, l, r, result))
}

/// `(left op right)`, written into one text however deep the operands are.
fn display(op: Op, args: &[Expr], text: &mut String) {
    let [left, right] = args else {
        text.push_str(op.sign());
        return;
    };
    text.push('(');
    operand(left, text);
    text.push(' ');
    text.push_str(op.sign());
    text.push(' ');
    operand(right, text);
    text.push(')');
}

pub(super) fn operand(e: &Expr, text: &mut String) {
    if let Expr::ScalarFunction(f) = e {
        if let Some(inner) = f.func.inner().downcast_ref::<Arithmetic>() {
            return display(inner.op, &f.args, text);
        }
        if let Some(inner) = f.func.inner().downcast_ref::<Chain>() {
            return inner.display(&f.args, text);
        }
    }
    text.push_str(&e.to_string());
}

/// `left op right` over whole columns; the operands have the types of [`types`].
pub(super) fn evaluate(op: Op, left: &dyn Datum, right: &dyn Datum, result: &DataType) -> Result<ArrayRef, ArrowError> {
    let (lt, rt) = (left.get().0.data_type(), right.get().0.data_type());
    match (lt, rt) {
        (DataType::Decimal128(_, _), DataType::Decimal128(_, _)) => decimal::evaluate(op, left, right, result),
        (DataType::Float32, _) => float::<Float32Type>(op, left, right),
        (DataType::Float64, DataType::Float64) => float::<Float64Type>(op, left, right),
        _ if lt.is_integer() && lt == rt => integer(op, left, right, result),
        _ => temporal::evaluate(op, left, right, result),
    }
}

fn integer(op: Op, left: &dyn Datum, right: &dyn Datum, result: &DataType) -> Result<ArrayRef, ArrowError> {
    match op {
        Op::Add => numeric::add(left, right),
        Op::Sub => numeric::sub(left, right),
        Op::Mul => numeric::mul(left, right),
        Op::Div => numeric::div(left, right),
        Op::Rem => numeric::rem(left, right),
    }
    .map_err(|e| match e {
        ArrowError::ArithmeticOverflow(_) => external(out_of_range(result)),
        ArrowError::DivideByZero => external(division_by_zero()),
        other => other,
    })
}

fn float<T: ArrowPrimitiveType>(op: Op, left: &dyn Datum, right: &dyn Datum) -> Result<ArrayRef, ArrowError>
where
    T::Native: Infinite,
{
    if matches!(op, Op::Div | Op::Rem) {
        let (divisor, _) = right.get();
        let (dividend, dividend_is_scalar) = left.get();
        let divisor = divisor.as_primitive::<T>();
        // A zero divides nothing where the dividend is NULL.
        let all_null = dividend_is_scalar && dividend.is_null(0);
        let zero = (0..divisor.len()).any(|i| {
            divisor.is_valid(i)
                && ArrowNativeTypeOp::is_zero(divisor.value(i))
                && !all_null
                && (dividend_is_scalar || divisor.len() != dividend.len() || dividend.is_valid(i))
        });
        if zero && !dividend.is_empty() {
            return Err(external(division_by_zero()));
        }
    }
    let out = match op {
        Op::Add => numeric::add(left, right),
        Op::Sub => numeric::sub(left, right),
        Op::Mul => numeric::mul(left, right),
        Op::Div => numeric::div(left, right),
        Op::Rem => numeric::rem(left, right),
    }?;
    let values = out.as_primitive::<T>();
    if values.values().iter().any(|v| v.not_a_number()) {
        // One NaN, whatever bits the operation left in it.
        let out = values.unary::<_, T>(|v| if v.not_a_number() { T::Native::NAN } else { v });
        return Ok(Arc::new(out));
    }
    if values.values().iter().any(|v| v.infinite()) {
        let (l, l_scalar) = left.get();
        let (r, r_scalar) = right.get();
        let (l, r) = (l.as_primitive::<T>(), r.as_primitive::<T>());
        for i in 0..values.len() {
            let from_finite =
                !l.value(if l_scalar { 0 } else { i }).infinite() && !r.value(if r_scalar { 0 } else { i }).infinite();
            if values.is_valid(i) && values.value(i).infinite() && from_finite {
                return Err(external(Error::new(SqlState::NumericValueOutOfRange, "value out of range: overflow")));
            }
        }
    }
    Ok(out)
}

/// Whether a float is infinite, for `f32` and `f64` alike.
trait Infinite: Copy {
    const NAN: Self;
    fn infinite(self) -> bool;
    fn not_a_number(self) -> bool;
}

impl Infinite for f32 {
    const NAN: f32 = f32::NAN;
    fn infinite(self) -> bool {
        self.is_infinite()
    }
    fn not_a_number(self) -> bool {
        self.is_nan()
    }
}

impl Infinite for f64 {
    const NAN: f64 = f64::NAN;
    fn infinite(self) -> bool {
        self.is_infinite()
    }
    fn not_a_number(self) -> bool {
        self.is_nan()
    }
}

/// Unary minus.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Negate {
    signature: Signature,
}

impl Negate {
    pub const NAME: &'static str = "negate";

    pub fn new() -> Negate {
        Negate { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl Default for Negate {
    fn default() -> Negate {
        Negate::new()
    }
}

impl ScalarUDFImpl for Negate {
    fn name(&self) -> &str {
        Negate::NAME
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(match args {
            [arg] => format!("(- {arg})"),
            _ => Negate::NAME.to_string(),
        })
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let [argument] = arguments else { return plan_err!("unary minus takes one operand") };
        let wanted = match canonical(argument) {
            DataType::Null => DataType::Int32,
            t if is_unknown(&t) => DataType::Float64,
            t if is_number(&t) || matches!(t, DataType::Interval(_)) => t,
            _ => {
                let message = format!("operator does not exist: - {}", type_name(argument));
                let error = Error::new(SqlState::UndefinedFunction, message);
                return Err(datafusion::common::DataFusionError::External(Box::new(error)));
            }
        };
        Ok(vec![wanted])
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let [argument] = arguments else { return plan_err!("unary minus takes one operand") };
        Ok(argument.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = args.args.as_slice() else { return plan_err!("unary minus takes one operand") };
        let result = args.return_field.data_type();
        let negate = |array: &dyn Array| {
            numeric::neg(array).map_err(|e| match e {
                ArrowError::ArithmeticOverflow(_) => external(out_of_range(result)),
                other => other,
            })
        };
        Ok(match value {
            ColumnarValue::Array(array) => ColumnarValue::Array(negate(array.as_ref())?),
            ColumnarValue::Scalar(scalar) => {
                let array = scalar.to_array()?;
                ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&negate(array.as_ref())?, 0)?)
            }
        })
    }
}

/// Applies `f` to every pair of valid values; either side may be one value for all rows.
pub(super) fn zip<L, R, O>(
    left: &dyn Datum,
    right: &dyn Datum,
    f: impl Fn(L::Native, R::Native) -> Result<O::Native, ArrowError>,
) -> Result<PrimitiveArray<O>, ArrowError>
where
    L: ArrowPrimitiveType,
    R: ArrowPrimitiveType,
    O: ArrowPrimitiveType,
{
    let (l, l_scalar) = left.get();
    let (r, r_scalar) = right.get();
    let (l, r) = (l.as_primitive::<L>(), r.as_primitive::<R>());
    match (l_scalar, r_scalar) {
        (false, true) if r.is_null(0) => Ok(PrimitiveArray::new_null(l.len())),
        (false, true) => {
            let r = r.value(0);
            l.try_unary(|l| f(l, r))
        }
        (true, false) if l.is_null(0) => Ok(PrimitiveArray::new_null(r.len())),
        (true, false) => {
            let l = l.value(0);
            r.try_unary(|r| f(l, r))
        }
        _ => arrow::compute::try_binary(l, r, f),
    }
}

pub(super) fn external(error: Error) -> ArrowError {
    ArrowError::ExternalError(Box::new(error))
}

/// `integer out of range` and its likes.
pub(super) fn out_of_range(t: &DataType) -> Error {
    Error::new(SqlState::NumericValueOutOfRange, format!("{} out of range", type_name(t)))
}

pub(super) fn division_by_zero() -> Error {
    Error::new(SqlState::DivisionByZero, "division by zero")
}

pub(super) fn array<T: ArrowPrimitiveType>(array: PrimitiveArray<T>) -> ArrayRef {
    Arc::new(array)
}
