//! The specification and the code hold each other to account: limits and numbered clauses.

use std::collections::BTreeMap;

use super::Finding;
use super::source::{SourceFile, word_at};

/// A page with numbered clauses.
struct Spec {
    path: &'static str,
    /// What its clauses' numbers begin with.
    prefix: &'static str,
    /// The files of limits that it has to name.
    limits: &'static [&'static str],
}

const SPECS: [Spec; 3] = [
    Spec { path: "docs/spec/wire.md", prefix: "W-", limits: &["crates/proto/src/limits.rs"] },
    Spec {
        path: "docs/spec/jobs.md",
        prefix: "J-",
        limits: &["crates/core/src/job/limits.rs", "crates/server/src/store/limits.rs"],
    },
    Spec {
        path: "docs/spec/classic.md",
        prefix: "C-",
        limits: &["crates/proto/src/classic/limits.rs", "crates/server/src/classic/limits.rs"],
    },
];

pub(super) fn check(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for spec in &SPECS {
        let Some(page) = files.iter().find(|file| file.path() == spec.path) else { continue };
        for limits in files.iter().filter(|file| spec.limits.contains(&file.path())) {
            findings.extend(unnamed_limits(limits, page));
        }
        findings.extend(clauses(files, page, spec.prefix));
    }
    findings
}

/// A second implementation must be able to keep every limit from the specification alone.
fn unnamed_limits(limits: &SourceFile, spec: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, keyword) in limits.code().match_indices("const ") {
        let name = word_at(limits.code(), at + keyword.len());
        let is_constant =
            name.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_numeric());
        if name.is_empty() || name == "_" || !is_constant || limits.is_test(at) {
            continue;
        }
        if super::source::words(spec.text(), name).is_empty() {
            let message = format!("the limit `{name}` is not named in {}", spec.path());
            findings.push(Finding::new(limits.path(), limits.line_of(at), message));
        }
    }
    findings
}

#[derive(Debug, Default)]
struct Cited {
    by_code: bool,
    by_test: bool,
}

/// Every clause is enforced somewhere and tested somewhere, and nobody cites one that isn't there.
fn clauses(files: &[SourceFile], spec: &SourceFile, prefix: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut defined: BTreeMap<String, (usize, Cited)> = BTreeMap::new();
    for (at, number) in clause_numbers(spec.text(), prefix) {
        let bold_before = spec.text().get(..at).is_some_and(|text| text.ends_with("**"));
        let bold_after = spec.text().get(at + number.len()..).is_some_and(|t| t.starts_with("**"));
        if !bold_before || !bold_after {
            continue;
        }
        let line = spec.line_of(at);
        if let Some((first, _)) = defined.get(&number) {
            let message = format!("{number} is numbered twice; the first is in line {first}");
            findings.push(Finding::new(spec.path(), line, message));
        } else {
            defined.insert(number, (line, Cited::default()));
        }
    }
    // The samples of this very check are no citations.
    let sources = files.iter().filter(|file| file.is_rust() && !file.path().starts_with("xtask/"));
    for file in sources {
        for (at, number) in clause_numbers(file.text(), prefix) {
            match defined.get_mut(&number) {
                Some((_, cited)) if file.is_test(at) => cited.by_test = true,
                Some((_, cited)) => cited.by_code = true,
                None => {
                    let message = format!("cites {number}, which {} does not have", spec.path());
                    findings.push(Finding::new(file.path(), file.line_of(at), message));
                }
            }
        }
    }
    for (number, (line, cited)) in defined {
        let missing = match (cited.by_code, cited.by_test) {
            (true, true) => continue,
            (false, false) => "neither code nor a test",
            (false, true) => "no code",
            (true, false) => "no test",
        };
        findings.push(Finding::new(spec.path(), line, format!("{number} is cited by {missing}")));
    }
    findings
}

/// Every `W-3.2` in `text`, with where it stands, for the prefix `W-`.
fn clause_numbers(text: &str, prefix: &str) -> Vec<(usize, String)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let after_word = at.checked_sub(1).and_then(|index| bytes.get(index));
        if after_word.is_some_and(u8::is_ascii_alphanumeric) {
            continue;
        }
        let rest = text.get(at + prefix.len()..).unwrap_or_default();
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let chapter = digits(rest);
        let tail = rest.get(chapter..).and_then(|tail| tail.strip_prefix('.')).unwrap_or_default();
        let clause = digits(tail);
        if chapter > 0 && clause > 0 {
            let length = prefix.len() + chapter + 1 + clause;
            found.push((at, text.get(at..at + length).unwrap_or_default().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "docs/spec/wire.md";
    const LIMITS: &str = "crates/proto/src/limits.rs";

    fn messages(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> =
            files.iter().map(|(path, text)| SourceFile::new(*path, *text)).collect();
        check(&files).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn a_limit_that_the_specification_does_not_name_is_found() {
        let limits = "pub const FRAME_MAX: u32 = 1;\npub const OPEN_MAX: u32 = 2;\n\
                      const fn f() {}\n";
        let found = messages(&[(LIMITS, limits), (SPEC, "`FRAME_MAX`, and `OPEN_MAX_BYTES`\n")]);
        assert_eq!(
            found,
            [
                "crates/proto/src/limits.rs:2: the limit `OPEN_MAX` is not named in docs/spec/wire.md"
            ]
        );
    }

    #[test]
    fn clauses_and_citations_are_matched_both_ways() {
        let spec = "**W-1.1** one\n**W-1.2** two, see W-1.1.\n**W-1.3** three\n**W-1.3** again\n";
        let code = "// W-1.1, and W-9.9.\n// W-1.3\n#[cfg(test)]\nmod tests { // W-1.1 W-1.2\n}\n";
        assert_eq!(
            messages(&[(SPEC, spec), ("crates/x/src/a.rs", code)]),
            [
                "docs/spec/wire.md:4: W-1.3 is numbered twice; the first is in line 3",
                "crates/x/src/a.rs:1: cites W-9.9, which docs/spec/wire.md does not have",
                "docs/spec/wire.md:2: W-1.2 is cited by no code",
                "docs/spec/wire.md:3: W-1.3 is cited by no test",
            ]
        );
    }

    #[test]
    fn nothing_is_asked_before_there_is_a_specification() {
        assert!(messages(&[("crates/x/src/a.rs", "// W-9.9\n")]).is_empty());
    }

    #[test]
    fn each_page_has_clauses_and_limits_of_its_own() {
        let page = "**C-1.1** one, `ROOM_MAX`, see W-1.1.\n";
        let limits = "pub const ROOM_MAX: u32 = 1;\npub const WAIT_MAX: u32 = 2;\n";
        let code = "// C-1.1, C-1.2, W-7.7\n#[cfg(test)]\nmod tests { // C-1.1\n}\n";
        let files = [
            ("docs/spec/classic.md", page),
            ("crates/server/src/classic/limits.rs", limits),
            (LIMITS, "pub const OTHER_MAX: u32 = 1;\n"),
            ("crates/x/src/a.rs", code),
        ];
        assert_eq!(
            messages(&files),
            [
                "crates/server/src/classic/limits.rs:2: the limit `WAIT_MAX` is not named in \
                 docs/spec/classic.md",
                "crates/x/src/a.rs:1: cites C-1.2, which docs/spec/classic.md does not have",
            ]
        );
    }
}
