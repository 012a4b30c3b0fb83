//! Times, their distribution, and the report of all benchmarks.

use std::fmt::Write;
use std::time::Instant;

use super::server::Usage;

/// The moment. A benchmark measures real time, so it is the one place here that reads the clock.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub fn now() -> Instant {
    Instant::now()
}

pub fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Latencies in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<f64>);

impl Latencies {
    pub fn add(&mut self, ms: f64) {
        self.0.push(ms);
    }

    pub fn merge(&mut self, other: Latencies) {
        self.0.extend(other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// p50, p99, max.
    pub fn percentiles(&self) -> Option<[f64; 3]> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = |part: f64| sorted[((sorted.len() as f64 * part) as usize).min(last)];
        Some([at(0.5), at(0.99), sorted[last]])
    }
}

/// One line of the report.
struct Line {
    name: String,
    value: f64,
    unit: &'static str,
    percentiles: Option<[f64; 3]>,
    usage: Usage,
}

/// What was measured.
#[derive(Default)]
pub struct Report(Vec<Line>);

impl Report {
    /// A value, with the server's use of CPU since the measured part began.
    pub fn value(&mut self, name: impl Into<String>, value: f64, unit: &'static str, usage: Usage) {
        self.line(Line { name: name.into(), value, unit, percentiles: None, usage });
    }

    /// The number of samples with their distribution in milliseconds.
    pub fn latencies(&mut self, name: impl Into<String>, latencies: &Latencies, usage: Usage) {
        let percentiles = (latencies.len() > 0).then(|| latencies.percentiles()).flatten();
        self.line(Line { name: name.into(), value: latencies.len() as f64, unit: "samples", percentiles, usage });
    }

    fn line(&mut self, line: Line) {
        let percentiles = line.percentiles.map(|[a, b, c]| format!("  p50 {a:.2} p99 {b:.2} max {c:.2} ms"));
        eprintln!(
            "   {}: {} {}{}  cpu {:.2} s  peak {} MB",
            line.name,
            plain(line.value),
            line.unit,
            percentiles.unwrap_or_default(),
            line.usage.cpu_s,
            line.usage.peak_mb
        );
        self.0.push(line);
    }

    pub fn table(&self) -> String {
        let mut out = format!(
            "{:<34} {:>14} {:<10} {:>9} {:>9} {:>9} {:>8} {:>8}\n",
            "name", "value", "unit", "p50 ms", "p99 ms", "max ms", "cpu s", "peak MB"
        );
        for line in &self.0 {
            let [p50, p99, max] =
                line.percentiles.map_or([const { String::new() }; 3], |p| p.map(|v| format!("{v:.2}")));
            let _ = writeln!(
                out,
                "{:<34} {:>14} {:<10} {p50:>9} {p99:>9} {max:>9} {:>8.2} {:>8}",
                line.name,
                plain(line.value),
                line.unit,
                line.usage.cpu_s,
                line.usage.peak_mb
            );
        }
        out
    }

    pub fn csv(&self) -> String {
        let mut out = "name,value,unit,p50_ms,p99_ms,max_ms,cpu_s,peak_rss_mb\n".to_string();
        for line in &self.0 {
            let [p50, p99, max] =
                line.percentiles.map_or([const { String::new() }; 3], |p| p.map(|v| format!("{v:.3}")));
            let _ = writeln!(
                out,
                "{},{},{},{p50},{p99},{max},{:.2},{}",
                line.name,
                plain(line.value),
                line.unit,
                line.usage.cpu_s,
                line.usage.peak_mb
            );
        }
        out
    }
}

fn plain(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::Latencies;

    #[test]
    fn percentiles_of_a_hundred() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles(), None);
        (0..100).rev().for_each(|ms| latencies.add(f64::from(ms)));
        assert_eq!(latencies.percentiles(), Some([50.0, 99.0, 99.0]));
    }
}
