//! Rules for Rust files: what a module says first, how long a function may be, what tests may do.

use super::Finding;
use super::source::{SourceFile, words};

/// The house asks for about 80; this is where asking ends.
const FUNCTION_LINES_MAX: usize = 120;

/// The mark that lets a line of a test wait for time to pass, with the reason after it.
const REASON_MARK: &str = "// tidy: ";

pub(super) fn check(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(module_purpose(file));
    findings.extend(long_functions(file));
    findings.extend(unfinished(file));
    findings.extend(ignored_tests(file));
    findings.extend(sleeping_tests(file));
    findings
}

fn module_purpose(file: &SourceFile) -> Option<Finding> {
    let first = file.line(1);
    let says = first.strip_prefix("//!").is_some_and(|text| !text.trim().is_empty());
    (!says).then(|| Finding::new(file.path(), 1, "the first line does not say the file's purpose"))
}

fn long_functions(file: &SourceFile) -> Vec<Finding> {
    let too_long = |lines: &usize| *lines > FUNCTION_LINES_MAX;
    let functions = file.functions().into_iter();
    functions
        .filter(|function| too_long(&function.lines))
        .map(|function| {
            let message = format!(
                "`{}` has {} lines; {FUNCTION_LINES_MAX} are the limit",
                function.name, function.lines
            );
            Finding::new(file.path(), function.line, message)
        })
        .collect()
}

fn unfinished(file: &SourceFile) -> Vec<Finding> {
    let in_code = ["todo!", "unimplemented!"]
        .into_iter()
        .flat_map(|word| file.code().match_indices(word).collect::<Vec<_>>());
    let in_comments = ["FIXME", "XXX", "TODO"]
        .into_iter()
        .flat_map(|word| words(file.comments(), word).into_iter().map(move |at| (at, word)));
    in_code
        .chain(in_comments)
        .map(|(at, word)| {
            let message =
                format!("`{word}`: finish it, or say in the documentation what is missing");
            Finding::new(file.path(), file.line_of(at), message)
        })
        .collect()
}

fn ignored_tests(file: &SourceFile) -> Vec<Finding> {
    file.code()
        .match_indices("#[ignore]")
        .map(|(at, _)| {
            Finding::new(file.path(), file.line_of(at), "a test is ignored without a reason")
        })
        .collect()
}

/// A test that waits for time instead of an event is slow on a fast machine and fails on a slow one.
fn sleeping_tests(file: &SourceFile) -> Vec<Finding> {
    let sleeps = ["thread::sleep", "time::sleep"].into_iter();
    sleeps
        .flat_map(|call| file.code().match_indices(call).map(|(at, _)| at).collect::<Vec<_>>())
        .filter(|at| file.is_test(*at))
        .map(|at| file.line_of(at))
        .filter(|line| !has_reason(file.line(*line)) && !has_reason(file.line(line - 1)))
        .map(|line| {
            let message =
                format!("a test sleeps; wait for the event, or say why: `{REASON_MARK}…`");
            Finding::new(file.path(), line, message)
        })
        .collect()
}

fn has_reason(line: &str) -> bool {
    line.split_once(REASON_MARK).is_some_and(|(_, reason)| !reason.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages about `text`, given a first line that is in order.
    fn messages(path: &str, text: &str) -> Vec<String> {
        let file = SourceFile::new(path, format!("//! A sample.\n{text}"));
        check(&file).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn a_module_without_a_purpose_is_found() {
        for text in ["use x;\n", "//!\n", "// No.\n", ""] {
            let file = SourceFile::new("a.rs", text);
            assert!(module_purpose(&file).is_some(), "{text:?}");
        }
        assert!(messages("a.rs", "").is_empty());
    }

    #[test]
    fn a_long_function_is_found() {
        let function = |lines: usize| format!("fn f() {{\n{}}}\n", "x();\n".repeat(lines - 2));
        assert!(messages("a.rs", &function(FUNCTION_LINES_MAX)).is_empty());
        assert_eq!(
            messages("a.rs", &function(FUNCTION_LINES_MAX + 1)),
            ["a.rs:2: `f` has 121 lines; 120 are the limit"]
        );
    }

    #[test]
    fn unfinished_work_is_found_in_code_and_comments_but_not_in_strings() {
        assert_eq!(messages("a.rs", "fn f() { todo!() }").len(), 1);
        assert_eq!(messages("a.rs", "// FIXME later").len(), 1);
        assert_eq!(messages("a.rs", "/* XXX */").len(), 1);
        assert!(messages("a.rs", "let s = \"todo!() FIXME\"; // mktemp XXXXXX").is_empty());
    }

    #[test]
    fn an_ignored_test_needs_a_reason() {
        assert_eq!(messages("a.rs", "#[ignore]\nfn f() {}").len(), 1);
        assert!(messages("a.rs", "#[ignore = \"needs a GPU\"]\nfn f() {}").is_empty());
    }

    #[test]
    fn a_sleeping_test_needs_a_reason() {
        let bare = "fn f() {\n    thread::sleep(d);\n}\n";
        let reason =
            "fn f() {\n    // tidy: the clock itself is the subject\n    thread::sleep(d);\n}\n";
        assert_eq!(messages("crates/x/tests/a.rs", bare).len(), 1);
        assert!(messages("crates/x/tests/a.rs", reason).is_empty());
        assert!(messages("crates/x/src/a.rs", bare).is_empty());
    }
}
