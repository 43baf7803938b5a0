//! The commands about jobs that exist: what they print, and what they end with.

use afar_e2e::{Host, Output, Run};

fn about(host: &Host, words: &[&str]) -> Run {
    let (command, rest) = words.split_first().expect("a command is named");
    host.afar([command]).args(host.client_options()).args(rest)
}

/// A detached job's `TARGET/JOB`.
#[track_caller]
fn detached(host: &Host, words: &[&str]) -> String {
    let output = host.run(["-d"].iter().chain(words)).output();
    assert_eq!(output.success().error_text(), "");
    let line = output.text().strip_suffix('\n').expect("it ends with a newline").to_owned();
    assert!(line.starts_with(&format!("{}/", host.target())) && !line.contains('\n'), "{line}");
    line
}

#[track_caller]
fn one_line(output: &Output, text: &str) {
    let said = output.expect_code(255).error_text();
    assert!(said.contains(text) && said.lines().count() == 1, "{said}");
}

#[test]
fn a_detached_job_is_listed_shown_waited_for_and_forgotten() {
    let host = Host::start();
    let job = detached(&host, &["-c", "echo out; echo err >&2; cat; exit 7"]);
    assert_eq!(about(&host, &["wait", &job]).output().code(), 7);
    let shown = about(&host, &["logs", &job]).output();
    assert_eq!((shown.success().text(), shown.error_text()), ("out\n", "err\n"));
    let shown = about(&host, &["logs", "--stream", "stderr", "--range", "1-", &job]).output();
    assert_eq!((shown.success().text(), shown.error_text()), ("", "rr\n"));
    assert_eq!(about(&host, &["logs", "--range", "1-1", &job]).output().success().text(), "u");
    let attached = about(&host, &["attach", &job]).output();
    assert_eq!((attached.expect_code(7).text(), attached.error_text()), ("out\n", "err\n"));
    let id = job.rsplit_once('/').expect("there is a job").1.to_owned();
    let listed = about(&host, &["ps", "--json", "--state", "ended", &host.target()]).output();
    let line: serde_json::Value =
        serde_json::from_str(listed.success().text()).expect("one object, one line");
    assert_eq!((&line["job"], &line["state"]), (&id.into(), &"ended".into()));
    assert_eq!(line["end"]["code"], 7);
    let table = about(&host, &["ps", &host.target()]).output();
    assert!(table.success().text().contains("exit 7"), "{table:?}");
    about(&host, &["rm", &job]).output().success();
    one_line(&about(&host, &["logs", &job]).output(), "no job");
    one_line(&about(&host, &["rm", &job]).output(), "no job");
}

#[test]
fn a_job_is_ended_or_sent_a_signal_by_the_beginning_of_its_id() {
    let host = Host::start();
    let trap = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.1; done";
    let job = detached(&host, &["--id", "trapped-1", "-c", trap]);
    let other = detached(&host, &["--id", "trapped-2", "--", "sleep", "300"]);
    let mut follow = about(&host, &["logs", "-f", &job]).spawn();
    assert_eq!(follow.line().as_deref(), Some("ready"));
    one_line(&about(&host, &["kill", &job[..job.len() - 1]]).output(), "more than one job");
    one_line(&about(&host, &["rm", &job]).output(), "has not ended");
    about(&host, &["kill", "-s", "USR1", &job]).output().success();
    assert_eq!(follow.line().as_deref(), Some("got"));
    assert_eq!(follow.wait().code(), 0);
    assert_eq!(about(&host, &["wait", &job]).output().code(), 3);
    about(&host, &["kill", &other]).output().success();
    assert_eq!(about(&host, &["wait", &other]).output().code(), 130);
    host.wait_until_idle();
}

#[test]
fn the_same_id_is_the_same_job_and_another_command_is_a_conflict() {
    let host = Host::start();
    let count = host.file("count");
    let script = format!("echo x >> {}; echo done; exit 5", count.display());
    for _ in 0..2 {
        let run = host.run(["--keep", "1h", "--id", "nightly", "-c", &script]);
        assert_eq!(run.output().expect_code(5).text(), "done\n");
    }
    assert_eq!(std::fs::read_to_string(count).expect("it was started"), "x\n");
    one_line(&host.run(["--id", "nightly", "--", "true"]).output(), "not started");
}
