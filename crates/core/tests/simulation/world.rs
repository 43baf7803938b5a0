//! Everything together: who is there, what goes wrong and when, and time that passes only from one
//! thing that happens to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use afar_proto::Instant;
use afar_proto::connection::Stream;
use afar_proto::message::{AttachMode, Command, JobId, OnDisconnect, OpenSpec, Overflow};

use super::Sabotage;
use super::client::{Client, Mine, Way, Whim};
use super::history::{Truthful, Violation};
use super::host::{Host, Plan};
use super::network::Link;
use super::process::program;
use super::rng::Rng;
use super::supervisor::Supervisor;

/// Faults happen so long; then everything must come to its end.
const WEATHER: Duration = Duration::from_secs(240);

/// And it has so long for that: longer than a client tries to come back.
const CALM: Duration = Duration::from_secs(3_600);

/// More than this is a loop in the simulation.
const STEPS_MAX: u32 = 100_000;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Cut,
    /// Nobody can connect for a while.
    ListenerDies,
    /// At once, or at one of the next named moments.
    SupervisorDies(u32),
    Upgrade,
    PowerFails,
    /// A bit of the journal is another one when the next supervisor reads it.
    JournalRots,
    ClientVanishes,
}

#[derive(Debug)]
pub(crate) struct World {
    host: Host,
    supervisor: Option<Supervisor>,
    supervisors: u64,
    /// When the listener answers again.
    listens_at: Instant,
    /// When the guardian ends what a killed supervisor has left.
    guards_at: Option<Instant>,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    clients: Vec<Client>,
    faults: Vec<(Instant, Fault)>,
    ends_at: Instant,
}

impl World {
    /// A world that is all of this seed.
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let begins = Instant::ZERO.after(Duration::from_secs(1_000));
        let faults = faults(&mut rng, begins, sabotage);
        let forgets = |fault: &Fault| matches!(fault, Fault::PowerFails | Fault::JournalRots);
        let power = faults.iter().any(|(_, fault)| forgets(fault));
        let jobs = 1 + rng.index(4);
        let large = rng.percent(4);
        let mut plans: Vec<Plan> = (0..jobs).map(|job| plan(&mut rng, job, large)).collect();
        // One more with the id of another job, and another command: a conflict. (A journal that was
        // lost with the power knows nothing of requests that were not sent before: J-1.6.)
        if !power && rng.percent(10) {
            let mut other = plan(&mut rng, plans.len(), false);
            other.spec.job = plans[0].spec.job.clone();
            plans.push(other);
        }
        let mut host = Host::new(rng, plans, sabotage);
        if large {
            host.window_bits = 13;
        }
        let clients = clients(&mut host, begins, power);
        // Usually it was there for a while, and can speak for everybody who asks.
        let mut supervisor = None;
        if host.rng.percent(70) {
            host.now = Instant::ZERO.after(Duration::from_secs(100));
            supervisor = Supervisor::begin(&mut host, 0).ok();
            host.now = begins;
        }
        host.note(format_args!("seed {seed}: {} clients, {faults:?}", clients.len()));
        Self {
            host,
            supervisor,
            supervisors: 0,
            listens_at: Instant::ZERO,
            guards_at: None,
            links: BTreeMap::new(),
            next_link: 1,
            clients,
            faults,
            ends_at: begins.after(WEATHER + CALM),
        }
    }

    /// Lets everything happen; the first rule that was broken if one was, and the log.
    pub(crate) fn run(mut self) -> (Result<Truthful, Violation>, Vec<String>) {
        let mut steps = 0;
        loop {
            while self.step() {
                steps += 1;
                if self.host.history.is_broken() || steps > STEPS_MAX {
                    break;
                }
            }
            if steps > STEPS_MAX {
                self.host.history.hangs("everything turns in a circle".to_owned());
            }
            if self.host.history.is_broken() {
                break;
            }
            let over = self.clients.iter().all(|client| client.gone);
            let Some(next) = self.next().filter(|_| !over) else { break };
            // Time that does not pass is a circle too.
            steps += 1;
            self.host.now = next.max(self.host.now);
            if next > self.ends_at {
                break;
            }
            self.let_time_pass();
        }
        let broken = self.host.history.is_broken();
        for client in self.clients.iter().filter(|_| !broken) {
            for mine in client.jobs.iter().filter(|mine| !mine.told) {
                let what = format!("client {} waits for job {}", client.number, mine.job);
                self.host.history.hangs(what);
            }
        }
        self.host.history.verdict()
    }

    /// One round of everything that can happen at this moment.
    fn step(&mut self) -> bool {
        let mut moved = self.host.run_processes();
        moved |= self.connect();
        for client in &mut self.clients {
            moved |= client.run(&mut self.host);
        }
        moved |= self.transmit();
        moved |= self.deliver();
        if let Some(supervisor) = &mut self.supervisor {
            match supervisor.run(&mut self.host) {
                Ok(more) => moved |= more,
                Err(_) => {
                    self.supervisor_dies();
                    return true;
                }
            }
        }
        moved |= self.transmit();
        self.clear();
        moved
    }

    fn let_time_pass(&mut self) {
        let now = self.host.now;
        for client in &mut self.clients {
            if let Some((_, connection)) = &mut client.link {
                connection.handle_timeout(now);
            }
        }
        for conversation in self.supervisor.iter_mut().flat_map(|s| s.conversations.values_mut()) {
            conversation.connection.handle_timeout(now);
        }
        if self.guards_at.is_some_and(|at| at <= now) {
            self.guards_at = None;
            let left: Vec<u32> = self.host.processes.keys().copied().collect();
            left.into_iter().for_each(|pid| self.host.told_to_end(pid, true));
        }
        while self.faults.first().is_some_and(|(at, _)| *at <= now) {
            let (_, fault) = self.faults.remove(0);
            self.fault(fault);
        }
    }

    fn next(&self) -> Option<Instant> {
        let now = self.host.now;
        let of_clients = self.clients.iter().filter_map(|client| client.next_due(now));
        let of_links = self.links.values().filter_map(Link::next).filter(|at| *at > now);
        let of_supervisor = self.supervisor.iter().filter_map(|s| s.next_due(now));
        let of_faults = self.faults.first().map(|(at, _)| *at);
        of_clients
            .chain(of_links)
            .chain(of_supervisor)
            .chain(of_faults)
            .chain(self.guards_at)
            .chain(self.host.next_wake())
            .min()
    }

    /// Clients that want to connect do, or learn that they can't.
    fn connect(&mut self) -> bool {
        let mut moved = false;
        for at in 0..self.clients.len() {
            let due = self.clients[at].connects_at.is_some_and(|at| at <= self.host.now);
            if self.clients[at].gone || !due {
                continue;
            }
            moved = true;
            let up = self.host.now >= self.listens_at && self.guards_at.is_none();
            if up && self.supervisor.is_none() {
                self.supervisors += 1;
                self.supervisor = Supervisor::begin(&mut self.host, self.supervisors).ok();
            }
            let client = &mut self.clients[at];
            let Some(supervisor) = self.supervisor.as_mut().filter(|_| up) else {
                client.failed_to_connect(&mut self.host);
                continue;
            };
            let link = self.next_link;
            self.next_link += 1;
            self.links.insert(link, Link::new(&mut self.host.rng));
            supervisor.accept(&mut self.host, link);
            client.connected(&mut self.host, link);
        }
        moved
    }

    /// What the connections have to send goes onto the links.
    fn transmit(&mut self) -> bool {
        let Self { host, supervisor, links, clients, .. } = self;
        let mut moved = false;
        let of_clients = clients.iter_mut().filter_map(|client| client.link.as_mut());
        let up = of_clients.map(|(link, connection)| (*link, true, connection));
        let down = supervisor.iter_mut().flat_map(|s| s.conversations.iter_mut());
        let down = down.map(|(link, c)| (*link, false, &mut c.connection));
        for (link, upwards, connection) in up.chain(down) {
            let mut out = std::collections::VecDeque::new();
            connection.poll_transmit(&mut out, 1 + host.rng.index(100_000));
            let Some(link) = links.get_mut(&link) else { continue };
            let direction = if upwards { &mut link.up } else { &mut link.down };
            let bytes: Vec<u8> = out.into_iter().flatten().collect();
            moved |= !bytes.is_empty();
            direction.send(host.now, &mut host.rng, bytes);
        }
        moved
    }

    /// What has arrived goes into the connections.
    fn deliver(&mut self) -> bool {
        let Self { host, supervisor, links, clients, .. } = self;
        let mut moved = false;
        for client in clients.iter_mut() {
            let Some((link, connection)) = &mut client.link else { continue };
            let Some(link) = links.get_mut(link) else { continue };
            if let Some(bytes) = link.down.receive(host.now, &mut host.rng) {
                connection.handle_input(host.now, &bytes);
                moved = true;
            } else if link.down.has_ended(host.now) && !connection.is_closed() {
                connection.handle_eof(host.now);
                moved = true;
            }
        }
        for (link, conversation) in supervisor.iter_mut().flat_map(|s| s.conversations.iter_mut()) {
            let connection = &mut conversation.connection;
            let Some(link) = links.get_mut(link) else { continue };
            if let Some(bytes) = link.up.receive(host.now, &mut host.rng) {
                connection.handle_input(host.now, &bytes);
                moved = true;
            } else if link.up.has_ended(host.now) && !connection.is_closed() {
                connection.handle_eof(host.now);
                moved = true;
            }
        }
        moved
    }

    /// Ends that are closed on both sides are forgotten; an end that closes is told to the other.
    fn clear(&mut self) {
        let now = self.host.now;
        for (number, link) in &mut self.links {
            let client = self.clients.iter().find_map(|client| {
                client.link.as_ref().filter(|(link, _)| link == number).map(|(_, c)| c)
            });
            if client.is_none_or(afar_proto::Connection::is_closed) {
                link.up.close(now);
            }
            let supervisor = self.supervisor.as_ref();
            let conversation = supervisor.and_then(|s| s.conversations.get(number));
            if conversation.is_none_or(|c| c.connection.is_closed()) {
                link.down.close(now);
            }
        }
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.conversations.retain(|_, conversation| !conversation.over);
        }
        let used = |number: &u64| {
            let client =
                self.clients.iter().any(|c| c.link.as_ref().is_some_and(|l| l.0 == *number));
            let supervisor = self.supervisor.as_ref();
            client || supervisor.is_some_and(|s| s.conversations.contains_key(number))
        };
        self.links.retain(|number, _| used(number));
    }

    // Faults.

    fn fault(&mut self, fault: Fault) {
        let Self { host, links, .. } = self;
        match fault {
            Fault::Cut => {
                let at = host.rng.index(links.len().max(1));
                if let Some((number, link)) = links.iter_mut().nth(at) {
                    link.cut(host.now, &mut host.rng);
                    host.note(format_args!("link {number} is cut"));
                }
            }
            Fault::ListenerDies => {
                let pause = host.rng.duration(Duration::from_secs(60));
                host.note(format_args!("nobody can connect for {pause:?}"));
                self.listens_at = host.now.after(pause);
            }
            Fault::SupervisorDies(0) if self.supervisor.is_some() => {
                host.note("the supervisor is killed");
                self.supervisor_dies();
            }
            Fault::SupervisorDies(left) => host.killed_in = Some(left),
            Fault::Upgrade => {
                if let Some(supervisor) = &mut self.supervisor {
                    supervisor.upgrade(host);
                }
            }
            Fault::PowerFails => self.power_fails(),
            Fault::JournalRots => host.rots = true,
            Fault::ClientVanishes => {
                let at = host.rng.index(self.clients.len());
                if !self.clients[at].gone {
                    self.clients[at].vanish(host);
                }
            }
        }
    }

    fn supervisor_dies(&mut self) {
        let Some(supervisor) = self.supervisor.take() else { return };
        for (at, plan) in self.host.plans.iter().enumerate() {
            if supervisor.has_written(&plan.spec.job) {
                // Its end is known; what was still to be told of its output is gone.
                self.host.history.excuse(at);
            } else {
                self.host.history.unwatched(at);
            }
        }
        if std::mem::take(&mut self.host.rots) {
            self.host.rot();
        }
        self.host.close_pipes();
        let pause = self.host.rng.duration(Duration::from_secs(3));
        self.guards_at = Some(self.host.now.after(pause + Duration::from_micros(1)));
    }

    fn power_fails(&mut self) {
        self.host.note("the power fails");
        self.supervisor_dies();
        let Self { host, .. } = self;
        for at in 0..host.plans.len() {
            host.history.rotten(at);
        }
        let all: Vec<u32> = host.processes.keys().copied().collect();
        all.into_iter().for_each(|pid| host.told_to_end(pid, true));
        host.processes.clear();
        // What was not on the disk yet is gone, at any byte; some file systems leave zeros there.
        let kept = host.rng.index(host.journal.len() + 1);
        host.journal.truncate(kept);
        if host.rng.percent(30) {
            host.journal.resize(kept + 100, 0);
        }
        for link in self.links.values_mut() {
            (link.up.silent, link.down.silent) = (true, true);
        }
        host.boot += 1;
        host.booted_at = host.now;
        self.listens_at = host.now.after(host.rng.duration(Duration::from_secs(60)));
    }
}

/// What goes wrong and when. What was broken on purpose is soon met in the weather that it fears.
fn faults(rng: &mut Rng, begins: Instant, feared: Option<Sabotage>) -> Vec<(Instant, Fault)> {
    let mut faults = Vec::new();
    let some = |rng: &mut Rng, chance: u64, most: u64| {
        if rng.percent(chance) { rng.between(1, most) } else { 0 }
    };
    let or = |sabotage: Sabotage, chance: u64| if feared == Some(sabotage) { 100 } else { chance };
    let dies = or(Sabotage::VouchesForAll, or(Sabotage::SealsBeforeWriting, 25));
    let counts = [
        (some(rng, 70, 12), Fault::Cut),
        (some(rng, 20, 3), Fault::ListenerDies),
        (some(rng, 15, 3), Fault::SupervisorDies(0)),
        (some(rng, dies, 3), Fault::SupervisorDies(1)),
        (some(rng, or(Sabotage::ForgetsAtUpgrade, 20), 3), Fault::Upgrade),
        (some(rng, 6, 2), Fault::PowerFails),
        (some(rng, or(Sabotage::VouchesForAll, 6), 2), Fault::JournalRots),
        (some(rng, 15, 2), Fault::ClientVanishes),
    ];
    for (count, fault) in counts {
        for _ in 0..count {
            // Half of them early, where everything begins.
            let early = rng.percent(50);
            let weather = u64::try_from(WEATHER.as_micros()).expect("minutes");
            let later = Duration::from_micros(rng.below(weather));
            let at = begins.after(if early { rng.duration(WEATHER) } else { later });
            let moment = u32::try_from(rng.between(1, 12)).expect("small");
            faults.push((
                at,
                match fault {
                    Fault::SupervisorDies(1) => Fault::SupervisorDies(moment),
                    other => other,
                },
            ));
        }
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn plan(rng: &mut Rng, job: usize, large: bool) -> Plan {
    let id = JobId::new(&format!("j{job}")).expect("an id");
    let stdin = rng.percent(40);
    let detach = !stdin && rng.percent(10);
    let seconds = |rng: &mut Rng| rng.between(1, 100) * 1_000;
    let spec = OpenSpec {
        stdin,
        detach,
        on_disconnect: [None, None, Some(OnDisconnect::Keep), Some(OnDisconnect::Kill)]
            [rng.index(4)],
        overflow: [Overflow::Block, Overflow::Block, Overflow::Drop, Overflow::Kill][rng.index(4)],
        keep_s: rng.percent(10).then_some(60),
        timeout_ms: rng.percent(15).then(|| seconds(rng)),
        ..OpenSpec::new(id, Command::Script(format!("job {job}").as_str().into()))
    };
    let stdin_bytes = if stdin { rng.below(if large { 400_000 } else { 20_000 }) } else { 0 };
    let program = program(rng, stdin, large);
    Plan { spec, program, stdin_bytes, ignores_term: rng.percent(30), fails: rng.percent(5) }
}

fn clients(host: &mut Host, begins: Instant, power: bool) -> Vec<Client> {
    let moment = |rng: &mut Rng, most: u64| begins.after(rng.duration(Duration::from_secs(most)));
    let mut of_clients: Vec<Vec<Mine>> = Vec::new();
    for job in 0..host.plans.len() {
        let mut mine = Mine::new(job, Way::Open, moment(&mut host.rng, 60));
        if host.rng.percent(20) {
            let whim = [
                Whim::Close,
                Whim::Detach,
                Whim::Stop(Stream::Stdout),
                Whim::Stop(Stream::Stderr),
                Whim::Kill,
            ][host.rng.index(5)];
            mine = mine.with_whim(moment(&mut host.rng, 100), whim);
        }
        // Some clients have several jobs on one connection.
        match of_clients.last_mut().filter(|_| host.rng.percent(40)) {
            Some(jobs) => jobs.push(mine),
            None => of_clients.push(vec![mine]),
        }
        if host.plans[job].spec.overflow != Overflow::Block {
            host.history.excuse(job);
        }
    }
    let ids: BTreeSet<&str> = host.plans.iter().map(|plan| plan.spec.job.as_str()).collect();
    // Whoever comes by an id alone must mean one job.
    let others = if ids.len() < host.plans.len() { 0 } else { host.plans.len() };
    for job in 0..others {
        if host.rng.percent(25) {
            // Looks for a while.
            let watch = Way::Attach(AttachMode::Watch);
            let mine = Mine::new(job, watch, moment(&mut host.rng, 120));
            let until = moment(&mut host.rng, 600).after(Duration::from_secs(120));
            host.history.joins(of_clients.len(), job);
            of_clients.push(vec![mine.with_whim(until, Whim::Detach)]);
        }
        let again = !power && host.rng.percent(15);
        if again || host.rng.percent(10) {
            // Another one takes it, or asks for the same once more.
            let way = if again { Way::Open } else { Way::Attach(AttachMode::Take) };
            let mine = Mine::new(job, way, moment(&mut host.rng, 120));
            host.history.joins(of_clients.len(), job);
            host.history.excuse(job);
            of_clients.push(vec![mine]);
        }
    }
    let numbered = of_clients.into_iter().enumerate();
    numbered.map(|(number, jobs)| Client::new(number, jobs, host)).collect()
}
