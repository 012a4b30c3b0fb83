//! INSERT, UPDATE, DELETE, TRUNCATE.

use datafusion::sql::sqlparser::ast::{
    self, AssignmentTarget, FromTable, OnConflictAction, OnInsert, TableFactor, TableObject, TableWithJoins,
    UpdateTableFromKind,
};
use datafusion::sql::sqlparser::tokenizer::Token;
use flow::{Error, SqlState};

use super::{Read, Reader};
use crate::names;
use crate::statement::{Assignment, Conflict, ConflictTarget, ConflictUpdate, Delete, Insert, Name, Statement, Update};

impl Reader<'_> {
    pub(super) fn insert(&mut self) -> Read<Statement> {
        let at = self.position();
        let token = self.parser.next_token();
        let parsed = self.parser.parse_insert(token)?;
        Ok(Statement::Insert(Box::new(self.insert_of(parsed, None, at)?)))
    }

    /// A statement that begins with WITH: a query, or one that changes rows.
    pub(super) fn with(&mut self) -> Read<Statement> {
        let at = self.position();
        let query = self.query_or_change()?;
        let ast::Query { with, body, .. } = *query;
        match *body {
            ast::SetExpr::Insert(parsed) => Ok(Statement::Insert(Box::new(self.insert_of(parsed, with, at)?))),
            ast::SetExpr::Update(parsed) => {
                let mut update = self.update_of(parsed, at)?;
                update.with = with;
                Ok(Statement::Update(Box::new(update)))
            }
            ast::SetExpr::Delete(parsed) => {
                let mut delete = self.delete_of(parsed, at)?;
                delete.with = with;
                Ok(Statement::Delete(Box::new(delete)))
            }
            ast::SetExpr::Merge(_) => self.refuse("MERGE is not supported", "Use INSERT … ON CONFLICT."),
            body => self.creates_table(Box::new(ast::Query { with, body: Box::new(body), ..*query })),
        }
    }

    /// `parsed` with the WITH clause that stood before it.
    fn insert_of(&self, parsed: ast::Statement, with: Option<ast::With>, at: usize) -> Read<Insert> {
        let ast::Statement::Insert(mut insert) = parsed else {
            return Err(syntax("INSERT INTO needs a table", at).into());
        };
        if let (Some(outer), Some(source)) = (with, &mut insert.source) {
            match &mut source.with {
                None => source.with = Some(outer),
                Some(inner) => {
                    inner.recursive |= outer.recursive;
                    inner.cte_tables.splice(0..0, outer.cte_tables);
                }
            }
        }
        let TableObject::TableName(table) = &insert.table else {
            return Err(syntax("INSERT INTO needs a table", at).into());
        };
        if !insert.into
            || insert.overwrite
            || insert.has_table_keyword
            || insert.partitioned.is_some()
            || !insert.assignments.is_empty()
            || insert.output.is_some()
            || insert.or.is_some()
        {
            return Err(syntax("syntax error in INSERT", at)
                .with_hint("Write INSERT INTO table (…) VALUES (…).")
                .into());
        }
        if let Some(source) = &insert.source
            && matches!(
                source.body.as_ref(),
                ast::SetExpr::Insert(_) | ast::SetExpr::Update(_) | ast::SetExpr::Delete(_) | ast::SetExpr::Merge(_)
            )
        {
            return Err(Error::unsupported("data-modifying statements in WITH are not supported")
                .with_position(at)
                .into());
        }
        let mut columns = Vec::with_capacity(insert.columns.len());
        for column in &insert.columns {
            let position = names::start_of(column).map_or(at, |l| self.source.position(l));
            match names::parts(column)?.as_slice() {
                [name] => columns.push((name.clone(), position)),
                _ => return Err(syntax("a target column takes no qualification", position).into()),
            }
        }
        let on_conflict = match insert.on {
            None => None,
            Some(OnInsert::OnConflict(conflict)) => Some(self.conflict(conflict, at)?),
            Some(_) => return Err(syntax("syntax error in INSERT", at).into()),
        };
        Ok(Insert {
            table: names::relation_name(table, self.source)?,
            alias: insert.table_alias.map(|a| names::fold(&a.alias)),
            columns,
            source: insert.source,
            on_conflict,
            returning: insert.returning,
        })
    }

    /// ON CONFLICT of an INSERT that begins at `at`.
    fn conflict(&self, conflict: ast::OnConflict, at: usize) -> Read<Conflict> {
        let target = match conflict.conflict_target {
            None => ConflictTarget::Any,
            Some(ast::ConflictTarget::Columns(columns)) => {
                ConflictTarget::Columns(columns.iter().map(names::fold).collect())
            }
            Some(ast::ConflictTarget::OnConstraint(name)) => match names::parts(&name)?.as_slice() {
                [name] => ConflictTarget::Constraint(name.clone()),
                _ => return Err(syntax("a constraint name takes no qualification", at).into()),
            },
        };
        let update = match conflict.action {
            OnConflictAction::DoNothing => None,
            OnConflictAction::DoUpdate(_) if target == ConflictTarget::Any => {
                return Err(syntax("ON CONFLICT DO UPDATE requires inference specification or constraint name", at)
                    .with_hint("For example, ON CONFLICT (column_name).")
                    .into());
            }
            OnConflictAction::DoUpdate(update) => Some(ConflictUpdate {
                assignments: self.assignments(update.assignments, at)?,
                selection: update.selection,
            }),
        };
        Ok(Conflict { target, update, position: at })
    }

    pub(super) fn update(&mut self) -> Read<Statement> {
        let at = self.position();
        let token = self.parser.next_token();
        self.word("ONLY");
        let parsed = self.parser.parse_update(token)?;
        Ok(Statement::Update(Box::new(self.update_of(parsed, at)?)))
    }

    fn update_of(&self, parsed: ast::Statement, at: usize) -> Read<Update> {
        let ast::Statement::Update(update) = parsed else {
            return Err(syntax("syntax error in UPDATE", at).into());
        };
        if !update.table.joins.is_empty() {
            return Err(syntax("UPDATE takes one table", at).with_hint("Join other tables in FROM.").into());
        }
        let from = match update.from {
            None => Vec::new(),
            Some(UpdateTableFromKind::AfterSet(from)) => from,
            Some(UpdateTableFromKind::BeforeSet(_)) => return Err(syntax("syntax error in UPDATE", at).into()),
        };
        if update.or.is_some() || update.output.is_some() || update.limit.is_some() || !update.order_by.is_empty() {
            return Err(syntax("syntax error in UPDATE", at).into());
        }
        let (table, alias) = self.single_table(&update.table, at)?;
        let assignments = self.assignments(update.assignments, at)?;
        Ok(Update {
            with: None,
            table,
            alias,
            assignments,
            from,
            selection: update.selection,
            returning: update.returning,
        })
    }

    /// The assignments of SET, lists taken apart.
    fn assignments(&self, parsed: Vec<ast::Assignment>, at: usize) -> Read<Vec<Assignment>> {
        let mut assignments = Vec::with_capacity(parsed.len());
        for assignment in parsed {
            let columns = match assignment.target {
                AssignmentTarget::ColumnName(column) => {
                    assignments.push(self.assign(&column, assignment.value, at)?);
                    continue;
                }
                AssignmentTarget::Tuple(columns) => columns,
            };
            let values = match assignment.value {
                ast::Expr::Tuple(values) => values,
                ast::Expr::Nested(value) => vec![*value],
                ast::Expr::Subquery(query) => match columns_of_row(&query) {
                    Some(values) => values,
                    None => {
                        return Err(Error::unsupported("SET (…) = (…) needs a list of values or a plain SELECT")
                            .with_hint("Assign each column on its own.")
                            .with_position(at)
                            .into());
                    }
                },
                _ => return Err(syntax("number of columns does not match number of values", at).into()),
            };
            if values.len() != columns.len() {
                return Err(syntax("number of columns does not match number of values", at).into());
            }
            for (column, value) in columns.iter().zip(values) {
                assignments.push(self.assign(column, value, at)?);
            }
        }
        Ok(assignments)
    }

    fn assign(&self, column: &ast::ObjectName, value: ast::Expr, at: usize) -> Read<Assignment> {
        let position = names::start_of(column).map_or(at, |l| self.source.position(l));
        match names::parts(column)?.as_slice() {
            [name] => Ok(Assignment { column: name.clone(), position, value }),
            [table, ..] => {
                Err(Error::new(SqlState::UndefinedColumn, format!("column \"{table}\" of the table does not exist"))
                    .with_hint("SET target columns cannot be qualified with the relation name.")
                    .with_position(position)
                    .into())
            }
            [] => Err(syntax("syntax error in SET", position).into()),
        }
    }

    pub(super) fn delete(&mut self) -> Read<Statement> {
        let at = self.position();
        let token = self.parser.next_token();
        if self.peek_word("FROM") && self.peek_nth_word(1, "ONLY") {
            return self.refuse("ONLY is not supported", "There is no inheritance; leave ONLY out.");
        }
        let parsed = self.parser.parse_delete(token)?;
        Ok(Statement::Delete(Box::new(self.delete_of(parsed, at)?)))
    }

    fn delete_of(&self, parsed: ast::Statement, at: usize) -> Read<Delete> {
        let ast::Statement::Delete(delete) = parsed else {
            return Err(syntax("syntax error in DELETE", at).into());
        };
        if !delete.tables.is_empty() || delete.output.is_some() || delete.limit.is_some() || !delete.order_by.is_empty()
        {
            return Err(syntax("syntax error in DELETE", at).into());
        }
        let FromTable::WithFromKeyword(from) = &delete.from else {
            return Err(syntax("syntax error in DELETE", at).into());
        };
        let [table] = from.as_slice() else {
            return Err(syntax("DELETE takes one table", at).into());
        };
        let (table, alias) = self.single_table(table, at)?;
        Ok(Delete {
            with: None,
            table,
            alias,
            using: delete.using.unwrap_or_default(),
            selection: delete.selection,
            returning: delete.returning,
        })
    }

    /// The one plain table that UPDATE or DELETE works on, with its alias.
    fn single_table(&self, table: &TableWithJoins, at: usize) -> Read<(Name, Option<String>)> {
        match &table.relation {
            TableFactor::Table { name, alias, args: None, .. } if table.joins.is_empty() => {
                Ok((names::relation_name(name, self.source)?, alias.as_ref().map(|a| names::fold(&a.name))))
            }
            _ => Err(syntax("a table name is needed here", at).into()),
        }
    }

    pub(super) fn truncate(&mut self) -> Read<Statement> {
        self.expect_word("TRUNCATE")?;
        self.word("TABLE");
        self.word("ONLY");
        let mut tables = vec![self.name()?];
        while self.parser.consume_token(&Token::Comma) {
            tables.push(self.name()?);
        }
        if !self.words(&["RESTART", "IDENTITY"]) {
            self.words(&["CONTINUE", "IDENTITY"]);
        }
        if !self.word("CASCADE") {
            self.word("RESTRICT");
        }
        Ok(Statement::Truncate(tables))
    }
}

/// The columns of a subquery that gives one row, each as a scalar subquery; `None` when its select list cannot be taken
/// apart without changing what it means.
fn columns_of_row(query: &ast::Query) -> Option<Vec<ast::Expr>> {
    let ast::SetExpr::Select(select) = query.body.as_ref() else { return None };
    if select.distinct.is_some() {
        return None;
    }
    let plain = |item: &ast::SelectItem| {
        matches!(item, ast::SelectItem::UnnamedExpr(_) | ast::SelectItem::ExprWithAlias { .. })
    };
    if !select.projection.iter().all(plain) {
        return None;
    }
    let column = |item: &ast::SelectItem| {
        let mut select = select.clone();
        select.projection = vec![item.clone()];
        ast::Expr::Subquery(Box::new(ast::Query { body: Box::new(ast::SetExpr::Select(select)), ..query.clone() }))
    };
    Some(select.projection.iter().map(column).collect())
}

fn syntax(message: &str, at: usize) -> Error {
    Error::new(SqlState::SyntaxError, message).with_position(at)
}
