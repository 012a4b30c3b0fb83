//! INSERT, UPDATE, DELETE, TRUNCATE.

use datafusion::sql::sqlparser::ast::{
    self, AssignmentTarget, FromTable, OnConflictAction, OnInsert, TableFactor, TableObject, TableWithJoins,
};
use datafusion::sql::sqlparser::tokenizer::Token;
use flow::{Error, SqlState};

use super::{Read, Reader};
use crate::names;
use crate::statement::{Delete, Insert, Name, Statement, Update};

impl Reader<'_> {
    pub(super) fn insert(&mut self) -> Read<Statement> {
        let at = self.position();
        let token = self.parser.next_token();
        let parsed = self.parser.parse_insert(token)?;
        let ast::Statement::Insert(insert) = parsed else {
            return Err(syntax("INSERT INTO needs a table", at).into());
        };
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
            Some(OnInsert::OnConflict(conflict)) => {
                if matches!(conflict.action, OnConflictAction::DoUpdate(_)) {
                    return Err(Error::unsupported("ON CONFLICT DO UPDATE is not supported")
                        .with_hint("Use ON CONFLICT DO NOTHING, or create the table with ON CONFLICT OVERWRITE.")
                        .with_position(at)
                        .into());
                }
                match conflict.conflict_target {
                    None => Some(Vec::new()),
                    Some(ast::ConflictTarget::Columns(columns)) => Some(columns.iter().map(names::fold).collect()),
                    Some(ast::ConflictTarget::OnConstraint(_)) => {
                        return Err(Error::unsupported("ON CONFLICT ON CONSTRAINT is not supported")
                            .with_hint("Name the key's columns, or none.")
                            .with_position(at)
                            .into());
                    }
                }
            }
            Some(_) => return Err(syntax("syntax error in INSERT", at).into()),
        };
        Ok(Statement::Insert(Box::new(Insert {
            table: names::relation_name(table, self.source)?,
            alias: insert.table_alias.map(|a| names::fold(&a.alias)),
            columns,
            source: insert.source,
            on_conflict,
            returning: insert.returning,
        })))
    }

    pub(super) fn update(&mut self) -> Read<Statement> {
        let at = self.position();
        let token = self.parser.next_token();
        self.word("ONLY");
        let ast::Statement::Update(update) = self.parser.parse_update(token)? else {
            return Err(syntax("syntax error in UPDATE", at).into());
        };
        if update.from.is_some() || !update.table.joins.is_empty() {
            return Err(Error::unsupported("UPDATE … FROM is not supported")
                .with_hint("Use a subquery: UPDATE t SET c = (SELECT …) WHERE k IN (SELECT …).")
                .with_position(at)
                .into());
        }
        if update.or.is_some() || update.output.is_some() || update.limit.is_some() || !update.order_by.is_empty() {
            return Err(syntax("syntax error in UPDATE", at).into());
        }
        let (table, alias) = self.single_table(&update.table, at)?;
        let mut assignments = Vec::with_capacity(update.assignments.len());
        for assignment in update.assignments {
            match assignment.target {
                AssignmentTarget::ColumnName(column) => assignments.push(self.assign(&column, assignment.value, at)?),
                AssignmentTarget::Tuple(columns) => {
                    let ast::Expr::Tuple(values) = assignment.value else {
                        return Err(Error::unsupported("SET (…) = (subquery) is not supported")
                            .with_hint("Assign each column on its own.")
                            .with_position(at)
                            .into());
                    };
                    if values.len() != columns.len() {
                        return Err(syntax("number of columns does not match number of values", at).into());
                    }
                    for (column, value) in columns.iter().zip(values) {
                        assignments.push(self.assign(column, value, at)?);
                    }
                }
            }
        }
        Ok(Statement::Update(Box::new(Update {
            table,
            alias,
            assignments,
            selection: update.selection,
            returning: update.returning,
        })))
    }

    fn assign(&self, column: &ast::ObjectName, value: ast::Expr, at: usize) -> Read<(String, usize, ast::Expr)> {
        let position = names::start_of(column).map_or(at, |l| self.source.position(l));
        match names::parts(column)?.as_slice() {
            [name] => Ok((name.clone(), position, value)),
            _ => Err(Error::new(
                SqlState::UndefinedColumn,
                format!("column \"{column}\" does not exist: SET takes no qualified names"),
            )
            .with_position(position)
            .into()),
        }
    }

    pub(super) fn delete(&mut self) -> Read<Statement> {
        let at = self.position();
        let token = self.parser.next_token();
        if self.peek_word("FROM") && self.peek_nth_word(1, "ONLY") {
            return self.refuse("ONLY is not supported", "There is no inheritance; leave ONLY out.");
        }
        let ast::Statement::Delete(delete) = self.parser.parse_delete(token)? else {
            return Err(syntax("syntax error in DELETE", at).into());
        };
        if delete.using.is_some() {
            return Err(Error::unsupported("DELETE … USING is not supported")
                .with_hint("Use a subquery: DELETE FROM t WHERE k IN (SELECT …).")
                .with_position(at)
                .into());
        }
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
        Ok(Statement::Delete(Box::new(Delete {
            table,
            alias,
            selection: delete.selection,
            returning: delete.returning,
        })))
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

fn syntax(message: &str, at: usize) -> Error {
    Error::new(SqlState::SyntaxError, message).with_position(at)
}
