//! `TUMBLE`, `HOP` and `SESSION` in FROM, in both spellings, as derived tables.
//!
//! `TUMBLE(t, at, size [, offset])` is the rows of `t` with `window_start` and `window_end`; `HOP(t, at, slide, size [, offset])`
//! has a row for each window. `TABLE(TUMBLE(TABLE t, DESCRIPTOR(at), size))` says the same, and so do the arguments by name:
//! `DATA`, `TIMECOL`, `SLIDE`, `SIZE`, `OFFSET`. Rows without a time lie in no window.
//!
//! `SESSION(t, at, gap [PARTITION BY k, …])`, or with PARTITION BY after the table as in Flink, is the rows of `t` with the window
//! of their session: rows with equal keys that are at most the gap apart.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart, Query, Spanned,
    TableAlias, TableFactor, VisitorMut, WindowType,
};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use flow::{Error, Result, SqlState};

use crate::names::{Source, fold};
use crate::walk::Walk;

const TUMBLE: &str = "SELECT *, tumble_start(__at, __size, __offset) AS window_start,
    tumble_start(__at, __size, __offset) + __size AS window_end FROM __input WHERE __at IS NOT NULL";
const HOP: &str = "SELECT *, window_start + __size AS window_end
    FROM (SELECT *, unnest(hop_starts(__at, __slide, __size, __offset)) AS window_start FROM __input) AS hop";

const SESSION: &str = "SELECT *, session_start(__at, __size) OVER (PARTITION BY __keys ORDER BY __at) AS window_start,
    session_end(__at, __size) OVER (PARTITION BY __keys ORDER BY __at) AS window_end FROM __input WHERE __at IS NOT NULL";
/// The name under which the keys of a session travel through the grammar of functions.
const KEYS: &str = "__partition";

/// Whether the text can hold a window function at all.
pub(crate) fn may_hold(text: &str) -> bool {
    let found = |word: &str| text.as_bytes().windows(word.len()).any(|w| w.eq_ignore_ascii_case(word.as_bytes()));
    ["tumble", "hop", "cumulate", "session"].iter().any(|word| found(word))
}

/// Takes away the word TABLE before the first argument of a window function, which the grammar of functions does not know.
pub(crate) fn without_table_words(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let word = |t: &Token, wanted: &str| matches!(t, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(wanted));
    let mut out: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    for token in tokens {
        if word(&token.token, "table") {
            let mut before = out.iter().rev().map(|t| &t.token).filter(|t| !matches!(t, Token::Whitespace(_)));
            let (last, first) = (before.next(), before.next());
            let opens = matches!(last, Some(Token::LParen))
                && first.is_some_and(|t| ["tumble", "hop", "cumulate", "session"].iter().any(|f| word(t, f)));
            let named = matches!(last, Some(Token::RArrow)) && first.is_some_and(|t| word(t, "data"));
            if opens || named {
                continue;
            }
        }
        out.push(token);
    }
    with_named_keys(out)
}

/// Moves the PARTITION BY of sessions, which the grammar of functions does not know, into an argument of its own at the end.
fn with_named_keys(mut tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let word = |t: &Token, wanted: &str| matches!(t, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(wanted));
    let next = |tokens: &[TokenWithSpan], mut i: usize| {
        while matches!(tokens.get(i).map(|t| &t.token), Some(Token::Whitespace(_))) {
            i += 1;
        }
        i
    };
    // From the last to the first, so that one within the input of another is done before it.
    for at in (0..tokens.len()).rev() {
        if !word(&tokens[at].token, "session") {
            continue;
        }
        let open = next(&tokens, at + 1);
        if !matches!(tokens.get(open).map(|t| &t.token), Some(Token::LParen)) {
            continue;
        }
        let (mut depth, mut close, mut commas, mut partition) = (0, None, Vec::new(), None);
        for (i, t) in tokens.iter().enumerate().skip(open) {
            match &t.token {
                Token::LParen | Token::LBracket => depth += 1,
                Token::RParen | Token::RBracket => depth -= 1,
                Token::Comma if depth == 1 => commas.push(i),
                t if depth == 1 && partition.is_none() && word(t, "partition") => {
                    let by = next(&tokens, i + 1);
                    partition = tokens.get(by).is_some_and(|t| word(&t.token, "by")).then_some((i, by));
                }
                _ => {}
            }
            if depth == 0 {
                close = Some(i);
                break;
            }
        }
        let (Some(close), Some((partition, by))) = (close, partition) else { continue };
        let leads = commas.first().is_none_or(|comma| *comma > partition);
        let after: Vec<usize> = commas.into_iter().filter(|comma| *comma > by).collect();
        let other_argument = |comma: &usize| {
            let first = next(&tokens, comma + 1);
            let second = next(&tokens, first + 1);
            let second = tokens.get(second).map(|t| &t.token);
            matches!(second, Some(Token::RArrow))
                || (matches!(second, Some(Token::LParen))
                    && tokens.get(first).is_some_and(|t| word(&t.token, "descriptor")))
        };
        let end = match after.iter().copied().find(other_argument) {
            Some(comma) => comma,
            // SESSION(t PARTITION BY k, …, at, gap)
            None if leads => after.len().checked_sub(2).and_then(|n| after.get(n).copied()).unwrap_or(close),
            None => close,
        };
        if next(&tokens, by + 1) >= end {
            continue;
        }
        let synthetic = |token: Token, like: &TokenWithSpan| TokenWithSpan { token, span: like.span };
        let keys: Vec<TokenWithSpan> = tokens[by + 1..end].to_vec();
        let mut argument = vec![
            synthetic(Token::Comma, &tokens[partition]),
            synthetic(Token::make_word(KEYS, None), &tokens[partition]),
            synthetic(Token::RArrow, &tokens[partition]),
            synthetic(Token::LParen, &tokens[by]),
        ];
        argument.extend(keys);
        argument.push(synthetic(Token::RParen, &tokens[by]));
        tokens.splice(close..close, argument);
        tokens.drain(partition..end);
    }
    tokens
}

/// Puts derived tables in the place of window functions.
pub(crate) fn expand(query: &mut Query, source: &Source<'_>) -> Result<()> {
    query.try_walk_mut(&mut Expander { source })
}

struct Expander<'a> {
    source: &'a Source<'a>,
}

impl VisitorMut for Expander<'_> {
    type Break = Box<Error>;

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Box<Error>> {
        let (name, args, alias) = match factor {
            TableFactor::Table { name, args: Some(args), alias, .. } => {
                (name.clone(), args.args.clone(), alias.clone())
            }
            TableFactor::TableFunction { expr: Expr::Function(function), alias } => match &function.args {
                FunctionArguments::List(list) => (function.name.clone(), list.args.clone(), alias.clone()),
                _ => return ControlFlow::Continue(()),
            },
            _ => return ControlFlow::Continue(()),
        };
        let [ObjectNamePart::Identifier(word)] = name.0.as_slice() else { return ControlFlow::Continue(()) };
        let function = fold(word);
        let expanded = match function.as_str() {
            "tumble" => self.window(&function, TUMBLE, args, alias),
            "hop" => self.window(&function, HOP, args, alias),
            "session" => self.window(&function, SESSION, args, alias),
            "cumulate" => {
                Err(Error::unsupported("CUMULATE windows are not supported").with_hint("Use TUMBLE, HOP or SESSION."))
            }
            _ => return ControlFlow::Continue(()),
        };
        match expanded {
            Ok(derived) => {
                *factor = derived;
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(Box::new(match error.position() {
                Some(_) => error,
                None => error.with_position(self.source.position(word.span.start)),
            })),
        }
    }
}

/// The arguments of a window function.
#[derive(Default)]
struct Arguments {
    data: Option<Expr>,
    at: Option<Expr>,
    slide: Option<Expr>,
    size: Option<Expr>,
    offset: Option<Expr>,
    keys: Option<Expr>,
}

impl Expander<'_> {
    fn window(
        &self,
        function: &str,
        template: &str,
        args: Vec<FunctionArg>,
        alias: Option<TableAlias>,
    ) -> Result<TableFactor> {
        let hops = function == "hop";
        let usage = match function {
            "hop" => "HOP(table, time, slide, size [, offset])",
            "session" => "SESSION(table, time, gap [PARTITION BY key, …])",
            _ => "TUMBLE(table, time, size [, offset])",
        };
        let wrong = |what: String| Error::new(SqlState::SyntaxError, what).with_hint(format!("Write {usage}."));
        let mut given = Arguments::default();
        let order: &[&str] = match function {
            "hop" => &["data", "timecol", "slide", "size", "offset"],
            "session" => &["data", "timecol", "gap"],
            _ => &["data", "timecol", "size", "offset"],
        };
        for (n, arg) in args.into_iter().enumerate() {
            let (name, value) = match arg {
                FunctionArg::Unnamed(value) => (order.get(n).map(|w| w.to_string()), value),
                FunctionArg::Named { name, arg, .. } => (Some(fold(&name)), arg),
                FunctionArg::ExprNamed { name: Expr::Identifier(name), arg, .. } => (Some(fold(&name)), arg),
                FunctionArg::ExprNamed { arg, .. } => (None, arg),
            };
            let FunctionArgExpr::Expr(value) = value else {
                return Err(wrong(format!("{} has an argument that is no value", function.to_uppercase())));
            };
            let place = match name.as_deref() {
                Some("data") => &mut given.data,
                Some("timecol") => &mut given.at,
                Some("slide") if hops => &mut given.slide,
                Some("size") if function != "session" => &mut given.size,
                Some("gap") if function == "session" => &mut given.size,
                Some("offset") if function != "session" => &mut given.offset,
                Some(KEYS) if function == "session" => &mut given.keys,
                Some(other) => return Err(wrong(format!("{} has no argument \"{other}\"", function.to_uppercase()))),
                None => return Err(wrong(format!("{} has too many arguments", function.to_uppercase()))),
            };
            if place.replace(value).is_some() {
                return Err(wrong(format!("an argument of {} is given twice", function.to_uppercase())));
            }
        }
        let lacks = |what: &str| wrong(format!("{} lacks its {what}", function.to_uppercase()));
        let (input, shown) = self.input(given.data.ok_or_else(|| lacks("table"))?)?;
        let at = described(given.at.ok_or_else(|| lacks("time column"))?);
        let size = given.size.ok_or_else(|| lacks(if function == "session" { "gap" } else { "size" }))?;
        let slide = match (hops, given.slide) {
            (true, None) => return Err(lacks("slide")),
            (_, slide) => slide,
        };
        let mut query = crate::parser::parse_template(template)?;
        let keys = match given.keys {
            None => Vec::new(),
            // PARTITION BY (a, b) came in two pairs of parentheses.
            Some(Expr::Nested(inner)) => match *inner {
                Expr::Tuple(keys) => keys,
                Expr::Nested(key) => vec![*key],
                key => vec![key],
            },
            Some(Expr::Tuple(keys)) => keys,
            Some(key) => vec![key],
        };
        let mut filler = Filler { at, size, slide, offset: given.offset, keys, input };
        query.walk_mut(&mut filler);
        let shown = shown.unwrap_or_else(|| Ident::new(function));
        let alias = alias.unwrap_or_else(|| TableAlias { explicit: true, name: shown, columns: Vec::new(), at: None });
        Ok(TableFactor::Derived { lateral: false, subquery: query, alias: Some(alias), sample: None })
    }

    /// The windowed relation, and its own name if it has one.
    fn input(&self, data: Expr) -> Result<(TableFactor, Option<Ident>)> {
        let parts = match data {
            Expr::Identifier(name) => vec![name],
            Expr::CompoundIdentifier(parts) => parts,
            Expr::Subquery(subquery) => {
                let alias =
                    Some(TableAlias { explicit: true, name: Ident::new("input"), columns: Vec::new(), at: None });
                return Ok((TableFactor::Derived { lateral: false, subquery, alias, sample: None }, None));
            }
            Expr::Nested(inner) => return self.input(*inner),
            other => {
                let error = Error::new(SqlState::SyntaxError, "the first argument of a window must be a table")
                    .with_hint("Name a table, source or view, or write a subquery in parentheses.");
                let start = other.span().start;
                return Err(if start.line > 0 { error.with_position(self.source.position(start)) } else { error });
            }
        };
        let shown = parts.last().cloned();
        let name = ObjectName(parts.into_iter().map(ObjectNamePart::Identifier).collect());
        Ok((crate::parser::table_factor(name)?, shown))
    }
}

/// `DESCRIPTOR(at)` is `at`.
fn described(at: Expr) -> Expr {
    if let Expr::Function(function) = &at
        && function.name.to_string().eq_ignore_ascii_case("descriptor")
        && let FunctionArguments::List(list) = &function.args
        && let [FunctionArg::Unnamed(FunctionArgExpr::Expr(column))] = list.args.as_slice()
    {
        return column.clone();
    }
    at
}

/// Fills a template.
struct Filler {
    at: Expr,
    size: Expr,
    slide: Option<Expr>,
    offset: Option<Expr>,
    keys: Vec<Expr>,
    input: TableFactor,
}

impl VisitorMut for Filler {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if matches!(factor, TableFactor::Table { name, .. } if name.to_string() == "__input") {
            *factor = self.input.clone();
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            if self.offset.is_none()
                && let FunctionArguments::List(list) = &mut function.args
            {
                list.args.retain(|arg| arg.to_string() != "__offset");
            }
            if let Some(WindowType::WindowSpec(spec)) = &mut function.over {
                spec.partition_by = self.keys.clone();
            }
        }
        let Expr::Identifier(name) = expr else { return ControlFlow::Continue(()) };
        let value = match name.value.as_str() {
            "__at" => Some(&self.at),
            "__size" => Some(&self.size),
            "__slide" => self.slide.as_ref(),
            "__offset" => self.offset.as_ref(),
            _ => None,
        };
        if let Some(value) = value {
            *expr = value.clone();
        }
        ControlFlow::Continue(())
    }
}
