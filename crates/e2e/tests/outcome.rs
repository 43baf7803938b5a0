//! The end of a command: its exit status here, its outcome in `--result`, and no mistaking one for
//! another.

use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use afar_e2e::{Digest, Host, Output, Sink};
use serde_json::{Value, json};

/// The keys of the outcome, in order.
const KEYS: [&str; 14] = [
    "job",
    "target",
    "phase",
    "started",
    "end",
    "started_at",
    "wall_s",
    "user_s",
    "sys_s",
    "max_rss_bytes",
    "streams",
    "streams_left_open",
    "reconnects",
    "error",
];

/// Runs it with `--result`; gives the output and the outcome.
#[track_caller]
fn run(host: &Host, arguments: &[&str]) -> (Output, Value) {
    let path = host.file("result");
    let words = ["--result", path.to_str().expect("the rig's paths are UTF-8")];
    let output = host.run(words.iter().chain(arguments)).output();
    let outcome = host.json("result");
    let keys: Vec<&String> = outcome.as_object().expect("it is an object").keys().collect();
    for key in KEYS {
        assert!(keys.contains(&&key.to_owned()), "{key} is missing: {outcome}");
    }
    fs::remove_file(path).expect("it was just read");
    (output, outcome)
}

#[track_caller]
fn assert_not_started(outcome: &Value, phase: &str, reason: &str) {
    assert_eq!(outcome["started"], "no", "{outcome}");
    assert_eq!(outcome["phase"], phase, "{outcome}");
    assert_eq!(outcome["end"], json!({"kind": "not_started", "reason": reason}), "{outcome}");
    for key in ["started_at", "wall_s", "user_s", "sys_s", "max_rss_bytes", "streams"] {
        assert!(outcome[key].is_null(), "{key}: {outcome}");
    }
    assert!(outcome["error"].is_string(), "{outcome}");
}

#[test]
fn exit_statuses_arrive_as_they_are() {
    let host = Host::start();
    for code in [0, 1, 2, 3, 42, 124, 125, 126, 127, 128, 129, 130, 137, 143, 254, 255] {
        let (output, outcome) = run(&host, &["-c", &format!("exit {code}")]);
        assert_eq!(output.expect_code(code).error_text(), "");
        assert_eq!(outcome["end"], json!({"kind": "exited", "code": code}));
        assert_eq!((&outcome["phase"], &outcome["started"]), (&json!("done"), &json!("yes")));
    }
}

#[test]
fn the_outcome_tells_what_the_command_wrote_and_took() {
    let host = Host::start();
    let before = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; printf hello; printf no >&2";
    let (output, outcome) = run(&host, &["-c", script]);
    assert_eq!(output.success().text(), "hello");
    for (stream, text) in [("stdout", "hello"), ("stderr", "no")] {
        let expected = Digest::of(text.as_bytes());
        assert_eq!(
            outcome["streams"][stream],
            json!({"bytes": expected.bytes, "blake3": expected.blake3, "complete": true})
        );
    }
    assert_eq!(outcome["target"], host.target());
    assert_eq!(outcome["streams_left_open"], false);
    assert_eq!(outcome["reconnects"], 0);
    assert!(outcome["error"].is_null());
    let number = |key: &str| outcome[key].as_f64().unwrap();
    assert!(number("wall_s") > 0.0 && number("wall_s") < 60.0, "{outcome}");
    assert!(number("user_s") + number("sys_s") > 0.0, "{outcome}");
    assert!(number("max_rss_bytes") > 100_000.0, "{outcome}");
    // RFC 3339 in UTC with microseconds, and not before this test began.
    let started_at = outcome["started_at"].as_str().unwrap();
    assert_eq!(started_at.len(), "2026-11-22T10:00:00.000000Z".len(), "{started_at}");
    let output = afar_e2e::Run::new("date", ["-u", "-d", started_at, "+%s"]).output();
    let seconds: i64 = output.success().text().trim_end().parse().unwrap();
    assert!((before..before + 60).contains(&seconds), "{started_at}");
}

#[test]
fn fault_49_a_signal_is_told_apart_from_an_exit_with_that_number() {
    let host = Host::start();
    for (number, name) in [(11, "SIGSEGV"), (9, "SIGKILL"), (15, "SIGTERM"), (6, "SIGABRT")] {
        let script = format!("ulimit -c 0; kill -{number} $$");
        let (output, outcome) = run(&host, &["--", "sh", "-c", &script]);
        assert!(output.expect_code(128 + number).error_text().contains(name), "{output:?}");
        let end = &outcome["end"];
        assert_eq!(
            (&end["kind"], &end["signal"], &end["name"]),
            (&json!("signaled"), &json!(number), &json!(name))
        );
        assert_eq!(end["core"], false);
        let (output, outcome) = run(&host, &["-c", &format!("exit {}", 128 + number)]);
        assert_eq!(output.expect_code(128 + number).error_text(), "");
        assert_eq!(outcome["end"], json!({"kind": "exited", "code": 128 + number}));
    }
}

#[test]
fn fault_48_a_program_that_cannot_be_started_is_told_apart_from_one_that_ran() {
    let host = Host::start();
    let file = |name: &str, text: &str, mode: u32| {
        let path = host.write(name, text);
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let not_executable = file("plain", "#!/bin/sh\nexit 0\n", 0o644);
    let bad_interpreter = file("interpreter", "#!/no/such/interpreter\n", 0o755);
    let bad_format = file("format", "echo no shebang\n", 0o755);
    let directory = host.file("home").to_str().unwrap().to_owned();
    for (program, code, reason) in [
        ("/no/such/program", 127, "not_found"),
        ("afar-no-such-program", 127, "not_found"),
        (&not_executable, 126, "not_executable"),
        (&directory, 126, "not_executable"),
        (&bad_interpreter, 127, "bad_interpreter"),
        (&bad_format, 126, "bad_format"),
    ] {
        let (output, outcome) = run(&host, &["--", program]);
        assert_not_started(&outcome, "spawn", reason);
        let said = output.expect_code(code).error_text();
        assert!(said.contains("spawn") && said.contains("was not started"), "{said}");
        assert!(outcome["job"].is_string(), "{outcome}");
    }
    // Programs that exit with these numbers have run.
    for code in [126, 127] {
        let (output, outcome) = run(&host, &["--", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(output.expect_code(code).error_text(), "");
        assert_eq!(outcome["started"], "yes");
        assert_eq!(outcome["end"], json!({"kind": "exited", "code": code}));
    }
}

#[test]
fn a_working_directory_that_is_not_there_is_a_spawn_failure_of_its_own() {
    let host = Host::start();
    let (output, outcome) = run(&host, &["--cwd", "/no/such/directory", "--", "true"]);
    assert_not_started(&outcome, "spawn", "bad_cwd");
    assert!(output.expect_code(255).error_text().contains("/no/such/directory"));
    let (output, outcome) = run(&host, &["--cwd", "/etc/passwd", "--", "true"]);
    assert_not_started(&outcome, "spawn", "bad_cwd");
    assert_eq!(output.code(), 255);
}

#[test]
fn fault_45_arguments_that_the_kernel_does_not_take_are_refused_as_too_long() {
    let host = Host::start();
    // MAX_ARG_STRLEN is 128 KiB with the terminating NUL: this fits exactly …
    let longest = "x".repeat(128 * 1024 - 1);
    let run_long = |arguments: &[&str]| {
        let path = host.file("result");
        let words = ["--result", path.to_str().unwrap(), "--"];
        let run = host.run(words.iter().chain(arguments));
        let output = run.stdout_to(Sink::Digest).output();
        (output, host.json("result"))
    };
    let (output, outcome) = run_long(&["printf", "%s", &longest]);
    assert_eq!(output.success().digest, Some(Digest::of(longest.as_bytes())));
    assert_eq!(outcome["started"], "yes");
    // … while one byte more can't even be given to afar here: the same limit meets its own start.
    let mut command = std::process::Command::new("true");
    assert!(command.arg(format!("{longest}x")).spawn().is_err());
    // A variable counts its name and the `=` too, so a value that fits into an argument of afar's
    // own makes an entry that is too long there.
    let variable = format!("A={}", "x".repeat(128 * 1024 - 3));
    let (output, outcome) = run(&host, &["-e", &variable, "--", "true"]);
    assert_eq!(output.code(), 0, "{outcome}");
}

#[test]
fn fault_45_arguments_that_together_are_over_the_limit_there_are_refused_as_too_long() {
    // execve(2): a quarter of the stack's limit. The server's is an eighth of the usual one.
    let host = Host::builder().serve_through(&["prlimit", "--stack=1048576"]).start();
    let word = "x".repeat(100_000);
    let (output, outcome) = run(&host, &["--", "true", &word]);
    assert_eq!(output.code(), 0, "{outcome}");
    let (output, outcome) = run(&host, &["--", "true", &word, &word, &word]);
    assert_not_started(&outcome, "spawn", "too_long");
    assert_eq!(output.code(), 255);
    assert!(output.error_text().contains("was not started"), "{output:?}");
}

#[test]
fn fault_47_a_variable_without_a_name_is_refused_before_anything_starts() {
    let host = Host::start();
    for variable in ["=x", "", "NAME"] {
        let output = host.run(["-e", variable, "--", "echo", "started"]).output();
        assert_eq!(output.expect_code(255).text(), "");
    }
}

#[test]
fn a_time_limit_is_124_whatever_the_command_answers() {
    let host = Host::start();
    let (output, outcome) = run(&host, &["--timeout", "200ms", "--", "sleep", "300"]);
    assert_eq!(output.code(), 124);
    assert_eq!(outcome["end"], json!({"kind": "timeout"}));
    assert_eq!(outcome["phase"], "done");
    assert!(output.elapsed < Duration::from_secs(4), "{output:?}");
    // TERM made it exit 0.
    let script = "trap 'exit 0' TERM; sleep 300 & wait";
    let (output, outcome) = run(&host, &["--timeout", "200ms", "-c", script]);
    assert_eq!(output.code(), 124, "{output:?}");
    assert_eq!(outcome["end"], json!({"kind": "timeout"}));
    // In time.
    let (output, outcome) = run(&host, &["--timeout", "50s", "--", "true"]);
    assert_eq!((output.code(), &outcome["end"]["kind"]), (0, &json!("exited")));
    host.wait_until_idle();
}

#[test]
fn an_address_where_nobody_listens_is_a_failure_to_connect() {
    let host = Host::start();
    // A port that was free a moment ago, and that nobody else is told to use.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let result = host.file("result");
    let words = ["--result", result.to_str().unwrap(), "--", "true"];
    let output = host.run_at(&host.target_via(address), words).output();
    let outcome = host.json("result");
    assert_not_started(&outcome, "connect", "unreachable");
    assert!(outcome["job"].is_null());
    let said = output.expect_code(255).error_text();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("connect") && said.contains("was not started"), "{said}");
}

#[test]
fn a_server_that_never_answers_is_given_up_after_the_connect_timeout() {
    let host = Host::start();
    // It accepts, in the kernel's backlog, and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = host.target_via(listener.local_addr().unwrap());
    let words = ["--connect-timeout", "300ms", "--", "true"];
    let output = host.run_at(&target, words).output();
    assert!(output.expect_code(255).error_text().contains("was not started"), "{output:?}");
    assert!(output.elapsed < Duration::from_secs(5), "{output:?}");
}

#[test]
fn the_result_replaces_a_file_whole_or_goes_where_it_is_told() {
    let host = Host::start();
    let older = "older and much longer than anything ".repeat(1000);
    let path = host.write("result", &older);
    let mut opened = fs::File::open(&path).unwrap();
    let (_, outcome) = run(&host, &["--", "true"]);
    assert_eq!(outcome["end"]["code"], 0);
    // Whoever had it open still reads the old one: it was replaced, not overwritten.
    let mut text = String::new();
    opened.read_to_string(&mut text).unwrap();
    assert_eq!(text, older);
    // `-` is stdout, behind the output.
    let output = host.run(["--result", "-", "--", "echo", "out"]).output();
    let (first, rest) = output.success().text().split_once('\n').unwrap();
    assert_eq!(first, "out");
    let outcome: Value = serde_json::from_str(rest).unwrap();
    assert_eq!(outcome["streams"]["stdout"]["bytes"], 4);
    // A descriptor of the caller's.
    let script = format!(
        "exec {} run {} {} --result /dev/fd/3 -- echo out 3>{}",
        afar_e2e::afar().display(),
        host.client_options()
            .iter()
            .map(|word| word.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" "),
        host.target(),
        host.file("third").display(),
    );
    let output = host.program("sh", ["-c", &script]).output();
    assert_eq!(output.success().text(), "out\n");
    assert_eq!(host.json("third")["end"]["code"], 0);
}

#[test]
fn a_result_that_cannot_be_written_is_found_before_anything_starts() {
    let host = Host::start();
    let witness = host.file("witness");
    let words = ["--result", "/no/such/directory/result", "--", "touch"];
    let output = host.run(words.iter().copied().chain([witness.to_str().unwrap()])).output();
    let said = output.expect_code(255).error_text();
    assert!(said.starts_with("afar: resolve: cannot write the result to /no/such"), "{output:?}");
    assert!(said.ends_with("the command was not started\n"), "{output:?}");
    assert!(!witness.exists());
}

#[test]
fn quiet_is_silent_about_what_a_command_did() {
    let host = Host::start();
    let timeout = ["-q", "--timeout", "50ms", "--", "sleep", "300"];
    assert_eq!(host.run(timeout).output().expect_code(124).error_text(), "");
    let killed = host.run(["-q", "-c", "kill -KILL $$"]).output();
    assert_eq!(killed.expect_code(137).error_text(), "");
    // And not about what afar could not do.
    let failed = host.run(["-q", "--", "/no/such/program"]).output();
    assert!(failed.expect_code(127).error_text().starts_with("afar: spawn: "), "{failed:?}");
}

#[test]
fn a_job_has_the_id_that_it_was_given() {
    let host = Host::start();
    let (output, outcome) = run(&host, &["--id", "nightly.1", "-c", "printf %s $AFAR_JOB_ID"]);
    assert_eq!(output.success().text(), "nightly.1");
    assert_eq!(outcome["job"], "nightly.1");
    let (output, outcome) = run(&host, &["-c", "printf %s $AFAR_JOB_ID"]);
    assert_eq!(outcome["job"], output.success().text());
}
