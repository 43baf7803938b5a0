//! `--json`: every event, one object a line, and the outcome as the last.

use afar_e2e::{Host, Run};
use serde_json::{Value, json};

/// Every line of stdout as an event.
#[track_caller]
fn events(run: Run, code: i32) -> Vec<Value> {
    let output = run.output();
    let parse = |line: &str| serde_json::from_str(line).expect("each line is one JSON value");
    output.expect_code(code).text().lines().map(parse).collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn the_events_of_a_command_come_in_order_and_end_with_the_outcome() {
    let host = Host::start();
    let events = events(host.run(["--json", "-c", "printf out; printf err >&2; exit 3"]), 3);
    let first = &events[0];
    assert_eq!(first["event"], "started");
    assert!(first["job"].is_string() && first["pid"].is_u64(), "{first}");
    assert!(first["started_at"].as_str().unwrap().ends_with('Z'), "{first}");
    let last = events.last().unwrap();
    assert_eq!(last["event"], "finished");
    assert_eq!(last["end"], json!({"kind": "exited", "code": 3}));
    assert_eq!((&last["phase"], &last["started"]), (&json!("done"), &json!("yes")));
    assert_eq!(last["job"], first["job"]);
    assert_eq!(last["streams"]["stdout"]["bytes"], 3);
    for (stream, text) in [("stdout", "out"), ("stderr", "err")] {
        let outputs = named(&events, "output");
        let output: Vec<_> = outputs.iter().filter(|event| event["stream"] == stream).collect();
        let data: String = output.iter().map(|event| event["data"].as_str().unwrap()).collect();
        assert_eq!(data, text);
        assert_eq!(output[0]["offset"], 0);
        assert!(output[0]["time_s"].as_f64().unwrap() >= 0.0);
        let ends = named(&events, "end");
        assert_eq!(ends.iter().filter(|event| event["stream"] == stream).count(), 1);
    }
    let exits = named(&events, "exit");
    assert_eq!(exits.len(), 1);
    assert_eq!(exits[0]["end"], json!({"kind": "exited", "code": 3}));
    for key in ["wall_s", "user_s", "sys_s", "max_rss_bytes"] {
        assert!(exits[0][key].is_number(), "{key}: {}", exits[0]);
    }
    assert_eq!(named(&events, "finished").len(), 1);
}

#[test]
fn bytes_that_are_not_utf_8_are_base64_and_nothing_is_lost() {
    let host = Host::start();
    let events = events(host.run(["--json", "--", "printf", "\\377\\000a\\n"]), 0);
    let output = named(&events, "output");
    assert_eq!(output.len(), 1);
    assert_eq!(output[0]["data"], json!({"base64": "/wBhCg=="}));
}

#[test]
fn offsets_continue_and_times_do_not_go_back() {
    let host = Host::start();
    let events = events(host.run(["--json", "-c", "seq 1 100000"]), 0);
    let (mut offset, mut time) = (0, 0.0);
    for event in named(&events, "output") {
        assert_eq!(event["offset"].as_u64(), Some(offset));
        let data = event["data"].as_str().expect("digits are UTF-8");
        offset += u64::try_from(data.len()).unwrap();
        let now = event["time_s"].as_f64().unwrap();
        assert!(now >= time, "{now} after {time}");
        time = now;
    }
    assert_eq!(offset, 588_895);
}

#[test]
fn the_commands_own_stderr_is_an_event_and_ours_stays_empty() {
    let host = Host::start();
    let output = host.run(["--json", "-c", "echo err >&2"]).output();
    assert_eq!(output.success().error_text(), "");
}

#[test]
fn an_early_failure_is_the_only_event() {
    let host = Host::start();
    let found = events(host.run(["--json", "--", "afar-no-such-program"]), 127);
    assert_eq!(found.len(), 1, "{found:?}");
    let last = &found[0];
    assert_eq!(last["event"], "finished");
    assert_eq!(last["end"], json!({"kind": "not_started", "reason": "not_found"}));
    assert_eq!((&last["phase"], &last["started"]), (&json!("spawn"), &json!("no")));
    for key in ["started_at", "wall_s", "user_s", "sys_s", "max_rss_bytes", "streams"] {
        assert!(last[key].is_null(), "{key}: {last}");
    }
    // Before there was a connection.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = host.target_via(listener.local_addr().unwrap());
    drop(listener);
    let found = events(host.run_at(&target, ["--json", "--", "true"]), 255);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["event"], &found[0]["phase"]), (&json!("finished"), &json!("connect")));
    assert_eq!(found[0]["end"]["kind"], "not_started");
    assert!(found[0]["job"].is_null());
}

#[test]
fn the_last_event_and_the_result_are_the_same_object() {
    let host = Host::start();
    let result = host.file("result");
    let words = ["--json", "--result", result.to_str().unwrap(), "-c", "echo x; exit 2"];
    let mut last = events(host.run(words), 2).pop().unwrap();
    last.as_object_mut().unwrap().remove("event");
    assert_eq!(last, host.json("result"));
}

#[test]
fn signals_and_limits_are_told() {
    let host = Host::start();
    let found = events(host.run(["--json", "-c", "kill -TERM $$"]), 143);
    let end = &named(&found, "exit")[0]["end"];
    assert_eq!((&end["kind"], &end["signal"]), (&json!("signaled"), &json!(15)));
    let found = events(host.run(["--json", "--timeout", "200ms", "--", "sleep", "300"]), 124);
    assert_eq!(found.last().unwrap()["end"], json!({"kind": "timeout"}));
}
