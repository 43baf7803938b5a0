//! Links that are cut, move and die while commands run over them: nothing ends, repeats or loses a byte.
//!
//! `AFAR_SOAK=1` runs the full size: 10,000 commands, and streams of a gigabyte.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use afar_e2e::{Digest, Direction, Host, Proxy, Random, Sink, Source};
use serde_json::Value;

/// The everyday size, or the full one.
fn size(everyday: u64, full: u64) -> u64 {
    if std::env::var_os("AFAR_SOAK").is_some() { full } else { everyday }
}

/// Cuts every connection of a proxy at moments that a seed decides, until it is dropped.
struct Cutter {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Cutter {
    fn start(proxy: &Arc<Proxy>, seed: u64, within: Duration) -> Self {
        use std::io::Read as _;
        let (proxy, stop) = (Arc::clone(proxy), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut random = Random::new(seed);
            while !stopped.load(Ordering::Relaxed) {
                let mut byte = [0];
                random.read_exact(&mut byte).expect("it has no end");
                let wait = within.mul_f64(f64::from(byte[0]) / 255.0);
                std::thread::park_timeout(wait);
                proxy.cut();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is joined once");
        thread.thread().unpark();
        thread.join().expect("the cutter does not panic");
    }
}

fn verified(outcome: &Value) -> (&Value, &Value) {
    (&outcome["verified"], &outcome["phase"])
}

#[test]
fn fault_65_67_commands_over_links_that_are_cut_at_random_start_once_and_arrive_whole() {
    let host = Host::start();
    // A supervisor vouches for nothing that is older than it is, less a margin of five seconds: a
    // request that is lost within that time is honestly unknown (`J-1.6`).
    host.run(["--", "sleep", "6"]).output().success();
    let proxy = Arc::new(Proxy::start(host.address()));
    host.trust(proxy.address(), &host.host_key());
    let target = host.target_via(proxy.address());
    let counts = host.file("counts");
    let counts = counts.to_str().expect("the rig's paths are UTF-8");
    let commands = usize::try_from(size(60, 10_000)).expect("it is small");
    let next = AtomicUsize::new(0);
    let reconnects = AtomicUsize::new(0);
    let cutter = Cutter::start(&proxy, 67, Duration::from_millis(250));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= commands {
                        return;
                    }
                    let (id, result) = (format!("job-{number}"), host.file(format!("r{number}")));
                    let script = format!("echo {number} >> {counts}; cat; echo out {number}");
                    // A login that was cut before the request could have left says so.
                    loop {
                        let result = result.to_str().expect("the rig's paths are UTF-8");
                        let words = ["--id", &id, "--result", result, "-c", &script];
                        let run = host.run_at(&target, words).stdin(format!("in {number}\n"));
                        let output = run.output();
                        let outcome = host.json(&format!("r{number}"));
                        if outcome["started"] == "no" {
                            continue;
                        }
                        assert_eq!(output.success().text(), format!("in {number}\nout {number}\n"));
                        assert_eq!(verified(&outcome), (&"whole".into(), &"done".into()));
                        let times = outcome["reconnects"].as_u64().expect("a number");
                        let times = usize::try_from(times).expect("it is small");
                        reconnects.fetch_add(times, Ordering::Relaxed);
                        break;
                    }
                }
            });
        }
    });
    drop(cutter);
    assert!(reconnects.into_inner() > 0, "the cuts met nobody");
    let text = std::fs::read_to_string(counts).expect("every start has written to it");
    let mut starts: BTreeMap<&str, u32> = BTreeMap::new();
    for line in text.lines() {
        *starts.entry(line).or_default() += 1;
    }
    assert_eq!(starts.len(), commands);
    let twice: Vec<_> = starts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn fault_67_long_streams_over_links_that_are_cut_at_random_arrive_whole_in_both_directions() {
    let host = Host::start();
    host.run(["--", "true"]).output().success();
    let proxy = Arc::new(Proxy::start(host.address()));
    host.trust(proxy.address(), &host.host_key());
    let bytes = size(48 << 20, 1 << 30);
    let result = host.file("result");
    let result = result.to_str().expect("the rig's paths are UTF-8");
    let target = host.target_via(proxy.address());
    // There and back: the input and the output of one command.
    let run = host.run_at(&target, ["--result", result, "--", "cat"]);
    let run = run.stdin_from(Source::Random { seed: 1, bytes }).stdout_to(Sink::Digest);
    let mut running = run.within(Duration::from_secs(size(120, 1800))).spawn();
    for part in 1..4 {
        running.digest_until(bytes / 4 * part);
        proxy.cut();
    }
    let output = running.wait();
    let expected = Digest::read(std::io::Read::take(Random::new(1), bytes));
    assert_eq!(output.success().digest, Some(expected));
    let outcome = host.json("result");
    assert_eq!(verified(&outcome), (&"whole".into(), &"done".into()));
    assert!(outcome["reconnects"].as_u64() >= Some(2), "{outcome}");
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
    let before = host.run_at(&target, ["--", "true"]).output();
    before.success();
    let login = proxy.passed(Direction::Down);
    let client = host.run_at(&target, ["-c", &script]).spawn();
    // The server's first flight is some hundred bytes; behind it the request leaves.
    proxy.wait_for(Direction::Down, login + 300);
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
