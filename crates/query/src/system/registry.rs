//! The functions that SQL can call, for `pg_proc`: those of the planner's registry and the system information functions.
//!
//! One row a name: where a function takes several forms, the first stands for all.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use arrow::datatypes::DataType;
use catalog::types;
use datafusion::logical_expr::{Signature, TypeSignature};

use super::functions;

/// `"any"`: a type that depends on the arguments.
const ANY: u32 = 2276;

/// A function that SQL can call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionInfo {
    pub name: String,
    /// `pg_proc.prokind`: `f` function, `a` aggregate, `w` window.
    pub kind: char,
    /// Type OIDs of the arguments of one form.
    pub arguments: Vec<u32>,
    /// Type OID of the result.
    pub result: u32,
    pub description: String,
}

static FUNCTIONS: LazyLock<Vec<FunctionInfo>> = LazyLock::new(|| {
    let mut all: BTreeMap<String, FunctionInfo> = BTreeMap::new();
    let mut add = |info: FunctionInfo| {
        all.entry(info.name.clone()).or_insert(info);
    };
    for (name, result) in functions::names_and_results() {
        add(FunctionInfo {
            name: name.to_string(),
            kind: 'f',
            arguments: Vec::new(),
            result,
            description: String::new(),
        });
    }
    for f in plan::functions::aggregates() {
        let (arguments, result) = form(f.signature(), |types| f.return_type(types).ok());
        let description = f.documentation().map(|d| d.description.clone()).unwrap_or_default();
        add(FunctionInfo { name: f.name().to_string(), kind: 'a', arguments, result, description });
    }
    for f in plan::functions::windows() {
        let (arguments, _) = form(f.signature(), |_| None);
        let description = f.documentation().map(|d| d.description.clone()).unwrap_or_default();
        add(FunctionInfo { name: f.name().to_string(), kind: 'w', arguments, result: ANY, description });
    }
    for f in plan::functions::scalars() {
        let result_of = |types: &[DataType]| f.return_type(types).ok();
        let (arguments, result) = match plan::functions::first_form(&f) {
            Some(types) => {
                let arguments = types.iter().map(types::oid_of).collect();
                (arguments, result_of(&types).map_or(ANY, |t| types::oid_of(&t)))
            }
            None => form(f.signature(), result_of),
        };
        let description = f.documentation().map(|d| d.description.clone()).unwrap_or_default();
        add(FunctionInfo { name: f.name().to_string(), kind: 'f', arguments, result, description });
    }
    // Operators and rewritten forms have names that no one can write without quotes.
    let callable = |name: &str| name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    all.into_values().filter(|f| callable(&f.name)).collect()
});

/// Every function, by name. Their positions are stable while the server runs.
pub fn functions_by_name() -> &'static [FunctionInfo] {
    &FUNCTIONS
}

/// OIDs of the arguments and of the result of a function's first form; `"any"` where they depend on the call.
fn form(signature: &Signature, result: impl Fn(&[DataType]) -> Option<DataType>) -> (Vec<u32>, u32) {
    let open = matches!(
        signature.type_signature,
        TypeSignature::UserDefined
            | TypeSignature::VariadicAny
            | TypeSignature::Any(_)
            | TypeSignature::ArraySignature(_)
    );
    let types = if open { None } else { signature.type_signature.get_example_types().into_iter().next() };
    match types.filter(|t| !t.is_empty()) {
        Some(types) => {
            let arguments = types.iter().map(types::oid_of).collect();
            (arguments, result(&types).map_or(ANY, |t| types::oid_of(&t)))
        }
        None => (Vec::new(), ANY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_knows_functions_of_every_kind() {
        let find = |name: &str| functions_by_name().iter().find(|f| f.name == name).unwrap();
        assert_eq!(find("upper").kind, 'f');
        assert_eq!(find("count").kind, 'a');
        assert_eq!(find("row_number").kind, 'w');
        assert_eq!(find("pg_get_userbyid").result, types::oid::NAME);
        assert!(functions_by_name().is_sorted_by(|a, b| a.name < b.name));
        assert!(functions_by_name().len() < 4_000, "their OIDs would reach those of users");
    }
}
