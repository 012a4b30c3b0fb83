//! From SQL to the process plan, with DataFusion's own planner as the front end.

mod bench_relations;
mod lowering;
mod refusals;
mod twin;
