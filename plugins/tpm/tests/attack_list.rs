//! The page of attacks names tests: each of them exists.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn every_test_of_the_page_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/attack-list.md")).unwrap();
    let mut files = BTreeMap::new();
    let mut named = 0;
    for line in page.lines() {
        if let [_, short, file, _] = line.split('|').map(str::trim).collect::<Vec<_>>()[..]
            && file.ends_with(".rs")
        {
            files.insert(short.trim_matches('`').to_owned(), std::fs::read_to_string(root.join(file)).unwrap());
        }
        // what stands between backquotes
        for name in line.split('`').skip(1).step_by(2) {
            let Some((short, test)) = name.split_once("::") else { continue };
            let file = files.get(short).unwrap_or_else(|| panic!("`{name}`: which file is {short}"));
            assert!(file.contains(&format!("fn {test}()")), "`{name}` does not exist");
            named += 1;
        }
    }
    assert!(named > 80, "{named} tests named");
}
