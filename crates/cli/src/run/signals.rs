//! Signals that arrive here and are meant for the command there.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, Read as _};
use std::task::Poll;
use std::time::{Duration, Instant};

use afar_sys::signals::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::console::say;
use crate::exit::Exit;

/// Ctrl-C as often as this within [`LEAVE_WITHIN`] leaves.
const INTERRUPTS_TO_LEAVE: usize = 3;

/// The time for that.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Enough of `/proc/self/status` for the line about ignored signals; the file comes in one read.
const STATUS_BYTES: usize = 8192;

/// The signals that are passed on.
const FORWARDED: [Signal; 6] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Pass it on.
    Forward(Signal),
    /// Pass it on when there is a connection, and say so.
    Keep(Signal),
    /// Leave, and cancel the command.
    Leave,
}

/// The signals that this process is sent.
#[derive(Debug)]
pub(crate) struct Signals {
    streams: Vec<(Signal, Stream)>,
    decision: Decision,
}

/// What was sent so far, which decides what the next one means.
#[derive(Debug, Default)]
struct Decision {
    interrupts: VecDeque<Instant>,
    forwarded: Vec<Signal>,
    /// Those that wait for a connection.
    kept: Vec<Signal>,
}

impl Signals {
    /// Takes the signals over from their default effects. One that was ignored when we were started
    /// stays so (nohup, background jobs of a shell). Needs the runtime.
    ///
    /// # Errors
    /// The system refuses a handler; said to the user already.
    pub(crate) fn install() -> Result<Self, Exit> {
        Self::try_install().map_err(|error| {
            say(&format!("cannot handle signals: {error}; the command was not started"));
            Exit::Failed
        })
    }

    fn try_install() -> io::Result<Self> {
        let ignored = ignored_signals();
        let mut streams = Vec::new();
        for wanted in FORWARDED {
            if !ignored.contains(&wanted) {
                streams.push((wanted, signal(SignalKind::from_raw(wanted.number()))?));
            }
        }
        Ok(Self { streams, decision: Decision::default() })
    }

    /// What the next signal asks for; `away` is whether there is no connection now. Cancellation
    /// safe.
    pub(super) async fn next(&mut self, away: bool) -> Action {
        let signal = self.receive().await;
        self.decision.decide(signal, Instant::now(), away)
    }

    /// There is a connection again, and what was kept is on its way.
    pub(super) fn reconnected(&mut self) {
        self.decision.kept.clear();
    }

    /// The next signal that would end a program by default, for the time when there is no command
    /// to pass it on to. Cancellation safe.
    pub(crate) async fn next_ending(&mut self) -> Signal {
        self.receive().await
    }

    /// The signals that were passed on.
    pub(super) fn forwarded(&self) -> &[Signal] {
        &self.decision.forwarded
    }

    async fn receive(&mut self) -> Signal {
        poll_fn(|context| {
            for (signal, stream) in &mut self.streams {
                if let Poll::Ready(Some(())) = stream.poll_recv(context) {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Decision {
    fn decide(&mut self, signal: Signal, now: Instant, away: bool) -> Action {
        if signal == Signal::INT {
            self.interrupts.push_back(now);
            while self.interrupts.front().is_some_and(|at| now.duration_since(*at) > LEAVE_WITHIN) {
                self.interrupts.pop_front();
            }
            if self.interrupts.len() >= INTERRUPTS_TO_LEAVE {
                return Action::Leave;
            }
        }
        // Whoever sends TERM or HUP a second time wants this process to go.
        let insists = [Signal::TERM, Signal::HUP].contains(&signal);
        if insists && self.forwarded.contains(&signal) {
            return Action::Leave;
        }
        if !self.forwarded.contains(&signal) {
            self.forwarded.push(signal);
        }
        if !away {
            return Action::Forward(signal);
        }
        // It can't reach the command now, so who asks once more means this process.
        match self.kept.contains(&signal) {
            true if ends_a_program(signal) => Action::Leave,
            true => Action::Forward(signal),
            false => {
                self.kept.push(signal);
                Action::Keep(signal)
            }
        }
    }
}

/// Whether it is what people and their tools send to have a program end.
pub(super) fn ends_a_program(signal: Signal) -> bool {
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM].contains(&signal)
}

/// The signals that this process ignores, as it was started (proc_pid_status(5)); none if that
/// can't be read.
fn ignored_signals() -> Vec<Signal> {
    let mut buffer = [0; STATUS_BYTES];
    let read = std::fs::File::open("/proc/self/status").and_then(|mut file| file.read(&mut buffer));
    let status = buffer.get(..read.unwrap_or(0)).unwrap_or_default();
    parse_ignored(&String::from_utf8_lossy(status))
}

fn parse_ignored(status: &str) -> Vec<Signal> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let is_ignored = |signal: &Signal| {
        u32::try_from(signal.number() - 1)
            .is_ok_and(|bit| mask.checked_shr(bit).unwrap_or(0) & 1 == 1)
    };
    FORWARDED.into_iter().filter(is_ignored).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_interrupts_within_a_second_leave() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut decision = Decision::default();
        let forward = Action::Forward(Signal::INT);
        assert_eq!(decision.decide(Signal::INT, at(0), false), forward);
        assert_eq!(decision.decide(Signal::INT, at(600), false), forward);
        assert_eq!(decision.decide(Signal::INT, at(1100), false), forward);
        assert_eq!(decision.decide(Signal::INT, at(1500), false), Action::Leave);
    }

    #[test]
    fn a_second_polite_request_leaves_and_others_never_do() {
        let now = Instant::now();
        let mut decision = Decision::default();
        assert_eq!(decision.decide(Signal::TERM, now, false), Action::Forward(Signal::TERM));
        for _ in 0..5 {
            assert_eq!(decision.decide(Signal::USR1, now, false), Action::Forward(Signal::USR1));
        }
        assert_eq!(decision.decide(Signal::HUP, now, false), Action::Forward(Signal::HUP));
        assert_eq!(decision.decide(Signal::TERM, now, false), Action::Leave);
        assert_eq!(decision.forwarded, [Signal::TERM, Signal::USR1, Signal::HUP]);
    }

    #[test]
    fn without_a_connection_a_second_request_to_end_leaves() {
        let now = Instant::now();
        for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM] {
            let mut decision = Decision::default();
            assert_eq!(decision.decide(signal, now, true), Action::Keep(signal));
            assert_eq!(decision.decide(Signal::USR1, now, true), Action::Keep(Signal::USR1));
            // The command will be sent that one, and once: it is pending.
            assert_eq!(decision.decide(Signal::USR1, now, true), Action::Forward(Signal::USR1));
            assert_eq!(decision.decide(signal, now + 2 * LEAVE_WITHIN, true), Action::Leave);
        }
    }

    #[test]
    fn what_is_ignored_is_read_from_the_mask() {
        let status = "Name:\tx\nSigIgn:\t0000000000001003\nSigCgt:\tffffffffffffffff\n";
        assert_eq!(parse_ignored(status), [Signal::HUP, Signal::INT]);
        assert_eq!(parse_ignored(""), []);
        assert_eq!(parse_ignored("SigIgn:\tzzz\n"), []);
    }
}
