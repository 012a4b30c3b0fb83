//! DataFusion's window on the catalog, the functions and the settings while one statement is planned.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use datafusion::catalog::TableFunctionArgs;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, Result, TableReference};
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::context::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::planner::{ExprPlanner, TypePlanner};
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource, TableType, WindowUDF,
};
use datafusion::prelude::SessionConfig;
use datafusion::sql::planner::ContextProvider;
use datafusion::sql::sqlparser::ast;
use flow::{Error, RelationId, SqlState};

use crate::definition::marker_id;
use crate::origin::Known;
use crate::planner::Planner;
use crate::resolver::{Content, Relation};
use crate::statement::Name;
use crate::{clock, names, types};

/// What one planning run has looked up.
pub(crate) struct Context<'a> {
    pub planner: &'a Planner<'a>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    /// Every relation that was found, views and what they stand on.
    pub relations: RefCell<Vec<RelationId>>,
    /// What is known about the columns of those relations.
    pub known: RefCell<Known>,
    /// How many views deep this run is.
    depth: usize,
}

/// Views on views on views.
const VIEW_DEPTH_MAX: usize = 100;

impl<'a> Context<'a> {
    pub fn new(planner: &'a Planner<'a>, depth: usize) -> Context<'a> {
        let planners = plan::functions::expr_planners();
        Context { planner, planners, relations: RefCell::new(Vec::new()), known: RefCell::default(), depth }
    }

    fn relation(&self, name: &TableReference) -> std::result::Result<Relation, Error> {
        let found = match marker_id(name.table()) {
            Some((id, _)) => self.planner.resolver.relation_by_id(id),
            None => self.planner.resolver.relation(&Name {
                database: name.catalog().map(str::to_string),
                schema: name.schema().map(str::to_string),
                name: name.table().to_string(),
                position: 0,
            }),
        };
        found.ok_or_else(|| undefined_table(&name.to_string(), name.table(), self.planner.resolver))
    }

    fn source(&self, name: &TableReference) -> std::result::Result<Arc<dyn TableSource>, Error> {
        let relation = self.relation(name)?;
        self.relations.borrow_mut().push(relation.id);
        let width = marker_id(name.table()).and_then(|(_, width)| width);
        self.known.borrow_mut().add(name, &relation);
        match &relation.content {
            // A stored definition sees the columns that there were when it was written.
            Content::Scan(source) if width.is_some_and(|w| w < relation.columns.len()) => {
                let names = source.schema();
                let columns = (0..width.unwrap_or_default()).map(|i| datafusion::prelude::ident(names.field(i).name()));
                let plan = LogicalPlanBuilder::scan(relation.name.as_str(), Arc::clone(source), None)
                    .and_then(|scan| scan.project(columns.collect::<Vec<_>>()))
                    .and_then(LogicalPlanBuilder::build)
                    .map_err(plan::error::from_datafusion_error)?;
                Ok(Arc::new(View { schema: plan.schema().inner().clone(), plan }))
            }
            Content::Scan(source) => Ok(Arc::clone(source)),
            Content::Definition(text) => {
                if self.depth >= VIEW_DEPTH_MAX {
                    return Err(Error::new(SqlState::StatementTooComplex, "views are nested too deeply")
                        .with_detail(format!("More than {VIEW_DEPTH_MAX} views stand on one another.")));
                }
                let query = crate::parse_query(text)?;
                let raw = self.planner.raw_query(*query, text, &[], self.depth + 1)?;
                self.relations.borrow_mut().extend(raw.relations);
                self.known.borrow_mut().extend(raw.known);
                let names: Vec<&str> = relation.columns.iter().map(|c| c.name.as_str()).collect();
                let mut plan = crate::planner::rename(raw.plan, &names)?;
                if let Some(width) = width.filter(|w| *w < names.len()) {
                    plan = LogicalPlanBuilder::from(plan)
                        .project(names[..width].iter().map(|n| datafusion::prelude::ident(*n)).collect::<Vec<_>>())
                        .and_then(LogicalPlanBuilder::build)
                        .map_err(plan::error::from_datafusion_error)?;
                }
                Ok(Arc::new(View { schema: plan.schema().inner().clone(), plan }))
            }
        }
    }
}

/// `42P01`, with a suggestion.
pub(crate) fn undefined_table(shown: &str, bare: &str, resolver: &dyn crate::Resolver) -> Error {
    let error = Error::new(SqlState::UndefinedTable, format!("relation \"{shown}\" does not exist"));
    let candidates = resolver.relation_names();
    match names::closest(bare, candidates.iter().map(String::as_str)) {
        Some(near) => error.with_hint(format!("Perhaps you meant the relation \"{near}\".")),
        None => error,
    }
}

/// A plain view: DataFusion puts the plan in place of the scan.
#[derive(Debug)]
struct View {
    schema: SchemaRef,
    plan: LogicalPlan,
}

impl TableSource for View {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        Some(Cow::Borrowed(&self.plan))
    }
}

pub(crate) fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// SQL types to canonical Arrow types.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> Result<Option<FieldRef>> {
        let data_type = types::arrow_type(sql_type).map_err(external)?;
        let field = Field::new("", data_type.clone(), true);
        // What a cast says beyond the Arrow type (varchar, oid) is for the description of the result alone; the
        // analyser takes it away again.
        Ok(Some(Arc::new(match crate::origin::beyond_arrow(&data_type, &sql_type.to_string()) {
            Some(pg_type) => field.with_metadata(crate::origin::type_metadata(pg_type)),
            None => field,
        })))
    }
}

/// The name without `pg_catalog.`, under which functions are registered.
fn plain(name: &str) -> &str {
    name.strip_prefix("pg_catalog.").unwrap_or(name)
}

/// A session for table functions, which look at its settings only.
fn bare_session() -> &'static SessionState {
    static SESSION: OnceLock<SessionState> = OnceLock::new();
    SESSION.get_or_init(|| SessionStateBuilder::new().with_config(SessionConfig::new()).build())
}

impl ContextProvider for Context<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        self.source(&name).map_err(external)
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        let name = plain(name);
        match SessionStateDefaults::default_table_functions().into_iter().find(|f| f.name() == name) {
            Some(function) => {
                let provider =
                    function.create_table_provider_with_args(TableFunctionArgs::new(&args, bare_session()))?;
                Ok(provider_as_source(provider))
            }
            None => {
                let message = format!("function {name} does not exist as a table function");
                let error = Error::new(SqlState::UndefinedFunction, message)
                    .with_hint("generate_series(start, stop [, step]) is one that does.");
                Err(external(error))
            }
        }
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        if self.planner.settings.now_us.is_none() {
            return Err(external(
                Error::unsupported("recursive queries are not supported in a standing query")
                    .with_hint("Use WITH without RECURSIVE."),
            ));
        }
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(Types))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let name = plain(name);
        let now = self.planner.settings.now_us;
        let moment = match now {
            Some(now) => clock::function(name, now, &self.planner.zone),
            None => plan::functions::moment::standing(name),
        };
        if moment.is_some() {
            return moment;
        }
        plan::functions::declared(name)
            .or_else(|| self.planner.resolver.function(name))
            .or_else(|| plan::functions::scalar(name))
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        SessionStateDefaults::default_higher_order_functions().into_iter().find(|f| f.name() == plain(name))
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        plan::functions::aggregate(plain(name))
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        plan::functions::window(plain(name))
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.planner.options
    }

    fn udf_names(&self) -> Vec<String> {
        plan::functions::names().map(str::to_string).collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        plan::functions::aggregates().iter().map(|f| f.name().to_string()).collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        plan::functions::windows().iter().map(|f| f.name().to_string()).collect()
    }
}
