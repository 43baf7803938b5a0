//! The files of a fuzz corpus, for the plain tests that run them (`#[path]` from the crates' tests).

use std::path::{Path, PathBuf};

/// A folder with fewer files than this was not found as a whole, and a test of it could not fail.
const FILES_MIN: usize = 5;

/// Runs a check on every file of a corpus, in the order of the names.
pub(crate) fn for_each_file(corpus: &str, mut check: impl FnMut(&str, &[u8])) {
    // From the folder of a crate, where cargo has its tests run.
    let folder = Path::new("../../fuzz/corpus").join(corpus);
    let entries = std::fs::read_dir(&folder).expect("there is a corpus of this name");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the folder is readable").path()).collect();
    paths.sort();
    assert!(paths.len() >= FILES_MIN, "{} holds {} files", folder.display(), paths.len());
    for path in paths {
        let name = path.file_name().expect("it is a file").to_string_lossy();
        // The input that fails, in the output of the test that does.
        println!("{}", path.display());
        check(&name, &std::fs::read(&path).expect("the file is readable"));
    }
}
