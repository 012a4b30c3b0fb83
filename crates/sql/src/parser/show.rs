//! SHOW.

use super::{Read, Reader};
use crate::statement::{ObjectKind, Show, ShowKind, Statement};

impl Reader<'_> {
    pub(super) fn show(&mut self) -> Read<Statement> {
        self.expect_word("SHOW")?;
        if self.word("ALL") {
            return Ok(Statement::Show(Show::All));
        }
        if self.word("JOBS") {
            return Ok(Statement::Show(Show::Jobs));
        }
        if self.word("CHECKPOINTS") {
            return Ok(Statement::Show(Show::Checkpoints));
        }
        if self.word("SAVEPOINTS") {
            return Ok(Statement::Show(Show::Savepoints));
        }
        if self.word("SUBSCRIPTIONS") {
            return Ok(Statement::Show(Show::Subscriptions));
        }
        if self.word("WORKERS") {
            return Ok(Statement::Show(Show::Workers));
        }
        if self.word("COORDINATORS") {
            return Ok(Statement::Show(Show::Coordinators));
        }
        if self.word("WATERMARKS") {
            return Ok(Statement::Show(Show::Watermarks));
        }
        if self.word("COLUMNS") {
            if !self.word("FROM") {
                self.expect_word("IN")?;
            }
            return Ok(Statement::Show(Show::Columns(self.name()?)));
        }
        if self.word("CREATE") {
            return match self.object_kind() {
                Some(kind) if !matches!(kind, ObjectKind::Schema | ObjectKind::Database) => {
                    Ok(Statement::Show(Show::Create { kind, name: self.name()? }))
                }
                _ => self.fail(),
            };
        }
        for (words, kind) in [
            (&["TABLES"][..], ShowKind::Tables),
            (&["SOURCES"], ShowKind::Sources),
            (&["SINKS"], ShowKind::Sinks),
            (&["VIEWS"], ShowKind::Views),
            (&["MATERIALIZED", "VIEWS"], ShowKind::MaterializedViews),
            (&["SCHEMAS"], ShowKind::Schemas),
            (&["DATABASES"], ShowKind::Databases),
        ] {
            if self.words(words) {
                let schema = if self.word("FROM") || self.word("IN") { Some(self.ident()?.0) } else { None };
                let like = if self.word("LIKE") { Some(self.string()?) } else { None };
                return Ok(Statement::Show(Show::Objects { kind, schema, like }));
            }
        }
        if self.words(&["TIME", "ZONE"]) {
            return Ok(Statement::Show(Show::Setting("timezone".to_string())));
        }
        if self.words(&["TRANSACTION", "ISOLATION", "LEVEL"]) {
            return Ok(Statement::Show(Show::Setting("transaction_isolation".to_string())));
        }
        if self.words(&["SESSION", "AUTHORIZATION"]) {
            return Ok(Statement::Show(Show::Setting("session_authorization".to_string())));
        }
        Ok(Statement::Show(Show::Setting(self.setting_name()?)))
    }
}
