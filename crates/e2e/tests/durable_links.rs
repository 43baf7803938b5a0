//! Links that are cut, move and die while commands run over them: nothing ends, repeats or loses a byte.
//!
//! `AFAR_SOAK=1` runs the full size: 10,000 commands, and three streams of a gigabyte at a time, in each
//! kind of trouble.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use afar_e2e::{Digest, Direction, Home, Host, Proxy, Random, Run, Sink, Source};
use serde_json::Value;

/// The everyday size, or the full one.
fn size(everyday: u64, full: u64) -> u64 {
    if std::env::var_os("AFAR_SOAK").is_some() { full } else { everyday }
}

/// What befalls links and servers while commands run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Every link is cut.
    Cuts,
    /// The listener is killed, and another one is started in its place; every other time links are cut
    /// as well.
    KilledListeners,
    /// The supervisor becomes its program anew.
    Upgrades,
}

impl Trouble {
    const ALL: [Self; 3] = [Self::Cuts, Self::KilledListeners, Self::Upgrades];
}

/// Clients with a home of their own, whose links go through a proxy: they know nothing of what is done to
/// the server meanwhile.
struct Clients {
    home: Home,
    target: String,
}

impl Clients {
    fn run(&self, words: &[&str]) -> Run {
        let (key, known_hosts) = (self.home.key(), self.home.known_hosts());
        let options = ["-F", "/dev/null", "-i"].map(Into::into).into_iter();
        let options = options.chain([key, "--known-hosts".into(), known_hosts]);
        self.home.afar(["run"]).args(options).arg(&self.target).args(words)
    }
}

/// A server that its own clients reach through a proxy.
struct Rig {
    host: Host,
    proxy: Proxy,
    clients: Clients,
    random: Random,
}

impl Rig {
    fn start(seed: u64) -> Self {
        let (ours, clients) = (Home::new(), Home::new());
        let keys = [ours.key(), clients.key()].map(|key| Home::public_line(&key)).concat();
        let host = Host::builder_in(ours).authorized_keys(&keys).start();
        let proxy = Proxy::start(host.address());
        clients.trust(proxy.address(), &host.host_key());
        let clients = Clients { home: clients, target: host.target_via(proxy.address()) };
        // A supervisor vouches for nothing that is older than it is, less a margin of five seconds: a
        // request that is lost within that time is honestly unknown (`J-1.6`).
        clients.run(&["--", "sleep", "6"]).output().success();
        Self { host, proxy, clients, random: Random::new(seed) }
    }

    /// Has several threads do what `work` does, until all of them have; `trouble` comes meanwhile, at
    /// moments that the seed decides. Returns how often.
    fn while_in(
        &mut self,
        trouble: Trouble,
        within: Duration,
        threads: usize,
        work: impl Fn(&Clients) + Sync,
    ) -> u64 {
        let Self { host, proxy, clients, random } = self;
        let (at_work, all) = channel::<()>();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (at_work, work, clients) = (at_work.clone(), &work, &*clients);
                scope.spawn(move || {
                    work(clients);
                    drop(at_work);
                });
            }
            drop(at_work);
            let mut times = 0;
            while all.recv_timeout(within.mul_f64(fraction(random)))
                == Err(RecvTimeoutError::Timeout)
            {
                times += 1;
                befall(trouble, times, host, proxy);
            }
            times
        })
    }
}

fn fraction(random: &mut Random) -> f64 {
    let mut byte = [0];
    random.read_exact(&mut byte).expect("it has no end");
    f64::from(byte[0]) / 255.0
}

fn befall(trouble: Trouble, times: u64, host: &mut Host, proxy: &Proxy) {
    match trouble {
        Trouble::Cuts => proxy.cut(),
        Trouble::KilledListeners => {
            host.listener().kill();
            if times.is_multiple_of(2) {
                proxy.cut();
            }
            host.restart_listener();
            proxy.redirect(host.address());
        }
        Trouble::Upgrades => {
            let told = host.afar(["serve", "--upgrade"]).output();
            assert!(told.success().error_text().contains("goes on as afar"), "{told:?}");
        }
    }
}

fn verified(outcome: &Value) -> (&Value, &Value) {
    (&outcome["verified"], &outcome["phase"])
}

fn count(outcome: &Value) -> u64 {
    outcome["reconnects"].as_u64().expect("a number")
}

/// Says what a long run has shown, past the capturing of tests' output.
fn note(said: &str) {
    if std::env::var_os("AFAR_SOAK").is_some() {
        let _ = writeln!(std::io::stderr(), "{said}");
    }
}

/// Runs one command until it was started: a login that was cut before the request could have left says
/// that it was not. Returns the reconnects.
fn run_whole(clients: &Clients, id: &str, counts: &Path) -> u64 {
    let result = clients.home.file(id);
    let words = ["--id", id, "--result", result.to_str().expect("the rig's paths are UTF-8")];
    let script = format!("echo {id} >> {}; cat; echo out {id}", counts.display());
    loop {
        let run = clients.run(&[words.as_slice(), &["-c", &script]].concat());
        let output = run.stdin(format!("in {id}\n")).output();
        let outcome = clients.home.json(id);
        if outcome["started"] == "no" {
            continue;
        }
        assert_eq!(output.success().text(), format!("in {id}\nout {id}\n"));
        assert_eq!(verified(&outcome), (&"whole".into(), &"done".into()));
        std::fs::remove_file(&result).expect("it was read");
        return count(&outcome);
    }
}

#[test]
fn fault_55_65_67_commands_start_once_and_arrive_whole_whatever_happens_to_links_and_servers() {
    let mut rig = Rig::start(67);
    let commands = size(24, 10_000);
    for trouble in Trouble::ALL {
        let began = Instant::now();
        let counts = rig.host.file(format!("{trouble:?}"));
        let (next, reconnects) = (AtomicU64::new(0), AtomicU64::new(0));
        // Upgrades without a pause between them leave a supervisor no time to put jobs into its index.
        let full = if trouble == Trouble::Upgrades { 4000 } else { 500 };
        let times = rig.while_in(trouble, Duration::from_millis(size(250, full)), 4, |clients| {
            loop {
                // Of few commands it may be that none has met any trouble.
                let noticed = reconnects.load(Ordering::Relaxed) > 0;
                let enough = if noticed { commands } else { commands.saturating_mul(50) };
                let number = next.load(Ordering::Relaxed);
                if number >= enough {
                    return;
                }
                let taken = Ordering::Relaxed;
                if next.compare_exchange(number, number + 1, taken, taken).is_err() {
                    continue;
                }
                let again = run_whole(clients, &format!("{trouble:?}-{number}"), &counts);
                reconnects.fetch_add(again, Ordering::Relaxed);
            }
        });
        let (reconnects, commands) = (reconnects.into_inner(), next.into_inner());
        note(&format!(
            "{commands} commands, {times} {trouble:?}, {reconnects} reconnects, {:.0?}",
            began.elapsed()
        ));
        assert!(reconnects > 0, "{trouble:?}: nobody has noticed it");
        let text = std::fs::read_to_string(counts).expect("every start has written to it");
        let mut starts: BTreeMap<&str, u32> = BTreeMap::new();
        for line in text.lines() {
            *starts.entry(line).or_default() += 1;
        }
        assert_eq!(starts.len(), usize::try_from(commands).expect("it is small"));
        let twice: Vec<_> = starts.iter().filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "{trouble:?}: {twice:?}");
    }
    upgrades_succeeded(&rig.host);
}

/// There and back: the input and the output of one command. Gives the number of its reconnects.
fn stream_whole(clients: &Clients, name: &str, bytes: u64, expected: &Digest) -> u64 {
    let result = clients.home.file(name);
    let result = result.to_str().expect("the rig's paths are UTF-8");
    loop {
        let run = clients.run(&["--result", result, "--", "cat"]);
        let run = run.stdin_from(Source::Random { seed: 1, bytes }).stdout_to(Sink::Digest);
        let output = run.within(Duration::from_secs(size(60, 1800))).output();
        let outcome = clients.home.json(name);
        // A login that was cut is none.
        if outcome["started"] == "no" {
            continue;
        }
        assert_eq!(output.success().digest.as_ref(), Some(expected));
        assert_eq!(verified(&outcome), (&"whole".into(), &"done".into()));
        return count(&outcome);
    }
}

#[test]
fn fault_55_67_long_streams_arrive_whole_in_both_directions_whatever_happens() {
    let mut rig = Rig::start(1);
    let (bytes, streams) = (size(8 << 20, 1 << 30), 3);
    let expected = Digest::read(Random::new(1).take(bytes));
    for trouble in Trouble::ALL {
        let began = Instant::now();
        let (next, reconnects) = (AtomicU64::new(0), AtomicU64::new(0));
        let within = Duration::from_millis(size(250, 4000));
        let times = rig.while_in(trouble, within, streams, |clients| {
            // Of short streams it may be that none has met any trouble.
            for _ in 0..20 {
                let name = format!("{trouble:?}-{}", next.fetch_add(1, Ordering::Relaxed));
                let again = stream_whole(clients, &name, bytes, &expected);
                if reconnects.fetch_add(again, Ordering::Relaxed) + again > 0 {
                    return;
                }
            }
        });
        let (reconnects, streams) = (reconnects.into_inner(), next.into_inner());
        note(&format!(
            "{streams} streams of {bytes} bytes, {times} {trouble:?}, {reconnects} reconnects, {:.0?}",
            began.elapsed()
        ));
        assert!(reconnects > 0, "{trouble:?}: nobody has noticed it");
    }
    upgrades_succeeded(&rig.host);
}

#[track_caller]
fn upgrades_succeeded(host: &Host) {
    let log = host.log();
    assert!(log.contains("went on after an upgrade") && !log.contains("not upgraded"), "{log}");
}

#[test]
fn fault_55_70_a_job_goes_on_over_a_dead_listener_and_from_another_address() {
    let mut host = Host::start();
    let proxy = Proxy::start(host.address());
    host.trust(proxy.address(), &host.host_key());
    let target = host.target_via(proxy.address());
    let result = host.file("result");
    let result = result.to_str().expect("the rig's paths are UTF-8").to_owned();
    let run = host.run_at(&target, ["--result", &result, "-c", "echo one; cat; exit 6"]);
    let mut client = run.stdin_from(Source::Piped).spawn();
    assert_eq!(client.line().as_deref(), Some("one"));
    host.listener().kill();
    proxy.cut();
    client.write(b"two\n");
    host.restart_listener();
    proxy.come_from(Ipv4Addr::new(127, 0, 0, 2));
    proxy.redirect(host.address());
    assert_eq!(client.line().as_deref(), Some("two"));
    assert_eq!(client.wait().code(), 6);
    let outcome = host.json("result");
    assert!(outcome["reconnects"].as_u64() >= Some(1), "{outcome}");
    assert!(host.log().contains("127.0.0.2"), "{}", host.log());
}

#[test]
fn fault_68_a_start_whose_answer_is_lost_is_not_made_twice() {
    let host = Host::start();
    // As above: the supervisor has to be old enough to vouch for what it is asked again.
    host.run(["--", "sleep", "6"]).output().success();
    let proxy = Proxy::start(host.address());
    host.trust(proxy.address(), &host.host_key());
    let target = host.target_via(proxy.address());
    let count = host.file("count");
    let script = format!("echo x >> {}; echo done", count.display());
    // What goes up reaches the server, what comes down from the answer to the login on is held.
    let client = host.run_at(&target, ["-c", &script]).spawn();
    // The server's first flight is some hundred bytes; behind it the request leaves.
    proxy.wait_for(Direction::Down, 300);
    proxy.stall(Direction::Down);
    let deadline = afar_e2e::Deadline::after(afar_e2e::DEADLINE);
    while !count.exists() && !deadline.left().is_zero() {
        std::thread::yield_now();
    }
    proxy.cut();
    proxy.resume(Direction::Down);
    assert_eq!(client.wait().success().text(), "done\n");
    assert_eq!(std::fs::read_to_string(count).expect("it was started"), "x\n");
}

#[test]
fn fault_66_who_attaches_takes_the_job_over_and_the_other_is_told() {
    let host = Host::start();
    let run = host.run(["--id", "shared", "-c", "echo ready; cat; exit 4"]);
    let mut first = run.stdin_from(Source::Piped).spawn();
    assert_eq!(first.line().as_deref(), Some("ready"));
    let job = format!("{}/shar", host.target());
    let attach = |words: &[&str]| {
        let run = host.afar(["attach"]).args(host.client_options()).args(words).arg(&job);
        run.stdin_from(Source::Piped).spawn()
    };
    let watcher = attach(&["--watch"]);
    let mut second = attach(&[]);
    first.wait_for_stderr("was started");
    let told = first.wait();
    assert!(told.expect_code(255).error_text().contains("was started"), "{told:?}");
    second.write(b"mine\n");
    while second.line().as_deref() != Some("mine") {}
    second.close_stdin();
    assert_eq!(second.wait().code(), 4);
    assert_eq!(watcher.wait().code(), 4);
}
