//! The documentation page lists exactly the options that there are.

use connect::OptionSpec;

#[test]
fn the_page_of_the_file_connector_lists_its_options() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/connectors/file.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (heading, specs) in [("## Source", connect::file::SOURCE_OPTIONS), ("## Sink", connect::file::SINK_OPTIONS)] {
        let section = page.split("\n## ").find(|s| heading[3..] == *s.lines().next().unwrap_or("")).unwrap();
        let rows: Vec<&str> = section.lines().filter(|l| l.starts_with("| `")).collect();
        let want: Vec<String> = specs.iter().map(row).collect();
        assert_eq!(rows, want, "\nthe table under \"{heading}\" should be:\n{}\n", want.join("\n"));
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
