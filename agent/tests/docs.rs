//! The configurations that the pages show are taken as they are, with what is commented out and without.

use mayfly_agent::config::Config;
use std::path::{Path, PathBuf};

/// Every TOML block of a page, with the heading above it.
fn blocks(page: &str) -> Vec<(String, String)> {
    let (mut heading, mut found) = (String::new(), Vec::new());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            heading = line.trim_start_matches('#').trim().to_owned();
        } else if line == "```toml" {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            found.push((heading.clone(), block.join("\n") + "\n"));
        }
    }
    found
}

fn pages() -> Vec<(PathBuf, String)> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let folders = [docs.clone(), docs.join("formats")];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).expect("the pages are there"));
    let files =
        files.map(|file| file.expect("a page").path()).filter(|path| path.extension().is_some_and(|e| e == "md"));
    let read = |path: PathBuf| (path.clone(), std::fs::read_to_string(path).expect("a page is text"));
    files.map(read).collect()
}

fn load(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).expect("a file");
    Config::load(&path).map_err(|error| format!("{error}\n{text}"))
}

/// The same with what is commented out.
fn with_all_options(block: &str) -> String {
    let is_option = |line: &str| {
        let option = line.strip_prefix("# ").and_then(|rest| rest.parse::<toml::Table>().ok());
        option.is_some_and(|option| !option.is_empty())
    };
    let lines = block.lines().map(|line| if is_option(line) { &line[2..] } else { line });
    lines.collect::<Vec<_>>().join("\n").replace("\"…\"", &format!("\"{}\"", "0".repeat(64)))
}

#[test]
fn what_the_pages_show_is_taken() {
    let mut seen = 0;
    for (path, page) in pages() {
        for (heading, block) in blocks(&page) {
            let place = format!("{}, {heading}", path.display());
            let text = match heading.as_str() {
                "agent.toml" => block,
                // A section of it.
                _ if block.starts_with("[vault]") => format!("device_name = 'web-1'\n{block}"),
                // ledger-server/src/config.rs takes it.
                "ledger.toml" => continue,
                _ => panic!("{place}: say here what takes this configuration"),
            };
            load(&text).unwrap_or_else(|error| panic!("{place}: {error}"));
            load(&with_all_options(&text)).unwrap_or_else(|error| panic!("{place}, all options: {error}"));
            seen += 1;
        }
    }
    assert!(seen >= 2, "only {seen} configurations were found: does this test look at the right place?");
}

#[test]
fn what_is_shown_is_the_default() {
    let page = pages().into_iter().find(|(path, _)| path.ends_with("operations.md")).expect("the page").1;
    let block = blocks(&page).into_iter().find(|(heading, _)| heading == "agent.toml").expect("the example").1;
    let shown = load(&block).unwrap_or_else(|error| panic!("{error}"));
    let bare = load("device_name = 'web-1'\n[vault]\nkind = 'file'\n").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(shown.new_keys, bare.new_keys);
    assert_eq!(shown.log, bare.log);
    assert_eq!(shown.limits, bare.limits);
    assert_eq!(shown.danger, bare.danger);
    assert_eq!(format!("{:?}", shown.applications), format!("{:?}", bare.applications));
}
