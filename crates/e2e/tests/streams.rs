//! Bytes: every one arrives once and in order, whatever the size, the pace and who reads.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

use afar_e2e::{Digest, Host, Process, Proxy, Random, Run, Sink, Source};
use rustix::process::Signal;

const MIB: u64 = 1024 * 1024;

/// The most that a client, a listener or a supervisor may ever have resident, whatever passes
/// through: a window of 2 MiB a stream, buffers, and a debug build of the program. 24 MiB were
/// measured for the client of the gigabyte, less everywhere else.
const MEMORY_BYTES_MAX: u64 = 32 * MIB;

/// The longest that a stream may stand still while both ends are busy: a keepalive, every fifteen
/// seconds, must never be what gets it going again.
const PAUSE_MAX: Duration = Duration::from_secs(10);

fn seq(last: u32) -> String {
    (1..=last).fold(String::new(), |mut text, number| {
        writeln!(text, "{number}").expect("a string takes all");
        text
    })
}

#[track_caller]
fn assert_flat(host: &Host, client: &Process) {
    let supervisor = host.supervisor().expect("it runs a job");
    for (name, process) in
        [("client", client), ("listener", host.listener()), ("supervisor", &supervisor)]
    {
        let memory = process.memory();
        assert!(memory.peak < MEMORY_BYTES_MAX, "{name}: {memory:?}");
    }
}

#[test]
fn two_million_lines_are_the_same_a_hundred_times() {
    let host = Host::start();
    let expected = Digest::of(seq(2_000_000).as_bytes());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let output = host.script("seq 1 2000000").stdout_to(Sink::Digest).output();
                    assert_eq!(output.success().digest.as_ref(), Some(&expected));
                    assert!(output.longest_pause < PAUSE_MAX, "{:?}", output.longest_pause);
                }
            });
        }
    });
}

/// 250 kB/s pass through it in single bytes, so that this is half a second.
#[test]
fn twenty_thousand_lines_pass_through_a_proxy_of_single_bytes() {
    let host = Host::start();
    let proxy = Proxy::start(host.address());
    proxy.limit_pieces(1);
    host.trust(proxy.address(), &host.host_key());
    let target = host.target_via(proxy.address());
    let output = host.run_at(&target, ["-c", "seq 1 20000"]).output();
    assert_eq!(output.success().text(), seq(20_000));
}

#[test]
fn a_gigabyte_of_random_bytes_comes_back_with_flat_memory_at_both_ends() {
    let bytes = 1024 * MIB;
    let host = Host::start();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let feeder = std::thread::spawn(move || {
        std::io::copy(&mut Random::new(1).take(bytes), &mut writer).unwrap();
        writer
    });
    let stdin = Source::File(File::from(OwnedFd::from(reader)));
    let run = host.run(["--", "cat"]).stdin_from(stdin).stdout_to(Sink::Digest);
    let mut client = run.within(Duration::from_secs(300)).spawn();
    client.digest_until(bytes);
    assert_flat(&host, client.process());
    drop(feeder.join().unwrap());
    let expected = Digest::read(Random::new(1).take(bytes));
    let output = client.wait();
    assert_eq!(output.success().digest, Some(expected));
    assert!(output.longest_pause < PAUSE_MAX, "it stood still for {:?}", output.longest_pause);
}

#[test]
fn fault_43_binary_bytes_are_intact() {
    let host = Host::start();
    assert_eq!(host.run(["--", "cat"]).stdin("a\0b").output().success().stdout, b"a\0b");
    let every: Vec<u8> = (0..=255).collect();
    let output = host.run(["--", "cat"]).stdin(every.repeat(300)).output();
    assert_eq!(output.success().stdout, every.repeat(300));
    // No newline at the end, nothing but newlines, nothing at all.
    for text in ["x", "\n\n\n", "\r\n\x1b[2J\x04\x03\x1a", ""] {
        assert_eq!(host.run(["--", "cat"]).stdin(text).output().success().text(), text);
    }
}

#[test]
fn the_end_of_stdin_reaches_the_command_and_its_output_still_comes() {
    let host = Host::start();
    let mut client = host.script("cat; echo after").stdin_from(Source::Piped).spawn();
    client.write(b"one\n");
    assert_eq!(client.line().unwrap(), "one");
    client.write(b"two");
    client.close_stdin();
    assert_eq!(client.wait().success().text(), "one\ntwoafter\n");
}

#[test]
fn stdout_and_stderr_stay_apart() {
    let host = Host::start();
    let script = "for i in 1 2 3; do echo o$i; echo e$i >&2; done";
    let output = host.script(script).output();
    assert_eq!(output.success().text(), "o1\no2\no3\n");
    assert_eq!(output.error_text(), "e1\ne2\ne3\n");
}

#[test]
fn merged_streams_keep_their_exact_order() {
    let host = Host::start();
    let script = "i=0; while [ $i -lt 1000 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done";
    let expected = (0..1000).fold(String::new(), |text, i| text + &format!("o{i}\ne{i}\n"));
    let output = host.run(["--merge", "-c", script]).output();
    assert_eq!(output.success().text(), expected);
    assert_eq!(output.error_text(), "");
}

#[test]
fn fault_44_stderr_arrives_after_the_end_of_stdout() {
    let host = Host::start();
    let go = host.fifo("go");
    let script = format!("echo out; exec >&-; read x <{}; echo err >&2; exit 6", go.word());
    let mut client = host.run(["--json", "-c", &script]).spawn();
    loop {
        let line = client.line().unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["event"] == "end" && event["stream"] == "stdout" {
            break;
        }
    }
    // Only now, when the end of stdout has been seen here, does the job write to stderr.
    go.release();
    let output = client.wait();
    let late = output.expect_code(6).text().lines().any(|line| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        event["event"] == "output" && event["stream"] == "stderr" && event["data"] == "err\n"
    });
    assert!(late, "{output:?}");
}

#[test]
fn a_reader_that_goes_away_ends_both_ends() {
    let host = Host::start();
    let mut client = host.script("yes").spawn();
    assert_eq!(client.line().unwrap(), "y");
    client.close_stdout();
    let output = client.wait();
    // `yes` meets SIGPIPE there as it would here.
    assert_eq!(output.expect_code(128 + 13).error_text(), "", "{output:?}");
    // Not by the cancellation's grace of five seconds.
    assert!(output.elapsed < Duration::from_secs(4), "{output:?}");
    host.wait_until_idle();
}

#[test]
fn a_pipe_into_head_ends_at_once() {
    let host = Host::start();
    let words: Vec<String> = [afar_e2e::afar().to_str().unwrap().to_owned(), "run".to_owned()]
        .into_iter()
        .chain(host.client_options().into_iter().map(|word| word.into_string().unwrap()))
        .collect();
    let line = format!("{} {} -c yes | head -1", words.join(" "), host.target());
    let output = host.program("sh", ["-c", &line]).output();
    assert_eq!(output.success().text(), "y\n");
    assert_eq!(output.error_text(), "");
    assert!(output.elapsed < Duration::from_secs(4), "{output:?}");
    host.wait_until_idle();
}

#[test]
fn what_a_command_leaves_running_delays_nothing_and_is_told() {
    let host = Host::start();
    let result = host.file("result");
    let words = ["--result", result.to_str().unwrap(), "-c", "sleep 300 & echo done"];
    let output = host.run(words).output();
    assert_eq!(output.success().text(), "done\n");
    assert!(output.elapsed < Duration::from_secs(3), "{output:?}");
    let outcome = host.json("result");
    assert_eq!(outcome["streams_left_open"], true);
    assert_eq!(outcome["streams"]["stdout"]["complete"], false);
    assert_eq!(outcome["streams"]["stdout"]["bytes"], 5);
    assert_eq!(outcome["end"], serde_json::json!({"kind": "exited", "code": 0}));
    // A normal exit kills nothing that it left behind.
    let left = host.jobs();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].command, "sleep 300");
    Process::open(left[0].pid).unwrap().kill();
}

#[test]
fn what_a_command_leaves_running_never_meets_a_full_or_closed_pipe() {
    let host = Host::start();
    let (go, done) = (host.fifo("go"), host.fifo("done"));
    // More than any pipe holds, once nobody is there to read it.
    let daemon =
        format!("read x <{}; head -c 3000000 /dev/zero && echo wrote >{}", go.word(), done.word());
    let output = host.script(&format!("sh -c '{daemon}' & echo started")).output();
    assert_eq!(output.success().text(), "started\n");
    go.release();
    assert_eq!(done.line(), "wrote");
    host.wait_until_idle();
}

#[test]
fn fault_40_a_command_that_reads_no_stdin_is_back_pressure_and_no_error() {
    let host = Host::start();
    let endless = || Source::Random { seed: 1, bytes: u64::MAX };
    // It ends without having read any of it.
    let output = host.run(["--", "true"]).stdin_from(endless()).output();
    assert_eq!(output.success().error_text(), "");
    // It closes stdin and goes on.
    let output = host.script("exec <&-; echo on; exit 3").stdin_from(endless()).output();
    assert_eq!(output.expect_code(3).text(), "on\n");
    // It runs and does not read: what was taken in meanwhile is bounded, and others go on.
    let go = host.fifo("go");
    let script = format!("echo up; read x <{}; head -c 20000000 | wc -c", go.word());
    let mut client = host.script(&script).stdin_from(endless()).spawn();
    assert_eq!(client.line().unwrap(), "up");
    let other = host.script("seq 1 500000").stdout_to(Sink::Digest).output();
    assert_eq!(other.success().digest, Some(Digest::of(seq(500_000).as_bytes())));
    assert_flat(&host, client.process());
    go.release();
    assert_eq!(client.line().unwrap(), "20000000");
    assert_eq!(client.wait().code(), 0);
}

#[test]
fn fault_41_endless_output_to_a_stalled_reader_takes_bounded_memory_and_stops_nobody() {
    let host = Host::start();
    // Nobody reads this pipe until the end.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let sink = Sink::File(File::from(OwnedFd::from(writer)));
    let client = host.script("yes").stdout_to(sink).spawn();
    let mut first = [0; 2];
    reader.read_exact(&mut first).unwrap();
    for _ in 0..3 {
        let other = host.script("seq 1 300000").stdout_to(Sink::Digest).output();
        assert_eq!(other.success().digest, Some(Digest::of(seq(300_000).as_bytes())));
    }
    assert_flat(&host, client.process());
    // And what came out is right as far as it is read.
    let mut bytes = vec![0; 10_000_000];
    reader.read_exact(&mut bytes).unwrap();
    assert!(bytes.chunks(2).all(|line| line == b"y\n"));
    assert_flat(&host, client.process());
    drop(reader);
    assert_eq!(client.wait().code(), 128 + 13);
    host.wait_until_idle();
}

#[test]
fn a_stopped_client_stops_nobody_else() {
    let host = Host::start();
    let mut client = host.script("yes").spawn();
    assert_eq!(client.line().unwrap(), "y");
    client.signal(Signal::STOP);
    for _ in 0..5 {
        let output = host.run(["--", "echo", "on"]).output();
        assert_eq!(output.success().text(), "on\n");
        assert!(output.elapsed < Duration::from_secs(2), "{output:?}");
    }
    assert_flat(&host, client.process());
    client.signal(Signal::CONT);
    assert_eq!(client.read(4_000_000).len(), 4_000_000);
    client.close_stdout();
    assert_eq!(client.wait().code(), 128 + 13);
    host.wait_until_idle();
}

#[test]
fn stdout_into_a_full_disk_is_said_and_255() {
    let host = Host::start();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = host.script("seq 1 100").stdout_to(Sink::File(full)).output();
    assert!(output.expect_code(255).error_text().contains("stdout"), "{output:?}");
    host.wait_until_idle();
}

#[test]
fn inherited_descriptors_are_never_made_non_blocking() {
    let host = Host::start();
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut output, sink) = std::io::pipe().unwrap();
    let flags = |fd: &dyn Fn() -> rustix::io::Result<rustix::fs::OFlags>| fd().unwrap();
    let run = host.run(["--", "cat"]);
    let run = run.stdin_from(Source::File(File::from(OwnedFd::from(reader.try_clone().unwrap()))));
    let run = run.stdout_to(Sink::File(File::from(OwnedFd::from(sink.try_clone().unwrap()))));
    let client = run.spawn();
    (&writer).write_all(b"x").unwrap();
    let mut byte = [0];
    output.read_exact(&mut byte).unwrap();
    for found in
        [flags(&|| rustix::fs::fcntl_getfl(&reader)), flags(&|| rustix::fs::fcntl_getfl(&sink))]
    {
        assert!(!found.contains(rustix::fs::OFlags::NONBLOCK));
    }
    drop(writer);
    assert_eq!(client.wait().code(), 0);
}

#[test]
fn a_program_that_is_no_afar_is_the_oracle_of_the_rig() {
    // The numbers that the tests above expect are those of the real `seq`.
    let output = Run::new("seq", ["1", "20000"]).output();
    assert_eq!(output.success().text(), seq(20_000));
}
