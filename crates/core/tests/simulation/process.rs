//! Processes: what they read, write and do when they are told to end. Every byte that one writes is
//! known from its place, so that whoever sees one knows where it belongs.

use std::collections::VecDeque;
use std::time::Duration;

use afar_proto::Instant;
use afar_proto::connection::Stream;
use afar_proto::outcome::End;

use super::rng::{Rng, mix};

/// What a pipe holds.
const PIPE_BYTES: u64 = 64 * 1024;

/// What that of stdin holds: little, so that more of it waits before it.
pub(crate) const STDIN_BYTES: usize = 512;

/// The bytes of a stream of a job, from an offset on.
pub(crate) fn content(job: usize, stream: Stream, offset: u64, length: usize) -> Vec<u8> {
    let seed = mix((job as u64) << 8 | stream as u64);
    let skipped = usize::try_from(offset % 8).expect("below eight");
    let mut bytes = Vec::with_capacity(skipped + length + 8);
    let mut word = offset / 8;
    while bytes.len() < skipped + length {
        bytes.extend_from_slice(&mix(seed.wrapping_add(word)).to_le_bytes());
        word += 1;
    }
    bytes.truncate(skipped + length);
    bytes.drain(..skipped);
    bytes
}

/// What a program does next.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(Stream, u64),
    Sleep(Duration),
    /// Reads so many bytes of stdin, or to its end.
    Read(u64),
    Exit(u8),
}

/// A program that does some of everything.
pub(crate) fn program(rng: &mut Rng, stdin: bool, large: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..rng.between(0, 12) {
        steps.push(match rng.below(if stdin { 8 } else { 6 }) {
            0..=1 => Step::Write(Stream::Stdout, rng.below(100)),
            2 if large => Step::Write(Stream::Stdout, rng.below(1_500_000)),
            2 => Step::Write(Stream::Stdout, rng.below(40_000)),
            3 => Step::Write(Stream::Stderr, rng.below(3_000)),
            4 => Step::Sleep(rng.duration(Duration::from_secs(100))),
            5 => Step::Sleep(rng.duration(Duration::from_secs(1))),
            6 => Step::Read(rng.below(2_000)),
            _ => Step::Read(u64::MAX),
        });
    }
    steps.push(Step::Exit(u8::try_from(rng.below(256)).expect("a byte")));
    steps
}

/// An output pipe, of which only the ends are kept: what is in it is known.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) written: u64,
    pub(crate) taken: u64,
    /// Whether nobody reads it any more.
    pub(crate) closed: bool,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) job: usize,
    steps: VecDeque<Step>,
    pub(crate) outputs: [Output; 2],
    /// What waits in the pipe of stdin.
    pub(crate) stdin: VecDeque<u8>,
    pub(crate) stdin_ended: bool,
    /// Bytes of stdin that were read.
    pub(crate) read: u64,
    /// Whether some of them were others than were sent.
    pub(crate) read_wrong: bool,
    wakes_at: Option<Instant>,
    ignores_term: bool,
    pub(crate) end: Option<End>,
}

impl Process {
    pub(crate) fn new(job: usize, steps: &[Step], ignores_term: bool) -> Self {
        Self {
            job,
            steps: steps.to_vec().into(),
            outputs: [Output::default(), Output::default()],
            stdin: VecDeque::new(),
            stdin_ended: false,
            read: 0,
            read_wrong: false,
            wakes_at: None,
            ignores_term,
            end: None,
        }
    }

    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.wakes_at.filter(|_| self.end.is_none())
    }

    pub(crate) fn output(&mut self, stream: Stream) -> &mut Output {
        &mut self.outputs[usize::from(stream == Stream::Stderr)]
    }

    /// Goes on as far as it can; whether anything has happened.
    pub(crate) fn run(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while self.end.is_none() && self.step(now) {
            moved = true;
        }
        moved
    }

    fn step(&mut self, now: Instant) -> bool {
        let job = self.job;
        let Some(step) = self.steps.front_mut() else {
            self.end = Some(End::Exited { code: 0 });
            return true;
        };
        let over = match step {
            Step::Write(stream, left) => {
                let output = &mut self.outputs[usize::from(*stream == Stream::Stderr)];
                if *left > 0 && output.closed {
                    self.end =
                        Some(End::Signaled { signal: 13, name: "SIGPIPE".into(), core: false });
                    return true;
                }
                let room = PIPE_BYTES - (output.written - output.taken);
                let length = room.min(*left);
                output.written += length;
                *left -= length;
                if length == 0 && *left > 0 {
                    return false;
                }
                *left == 0
            }
            Step::Sleep(time) => match self.wakes_at {
                None => {
                    self.wakes_at = Some(now.after(*time));
                    return true;
                }
                Some(at) if at > now => return false,
                Some(_) => {
                    self.wakes_at = None;
                    true
                }
            },
            Step::Read(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(self.stdin.len());
                let bytes: Vec<u8> = self.stdin.drain(..length).collect();
                self.read_wrong |= bytes != content(job, Stream::Stdin, self.read, length);
                self.read += length as u64;
                *left -= length as u64;
                let over = *left == 0 || (self.stdin_ended && self.stdin.is_empty());
                if !over && length == 0 {
                    return false;
                }
                over
            }
            Step::Exit(code) => {
                self.end = Some(End::Exited { code: *code });
                return true;
            }
        };
        if over {
            self.steps.pop_front();
        }
        true
    }

    /// TERM, which some ignore.
    pub(crate) fn terminate(&mut self) {
        if !self.ignores_term && self.end.is_none() {
            self.end = Some(End::Signaled { signal: 15, name: "SIGTERM".into(), core: false });
        }
    }

    pub(crate) fn kill(&mut self) {
        if self.end.is_none() {
            self.end = Some(End::Signaled { signal: 9, name: "SIGKILL".into(), core: false });
        }
    }
}
