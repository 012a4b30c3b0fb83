//! CREATE TABLE, SOURCE, SINK, VIEW, MATERIALIZED VIEW, SCHEMA, DATABASE.

use datafusion::sql::sqlparser::tokenizer::Token;
use flow::{Error, SqlState};

use super::{Read, Reader};
use crate::statement::{
    ColumnDefinition, CreateSink, CreateSource, CreateTable, CreateTableAs, CreateView, DefaultExpr, Format,
    IncludeDefinition, Name, OnConflict, SinkFrom, Statement, WatermarkDefinition,
};

/// What PostgreSQL's tools say about pages and their maintenance; there are no pages here, so it is met in any case.
const STORAGE_PARAMETERS: [&str; 5] =
    ["fillfactor", "autovacuum_enabled", "parallel_workers", "toast_tuple_target", "user_catalog_table"];

/// Columns with the key that was declared among them.
struct Columns {
    columns: Vec<ColumnDefinition>,
    primary_key: Vec<String>,
    watermark: Option<WatermarkDefinition>,
}

impl Reader<'_> {
    pub(super) fn create(&mut self) -> Read<Statement> {
        self.expect_word("CREATE")?;
        let or_replace = self.words(&["OR", "REPLACE"]);
        if self.peek_word("TEMP") || self.peek_word("TEMPORARY") || self.peek_word("UNLOGGED") {
            return self
                .refuse("temporary and unlogged relations are not supported", "Create a plain table and drop it.");
        }
        if self.word("TABLE") {
            return self.create_table(or_replace);
        }
        if self.word("SOURCE") {
            return self.create_source(or_replace);
        }
        if self.word("SINK") {
            return self.create_sink(or_replace);
        }
        if self.word("VIEW") {
            return self.create_view(or_replace, false);
        }
        if self.words(&["MATERIALIZED", "VIEW"]) {
            return self.create_view(or_replace, true);
        }
        if !or_replace && self.word("SCHEMA") {
            let if_not_exists = self.if_not_exists();
            let name = self.name()?;
            if self.word("AUTHORIZATION") {
                self.ident()?;
            }
            return Ok(Statement::CreateSchema { name, if_not_exists });
        }
        if !or_replace && self.word("SAVEPOINT") {
            return Ok(Statement::CreateSavepoint(self.ident()?.0));
        }
        if !or_replace && self.word("DATABASE") {
            let if_not_exists = self.if_not_exists();
            return Ok(Statement::CreateDatabase { name: self.ident()?.0, if_not_exists });
        }
        for (what, hint) in [
            ("INDEX", "A primary key and a materialized view's key are indexed; other indexes come later."),
            ("UNIQUE", "Declare a PRIMARY KEY with the table."),
            ("FUNCTION", "Write the expression in the query."),
            ("AGGREGATE", "Use the built-in aggregates."),
            ("TYPE", "Use the built-in types."),
            ("DOMAIN", "Use the built-in types."),
            ("SEQUENCE", "Number rows in the client."),
            ("TRIGGER", "Use a materialized view."),
            ("RULE", "Use a materialized view."),
            ("EXTENSION", "Extensions are not needed."),
            ("ROLE", "Everyone who can connect may do everything for now."),
            ("USER", "Everyone who can connect may do everything for now."),
            ("SECRET", "Give the value in WITH (…)."),
            ("CONNECTION", "Give the properties in WITH (…)."),
            ("SUBSCRIPTION", "Poll the view with SELECT."),
            ("PUBLICATION", "Use a sink."),
            ("FOREIGN", "Use a source."),
            ("RECURSIVE", "Recursive queries are not supported."),
        ] {
            if self.peek_word(what) {
                return self.refuse(&format!("CREATE {what} is not supported"), hint);
            }
        }
        self.fail()
    }

    fn create_table(&mut self, or_replace: bool) -> Read<Statement> {
        let if_not_exists = self.if_not_exists();
        let name = self.name()?;
        if self.peek_word("PARTITION") || self.peek_word("OF") {
            return self.refuse(
                "CREATE TABLE … OF and PARTITION are not supported",
                "Create the table with its columns; it is distributed by itself.",
            );
        }
        if self.word("AS") {
            return self.create_table_as(name, if_not_exists, Vec::new());
        }
        if self.names_before_as() {
            let columns = self.ident_list()?.into_iter().map(|(name, _)| name).collect();
            self.expect_word("AS")?;
            return self.create_table_as(name, if_not_exists, columns);
        }
        let Columns { columns, primary_key, watermark } = self.columns()?;
        let mut table = CreateTable {
            name,
            if_not_exists,
            or_replace,
            columns,
            primary_key,
            watermark,
            append_only: false,
            on_conflict: OnConflict::Error,
            options: Vec::new(),
            format: None,
        };
        loop {
            let at = self.position();
            if self.words(&["APPEND", "ONLY"]) {
                table.append_only = true;
            } else if self.words(&["ON", "CONFLICT"]) {
                table.on_conflict = self.conflict_behaviour()?;
                if table.primary_key.is_empty() {
                    return Err(Error::new(SqlState::InvalidTableDefinition, "ON CONFLICT needs a primary key")
                        .with_hint("Declare PRIMARY KEY (…) with the columns.")
                        .with_position(at)
                        .into());
                }
            } else if self.word("WITH") {
                table.options = self.options()?;
                table.options.retain(|(name, _)| !STORAGE_PARAMETERS.contains(&name.as_str()));
            } else if self.peek_word("FORMAT") {
                table.format = Some(self.format()?);
            } else if self.peek_word("INHERITS") || self.peek_word("USING") || self.peek_word("TABLESPACE") {
                return self.refuse("INHERITS, USING and TABLESPACE are not supported", "Remove the clause.");
            } else if self.peek_word("PARTITION") {
                return self.refuse("partitioned tables are not supported", "Tables are distributed by themselves.");
            } else {
                break;
            }
        }
        Ok(Statement::CreateTable(Box::new(table)))
    }

    /// After AS.
    fn create_table_as(&mut self, name: Name, if_not_exists: bool, columns: Vec<String>) -> Read<Statement> {
        if self.peek_word("EXECUTE") {
            return self.refuse("CREATE TABLE … AS EXECUTE is not supported", "Write the query itself.");
        }
        let query = self.query()?;
        let with_data = if self.words(&["WITH", "NO", "DATA"]) {
            false
        } else {
            self.words(&["WITH", "DATA"]);
            true
        };
        Ok(Statement::CreateTableAs(Box::new(CreateTableAs { name, if_not_exists, columns, query, with_data })))
    }

    /// Whether a list of plain names and then AS comes next.
    fn names_before_as(&self) -> bool {
        let token = |n: usize| &self.parser.peek_nth_token_ref(n).token;
        if *token(0) != Token::LParen {
            return false;
        }
        let mut n = 1;
        loop {
            if !matches!(token(n), Token::Word(_)) {
                return false;
            }
            match token(n + 1) {
                Token::Comma => n += 2,
                Token::RParen => return self.peek_nth_word(n + 2, "AS"),
                _ => return false,
            }
        }
    }

    /// After ON CONFLICT.
    fn conflict_behaviour(&mut self) -> Read<OnConflict> {
        if self.word("OVERWRITE") {
            Ok(OnConflict::Overwrite)
        } else if self.words(&["DO", "NOTHING"]) || self.word("IGNORE") {
            Ok(OnConflict::DoNothing)
        } else if self.peek_word("DO") {
            self.refuse(
                "ON CONFLICT DO UPDATE is not supported",
                "Use ON CONFLICT OVERWRITE or ON CONFLICT DO NOTHING.",
            )
        } else {
            self.fail()
        }
    }

    fn create_source(&mut self, or_replace: bool) -> Read<Statement> {
        let if_not_exists = self.if_not_exists();
        let name = self.name()?;
        let Columns { columns, primary_key, watermark } = if self.parser.peek_token_ref().token == Token::LParen {
            self.columns()?
        } else {
            Columns { columns: Vec::new(), primary_key: Vec::new(), watermark: None }
        };
        let mut include = Vec::new();
        while self.word("INCLUDE") {
            let (kind, position) = self.ident()?;
            let name = if self.word("AS") { Some(self.ident()?.0) } else { None };
            include.push(IncludeDefinition { kind, name, position });
        }
        self.expect_word("WITH")?;
        let options = self.options()?;
        let format = if self.peek_word("FORMAT") { Some(self.format()?) } else { None };
        let source =
            CreateSource { name, if_not_exists, or_replace, columns, primary_key, watermark, include, options, format };
        Ok(Statement::CreateSource(Box::new(source)))
    }

    fn create_sink(&mut self, or_replace: bool) -> Read<Statement> {
        let if_not_exists = self.if_not_exists();
        let name = if self.peek_word("INTO") || self.peek_word("FROM") || self.peek_word("AS") {
            return self.fail();
        } else {
            self.name()?
        };
        let into = if self.word("INTO") { Some(self.name()?) } else { None };
        let from = if self.word("FROM") {
            SinkFrom::Relation(self.name()?)
        } else {
            self.expect_word("AS")?;
            let (query, text, emit_on_close) = self.query_before_with()?;
            SinkFrom::Query { query, text, emit_on_close }
        };
        let options = if self.word("WITH") { self.options()? } else { Vec::new() };
        let format = if self.peek_word("FORMAT") { Some(self.format()?) } else { None };
        if into.is_none() && options.is_empty() {
            return Err(Error::new(SqlState::SyntaxError, "a sink needs WITH (connector = …) or INTO table")
                .with_hint("For example: WITH (connector = 'file', path = 'out.csv').")
                .with_position(self.position())
                .into());
        }
        let sink = CreateSink { name, if_not_exists, or_replace, into, from, options, format };
        Ok(Statement::CreateSink(Box::new(sink)))
    }

    /// `FORMAT PLAIN ENCODE JSON [(…)]`; FORMAT is the next word.
    fn format(&mut self) -> Read<Format> {
        let position = self.position();
        self.expect_word("FORMAT")?;
        let at = self.position();
        let format = self.ident()?.0.to_uppercase();
        if !matches!(format.as_str(), "PLAIN" | "UPSERT" | "DEBEZIUM") {
            return Err(Error::new(SqlState::SyntaxError, format!("unknown format \"{format}\""))
                .with_hint("Use FORMAT PLAIN, or for a sink FORMAT UPSERT or FORMAT DEBEZIUM.")
                .with_position(at)
                .into());
        }
        self.expect_word("ENCODE")?;
        let at = self.position();
        let encode = self.ident()?.0.to_uppercase();
        if !matches!(encode.as_str(), "JSON" | "CSV" | "PARQUET" | "AVRO" | "PROTOBUF" | "BYTES") {
            return Err(Error::new(SqlState::SyntaxError, format!("unknown encoding \"{encode}\""))
                .with_hint("Use ENCODE JSON, ENCODE CSV or ENCODE PARQUET.")
                .with_position(at)
                .into());
        }
        let options = if self.parser.peek_token_ref().token == Token::LParen { self.options()? } else { Vec::new() };
        Ok(Format { format, encode, options, position })
    }

    fn create_view(&mut self, or_replace: bool, materialized: bool) -> Read<Statement> {
        let if_not_exists = self.if_not_exists();
        let name = self.name()?;
        let columns = if self.parser.peek_token_ref().token == Token::LParen {
            self.ident_list()?.into_iter().map(|(name, _)| name).collect()
        } else {
            Vec::new()
        };
        let options = if self.word("WITH") { self.options()? } else { Vec::new() };
        self.expect_word("AS")?;
        let (query, query_text) = self.view_query()?;
        let at = self.position();
        let emit_on_close = self.emit_on_close();
        if emit_on_close && !materialized {
            return Err(Error::new(SqlState::SyntaxError, "EMIT ON WINDOW CLOSE needs a materialized view or a sink")
                .with_position(at)
                .into());
        }
        if self.words(&["WITH", "DATA"]) {
            // The default.
        } else if self.peek_nth_word(0, "WITH") && self.peek_nth_word(1, "NO") {
            return self.refuse(
                "WITH NO DATA is not supported",
                "A materialized view fills itself in the background and can be read when it has caught up; leave WITH NO DATA out.",
            );
        } else if self.peek_word("WITH") {
            return self.refuse("WITH CHECK OPTION is not supported", "Leave the clause out.");
        }
        let view = CreateView {
            name,
            materialized,
            if_not_exists,
            or_replace,
            columns,
            options,
            query,
            query_text,
            emit_on_close,
        };
        Ok(Statement::CreateView(Box::new(view)))
    }

    /// `EMIT ON WINDOW CLOSE`, if it comes.
    pub(super) fn emit_on_close(&mut self) -> bool {
        self.words(&["EMIT", "ON", "WINDOW", "CLOSE"])
    }

    fn view_query(&mut self) -> Read<(Box<crate::statement::Query>, String)> {
        let start = self.byte();
        let query = self.query()?;
        Ok((query, self.text_from(start)))
    }

    /// `(name type [constraints], …, [PRIMARY KEY (…)])`.
    fn columns(&mut self) -> Read<Columns> {
        self.parser.expect_token(&Token::LParen)?;
        let mut columns: Vec<ColumnDefinition> = Vec::new();
        let mut key: Option<Vec<(String, usize)>> = None;
        let mut watermark: Option<WatermarkDefinition> = None;
        if self.parser.consume_token(&Token::RParen) {
            return Ok(Columns { columns, primary_key: Vec::new(), watermark });
        }
        loop {
            let at = self.position();
            let declared = match self.column_or_key()? {
                Item::Key(columns) => Some(columns),
                Item::Watermark(declared) => {
                    if watermark.replace(*declared).is_some() {
                        return Err(Error::new(
                            SqlState::InvalidTableDefinition,
                            "multiple watermarks are not allowed",
                        )
                        .with_position(at)
                        .into());
                    }
                    None
                }
                Item::Column { column, is_key } => {
                    if columns.iter().any(|c| c.name == column.name) {
                        return Err(Error::new(
                            SqlState::DuplicateColumn,
                            format!("column \"{}\" specified more than once", column.name),
                        )
                        .with_position(at)
                        .into());
                    }
                    let key = is_key.then(|| vec![(column.name.clone(), at)]);
                    columns.push(*column);
                    key
                }
            };
            if let Some(declared) = declared
                && key.replace(declared).is_some()
            {
                return Err(Error::new(SqlState::InvalidTableDefinition, "multiple primary keys are not allowed")
                    .with_position(at)
                    .into());
            }
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.parser.expect_token(&Token::RParen)?;
        let mut primary_key: Vec<String> = Vec::new();
        for (name, at) in key.unwrap_or_default() {
            let Some(column) = columns.iter_mut().find(|c| c.name == name) else {
                let message = format!("column \"{name}\" named in key does not exist");
                return Err(Error::new(SqlState::UndefinedColumn, message).with_position(at).into());
            };
            column.not_null = true;
            if primary_key.contains(&name) {
                let message = format!("column \"{name}\" appears twice in primary key constraint");
                return Err(Error::new(SqlState::DuplicateColumn, message).with_position(at).into());
            }
            primary_key.push(name);
        }
        if let Some(watermark) = &watermark
            && !columns.is_empty()
            && !columns.iter().any(|c| c.name == watermark.column)
        {
            let message = format!("column \"{}\" named in WATERMARK does not exist", watermark.column);
            return Err(Error::new(SqlState::UndefinedColumn, message).with_position(watermark.position).into());
        }
        Ok(Columns { columns, primary_key, watermark })
    }

    /// `WATERMARK FOR column AS column [- interval]`; WATERMARK FOR is read.
    fn watermark(&mut self) -> Read<WatermarkDefinition> {
        use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr};
        let (column, position) = self.ident()?;
        self.expect_word("AS")?;
        let at = self.position();
        let start = self.byte();
        let expr = self.expr()?;
        let text = self.text_from(start);
        let is_column = |e: &Expr| matches!(e, Expr::Identifier(i) if crate::names::fold(i) == column);
        let delay = match expr {
            Expr::BinaryOp { left, op: BinaryOperator::Minus, right } if is_column(&left) => Some(*right),
            e if is_column(&e) => None,
            _ => {
                return Err(Error::unsupported("a watermark must be its column, or its column less an interval")
                    .with_hint(format!("Write WATERMARK FOR {column} AS {column} - INTERVAL '5 seconds'."))
                    .with_position(at)
                    .into());
            }
        };
        Ok(WatermarkDefinition { column, delay, text, position })
    }

    fn column_or_key(&mut self) -> Read<Item> {
        if self.peek_word("CONSTRAINT") {
            self.word("CONSTRAINT");
            self.ident()?;
        }
        if self.words(&["PRIMARY", "KEY"]) {
            return Ok(Item::Key(self.ident_list()?));
        }
        if self.peek_word("WATERMARK") && self.peek_nth_word(1, "FOR") {
            self.words(&["WATERMARK", "FOR"]);
            return Ok(Item::Watermark(Box::new(self.watermark()?)));
        }
        let next_is_paren = self.parser.peek_nth_token_ref(1).token == Token::LParen;
        if (self.peek_word("UNIQUE") || self.peek_word("CHECK")) && next_is_paren
            || self.peek_word("FOREIGN") && self.peek_nth_word(1, "KEY")
            || self.peek_word("EXCLUDE")
            || self.peek_word("LIKE")
        {
            return self.refuse_constraint();
        }
        self.column()
    }

    fn refuse_constraint<T>(&self) -> Read<T> {
        self.refuse(
            "UNIQUE, CHECK, FOREIGN KEY and EXCLUDE constraints are not supported",
            "Declare a PRIMARY KEY and NOT NULL.",
        )
    }

    /// One column with its constraints.
    pub(super) fn column_definition(&mut self) -> Read<ColumnDefinition> {
        let at = self.position();
        match self.column()? {
            Item::Column { column, is_key: false } => Ok(*column),
            _ => Err(Error::unsupported("a column cannot be added as primary key")
                .with_hint("Create a new table with the key, and copy the rows.")
                .with_position(at)
                .into()),
        }
    }

    fn column(&mut self) -> Read<Item> {
        let (name, position) = self.ident()?;
        let type_at = self.position();
        let sql_type = self.parser.parse_data_type()?;
        if let Some(serial) = serial(&sql_type) {
            return Err(Error::unsupported(format!("type {serial} is not supported"))
                .with_hint("Use bigint and give the values.")
                .with_position(type_at)
                .into());
        }
        crate::types::arrow_type(&sql_type).map_err(|e| e.with_position(type_at))?;
        let mut column = ColumnDefinition { name, sql_type, not_null: false, default: None, position };
        let mut is_key = false;
        loop {
            if self.peek_word("CONSTRAINT") {
                self.word("CONSTRAINT");
                self.ident()?;
            }
            if self.words(&["NOT", "NULL"]) {
                column.not_null = true;
            } else if self.words(&["PRIMARY", "KEY"]) {
                is_key = true;
            } else if self.word("NULL") {
                // The default.
            } else if self.word("DEFAULT") {
                let start = self.byte();
                // Not `expr()`: NOT NULL after the default is the column's, not an operator.
                let expr = self.default_expr()?;
                column.default = Some(DefaultExpr { expr, text: self.text_from(start) });
            } else if self.peek_word("UNIQUE") || self.peek_word("CHECK") || self.peek_word("REFERENCES") {
                return self.refuse_constraint();
            } else if self.peek_word("GENERATED") || self.peek_word("AS") {
                return self.refuse("generated columns are not supported", "Compute the column in a view.");
            } else if self.peek_word("COLLATE") {
                return self.refuse("collations are not supported", "Text is compared by its bytes.");
            } else {
                return Ok(Item::Column { column: Box::new(column), is_key });
            }
        }
    }

    /// sqlparser reads `0 NOT NULL` as a Postgres `NOTNULL` test unless it knows that it is in a column definition; the
    /// test is taken off again and its words are given back.
    pub(super) fn default_expr(&mut self) -> Read<crate::statement::Expr> {
        let first = self.parser.index();
        let expr = self.expr()?;
        match expr {
            crate::statement::Expr::IsNotNull(inner) if !self.peek_last_is_is_not_null(first) => {
                self.parser.prev_token();
                self.parser.prev_token();
                Ok(*inner)
            }
            other => Ok(other),
        }
    }

    /// Whether the last three tokens read since `first` were `IS NOT NULL` rather than `NOT NULL` or `NOTNULL`.
    fn peek_last_is_is_not_null(&self, first: usize) -> bool {
        let words: Vec<String> = (first..self.parser.index())
            .map(|i| self.parser.token_at(i))
            .filter(|t| !matches!(t.token, Token::Whitespace(_)))
            .map(|t| t.token.to_string().to_uppercase())
            .collect();
        words.ends_with(&["IS".to_string(), "NOT".to_string(), "NULL".to_string()])
            || !words.ends_with(&["NOT".to_string(), "NULL".to_string()])
    }
}

/// One item of a column list.
enum Item {
    Column { column: Box<ColumnDefinition>, is_key: bool },
    Watermark(Box<WatermarkDefinition>),
    Key(Vec<(String, usize)>),
}

/// The name of a type that stands for an implicit sequence.
fn serial(sql_type: &datafusion::sql::sqlparser::ast::DataType) -> Option<String> {
    let name = sql_type.to_string().to_lowercase();
    matches!(name.as_str(), "serial" | "bigserial" | "smallserial" | "serial4" | "serial8" | "serial2").then_some(name)
}
