//! Runs of many seeds, and of broken invariants.

use super::Sabotage;
use super::history::{Truthful, Violation};
use super::world::World;

/// Seeds of the ordinary test run: some seconds of it.
const RUNS: u64 = 150;

/// So many seeds at most are tried to find what was broken on purpose.
const SABOTAGED_RUNS: u64 = 3_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn add(sum: Truthful, more: Truthful) -> Truthful {
    Truthful {
        starts: sum.starts + more.starts,
        bytes: sum.bytes + more.bytes,
        whole: sum.whole + more.whole,
        suffixes: sum.suffixes + more.suffixes,
        lost: sum.lost + more.lost,
        gaps: sum.gaps + more.gaps,
    }
}

/// J-1.3, J-1.4, J-3.7, W-8.4: every byte once and in order or a named gap, at most one start an id, no
/// end that did not happen, and nobody who waits for ever.
#[test]
fn fault_55_56_65_66_68_69_whatever_goes_wrong_the_history_is_true() {
    if let Some(seed) = number("AFAR_SIM_SEED") {
        let (outcome, log) = World::new(seed, None).run();
        println!("{}\n{outcome:?}", log.join("\n"));
        assert!(outcome.is_ok());
        return;
    }
    let runs = number("AFAR_SIM_RUNS").unwrap_or(RUNS);
    let mut sum = Truthful::default();
    for seed in 0..runs {
        let (outcome, log) = World::new(seed, None).run();
        match outcome {
            Ok(truthful) => sum = add(sum, truthful),
            Err(violation) => {
                let tail = &log[log.len().saturating_sub(40)..];
                panic!(
                    "{violation:?} with seed {seed}; AFAR_SIM_SEED={seed} runs it again.\n{}",
                    tail.join("\n")
                );
            }
        }
    }
    println!("{runs} runs: {sum:?}");
}

/// The first seed, of so many, with which this rule is found to be broken.
fn found(sabotage: Sabotage, rule: &Violation, runs: u64) -> Option<u64> {
    (0..runs).find(|seed| World::new(*seed, Some(sabotage)).run().0.as_ref().err() == Some(rule))
}

/// Each invariant, broken on purpose, is found, and called by its name.
#[test]
fn what_is_broken_on_purpose_is_found() {
    let cases = [
        (Sabotage::StartsTwice, Violation::StartedTwice),
        (Sabotage::SkipsIntent, Violation::StartedTwice),
        (Sabotage::VouchesForAll, Violation::StartedTwice),
        (Sabotage::DropsBytes, Violation::WrongBytes),
        (Sabotage::AsksTwice, Violation::WrongBytes),
        (Sabotage::ReleasesEarly, Violation::LostBytes),
        (Sabotage::ForgetsStdin, Violation::WrongStdin),
        (Sabotage::MakesUpStatus, Violation::MadeUpEnd),
        (Sabotage::NeverSeals, Violation::Hang),
        (Sabotage::SealsBeforeWriting, Violation::TwoEnds),
        (Sabotage::ForgetsAtUpgrade, Violation::MadeUpEnd),
    ];
    for (sabotage, rule) in cases {
        let seed = found(sabotage, &rule, SABOTAGED_RUNS);
        println!("{sabotage:?} with seed {seed:?}: {rule:?}");
        assert!(seed.is_some(), "{sabotage:?} is not found to be {rule:?}");
    }
}
