use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::{self as df, col, lit};
use flow::SqlState;

use super::*;

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("a", DataType::Int64, true),
        Field::new("b", DataType::Int64, true),
        Field::new("s", DataType::Utf8View, true),
    ]))
}

fn batch() -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(10), Some(20), None, Some(i64::MAX)])),
        Arc::new(Int64Array::from(vec![Some(2), Some(0), Some(1), Some(1)])),
        Arc::new(StringViewArray::from(vec![Some("ab"), None, Some("b%"), Some("AB")])),
    ];
    RecordBatch::try_new(input(), columns).unwrap()
}

fn tree(expr: &df::Expr) -> flow::Result<Expr> {
    from_datafusion(expr, &DFSchema::try_from(input().as_ref().clone()).unwrap())
}

/// The value of `expr` over [`batch`], after a round trip through the serialised form.
fn run(expr: &df::Expr) -> flow::Result<ArrayRef> {
    let expr = tree(expr)?;
    let text = serde_json::to_string(&expr).unwrap();
    let back: Expr = serde_json::from_str(&text).unwrap();
    assert_eq!(back, expr);
    evaluate(&bind(&back, &input())?, &batch())
}

fn bools(array: &ArrayRef) -> Vec<Option<bool>> {
    array.as_boolean().iter().collect()
}

#[test]
fn every_kind_of_expression_survives_serialisation_and_evaluates() {
    let yes = run(&col("a").gt(lit(15i64)).or(col("s").is_null())).unwrap();
    assert_eq!(bools(&yes), [Some(false), Some(true), None, Some(true)]);

    let case = df::when(col("b").eq(lit(0i64)), lit(-1i64)).otherwise(col("b")).unwrap();
    let case = run(&case).unwrap();
    assert_eq!(case.as_primitive::<Int64Type>().values(), &[2, -1, 1, 1]);

    let like = run(&col("s").like(lit(ScalarValue::Utf8View(Some("%b".into()))))).unwrap();
    assert_eq!(bools(&like), [Some(true), None, Some(false), Some(false)]);
    let ilike = run(&col("s").ilike(lit(ScalarValue::Utf8View(Some("%b".into()))))).unwrap();
    assert_eq!(bools(&ilike), [Some(true), None, Some(false), Some(true)]);

    let is = run(&col("a").gt(lit(15i64)).is_not_true()).unwrap();
    assert_eq!(bools(&is), [Some(true), Some(false), Some(true), Some(false)]);

    let between = run(&col("b").not_between(lit(1i64), lit(2i64))).unwrap();
    assert_eq!(bools(&between), [Some(false), Some(true), Some(false), Some(false)]);

    let list = run(&col("b").in_list(vec![lit(0i64), col("a")], false)).unwrap();
    assert_eq!(bools(&list), [Some(false), Some(true), None, Some(false)]);

    let cast = run(&df::cast(col("b"), DataType::Int32)).unwrap();
    assert_eq!(cast.as_ref(), &Int32Array::from(vec![2, 0, 1, 1]) as &dyn Array);

    let text = df::cast(col("s"), DataType::Int64);
    assert_eq!(run(&text).unwrap_err().state(), SqlState::InvalidTextRepresentation);
    assert_eq!(run(&df::try_cast(col("s"), DataType::Int64)).unwrap().null_count(), 4);

    let call = crate::functions::scalar("upper").unwrap().call(vec![col("s")]);
    assert_eq!(run(&call.is_not_null()).unwrap().as_boolean().true_count(), 3);
}

#[test]
fn what_is_bound_goes_back_unless_it_depends_on_more_than_its_input() {
    let back = |e: &df::Expr| from_physical(&bind(&tree(e).unwrap(), &input()).unwrap(), &input());
    let function = |name: &str, args| crate::functions::scalar(name).unwrap().call(args);
    let many: Vec<df::Expr> = (0..20i64).map(lit).collect();
    for expr in [
        col("a").gt(lit(15i64)),
        col("s").is_null(),
        !col("s").is_not_null(),
        df::when(col("b").eq(lit(0i64)), lit(-1i64)).otherwise(col("b")).unwrap(),
        col("s").like(lit(ScalarValue::Utf8View(Some("%b".into())))),
        col("b").in_list(vec![lit(0i64), col("a")], true),
        col("b").in_list(many, false),
        df::cast(col("b"), DataType::Int32),
        df::try_cast(col("s"), DataType::Int64),
        function("upper", vec![col("s")]).eq(lit(ScalarValue::Utf8View(Some("AB".into())))),
        function("/", vec![lit(1i64), col("b")]),
    ] {
        assert_eq!(back(&expr), Some(tree(&expr).unwrap()), "{expr}");
    }
    for expr in [
        function("random", vec![]).gt(lit(0.5)),
        function("to_unixtime", vec![col("b")]).is_null(),
        // Of DataFusion, which may wrap.
        (col("a") + col("b")).gt(lit(1i64)),
        (0..200).fold(col("a"), |e, _| function("abs", vec![e])),
    ] {
        assert_eq!(back(&expr), None, "{expr}");
    }
}

#[test]
fn a_long_list_of_constants_is_one_array() {
    let list: Vec<df::Expr> = (0..1000i64).map(lit).collect();
    let expr = col("b").in_list(list, true);
    assert!(matches!(tree(&expr).unwrap(), Expr::InSet { negated: true, .. }));
    assert_eq!(bools(&run(&expr).unwrap()), [Some(false); 4]);
}

#[test]
fn arithmetic_fails_on_overflow_and_division_by_zero() {
    assert_eq!(run(&(col("a") + lit(1i64))).unwrap_err().state(), SqlState::NumericValueOutOfRange);
    assert_eq!(run(&(col("a") * lit(3i64))).unwrap_err().state(), SqlState::NumericValueOutOfRange);
    assert_eq!(run(&(col("a") / col("b"))).unwrap_err().state(), SqlState::DivisionByZero);
    assert_eq!(run(&(col("a") % col("b"))).unwrap_err().state(), SqlState::DivisionByZero);
}

#[test]
fn and_and_or_guard_their_right_side() {
    let guarded = col("b").not_eq(lit(0i64)).and((col("a") / col("b")).gt(lit(5i64)));
    assert_eq!(bools(&run(&guarded).unwrap()), [Some(false), Some(false), None, Some(true)]);
    let either = col("b").eq(lit(0i64)).or((col("a") / col("b")).gt(lit(5i64)));
    assert_eq!(bools(&run(&either).unwrap()), [Some(false), Some(true), None, Some(true)]);
    let unguarded = (col("a") / col("b")).gt(lit(5i64)).and(col("b").not_eq(lit(0i64)));
    assert_eq!(run(&unguarded).unwrap_err().state(), SqlState::DivisionByZero);
}

#[test]
fn long_chains_are_balanced_and_deep_nests_refused() {
    let chain = (0..5000i64).fold(lit(false), |e, i| e.or(col("b").eq(lit(i))));
    let built = tree(&chain).unwrap();
    assert!(built.depth() < 20, "{}", built.depth());
    assert_eq!(bools(&run(&chain).unwrap()), [Some(true); 4]);

    let deep = (0..super::DEPTH_MAX as i64).fold(col("a"), |e, i| e - lit(i));
    assert_eq!(tree(&deep).unwrap_err().state(), SqlState::StatementTooComplex);
}

#[test]
fn serialised_steps_that_do_not_fit_are_refused() {
    for text in [
        "[]",
        r#"[{"Column":0},{"Column":1}]"#,
        r#"["Not"]"#,
        r#"[{"Case":{"operand":true,"branches":18446744073709551615,"otherwise":true}}]"#,
    ] {
        assert!(serde_json::from_str::<Expr>(text).is_err(), "{text}");
    }
    let mut deep = vec![r#"{"Column":0}"#.to_owned()];
    deep.extend(std::iter::repeat_n("\"Not\"".to_owned(), 100_000));
    assert!(serde_json::from_str::<Expr>(&format!("[{}]", deep.join(","))).is_err());
}

#[test]
fn literals_keep_every_bit() {
    for value in [
        ScalarValue::Float64(Some(-0.0)),
        ScalarValue::Decimal128(Some(i128::MAX), 38, 10),
        ScalarValue::Utf8View(Some("it's".into())),
        ScalarValue::TimestampMicrosecond(Some(-1), Some("UTC".into())),
        ScalarValue::Int16(None),
        ScalarValue::Null,
        ScalarValue::Binary(Some(vec![0, 255])),
    ] {
        let literal = Literal::from_scalar(&value).unwrap();
        assert_eq!(literal.to_scalar().unwrap(), value);
        assert_eq!(literal.data_type, value.data_type());
    }
    let broken = Literal { data_type: DataType::Int64, ipc: vec![1, 2, 3], text: String::new() };
    assert!(broken.to_scalar().is_err());
}

#[test]
fn expressions_read_like_sql() {
    let shown = |e: df::Expr| tree(&e).unwrap().named(&input()).to_string();
    assert_eq!(shown((col("a") + col("b")) * lit(2i64)), "(a + b) * 2");
    assert_eq!(shown(col("a") - (col("b") - lit(2i64))), "a - (b - 2)");
    assert_eq!(
        shown(col("a").eq(lit(1i64)).or(col("b").gt(lit(2i64))).and(col("s").is_null())),
        "(a = 1 OR b > 2) AND s IS NULL"
    );
    assert_eq!(shown(col("s").like(lit("it's%"))), "s LIKE 'it''s%'");
    assert_eq!(shown(df::cast(col("s"), DataType::Int64)), "CAST(s AS bigint)");
    assert_eq!(shown(df::not(col("a").eq(lit(1i64)))), "NOT (a = 1)");
    assert_eq!(tree(&(col("b") + lit(1i64))).unwrap().to_string(), "#1 + 1");
}

#[test]
fn constants_fill_the_batch() {
    let value = run(&lit(true)).unwrap();
    assert_eq!(value.as_ref(), &BooleanArray::from(vec![true; 4]) as &dyn Array);
}
