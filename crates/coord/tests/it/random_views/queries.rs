//! Random queries over random relations, of every form that a standing query may have.

use std::collections::BTreeSet;

use super::values::{Column, TYPES, Type, chance, condition, expr, literal};
use crate::harness::Rng;

/// What a query can read.
#[derive(Clone, Debug)]
pub struct Relation {
    pub name: String,
    pub columns: Vec<(String, Type)>,
    /// About how many rows it has.
    pub rows: usize,
    /// Its place among the views, if it is one.
    pub view: Option<usize>,
}

/// A query with unique output names.
#[derive(Clone, Debug)]
pub struct Query {
    pub sql: String,
    pub columns: Vec<(String, Type)>,
    pub rows: usize,
}

/// Joins are kept to about so many rows.
const ROWS_MAX: usize = 2500;

pub struct Queries<'a> {
    pub rng: &'a mut Rng,
    pub relations: &'a [Relation],
    /// Views that the query at hand reads.
    pub reads: BTreeSet<usize>,
    names: usize,
}

/// FROM and WHERE, and the columns in scope.
struct Source {
    sql: String,
    columns: Vec<Column>,
    rows: usize,
}

impl<'a> Queries<'a> {
    pub fn new(rng: &'a mut Rng, relations: &'a [Relation]) -> Queries<'a> {
        Queries { rng, relations, reads: BTreeSet::new(), names: 0 }
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn chance(&mut self, n: usize, of: usize) -> bool {
        chance(self.rng, n, of)
    }

    fn relation(&mut self) -> Relation {
        let found = self.relations[self.rng.below(self.relations.len())].clone();
        self.reads.extend(found.view);
        found
    }

    /// A whole query.
    pub fn query(&mut self, depth: usize) -> Query {
        match self.rng.below(20) {
            0..=4 => self.select(depth, None),
            5..=9 => self.grouped(depth),
            10..=11 => self.global(depth),
            12..=13 => self.top_rows(depth),
            14..=15 => self.ranked(depth),
            16..=18 => self.combined(depth),
            _ => self.with(depth),
        }
    }

    /// `SELECT … FROM … WHERE …`, perhaps DISTINCT; with output types as asked for.
    fn select(&mut self, depth: usize, types: Option<&[Type]>) -> Query {
        let source = self.source(depth);
        let (list, columns) = self.projection(&source, types);
        let distinct = if types.is_none() && self.chance(1, 4) { "DISTINCT " } else { "" };
        Query { sql: format!("SELECT {distinct}{list} {}", source.sql), columns, rows: source.rows }
    }

    fn projection(&mut self, source: &Source, types: Option<&[Type]>) -> (String, Vec<(String, Type)>) {
        let types = match types {
            Some(types) => types.to_vec(),
            None => {
                (0..1 + self.rng.below(4)).map(|_| source.columns[self.rng.below(source.columns.len())].ty).collect()
            }
        };
        let mut list = Vec::new();
        let mut columns = Vec::new();
        for ty in types {
            let depth = self.rng.pick(&[0, 0, 1, 2]);
            let mut value = expr(self.rng, &source.columns, ty, depth);
            if ty == Type::Bool {
                value = format!("({value})");
            }
            if self.chance(1, 14) {
                value = self.scalar(&source.columns, ty).unwrap_or(value);
            }
            let name = self.name("c");
            list.push(format!("{value} AS {name}"));
            columns.push((name, ty));
        }
        (list.join(", "), columns)
    }

    /// A scalar subquery of type `ty`.
    fn scalar(&mut self, outer: &[Column], ty: Type) -> Option<String> {
        let inner = self.item(0);
        if ty == Type::Big && self.chance(2, 3) {
            let (a, b) = self.pair(outer, &inner.columns)?;
            return Some(format!("(SELECT count(*) FROM {} WHERE {b} = {a})", inner.sql));
        }
        if ty == Type::Bool {
            return None;
        }
        let value = inner.columns.iter().find(|c| c.ty == ty)?.sql.clone();
        let function = self.rng.pick(&["min", "max"]);
        let correlated = match self.pair(outer, &inner.columns) {
            Some((a, b)) if self.chance(1, 2) => format!(" WHERE {b} = {a}"),
            _ => String::new(),
        };
        Some(format!("(SELECT {function}({value}) FROM {}{correlated})", inner.sql))
    }

    /// One aggregate call and its type.
    fn aggregate(&mut self, columns: &[Column]) -> (String, Type) {
        let ty = columns[self.rng.below(columns.len())].ty;
        let value = {
            let depth = self.rng.pick(&[0, 0, 1]);
            expr(self.rng, columns, ty, depth)
        };
        let distinct = if self.chance(1, 5) { "DISTINCT " } else { "" };
        let filter = if self.chance(1, 5) {
            format!(" FILTER (WHERE {})", condition(self.rng, columns, 1))
        } else {
            String::new()
        };
        match self.rng.below(6) {
            0 => (format!("count(*){filter}"), Type::Big),
            1 => (format!("count({distinct}{value}){filter}"), Type::Big),
            2 | 3 if ty.is_number() => {
                let result = if ty == Type::Int { Type::Big } else { ty };
                (format!("sum({distinct}{value}){filter}"), result)
            }
            4 if ty.is_number() => (format!("(avg({distinct}{value}){filter})::double precision"), Type::Double),
            _ if ty == Type::Bool => (format!("{}({value}){filter}", self.rng.pick(&["bool_and", "bool_or"])), ty),
            _ => (format!("{}({value}){filter}", self.rng.pick(&["min", "max"])), ty),
        }
    }

    fn grouped(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let mut keys = Vec::new();
        let mut list = Vec::new();
        let mut columns = Vec::new();
        for _ in 0..self.rng.pick(&[1, 1, 2, 3]) {
            let column = source.columns[self.rng.below(source.columns.len())].clone();
            let (key, ty) = match column.ty {
                Type::Int if self.chance(1, 4) => (format!("({} % 3)", column.sql), Type::Int),
                Type::Text if self.chance(1, 4) => (format!("upper({})", column.sql), Type::Text),
                Type::Ts if self.chance(1, 2) => (format!("extract(hour from {})::int", column.sql), Type::Int),
                ty if self.chance(1, 8) => {
                    (format!("({} IS NULL)", column.sql), if ty == Type::Bool { ty } else { Type::Bool })
                }
                ty => (column.sql, ty),
            };
            if keys.contains(&key) {
                continue;
            }
            let name = self.name("c");
            list.push(format!("{key} AS {name}"));
            columns.push((name, ty));
            keys.push(key);
        }
        for _ in 0..self.rng.pick(&[0, 1, 1, 2, 3]) {
            let (call, ty) = self.aggregate(&source.columns);
            let name = self.name("c");
            list.push(format!("{call} AS {name}"));
            columns.push((name, ty));
        }
        let having = match self.rng.below(5) {
            0 => format!(" HAVING count(*) > {}", self.rng.below(4)),
            1 => {
                let (call, ty) = self.aggregate(&source.columns);
                match ty {
                    Type::Bool => format!(" HAVING {call}"),
                    ty => format!(" HAVING {call} >= {}", literal(self.rng, ty)),
                }
            }
            _ => String::new(),
        };
        let keys = if self.chance(1, 3) {
            (1..=keys.len()).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
        } else {
            keys.join(", ")
        };
        let sql = format!("SELECT {} {} GROUP BY {keys}{having}", list.join(", "), source.sql);
        Query { sql, columns, rows: source.rows.min(40) }
    }

    fn global(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let mut list = Vec::new();
        let mut columns = Vec::new();
        for _ in 0..1 + self.rng.below(4) {
            let (call, ty) = self.aggregate(&source.columns);
            let name = self.name("c");
            list.push(format!("{call} AS {name}"));
            columns.push((name, ty));
        }
        let having = if self.chance(1, 10) { " HAVING count(*) > 3" } else { "" };
        Query { sql: format!("SELECT {} {}{having}", list.join(", "), source.sql), columns, rows: 1 }
    }

    /// Every output column in some direction: ties are equal rows, so the answer is determined.
    fn order(&mut self, columns: &[String]) -> String {
        let mut left = columns.to_vec();
        let mut order = Vec::new();
        while !left.is_empty() {
            let column = left.swap_remove(self.rng.below(left.len()));
            let way = self.rng.pick(&["", " DESC", " NULLS FIRST", " DESC NULLS LAST", " ASC NULLS LAST"]);
            order.push(format!("{column}{way}"));
        }
        order.join(", ")
    }

    fn top_rows(&mut self, depth: usize) -> Query {
        let inner = self.select(depth, None);
        let names: Vec<String> = inner.columns.iter().map(|(n, _)| n.clone()).collect();
        let order = self.order(&names);
        let limit = 1 + self.rng.below(8);
        let offset = if self.chance(1, 4) { format!(" OFFSET {}", self.rng.below(4)) } else { String::new() };
        let sql = format!("{} ORDER BY {order} LIMIT {limit}{offset}", inner.sql);
        Query { sql, columns: inner.columns, rows: limit }
    }

    fn ranked(&mut self, depth: usize) -> Query {
        let inner = self.select(depth, None);
        let (t, rank, r) = (self.name("x"), self.name("c"), self.name("x"));
        let names: Vec<String> = inner.columns.iter().map(|(n, _)| format!("{t}.{n}")).collect();
        let function = self.rng.pick(&["row_number", "row_number", "rank", "dense_rank"]);
        // Ranks of ties are equal, so their order need not be total.
        let order = match function {
            "row_number" => self.order(&names),
            _ => {
                let one = names[self.rng.below(names.len())].clone();
                self.order(&[one])
            }
        };
        let partition = match self.rng.below(4) {
            0 => String::new(),
            _ => format!("PARTITION BY {} ", names[self.rng.below(names.len())]),
        };
        let limit = 1 + self.rng.below(4);
        let keep = if self.chance(1, 2) {
            format!("{r}.*")
        } else {
            inner.columns.iter().map(|(n, _)| format!("{r}.{n}")).collect::<Vec<_>>().join(", ")
        };
        let mut columns = inner.columns.clone();
        if keep.ends_with('*') {
            columns.push((rank.clone(), Type::Big));
        }
        let sql = format!(
            "SELECT {keep} FROM (SELECT {}, {function}() OVER ({partition}ORDER BY {order}) AS {rank} FROM ({}) AS {t}) AS {r} WHERE {r}.{rank} <= {limit}",
            names.join(", "),
            inner.sql
        );
        Query { sql, columns, rows: inner.rows }
    }

    fn combined(&mut self, depth: usize) -> Query {
        let types: Vec<Type> = (0..1 + self.rng.below(3)).map(|_| self.rng.pick(&TYPES)).collect();
        let a = self.select(depth.saturating_sub(1), Some(&types));
        let b = self.select(depth.saturating_sub(1), Some(&types));
        let how = self.rng.pick(&["UNION ALL", "UNION ALL", "UNION ALL", "UNION", "INTERSECT", "EXCEPT"]);
        let rows = a.rows + b.rows;
        Query { sql: format!("{} {how} {}", a.sql, b.sql), columns: a.columns, rows }
    }

    fn with(&mut self, depth: usize) -> Query {
        let inner = match self.rng.below(2) {
            0 => self.grouped(0),
            _ => self.select(0, None),
        };
        let name = self.name("w");
        let relation = Relation { name: name.clone(), columns: inner.columns.clone(), rows: inner.rows, view: None };
        let mut relations = self.relations.to_vec();
        // Often enough to be read twice.
        relations.extend(vec![relation; 2 * self.relations.len()]);
        let mut rest = Queries { rng: self.rng, relations: &relations, reads: BTreeSet::new(), names: self.names };
        let body = match rest.rng.below(3) {
            0 => rest.grouped(depth),
            _ => rest.select(depth, None),
        };
        let (reads, names) = (std::mem::take(&mut rest.reads), rest.names);
        self.reads.extend(reads);
        self.names = names;
        Query { sql: format!("WITH {name} AS ({}) {}", inner.sql, body.sql), ..body }
    }

    /// One item of FROM under a fresh alias.
    fn item(&mut self, depth: usize) -> Source {
        let alias = self.name("x");
        let (text, columns, rows) = if depth > 0 && self.chance(1, 5) {
            let inner = match self.rng.below(4) {
                0 => self.grouped(depth - 1),
                1 => self.top_rows(depth - 1),
                2 => self.combined(depth - 1),
                _ => self.select(depth - 1, None),
            };
            (format!("({})", inner.sql), inner.columns, inner.rows)
        } else {
            let relation = self.relation();
            (relation.name, relation.columns, relation.rows)
        };
        let columns = columns.iter().map(|(n, ty)| Column { sql: format!("{alias}.{n}"), ty: *ty }).collect();
        Source { sql: format!("{text} AS {alias}"), columns, rows }
    }

    /// Two columns of one type, from each side one.
    fn pair(&mut self, left: &[Column], right: &[Column]) -> Option<(String, String)> {
        let pairs: Vec<(&Column, &Column)> = left
            .iter()
            .flat_map(|l| right.iter().map(move |r| (l, r)))
            .filter(|(l, r)| l.ty == r.ty || (l.ty == Type::Int && r.ty == Type::Big))
            // A pair of booleans joins half of everything.
            .filter(|(l, _)| l.ty != Type::Bool)
            .collect();
        let (l, r) = *pairs.get(self.rng.below(pairs.len()))?;
        Some((l.sql.clone(), r.sql.clone()))
    }

    fn source(&mut self, depth: usize) -> Source {
        let mut source = self.item(depth);
        let joins = self.rng.pick(&[0, 0, 0, 1, 1, 1, 2]);
        for _ in 0..joins {
            let right = self.item(depth);
            let pair = self.pair(&source.columns, &right.columns);
            let product = source.rows * right.rows;
            let Some((a, b)) = pair.filter(|_| !self.chance(1, 12)) else {
                if product > ROWS_MAX {
                    continue;
                }
                match (
                    self.rng.below(3),
                    &source.columns[0],
                    right.columns.iter().find(|c| c.ty == source.columns[0].ty),
                ) {
                    (0, _, _) | (_, _, None) => source.sql = format!("{} CROSS JOIN {}", source.sql, right.sql),
                    (n, a, Some(b)) => {
                        let kind = if n == 1 { "JOIN" } else { "LEFT JOIN" };
                        let on = if a.ty == Type::Bool { "=" } else { self.rng.pick(&["<", ">=", "<>"]) };
                        source.sql = format!("{} {kind} {} ON {} {on} {}", source.sql, right.sql, a.sql, b.sql);
                    }
                }
                source.columns.extend(right.columns);
                source.rows = product;
                continue;
            };
            if product / 8 > ROWS_MAX {
                continue;
            }
            let mut on = format!("{a} = {b}");
            if self.chance(1, 5)
                && let Some((a, b)) = self.pair(&source.columns, &right.columns)
            {
                on = format!("{on} AND {a} = {b}");
            }
            if self.chance(1, 3) {
                let mut both = source.columns.clone();
                both.extend(right.columns.iter().cloned());
                let scope = match self.rng.below(3) {
                    0 => &source.columns,
                    1 => &right.columns,
                    _ => &both,
                };
                on = format!("{on} AND {}", condition(self.rng, scope, 1));
            }
            let kinds = ["JOIN", "JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"];
            source.sql = format!("{} {} {} ON {on}", source.sql, self.rng.pick(&kinds), right.sql);
            source.rows = (product / 8).max(source.rows).max(right.rows);
            source.columns.extend(right.columns);
        }
        let mut conditions = Vec::new();
        if self.chance(1, 2) {
            conditions.push(condition(self.rng, &source.columns, 2));
        }
        if self.chance(1, 4)
            && let Some(condition) = self.subquery_condition(&source.columns, depth)
        {
            conditions.push(condition);
        }
        if !conditions.is_empty() {
            source.rows = source.rows.div_ceil(2);
        }
        let filter = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", conditions.join(" AND ")),
        };
        Source { sql: format!("FROM {}{filter}", source.sql), ..source }
    }

    fn subquery_condition(&mut self, outer: &[Column], depth: usize) -> Option<String> {
        let inner = self.item(depth.min(1));
        let (a, b) = self.pair(outer, &inner.columns)?;
        let not = self.rng.pick(&["", "NOT "]);
        let extra = if self.chance(1, 3) { Some(condition(self.rng, &inner.columns, 1)) } else { None };
        Some(match self.rng.below(5) {
            0 | 1 => {
                let filter = extra.map_or(String::new(), |c| format!(" WHERE {c}"));
                format!("{a} {not}IN (SELECT {b} FROM {}{filter})", inner.sql)
            }
            2 | 3 => {
                let mut filter = format!("{b} = {a}");
                if let Some(extra) = extra {
                    filter = format!("{filter} AND {extra}");
                } else if self.chance(1, 3)
                    && let Some((a, b)) = self.pair(outer, &inner.columns)
                {
                    filter = format!("{filter} AND {b} <> {a}");
                }
                format!("{not}EXISTS (SELECT 1 FROM {} WHERE {filter})", inner.sql)
            }
            _ => {
                let compared = self.rng.pick(&["=", "<", ">="]);
                let filter = extra.map_or(String::new(), |c| format!(" WHERE {c}"));
                format!("{a} {compared} (SELECT {}({b}) FROM {}{filter})", self.rng.pick(&["min", "max"]), inner.sql)
            }
        })
    }
}
