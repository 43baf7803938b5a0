//! The crates depend on each other in one direction only, and on others through the workspace.

use super::Finding;
use super::source::SourceFile;

/// What each crate may use of the workspace (ARCHITECTURE.md, "Crates"). A crate that is not here
/// is a test or a tool and may use all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("sys", &[]),
    ("core", &["proto"]),
    ("net", &["core", "proto", "sys"]),
    ("client", &["core", "net", "proto"]),
    ("server", &["core", "net", "proto", "sys"]),
    ("cli", &["client", "core", "net", "proto", "server", "sys"]),
    // Small enough to build in seconds on a fresh machine, before anything else is there.
    ("xtask", &[]),
];

pub(super) fn check(files: &[SourceFile]) -> Vec<Finding> {
    files
        .iter()
        .filter_map(|file| Some((file, crate_of(file.path())?)))
        .flat_map(|(file, name)| check_manifest(file, name))
        .collect()
}

/// The crate whose manifest this is. The root's has no dependencies of its own, and `fuzz` is a
/// workspace of its own.
fn crate_of(path: &str) -> Option<&str> {
    if path == "xtask/Cargo.toml" {
        return Some("xtask");
    }
    path.strip_prefix("crates/")?.strip_suffix("/Cargo.toml").filter(|name| !name.contains('/'))
}

fn check_manifest(file: &SourceFile, name: &str) -> Vec<Finding> {
    let allowed = MAY_USE.iter().find(|(of, _)| *of == name).map(|(_, allowed)| *allowed);
    let mut findings = Vec::new();
    for dependency in dependencies(file.text()) {
        let mut find = |message: String| {
            findings.push(Finding::new(file.path(), dependency.line, message));
        };
        if !dependency.from_workspace {
            find(format!("`{}` does not come from the workspace", dependency.name));
        }
        let Some(own) = dependency.name.strip_prefix("afar-") else { continue };
        // A test may go against the direction (a crate may even use itself); the product may not.
        let forbidden = allowed.is_some_and(|allowed| !allowed.contains(&own));
        if forbidden && !dependency.only_for_tests {
            find(format!("`{name}` must not depend on `{own}`"));
        }
    }
    findings
}

#[derive(Debug, PartialEq, Eq)]
struct Dependency {
    name: String,
    line: usize,
    from_workspace: bool,
    only_for_tests: bool,
}

/// The dependencies of a manifest. Our own are written a line each, which spares a TOML parser:
/// `name.workspace = true`, `name = { workspace = true, … }`, or `[dependencies.name]`.
fn dependencies(manifest: &str) -> Vec<Dependency> {
    let mut found: Vec<Dependency> = Vec::new();
    let mut section = Section::Other;
    for (index, line) in manifest.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(header) = line.strip_prefix('[') {
            section = Section::of(header.trim_end_matches(']'));
            if let Section::One { name, only_for_tests } = &section {
                found.push(Dependency {
                    name: name.clone(),
                    line: index + 1,
                    from_workspace: false,
                    only_for_tests: *only_for_tests,
                });
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim());
        match &section {
            Section::Many { only_for_tests } => {
                let (name, dotted) = key.split_once('.').unwrap_or((key, ""));
                let inline = value.replace(' ', "").contains("workspace=true");
                let from_workspace = inline || (dotted.trim() == "workspace" && value == "true");
                found.push(Dependency {
                    name: name.trim().trim_matches('"').to_owned(),
                    line: index + 1,
                    from_workspace,
                    only_for_tests: *only_for_tests,
                });
            }
            Section::One { .. } if key == "workspace" && value == "true" => {
                if let Some(last) = found.last_mut() {
                    last.from_workspace = true;
                }
            }
            Section::One { .. } | Section::Other => {}
        }
    }
    found
}

enum Section {
    /// A table of dependencies, a line each.
    Many {
        only_for_tests: bool,
    },
    /// The table of one dependency.
    One {
        name: String,
        only_for_tests: bool,
    },
    Other,
}

impl Section {
    fn of(header: &str) -> Self {
        let tables = ["dev-dependencies", "build-dependencies", "dependencies"];
        for table in tables {
            let only_for_tests = table == "dev-dependencies";
            // `target.'cfg(unix)'.dependencies` ends with the table as well.
            let is_table = header == table || header.ends_with(&format!(".{table}"));
            if is_table {
                return Self::Many { only_for_tests };
            }
            let inside = header
                .strip_prefix(&format!("{table}."))
                .or_else(|| Some(header.rsplit_once(&format!(".{table}."))?.1));
            if let Some(name) = inside {
                return Self::One { name: name.to_owned(), only_for_tests };
            }
        }
        Self::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        check(&[SourceFile::new(path, text)]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dependency_against_the_direction_is_found() {
        let manifest = "[dependencies]\nafar-net.workspace = true\nbytes.workspace = true\n\
                        [dev-dependencies]\nafar-server.workspace = true\n";
        assert_eq!(
            messages("crates/core/Cargo.toml", manifest),
            ["crates/core/Cargo.toml:2: `core` must not depend on `net`"]
        );
        assert!(messages("crates/client/Cargo.toml", manifest).is_empty());
        assert!(messages("crates/e2e/Cargo.toml", manifest).is_empty());
    }

    #[test]
    fn a_dependency_outside_the_workspace_is_found() {
        let manifest = "[package]\nversion = \"1\"\n[dependencies]\na = \"1\"\n\
                        b = { version = \"1\", features = [] }\n\
                        c = { workspace = true, features = [\"x\"] }\n\
                        [target.'cfg(unix)'.dependencies]\nd = \"1\"\n\
                        [dependencies.e]\nversion = \"1\"\n[dev-dependencies.f]\nworkspace = true\n";
        let found = messages("crates/net/Cargo.toml", manifest);
        let names = ["a", "b", "d", "e"];
        assert_eq!(found.len(), names.len(), "{found:?}");
        for (message, name) in found.iter().zip(names) {
            assert!(message.contains(&format!("`{name}` does not come")), "{message}");
        }
    }

    #[test]
    fn the_fuzz_targets_are_a_workspace_of_their_own() {
        assert!(
            messages("fuzz/Cargo.toml", "[dependencies]\nlibfuzzer-sys = \"0.4\"\n").is_empty()
        );
    }
}
