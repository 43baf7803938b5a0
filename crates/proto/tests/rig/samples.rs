//! Messages to test with.

use std::collections::BTreeMap;

use afar_proto::message::{
    Attach, AttachOffset, Attached, AttachedStream, Command, JobHello, JobId, OpenSpec, Opened,
    Refused,
};
use afar_proto::outcome::{
    End, ExitReport, Phase, Receipt, RefusalReason, Seal, Started, StreamSeal,
};
use afar_proto::seal::Sealer;

pub(crate) fn job_id(text: &str) -> JobId {
    JobId::new(text).expect("a test's id is an id")
}

pub(crate) fn job_hello() -> JobHello {
    JobHello { version: 1, software: "test/1".into(), features: Vec::new(), incarnation: None }
}

pub(crate) fn spec(job: &str) -> OpenSpec {
    OpenSpec::new(job_id(job), Command::Argv(vec!["echo".into(), "a b".into(), "".into()]))
}

pub(crate) fn spec_with_stdin(job: &str) -> OpenSpec {
    OpenSpec { stdin: true, ..spec(job) }
}

pub(crate) fn opened(job: &str) -> Opened {
    Opened { job: job_id(job), pid: 4242, started_at_us: 1_795_341_600_000_000, note: None }
}

pub(crate) fn refused(reason: RefusalReason) -> Refused {
    Refused { phase: Phase::Spawn, reason, message: "no".into(), started: Started::No }
}

pub(crate) fn exited(code: u8) -> ExitReport {
    ExitReport { end: End::Exited { code }, receipt: receipt() }
}

pub(crate) fn receipt() -> Receipt {
    let (read_bytes, written_bytes) = (Some(8_192), Some(0));
    Receipt {
        wall_us: 4_200,
        user_us: 1_000,
        sys_us: 900,
        max_rss_bytes: 3_500_000,
        read_bytes,
        written_bytes,
    }
}

/// The seal of a job that exited with 0 and wrote what these have seen.
pub(crate) fn seal(stdout: &Sealer, stderr: &Sealer) -> Seal {
    seal_of([("stdout", stdout.seal(true)), ("stderr", stderr.seal(true))])
}

pub(crate) fn seal_of<const N: usize>(streams: [(&str, StreamSeal); N]) -> Seal {
    Seal {
        end: End::Exited { code: 0 },
        receipt: receipt(),
        streams: streams.map(|(name, seal)| (name.to_owned(), seal)).into(),
        streams_left_open: false,
        session_restarted: false,
        detail: None,
    }
}

pub(crate) fn sealer_of(bytes: &[u8]) -> Sealer {
    let mut sealer = Sealer::new();
    sealer.update(bytes);
    sealer
}

pub(crate) fn attach(job: &str, stdout: u64, stderr: u64) -> Attach {
    let streams = [("stdout", stdout), ("stderr", stderr)];
    let streams = streams.map(|(name, offset)| (name.to_owned(), AttachOffset(offset)));
    Attach::new(job_id(job), streams.into())
}

pub(crate) fn attached(stdout: u64, stderr: u64, stdin: Option<u64>) -> Attached {
    attached_to("job", stdout, stderr, stdin)
}

pub(crate) fn attached_to(job: &str, stdout: u64, stderr: u64, stdin: Option<u64>) -> Attached {
    let streams = [("stdout", stdout), ("stderr", stderr)];
    let streams: BTreeMap<_, _> =
        streams.map(|(name, offset)| (name.to_owned(), AttachedStream { offset })).into();
    let started_at_us = Some(1_795_341_600_000_000);
    Attached { job: job_id(job), pid: Some(4242), started_at_us, streams, stdin, terminal: false }
}
