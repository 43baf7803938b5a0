//! What the fuzzer has found worth keeping, run as plain tests.

#[path = "../../../../fuzz/corpus.rs"]
mod files;

use files::for_each_file;

use crate::rig::{decoders, operations};

/// Runs a target over its whole corpus.
fn run_all(target: &str, run: fn(&[u8])) {
    for_each_file(target, |_, bytes| run(bytes));
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
