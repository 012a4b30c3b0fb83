//! DROP, ALTER, COMMENT ON.

use datafusion::sql::sqlparser::tokenizer::Token;

use super::{Read, Reader};
use crate::statement::{Alter, AlterAction, Comment, DefaultExpr, Drop, Name, ObjectKind, Set, SetValue, Statement};

impl Reader<'_> {
    /// The words that name a kind of object.
    pub(super) fn object_kind(&mut self) -> Option<ObjectKind> {
        for (words, kind) in [
            (&["TABLE"][..], ObjectKind::Table),
            (&["SOURCE"], ObjectKind::Source),
            (&["SINK"], ObjectKind::Sink),
            (&["VIEW"], ObjectKind::View),
            (&["MATERIALIZED", "VIEW"], ObjectKind::MaterializedView),
            (&["SCHEMA"], ObjectKind::Schema),
            (&["DATABASE"], ObjectKind::Database),
        ] {
            if self.words(words) {
                return Some(kind);
            }
        }
        None
    }

    pub(super) fn drop(&mut self) -> Read<Statement> {
        self.expect_word("DROP")?;
        if self.word("SAVEPOINT") {
            let if_exists = self.if_exists();
            return Ok(Statement::DropSavepoint { name: self.ident()?.0, if_exists });
        }
        let Some(kind) = self.object_kind() else {
            for what in ["INDEX", "FUNCTION", "TYPE", "SEQUENCE", "ROLE", "USER", "TRIGGER", "EXTENSION", "OWNED"] {
                if self.peek_word(what) {
                    return self.refuse(&format!("DROP {what} is not supported"), "There are no such objects.");
                }
            }
            return self.fail();
        };
        let if_exists = self.if_exists();
        let mut names = vec![self.name()?];
        while self.parser.consume_token(&Token::Comma) {
            names.push(self.name()?);
        }
        let cascade = self.word("CASCADE");
        if !cascade {
            self.word("RESTRICT");
        }
        Ok(Statement::Drop(Drop { kind, if_exists, names, cascade }))
    }

    pub(super) fn alter(&mut self) -> Read<Statement> {
        self.expect_word("ALTER")?;
        if self.word("SYSTEM") {
            return self.alter_system();
        }
        let Some(kind) = self.object_kind() else {
            for what in ["INDEX", "FUNCTION", "TYPE", "SEQUENCE", "ROLE", "USER", "DEFAULT"] {
                if self.peek_word(what) {
                    return self.refuse(&format!("ALTER {what} is not supported"), "There are no such objects.");
                }
            }
            return self.fail();
        };
        let if_exists = self.if_exists();
        self.word("ONLY");
        let name = self.name()?;
        let mut actions = vec![self.alter_action(kind)?];
        let alone = |action: &AlterAction| {
            !matches!(
                action,
                AlterAction::AddColumn { .. }
                    | AlterAction::DropColumn { .. }
                    | AlterAction::SetDefault { .. }
                    | AlterAction::SetNotNull { .. }
                    | AlterAction::OwnerTo(_)
            )
        };
        while !alone(&actions[0]) && self.parser.consume_token(&Token::Comma) {
            let action = self.alter_action(kind)?;
            if alone(&action) {
                self.parser.prev_token();
                return self.fail();
            }
            actions.push(action);
        }
        Ok(Statement::Alter(Alter { kind, if_exists, name, actions }))
    }

    fn alter_system(&mut self) -> Read<Statement> {
        if self.word("RESET") {
            if self.word("ALL") {
                return self.refuse("ALTER SYSTEM RESET ALL is not supported", "Reset settings by name.");
            }
            let (name, value) = (self.setting_name()?, SetValue::Default);
            return Ok(Statement::AlterSystem(Set { name, value, local: false }));
        }
        self.expect_word("SET")?;
        let name = self.setting_name()?;
        if !self.parser.consume_token(&Token::Eq) {
            self.expect_word("TO")?;
        }
        let value = match self.word("DEFAULT") {
            true => SetValue::Default,
            false => SetValue::Values(vec![self.setting_value()?]),
        };
        Ok(Statement::AlterSystem(Set { name, value, local: false }))
    }

    fn alter_action(&mut self, kind: ObjectKind) -> Read<AlterAction> {
        if self.word("RENAME") {
            if self.word("TO") {
                return Ok(AlterAction::RenameTo(self.ident()?.0));
            }
            self.word("COLUMN");
            let from = self.ident()?.0;
            self.expect_word("TO")?;
            return Ok(AlterAction::RenameColumn { from, to: self.ident()?.0 });
        }
        if self.words(&["OWNER", "TO"]) {
            return Ok(AlterAction::OwnerTo(self.ident()?.0));
        }
        if self.words(&["SET", "SCHEMA"]) {
            return Ok(AlterAction::SetSchema(self.ident()?.0));
        }
        if self.peek_word("PAUSE") || self.peek_word("RESUME") {
            if kind != ObjectKind::Source {
                return self.refuse(
                    &format!("a {kind} cannot be paused"),
                    "Pause what it reads with ALTER SOURCE … PAUSE, or drop it and create it again.",
                );
            }
            return Ok(if self.word("PAUSE") {
                AlterAction::Pause
            } else {
                self.expect_word("RESUME")?;
                AlterAction::Resume
            });
        }
        if self.words(&["SET", "PARALLELISM"]) {
            if !matches!(kind, ObjectKind::MaterializedView | ObjectKind::Sink) {
                return self.refuse(
                    &format!("a {kind} has no parallelism"),
                    "Materialized views and sinks have: ALTER MATERIALIZED VIEW … SET PARALLELISM n.",
                );
            }
            if !self.parser.consume_token(&Token::Eq) {
                self.word("TO");
            }
            if self.word("DEFAULT") {
                return Ok(AlterAction::SetParallelism(None));
            }
            let Token::Number(digits, _) = self.parser.peek_token_ref().token.clone() else { return self.fail() };
            let Some(parallelism) = digits.parse().ok().filter(|n| *n > 0) else {
                return self
                    .refuse("the parallelism must be a number from 1 on", "It is the number of slots to work on.");
            };
            self.parser.next_token();
            return Ok(AlterAction::SetParallelism(Some(parallelism)));
        }
        let option_list = |reader: &Self| reader.parser.peek_nth_token_ref(1).token == Token::LParen;
        if kind == ObjectKind::Source && self.peek_word("SET") && option_list(self) {
            self.expect_word("SET")?;
            return Ok(AlterAction::SetOptions(self.options()?));
        }
        if kind == ObjectKind::Source && self.peek_word("RESET") && option_list(self) {
            self.expect_word("RESET")?;
            return Ok(AlterAction::ResetOptions(self.ident_list()?.into_iter().map(|(name, _)| name).collect()));
        }
        if kind == ObjectKind::Table {
            let constraint = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN", "EXCLUDE"];
            if self.peek_word("ADD") && constraint.iter().any(|w| self.peek_nth_word(1, w)) {
                return self.refuse(
                    "ALTER TABLE … ADD of a constraint is not supported",
                    "Create a new table with the constraint, copy the rows, drop the old one and rename the new one.",
                );
            }
            if self.peek_word("DROP") && self.peek_nth_word(1, "CONSTRAINT") {
                return self.refuse(
                    "ALTER TABLE … DROP CONSTRAINT is not supported",
                    "Create a new table without it, copy the rows, drop the old one and rename the new one.",
                );
            }
            if self.word("ADD") {
                self.word("COLUMN");
                let if_not_exists = self.if_not_exists();
                let column = Box::new(self.column_definition()?);
                return Ok(AlterAction::AddColumn { column, if_not_exists });
            }
            if self.word("DROP") {
                self.word("COLUMN");
                let if_exists = self.if_exists();
                let name = self.ident()?.0;
                let cascade = self.word("CASCADE");
                if !cascade {
                    self.word("RESTRICT");
                }
                return Ok(AlterAction::DropColumn { name, if_exists, cascade });
            }
            if self.word("ALTER") {
                self.word("COLUMN");
                let name = self.ident()?.0;
                if self.words(&["SET", "DEFAULT"]) {
                    let start = self.byte();
                    let expr = self.default_expr()?;
                    let default = Some(DefaultExpr { expr, text: self.text_from(start) });
                    return Ok(AlterAction::SetDefault { name, default: default.map(Box::new) });
                }
                if self.words(&["DROP", "DEFAULT"]) {
                    return Ok(AlterAction::SetDefault { name, default: None });
                }
                if self.words(&["SET", "NOT", "NULL"]) {
                    return Ok(AlterAction::SetNotNull { name, not_null: true });
                }
                if self.words(&["DROP", "NOT", "NULL"]) {
                    return Ok(AlterAction::SetNotNull { name, not_null: false });
                }
                return self.refuse(
                    "ALTER COLUMN supports only SET and DROP of DEFAULT and NOT NULL",
                    "Create a new table, copy the rows, drop the old one and rename the new one.",
                );
            }
        }
        let words =
            ["ADD", "DROP", "ALTER", "SET", "RESET", "ENABLE", "DISABLE", "ATTACH", "DETACH", "SWAP", "CLUSTER"];
        if words.iter().any(|w| self.peek_word(w)) {
            return self.refuse(
                &format!("this form of ALTER {} is not supported", kind.to_string().to_uppercase()),
                "Create a new object, copy the rows, drop the old one and rename the new one.",
            );
        }
        self.fail()
    }

    pub(super) fn comment(&mut self) -> Read<Statement> {
        self.expect_word("COMMENT")?;
        self.expect_word("ON")?;
        let (kind, name, column) = if self.word("COLUMN") {
            let name = self.name()?;
            let relation = Name {
                name: name.schema.clone().unwrap_or_default(),
                schema: name.database.clone(),
                database: None,
                position: name.position,
            };
            if relation.name.is_empty() {
                return Err(flow::Error::new(flow::SqlState::SyntaxError, "column name must be qualified")
                    .with_position(name.position)
                    .into());
            }
            (ObjectKind::Column, relation, Some(name.name))
        } else if let Some(kind) = self.object_kind() {
            (kind, self.name()?, None)
        } else {
            return self.refuse(
                "comments on this kind of object are not supported",
                "Comment on tables, views, sources, sinks, columns, schemas and databases.",
            );
        };
        self.expect_word("IS")?;
        let comment = if self.word("NULL") { None } else { Some(self.string()?) };
        Ok(Statement::Comment(Comment { kind, name, column, comment }))
    }
}
