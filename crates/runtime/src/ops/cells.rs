//! Typed columns of state: rows with stable numbers, written one by one, read by gathering.
//!
//! An Arrow array is immutable and a view array pins the buffers of the batch it came from; state needs rows that come
//! and go under a fixed number. [`Cells`] is such a column: fixed-width values in one vector, text and bytes as
//! 16-byte views into segments that the column owns, so nothing of the input stays alive (trap "view arrays pin their
//! fetch buffers"). Every operator that keeps rows keeps them here.
//!
//! The law: two values are equal here exactly if [`flow::keys`] encodes them alike, so −0.0 equals 0.0, all NaN are one
//! value and NULL equals NULL. The bits that are given back are those of the first row written.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, BinaryViewArray, GenericByteViewArray, NullArray, StringViewArray, make_array,
};
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    BinaryViewType, ByteViewType, DataType, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit,
    StringViewType,
};
use flow::keys::KeyEncoder;
use flow::{Error, Result};

/// How the values of a type are held. Chosen by the type alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    W1,
    W2,
    W4,
    W8,
    W16,
    /// Month-day-nano intervals, packed into 16 bytes.
    Interval,
    F32,
    F64,
    /// Text and bytes.
    View,
    /// Lists, structs and whatever else the row encoding takes: their canonical bytes.
    Encoded,
    /// The Null type: no values at all.
    Nothing,
}

fn layout(data_type: &DataType) -> Layout {
    use DataType as D;
    match data_type {
        D::Null => Layout::Nothing,
        D::Boolean | D::Int8 | D::UInt8 => Layout::W1,
        D::Int16 | D::UInt16 => Layout::W2,
        D::Int32 | D::UInt32 | D::Date32 | D::Time32(_) => Layout::W4,
        D::Int64 | D::UInt64 | D::Date64 | D::Time64(_) | D::Timestamp(_, _) | D::Duration(_) => Layout::W8,
        D::Decimal128(_, _) => Layout::W16,
        D::Interval(IntervalUnit::MonthDayNano) => Layout::Interval,
        D::Float32 => Layout::F32,
        D::Float64 => Layout::F64,
        D::Utf8 | D::LargeUtf8 | D::Utf8View | D::Binary | D::LargeBinary | D::BinaryView => Layout::View,
        _ => Layout::Encoded,
    }
}

/// Months, days and nanoseconds in 16 bytes; bit-equal exactly if the intervals are.
fn pack_interval(v: IntervalMonthDayNano) -> u128 {
    ((v.months as u32 as u128) << 96) | ((v.days as u32 as u128) << 64) | (v.nanoseconds as u64 as u128)
}

fn unpack_interval(v: u128) -> IntervalMonthDayNano {
    IntervalMonthDayNano::new((v >> 96) as u32 as i32, (v >> 64) as u32 as i32, v as u64 as i64)
}

#[inline(always)]
fn same_f64(a: u64, b: u64) -> bool {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    x == y || (x.is_nan() && y.is_nan())
}

#[inline(always)]
fn same_f32(a: u32, b: u32) -> bool {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    x == y || (x.is_nan() && y.is_nan())
}

/// One column of an input batch, made ready for row-wise reading without a downcast per row.
pub struct BatchColumn {
    values: BatchValues,
    nulls: Option<NullBuffer>,
}

enum BatchValues {
    Nothing,
    W1(ScalarBuffer<u8>),
    W2(ScalarBuffer<u16>),
    W4(ScalarBuffer<u32>),
    W8(ScalarBuffer<u64>),
    W16(ScalarBuffer<u128>),
    F32(ScalarBuffer<u32>),
    F64(ScalarBuffer<u64>),
    View { views: ScalarBuffer<u128>, buffers: Arc<[Buffer]> },
}

fn parts<T: ByteViewType>(array: &GenericByteViewArray<T>) -> BatchValues {
    BatchValues::View { views: array.views().clone(), buffers: array.data_buffers().to_vec().into() }
}

impl BatchColumn {
    pub fn new(array: &ArrayRef) -> Result<BatchColumn> {
        let data_type = array.data_type();
        let nulls = array.nulls().filter(|n| n.null_count() > 0).cloned();
        let len = array.len();
        macro_rules! bits {
            ($variant:ident, $width:ty) => {{
                let data = array.to_data();
                let buffer = data.buffers().first().cloned().unwrap_or_else(|| Buffer::from_vec(Vec::<u8>::new()));
                BatchValues::$variant(ScalarBuffer::<$width>::new(buffer, data.offset(), len))
            }};
        }
        let values = match layout(data_type) {
            Layout::Nothing => BatchValues::Nothing,
            Layout::W1 if *data_type == DataType::Boolean => {
                let booleans = array.as_boolean().values();
                BatchValues::W1(booleans.iter().map(u8::from).collect())
            }
            Layout::W1 => bits!(W1, u8),
            Layout::W2 => bits!(W2, u16),
            Layout::W4 => bits!(W4, u32),
            Layout::W8 => bits!(W8, u64),
            Layout::W16 => bits!(W16, u128),
            Layout::F32 => bits!(F32, u32),
            Layout::F64 => bits!(F64, u64),
            Layout::Interval => {
                let values = array.as_primitive::<IntervalMonthDayNanoType>().values();
                BatchValues::W16(values.iter().map(|v| pack_interval(*v)).collect())
            }
            Layout::View => match data_type {
                DataType::Utf8View => parts(array.as_string_view()),
                DataType::BinaryView => parts(array.as_binary_view()),
                DataType::Utf8 | DataType::LargeUtf8 => parts(cast(array, &DataType::Utf8View)?.as_string_view()),
                _ => parts(cast(array, &DataType::BinaryView)?.as_binary_view()),
            },
            Layout::Encoded => {
                let rows = KeyEncoder::new(std::slice::from_ref(data_type))?.encode(std::slice::from_ref(array))?;
                let bytes: ArrayRef = Arc::new(rows.try_into_binary()?);
                parts(cast(&bytes, &DataType::BinaryView)?.as_binary_view())
            }
        };
        Ok(BatchColumn { values, nulls })
    }

    pub fn all(columns: &[ArrayRef]) -> Result<Vec<BatchColumn>> {
        columns.iter().map(BatchColumn::new).collect()
    }

    #[inline(always)]
    pub fn is_null(&self, i: usize) -> bool {
        match &self.nulls {
            Some(nulls) => nulls.is_null(i),
            None => false,
        }
    }

    /// The bytes of row `i` of a text or byte column; empty for other layouts.
    #[inline(always)]
    pub fn bytes(&self, i: usize) -> &[u8] {
        match &self.values {
            BatchValues::View { views, buffers } => view_bytes(&views[i], |segment| buffers[segment].as_slice()),
            _ => &[],
        }
    }

    /// Whether rows `i` and `j` of this column are the same value.
    #[inline]
    pub fn equal_rows(&self, i: usize, j: usize) -> bool {
        match (self.is_null(i), self.is_null(j)) {
            (true, true) => return true,
            (false, false) => {}
            _ => return false,
        }
        match &self.values {
            BatchValues::Nothing => true,
            BatchValues::W1(v) => v[i] == v[j],
            BatchValues::W2(v) => v[i] == v[j],
            BatchValues::W4(v) => v[i] == v[j],
            BatchValues::W8(v) => v[i] == v[j],
            BatchValues::W16(v) => v[i] == v[j],
            BatchValues::F32(v) => same_f32(v[i], v[j]),
            BatchValues::F64(v) => same_f64(v[i], v[j]),
            BatchValues::View { views, buffers } => {
                let (a, b) = (views[i], views[j]);
                if (a as u64) != (b as u64) {
                    return false;
                }
                if a as u32 <= INLINE {
                    return a == b;
                }
                let segment = |s: usize| buffers[s].as_slice();
                view_bytes(&a, segment) == view_bytes(&b, segment)
            }
        }
    }
}

/// Texts of up to this many bytes live inside their view (Arrow's view layout).
const INLINE: u32 = 12;

#[inline(always)]
fn view_bytes<'a>(view: &'a u128, segment: impl Fn(usize) -> &'a [u8]) -> &'a [u8] {
    let len = *view as u32;
    if len <= INLINE {
        // A view is little-endian: four bytes of length, then the text itself.
        let raw: &[u8; 16] = bytes_of(view);
        &raw[4..4 + len as usize]
    } else {
        let number = (*view >> 64) as u32 as usize;
        let offset = (*view >> 96) as u32 as usize;
        &segment(number)[offset..offset + len as usize]
    }
}

#[cfg(not(target_endian = "little"))]
compile_error!("state columns rely on a little-endian machine, as Arrow's IPC form does");

#[inline(always)]
fn bytes_of(view: &u128) -> &[u8; 16] {
    // SAFETY: a u128 is 16 initialised bytes without padding, and a byte array has no alignment of its own.
    unsafe { &*(view as *const u128 as *const [u8; 16]) }
}

#[inline(always)]
fn inline_view(bytes: &[u8]) -> u128 {
    let mut raw = [0u8; 16];
    raw[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    raw[4..4 + bytes.len()].copy_from_slice(bytes);
    u128::from_le_bytes(raw)
}

#[inline(always)]
fn outer_view(bytes: &[u8], segment: u32, offset: u32) -> u128 {
    let prefix = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    (bytes.len() as u128) | ((prefix as u128) << 32) | ((segment as u128) << 64) | ((offset as u128) << 96)
}

/// Sizes of the segments that hold long texts: small for small states, then fixed so that growth never copies.
const SEGMENT_MIN: usize = 4 << 10;
const SEGMENT_MAX: usize = 1 << 20;

/// Texts and byte strings under row numbers.
#[derive(Default)]
struct Texts {
    views: Vec<u128>,
    segments: Vec<Vec<u8>>,
    /// Bytes in segments that no view refers to any more.
    garbage: usize,
    /// Bytes in segments that a view refers to.
    live: usize,
}

impl Texts {
    fn store(&mut self, bytes: &[u8]) -> u128 {
        if bytes.len() <= INLINE as usize {
            return inline_view(bytes);
        }
        let fits = self.segments.last().is_some_and(|s| s.capacity() - s.len() >= bytes.len());
        if !fits {
            let grown = self.segments.last().map_or(SEGMENT_MIN, |s| (s.capacity() * 2).min(SEGMENT_MAX));
            self.segments.push(Vec::with_capacity(grown.max(bytes.len())));
        }
        let number = self.segments.len() - 1;
        let segment = &mut self.segments[number];
        let offset = segment.len();
        segment.extend_from_slice(bytes);
        self.live += bytes.len();
        outer_view(bytes, number as u32, offset as u32)
    }

    #[inline(always)]
    fn get(&self, id: usize) -> &[u8] {
        view_bytes(&self.views[id], |s| self.segments[s].as_slice())
    }

    /// Forgets the text of row `id`; its bytes become garbage.
    fn clear(&mut self, id: usize) {
        let len = self.views[id] as u32;
        self.views[id] = 0;
        if len > INLINE {
            self.garbage += len as usize;
            self.live -= len as usize;
            // Amortised: a rewrite copies at most as many bytes as were cleared since the one before.
            if self.garbage > SEGMENT_MAX && self.garbage > self.live {
                self.rewrite();
            }
        }
    }

    fn rewrite(&mut self) {
        let old = std::mem::take(&mut self.segments);
        self.live = 0;
        self.garbage = 0;
        for id in 0..self.views.len() {
            let view = self.views[id];
            if view as u32 > INLINE {
                self.views[id] = self.store(view_bytes(&view, |s| old[s].as_slice()));
            }
        }
    }

    /// A view array of the rows `ids` with a data buffer of its own.
    fn gather<T: ByteViewType>(&self, ids: &[u32], nulls: Option<NullBuffer>) -> Result<GenericByteViewArray<T>> {
        let long: usize = ids
            .iter()
            .map(|id| self.views[*id as usize] as u32)
            .map(|len| if len > INLINE { len as usize } else { 0 })
            .sum();
        let mut views = Vec::with_capacity(ids.len());
        let mut buffers: Vec<Buffer> = Vec::new();
        let mut data: Vec<u8> = Vec::with_capacity(long.min(u32::MAX as usize / 2));
        for id in ids {
            let view = self.views[*id as usize];
            if view as u32 <= INLINE {
                views.push(view);
                continue;
            }
            let bytes = view_bytes(&view, |s| self.segments[s].as_slice());
            if data.len() + bytes.len() > i32::MAX as usize {
                buffers.push(Buffer::from_vec(std::mem::take(&mut data)));
            }
            views.push(outer_view(bytes, buffers.len() as u32, data.len() as u32));
            data.extend_from_slice(bytes);
        }
        if !data.is_empty() {
            buffers.push(Buffer::from_vec(data));
        }
        // SAFETY: every view was made by `inline_view` or `outer_view` from bytes that came out of a valid array of the
        // same type (so text is UTF-8), and refers to the buffer that holds exactly those bytes.
        Ok(unsafe { GenericByteViewArray::<T>::new_unchecked(ScalarBuffer::from(views), buffers, nulls) })
    }
}

/// A growable set of bits, false until set.
#[derive(Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    #[inline(always)]
    pub fn get(&self, i: usize) -> bool {
        self.0.get(i >> 6).is_some_and(|word| word >> (i & 63) & 1 == 1)
    }

    #[inline(always)]
    pub fn set(&mut self, i: usize, value: bool) {
        if i >> 6 >= self.0.len() {
            if !value {
                return;
            }
            self.0.resize((i >> 6) + 1, 0);
        }
        let word = &mut self.0[i >> 6];
        *word = if value { *word | 1 << (i & 63) } else { *word & !(1 << (i & 63)) };
    }

    pub fn bytes(&self) -> usize {
        self.0.capacity() * 8
    }
}

/// A column of state. Row numbers are dense; a number is written before it is read, and may be written again.
pub struct Cells {
    data_type: DataType,
    values: Values,
    nulls: Bits,
    any_null: bool,
}

enum Values {
    Nothing,
    W1(Vec<u8>),
    W2(Vec<u16>),
    W4(Vec<u32>),
    W8(Vec<u64>),
    W16(Vec<u128>),
    F32(Vec<u32>),
    F64(Vec<u64>),
    View(Texts),
}

impl Cells {
    pub fn new(data_type: &DataType) -> Cells {
        let values = match layout(data_type) {
            Layout::Nothing => Values::Nothing,
            Layout::W1 => Values::W1(Vec::new()),
            Layout::W2 => Values::W2(Vec::new()),
            Layout::W4 => Values::W4(Vec::new()),
            Layout::W8 => Values::W8(Vec::new()),
            Layout::W16 | Layout::Interval => Values::W16(Vec::new()),
            Layout::F32 => Values::F32(Vec::new()),
            Layout::F64 => Values::F64(Vec::new()),
            Layout::View | Layout::Encoded => Values::View(Texts::default()),
        };
        Cells { data_type: data_type.clone(), values, nulls: Bits::default(), any_null: false }
    }

    /// Writes row `i` of `from` as row `id`, which is either an existing number or the next one.
    #[inline]
    pub fn write(&mut self, id: usize, from: &BatchColumn, i: usize) {
        #[inline(always)]
        fn put<T: Copy>(to: &mut Vec<T>, id: usize, value: T) {
            if id == to.len() {
                to.push(value);
            } else {
                to[id] = value;
            }
        }
        let null = from.is_null(i);
        if null || self.any_null {
            self.nulls.set(id, null);
            self.any_null = true;
        }
        match (&mut self.values, &from.values) {
            (Values::W1(to), BatchValues::W1(v)) => put(to, id, v[i]),
            (Values::W2(to), BatchValues::W2(v)) => put(to, id, v[i]),
            (Values::W4(to), BatchValues::W4(v)) => put(to, id, v[i]),
            (Values::W8(to), BatchValues::W8(v)) => put(to, id, v[i]),
            (Values::W16(to), BatchValues::W16(v)) => put(to, id, v[i]),
            (Values::F32(to), BatchValues::F32(v)) => put(to, id, v[i]),
            (Values::F64(to), BatchValues::F64(v)) => put(to, id, v[i]),
            (Values::View(to), BatchValues::View { .. }) => {
                let view = if null { 0 } else { to.store(from.bytes(i)) };
                put(&mut to.views, id, view)
            }
            // The batch has the declared schema (checked on entry), so only the Null type is left.
            _ => {}
        }
    }

    /// Writes the first `rows` rows of `from` as the rows from `start` on, which is the next number.
    pub fn extend(&mut self, start: usize, from: &BatchColumn, rows: usize) {
        if from.nulls.is_some() || self.any_null {
            self.any_null = true;
            (0..rows).for_each(|i| self.nulls.set(start + i, from.is_null(i)));
        }
        match (&mut self.values, &from.values) {
            (Values::W1(to), BatchValues::W1(v)) => to.extend_from_slice(&v[..rows]),
            (Values::W2(to), BatchValues::W2(v)) => to.extend_from_slice(&v[..rows]),
            (Values::W4(to), BatchValues::W4(v)) => to.extend_from_slice(&v[..rows]),
            (Values::W8(to), BatchValues::W8(v)) => to.extend_from_slice(&v[..rows]),
            (Values::W16(to), BatchValues::W16(v)) => to.extend_from_slice(&v[..rows]),
            (Values::F32(to), BatchValues::F32(v)) => to.extend_from_slice(&v[..rows]),
            (Values::F64(to), BatchValues::F64(v)) => to.extend_from_slice(&v[..rows]),
            (Values::View(to), BatchValues::View { .. }) => {
                for i in 0..rows {
                    let view = if from.is_null(i) { 0 } else { to.store(from.bytes(i)) };
                    to.views.push(view);
                }
            }
            // As in `write`: only the Null type is left.
            _ => {}
        }
    }

    /// Whether row `id` here is the same value as row `i` of `other`.
    #[inline]
    pub fn equal(&self, id: usize, other: &BatchColumn, i: usize) -> bool {
        if self.any_null || other.nulls.is_some() {
            match (self.nulls.get(id), other.is_null(i)) {
                (true, true) => return true,
                (false, false) => {}
                _ => return false,
            }
        }
        match (&self.values, &other.values) {
            (Values::W1(a), BatchValues::W1(b)) => a[id] == b[i],
            (Values::W2(a), BatchValues::W2(b)) => a[id] == b[i],
            (Values::W4(a), BatchValues::W4(b)) => a[id] == b[i],
            (Values::W8(a), BatchValues::W8(b)) => a[id] == b[i],
            (Values::W16(a), BatchValues::W16(b)) => a[id] == b[i],
            (Values::F32(a), BatchValues::F32(b)) => same_f32(a[id], b[i]),
            (Values::F64(a), BatchValues::F64(b)) => same_f64(a[id], b[i]),
            (Values::View(a), BatchValues::View { views, .. }) => {
                let (x, y) = (a.views[id], views[i]);
                // Length and the first four bytes lie in the low half.
                if x as u64 != y as u64 {
                    return false;
                }
                if x as u32 <= INLINE { x == y } else { a.get(id) == other.bytes(i) }
            }
            (Values::Nothing, BatchValues::Nothing) => true,
            _ => false,
        }
    }

    /// Frees what row `id` holds outside its fixed-size cell.
    pub fn clear(&mut self, id: usize) {
        if let Values::View(texts) = &mut self.values {
            texts.clear(id);
        }
    }

    #[inline(always)]
    pub fn is_null(&self, id: usize) -> bool {
        self.any_null && self.nulls.get(id)
    }

    /// For a column of 64-bit values without NULL on either side: the raw vector and the raw batch, for a fast path.
    pub fn plain64<'a>(&'a mut self, other: &'a BatchColumn) -> Option<(&'a mut Vec<u64>, &'a [u64])> {
        if self.any_null || other.nulls.is_some() {
            return None;
        }
        match (&mut self.values, &other.values) {
            (Values::W8(a), BatchValues::W8(b)) => Some((a, b)),
            _ => None,
        }
    }

    /// The rows `ids` as one array of the column's type.
    pub fn gather(&self, ids: &[u32]) -> Result<ArrayRef> {
        let nulls = if self.any_null {
            let nulls = NullBuffer::from_iter(ids.iter().map(|id| !self.nulls.get(*id as usize)));
            (nulls.null_count() > 0).then_some(nulls)
        } else {
            None
        };
        macro_rules! fixed {
            ($from:expr) => {{
                let from = $from;
                Buffer::from_vec(ids.iter().map(|id| from[*id as usize]).collect::<Vec<_>>())
            }};
        }
        let buffer = match &self.values {
            Values::Nothing => return Ok(Arc::new(NullArray::new(ids.len()))),
            Values::W1(v) if self.data_type == DataType::Boolean => {
                arrow::buffer::BooleanBuffer::collect_bool(ids.len(), |n| v[ids[n] as usize] != 0).into_inner()
            }
            Values::W1(v) => fixed!(v),
            Values::W2(v) => fixed!(v),
            Values::W4(v) | Values::F32(v) => fixed!(v),
            Values::W8(v) | Values::F64(v) => fixed!(v),
            Values::W16(v) if matches!(self.data_type, DataType::Interval(_)) => {
                Buffer::from_vec(ids.iter().map(|id| unpack_interval(v[*id as usize])).collect::<Vec<_>>())
            }
            Values::W16(v) => fixed!(v),
            Values::View(texts) => return self.gather_texts(texts, ids, nulls),
        };
        let data = ArrayData::builder(self.data_type.clone()).len(ids.len()).add_buffer(buffer).nulls(nulls).build()?;
        Ok(make_array(data))
    }

    fn gather_texts(&self, texts: &Texts, ids: &[u32], nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        Ok(match &self.data_type {
            DataType::Utf8View => Arc::new(texts.gather::<StringViewType>(ids, nulls)?),
            DataType::BinaryView => Arc::new(texts.gather::<BinaryViewType>(ids, nulls)?),
            DataType::Utf8 | DataType::LargeUtf8 => {
                let views: StringViewArray = texts.gather::<StringViewType>(ids, nulls)?;
                cast(&views, &self.data_type)?
            }
            DataType::Binary | DataType::LargeBinary => {
                let views: BinaryViewArray = texts.gather::<BinaryViewType>(ids, nulls)?;
                cast(&views, &self.data_type)?
            }
            nested => {
                let encoder = KeyEncoder::new(std::slice::from_ref(nested))?;
                // NULL has an encoding too, but `write` keeps no bytes for it.
                let null_row = encoder.encode(&[arrow::array::new_null_array(nested, 1)])?;
                let rows = ids.iter().map(|id| {
                    if self.is_null(*id as usize) { null_row.row(0).data() } else { texts.get(*id as usize) }
                });
                encoder
                    .decode(rows)?
                    .into_iter()
                    .next()
                    .ok_or_else(|| Error::internal("a decoded row lost its column"))?
            }
        })
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        let values = match &self.values {
            Values::Nothing => 0,
            Values::W1(v) => v.capacity(),
            Values::W2(v) => v.capacity() * 2,
            Values::W4(v) | Values::F32(v) => v.capacity() * 4,
            Values::W8(v) | Values::F64(v) => v.capacity() * 8,
            Values::W16(v) => v.capacity() * 16,
            Values::View(t) => t.views.capacity() * 16 + t.live + t.garbage,
        };
        values + self.nulls.bytes()
    }
}
