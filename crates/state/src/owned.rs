//! Columns that hold no more memory than their own rows need.
//!
//! A slice of a fetched batch, a view array over a network buffer or a filtered view array keeps the whole buffer alive.
//! What enters the store stays for long, so it is copied out whenever it would pin much more than it shows.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, MutableArrayData, StructArray, make_array};
use arrow::array::{ByteView, GenericByteViewArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{BinaryViewType, ByteViewType, DataType, StringViewType};
use flow::Result;

/// Slack in bytes that a column may hold before it is copied; covers allocation rounding of tiny columns.
const SLACK_BYTES: usize = 256;

/// Whether holding `held` bytes for `used` bytes of content is wasteful enough to copy.
fn wasteful(held: usize, used: usize) -> bool {
    held > used + used / 2 + SLACK_BYTES
}

/// `column` with the same values in buffers of about its own size; not copied when its buffers already are.
pub fn owned(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(match column.data_type() {
        DataType::Utf8View => Arc::new(owned_views::<StringViewType>(column.as_byte_view())),
        DataType::BinaryView => Arc::new(owned_views::<BinaryViewType>(column.as_byte_view())),
        DataType::List(_) => {
            let (field, offsets, values, nulls) = column.as_list::<i32>().clone().into_parts();
            let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
            let values = owned(&values.slice(first as usize, (last - first) as usize))?;
            let offsets = if first == 0 && !wasteful(offsets.inner().inner().capacity(), offsets.len() * 4) {
                offsets
            } else {
                OffsetBuffer::new(offsets.iter().map(|o| o - first).collect())
            };
            Arc::new(ListArray::try_new(field, offsets, values, nulls)?)
        }
        DataType::Struct(_) => {
            let (fields, columns, nulls) = column.as_struct().clone().into_parts();
            let columns = columns.iter().map(owned).collect::<Result<Vec<_>>>()?;
            Arc::new(StructArray::try_new_with_length(fields, columns, nulls, column.len())?)
        }
        _ => {
            let data = column.to_data();
            let used = data.get_slice_memory_size()?;
            if wasteful(column.get_buffer_memory_size(), used) {
                let mut copy = MutableArrayData::new(vec![&data], false, data.len());
                copy.try_extend(0, 0, data.len())?;
                make_array(copy.freeze())
            } else {
                Arc::clone(column)
            }
        }
    })
}

fn owned_views<T: ByteViewType + ?Sized>(array: &GenericByteViewArray<T>) -> GenericByteViewArray<T> {
    let held: usize = array.data_buffers().iter().map(|b| b.capacity()).sum();
    // Inline strings live in the views themselves.
    let used: usize =
        array.views().iter().map(|v| ByteView::from(*v).length as usize).filter(|length| *length > 12).sum();
    let array = if !array.data_buffers().is_empty() && (used == 0 || wasteful(held, used)) {
        array.gc()
    } else {
        array.clone()
    };
    if !wasteful(array.views().inner().capacity(), array.len() * 16) {
        return array;
    }
    let (views, buffers, nulls) = array.into_parts();
    // SAFETY: the views are the valid views of the same buffers, only in an allocation of their own size.
    unsafe { GenericByteViewArray::new_unchecked(ScalarBuffer::from(views.to_vec()), buffers, nulls) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::*;
    use arrow::datatypes::Int32Type;

    fn check(column: ArrayRef, bytes_max: usize) {
        let copy = owned(&column).unwrap();
        assert_eq!(&copy, &column);
        assert!(copy.get_buffer_memory_size() <= bytes_max, "{} bytes", copy.get_buffer_memory_size());
    }

    #[test]
    fn slices_do_not_pin_the_buffer_they_came_from() {
        let ints: ArrayRef = Arc::new(Int64Array::from_iter((0..100_000).map(|i| (i % 3 > 0).then_some(i))));
        check(ints.slice(500, 10), 1000);
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values(
            (0..10_000).map(|i| format!("a string number {i} of some length")),
        ));
        check(texts.slice(500, 10), 2000);
        let short: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..10_000).map(|i| i.to_string())));
        check(short.slice(500, 10), 1000);
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values((0..10_000).map(|i| i.to_string())));
        check(bytes.slice(500, 10), 1000);
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
            (0..10_000).map(|i| (i % 5 > 0).then(|| vec![Some(i), None])),
        ));
        check(lists.slice(501, 10), 2000);
    }

    #[test]
    fn well_sized_columns_are_not_copied() {
        let ints: ArrayRef = Arc::new(Int64Array::from_iter_values(0..100_000));
        let same = owned(&ints).unwrap();
        assert_eq!(same.to_data().buffers()[0].as_ptr(), ints.to_data().buffers()[0].as_ptr());
    }
}
