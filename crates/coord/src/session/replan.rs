//! From a planned query to a standing query, when it is created and again at every start.

use std::sync::Arc;

use catalog::{Catalog, Relation, Scope};
use datafusion::logical_expr::LogicalPlan;
use flow::{Error, Result};
use sql::Planner;
use sql::planner::Settings;

use super::names::{SessionNames, scanned};
use crate::engine::{Engine, Replanner, StandingQuery};

/// The time zone in which standing queries read and write timestamps as text: it must not depend on who created them.
pub const STANDING_ZONE: &str = "UTC";

/// Optimises and lowers the analysed plan of a view or sink, whose columns have the relation's names already.
/// `emit_on_close`: only its final rows.
pub fn standing(plan: LogicalPlan, emit_on_close: bool) -> Result<StandingQuery> {
    sql::with_large_stack(|| {
        let plan = plan::table::optimize(plan, &sql::session::options(STANDING_ZONE))?;
        let inputs = scanned(&plan)?;
        let node = plan::stream::lower(&plan)?;
        let node = if emit_on_close { node.emit_on_close()? } else { node };
        Ok(StandingQuery { node, inputs })
    })
}

/// Plans stored definitions again.
pub struct StoredQueries;

impl Replanner for StoredQueries {
    fn replan(&self, engine: &Arc<Engine>, catalog: &Catalog, relation: &Relation) -> Result<StandingQuery> {
        let query = relation.definition.query();
        let text = match (&relation.definition, query) {
            (_, Some(query)) => query.sql.clone(),
            (catalog::Definition::Sink(sink), None) => match &sink.input {
                catalog::SinkInput::Relation(input) => {
                    // As many columns as the input had when the sink was made.
                    format!("SELECT * FROM \"#{input}:{}\"", relation.columns.len())
                }
                catalog::SinkInput::Query(query) => query.sql.clone(),
            },
            _ => return Err(Error::internal("a relation without a query has no job")),
        };
        let names = SessionNames::new(engine, catalog, Scope::new(relation.database.clone(), [""; 0]), None);
        let planner = Planner::new(&names, Settings::standing(STANDING_ZONE))?;
        let tree = sql::parse_query(&text)?;
        let query = planner.query(&tree, &text, &[])?;
        let columns: Vec<sql::Column> =
            relation.columns.iter().map(|c| sql::Column::new(&c.name, c.data_type.clone(), c.nullable)).collect();
        super::define::standing_plan(&query, &columns, relation)
    }
}
