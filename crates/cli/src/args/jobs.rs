//! The syntax of the commands about jobs that exist, and of what makes a job last.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use afar_client::{JobState, OnDisconnect, Overflow, Stream};
use afar_core::{duration, size};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, ValueEnum};

use super::{ConnectArgs, EscapeArgs};

/// What makes a job outlive its client, and what bounds it.
#[derive(Args, Debug)]
pub(crate) struct LastingArgs {
    /// Leave as soon as it is started, and print TARGET/JOB; its output is kept for `afar logs`
    #[arg(short = 'd', long, conflicts_with_all = ["json", "result"])]
    pub(crate) detach: bool,

    /// When the connection is lost: kill ends the command; keep has it run on even if this program is
    /// ended [default: it runs on, unless this program ends it]
    #[arg(long, value_name = "WORD")]
    pub(crate) on_disconnect: Option<OnDisconnectWord>,

    /// Keep all of its output, for `afar logs`, for so long after its end, such as 1h or 7d
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) keep: Option<Duration>,

    /// When the room for output that nobody takes is used up: block has the command wait, drop lets go
    /// of the oldest, kill ends it [default: block]
    #[arg(long, value_name = "WORD")]
    pub(crate) overflow: Option<OverflowWord>,

    /// The most memory that it may take, such as 512M
    #[arg(long, value_name = "BYTES", value_parser = size::parse_bytes)]
    pub(crate) memory: Option<u64>,

    /// The most processors that it may keep busy, such as 1.5
    #[arg(long, value_name = "N", value_parser = size::parse_processors)]
    pub(crate) cpu: Option<u64>,

    /// The most processes and threads that it may have
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1 << 22))]
    pub(crate) pids: Option<u64>,
}

/// `--on-disconnect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnDisconnectWord {
    Keep,
    Kill,
}

impl From<OnDisconnectWord> for OnDisconnect {
    fn from(word: OnDisconnectWord) -> Self {
        match word {
            OnDisconnectWord::Keep => Self::Keep,
            OnDisconnectWord::Kill => Self::Kill,
        }
    }
}

/// `--overflow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverflowWord {
    Block,
    Drop,
    Kill,
}

impl From<OverflowWord> for Overflow {
    fn from(word: OverflowWord) -> Self {
        match word {
            OverflowWord::Block => Self::Block,
            OverflowWord::Drop => Self::Drop,
            OverflowWord::Kill => Self::Kill,
        }
    }
}

/// List the jobs on a target, running and finished, the newest first
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar ps web                               the newest hundred
  afar ps web --state running,blocked       those that have not ended
  afar ps web --json --limit 0 | jq .job    all of them, an object a line

States: waiting (for its turn in a session), running, blocked (in a write, because nobody takes its
output and the room for it is used up), ended.

Keys of --json: job, target, state, command, session, cwd, pid, started_at, ended_at, end, wall_s,
user_s, sys_s, max_rss_bytes, streams {stdout|stderr: {bytes, kept_from, gaps}}, attached, watchers,
detached, keep_until. What is not known is null.")]
pub(crate) struct PsArgs {
    /// Where the jobs are
    pub(crate) target: OsString,

    /// Only jobs in these states; several by comma
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state_parser())]
    pub(crate) state: Vec<JobState>,

    /// At most so many jobs; 0 for all
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u32,

    /// Print an object a line
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// The job that a command is about.
#[derive(Args, Debug)]
pub(crate) struct JobArg {
    /// The job: its target, a slash, and its id or the beginning of it
    #[arg(value_name = "TARGET/JOB")]
    pub(crate) job: OsString,
}

/// The jobs that a command is about.
#[derive(Args, Debug)]
pub(crate) struct JobArgs {
    /// The jobs
    #[arg(value_name = "TARGET/JOB", required = true)]
    pub(crate) jobs: Vec<OsString>,
}

/// Where the outcome goes.
#[derive(Args, Debug)]
pub(crate) struct ResultArg {
    /// Write the outcome to FILE as one JSON object; - is stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) result: Option<PathBuf>,
}

/// Show what a job has written, while it runs and afterwards
///
/// What it wrote to stdout comes on stdout, and the rest on stderr. What is not there any more, because
/// its reader has had it and nothing asked for it to be kept, is said on stderr.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar logs web/3f2a                        everything that is still there
  afar logs -f web/3f2a                     and what comes, to its end
  afar logs --tail 20 --stream stderr web/3f2a
  afar logs --since 10m web/3f2a            also a time: 2026-11-22T10:00:00Z, '2026-11-22 11:00'
  afar logs --range 0-1023 web/3f2a         the first 1,024 bytes of stdout

A job keeps its output for this if it was started with -d or --keep; of others there is what its
reader has not had yet.")]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) job: JobArg,

    /// Go on with what it writes, until it ends
    #[arg(short = 'f', long, conflicts_with = "range")]
    pub(crate) follow: bool,

    /// Begin with what it wrote so long ago, or at this time
    #[arg(long, value_name = "TIME", value_parser = Since::parse, conflicts_with_all = ["tail", "range"])]
    pub(crate) since: Option<Since>,

    /// Begin so many lines before the end of each stream
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "range")]
    pub(crate) tail: Option<u64>,

    /// Only this stream: stdout or stderr
    #[arg(long, value_name = "STREAM", value_parser = stream_parser())]
    pub(crate) stream: Option<Stream>,

    /// Only these bytes of the stream, the first and the last, counted from 0, as with curl; without
    /// --stream of stdout
    #[arg(long, value_name = "A-B", value_parser = Range::parse)]
    pub(crate) range: Option<Range>,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Go on with a job: its output here, our stdin there
///
/// Whoever was attached before hears so, and nothing more. Ends as the job does.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar attach web/3f2a
  afar attach --watch web/3f2a              only look: whoever is attached stays so

Signals are passed on as with `afar run`. Three INT within a second leave, and the job goes on. A job
with a terminal takes ours over, as with `afar shell`.")]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) job: JobArg,

    /// Read along beside whoever is attached; no input and no signal goes there
    #[arg(long)]
    pub(crate) watch: bool,

    /// Send it nothing: our stdin is not read, and the job's is left as it is
    #[arg(short = 'n')]
    pub(crate) no_stdin: bool,

    #[command(flatten)]
    pub(crate) escape: EscapeArgs,

    /// Print events as JSON Lines in place of the output; see `afar run --help`
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) result: ResultArg,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Wait for a job, and end as it did
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  job=$(afar run -d web -- make); …; afar wait \"$job\"
  afar wait --result out.json web/3f2a")]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) job: JobArg,

    #[command(flatten)]
    pub(crate) result: ResultArg,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// End jobs, with everything that they have started, or send them a signal
///
/// TERM, after the job's grace (--kill-after) KILL. With -s the signal is sent once, to the job's process
/// group, and nothing more happens.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar kill web/3f2a
  afar kill -s HUP web/3f2a db/77")]
pub(crate) struct KillArgs {
    /// Only send this signal: its name, with or without SIG
    #[arg(short = 's', value_name = "SIG", value_parser = parse_signal)]
    pub(crate) signal: Option<String>,

    #[command(flatten)]
    pub(crate) jobs: JobArgs,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Forget jobs that have ended, and what is kept of their output
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  afar rm web/3f2a

A forgotten id stays taken for a month, so that nothing that is asked for twice is started twice.")]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) jobs: JobArgs,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// A point of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// So long before now.
    Ago(Duration),
    /// So long after 1970, in UTC.
    Unix(Duration),
}

impl Since {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ago) = duration::parse(text) {
            return Ok(Self::Ago(ago));
        }
        // A time without a zone is the local one's.
        let zoned = || {
            let civil: jiff::civil::DateTime = text.parse().ok()?;
            Some(civil.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
        };
        let timestamp = text.parse::<jiff::Timestamp>().ok().or_else(zoned);
        let unix = timestamp.and_then(|at| Duration::try_from(at.as_duration()).ok());
        unix.map(Self::Unix)
            .ok_or_else(|| "a time is wanted, such as 10m (ago) or 2026-11-22T10:00:00Z".to_owned())
    }
}

/// Bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// Offset of the first one.
    pub(crate) from: u64,
    /// Offset behind the last one; `None` for the end of the stream.
    pub(crate) to: Option<u64>,
}

impl Range {
    fn parse(text: &str) -> Result<Self, String> {
        let wanted = || "two offsets are wanted, such as 0-1023, or one: 1024-".to_owned();
        let (first, last) = text.split_once('-').ok_or_else(wanted)?;
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| digits).ok_or_else(wanted)
        };
        let from = number(first)?;
        let to = if last.is_empty() { None } else { Some(number(last)?.saturating_add(1)) };
        if to.is_some_and(|to| to <= from) {
            return Err("the last byte is before the first one".to_owned());
        }
        Ok(Self { from, to })
    }
}

pub(super) fn parse_reconnect_for(text: &str) -> Result<Duration, String> {
    if text.trim_end_matches(['m', 's', 'h', 'd']).parse() == Ok(0.0) {
        return Ok(Duration::ZERO);
    }
    duration::parse(text)
}

fn parse_signal(text: &str) -> Result<String, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'-';
    let is_name = name.starts_with(|first: char| first.is_ascii_uppercase());
    if !is_name || name.len() > 16 || !name.bytes().all(allowed) {
        return Err(
            "a signal's name is wanted, such as TERM; numbers differ between machines".to_owned()
        );
    }
    Ok(name.to_owned())
}

const STATES: [JobState; 4] =
    [JobState::Waiting, JobState::Running, JobState::Blocked, JobState::Ended];

fn state_parser() -> impl clap::builder::TypedValueParser<Value = JobState> {
    PossibleValuesParser::new(STATES.map(JobState::as_str))
        .try_map(|word| STATES.into_iter().find(|state| state.as_str() == word).ok_or("no state"))
}

fn stream_parser() -> impl clap::builder::TypedValueParser<Value = Stream> {
    PossibleValuesParser::new(Stream::OUTPUTS.map(Stream::name)).try_map(|word| {
        Stream::OUTPUTS.into_iter().find(|stream| stream.name() == word).ok_or("no stream")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_curl() {
        let range = |from, to| Ok(Range { from, to });
        assert_eq!(Range::parse("0-1023"), range(0, Some(1024)));
        assert_eq!(Range::parse("7-7"), range(7, Some(8)));
        assert_eq!(Range::parse("1024-"), range(1024, None));
        for text in ["", "-", "-5", "5", "5-4", "a-b", "1-2-3", "+1-2", "99999999999999999999-"] {
            assert!(Range::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_is_a_span_before_now_or_a_point() {
        assert_eq!(Since::parse("10m"), Ok(Since::Ago(Duration::from_secs(600))));
        let at = Duration::from_secs(1_795_341_600);
        assert_eq!(Since::parse("2026-11-22T10:00:00Z"), Ok(Since::Unix(at)));
        assert_eq!(Since::parse("2026-11-22T11:00:00+01:00"), Ok(Since::Unix(at)));
        for local in ["2026-11-22 10:00", "2026-11-22T10:00:00", "2026-11-22"] {
            assert!(matches!(Since::parse(local), Ok(Since::Unix(_))), "{local}");
        }
        for text in ["", "yesterday", "10:00", "1960-01-01T00:00:00Z"] {
            assert!(Since::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn signals_are_named() {
        for (text, name) in [("TERM", "TERM"), ("sigusr1", "USR1"), ("RTMIN+3", "RTMIN+3")] {
            assert_eq!(parse_signal(text).as_deref(), Ok(name));
        }
        for text in ["", "9", "SIG", "TERM;", "A B", "SIGABCDEFGHIJKLMNOPQ"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reconnection_may_be_unwanted() {
        for text in ["0", "0s", "0m"] {
            assert_eq!(parse_reconnect_for(text), Ok(Duration::ZERO));
        }
        assert_eq!(parse_reconnect_for("2h"), Ok(Duration::from_secs(7200)));
        for text in ["", "s", "-1", "x"] {
            assert!(parse_reconnect_for(text).is_err(), "{text}");
        }
    }
}
