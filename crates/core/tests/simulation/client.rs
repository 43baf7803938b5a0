//! Clients: what they ask for, how they come back, and what they are told. The connection is the real
//! one; around it stands what J-4 says of a client.

use std::collections::BTreeMap;
use std::time::Duration;

use afar_proto::connection::{ResumeStream, Stream};
use afar_proto::message::{
    Attach, AttachMode, AttachOffset, Attached, GoodbyeCode, Incarnation, JobId, KillQuery, Query,
    Refused, Retry,
};
use afar_proto::outcome::{RefusalReason, Started};
use afar_proto::seal::Sealer;
use afar_proto::{ChannelId, Config, Connection, ConnectionError, Event, Instant, Role};

use afar_core::job::limits::RETRY_MARGIN;

use super::Sabotage;
use super::history::Told;
use super::host::Host;
use super::process::content;

/// For how long a client tries to come back.
const RECONNECT_FOR: Duration = Duration::from_secs(600);

/// How somebody comes to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By OPEN.
    Open,
    /// By ATTACH, to take it or to look.
    Attach(AttachMode),
}

/// What somebody does to a job besides listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whim {
    Close,
    Detach,
    Stop(Stream),
    Kill,
}

/// A job of a client.
#[derive(Debug)]
pub(crate) struct Mine {
    pub(crate) job: usize,
    way: Way,
    begins_at: Instant,
    whim: Option<(Instant, Whim)>,
    channel: Option<ChannelId>,
    /// When it was asked for first, on which link, and what the server said of itself there.
    asked: Option<(Instant, u64)>,
    incarnation: Option<Incarnation>,
    /// Whether it was ever answered, and on the channel that it has now.
    answered: bool,
    open: bool,
    next: [u64; 2],
    sealers: [Option<Sealer>; 2],
    stopped: [bool; 2],
    unconsumed: [usize; 2],
    /// The next byte of stdin to send, and up to where the server has it.
    stdin_next: u64,
    stdin_acked: u64,
    stdin_finished: bool,
    pub(crate) told: bool,
}

impl Mine {
    pub(crate) fn new(job: usize, way: Way, begins_at: Instant) -> Self {
        Self {
            job,
            way,
            begins_at,
            whim: None,
            channel: None,
            asked: None,
            incarnation: None,
            answered: false,
            open: false,
            next: [0; 2],
            sealers: [Some(Sealer::new()), Some(Sealer::new())],
            stopped: [false; 2],
            unconsumed: [0; 2],
            stdin_next: 0,
            stdin_acked: 0,
            stdin_finished: false,
            told: false,
        }
    }

    pub(crate) fn with_whim(mut self, at: Instant, whim: Whim) -> Self {
        self.whim = Some((at, whim));
        self
    }

    /// Whether it has a say in the job, and holds its output.
    fn owns(&self) -> bool {
        self.way != Way::Attach(AttachMode::Watch)
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: usize,
    window_bytes: u32,
    /// How many out of a hundred times it takes what has come.
    pub(crate) eagerness: u64,
    pub(crate) link: Option<(u64, Connection)>,
    pub(crate) jobs: Vec<Mine>,
    pub(crate) connects_at: Option<Instant>,
    consumes_at: Option<Instant>,
    lost_at: Option<Instant>,
    failures: u32,
    incarnation: Option<Incarnation>,
    /// It has ended, one way or another.
    pub(crate) gone: bool,
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

impl Client {
    pub(crate) fn new(number: usize, jobs: Vec<Mine>, host: &mut Host) -> Self {
        Self {
            number,
            window_bytes: 1 << host.rng.between(host.window_bits, 17),
            eagerness: if host.rng.percent(30) { 20 } else { 100 },
            link: None,
            connects_at: jobs.iter().map(|mine| mine.begins_at).min(),
            jobs,
            consumes_at: None,
            lost_at: None,
            failures: 0,
            incarnation: None,
            gone: false,
        }
    }

    /// It has reached a supervisor.
    pub(crate) fn connected(&mut self, host: &mut Host, link: u64) {
        let config = Config { window_bytes: self.window_bytes, ..Config::default() };
        self.link = Some((link, Connection::new(Role::Client, config, host.now)));
        self.connects_at = None;
        self.incarnation = None;
        self.ask(host);
    }

    /// It has not.
    pub(crate) fn failed_to_connect(&mut self, host: &mut Host) {
        let lost_at = *self.lost_at.get_or_insert(host.now);
        if host.now.since(lost_at) > RECONNECT_FOR {
            host.note(format_args!("client {} gives up", self.number));
            self.jobs.iter_mut().for_each(|mine| mine.told = true);
            self.gone = true;
            return;
        }
        let ceiling = Duration::from_secs(1 << self.failures.min(5)).min(Duration::from_secs(30));
        self.failures += 1;
        let least = Duration::from_millis(100);
        self.connects_at = Some(host.now.after(least + host.rng.duration(ceiling)));
    }

    /// Its machine is gone; nobody waits for anything any more.
    pub(crate) fn vanish(&mut self, host: &mut Host) {
        host.note(format_args!("client {} vanishes", self.number));
        self.jobs.iter_mut().for_each(|mine| mine.told = true);
        self.link = None;
        self.connects_at = None;
        self.gone = true;
    }

    /// Asks for what it has not asked for on this connection.
    fn ask(&mut self, host: &mut Host) {
        let Some((link, connection)) = &mut self.link else { return };
        for mine in &mut self.jobs {
            if mine.told || mine.channel.is_some() || mine.begins_at > host.now {
                continue;
            }
            let plan = &host.plans[mine.job];
            let by_open = mine.way == Way::Open && !mine.answered;
            let channel = if by_open {
                let mut spec = plan.spec.clone();
                spec.retry = mine.asked.map(|(at, _)| Retry {
                    age_ms: u64::try_from(host.now.since(at).as_millis()).expect("hours"),
                    incarnation: mine.incarnation.clone(),
                });
                connection.open(&spec)
            } else {
                if host.sabotage == Some(Sabotage::AsksTwice) {
                    mine.next = mine.next.map(|next| next.saturating_sub(1));
                }
                connection.attach(&mine.attach(&plan.spec.job), mine.resumption())
            };
            (mine.channel, mine.open) = (channel.ok(), false);
            // What was said on another link may never have come.
            let stopped = Stream::OUTPUTS.into_iter().filter(|stream| mine.stopped[index(*stream)]);
            if let Some(mut channel) = mine.channel.and_then(|at| connection.channel(at)) {
                stopped.for_each(|stream| channel.stop(stream));
            }
            if mine.asked.is_none() {
                mine.asked = Some((host.now, *link));
                mine.incarnation.clone_from(&self.incarnation);
            }
        }
    }

    /// Does everything that can be done now; whether that was anything.
    pub(crate) fn run(&mut self, host: &mut Host) -> bool {
        if self.gone {
            return false;
        }
        let mut moved = false;
        while let Some(event) = self.link.as_mut().and_then(|(_, c)| c.poll_event()) {
            moved = true;
            self.handle(host, event);
        }
        if self.link.is_some() {
            let due = |mine: &Mine| !mine.told && mine.channel.is_none();
            if self.jobs.iter().any(|mine| due(mine) && mine.begins_at <= host.now) {
                self.ask(host);
                moved = true;
            }
            moved |= self.send_stdin(host);
            moved |= self.consume(host);
            moved |= self.follow_whims(host);
        }
        let over = self.jobs.iter().all(|mine| mine.told);
        if let Some((_, connection)) = self.link.as_mut().filter(|_| over)
            && !connection.is_closed()
        {
            connection.close(GoodbyeCode::Done, "");
            moved = true;
        }
        if over && self.link.is_none() {
            self.gone = true;
        }
        moved
    }

    fn mine(&mut self, channel: ChannelId) -> Option<&mut Mine> {
        self.jobs.iter_mut().find(|mine| mine.channel == Some(channel))
    }

    fn tell(&mut self, host: &mut Host, channel: ChannelId, told: &Told) {
        let number = self.number;
        let Some(mine) = self.mine(channel) else { return };
        mine.channel = None;
        if std::mem::replace(&mut mine.told, true) {
            return;
        }
        let job = mine.job;
        host.note(format_args!("client {number} is told of job {job}: {}", short(told)));
        host.history.told(number, job, told);
    }

    fn handle(&mut self, host: &mut Host, event: Event) {
        let number = self.number;
        match event {
            Event::Ready(hello) => {
                self.incarnation = hello.incarnation;
                let Some((link, _)) = &self.link else { return };
                for mine in &mut self.jobs {
                    // Whoever was asked first on this link is known by now.
                    if mine.asked.is_some_and(|(_, at)| at == *link) {
                        mine.incarnation.clone_from(&self.incarnation);
                    }
                }
                (self.lost_at, self.failures) = (None, 0);
            }
            Event::Opened { channel, .. } => {
                let Some(mine) = self.mine(channel) else { return };
                (mine.answered, mine.open) = (true, true);
                if host.plans[mine.job].spec.detach {
                    self.tell(host, channel, &Told::Left);
                }
            }
            Event::Attached { channel, attached } => self.attached(host, channel, &attached),
            Event::Refused { channel, refused } => self.refused(host, channel, &refused),
            Event::Data { channel, stream, offset, bytes, .. } => {
                let Some(mine) = self.mine(channel) else { return };
                let at = index(stream);
                mine.next[at] = offset + bytes.len() as u64;
                if let Some(sealer) = &mut mine.sealers[at] {
                    sealer.update(&bytes);
                }
                mine.unconsumed[at] += bytes.len();
                host.history.got(number, mine.job, stream, offset, &bytes);
            }
            Event::Gap { channel, stream, to, .. } => {
                let Some(mine) = self.mine(channel) else { return };
                mine.skip(stream, to);
                host.history.goes_on(number, mine.job, stream, to);
            }
            Event::Acked { channel, offset, .. } => {
                let Some(mine) = self.mine(channel) else { return };
                mine.stdin_acked = mine.stdin_acked.max(offset);
            }
            Event::Stopped { channel, .. } => {
                // The job reads no more: what it was sent has an end.
                let Some(mine) = self.mine(channel) else { return };
                mine.stdin_finished = true;
                if let Some(mut channel) =
                    self.link.as_mut().and_then(|(_, connection)| connection.channel(channel))
                {
                    channel.finish(Stream::Stdin);
                }
            }
            Event::Seal { channel, seal, verdict } => {
                self.tell(host, channel, &Told::Sealed { seal, verdict });
            }
            Event::Failed { channel, .. } | Event::Answer { channel, .. } => {
                self.tell(host, channel, &Told::Left);
            }
            Event::Closed(error) => self.closed(host, &error),
            _ => {}
        }
    }

    fn attached(&mut self, host: &mut Host, channel: ChannelId, attached: &Attached) {
        let number = self.number;
        let Some(mine) = self.mine(channel) else { return };
        let job = mine.job;
        (mine.answered, mine.open) = (true, true);
        for stream in Stream::OUTPUTS {
            if let Some(at) = attached.streams.get(stream.name()) {
                mine.skip(stream, at.offset);
                host.history.goes_on(number, job, stream, at.offset);
            }
        }
        if let Some(at) = attached.stdin {
            if at < mine.stdin_acked || at > mine.stdin_next.max(mine.stdin_acked) {
                // Another owner may have sent more.
                if host.plans[job].spec.stdin && mine.way == Way::Open && at < mine.stdin_acked {
                    host.history.wrong_stdin(job, "what was acknowledged is wanted again");
                }
            }
            mine.stdin_next = at;
            mine.stdin_finished = false;
        } else {
            mine.stdin_finished = true;
        }
        if host.plans[job].spec.detach && mine.way == Way::Open {
            self.tell(host, channel, &Told::Left);
        }
    }

    fn refused(&mut self, host: &mut Host, channel: ChannelId, refused: &Refused) {
        let Some(mine) = self.mine(channel) else { return };
        let late = mine.way != Way::Open;
        // Nobody can speak for what was asked before there was anybody, and some time behind that.
        let margin = host.vouched_since.after(RETRY_MARGIN);
        if mine.asked.is_some_and(|(at, _)| at < margin) {
            host.history.forgotten(mine.job);
        }
        let told = match refused.reason {
            RefusalReason::NoSuchJob if late => Told::Left,
            // This request has started nothing, whatever the other one has.
            RefusalReason::Conflict => Told::Refused { started: Started::No },
            // J-4.4
            RefusalReason::NoSuchJob => Told::Refused { started: Started::Yes },
            _ => Told::Refused { started: refused.started },
        };
        self.tell(host, channel, &told);
    }

    fn closed(&mut self, host: &mut Host, error: &ConnectionError) {
        host.note(format_args!("client {}: {error}", self.number));
        (self.link, self.consumes_at) = (None, None);
        for mine in &mut self.jobs {
            // What has come is taken in the meantime.
            (mine.channel, mine.unconsumed) = (None, [0; 2]);
        }
        if self.jobs.iter().all(|mine| mine.told) {
            self.gone = true;
            return;
        }
        match error {
            ConnectionError::PeerClosed(goodbye) if goodbye.code == GoodbyeCode::Restart => {
                self.connects_at = Some(host.now);
            }
            _ => self.failed_to_connect(host),
        }
    }

    // What it does.

    fn send_stdin(&mut self, host: &mut Host) -> bool {
        let Some((_, connection)) = &mut self.link else { return false };
        let mut moved = false;
        for mine in &mut self.jobs {
            let plan = &host.plans[mine.job];
            if !mine.open || mine.stdin_finished || !plan.spec.stdin || !mine.owns() {
                continue;
            }
            let Some(mut channel) = mine.channel.and_then(|at| connection.channel(at)) else {
                continue;
            };
            let left = plan.stdin_bytes.saturating_sub(mine.stdin_next);
            let room = channel.writable(Stream::Stdin);
            let length = room.min(usize::try_from(left).expect("in memory"));
            let bytes = content(mine.job, Stream::Stdin, mine.stdin_next, length);
            channel.write(Stream::Stdin, 0, bytes.into()).expect("only what there is room for");
            mine.stdin_next += length as u64;
            if mine.stdin_next >= plan.stdin_bytes {
                channel.finish(Stream::Stdin);
                mine.stdin_finished = true;
                moved = true;
            }
            moved |= length > 0;
        }
        moved
    }

    fn consume(&mut self, host: &mut Host) -> bool {
        if self.consumes_at.is_some_and(|at| at > host.now) {
            return false;
        }
        self.consumes_at = None;
        let Some((_, connection)) = &mut self.link else { return false };
        let mut moved = false;
        for mine in &mut self.jobs {
            let Some(mut channel) = mine.channel.and_then(|at| connection.channel(at)) else {
                continue;
            };
            for stream in Stream::OUTPUTS {
                let unconsumed = &mut mine.unconsumed[index(stream)];
                if *unconsumed == 0 {
                    continue;
                }
                if !host.rng.percent(self.eagerness) {
                    let pause = host.rng.duration(Duration::from_secs(2));
                    self.consumes_at = Some(host.now.after(pause + Duration::from_micros(1)));
                    continue;
                }
                let length = 1 + host.rng.index(*unconsumed);
                channel.consume(stream, length);
                *unconsumed -= length;
                moved = true;
            }
        }
        moved
    }

    fn follow_whims(&mut self, host: &mut Host) -> bool {
        let Some((_, connection)) = &mut self.link else { return false };
        let mut moved = false;
        for mine in &mut self.jobs {
            let due = mine.whim.filter(|(at, _)| *at <= host.now && mine.open);
            let Some((_, whim)) = due else { continue };
            let Some(mut channel) = mine.channel.and_then(|at| connection.channel(at)) else {
                continue;
            };
            mine.whim = None;
            moved = true;
            host.note(format_args!("client {}, job {}: {whim:?}", self.number, mine.job));
            match whim {
                Whim::Close if mine.owns() => {
                    host.history.end_wanted(mine.job);
                    channel.close();
                    (mine.told, mine.channel) = (true, None);
                }
                Whim::Close | Whim::Detach => {
                    channel.detach();
                    (mine.told, mine.channel) = (true, None);
                }
                Whim::Stop(stream) => {
                    mine.stopped[index(stream)] = true;
                    channel.stop(stream);
                    host.history.stopped(self.number, mine.job, stream);
                }
                Whim::Kill => {
                    host.history.end_wanted(mine.job);
                    let job = host.plans[mine.job].spec.job.clone();
                    let kill = KillQuery { job, prefix: false, signal: None };
                    // It may be lost with the link, as any wish.
                    let _ = connection.query(&Query::Kill(kill));
                }
            }
        }
        moved
    }

    /// When something is due next.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        if self.gone {
            return None;
        }
        let of_link = self.link.as_ref().and_then(|(_, connection)| connection.poll_timeout());
        let waits = self.link.is_some();
        let begins = self.jobs.iter().filter(|mine| waits && !mine.told).flat_map(|mine| {
            let whim = mine.whim.filter(|_| mine.channel.is_some()).map(|(at, _)| at);
            [Some(mine.begins_at), whim].into_iter().flatten()
        });
        let later = begins.filter(|at| *at > now);
        of_link.into_iter().chain(self.connects_at).chain(self.consumes_at).chain(later).min()
    }
}

impl Mine {
    fn attach(&self, job: &JobId) -> Attach {
        let wanted = Stream::OUTPUTS.into_iter();
        let offset =
            |stream: Stream| (stream.name().to_owned(), AttachOffset(self.next[index(stream)]));
        let mode = match self.way {
            Way::Open => AttachMode::Take,
            Way::Attach(mode) => mode,
        };
        Attach { mode, ..Attach::new(job.clone(), wanted.map(offset).collect()) }
    }

    fn resumption(&self) -> BTreeMap<Stream, ResumeStream> {
        let wanted = Stream::OUTPUTS.into_iter();
        let resume = |stream: Stream| {
            let at = index(stream);
            let sealer = self.sealers[at].clone();
            (stream, ResumeStream { offset: self.next[at], unconsumed: 0, sealer })
        };
        wanted.map(resume).collect()
    }

    /// The stream goes on at `to`.
    fn skip(&mut self, stream: Stream, to: u64) {
        let at = index(stream);
        if to > self.next[at] {
            self.sealers[at] = None;
        }
        self.next[at] = to;
        if self.channel.is_none() {
            self.unconsumed[at] = 0;
        }
    }
}

fn short(told: &Told) -> String {
    match told {
        Told::Sealed { seal, verdict } => format!("{:?}, {verdict:?}", seal.end),
        other => format!("{other:?}"),
    }
}
