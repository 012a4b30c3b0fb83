//! Each documentation page lists exactly the options that there are.

use connect::OptionSpec;

#[test]
fn the_pages_of_the_connectors_list_their_options() {
    let pages = [
        ("file.md", "## Source", connect::file::SOURCE_OPTIONS),
        ("file.md", "## Sink", connect::file::SINK_OPTIONS),
        ("stdout.md", "## Sink", connect::stdout::OPTIONS),
        ("blackhole.md", "## Sink", connect::blackhole::OPTIONS),
        ("nexmark.md", "## Source", connect::nexmark::OPTIONS),
        ("datagen.md", "## Source", connect::datagen::OPTIONS),
    ];
    for (page, heading, specs) in pages {
        let path = format!("{}/../../docs/connectors/{page}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let section = text.split("\n## ").find(|s| heading[3..] == *s.lines().next().unwrap_or("")).unwrap();
        let table = section.split("\n### ").next().unwrap_or("");
        let rows: Vec<&str> = table.lines().filter(|l| l.starts_with("| `")).collect();
        let want: Vec<String> = specs.iter().map(row).collect();
        assert_eq!(rows, want, "\nthe table under \"{heading}\" of {page} should be:\n{}\n", want.join("\n"));
    }
}

fn row(spec: &OptionSpec) -> String {
    let default = match (spec.required, spec.default) {
        (true, _) => "required".to_string(),
        (false, Some("")) => "empty".to_string(),
        (false, Some(default)) => format!("`{default}`"),
        (false, None) => "".to_string(),
    };
    format!("| `{}` | {} | {default} | {} |", spec.name, spec.values, spec.meaning)
}
