//! `afar ps`: the jobs there are.

mod table;

use std::time::{SystemTime, UNIX_EPOCH};

use afar_client::{Client, Error, JobInfo, Target, format_time};
use afar_proto::json::ByteString;
use rustix::termios::{isatty, tcgetwinsize};
use serde::Serialize;
use std::collections::BTreeMap;

use crate::args::PsArgs;
use crate::commands::{block_on, launch_supervisor, settle};
use crate::console::{Verbosity, fail, say, write_stdout};
use crate::exit::Exit;
use table::{Look, table};

/// The most jobs that one question asks for; a server gives as many as fit an answer.
const PAGE_JOBS: u32 = 500;

/// Lists the jobs.
pub(crate) fn cmd_ps(args: &PsArgs) -> Exit {
    let (target, settings) = match settle(&args.target, &args.connect) {
        Ok(settled) => settled,
        Err(error) => return fail(&error),
    };
    let client = settings.client().launcher(launch_supervisor).build();
    block_on(async {
        match list(&client, &target, args).await {
            Ok(listed) => print(&target, &listed, args),
            Err(error) => fail(&error),
        }
    })
}

/// What was found.
struct Listed {
    jobs: Vec<JobInfo>,
    /// Whether there are more.
    more: bool,
}

async fn list(client: &Client, target: &Target, args: &PsArgs) -> Result<Listed, Error> {
    let session = client.connect(target).await?;
    let states = Some(args.state.as_slice()).filter(|states| !states.is_empty());
    let limit = if args.limit == 0 { usize::MAX } else { usize::try_from(args.limit).unwrap_or(0) };
    let mut jobs: Vec<JobInfo> = Vec::new();
    let mut after = None;
    let more = loop {
        let left = u32::try_from(limit - jobs.len()).unwrap_or(u32::MAX);
        let page = session.list(states, after, Some(left.min(PAGE_JOBS))).await?;
        let empty = page.jobs.is_empty();
        jobs.extend(page.jobs);
        jobs.truncate(limit);
        match page.next {
            None => break false,
            Some(_) if jobs.len() >= limit => break true,
            // A page that brings nothing and promises more is not waited for.
            Some(_) if empty => break true,
            next => after = next,
        }
    };
    session.close().await;
    Ok(Listed { jobs, more })
}

fn print(target: &Target, listed: &Listed, args: &PsArgs) -> Exit {
    if args.json {
        let mut lines = Vec::new();
        for info in &listed.jobs {
            // Structs of ours with string keys: writing them can't fail.
            lines.extend(serde_json::to_vec(&Line::of(target, info)).unwrap_or_default());
            lines.push(b'\n');
        }
        return write_stdout(&lines);
    }
    let stdout = rustix::stdio::stdout();
    let width = tcgetwinsize(stdout).ok().filter(|_| isatty(stdout));
    let look = Look {
        columns: width.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0),
        now_us: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX)),
    };
    let exit = write_stdout(table(&listed.jobs, &look).as_bytes());
    if listed.more && args.connect.verbosity() > Verbosity::Quiet {
        say(&format!("these are the newest {}; --limit 0 lists all", listed.jobs.len()));
    }
    exit
}

/// A job as `--json` has it: keys are fixed, more may be added.
#[derive(Serialize)]
struct Line<'a> {
    job: &'a str,
    target: String,
    state: &'static str,
    command: &'a ByteString,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    command_cut: bool,
    session: Option<&'a str>,
    cwd: Option<&'a ByteString>,
    pid: Option<u32>,
    started_at: Option<String>,
    ended_at: Option<String>,
    end: Option<&'a afar_client::End>,
    wall_s: Option<f64>,
    user_s: Option<f64>,
    sys_s: Option<f64>,
    max_rss_bytes: Option<u64>,
    streams: BTreeMap<&'a str, StreamLine<'a>>,
    attached: bool,
    watchers: u32,
    detached: bool,
    keep_until: Option<String>,
}

/// One of its streams.
#[derive(Serialize)]
struct StreamLine<'a> {
    bytes: u64,
    kept_from: u64,
    gaps: &'a [(u64, u64)],
}

impl<'a> Line<'a> {
    fn of(target: &Target, info: &'a JobInfo) -> Self {
        let receipt = info.receipt.as_ref();
        let streams = info.streams.iter().map(|(name, stream)| {
            let gaps = stream.gaps.as_slice();
            (name.as_str(), StreamLine { bytes: stream.bytes, kept_from: stream.kept_from, gaps })
        });
        Self {
            job: info.job.as_str(),
            target: target.to_string(),
            state: info.state.as_str(),
            command: &info.command,
            command_cut: info.command_cut,
            session: info.session.as_deref(),
            cwd: info.cwd.as_ref(),
            pid: info.pid,
            started_at: info.started_at_us.and_then(format_time),
            ended_at: info.ended_at_us.and_then(format_time),
            end: info.end.as_ref(),
            wall_s: receipt.map(|receipt| seconds(receipt.wall_us)),
            user_s: receipt.map(|receipt| seconds(receipt.user_us)),
            sys_s: receipt.map(|receipt| seconds(receipt.sys_us)),
            max_rss_bytes: receipt.map(|receipt| receipt.max_rss_bytes).filter(|bytes| *bytes > 0),
            streams: streams.collect(),
            attached: info.owner,
            watchers: info.watchers,
            detached: info.detached,
            keep_until: info.keep_until_us.and_then(format_time),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of 285 years are exact in an f64")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use afar_client::{End, JobId, JobState, Receipt};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_has_the_keys_of_the_contract() {
        let mut info = JobInfo::new(JobId::new("j1").unwrap(), JobState::Ended, b"make");
        let target = Target::parse("ann@web").unwrap();
        let empty = serde_json::to_value(Line::of(&target, &info)).unwrap();
        info.started_at_us = Some(1_795_341_600_000_000);
        info.end = Some(End::Exited { code: 2 });
        info.receipt = Some(Receipt { wall_us: 1_500_000, ..Receipt::default() });
        let full = serde_json::to_value(Line::of(&target, &info)).unwrap();
        let keys = |value: &serde_json::Value| {
            value.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(keys(&full), keys(&empty));
        assert!(empty["end"].is_null() && empty["started_at"].is_null());
        for (key, value) in [
            ("job", json!("j1")),
            ("target", json!("ann@web")),
            ("state", json!("ended")),
            ("command", json!("make")),
            ("started_at", json!("2026-11-22T10:00:00.000000Z")),
            ("end", json!({"kind": "exited", "code": 2})),
            ("wall_s", json!(1.5)),
        ] {
            assert_eq!(full[key], value, "{key}");
        }
    }
}
