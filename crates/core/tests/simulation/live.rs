//! One job as the supervisor holds it: the machine, and the pipes of its process.

use std::collections::VecDeque;

use afar_core::job::{Exited, Machine};
use afar_proto::Instant;
use afar_proto::connection::Stream;
use afar_proto::outcome::Receipt;

use super::host::Host;
use super::process::{STDIN_BYTES, content};

/// A job that the supervisor holds in memory.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) index: usize,
    pub(crate) machine: Machine,
    /// When its clock was zero.
    pub(crate) began: Instant,
    pub(crate) pid: Option<u32>,
    /// What has come of stdin and is not in the pipe yet.
    pub(crate) stdin: VecDeque<u8>,
    pub(crate) stdin_ended: bool,
    pub(crate) stdin_closed: bool,
    pub(crate) eof_told: [bool; 2],
    pub(crate) exit_told: bool,
    pub(crate) end_written: bool,
    pub(crate) kill_at: Option<Instant>,
}

impl Live {
    pub(crate) fn clock(&self, now: Instant) -> Instant {
        Instant::ZERO.after(now.since(self.began))
    }

    pub(crate) fn feed_stdin(&mut self, host: &mut Host) -> bool {
        let Some(process) = self.pid.and_then(|pid| host.processes.get_mut(&pid)) else {
            return false;
        };
        if process.end.is_some() {
            let closed = !std::mem::replace(&mut self.stdin_closed, true);
            if closed {
                self.machine.input_closed();
            }
            return closed;
        }
        let room = STDIN_BYTES - process.stdin.len();
        let length = room.min(self.stdin.len());
        process.stdin.extend(self.stdin.drain(..length));
        if length > 0 {
            self.machine.input_taken(length);
        }
        let ends = self.stdin_ended && self.stdin.is_empty() && !process.stdin_ended;
        process.stdin_ended |= ends;
        length > 0 || ends
    }

    pub(crate) fn read_output(&mut self, host: &mut Host) -> bool {
        let clock = self.clock(host.now);
        let mut moved = false;
        let Some(process) = self.pid.and_then(|pid| host.processes.get_mut(&pid)) else {
            return false;
        };
        let (job, over) = (process.job, process.end.is_some());
        for stream in Stream::OUTPUTS {
            let output = process.output(stream);
            while !self.eof_told[index(stream)] {
                let there = usize::try_from(output.written - output.taken).expect("a pipe");
                let allowed = self.machine.readable(stream);
                if there == 0 && over {
                    self.eof_told[index(stream)] = true;
                    self.machine.output_end(stream, true);
                    moved = true;
                }
                if there == 0 || allowed.is_none() {
                    break;
                }
                let length = there.min(allowed.bytes).min(1 + host.rng.index(65_536));
                let bytes = content(job, stream, output.taken, length);
                output.taken += length as u64;
                self.machine.output(clock, stream, bytes.into());
                moved = true;
            }
        }
        moved
    }

    pub(crate) fn notice_exit(&mut self, host: &Host) -> bool {
        let process = self.pid.and_then(|pid| host.processes.get(&pid));
        let Some(process) = process.filter(|_| !self.exit_told) else { return false };
        let Some(end) = process.end.clone() else { return false };
        self.exit_told = true;
        let owed = [&process.outputs[0], &process.outputs[1]].map(|o| o.written - o.taken);
        let receipt = Receipt::default();
        let exited = Exited { end, receipt, session_restarted: false, owed };
        self.machine.exited(self.clock(host.now), exited);
        true
    }
}

/// The place of an output stream.
pub(crate) fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}
