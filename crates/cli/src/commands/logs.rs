//! `afar logs`: what a job has written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afar_client::{Attachment, JobEvent, JobRef, Stream};
use bytes::Bytes;

use crate::args::{LogsArgs, Range, Since};
use crate::commands::{FoundJob, with_signals};
use crate::console::{Verbosity, fail, say};
use crate::exit::Exit;
use crate::run::{Output, Signals, StatusLine, gap_line};

/// Shows what is asked for. How the job ended is not this command's status.
pub(crate) fn cmd_logs(args: LogsArgs) -> Exit {
    match FoundJob::find(&args.job.job, &args.connect) {
        Ok(found) => with_signals(async |signals| show(found, args, signals).await),
        Err(exit) => exit,
    }
}

/// What is wanted of the job's output.
fn attachment(job: JobRef, args: &LogsArgs) -> Attachment {
    let mut attachment = Attachment::watch(job).follow(args.follow);
    if let Some(range) = args.range {
        let stream = args.stream.unwrap_or(Stream::Stdout);
        attachment = attachment.streams([(stream, range.from)]);
    } else if let Some(stream) = args.stream {
        attachment = attachment.streams([(stream, 0)]);
    }
    match args.since {
        Some(Since::Unix(at)) => attachment = attachment.since(at),
        Some(Since::Ago(ago)) => attachment = attachment.since(now().saturating_sub(ago)),
        None => {}
    }
    if let Some(lines) = args.tail {
        attachment = attachment.tail_lines(lines);
    }
    attachment
}

/// By the clock on the wall here: whoever says "ten minutes ago" has looked at one.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

async fn show(found: FoundJob, args: LogsArgs, mut signals: Signals) -> Exit {
    let FoundJob { client, target, job } = found;
    let session = tokio::select! {
        connected = client.connect(&target) => match connected {
            Ok(session) => session,
            Err(error) => return fail(&error),
        },
        signal = signals.next_ending() => return Exit::Signal(signal),
    };
    let mut job = session.attach(attachment(job, &args));
    let mut output = Output::new();
    let mut status_line = StatusLine::new(session.target(), args.connect.verbosity());
    let quiet = args.connect.verbosity() == Verbosity::Quiet;
    let mut shown = args.range.map(Shown::of);
    let mut exit = None;
    loop {
        if let Some((stream, error)) = output.take_failure() {
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                // Whoever read it has seen enough.
                return Exit::Status(0);
            }
            say(&format!("cannot write to {}: {error}", stream.name()));
            return Exit::Failed;
        }
        if let Some(exit) = exit.filter(|_| output.is_empty()) {
            session.close().await;
            return exit;
        }
        let event = tokio::select! {
            event = job.next(), if exit.is_none() && output.has_room() => event,
            () = output.changed() => continue,
            signal = signals.next_ending() => return Exit::Signal(signal),
        };
        match event {
            Some(JobEvent::Output(chunk)) => {
                let bytes = match &mut shown {
                    Some(shown) => shown.take(chunk.offset, chunk.bytes),
                    None => chunk.bytes,
                };
                output.push(chunk.stream, bytes);
            }
            Some(JobEvent::Gap { stream, from, to }) => {
                let wanted_to = args.range.and_then(|range| range.to).unwrap_or(to);
                if !quiet && from < wanted_to {
                    let line = gap_line(session.target(), stream, from, to.min(wanted_to));
                    status_line.say(&mut output, &line);
                }
            }
            Some(JobEvent::Disconnected { cause }) => status_line.show(&mut output, &cause),
            Some(JobEvent::Reconnected) => status_line.clear(&mut output),
            Some(JobEvent::Finished(finished)) => {
                status_line.clear(&mut output);
                exit = Some(finished.error.as_ref().map_or(Exit::Status(0), fail));
            }
            Some(JobEvent::Detached) | None => exit = Some(Exit::Status(0)),
            Some(_) => {}
        }
        if shown.as_ref().is_some_and(Shown::is_done) {
            exit = exit.or(Some(Exit::Status(0)));
        }
    }
}

/// How far a range was shown.
#[derive(Debug)]
struct Shown {
    to: Option<u64>,
    done: bool,
}

impl Shown {
    fn of(range: Range) -> Self {
        Self { to: range.to, done: false }
    }

    /// What of a piece is within the range.
    fn take(&mut self, offset: u64, bytes: Bytes) -> Bytes {
        let Some(to) = self.to else { return bytes };
        let left = usize::try_from(to.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.done = left <= bytes.len();
        bytes.slice(..left.min(bytes.len()))
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_within_a_piece_between_two_or_not_at_all() {
        let piece = || Bytes::from_static(b"0123456789");
        let mut shown = Shown::of(Range { from: 5, to: Some(20) });
        assert_eq!((shown.take(5, piece()).len(), shown.is_done()), (10, false));
        assert_eq!((&shown.take(15, piece())[..], shown.is_done()), (&b"01234"[..], true));
        assert_eq!(shown.take(25, piece()).len(), 0);
        let mut shown = Shown::of(Range { from: 0, to: Some(10) });
        assert_eq!((shown.take(0, piece()).len(), shown.is_done()), (10, true));
        // A gap has led beyond it.
        let mut shown = Shown::of(Range { from: 0, to: Some(10) });
        assert_eq!((shown.take(30, piece()).len(), shown.is_done()), (0, true));
        let mut shown = Shown::of(Range { from: 0, to: None });
        assert_eq!((shown.take(0, piece()).len(), shown.is_done()), (10, false));
    }
}
