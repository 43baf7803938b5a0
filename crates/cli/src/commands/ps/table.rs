//! The list of jobs for people: aligned, fitted to the terminal, and without anything that a terminal
//! would obey.

use afar_client::{End, JobInfo, JobState};
use afar_core::escape::escape_for_terminal;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The shortest beginning of an id that is shown.
const ID_CHARS_MIN: usize = 8;

/// A command gets at least so much, however narrow the terminal is.
const COMMAND_CHARS_MIN: usize = 16;

/// Ids of this length are random, and nobody reads them to their end.
const RANDOM_ID_CHARS: usize = 32;

const HEADINGS: [&str; 6] = ["JOB", "STATE", "STARTED", "TIME", "END", "COMMAND"];

/// How it is to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// The terminal's width; without one, nothing is cut.
    pub(super) columns: Option<usize>,
    pub(super) now_us: u64,
}

/// The whole table, with its headings.
pub(super) fn table(jobs: &[JobInfo], look: &Look) -> String {
    let id_chars = look.columns.map(|_| id_chars(jobs));
    let rows: Vec<[String; 6]> = std::iter::once(HEADINGS.map(ToOwned::to_owned))
        .chain(jobs.iter().map(|info| row(info, look, id_chars)))
        .collect();
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let before: usize = widths.iter().map(|width| width + 2).sum();
    let room = look.columns.map(|columns| columns.saturating_sub(before).max(COMMAND_CHARS_MIN));
    let mut text = String::new();
    for row in rows {
        let [cells @ .., command] = &row;
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(&cut(command, room));
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn row(info: &JobInfo, look: &Look, id_chars: Option<usize>) -> [String; 6] {
    let id = info.job.as_str();
    let shown = id_chars.filter(|_| id.len() == RANDOM_ID_CHARS).and_then(|chars| id.get(..chars));
    let command = escape_for_terminal(&info.command.0);
    let more = if info.command_cut { "…" } else { "" };
    [
        shown.unwrap_or(id).to_owned(),
        info.state.as_str().to_owned(),
        info.started_at_us.and_then(local_time).unwrap_or_else(|| "-".to_owned()),
        running_for(info, look.now_us).map_or_else(|| "-".to_owned(), span),
        info.end.as_ref().map_or_else(|| "-".to_owned(), end),
        format!("{command}{more}"),
    ]
}

/// How much of a random id tells it from the others.
fn id_chars(jobs: &[JobInfo]) -> usize {
    let mut ids: Vec<&str> = jobs.iter().map(|info| info.job.as_str()).collect();
    ids.sort_unstable();
    let common = |pair: &[&str]| match pair {
        [first, second] => first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count(),
        _ => 0,
    };
    let longest = ids.windows(2).map(common).max().unwrap_or(0);
    (longest + 1).max(ID_CHARS_MIN)
}

fn local_time(micros: u64) -> Option<String> {
    let at = Timestamp::from_microsecond(i64::try_from(micros).ok()?).ok()?;
    Some(at.to_zoned(TimeZone::system()).strftime("%m-%d %H:%M:%S").to_string())
}

fn running_for(info: &JobInfo, now_us: u64) -> Option<u64> {
    if let Some(receipt) = &info.receipt {
        return Some(receipt.wall_us / 1_000_000);
    }
    let end_us = if info.state == JobState::Ended { info.ended_at_us? } else { now_us };
    Some(end_us.saturating_sub(info.started_at_us?) / 1_000_000)
}

/// The two largest units.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d{:02}h", hours % 24),
    }
}

fn end(end: &End) -> String {
    match end {
        End::Exited { code } => format!("exit {code}"),
        End::Signaled { name, .. } => escape_for_terminal(name.as_bytes()),
        End::Timeout => "timeout".to_owned(),
        End::Cancelled => "cancelled".to_owned(),
        End::Oom => "out of memory".to_owned(),
        End::Lost => "lost".to_owned(),
        End::Unknown => "unknown".to_owned(),
        End::NotStarted { reason } => {
            format!("not started: {}", escape_for_terminal(reason.as_bytes()))
        }
    }
}

fn cut(text: &str, room: Option<usize>) -> String {
    let Some(room) = room.filter(|room| text.chars().count() > *room) else {
        return text.to_owned();
    };
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use afar_client::JobId;

    use super::*;

    fn info(id: &str, command: &[u8]) -> JobInfo {
        let mut info = JobInfo::new(JobId::new(id).unwrap(), JobState::Running, command);
        info.started_at_us = Some(0);
        info
    }

    fn look(columns: Option<usize>) -> Look {
        Look { columns, now_us: 3_725_000_000 }
    }

    #[test]
    fn columns_are_aligned_and_the_command_is_cut_to_the_terminal() {
        let mut ended = info("nightly", b"make all");
        ended.state = JobState::Ended;
        ended.end = Some(End::Signaled { signal: 9, name: "SIGKILL".into(), core: false });
        let long = "x".repeat(200);
        let jobs = [info(&"a".repeat(32), long.as_bytes()), ended];
        let text = table(&jobs, &look(Some(80)));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let at = lines[0].find("STATE").unwrap();
        assert_eq!(&lines[1][at..at + 7], "running");
        assert_eq!(&lines[2][at..at + 5], "ended");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        assert!(lines[1].contains("1h02m") && lines[1].ends_with("x…"), "{text}");
        assert!(lines[1].starts_with("aaaaaaaa  "), "{text}");
        assert!(lines[2].contains("SIGKILL"), "{text}");
        // What is read by a program has everything.
        let text = table(&jobs, &look(None));
        assert!(text.contains(&long) && text.contains(&"a".repeat(32)));
    }

    #[test]
    fn as_much_of_an_id_is_shown_as_tells_it_from_the_others() {
        let one = format!("{}0{}", "a".repeat(10), "b".repeat(21));
        let other = format!("{}1{}", "a".repeat(10), "b".repeat(21));
        let jobs = [info(&one, b"x"), info(&other, b"y")];
        let text = table(&jobs, &look(Some(80)));
        assert!(text.contains("aaaaaaaaaa0 ") && text.contains("aaaaaaaaaa1 "), "{text}");
    }

    #[test]
    fn fault_85_a_command_is_shown_and_not_obeyed() {
        let text = table(&[info("j", b"\x1b[2J\n\xff")], &look(Some(80)));
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn spans_have_their_two_largest_units() {
        let cases = [(0, "0s"), (59, "59s"), (61, "1m01s"), (3725, "1h02m"), (90_000, "1d01h")];
        for (seconds, shown) in cases {
            assert_eq!(span(seconds), shown);
        }
    }
}
