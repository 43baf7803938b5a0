//! Upgrades in place: the supervisor becomes another program, and its jobs notice nothing.

use std::path::PathBuf;

use afar_e2e::raw::{Key, RawClient, RawFrame, data, frame, open, spec, window};
use afar_e2e::{Host, Process};
use afar_proto::frame::Kind;
use afar_proto::message::OpenSpec;
use afar_proto::seal::Sealer;
use rustix::process::Signal;
use serde_json::{Value, json};

fn log_in(host: &Host) -> RawClient {
    RawClient::log_in(host.address(), &Key::of_file(&host.key()), host.user())
}

/// Attaches to a job on channel 1, from this offset of its stdout on.
#[track_caller]
fn attach(client: &mut RawClient, job: &str, from: u64) -> Value {
    let wanted = json!({"job": job, "streams": {"stdout": from, "stderr": 0}});
    let attach = frame(Kind::Attach.to_byte(), 0, 1, wanted.to_string().as_bytes());
    client.link.send(&[attach, window(1, 1, 1 << 20), window(1, 2, 1 << 20)].concat());
    client.link.expect(Kind::Attached).json()
}

/// The bytes of a DATA, behind its offset and its time.
fn bytes(frame: &RawFrame) -> &[u8] {
    frame.payload.get(16..).expect("it begins with an offset and a time")
}

/// A job that says something, waits for a line, says it again, and ends with 7.
fn asker(id: &str) -> OpenSpec {
    let script = "echo before; read line; echo $line $PPID; exit 7";
    OpenSpec { stdin: true, ..spec(id, &["sh", "-c", script]) }
}

/// Starts it; returns what it has said.
fn begin(client: &mut RawClient, id: &str) {
    client.open(1, &asker(id));
    client.link.expect(Kind::Opened);
    assert_eq!(bytes(&client.link.expect(Kind::Data)), b"before\n");
}

/// Has it end, and holds its seal against all that it has said.
#[track_caller]
fn finish(client: &mut RawClient, supervisor: u32) {
    client.link.send(&data(1, 0, 0, b"after\n"));
    let expected = format!("after {supervisor}\n");
    assert_eq!(bytes(&client.link.expect(Kind::Data)), expected.as_bytes());
    let seal = client.link.expect(Kind::Seal).json();
    assert_eq!(seal["end"], json!({"kind": "exited", "code": 7}));
    let mut sealer = Sealer::new();
    sealer.update(b"before\n");
    sealer.update(expected.as_bytes());
    let whole = serde_json::to_value(sealer.seal(true)).expect("a seal is JSON");
    assert_eq!(seal["streams"]["stdout"]["blake3"], whole["blake3"]);
}

#[test]
fn a_job_goes_on_over_upgrades_with_its_process_its_pipes_and_its_seal() {
    let host = Host::start();
    let mut client = log_in(&host);
    begin(&mut client, "kept");
    let supervisor = host.supervisor().unwrap();
    for _ in 0..3 {
        supervisor.signal(Signal::HUP);
        assert_eq!(client.link.expect_goodbye().0, "restart");
        client = log_in(&host);
        let attached = attach(&mut client, "kept", 7);
        assert_eq!(
            (&attached["streams"]["stdout"]["offset"], &attached["stdin"]),
            (&json!(7), &json!(0))
        );
    }
    assert!(host.log().contains("went on after an upgrade"), "{}", host.log());
    assert_eq!(host.supervisor().unwrap().pid(), supervisor.pid());
    finish(&mut client, supervisor.pid());
    // It was started once, and is known still.
    client.link.send(&open(3, &asker("kept")));
    client.link.expect(Kind::Attached);
    let other = OpenSpec { stdin: false, ..asker("kept") };
    client.link.send(&open(5, &other));
    assert_eq!(client.link.expect(Kind::Refused).json()["reason"], "conflict");
    host.wait_until_idle();
}

#[test]
fn afar_serve_upgrade_tells_the_supervisor() {
    let host = Host::start();
    let output = host.afar(["serve", "--upgrade"]).output();
    assert!(output.expect_code(0).error_text().contains("no supervisor runs"), "{output:?}");
    let mut client = log_in(&host);
    begin(&mut client, "told");
    let supervisor = host.supervisor().unwrap();
    let output = host.afar(["serve", "--upgrade"]).output();
    let said =
        format!("(process {}) goes on as afar {}", supervisor.pid(), env!("CARGO_PKG_VERSION"));
    assert!(output.expect_code(0).error_text().contains(&said), "{output:?}");
    assert!(host.log().contains("went on after an upgrade"), "{}", host.log());
    assert_eq!(client.link.expect_goodbye().0, "restart");
    let mut client = log_in(&host);
    attach(&mut client, "told", 7);
    finish(&mut client, supervisor.pid());
}

/// What the next command of a session says, run by its shell.
#[track_caller]
fn in_session(host: &Host, script: &str) -> String {
    host.run(["--session", "s", "-c", script]).output().success().text().to_owned()
}

#[test]
fn a_session_goes_on_over_an_upgrade_with_its_shell() {
    let host = Host::start();
    let set = "cd /usr; kept=1; f() { echo f $kept $PWD $?; }; echo $$; false";
    let output = host.run(["--session", "s", "-c", set]).output();
    let shell = output.expect_code(1).text().to_owned();
    for _ in 0..2 {
        host.afar(["serve", "--upgrade"]).output().success();
        assert_eq!(
            in_session(&host, "f; echo $$; false || true; kept=$((kept))"),
            format!("f 1 /usr {}\n{shell}", 1)
        );
        host.run(["--session", "s", "-c", "false"]).output().expect_code(1);
    }
    // One whose shell has ended meanwhile says so.
    let shell = shell.trim().parse().expect("a number");
    Process::open(shell).expect("it is there").kill();
    host.afar(["serve", "--upgrade"]).output().success();
    let result = host.file("result");
    let words = ["--session", "s", "--result", result.to_str().unwrap(), "-c", "echo $kept"];
    assert_eq!(host.run(words).output().success().text(), "\n");
    assert_eq!(host.json("result")["session_restarted"], true);
}

#[test]
fn an_upgrade_waits_for_a_command_of_a_session_and_says_so() {
    let host = Host::start();
    let (runs, go) = (host.fifo("runs"), host.fifo("go"));
    let script = format!("echo >{}; read x <{}; echo done", runs.word(), go.word());
    let client = host.run(["--session", "s", "-c", &script]).spawn();
    let _ = runs.line();
    let told = host.afar(["serve", "--upgrade"]).output();
    assert!(told.expect_code(255).error_text().contains("not upgraded yet"), "{told:?}");
    assert!(!host.log().contains("goes on as the new program"), "{}", host.log());
    go.release();
    assert_eq!(client.wait().success().text(), "done\n");
    // It comes by itself, and the next one is another.
    host.afar(["serve", "--upgrade"]).output().success();
    assert!(host.log().contains("went on after an upgrade"), "{}", host.log());
}

/// A host whose program is a copy that can be replaced.
fn host_of_a_copy() -> (Host, PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("the test's directory can be made");
    let copy = directory.path().join("afar");
    let script = format!("cp \"$1\" {0} && shift && exec {0} \"$@\"", copy.display());
    let host = Host::builder().serve_through(&["sh", "-c", &script, "sh"]).start();
    (host, copy, directory)
}

#[test]
fn a_program_that_can_not_go_on_is_not_executed_and_everything_goes_on() {
    let (host, copy, directory) = host_of_a_copy();
    let mut client = log_in(&host);
    begin(&mut client, "safe");
    let supervisor = host.supervisor().unwrap();
    let before = program_of(&supervisor);
    // One that refuses, one that is none, and none at all.
    let refusing = directory.path().join("refusing");
    std::fs::copy("/bin/false", &refusing).unwrap();
    let broken = directory.path().join("broken");
    std::fs::write(&broken, "no program").unwrap();
    for (program, said) in
        [(Some(refusing), "can't go on"), (Some(broken), "not upgraded"), (None, "not upgraded")]
    {
        match program {
            Some(program) => std::fs::rename(program, &copy).unwrap(),
            None => std::fs::remove_file(&copy).unwrap(),
        }
        supervisor.signal(Signal::HUP);
        assert_eq!(client.link.expect_goodbye().0, "restart");
        client = log_in(&host);
        attach(&mut client, "safe", 7);
        assert!(host.log().contains(said), "{}", host.log());
        let told = host.afar(["serve", "--upgrade"]).output();
        let told = told.expect_code(255).error_text().to_owned();
        assert!(told.contains("is not upgraded, everything goes on as it was: "), "{told}");
        assert_eq!(client.link.expect_goodbye().0, "restart");
        client = log_in(&host);
        attach(&mut client, "safe", 7);
    }
    assert_eq!(program_of(&supervisor), before);
    finish(&mut client, supervisor.pid());
}

/// The file that a process executes, by device and inode.
fn program_of(process: &Process) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let program = std::fs::metadata(format!("/proc/{}/exe", process.pid()));
    let program = program.expect("it runs");
    (program.dev(), program.ino())
}

#[test]
fn what_a_job_left_open_is_drained_over_an_upgrade() {
    // It must neither block nor meet a closed pipe.
    let host = Host::start();
    let left = host.fifo("left");
    let mut client = log_in(&host);
    let script = format!(
        "(read go <{}; head -c 300000 /dev/zero && echo over >{0}.over; sleep 300) & exit 0",
        left.word()
    );
    let over = host.fifo("left.over");
    client.open(1, &spec("left", &["sh", "-c", &script]));
    let seal = client.link.expect(Kind::Seal).json();
    assert_eq!(seal["streams_left_open"], true);
    let supervisor = host.supervisor().unwrap();
    supervisor.signal(Signal::HUP);
    assert_eq!(client.link.expect_goodbye().0, "restart");
    drop(log_in(&host));
    left.release();
    assert_eq!(over.line(), "over");
    for job in host.jobs() {
        if let Some(job) = Process::open(job.pid) {
            job.kill();
        }
    }
}

#[test]
fn output_on_the_disk_is_there_behind_an_upgrade_and_the_rest_follows() {
    let host = Host::start();
    let (went, go) = (host.fifo("went"), host.fifo("go"));
    let script = format!(
        "head -c 3000000 /dev/zero; echo >{}; read x <{}; head -c 2000000 /dev/zero; exit 5",
        went.word(),
        go.word()
    );
    let output = host.run(["-d", "-c", &script]).output();
    let job = output.success().text().trim().to_owned();
    // It has written more than memory has room for.
    let _ = went.line();
    let supervisor = host.supervisor().unwrap();
    for _ in 0..2 {
        supervisor.signal(Signal::HUP);
        // Waits until the next program lets it in.
        host.run(["--", "true"]).output().success();
    }
    go.release();
    let about = |command: &str| {
        let run =
            host.client_options().into_iter().fold(host.afar([command]), |run, word| run.arg(word));
        run.arg(&job).output()
    };
    about("wait").expect_code(5);
    assert_eq!(about("logs").success().stdout.len(), 5_000_000);
    assert!(host.log().contains("went on after an upgrade"), "{}", host.log());
}
