//! `cargo xtask bench`: afar and its peers, measured in turn in one run.
//!
//! Only ratios of numbers from one run on one machine mean anything, so every round measures
//! everybody before the next round begins. All servers are ours, on loopback, with keys that live
//! as long as the run; whatever it started is ended by pid. A peer or a floor that cannot be
//! measured is an error, or (`--peers-only`) named in the result.

mod classic;
mod machine;
mod measure;
mod process;
mod report;
mod rig;
mod rows;
mod stats;

use std::path::PathBuf;

use crate::failure::{Failure, Result};
use crate::workspace::{Workspace, run_step};
use crate::{peers, say};
use measure::{Bench, Helpers, Size};
use report::Report;
use rig::Rig;
use rows::{Contender, Row};
use stats::Samples;

const USAGE: &str = "\
usage: cargo xtask bench [OPTIONS]

  --quick          2 rounds instead of 5, 1 GiB of bulk instead of 4
  --rounds N       so many rounds
  --only ROWS      of cold,xargs,sequential,in-flight,sessions,classic,bulk-down,bulk-up,lines, with commas
  --write          puts the table into docs/performance.md as well
  --record FILE    writes every sample as JSON
  --peers-only     builds nothing and leaves out afar, and says so

AFAR_BIN names the afar to measure; without it, it is built first.";

/// A one-shot is over so soon that one a round would tell little.
const COLD_PER_ROUND: usize = 8;

const PERFORMANCE_PAGE: &str = "docs/performance.md";

/// Measures, prints the table, and keeps it where it was asked to.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let Some(options) = Options::parse(arguments)? else {
        say::line(USAGE);
        return Ok(());
    };
    peers::ensure(peers::FOR_BENCH)?;
    let helpers = Helpers {
        commands: workspace.built("release", "examples/commands"),
        spawn_loop: workspace.built("release", "examples/spawn_loop"),
        bare_tls: workspace.built("release", "examples/bare_tls"),
    };
    let afar = if options.peers_only { None } else { Some(build(workspace)?) };
    let mut left_out = Vec::new();
    let mut plan = options.plan();
    if afar.is_none() {
        say::note("bench: afar: left out (--peers-only)");
        left_out.push("afar (`--peers-only`)".to_owned());
        plan.retain(|(_, contender)| *contender != Contender::Afar);
        plan.retain(|(row, contender)| {
            let missing = missing_helper(*row, *contender, &helpers);
            if let Some(name) = missing {
                let line = format!("{} of {}: {name} is not built", contender.name(), row.key());
                say::note(format_args!("bench: left out: {line}"));
                left_out.push(line);
            }
            missing.is_none()
        });
    }
    let facts = machine::facts(workspace);
    let mut rig = Rig::start(workspace, afar.as_deref())?;
    warm_up(&rig, &helpers, &options, afar.is_some())?;
    rig.note_idle();
    let samples = measure_all(&rig, &helpers, &options, &plan)?;
    drop(rig);
    let report = Report {
        command_line: format!("cargo xtask bench {}", arguments.join(" ")).trim_end().to_owned(),
        facts,
        left_out,
        samples,
    };
    say::line(report.markdown());
    if let Some(file) = &options.record {
        let text = format!("{:#}\n", report.json());
        std::fs::write(file, text).map_err(Failure::io(format!("write {}", file.display())))?;
    }
    if options.write {
        report.write_into(&workspace.root().join(PERFORMANCE_PAGE))?;
    }
    Ok(())
}

/// Builds afar and the helpers, optimised; gives back the program to measure.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut arguments = vec!["build", "--release"];
    for package in ["afar-client", "afar-sys", "afar-net"] {
        arguments.extend(["--package", package]);
    }
    for example in ["commands", "spawn_loop", "bare_tls"] {
        arguments.extend(["--example", example]);
    }
    let named = std::env::var_os("AFAR_BIN").map(PathBuf::from);
    if named.is_none() {
        arguments.extend(["--package", "afar", "--bin", "afar"]);
    }
    run_step(&mut workspace.cargo(&arguments)).map_err(|failure| not_built(&failure))?;
    let afar = named.unwrap_or_else(|| workspace.built("release", "afar"));
    if afar.is_file() {
        Ok(afar)
    } else {
        Err(not_built(&Failure::Check(format!("{} is not there", afar.display()))))
    }
}

fn not_built(failure: &Failure) -> Failure {
    Failure::Check(format!(
        "afar: binary not built: {failure}\n  (`--peers-only` measures the others without it)"
    ))
}

/// The example that this measurement needs and that nobody has built.
fn missing_helper(row: Row, contender: Contender, helpers: &Helpers) -> Option<&'static str> {
    let (name, path) = match (row, contender) {
        (_, Contender::BareTls) => ("bare_tls", &helpers.bare_tls),
        (Row::Sequential | Row::InFlight | Row::Classic, Contender::Local) => {
            ("spawn_loop", &helpers.spawn_loop)
        }
        _ => return None,
    };
    (!path.is_file()).then_some(name)
}

/// Everybody once, unmeasured: files come into the cache, host keys become known, and afar starts
/// the supervisor of this user.
fn warm_up(rig: &Rig, helpers: &Helpers, options: &Options, with_afar: bool) -> Result<()> {
    let bench = Bench { rig, helpers, size: options.size };
    let everybody = Row::Cold.contenders().iter().copied();
    for contender in everybody.filter(|contender| with_afar || *contender != Contender::Afar) {
        bench.measure(Row::Cold, contender)?;
    }
    Ok(())
}

fn measure_all(
    rig: &Rig,
    helpers: &Helpers,
    options: &Options,
    plan: &[(Row, Contender)],
) -> Result<Samples> {
    let bench = Bench { rig, helpers, size: options.size };
    let mut samples = Samples::default();
    for round in 1..=options.rounds {
        for row in &options.rows {
            say::note(format_args!("bench: round {round} of {}: {}", options.rounds, row.key()));
            let repeats = if *row == Row::Cold { COLD_PER_ROUND } else { 1 };
            let of_row = || plan.iter().filter(|(planned, _)| planned == row);
            for (row, contender) in (0..repeats).flat_map(|_| of_row()) {
                for (metric, value) in bench.measure(*row, *contender)? {
                    samples.add(metric, *contender, value);
                }
            }
        }
    }
    Ok(samples)
}

#[derive(Debug)]
struct Options {
    rows: Vec<Row>,
    rounds: usize,
    size: Size,
    write: bool,
    record: Option<PathBuf>,
    peers_only: bool,
}

impl Options {
    /// `None` when help was asked for.
    fn parse(arguments: &[String]) -> Result<Option<Self>> {
        let mut options = Self {
            rows: Row::ALL.to_vec(),
            rounds: 5,
            size: Size::FULL,
            write: false,
            record: None,
            peers_only: false,
        };
        let mut rounds = None;
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value =
                || words.next().ok_or_else(|| Failure::Usage(format!("{word} lacks its value")));
            match word.as_str() {
                "--help" | "-h" => return Ok(None),
                "--quick" => (options.rounds, options.size) = (2, Size::QUICK),
                "--rounds" => rounds = Some(parse_rounds(value()?)?),
                "--only" => options.rows = parse_rows(value()?)?,
                "--record" => options.record = Some(PathBuf::from(value()?)),
                "--write" => options.write = true,
                "--peers-only" => options.peers_only = true,
                _ => return Err(Failure::Usage(format!("no option `{word}`\n{USAGE}"))),
            }
        }
        options.rounds = rounds.unwrap_or(options.rounds);
        Ok(Some(options))
    }

    fn plan(&self) -> Vec<(Row, Contender)> {
        let of_row = |row: Row| row.contenders().iter().map(move |contender| (row, *contender));
        self.rows.iter().copied().flat_map(of_row).collect()
    }
}

fn parse_rounds(word: &str) -> Result<usize> {
    word.parse()
        .ok()
        .filter(|rounds| *rounds > 0)
        .ok_or_else(|| Failure::Usage(format!("`{word}` is no number of rounds")))
}

fn parse_rows(words: &str) -> Result<Vec<Row>> {
    let row_of = |word: &str| {
        let row = Row::ALL.into_iter().find(|row| row.key() == word);
        row.ok_or_else(|| Failure::Usage(format!("no row `{word}`\n{USAGE}")))
    };
    words.split(',').map(row_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<Options>> {
        Options::parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let options =
            parse(&["--only", "cold,lines", "--rounds", "3", "--quick"]).unwrap().unwrap();
        assert_eq!(options.rows, [Row::Cold, Row::Lines]);
        assert_eq!(options.rounds, 3);
        assert_eq!(options.size.bulk_bytes, Size::QUICK.bulk_bytes);
        assert!(parse(&["--help"]).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [&["--only", "cold,warm"][..], &["--rounds", "0"], &["--record"], &["-x"]] {
            assert!(matches!(parse(words), Err(Failure::Usage(_))), "{words:?}");
        }
    }

    #[test]
    fn every_row_has_afar_and_somebody_to_compare_with() {
        for row in Row::ALL {
            assert!(row.contenders().contains(&Contender::Afar), "{row:?}");
            assert!(row.contenders().len() > 2, "{row:?}");
        }
    }
}
