//! What is left of a supervisor that was killed: the truth, and nothing that runs on unseen.

use afar_e2e::{Host, Output, Process, process};

/// A command about a job.
fn about(host: &Host, command: &str, job: &str) -> Output {
    let run = host.afar([command]);
    let run = host.client_options().into_iter().fold(run, |run, word| run.arg(word));
    run.arg(job).output()
}

#[test]
fn fault_56_the_jobs_of_a_killed_supervisor_are_ended_with_their_trees_and_lost() {
    let host = Host::start();
    // One that ignores TERM, one that has left its session, one that has lost its parent.
    let ready = host.fifo("runs");
    let script = format!(
        "trap '' TERM; setsid sleep 300 & (sleep 301 &); echo >{}; while :; do sleep 302; done",
        ready.word()
    );
    let job = host.run(["-d", "-c", &script]).output().success().text().trim().to_owned();
    let _ = ready.line();
    // What an ended job has left behind goes on.
    host.script("setsid sleep 303 </dev/null >/dev/null 2>&1 &").output().success();
    let supervisor = host.supervisor().unwrap();
    supervisor.kill();
    // The next one starts when that is done.
    let lost = about(&host, "wait", &job);
    assert!(lost.expect_code(255).error_text().contains("was killed"), "{lost:?}");
    let left = host.jobs();
    assert!(left.len() == 1 && left[0].command == "sleep 303", "{left:?}");
    let log = host.log();
    assert!(log.contains("was ended by SIGKILL") && log.contains(", 0 are left"), "{log}");
    assert!(log.contains("belong to no unfinished job"), "{log}");
    Process::open(left[0].pid).unwrap().kill();
}

#[test]
fn fault_56_where_the_guardian_was_killed_too_the_next_supervisor_ends_the_trees() {
    let host = Host::start();
    let ready = host.fifo("runs");
    let script = format!(
        "trap '' TERM; (setsid sleep 301 &); echo >{}; while :; do sleep 302; done",
        ready.word()
    );
    let job = host.run(["-d", "-c", &script]).output().success().text().trim().to_owned();
    let _ = ready.line();
    let running = host.jobs();
    assert!(running.len() >= 3, "{running:?}");
    let supervisor = host.supervisor().unwrap();
    let guardian = process::entry(supervisor.pid()).unwrap().parent;
    Process::open(guardian).unwrap().kill();
    supervisor.kill();
    let lost = about(&host, "wait", &job);
    assert!(lost.expect_code(255).error_text().contains("was killed"), "{lost:?}");
    host.wait_until_idle();
}
