//! Options of a connector: the text pairs of `WITH (…)` and `FORMAT … ENCODE … (…)`, read once into a typed struct.
//!
//! Each connector lists its options as a table of [`OptionSpec`]; a name outside of the table is an error that names the
//! nearest option, and the documentation page is compared with the table by a test. Names are case-insensitive.

use std::collections::BTreeMap;
use std::time::Duration;

use flow::{Error, Result, SqlState};

/// One option as it is documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    pub name: &'static str,
    /// What may stand there: `text`, `true | false`, `csv | json`, a duration.
    pub values: &'static str,
    /// Default as the user would write it; `None` when there is none.
    pub default: Option<&'static str>,
    pub required: bool,
    /// One sentence.
    pub meaning: &'static str,
}

/// What records say of rows that change: the word after FORMAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowForm {
    /// Rows, or changes of rows.
    #[default]
    Plain,
    /// The new row of a key, or that the key is gone.
    Upsert,
    /// The row before and the row after, as Debezium writes them.
    Debezium,
}

impl RowForm {
    const ALL: [RowForm; 3] = [RowForm::Plain, RowForm::Upsert, RowForm::Debezium];

    /// As it is written after FORMAT.
    pub fn keyword(self) -> &'static str {
        match self {
            RowForm::Plain => "PLAIN",
            RowForm::Upsert => "UPSERT",
            RowForm::Debezium => "DEBEZIUM",
        }
    }
}

/// A form that a connector offers, with its encodings in upper case.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub form: RowForm,
    pub encodings: &'static [&'static str],
}

/// The options of one `CREATE SOURCE` or `CREATE SINK`, as written.
///
/// `FORMAT PLAIN ENCODE e (k = v, …)` is stored as the pairs `format = e`, `k = v`, so that a connector sees one
/// namespace (`encode` is another name of `format`); an option given twice is an error. The word after FORMAT stands apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pairs: BTreeMap<String, String>,
    form: RowForm,
}

impl Options {
    /// Options from the pairs of `WITH (…)`. Errors: `42601` for a name that stands there twice.
    pub fn new<K: AsRef<str>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Options> {
        let mut options = Options::default();
        for (key, value) in pairs {
            options.add(key.as_ref(), value.into())?;
        }
        Ok(options)
    }

    /// Adds `FORMAT format ENCODE encode (options …)`. Errors: `42601` when it contradicts `WITH`, `0A000` for a format
    /// that is none.
    pub fn with_encode<K: AsRef<str>, V: Into<String>>(
        mut self,
        format: &str,
        encode: &str,
        options: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Options> {
        let form = RowForm::ALL.into_iter().find(|f| f.keyword().eq_ignore_ascii_case(format));
        self.form = form.ok_or_else(|| {
            Error::unsupported(format!("FORMAT {} is not supported", format.to_uppercase()))
                .with_hint("Use FORMAT PLAIN.")
        })?;
        self.add("format", encode.to_lowercase())?;
        for (key, value) in options {
            self.add(key.as_ref(), value.into())?;
        }
        Ok(self)
    }

    fn add(&mut self, key: &str, value: String) -> Result<()> {
        let mut key = key.trim().to_lowercase();
        if key == "encode" {
            key = "format".into();
        }
        if let Some(old) = self.pairs.get(&key)
            && !(key == "format" && old.eq_ignore_ascii_case(&value))
        {
            // Other options may be secrets.
            let error = Error::new(SqlState::SyntaxError, format!("option \"{key}\" is given twice"));
            return Err(match key == "format" {
                true => error.with_detail(format!("The values are '{old}' and '{value}'.")),
                false => error,
            });
        }
        self.pairs.insert(key, value);
        Ok(())
    }

    /// The value of an option as written, without a default.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.get(name).map(String::as_str)
    }

    /// The word after FORMAT; PLAIN without the clause.
    pub fn form(&self) -> RowForm {
        self.form
    }

    /// All pairs, by name, to store them in the catalog and to show them.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// Reads options against the table of one connector. Every getter names the option in its error.
pub struct OptionReader<'a> {
    /// For messages: `source connector "file"`.
    owner: &'static str,
    options: &'a Options,
    specs: &'static [OptionSpec],
}

impl<'a> OptionReader<'a> {
    /// For a connector that knows rows alone. Errors: as [`with_forms`](Self::with_forms), and `0A000` for a FORMAT other than
    /// PLAIN.
    pub fn new(owner: &'static str, options: &'a Options, specs: &'static [OptionSpec]) -> Result<OptionReader<'a>> {
        if options.form != RowForm::Plain {
            let message = format!("FORMAT {} is not supported by {owner}", options.form.keyword());
            return Err(Error::unsupported(message).with_hint("Use FORMAT PLAIN."));
        }
        OptionReader::with_forms(owner, options, specs)
    }

    /// Errors: `42704` for an option that is not in `specs`, `22023` for a required one that is missing.
    pub fn with_forms(
        owner: &'static str,
        options: &'a Options,
        specs: &'static [OptionSpec],
    ) -> Result<OptionReader<'a>> {
        for (name, _) in options.pairs() {
            if specs.iter().any(|s| s.name == name) {
                continue;
            }
            let names: Vec<&str> = specs.iter().map(|s| s.name).collect();
            let error = Error::new(SqlState::UndefinedObject, format!("{owner} has no option \"{name}\""))
                .with_detail(format!("Its options are: {}.", names.join(", ")));
            return Err(match nearest(name, names.iter().copied()) {
                Some(near) => error.with_hint(format!("Perhaps you meant \"{near}\".")),
                None => error,
            });
        }
        // The connector itself was found by its option.
        for spec in specs.iter().filter(|s| s.required && s.name != "connector") {
            if options.get(spec.name).is_none_or(|v| v.is_empty()) {
                return Err(Error::new(
                    SqlState::InvalidParameterValue,
                    format!("{owner} needs the option \"{}\"", spec.name),
                )
                .with_detail(spec.meaning)
                .with_hint(format!("Write WITH (…, {} = '…').", spec.name)));
            }
        }
        Ok(OptionReader { owner, options, specs })
    }

    fn spec(&self, name: &str) -> Option<&'static OptionSpec> {
        self.specs.iter().find(|s| s.name == name)
    }

    /// The value or the documented default; empty when there is neither.
    pub fn text(&self, name: &str) -> &'a str {
        self.options.get(name).or_else(|| self.spec(name).and_then(|s| s.default)).unwrap_or("")
    }

    /// The value if one was written.
    pub fn given(&self, name: &str) -> Option<&'a str> {
        self.options.get(name)
    }

    pub fn boolean(&self, name: &str) -> Result<bool> {
        match self.text(name).to_ascii_lowercase().as_str() {
            "true" | "t" | "on" | "yes" | "1" => Ok(true),
            "false" | "f" | "off" | "no" | "0" => Ok(false),
            _ => Err(self.invalid(name)),
        }
    }

    /// The value of the first pair whose word is written, ignoring case.
    pub fn one_of<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<T> {
        let value = self.text(name);
        words.iter().find(|(w, _)| w.eq_ignore_ascii_case(value)).map(|(_, v)| *v).ok_or_else(|| {
            let error = self.invalid(name);
            match nearest(value, words.iter().map(|(w, _)| *w)) {
                Some(near) => error.with_hint(format!("Perhaps you meant '{near}'.")),
                None => error,
            }
        })
    }

    /// One ASCII character other than a quote, CR or LF; `\t` and `tab` mean the tab character.
    pub fn ascii_char(&self, name: &str) -> Result<u8> {
        match self.text(name) {
            "\\t" | "tab" => Ok(b'\t'),
            value => match value.as_bytes() {
                [c] if c.is_ascii() && !matches!(c, b'"' | b'\r' | b'\n' | 0) => Ok(*c),
                _ => Err(self.invalid(name)),
            },
        }
    }

    /// A duration such as `100ms`, `2 s`, `1 minute`; between one millisecond and one day.
    pub fn duration(&self, name: &str) -> Result<Duration> {
        let invalid = || self.invalid(name).with_hint("Choose a time between 1ms and 24h.");
        parse_duration(self.text(name)).ok_or_else(invalid)
    }

    /// A number of bytes such as `64 MB`, `1 GB`, `512kB`; units of 1024 as in PostgreSQL.
    pub fn bytes(&self, name: &str, least: u64, most: u64) -> Result<u64> {
        let value = self.text(name).trim();
        let digits = value.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = value[..digits].parse().map_err(|_| self.invalid(name))?;
        let unit: u64 = match value[digits..].trim().to_ascii_lowercase().as_str() {
            "b" => 1,
            "kb" => 1 << 10,
            "mb" => 1 << 20,
            "gb" => 1 << 30,
            _ => return Err(self.invalid(name).with_hint("Write a number with a unit: B, kB, MB or GB.")),
        };
        let bytes = number.checked_mul(unit).filter(|bytes| (least..=most).contains(bytes));
        bytes.ok_or_else(|| self.invalid(name))
    }

    /// A whole number within the bounds.
    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<u64> {
        let number = self.text(name).trim().parse().ok().filter(|n| (least..=most).contains(n));
        number.ok_or_else(|| self.invalid(name))
    }

    /// `22023`: the option's value cannot be used.
    pub fn invalid(&self, name: &str) -> Error {
        let values = self.spec(name).map_or("", |s| s.values);
        Error::new(
            SqlState::InvalidParameterValue,
            format!("invalid value for option \"{name}\" of {}: '{}'", self.owner, self.text(name)),
        )
        .with_detail(format!("Allowed: {values}."))
    }
}

/// Checks the words of `FORMAT form ENCODE encode` against what `owner` offers. Errors: `0A000` with what there is.
pub fn check_form(owner: &str, offered: &[Form], form: &str, encode: &str) -> Result<()> {
    let fits = |f: &Form| f.form.keyword().eq_ignore_ascii_case(form);
    let encodes = |f: &Form| f.encodings.iter().any(|e| e.eq_ignore_ascii_case(encode));
    if offered.iter().any(|f| fits(f) && encodes(f)) {
        return Ok(());
    }
    let (form, encode) = (form.to_uppercase(), encode.to_uppercase());
    let error = Error::unsupported(format!("FORMAT {form} ENCODE {encode} is not supported by {owner}"));
    let text = |f: &Form| format!("FORMAT {} ENCODE {}", f.form.keyword(), f.encodings.join(" | "));
    Err(match offered.iter().find(|f| fits(f)).or(offered.first()) {
        None => error.with_detail("It takes no FORMAT.").with_hint("Leave the clause out."),
        Some(near) => error
            .with_detail(format!("It offers {}.", offered.iter().map(text).collect::<Vec<_>>().join("; ")))
            .with_hint(format!("Use {}.", text(near))),
    })
}

/// The candidate that `word` most likely means: at most a third of its letters (and at least one) may differ.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    let ranked = candidates.into_iter().map(|c| (edit_distance(&word, c), c));
    ranked.filter(|(d, _)| *d <= allowed).min_by_key(|(d, _)| *d).map(|(_, c)| c)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours count one each.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

/// A duration such as `100ms`, `2 s`, `1 minute`; between one millisecond and one day.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "ms" | "milliseconds" | "millisecond" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1_000,
        "m" | "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).filter(|ms| (1..=86_400_000).contains(ms)).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    static SPECS: &[OptionSpec] = &[
        OptionSpec { name: "path", values: "text", default: None, required: true, meaning: "The file." },
        OptionSpec { name: "follow", values: "true | false", default: Some("false"), required: false, meaning: "." },
        OptionSpec { name: "wait", values: "a duration", default: Some("100ms"), required: false, meaning: "." },
        OptionSpec { name: "delimiter", values: "one character", default: Some(","), required: false, meaning: "." },
    ];

    fn read<'a>(options: &'a Options) -> Result<OptionReader<'a>> {
        OptionReader::new("source connector \"x\"", options, SPECS)
    }

    #[test]
    fn unknown_missing_and_wrong_options_are_named() {
        let options = Options::new([("path", "a"), ("folow", "true")]).unwrap();
        let e = read(&options).err().unwrap();
        assert_eq!((e.state().code(), e.hint()), ("42704", Some("Perhaps you meant \"follow\".")));
        let options = Options::new([("follow", "true")]).unwrap();
        let e = read(&options).err().unwrap();
        assert_eq!((e.state().code(), e.message()), ("22023", "source connector \"x\" needs the option \"path\""));
        let options = Options::new([("path", "a"), ("follow", "maybe"), ("wait", "soon"), ("delimiter", "é")]).unwrap();
        let reader = read(&options).unwrap();
        for error in [
            reader.boolean("follow").unwrap_err(),
            reader.duration("wait").unwrap_err(),
            reader.ascii_char("delimiter").unwrap_err(),
        ] {
            assert_eq!(error.state().code(), "22023");
            assert!(error.detail().is_some_and(|d| d.starts_with("Allowed: ")), "{error}");
        }
    }

    #[test]
    fn the_encode_clause_joins_the_with_options_and_contradictions_are_refused() {
        let options = Options::new([("Path", "a")]).unwrap().with_encode("PLAIN", "CSV", [("header", "true")]).unwrap();
        assert_eq!(
            (options.get("format"), options.get("header"), options.get("path")),
            (Some("csv"), Some("true"), Some("a"))
        );
        let again =
            Options::new([("format", "csv")]).unwrap().with_encode("plain", "CSV", Vec::<(String, String)>::new());
        assert!(again.is_ok());
        let other =
            Options::new([("format", "csv")]).unwrap().with_encode("plain", "json", Vec::<(String, String)>::new());
        assert_eq!(other.err().unwrap().state().code(), "42601");
        let debezium = Options::default().with_encode("DEBEZIUM", "json", Vec::<(String, String)>::new());
        let debezium = debezium.unwrap();
        assert_eq!(debezium.form(), RowForm::Debezium);
        assert_eq!(OptionReader::new("x", &debezium, SPECS).err().unwrap().state().code(), "0A000");
        let maxwell = Options::default().with_encode("MAXWELL", "json", Vec::<(String, String)>::new());
        assert_eq!(maxwell.err().unwrap().state().code(), "0A000");
        assert!(Options::new([("path", "a"), ("PATH", "b")]).is_err());
    }

    #[test]
    fn durations_have_units_and_limits() {
        for (text, ms) in [
            ("100ms", Some(100)),
            ("2 s", Some(2000)),
            ("1 minute", Some(60_000)),
            ("0ms", None),
            ("25h", None),
            ("5", None),
            ("99999999999999999999s", None),
            ("-1s", None),
        ] {
            let options = Options::new([("path", "a"), ("wait", text)]).unwrap();
            let got = read(&options).unwrap().duration("wait").ok().map(|d| d.as_millis() as u64);
            assert_eq!(got, ms, "{text}");
        }
    }

    #[test]
    fn nearest_finds_swaps_and_refuses_strangers() {
        assert_eq!(nearest("fiel", ["file", "blackhole"]), Some("file"));
        assert_eq!(nearest("kafka", ["file", "blackhole"]), None);
    }
}
