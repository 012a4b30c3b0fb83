//! Rows → the folder that each belongs to, in the way of Hive: `day=2026-01-01/region=EU/`.
//!
//! A value is written as its text. Bytes other than ASCII letters, digits, `-`, `_`, `.` and `+` are written as `%` and two
//! hexadecimal digits, so that no value leaves its folder and different values never share one. NULL is a word of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::datatypes::{DataType, SchemaRef};
use flow::keys::KeyEncoder;
use flow::{ChangeBatch, Error, Result, SqlState};

use crate::format::encode::Values;
use crate::format::records::named_columns;
use crate::format::sql_type_name;

use super::options::PARTITION_BY;

/// What stands for NULL.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// Bytes of the name of a folder at most, as file systems allow.
const NAME_BYTES_MAX: usize = 255;

pub struct Partitioning {
    columns: Vec<usize>,
    /// `day=`
    names: Vec<String>,
    keys: KeyEncoder,
}

impl Partitioning {
    /// `list`: the value of the option. Errors: `42703`, `42701`, and `0A000` for a type whose values name no folder.
    pub fn new(schema: &SchemaRef, list: &str) -> Result<Partitioning> {
        let columns = named_columns(schema, PARTITION_BY, list)?;
        let mut names = Vec::new();
        for field in columns.iter().map(|column| schema.field(*column)) {
            use DataType::{Boolean, Date32, Decimal128, Int16, Int32, Int64, Time64, Timestamp, Utf8View};
            let named = matches!(
                field.data_type(),
                Boolean | Int16 | Int32 | Int64 | Decimal128(..) | Utf8View | Date32 | Time64(_) | Timestamp(..)
            );
            if !named {
                let kind = sql_type_name(field.data_type());
                return Err(Error::unsupported(format!("values of type {kind} do not name folders"))
                    .with_detail(format!("Column \"{}\" stands in option \"{PARTITION_BY}\".", field.name()))
                    .with_hint("Cast it to text in the sink's query, or partition by another column."));
            }
            let mut name = String::new();
            escape(field.name().as_bytes(), &mut name);
            name.push('=');
            names.push(name);
        }
        let types: Vec<DataType> = columns.iter().map(|c| schema.field(*c).data_type().clone()).collect();
        Ok(Partitioning { columns, names, keys: KeyEncoder::new(&types)? })
    }

    /// The rows of each folder, in their order; the folder ends with `/`. Errors: `54000` for a name that is too long.
    pub fn split(&self, change: &ChangeBatch) -> Result<Vec<(String, ChangeBatch)>> {
        let columns: Vec<ArrayRef> = self.columns.iter().map(|c| change.rows.column(*c).clone()).collect();
        let keys = self.keys.encode(&columns)?;
        let mut groups: HashMap<&[u8], usize> = HashMap::new();
        let mut rows: Vec<Vec<u32>> = Vec::new();
        for row in 0..change.num_rows() {
            let number = u32::try_from(row)
                .map_err(|_| Error::new(SqlState::ProgramLimitExceeded, "too many changes in one batch"))?;
            match groups.entry(keys.row(row).data()) {
                Entry::Occupied(group) => rows[*group.get()].push(number),
                Entry::Vacant(group) => {
                    group.insert(rows.len());
                    rows.push(vec![number]);
                }
            }
        }
        let values = columns.iter().map(Values::new).collect::<Result<Vec<Values<'_>>>>()?;
        let folder = |rows: &[u32]| self.folder(&values, rows.first().map_or(0, |row| *row as usize));
        match rows.as_slice() {
            [] => Ok(Vec::new()),
            [all] => Ok(vec![(folder(all)?, change.clone())]),
            _ => rows.into_iter().map(|rows| Ok((folder(&rows)?, change.take(&UInt32Array::from(rows))?))).collect(),
        }
    }

    fn folder(&self, values: &[Values<'_>], row: usize) -> Result<String> {
        let (mut folder, mut text) = (String::new(), Vec::new());
        for (name, value) in self.names.iter().zip(values) {
            let start = folder.len();
            folder.push_str(name);
            if value.is_null(row) {
                folder.push_str(NULL);
            } else {
                text.clear();
                value.text(row, &mut text);
                match text == NULL.as_bytes() {
                    // A text that looks like NULL.
                    true => folder.push_str(&NULL.replacen('_', "%5F", 1)),
                    false => escape(&text, &mut folder),
                }
            }
            if folder.len() - start > NAME_BYTES_MAX {
                return Err(Error::new(
                    SqlState::ProgramLimitExceeded,
                    format!(
                        "a value of column \"{}\" is too long for the name of a folder",
                        name.trim_end_matches('=')
                    ),
                )
                .with_detail(format!("A name has {NAME_BYTES_MAX} bytes at most."))
                .with_hint("Partition by another column."));
            }
            folder.push('/');
        }
        Ok(folder)
    }
}

fn escape(text: &[u8], out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text {
        if byte.is_ascii_alphanumeric() || b"-_.+".contains(byte) {
            out.push(char::from(*byte));
        } else {
            out.push('%');
            out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]].map(char::from));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Date32Array, Int64Array, RecordBatch, StringViewArray};
    use arrow::datatypes::{Field, Schema};
    use flow::Diff;

    use super::*;

    fn rows() -> ChangeBatch {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("Day/x", Arc::new(Date32Array::from(vec![Some(19_782), None, Some(19_782), Some(19_782)]))),
            ("t", Arc::new(StringViewArray::from(vec![Some("../é"), Some(NULL), None, Some("../é")]))),
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
        ];
        ChangeBatch::new(RecordBatch::try_from_iter(columns).unwrap(), Diff::from_weights(vec![1, 2, 1, 3]))
    }

    #[test]
    fn rows_go_to_the_folder_of_their_values() {
        let rows = rows();
        let partitioning = Partitioning::new(&rows.schema(), "day/x, t").unwrap();
        let split = partitioning.split(&rows).unwrap();
        let names: Vec<&str> = split.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "Day%2Fx=2024-02-29/t=..%2F%C3%A9/",
                "Day%2Fx=__HIVE_DEFAULT_PARTITION__/t=%5F_HIVE_DEFAULT_PARTITION__/",
                "Day%2Fx=2024-02-29/t=__HIVE_DEFAULT_PARTITION__/",
            ]
        );
        assert_eq!(split[0].1.rows.column(2).as_ref(), &Int64Array::from(vec![1, 4]));
        assert_eq!((split[0].1.weight(1), split[1].1.weight(0)), (3, 2));
        assert!(partitioning.split(&rows.slice(0, 0)).unwrap().is_empty());
    }

    #[test]
    fn columns_that_name_no_folder_are_refused() {
        let field = |name: &str, kind| Field::new(name, kind, true);
        let schema = Arc::new(Schema::new(vec![field("a", DataType::Int64), field("f", DataType::Float64)]));
        let refused = |list: &str| Partitioning::new(&schema, list).err().unwrap();
        assert_eq!(
            ["b", "a,a", "f", ""].map(|list| refused(list).state().code()),
            ["42703", "42701", "0A000", "42703"]
        );
        assert!(refused("f").hint().is_some());
        let long: ArrayRef = Arc::new(StringViewArray::from(vec!["x".repeat(300)]));
        let rows = RecordBatch::try_from_iter([("t", long)]).unwrap();
        let partitioning = Partitioning::new(&rows.schema(), "t").unwrap();
        assert_eq!(partitioning.split(&ChangeBatch::insert(rows)).unwrap_err().state().code(), "54000");
    }
}
