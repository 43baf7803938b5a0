//! What the fuzzer has found worth keeping, run as plain tests.

use std::path::PathBuf;

use crate::rig::{decoders, operations};

/// Runs a target over its whole corpus; an empty one would be a test that cannot fail.
fn run_all(target: &str, run: fn(&[u8])) {
    let directory: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "..", "fuzz", "corpus", target].iter().collect();
    let entries = std::fs::read_dir(&directory).expect("the corpus is there");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the directory is readable").path()).collect();
    paths.sort();
    assert!(paths.len() >= 3, "{} is nearly empty", directory.display());
    for path in paths {
        let bytes = std::fs::read(&path).expect("the file is readable");
        // The name of the input that fails, in the output of the test that does.
        println!("{}", path.display());
        run(&bytes);
    }
}

#[test]
fn frames() {
    run_all("frames", decoders::frames);
}

#[test]
fn messages() {
    run_all("messages", decoders::messages);
}

#[test]
fn responder() {
    run_all("responder", decoders::responder);
}

#[test]
fn initiator() {
    run_all("initiator", decoders::initiator);
}

#[test]
fn client_input() {
    run_all("client_input", decoders::client_input);
}

#[test]
fn server_input() {
    run_all("server_input", decoders::server_input);
}

#[test]
fn operation_sequences() {
    run_all("operations", operations::run);
}

#[test]
fn classic_response() {
    run_all("classic_response", decoders::classic_response);
}

#[test]
fn classic_request() {
    run_all("classic_request", decoders::classic_request);
}
