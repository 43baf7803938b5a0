//! What a server does that has run out of something.

use std::io::Read as _;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use afar_e2e::{Account, DEADLINE, Deadline, Home, Host, can_make_accounts};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn fault_61_without_a_descriptor_whoever_comes_is_told_at_once_and_it_recovers() {
    let host = Host::builder().serve_through(&["prlimit", "--nofile=48"]).start();
    // They say nothing, and so they hold their descriptors.
    let connect = || TcpStream::connect(host.address()).unwrap();
    let mut silent: Vec<TcpStream> = (0..64).map(|_| connect()).collect();
    // So many at least are closed at once, and not when the others are, for their silence.
    let at_once = Deadline::after(Duration::from_secs(5));
    for _ in 48..64 {
        let descriptors: Vec<_> = silent.iter().map(AsFd::as_fd).collect();
        let closed = at_once.any_readable(&descriptors).expect("there is no room for it");
        let read = silent.swap_remove(closed).read(&mut [0]);
        assert!(matches!(read, Ok(0)) || read.is_err_and(|error| is_reset(&error)));
    }
    assert!(host.log().contains("cannot accept a connection"), "{}", host.log());
    // Each is waited for until the server has let go of it.
    silent.iter().for_each(|stream| stream.shutdown(Shutdown::Write).unwrap_or_default());
    for mut stream in silent {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let read = stream.read_to_end(&mut Vec::new());
        assert!(read.as_ref().map_or_else(is_reset, |_| true), "{read:?}");
    }
    host.script("echo back").output().success();
}

fn is_reset(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ConnectionReset
}

#[test]
fn fault_62_without_a_process_nothing_is_started_and_that_is_said() {
    // Nobody holds root to it.
    if !can_make_accounts() {
        return;
    }
    let account = Account::new();
    let host = Host::builder().serve_accounts().start();
    account.authorize(&Home::public_line(&host.key()));
    let target = host.target_of(&account);
    // From now on the supervisor, its parent, may start nothing.
    let limit = "prlimit --nproc=1 --pid $PPID && echo limited; exec sleep 1000";
    let mut runs = host.run_at(&target, ["-c", limit]).spawn();
    assert_eq!(runs.line().as_deref(), Some("limited"));
    let result = host.file("result");
    let options = ["--result", result.to_str().unwrap(), "--", "true"];
    let output = host.run_at(&target, options).output();
    let refused = output.expect_code(255).error_text();
    assert!(refused.contains("process"), "{refused}");
    let outcome = host.json("result");
    assert_eq!((&outcome["started"], &outcome["phase"]), (&json!("no"), &json!("spawn")));
    // What runs goes on.
    runs.process().signal(Signal::TERM);
    assert_eq!(runs.wait().code(), 143);
}

#[test]
fn fault_33_a_fork_bomb_is_held_by_its_limit_and_ended_whole() {
    // Nobody holds root to it.
    if !can_make_accounts() {
        return;
    }
    const LIMIT: usize = 24;
    let account = Account::new();
    // Whatever goes wrong, the machine is safe.
    let prlimit = ["prlimit", "--nproc=400"];
    let host = Host::builder().serve_accounts().serve_through(&prlimit).start();
    account.authorize(&Home::public_line(&host.key()));
    let target = host.target_of(&account);
    // Whoever finds no room waits for some, for ever if nobody ends them all.
    let bomb = "import os, time
while True:
    try:
        os.fork()
    except OSError:
        os.write(1, b'full\\n')
        time.sleep(0.1)";
    let pids = LIMIT.to_string();
    let options = ["--pids", &pids, "--timeout", "4s", "--kill-after", "300ms", "--"];
    let words = options.into_iter().chain(["python3", "-c", bomb]);
    let mut bombed = host.run_at(&target, words).spawn();
    assert_eq!(bombed.line().as_deref(), Some("full"));
    let mut most = 0;
    for _ in 0..3 {
        // Others are served meanwhile, this user's too.
        host.run_at(&target, ["--", "true"]).output().success();
        host.run(["--", "true"]).output().success();
        most = most.max(host.jobs().len());
    }
    assert!((LIMIT / 2..=LIMIT + 1).contains(&most), "{most} processes");
    let bombed = bombed.wait();
    assert_eq!(bombed.code(), 124, "{bombed:?}");
    host.wait_until_idle();
}
