//! Random sequences of operations on a pair.

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::rig::operations::run;

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        // The same sequences in every run: a failure here is nobody's bad luck.
        rng_seed: RngSeed::Fixed(2327),
        failure_persistence: None,
        ..Config::default()
    })
}

/// W-1.3, W-6.2, W-7.4: every byte once and in order, windows kept, seals that match, nobody
/// called a misbehaver, and an end to everything.
#[test]
fn any_sequence_of_operations_keeps_the_promises() {
    let script = vec(any::<u8>(), 0..900);
    let outcome = runner(400).run(&script, |script| {
        run(&script);
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
}

/// The same with tiny windows and tiny budgets, where every byte is at some border.
#[test]
fn any_sequence_over_tiny_windows_keeps_the_promises() {
    let script = (0..4_u8, 0..6_u8, vec(any::<u8>(), 0..400));
    let outcome = runner(200).run(&script, |(window, budget, operations)| {
        run(&[&[window, budget], &operations[..]].concat());
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
}
