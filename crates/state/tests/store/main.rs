//! The view store against slow twins, under concurrency, and within its bounds of memory and work.

mod bounds;
mod changes;
mod concurrency;
mod following;
mod rows;
mod twin;
