//! `cargo xtask tidy`: the house style, as far as a program can check it.
//!
//! Every rule is a function from sources to findings, and has a unit test on a bad sample. There is
//! no list of exceptions: a rule that is wrong somewhere is changed here, for everybody.

mod faults;
mod manifests;
mod rust;
mod source;
mod spec;
mod text;

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};
use crate::say;
use crate::workspace::Workspace;
use source::SourceFile;

/// One place that breaks one rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// Counted from 1; 0 when it is about the file as a whole.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.path, self.message)
        } else {
            write!(f, "{}:{}: {}", self.path, self.line, self.message)
        }
    }
}

/// Checks every file that git tracks or would track, and prints what it finds.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        return Err(Failure::Usage("cargo xtask tidy takes no arguments".to_owned()));
    }
    let files = read_tree(workspace.root())?;
    let findings = check(&files);
    for finding in &findings {
        say::line(finding);
    }
    if findings.is_empty() {
        say::note(format_args!("tidy: {} files, nothing to say", files.len()));
        Ok(())
    } else {
        Err(Failure::Check(format!("tidy: {} findings", findings.len())))
    }
}

fn check(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        findings.extend(text::check(file));
        if file.is_rust() {
            findings.extend(rust::check(file));
        }
    }
    findings.extend(spec::check(files));
    findings.extend(faults::check(files));
    findings.extend(manifests::check(files));
    findings.sort();
    findings
}

/// The text files of the tree. Files that are not UTF-8 (fuzz corpora, golden bytes) have no style.
fn read_tree(root: &Path) -> Result<Vec<SourceFile>> {
    let output = Command::new("git")
        // CI may check out as one user and run as another; only names are read here.
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .args(["--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(Failure::io("run git ls-files"))?;
    if !output.status.success() {
        return Err(Failure::Environment("tidy needs a git checkout: git ls-files failed".into()));
    }
    let mut files = Vec::new();
    for name in output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let bytes = match std::fs::read(root.join(name)) {
            Ok(bytes) => bytes,
            // Deleted, but not yet in the index.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Failure::Io { doing: format!("read {name}"), source }),
        };
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(SourceFile::new(name, text));
        }
    }
    Ok(files)
}
