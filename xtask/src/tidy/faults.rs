//! Every fault that must be survived has a test that carries its number.

use std::collections::BTreeSet;

use super::Finding;
use super::source::{SourceFile, word_at, words};

/// The numbers of the project's list of faults that are demanded so far.
const DEMANDED: &[(u32, u32)] = &[(1, 51), (54, 70), (72, 75), (77, 79), (81, 81), (83, 88)];

const PREFIX: &str = "fault_";

pub(super) fn check(files: &[SourceFile]) -> Vec<Finding> {
    let mut tested = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        tested.extend(test_names(file).iter().flat_map(|name| fault_numbers(name)));
    }
    DEMANDED
        .iter()
        .flat_map(|(first, last)| *first..=*last)
        .filter(|number| !tested.contains(number))
        .map(|number| {
            let message = format!("no test function is named {PREFIX}{number:02}_…");
            Finding::new("faults", 0, message)
        })
        .collect()
}

/// The names of the functions that carry a test attribute.
fn test_names(file: &SourceFile) -> Vec<&str> {
    words(file.code(), "fn")
        .into_iter()
        .filter(|at| is_test(file, *at))
        .map(|at| word_at(file.code(), at + "fn ".len()))
        .collect()
}

/// Whether the attributes right above the `fn` at `at` make it a test, of whichever runner.
fn is_test(file: &SourceFile, at: usize) -> bool {
    let before = file.code().get(..at).unwrap_or_default();
    // What ended the item before: attributes contain neither braces nor semicolons of their own.
    let start = before.rfind(['{', '}', ';']).map_or(0, |index| index + 1);
    let attributes = before.get(start..).unwrap_or_default();
    ["#[test]", "::test]", "::test(", "#[rstest"].iter().any(|mark| attributes.contains(mark))
}

/// The numbers in `fault_02_03_length_over_the_limit`: 2 and 3, each of exactly two digits.
fn fault_numbers(name: &str) -> Vec<u32> {
    let Some((_, numbers)) = name.split_once(PREFIX) else {
        return Vec::new();
    };
    numbers
        .split('_')
        .map_while(|part| if part.len() == 2 { part.parse().ok() } else { None })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_carry_several_numbers() {
        assert_eq!(fault_numbers("fault_02_03_length"), [2, 3]);
        assert_eq!(fault_numbers("pair_fault_32_every_split_in_12_parts"), [32]);
        assert_eq!(fault_numbers("fault_1_one"), [0; 0]);
        assert_eq!(fault_numbers("something_else_12"), [0; 0]);
    }

    #[test]
    fn only_tests_count() {
        let file = SourceFile::new(
            "a.rs",
            "fn fault_01_helper() {}\n\
             #[test]\nfn fault_02_x() { call(); }\n\
             #[tokio::test(flavor = \"current_thread\")]\nasync fn fault_03_x() {}\n\
             // #[test]\nfn fault_04_x() {}\n\
             proptest! {\n #[test]\n fn fault_05_x(a in 0..1) {}\n}\n",
        );
        assert_eq!(test_names(&file), ["fault_02_x", "fault_03_x", "fault_05_x"]);
    }

    #[test]
    fn a_fault_without_a_test_is_found() {
        let every: String = DEMANDED
            .iter()
            .flat_map(|(first, last)| *first..=*last)
            .filter(|number| *number != 44)
            .map(|number| format!("#[test]\nfn fault_{number:02}_x() {{}}\n"))
            .collect();
        let found = check(&[SourceFile::new("a.rs", every)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].message, "no test function is named fault_44_…");
    }
}
