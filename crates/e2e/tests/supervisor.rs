//! The supervisor's own life: what it passes on to jobs, and how it ends.

use afar_e2e::Host;
use rustix::process::Signal;

#[test]
fn a_supervisor_that_is_told_to_end_ends_its_jobs_and_tells_their_clients() {
    let host = Host::start();
    let mut run = host.script("trap 'exit 9' TERM; echo ready; sleep 300 & wait").spawn();
    assert_eq!(run.line().as_deref(), Some("ready"));
    let supervisor = host.supervisor().unwrap();
    supervisor.signal(Signal::TERM);
    let output = run.wait();
    output.expect_code(255);
    assert!(output.error_text().contains("told to end"), "{}", output.error_text());
    supervisor.wait();
    assert!(host.jobs().is_empty(), "{:?}", host.jobs());
    // The next one finds, or makes, another.
    host.script("echo again").output().success();
}

#[test]
fn jobs_have_a_logins_umask_whatever_the_first_one_was_started_with() {
    let through = ["sh", "-c", "umask 077; exec \"$@\"", "sh"];
    let host = Host::builder().serve_through(&through).start();
    assert_eq!(host.script("umask").output().success().text().trim_start_matches('0'), "22\n");
}

#[test]
fn jobs_have_a_logins_niceness_whatever_the_first_one_was_started_with() {
    // Whoever may not be less nice again keeps it: as root, or with a limit of 20, one may.
    let host = Host::builder().serve_through(&["nice", "-n", "5"]).start();
    let may = rustix::process::geteuid().is_root()
        || rustix::process::getrlimit(rustix::process::Resource::Nice).current >= Some(20);
    assert_eq!(host.script("nice").output().success().text(), if may { "0\n" } else { "5\n" });
}
