//! DROP, ALTER … RENAME, COMMENT ON.

use datafusion::sql::sqlparser::tokenizer::Token;

use super::{Read, Reader};
use crate::statement::{Alter, AlterAction, Comment, Drop, Name, ObjectKind, Statement};

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
        let Some(kind) = self.object_kind() else {
            for what in ["INDEX", "FUNCTION", "TYPE", "SEQUENCE", "ROLE", "USER", "SYSTEM", "DEFAULT"] {
                if self.peek_word(what) {
                    return self.refuse(&format!("ALTER {what} is not supported"), "There are no such objects.");
                }
            }
            return self.fail();
        };
        let if_exists = self.if_exists();
        self.word("ONLY");
        let name = self.name()?;
        if !self.peek_word("RENAME") {
            let words =
                ["ADD", "DROP", "ALTER", "SET", "OWNER", "RESET", "ENABLE", "DISABLE", "ATTACH", "DETACH", "SWAP"];
            if words.iter().any(|w| self.peek_word(w)) {
                return self.refuse(
                    &format!("ALTER {} supports only RENAME for now", kind.to_string().to_uppercase()),
                    "Create a new object, copy the rows, drop the old one and rename the new one.",
                );
            }
            return self.fail();
        }
        self.expect_word("RENAME")?;
        let action = if self.word("TO") {
            AlterAction::RenameTo(self.ident()?.0)
        } else {
            self.word("COLUMN");
            let from = self.ident()?.0;
            self.expect_word("TO")?;
            AlterAction::RenameColumn { from, to: self.ident()?.0 }
        };
        Ok(Statement::Alter(Alter { kind, if_exists, name, action }))
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
