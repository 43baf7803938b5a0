//! Operation sequences on a pair, read from bytes: what proptest and the fuzzer both drive.
//!
//! Both applications here are honest, so whatever the order of operations and however the bytes
//! are cut on their way: no connection may be closed for misbehaviour, every byte of every stream
//! arrives once and in order, what is in the hands of a receiver never exceeds its window, every
//! seal matches, and when both sides go on in the end, every job comes to its end.

mod events;

use std::collections::BTreeMap;
use std::time::Duration;

use afar_proto::connection::{ResumeStream, Stream, Verdict};
use afar_proto::frame::FrameReader;
use afar_proto::limits::LAZY_DELAY;
use afar_proto::message::GoodbyeCode;
use afar_proto::outcome::RefusalReason;
use afar_proto::seal::Sealer;
use afar_proto::{ChannelId, Config, Role};

use super::pair::Pair;
use super::samples;

const RESET_MESSAGE: &str = "by the test";

/// What the server has of a job, whichever channels show it.
#[derive(Debug, Default)]
struct Job {
    produced: [u64; 2],
    sealers: [Sealer; 2],
    /// What the client has of it, over all its channels.
    received: [u64; 2],
    seen: [Sealer; 2],
    /// Bytes of stdin that the client has sent, and that the server has got.
    stdin_sent: u64,
    stdin_got: u64,
    /// Whether the client skipped bytes because the server named a gap.
    gap: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asked,
    Running,
    Exited,
    Sealed,
    Gone,
}

/// One channel, as both applications see it.
#[derive(Debug)]
struct View {
    job: usize,
    server: Stage,
    client_open: bool,
    running_at_client: bool,
    stopped_by_client: [bool; 2],
    stopped_at_server: [bool; 2],
    /// Offset of the next byte that the server writes.
    written: [u64; 2],
    finished: [bool; 2],
    unconsumed: [usize; 2],
    stdin_unconsumed: usize,
    stdin_finished: bool,
    ended: [bool; 2],
    verdict: Option<Verdict>,
    /// Whether a side broke the channel off, so that no seal need come.
    broken: bool,
}

impl View {
    fn new(job: usize) -> Self {
        Self {
            job,
            server: Stage::Asked,
            client_open: true,
            running_at_client: false,
            stopped_by_client: [false; 2],
            stopped_at_server: [false; 2],
            written: [0; 2],
            finished: [false; 2],
            unconsumed: [0; 2],
            stdin_unconsumed: 0,
            stdin_finished: false,
            ended: [false; 2],
            verdict: None,
            broken: false,
        }
    }
}

/// A client, a server, what they have done and what they know.
#[derive(Debug)]
pub(crate) struct World {
    pair: Pair,
    window: usize,
    jobs: Vec<Job>,
    views: BTreeMap<ChannelId, View>,
    /// Channels at the server that the client has given up.
    abandoned: Vec<ChannelId>,
    /// Whether some operation ended the connection.
    ended: bool,
    client_closed: bool,
    server_closed: bool,
}

/// The byte at an offset of a stream: whoever sees it knows where it belongs.
fn content(job: usize, stream: Stream, offset: u64, length: usize) -> Vec<u8> {
    let seed = (job as u64).wrapping_mul(3).wrapping_add(stream as u64);
    let byte = |at: u64| {
        let mixed = at.wrapping_add(seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.to_le_bytes()[5]
    };
    (0..length as u64).map(|at| byte(offset + at)).collect()
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

/// Runs the operations in `script` and then lets everything come to its end.
pub(crate) fn run(script: &[u8]) {
    let mut bytes = script.iter().copied();
    let mut next = || bytes.next();
    let window = 1 + usize::from(next().unwrap_or(200)).pow(2) * 2;
    let budget = 1 + usize::from(next().unwrap_or(255)).pow(2) * 8;
    let mut world = World::new(window, budget);
    while let (Some(operation), Some(which), Some(size)) = (next(), next(), next()) {
        world.operate(operation, which, size);
        world.look();
        if world.client_closed && world.server_closed {
            break;
        }
    }
    world.finish();
}

impl World {
    fn new(window: usize, budget: usize) -> Self {
        let window_bytes = u32::try_from(window).expect("a small window");
        let config = Config { window_bytes, ..Config::default() };
        let mut pair = Pair::with(config.clone(), config);
        pair.budget = budget;
        Self {
            pair,
            window,
            jobs: Vec::new(),
            views: BTreeMap::new(),
            abandoned: Vec::new(),
            ended: false,
            client_closed: false,
            server_closed: false,
        }
    }

    fn pick(&self, which: u8) -> Option<ChannelId> {
        let count = self.views.len().max(1);
        self.views.keys().copied().nth(usize::from(which) % count)
    }

    fn operate(&mut self, operation: u8, which: u8, size: u8) {
        let length = usize::from(size).pow(2) / 4;
        let stream = if size.is_multiple_of(2) { Stream::Stdout } else { Stream::Stderr };
        match operation % 20 {
            0 => self.open(which),
            1 => self.attach(which),
            2 => _ = self.pair.transmit(Role::Client, length),
            3 => _ = self.pair.transmit(Role::Server, length),
            4 => _ = self.pair.deliver(Role::Server, length + 1),
            5 => _ = self.pair.deliver(Role::Client, length + 1),
            6 => self.pair.drive(),
            7 => self.let_pass(Duration::from_secs(u64::from(size) / 16)),
            8 => self.close_connection(which, size),
            operation => {
                if let Some(id) = self.pick(which) {
                    self.operate_channel(operation, id, stream, length);
                }
            }
        }
    }

    fn operate_channel(&mut self, operation: u8, id: ChannelId, stream: Stream, length: usize) {
        match operation {
            9 => self.answer(id, length),
            10 | 11 if length % 13 == 7 => self.server_drop(id, stream, length),
            10 | 11 => self.server_write(id, stream, length),
            12 => self.server_finish(id, stream),
            13 => self.client_write(id, length),
            14 => self.client_consume(id, stream, length),
            15 => self.server_consume(id, length),
            16 => self.exit(id),
            17 => self.seal(id),
            18 => self.client_small(id, stream, length),
            _ => self.give_up(id, length),
        }
    }

    fn open(&mut self, which: u8) {
        if self.views.len() >= 40 {
            return;
        }
        let spec = samples::spec_with_stdin(&format!("j{}", self.jobs.len()));
        let spec = if which.is_multiple_of(4) { samples::spec(spec.job.as_str()) } else { spec };
        if let Ok(id) = self.pair.client.open(&spec) {
            self.views.insert(id, View::new(self.jobs.len()));
            self.jobs.push(Job::default());
        }
    }

    /// Goes on, on another channel, with a job whose channel the client gave up.
    fn attach(&mut self, which: u8) {
        let Some(id) = self.pick(which) else { return };
        let Some(view) = self.views.get(&id) else { return };
        let number = view.job;
        let shown = self.views.values().any(|view| view.job == number && view.client_open);
        let stopped = self.views.values().any(|view| {
            view.job == number && (view.stopped_by_client != [false; 2] || view.ended != [false; 2])
        });
        if shown || stopped || view.server != Stage::Gone || self.views.len() >= 40 {
            return;
        }
        let Some(job) = self.jobs.get(number) else { return };
        let attach = samples::attach(&format!("j{number}"), job.received[0], job.received[1]);
        let streams = Stream::OUTPUTS.map(|stream| {
            let at = index(stream);
            let sealer = (!job.gap[at]).then(|| job.seen[at].clone());
            (stream, ResumeStream { offset: job.received[at], unconsumed: 0, sealer })
        });
        if let Ok(id) = self.pair.client.attach(&attach, streams.into()) {
            let mut view = View::new(number);
            view.stdin_finished = true;
            self.views.insert(id, view);
        }
    }

    fn let_pass(&mut self, duration: Duration) {
        self.pair.now = self.pair.now.after(duration);
        self.pair.client.handle_timeout(self.pair.now);
        self.pair.server.handle_timeout(self.pair.now);
    }

    fn close_connection(&mut self, which: u8, size: u8) {
        // Rarely, or there is little to see of what comes after.
        match (which, size) {
            (0..8, 0..8) => self.pair.client.close(GoodbyeCode::Done, "enough"),
            (8..16, 0..8) => self.pair.server.close(GoodbyeCode::Unavailable, ""),
            (16..24, 0..8) => self.pair.cut(),
            _ => return,
        }
        self.ended = true;
    }

    fn answer(&mut self, id: ChannelId, length: usize) {
        let Self { pair, views, jobs, .. } = self;
        let Some(view) = views.get_mut(&id).filter(|view| view.server == Stage::Asked) else {
            return;
        };
        let Some(mut channel) = pair.server.channel(id) else { return };
        let Some(job) = jobs.get_mut(view.job) else { return };
        if length % 7 == 3 {
            channel.refuse(&samples::refused(RefusalReason::NotFound));
            view.server = Stage::Gone;
            view.broken = true;
            return;
        }
        view.server = Stage::Running;
        let resumed = job.produced != [0; 2] || job.received != [0; 2] || job.gap != [false; 2];
        channel.accept(&samples::opened(&format!("j{}", view.job)));
        // An accept of an attach does nothing, and the other way round.
        let mut from = job.received;
        if resumed && length.is_multiple_of(5) {
            for (from, produced) in from.iter_mut().zip(job.produced) {
                *from += (produced - *from) / 2;
            }
        }
        let job = format!("j{}", view.job);
        channel.accept_attach(&samples::attached_to(&job, from[0], from[1], None));
        view.written = from;
    }

    fn server_write(&mut self, id: ChannelId, stream: Stream, length: usize) {
        let Self { pair, views, jobs, .. } = self;
        let Some(view) = views.get_mut(&id) else { return };
        let (Some(mut channel), Some(job)) = (pair.server.channel(id), jobs.get_mut(view.job))
        else {
            return;
        };
        let at = index(stream);
        let length = length.min(channel.writable(stream));
        let offset = view.written[at];
        let bytes = content(view.job, stream, offset, length);
        let Ok(()) = channel.write(stream, 5, bytes.clone().into()) else { return };
        let end = offset + length as u64;
        let known = usize::try_from(job.produced[at].saturating_sub(offset)).expect("small");
        job.sealers[at].update(&bytes[known.min(length)..]);
        job.produced[at] = job.produced[at].max(end);
        view.written[at] = end;
    }

    /// Output that was let go of before it was sent.
    fn server_drop(&mut self, id: ChannelId, stream: Stream, length: usize) {
        let Self { pair, views, jobs, .. } = self;
        let Some(view) = views.get_mut(&id) else { return };
        let (Some(mut channel), Some(job)) = (pair.server.channel(id), jobs.get_mut(view.job))
        else {
            return;
        };
        let at = index(stream);
        let open = matches!(view.server, Stage::Running | Stage::Exited) && !view.finished[at];
        if !open || view.written[at] != job.produced[at] {
            return;
        }
        let bytes = content(view.job, stream, job.produced[at], length);
        job.sealers[at].update(&bytes);
        job.produced[at] += length as u64;
        channel.gap(stream, job.produced[at]);
        view.written[at] = job.produced[at];
    }

    fn server_finish(&mut self, id: ChannelId, stream: Stream) {
        let Self { pair, views, jobs, .. } = self;
        let Some(view) = views.get_mut(&id) else { return };
        let (Some(mut channel), Some(job)) = (pair.server.channel(id), jobs.get(view.job)) else {
            return;
        };
        let at = index(stream);
        if view.server != Stage::Asked && view.written[at] == job.produced[at] {
            channel.finish(stream);
            view.finished[at] = true;
        }
    }

    fn client_write(&mut self, id: ChannelId, length: usize) {
        let Self { pair, views, jobs, .. } = self;
        let Some(view) = views.get_mut(&id) else { return };
        let (Some(mut channel), Some(job)) = (pair.client.channel(id), jobs.get_mut(view.job))
        else {
            return;
        };
        if length % 11 == 5 {
            channel.finish(Stream::Stdin);
            view.stdin_finished = true;
        }
        let length = length.min(channel.writable(Stream::Stdin));
        let bytes = content(view.job, Stream::Stdin, job.stdin_sent, length);
        if channel.write(Stream::Stdin, 0, bytes.into()).is_ok() {
            job.stdin_sent += length as u64;
        }
    }

    fn client_consume(&mut self, id: ChannelId, stream: Stream, length: usize) {
        let Self { pair, views, .. } = self;
        let (Some(view), Some(mut channel)) = (views.get_mut(&id), pair.client.channel(id)) else {
            return;
        };
        let at = index(stream);
        let length = length.min(view.unconsumed[at]);
        channel.consume(stream, length);
        view.unconsumed[at] -= length;
    }

    fn server_consume(&mut self, id: ChannelId, length: usize) {
        let Self { pair, views, .. } = self;
        let (Some(view), Some(mut channel)) = (views.get_mut(&id), pair.server.channel(id)) else {
            return;
        };
        let length = length.min(view.stdin_unconsumed);
        channel.consume(Stream::Stdin, length);
        view.stdin_unconsumed -= length;
    }

    fn exit(&mut self, id: ChannelId) {
        let Self { pair, views, .. } = self;
        let (Some(view), Some(mut channel)) = (views.get_mut(&id), pair.server.channel(id)) else {
            return;
        };
        if view.server == Stage::Running {
            channel.exit(&samples::exited(0));
            view.server = Stage::Exited;
        }
    }

    fn seal(&mut self, id: ChannelId) {
        let Self { pair, views, jobs, .. } = self;
        let Some(view) = views.get_mut(&id).filter(|view| view.server == Stage::Exited) else {
            return;
        };
        let (Some(channel), Some(job)) = (pair.server.channel(id), jobs.get(view.job)) else {
            return;
        };
        let all =
            (0..2).all(|at| view.stopped_at_server[at] || view.written[at] == job.produced[at]);
        if all {
            channel.seal(&samples::seal(&job.sealers[0], &job.sealers[1]));
            view.server = Stage::Sealed;
        }
    }

    fn client_small(&mut self, id: ChannelId, stream: Stream, length: usize) {
        let Self { pair, views, .. } = self;
        let (Some(view), Some(mut channel)) = (views.get_mut(&id), pair.client.channel(id)) else {
            return;
        };
        match length % 3 {
            0 => channel.signal("TERM"),
            1 => {
                channel.resize(afar_proto::message::Resize {
                    columns: 80,
                    rows: 24,
                    ..Default::default()
                });
            }
            _ => {
                channel.stop(stream);
                view.stopped_by_client[index(stream)] = true;
            }
        }
    }

    fn give_up(&mut self, id: ChannelId, length: usize) {
        let Self { pair, views, .. } = self;
        let Some(view) = views.get_mut(&id) else { return };
        if length % 3 == 2 {
            if let Some(channel) = pair.server.channel(id) {
                channel.reset(RESET_MESSAGE);
                view.server = Stage::Gone;
                view.broken = true;
            }
        } else if let Some(channel) = pair.client.channel(id) {
            if length.is_multiple_of(3) {
                channel.close();
            } else if length % 5 == 1 {
                channel.detach();
            } else {
                channel.reset(RESET_MESSAGE);
            }
            view.client_open = false;
            view.broken = true;
        }
    }

    /// Both sides go on until nothing is left to do: then no job may be left either.
    fn finish(&mut self) {
        self.pair.budget = usize::MAX;
        for _ in 0..4_000 {
            self.pair.drive();
            self.look();
            if self.client_closed && self.server_closed {
                break;
            }
            let ids: Vec<ChannelId> = self.views.keys().copied().collect();
            for id in &ids {
                self.work_off(*id);
            }
            if self.pair.client.channels_open() == 0 {
                // The last confirmations have nothing to leave with.
                self.pair.advance(LAZY_DELAY);
                self.look();
            }
            let quiet = self.pair.client.channels_open() + self.pair.server.channels_open() == 0;
            if quiet && self.pair.up.in_flight() + self.pair.down.in_flight() == 0 {
                break;
            }
        }
        self.pair.drive();
        self.look();
        if self.ended {
            // Whoever was not told finds out by the silence.
            self.pair.advance(Duration::from_secs(60));
            self.look();
            assert!(self.client_closed || self.server_closed);
            return;
        }
        assert_eq!(self.pair.client.channels_open(), 0, "{:?}", self.views);
        assert_eq!(self.pair.server.channels_open(), 0, "{:?}", self.views);
        for view in self.views.values() {
            assert!(view.broken || view.verdict.is_some(), "{view:?}");
        }
        check_record(&self.pair.up.record);
        check_record(&self.pair.down.record);
    }

    /// What a patient client and server do with a channel in the end.
    fn work_off(&mut self, id: ChannelId) {
        self.answer(id, 1);
        for stream in Stream::OUTPUTS {
            let (job, written) = {
                let Some(view) = self.views.get(&id) else { return };
                (view.job, view.written[index(stream)])
            };
            let rest = self.jobs[job].produced[index(stream)].saturating_sub(written);
            self.server_write(id, stream, usize::try_from(rest).expect("small"));
            self.client_consume(id, stream, usize::MAX);
        }
        self.server_consume(id, usize::MAX);
        self.exit(id);
        self.seal(id);
    }
}

/// Everything that was sent is whole frames.
fn check_record(record: &[u8]) {
    let mut reader = FrameReader::new(afar_proto::frame::Phase::Jobs);
    reader.push(record);
    while reader.next_frame().expect("our own frames are in order").is_some() {}
    assert_eq!(reader.buffered(), 0, "the last frame is whole");
}
