//! The JSON Lines of `--json`: a documented schema, one object an event.

use afar_client::{JobEvent, Outcome, format_time};
use afar_proto::json::ByteString;
use bytes::Bytes;
use serde::Serialize;

/// An event as it is printed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Started { job: &'a str, pid: u32, started_at: Option<String> },
    Attached { job: &'a str, pid: Option<u32>, started_at: Option<String> },
    Gap { stream: &'static str, from: u64, to: u64 },
    Disconnected { cause: &'a str },
    Reconnected,
    Output { stream: &'static str, offset: u64, time_s: f64, data: ByteString },
    End { stream: &'static str },
    Exit { end: &'a afar_client::End, wall_s: f64, user_s: f64, sys_s: f64, max_rss_bytes: u64 },
    Finished(&'a Outcome),
}

/// The line of an event, with its end; empty for an event that has none. The last event is
/// [`finished_line`]'s.
pub(super) fn line(event: &JobEvent) -> Bytes {
    match event {
        JobEvent::Started(opened) => encode(&Line::Started {
            job: opened.job.as_str(),
            pid: opened.pid,
            started_at: format_time(opened.started_at_us),
        }),
        JobEvent::Attached(attached) => encode(&Line::Attached {
            job: attached.job.as_str(),
            pid: attached.pid,
            started_at: attached.started_at_us.and_then(format_time),
        }),
        JobEvent::Gap { stream, from, to } => {
            encode(&Line::Gap { stream: stream.name(), from: *from, to: *to })
        }
        JobEvent::Disconnected { cause } => encode(&Line::Disconnected { cause }),
        JobEvent::Reconnected => encode(&Line::Reconnected),
        JobEvent::Output(chunk) => encode(&Line::Output {
            stream: chunk.stream.name(),
            offset: chunk.offset,
            time_s: seconds(chunk.clock_us),
            data: ByteString(chunk.bytes.to_vec()),
        }),
        JobEvent::OutputEnd(stream) => encode(&Line::End { stream: stream.name() }),
        JobEvent::Exit(report) => encode(&Line::Exit {
            end: &report.end,
            wall_s: seconds(report.receipt.wall_us),
            user_s: seconds(report.receipt.user_us),
            sys_s: seconds(report.receipt.sys_us),
            max_rss_bytes: report.receipt.max_rss_bytes,
        }),
        _ => Bytes::new(),
    }
}

/// The last line: the outcome.
pub(super) fn finished_line(outcome: &Outcome) -> Bytes {
    encode(&Line::Finished(outcome))
}

fn encode(line: &Line<'_>) -> Bytes {
    // Structs of ours with string keys: writing them can't fail.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of 285 years are exact in an f64")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use afar_client::{Chunk, End, ExitReport, JobId, Opened, Phase, Receipt, Stream};
    use serde_json::{Value, json};

    use super::*;

    fn parse(line: &Bytes) -> Value {
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert!(line.ends_with(b"\n"));
        serde_json::from_slice(line).unwrap()
    }

    fn output(bytes: &'static [u8]) -> Value {
        let chunk = Chunk {
            stream: Stream::Stderr,
            offset: 7,
            clock_us: 1500,
            bytes: Bytes::from_static(bytes),
        };
        parse(&line(&JobEvent::Output(chunk)))
    }

    #[test]
    fn every_event_has_the_documented_form() {
        let job = JobId::new("j1").unwrap();
        let opened = Opened { job, pid: 42, started_at_us: 1_795_341_600_000_000, note: None };
        assert_eq!(
            parse(&line(&JobEvent::Started(opened))),
            json!({"event": "started", "job": "j1", "pid": 42,
                   "started_at": "2026-11-22T10:00:00.000000Z"})
        );
        let attached = afar_client::Attached {
            job: JobId::new("j1").unwrap(),
            pid: None,
            started_at_us: Some(1_795_341_600_000_000),
            streams: std::collections::BTreeMap::new(),
            stdin: None,
            terminal: false,
        };
        assert_eq!(
            parse(&line(&JobEvent::Attached(attached))),
            json!({"event": "attached", "job": "j1", "pid": null,
                   "started_at": "2026-11-22T10:00:00.000000Z"})
        );
        assert_eq!(
            parse(&line(&JobEvent::Gap { stream: Stream::Stdout, from: 3, to: 9 })),
            json!({"event": "gap", "stream": "stdout", "from": 3, "to": 9})
        );
        let cause = "the connection was cut".to_owned();
        assert_eq!(
            parse(&line(&JobEvent::Disconnected { cause })),
            json!({"event": "disconnected", "cause": "the connection was cut"})
        );
        assert_eq!(parse(&line(&JobEvent::Reconnected)), json!({"event": "reconnected"}));
        assert_eq!(
            output(b"a\nb"),
            json!({"event": "output", "stream": "stderr", "offset": 7, "time_s": 0.0015,
                   "data": "a\nb"})
        );
        assert_eq!(output(b"\xff\0").get("data"), Some(&json!({"base64": "/wA="})));
        assert_eq!(
            parse(&line(&JobEvent::OutputEnd(Stream::Stdout))),
            json!({"event": "end", "stream": "stdout"})
        );
        let receipt = Receipt { wall_us: 2, user_us: 1, max_rss_bytes: 9, ..Receipt::default() };
        let report = ExitReport { end: End::Exited { code: 3 }, receipt };
        assert_eq!(
            parse(&line(&JobEvent::Exit(report))),
            json!({"event": "exit", "end": {"kind": "exited", "code": 3}, "wall_s": 2e-6,
                   "user_s": 1e-6, "sys_s": 0.0, "max_rss_bytes": 9})
        );
    }

    #[test]
    fn the_last_line_is_the_outcome() {
        let outcome = Outcome::not_started("host", None, Phase::Connect, "unreachable");
        let mut line = parse(&finished_line(&outcome));
        let event = line.as_object_mut().unwrap().remove("event");
        assert_eq!(event, Some(json!("finished")));
        assert_eq!(line, serde_json::to_value(&outcome).unwrap());
    }
}
