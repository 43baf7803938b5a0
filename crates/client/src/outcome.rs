//! The outcome of a job as scripts read it: one JSON object with fixed keys.

use std::collections::BTreeMap;

use afar_proto::gaps::Gaps;
use afar_proto::outcome::{End, ExitReport, Phase, Receipt, Seal, SealDetail, Started, StreamSeal};
use serde::{Serialize, Serializer};

/// What became of a job, as `--result` and the last event of `--json` hold it.
///
/// Keys are fixed; more may be added. What can't be known on an early failure is null.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The job's id; null if it failed before it had one.
    pub job: Option<String>,
    /// The target as it was asked for.
    pub target: String,
    /// The step that was reached; `done` iff everything has arrived and was verified.
    pub phase: Phase,
    /// Whether a process was started.
    pub started: Started,
    /// How it ended.
    pub end: End,
    /// The start by the server's wall clock, in microseconds of Unix time; RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339")]
    pub started_at: Option<u64>,
    /// Time from start to exit, in seconds.
    pub wall_s: Option<f64>,
    /// Processor time in user mode, in seconds.
    pub user_s: Option<f64>,
    /// Processor time in the kernel, in seconds.
    pub sys_s: Option<f64>,
    /// Largest resident set, in bytes.
    pub max_rss_bytes: Option<u64>,
    /// Bytes read from storage. Not there where the kernel does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes written to storage. Not there where the kernel does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
    /// The output streams by name: `stdout`, `stderr`.
    pub streams: Option<BTreeMap<String, StreamOutcome>>,
    /// Whether another process still held an output stream open when the drain time was over.
    pub streams_left_open: Option<bool>,
    /// Whether the shell of the command's session has ended, with this command or since the one
    /// before it, so that what earlier commands had set is lost. Not there if false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub session_restarted: bool,
    /// Why the server ended it, where `end` does not say: `output_quota`; or that it could not: `unkillable`. Not there otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<SealDetail>,
    /// How far what arrived was held against the seal: `whole`, or `suffix` where a part had gone
    /// before this client came; null until the seal has come.
    pub verified: Option<Verified>,
    /// How often the connection was made again meanwhile.
    pub reconnects: u32,
    /// What failed, in one line; null unless afar or the start failed.
    pub error: Option<String>,
}

/// How far the output was held against its seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// Every byte, by count and hash.
    Whole,
    /// What came after this client did, by count.
    Suffix,
}

/// One output stream of an [`Outcome`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamOutcome {
    /// Bytes that the job produced.
    pub bytes: u64,
    /// BLAKE3 of exactly these bytes in hexadecimal, as `b3sum` prints it.
    pub blake3: String,
    /// Whether the stream ended by itself; false if it was stopped, or left open by another process.
    pub complete: bool,
    /// Ranges that were dropped as it was asked for, as (first offset, offset after the last). Not
    /// there if none were.
    #[serde(skip_serializing_if = "Gaps::is_empty")]
    pub gaps: Gaps,
}

impl Outcome {
    /// The exit status that stands for this outcome (see `cli.md`, "Exit status").
    ///
    /// 255 unless the last word on the job has arrived and was verified, whatever the process did:
    /// an unverified status is not passed on as if it were one.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self.end {
            End::NotStarted { .. } => self.end.status(),
            _ if self.phase == Phase::Done => self.end.status(),
            _ => 255,
        }
    }

    /// Whether the command was run and exited with 0, and all of it has arrived.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status() == 0
    }

    /// The outcome of a job that never came to be.
    #[must_use]
    pub fn not_started(target: &str, job: Option<&str>, phase: Phase, reason: &str) -> Self {
        let end = End::NotStarted { reason: reason.to_owned() };
        Self::bare(target, job, phase, Started::No, end)
    }

    /// The outcome of a job of which nothing is known but this.
    pub(crate) fn bare(
        target: &str,
        job: Option<&str>,
        phase: Phase,
        started: Started,
        end: End,
    ) -> Self {
        Self {
            job: job.map(ToOwned::to_owned),
            target: target.to_owned(),
            phase,
            started,
            end,
            started_at: None,
            wall_s: None,
            user_s: None,
            sys_s: None,
            max_rss_bytes: None,
            read_bytes: None,
            written_bytes: None,
            streams: None,
            streams_left_open: None,
            session_restarted: false,
            detail: None,
            verified: None,
            reconnects: 0,
            error: None,
        }
    }

    /// Adds what an exit report says.
    #[must_use]
    pub fn with_exit(mut self, report: &ExitReport) -> Self {
        self.end = report.end.clone();
        self.set_receipt(&report.receipt);
        self
    }

    /// Adds what a seal says.
    pub(crate) fn with_seal(mut self, seal: &Seal) -> Self {
        self.end = seal.end.clone();
        self.set_receipt(&seal.receipt);
        let streams = seal.streams.iter().map(|(name, seal)| (name.clone(), stream_outcome(seal)));
        self.streams = Some(streams.collect());
        self.streams_left_open = Some(seal.streams_left_open);
        self.session_restarted = seal.session_restarted;
        self.detail = seal.detail;
        self
    }

    fn set_receipt(&mut self, receipt: &Receipt) {
        self.wall_s = Some(seconds(receipt.wall_us));
        self.user_s = Some(seconds(receipt.user_us));
        self.sys_s = Some(seconds(receipt.sys_us));
        // A process has some; of a command of a session nobody knows (`W-7.6`).
        self.max_rss_bytes = Some(receipt.max_rss_bytes).filter(|bytes| *bytes > 0);
        self.read_bytes = receipt.read_bytes;
        self.written_bytes = receipt.written_bytes;
    }
}

fn stream_outcome(seal: &StreamSeal) -> StreamOutcome {
    let blake3 = seal.blake3.iter().fold(String::new(), |mut hex, byte| {
        use std::fmt::Write as _;
        // Writing to a string can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let gaps = seal.gaps.clone();
    StreamOutcome { bytes: seal.bytes, blake3, complete: seal.complete, gaps }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of 285 years are exact in an f64")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A wall-clock time of the server's as RFC 3339 in UTC, microseconds always shown.
#[must_use]
pub fn format_time(micros: u64) -> Option<String> {
    let micros = i64::try_from(micros).ok()?;
    let time = jiff::Timestamp::from_microsecond(micros).ok()?;
    Some(format!("{time:.6}"))
}

#[expect(clippy::ref_option, reason = "serde passes the field so")]
fn rfc3339<S: Serializer>(micros: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match micros.and_then(format_time) {
        Some(text) => serializer.serialize_str(&text),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use afar_proto::seal::Sealer;

    use super::*;

    fn sealed(end: End) -> Outcome {
        let mut sealer = Sealer::new();
        sealer.update(b"abc");
        let seal = Seal {
            end,
            receipt: Receipt {
                wall_us: 4200,
                user_us: 1000,
                sys_us: 1,
                max_rss_bytes: 3_500_000,
                ..Receipt::default()
            },
            streams: BTreeMap::from([
                ("stdout".to_owned(), sealer.seal(true)),
                ("stderr".to_owned(), Sealer::new().seal(true)),
            ]),
            streams_left_open: false,
            session_restarted: false,
            detail: None,
        };
        let outcome = Outcome::bare("host", Some("j1"), Phase::Done, Started::Yes, End::Unknown);
        let mut outcome = outcome.with_seal(&seal);
        outcome.started_at = Some(1_795_341_600_000_000);
        outcome
    }

    #[test]
    fn the_object_has_the_keys_of_the_contract() {
        let json = serde_json::to_value(sealed(End::Exited { code: 0 })).unwrap();
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        let expected = serde_json::json!({
            "job": "j1",
            "target": "host",
            "phase": "done",
            "started": "yes",
            "end": {"kind": "exited", "code": 0},
            "started_at": "2026-11-22T10:00:00.000000Z",
            "wall_s": 0.0042, "user_s": 0.001, "sys_s": 0.000_001, "max_rss_bytes": 3_500_000,
            "streams": {
                "stdout": {"bytes": 3, "blake3": hash, "complete": true},
                "stderr": {"bytes": 0, "blake3": empty, "complete": true},
            },
            "streams_left_open": false,
            "verified": null,
            "reconnects": 0,
            "error": null,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn every_end_has_the_form_of_the_contract() {
        let signal = End::Signaled { signal: 11, name: "SIGSEGV".into(), core: true };
        let cases = [
            (End::Exited { code: 7 }, serde_json::json!({"kind": "exited", "code": 7})),
            (
                signal,
                serde_json::json!({"kind":"signaled","signal":11,"name":"SIGSEGV","core":true}),
            ),
            (End::Timeout, serde_json::json!({"kind": "timeout"})),
            (End::Cancelled, serde_json::json!({"kind": "cancelled"})),
            (End::Oom, serde_json::json!({"kind": "oom"})),
            (End::Lost, serde_json::json!({"kind": "lost"})),
            (End::Unknown, serde_json::json!({"kind": "unknown"})),
        ];
        for (end, expected) in cases {
            let json = serde_json::to_value(sealed(end)).unwrap();
            assert_eq!(json.get("end"), Some(&expected));
        }
    }

    #[test]
    fn an_early_failure_has_every_key_and_null_for_what_is_not_known() {
        let outcome = Outcome::not_started("host", None, Phase::Connect, "unreachable");
        let json = serde_json::to_value(&outcome).unwrap();
        let full = serde_json::to_value(sealed(End::Exited { code: 0 })).unwrap();
        let keys = |value: &serde_json::Value| {
            value.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(keys(&json), keys(&full));
        for key in ["job", "started_at", "wall_s", "max_rss_bytes", "streams", "streams_left_open"]
        {
            assert!(json.get(key).unwrap().is_null(), "{key}");
        }
        assert_eq!(json.get("started").unwrap(), "no");
        assert_eq!(outcome.status(), 255);
    }

    #[test]
    fn the_status_is_the_contracts() {
        let signal = |signal| End::Signaled { signal, name: String::new(), core: false };
        let reason = |reason: &str| End::NotStarted { reason: reason.to_owned() };
        let cases = [
            (End::Exited { code: 0 }, 0),
            (End::Exited { code: 255 }, 255),
            (signal(9), 137),
            (signal(11), 139),
            (End::Timeout, 124),
            (End::Cancelled, 130),
            (End::Oom, 137),
            (End::Lost, 255),
            (End::Unknown, 255),
            (reason("not_found"), 127),
            (reason("bad_interpreter"), 127),
            (reason("not_executable"), 126),
            (reason("bad_cwd"), 255),
            (reason("denied"), 255),
        ];
        for (end, status) in cases {
            assert_eq!(sealed(end.clone()).status(), status, "{end:?}");
        }
    }

    #[test]
    fn a_status_whose_output_was_not_verified_is_not_passed_on() {
        let mut outcome = sealed(End::Exited { code: 0 });
        outcome.phase = Phase::Stream;
        assert_eq!(outcome.status(), 255);
        assert!(!outcome.success());
    }
}
