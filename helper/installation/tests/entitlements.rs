//! What the programs are signed with: a key that comes here by accident could kill a program at its start, or open it
//! to foreign code.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../entitlements")
}

#[test]
fn each_program_has_a_file_of_its_own_and_no_key() {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let found: BTreeSet<String> = entries.filter(|name| name != "README.md").collect();
    assert_eq!(found, ["app", "cli", "helper"].map(|name| format!("{name}.entitlements")).into());
    for name in found {
        let value = plist::Value::from_file(folder().join(&name)).unwrap();
        let keys: Vec<_> = value.as_dictionary().expect("a dictionary").keys().collect();
        assert!(keys.is_empty(), "{name} has {keys:?}: say in entitlements/README.md why, and what breaks without");
    }
}

#[test]
fn the_readme_names_every_file() {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for name in ["app", "cli", "helper"] {
        assert!(readme.contains(&format!("| `{name}.entitlements` |")), "{name}");
    }
}
