//! Rules for every text file: white space, length, nothing of the machine it was written on.

use super::Finding;
use super::source::SourceFile;

/// Past this there is a second idea in the file.
const FILE_LINES_MAX: usize = 1000;

/// What people write; recorded bytes and generated files are as they are.
const WRITTEN: &[&str] = &[".rs", ".md", ".toml", ".sh", ".yml", ".yaml", ".c", ".py", "/run"];

pub(super) fn check(file: &SourceFile) -> Vec<Finding> {
    let path = file.path();
    let mut findings = Vec::new();
    if path == "Cargo.lock" || !WRITTEN.iter().any(|ending| path.ends_with(ending)) {
        return findings;
    }
    for (index, line) in file.text().split('\n').enumerate() {
        let mut find = |message: &str| findings.push(Finding::new(path, index + 1, message));
        if line.ends_with([' ', '\t', '\r']) {
            find("white space at the end of the line");
        }
        if line.contains('\t') {
            find("a tab; spaces, or \\t inside a string");
        }
        if machine_paths().iter().any(|start| has_path(line, start)) {
            find("a path of one machine");
        }
    }
    if !file.text().is_empty() && !file.text().ends_with('\n') {
        findings.push(Finding::new(path, 0, "no newline at the end of the file"));
    }
    let lines = file.text().lines().count();
    if file.is_rust() && lines > FILE_LINES_MAX {
        let message = format!("{lines} lines; more than {FILE_LINES_MAX} hold a second idea");
        findings.push(Finding::new(path, 0, message));
    }
    findings
}

/// Beginnings of paths that exist on some developer's machine only. Joined here from their parts,
/// because this file is checked as well.
fn machine_paths() -> [String; 5] {
    [
        ["", "work", ""],
        ["", "root", ".cargo"],
        ["", "root", ".pyenv"],
        ["", "tmp", "brief"],
        [".cargo", "registry", ""],
    ]
    .map(|parts| parts.join("/"))
}

/// Whether `start` stands in `line` as the beginning of a path, not inside a longer one.
fn has_path(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !start.starts_with('/')
            || !before.is_some_and(|before| before.is_alphanumeric() || "._-~}".contains(before))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        let file = SourceFile::new(path, text);
        check(&file).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn white_space_is_found() {
        assert!(messages("a.md", "one \n")[0].starts_with("a.md:1: white space"));
        assert!(messages("a.rs", "one\r\n")[0].starts_with("a.rs:1: white space"));
        assert!(messages("a.rs", "x\n\tone\n")[0].starts_with("a.rs:2: a tab"));
        assert!(messages("a.rs", "x")[0].contains("no newline"));
        assert!(messages("golden.hex", "one \t\n").is_empty());
    }

    #[test]
    fn a_machine_path_is_found_and_a_word_is_not() {
        let secret = format!("see {}x", machine_paths()[0]);
        assert!(messages("a.md", &format!("{secret}\n"))[0].contains("path of one machine"));
        let other = format!("net{}x\n", machine_paths()[0]);
        assert!(messages("a.md", &other).is_empty());
    }

    #[test]
    fn a_long_file_is_found() {
        assert!(messages("a.rs", &"x\n".repeat(FILE_LINES_MAX)).is_empty());
        assert_eq!(messages("a.rs", &"x\n".repeat(FILE_LINES_MAX + 1)).len(), 1);
    }
}
