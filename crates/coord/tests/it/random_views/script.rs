//! A random case as a list of steps that can be run, printed and made smaller.

use std::collections::BTreeSet;

use super::queries::{Queries, Relation};
use super::values::{Column, TYPES, Type, chance, condition, expr, stored};
use crate::harness::Rng;

const TRANSACTIONS: usize = 14;

#[derive(Clone, Debug)]
pub struct View {
    pub name: String,
    pub sql: String,
    /// Views that it reads.
    pub reads: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
pub enum Step {
    /// One transaction; rolled back if `commit` is not set.
    Write {
        statements: Vec<String>,
        commit: bool,
    },
    Create(usize),
    Drop(usize),
    /// Every view against its query, in one read transaction.
    Check,
}

#[derive(Clone, Debug)]
pub struct Script {
    pub seed: u64,
    pub slots: usize,
    pub batch_rows: usize,
    /// Views start without waiting for their back-fill, and writes go on meanwhile.
    pub background: bool,
    /// Checks run beside the writes that follow them.
    pub beside: bool,
    pub tables: Vec<String>,
    pub views: Vec<View>,
    pub steps: Vec<Step>,
}

/// A table, as the writer of random changes knows it.
struct Table {
    name: String,
    columns: Vec<(String, Type)>,
    /// Leading columns that are the primary key.
    key: usize,
    append_only: bool,
    conflict: &'static str,
    next_key: usize,
}

impl Table {
    fn random(rng: &mut Rng, number: usize) -> Table {
        let key = rng.pick(&[0, 0, 1, 1, 2]);
        let mut columns = Vec::new();
        for n in 0..key {
            let ty =
                if n == 0 { rng.pick(&[Type::Int, Type::Big]) } else { rng.pick(&[Type::Text, Type::Int, Type::Ts]) };
            columns.push((format!("k{n}"), ty));
        }
        for n in 0..2 + rng.below(4) {
            columns.push((format!("a{n}"), rng.pick(&TYPES)));
        }
        let append_only = chance(rng, 1, 5);
        let conflict = match key > 0 && !append_only {
            true => rng.pick(&["", "", " ON CONFLICT OVERWRITE", " ON CONFLICT DO NOTHING"]),
            false => "",
        };
        let key = if append_only { 0 } else { key };
        Table { name: format!("t{number}"), columns, key, append_only, conflict, next_key: 0 }
    }

    fn create(&self) -> String {
        let mut parts: Vec<String> = self.columns.iter().map(|(n, ty)| format!("{n} {}", ty.name())).collect();
        if self.key > 0 {
            let names: Vec<&str> = self.columns[..self.key].iter().map(|(n, _)| n.as_str()).collect();
            parts.push(format!("PRIMARY KEY ({})", names.join(", ")));
        }
        let append = if self.append_only { " APPEND ONLY" } else { "" };
        format!("CREATE TABLE {} ({}){append}{}", self.name, parts.join(", "), self.conflict)
    }

    fn row(&mut self, rng: &mut Rng) -> String {
        let again = !self.conflict.is_empty() && self.next_key > 0 && chance(rng, 1, 3);
        let id = if again {
            rng.below(self.next_key)
        } else {
            self.next_key += 1;
            self.next_key - 1
        };
        let values: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(n, (_, ty))| match n < self.key {
                // The first column alone makes the key unique.
                true if n == 0 => id.to_string(),
                true => stored(rng, *ty, false),
                false => stored(rng, *ty, true),
            })
            .collect();
        format!("({})", values.join(", "))
    }

    fn insert(&mut self, rng: &mut Rng, rows: usize) -> String {
        let rows: Vec<String> = (0..rows).map(|_| self.row(rng)).collect();
        format!("INSERT INTO {} VALUES {}", self.name, rows.join(", "))
    }

    fn statement(&mut self, rng: &mut Rng) -> String {
        let scope: Vec<Column> = self.columns.iter().map(|(n, ty)| Column { sql: n.clone(), ty: *ty }).collect();
        match rng.below(10) {
            _ if self.append_only => {
                let rows = 1 + rng.below(10);
                self.insert(rng, rows)
            }
            0..=4 => {
                let rows = 1 + rng.below(10);
                self.insert(rng, rows)
            }
            5..=7 => {
                let (name, ty) = self.columns[self.key + rng.below(self.columns.len() - self.key)].clone();
                let value = match rng.below(3) {
                    0 => stored(rng, ty, true),
                    _ => expr(rng, &scope, ty, 1),
                };
                format!("UPDATE {} SET {name} = {value} WHERE {}", self.name, condition(rng, &scope, 1))
            }
            8 if self.key > 0 => {
                let key = &self.columns[0].0;
                format!("UPDATE {} SET {key} = {key} + 100000 WHERE {key} % 7 = {}", self.name, rng.below(7))
            }
            // A part of the rows, so that the tables do not run empty all the time.
            _ => {
                let narrow = condition(rng, &scope, 1);
                format!("DELETE FROM {} WHERE {} AND {narrow}", self.name, condition(rng, &scope, 0))
            }
        }
    }
}

impl Script {
    /// The script of a seed, with `count` standing queries.
    pub fn random(seed: u64, count: usize) -> Script {
        let rng = &mut Rng::new(seed);
        let mut tables: Vec<Table> = (0..2 + rng.below(3)).map(|n| Table::random(rng, n)).collect();
        let mut relations: Vec<Relation> = tables
            .iter()
            .map(|t| Relation { name: t.name.clone(), columns: t.columns.clone(), rows: 60, view: None })
            .collect();
        let mut views = Vec::new();
        while views.len() < count {
            let mut queries = Queries::new(rng, &relations);
            let depth = queries.rng.pick(&[0, 0, 1, 1, 2]);
            let query = queries.query(depth);
            let reads = std::mem::take(&mut queries.reads);
            let number = views.len();
            let name = format!("v{number}");
            // Few enough that most queries read tables.
            if chance(rng, 1, 4) && query.rows < 200 {
                let view = Some(number);
                relations.push(Relation { name: name.clone(), columns: query.columns, rows: query.rows, view });
            }
            views.push(View { name, sql: query.sql, reads });
        }
        let steps = steps(rng, &mut tables, &views);
        Script {
            seed,
            slots: 1 + rng.below(4),
            batch_rows: rng.pick(&[1, 32, 8192]),
            background: chance(rng, 1, 2),
            beside: chance(rng, 1, 3),
            tables: tables.iter().map(Table::create).collect(),
            views,
            steps,
        }
    }

    /// The script with only `view` and what it reads.
    pub fn only(&self, view: usize) -> Script {
        let mut kept = BTreeSet::from([view]);
        let mut open = vec![view];
        while let Some(next) = open.pop() {
            open.extend(self.views[next].reads.iter().filter(|r| kept.insert(**r)));
        }
        let mut small = self.clone();
        small.steps.retain(|s| !matches!(s, Step::Create(v) | Step::Drop(v) if !kept.contains(v)));
        small
    }

    /// The script as a file of `sql-tests` whose expected rows are still to be filled in by PostgreSQL.
    pub fn slt(&self) -> String {
        let mut text = format!("# Generated from seed {}.\n", self.seed);
        let record = |text: &mut String, sql: &str| text.push_str(&format!("\nstatement ok\n{sql}\n"));
        self.tables.iter().for_each(|t| record(&mut text, t));
        let mut made = BTreeSet::new();
        for step in &self.steps {
            match step {
                Step::Write { statements, commit: true } => statements.iter().for_each(|s| record(&mut text, s)),
                Step::Create(v) => {
                    made.insert(*v);
                }
                Step::Drop(v) => {
                    made.remove(v);
                }
                Step::Write { .. } | Step::Check => {}
            }
        }
        for view in &self.views {
            record(&mut text, &format!("CREATE VIEW {} AS {}", view.name, view.sql));
        }
        for view in made {
            text.push_str(&format!("\nquery\nSELECT * FROM {}\n----\n", self.views[view].name));
        }
        text
    }

    /// How a reader can follow it: the statements in order.
    pub fn text(&self) -> String {
        let mut text = format!(
            "-- seed {}, {} slots, batches of {}, background {}, checks beside writes {}\n",
            self.seed, self.slots, self.batch_rows, self.background, self.beside
        );
        self.tables.iter().for_each(|t| text.push_str(&format!("{t};\n")));
        for step in &self.steps {
            match step {
                Step::Write { statements, commit } => {
                    let end = if *commit { "COMMIT" } else { "ROLLBACK" };
                    text.push_str(&format!("BEGIN; {}; {end};\n", statements.join("; ")));
                }
                Step::Create(v) => text.push_str(&format!("{};\n", self.views[*v].create())),
                Step::Drop(v) => text.push_str(&format!("DROP MATERIALIZED VIEW {};\n", self.views[*v].name)),
                Step::Check => text.push_str("-- check\n"),
            }
        }
        text
    }
}

impl View {
    pub fn create(&self) -> String {
        format!("CREATE MATERIALIZED VIEW {} AS {}", self.name, self.sql)
    }
}

fn steps(rng: &mut Rng, tables: &mut [Table], views: &[View]) -> Vec<Step> {
    let mut writes = Vec::new();
    for _ in 0..TRANSACTIONS {
        let statements = if chance(rng, 1, 5) {
            // A load of many rows at once.
            let table = rng.below(tables.len());
            let rows = 20 + rng.below(40);
            vec![tables[table].insert(rng, rows)]
        } else {
            (0..1 + rng.below(4))
                .map(|_| {
                    let table = rng.below(tables.len());
                    tables[table].statement(rng)
                })
                .collect()
        };
        writes.push(Step::Write { statements, commit: !chance(rng, 1, 10) });
    }
    // Views come in their order, because a view reads earlier ones: before, among and after the writes.
    let mut at: Vec<usize> = (0..views.len())
        .map(|_| match rng.below(5) {
            0 | 1 => 0,
            2 => writes.len(),
            _ => rng.below(writes.len() + 1),
        })
        .collect();
    at.sort_unstable();
    let read: BTreeSet<usize> = views.iter().flat_map(|v| v.reads.iter().copied()).collect();
    let mut alive = Vec::new();
    let mut next = 0;
    let mut steps = Vec::new();
    for (n, write) in writes.into_iter().enumerate() {
        while next < at.len() && at[next] <= n {
            steps.push(Step::Create(next));
            alive.push(next);
            next += 1;
        }
        steps.push(write);
        if n + 1 == TRANSACTIONS / 3 || n + 1 == 2 * TRANSACTIONS / 3 {
            steps.push(Step::Check);
            // A few that nobody reads go again.
            for _ in 0..2 {
                let view = alive.get(rng.below(alive.len())).copied();
                if let Some(view) = view.filter(|v| !read.contains(v)) {
                    alive.retain(|v| *v != view);
                    steps.push(Step::Drop(view));
                }
            }
        }
    }
    steps.extend((next..at.len()).map(Step::Create));
    steps.push(Step::Check);
    steps
}
