//! One measurement of one contender.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::process;
use super::rig::{CpuSeconds, Rig, program};
use super::rows::{Contender, Metric, Row};
use crate::failure::{Failure, Result};
use crate::workspace::shown;

const GIB: u64 = 1 << 30;
const LINES: &str = "20000000";
/// What `seq 1 20000000` prints: 9 one-digit lines and so on, each with its newline.
const LINES_BYTES: u64 = 168_888_897;
const IN_FLIGHT: u64 = 32;
/// Some two seconds of them.
const COMMANDS: u64 = 3000;
/// The script waits 40 ms for each.
const SCRIPT_COMMANDS: u64 = 50;

/// How much is measured in one go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) bulk_bytes: u64,
}

impl Size {
    pub(super) const FULL: Self = Self { bulk_bytes: 4 * GIB };
    pub(super) const QUICK: Self = Self { bulk_bytes: GIB };

    /// dbclient is an order of magnitude slower; a rate needs no more than this.
    fn bulk_bytes(self, contender: Contender) -> u64 {
        if contender == Contender::Dbclient { self.bulk_bytes / 4 } else { self.bulk_bytes }
    }
}

/// Small programs of the workspace that measure what a command line cannot.
#[derive(Debug, Clone)]
pub(super) struct Helpers {
    /// crates/client/examples/commands.rs
    pub(super) commands: PathBuf,
    /// crates/sys/examples/spawn_loop.rs
    pub(super) spawn_loop: PathBuf,
    /// crates/net/examples/bare_tls.rs
    pub(super) bare_tls: PathBuf,
}

/// What a run of measurements needs.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) rig: &'a Rig,
    pub(super) helpers: &'a Helpers,
    pub(super) size: Size,
}

impl Bench<'_> {
    /// Measures once; the numbers go to the metrics they belong to.
    pub(super) fn measure(&self, row: Row, contender: Contender) -> Result<Vec<(Metric, f64)>> {
        match row {
            Row::Cold => Ok(vec![(Metric::Cold, self.cold(contender)?)]),
            Row::Xargs => Ok(vec![(Metric::Xargs, self.xargs(contender)?)]),
            Row::Sequential => Ok(vec![(Metric::Sequential, self.commands(contender, 1, &[])?)]),
            Row::InFlight => {
                Ok(vec![(Metric::InFlight, self.commands(contender, IN_FLIGHT, &[])?)])
            }
            Row::Sessions => {
                let in_session = ["--session", "bench"];
                Ok(vec![(Metric::Sessions, self.commands(contender, 1, &in_session)?)])
            }
            Row::Classic => Ok(vec![(Metric::Classic, self.classic(contender)?)]),
            Row::BulkDown => self.bulk_down(contender),
            Row::BulkUp => self.bulk_up(contender),
            Row::Lines => {
                let remote = ["seq", "1", LINES];
                let taken = self.receive(contender, &remote, LINES_BYTES)?;
                Ok(vec![(Metric::Lines, megabytes(LINES_BYTES) / taken.seconds)])
            }
        }
    }

    /// Milliseconds from posix_spawn of the client to its end.
    fn cold(&self, contender: Contender) -> Result<f64> {
        let mut client = self.client_of_true(contender)?;
        client.stdout(Stdio::null());
        let started = Instant::now();
        let status = client.status().map_err(Failure::io(format!("run {}", shown(&client))))?;
        let elapsed = started.elapsed();
        self.expect_success(&client, status)?;
        Ok(elapsed.as_secs_f64() * 1e3)
    }

    /// One-shots a second from `xargs -P 8`, about two seconds of them.
    fn xargs(&self, contender: Contender) -> Result<f64> {
        let count = match contender {
            Contender::Ssh => 40,
            Contender::SshFast => 80,
            Contender::SshWarm => 400,
            Contender::Dbclient => 200,
            Contender::Afar => 800,
            Contender::Local | Contender::BareTls | Contender::Script => 2000,
        };
        let client = if contender == Contender::Dbclient {
            self.rig.dbclient_from_many_addresses(&["true"])?
        } else {
            self.client_of_true(contender)?
        };
        let mut xargs = Command::new(program("xargs")?);
        xargs.args(["-P", "8", "-I{}"]).arg(client.get_program()).args(client.get_args());
        for (key, value) in client.get_envs() {
            match value {
                Some(value) => xargs.env(key, value),
                None => xargs.env_remove(key),
            };
        }
        xargs.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let mut child = xargs.spawn().map_err(Failure::io("start xargs"))?;
        if let Some(mut stdin) = child.stdin.take() {
            let lines: String = (0..count).map(|number| format!("{}\n", 2 + number % 64)).collect();
            stdin.write_all(lines.as_bytes()).map_err(Failure::io("write to xargs"))?;
        }
        let status = child.wait().map_err(Failure::io("wait for xargs"))?;
        let seconds = started.elapsed().as_secs_f64();
        self.expect_success(&xargs, status)?;
        Ok(f64::from(count) / seconds)
    }

    /// Commands a second on one connection, `in_flight` of them at a time; with more options for
    /// afar's.
    fn commands(&self, contender: Contender, in_flight: u64, options: &[&str]) -> Result<f64> {
        match contender {
            Contender::SshWarm => self.mux_commands(in_flight),
            Contender::Local => {
                let mut helper = Command::new(&self.helpers.spawn_loop);
                helper.stdin(Stdio::null());
                helper.args([COMMANDS.to_string(), in_flight.to_string()]);
                self.helper_says(&mut helper, "spawns_per_s")
            }
            _ => {
                let mut helper = self.rig.afar_helper(&self.helpers.commands)?;
                helper.args(["--count", &COMMANDS.to_string()]);
                helper.args(["--in-flight", &in_flight.to_string()]).args(options);
                self.helper_says(&mut helper, "commands_per_s")
            }
        }
    }

    /// Commands a second on one connection of the classic protocol, by the same client of everybody;
    /// next to that, how many processes could be started.
    fn classic(&self, contender: Contender) -> Result<f64> {
        if contender == Contender::Local {
            return self.commands(contender, 1, &[]);
        }
        let count = if contender == Contender::Script { SCRIPT_COMMANDS } else { COMMANDS };
        let mut client = self.rig.classic_client(contender, count)?;
        self.helper_says(&mut client, "commands_per_s")
    }

    /// The same through ssh: a client process for each command, on the master's connection.
    fn mux_commands(&self, in_flight: u64) -> Result<f64> {
        let count = 100 * in_flight.min(4);
        let left = AtomicU64::new(count);
        let take = |left: u64| left.checked_sub(1);
        let work = || -> Result<()> {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                let mut client = self.rig.client(Contender::SshWarm, &["true"])?;
                let status = client.status().map_err(Failure::io("run ssh"))?;
                self.expect_success(&client, status)?;
            }
            Ok(())
        };
        let started = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..in_flight).map(|_| scope.spawn(work)).collect();
            let panicked = || Failure::Check("a thread panicked".to_owned());
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| panicked())?)
        })?;
        Ok(count as f64 / started.elapsed().as_secs_f64())
    }

    fn bulk_down(&self, contender: Contender) -> Result<Vec<(Metric, f64)>> {
        let bytes = self.size.bulk_bytes(contender);
        if contender == Contender::BareTls {
            return Ok(vec![(Metric::BulkDown, self.bare_tls(bytes)?)]);
        }
        let count = bytes.to_string();
        let taken = self.receive(contender, &["head", "-c", &count, "/dev/zero"], bytes)?;
        Ok(taken.metrics(
            contender,
            bytes,
            [
                Metric::BulkDown,
                Metric::BulkDownClientCpu,
                Metric::BulkDownServerCpu,
                Metric::BulkDownCpu,
            ],
        ))
    }

    fn bulk_up(&self, contender: Contender) -> Result<Vec<(Metric, f64)>> {
        let bytes = self.size.bulk_bytes(contender);
        if contender == Contender::BareTls {
            return Ok(vec![(Metric::BulkUp, self.bare_tls(bytes)?)]);
        }
        let taken = self.send(contender, bytes)?;
        Ok(taken.metrics(
            contender,
            bytes,
            [Metric::BulkUp, Metric::BulkUpClientCpu, Metric::BulkUpServerCpu, Metric::BulkUpCpu],
        ))
    }

    /// Has `remote` run, and counts what the client writes into a pipe.
    fn receive(&self, contender: Contender, remote: &[&str], expected: u64) -> Result<Taken> {
        let mut client = self.rig.client(contender, remote)?;
        client.stdout(Stdio::piped());
        let meter = Meter::start(self.rig, contender);
        let mut child = client.spawn().map_err(Failure::io("start a client"))?;
        let mut received = 0;
        if let Some(mut stdout) = child.stdout.take() {
            let mut buffer = vec![0; 256 * 1024];
            loop {
                match stdout.read(&mut buffer).map_err(Failure::io("read from a client"))? {
                    0 => break,
                    count => received += count as u64,
                }
            }
        }
        let status = child.wait().map_err(Failure::io("wait for a client"))?;
        let taken = meter.stop();
        self.expect_success(&client, status)?;
        self.expect_count(&client, received, expected)?;
        Ok(taken)
    }

    /// Writes zeros into the client; the other end says how many arrived.
    fn send(&self, contender: Contender, bytes: u64) -> Result<Taken> {
        let mut client = self.rig.client(contender, &["wc", "-c"])?;
        client.stdin(Stdio::piped()).stdout(Stdio::piped());
        let meter = Meter::start(self.rig, contender);
        let mut child = client.spawn().map_err(Failure::io("start a client"))?;
        if let Some(mut stdin) = child.stdin.take() {
            let chunk = vec![0; 64 * 1024];
            let mut left = bytes;
            while left > 0 {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                let written = stdin.write_all(chunk.get(..length).unwrap_or_default());
                // A client that ended early is judged by its status and by the count.
                if written.is_err() {
                    break;
                }
                left -= length as u64;
            }
        }
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut said).map_err(Failure::io("read from a client"))?;
        }
        let status = child.wait().map_err(Failure::io("wait for a client"))?;
        let taken = meter.stop();
        self.expect_success(&client, status)?;
        self.expect_count(&client, said.trim().parse().unwrap_or(0), bytes)?;
        Ok(taken)
    }

    fn bare_tls(&self, bytes: u64) -> Result<f64> {
        let mut helper = Command::new(&self.helpers.bare_tls);
        helper.args(["--bytes", &bytes.to_string()]).stdin(Stdio::null());
        self.helper_says(&mut helper, "mb_per_s")
    }

    fn client_of_true(&self, contender: Contender) -> Result<Command> {
        let remote: &[&str] =
            if contender == Contender::Local { &["sh", "-c", "true"] } else { &["true"] };
        self.rig.client(contender, remote)
    }

    /// Runs a helper and reads its line `key NUMBER`.
    fn helper_says(&self, helper: &mut Command, key: &str) -> Result<f64> {
        let output = helper.output().map_err(Failure::io(format!("run `{}`", shown(helper))))?;
        self.expect_success(helper, output.status)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|number| number.trim().parse().ok())
            .ok_or_else(|| Failure::Check(format!("`{}` said no {key}: {text:?}", shown(helper))))
    }

    /// A failed command has no speed.
    fn expect_success(&self, command: &Command, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let words = self.rig.last_words();
        Err(Failure::Check(format!("`{}`: {status}{words}", shown(command))))
    }

    fn expect_count(&self, command: &Command, actual: u64, expected: u64) -> Result<()> {
        if actual == expected {
            return Ok(());
        }
        let words = self.rig.last_words();
        let shown = shown(command);
        Err(Failure::Check(format!("`{shown}`: {actual} of {expected} bytes arrived{words}")))
    }
}

/// Runs from before the client starts until it has ended.
struct Meter<'a> {
    rig: &'a Rig,
    contender: Contender,
    started: Instant,
    client: f64,
    server: CpuSeconds,
}

/// What a transfer took.
struct Taken {
    seconds: f64,
    client_cpu: f64,
    server_cpu: f64,
}

impl<'a> Meter<'a> {
    fn start(rig: &'a Rig, contender: Contender) -> Self {
        let server = rig.server_cpu(contender);
        let client = process::waited_for_seconds();
        Self { rig, contender, started: Instant::now(), client, server }
    }

    fn stop(self) -> Taken {
        let seconds = self.started.elapsed().as_secs_f64();
        let client_cpu = process::waited_for_seconds() - self.client;
        let server_cpu = self.rig.server_cpu(self.contender).0 - self.server.0;
        Taken { seconds, client_cpu, server_cpu }
    }
}

impl Taken {
    /// Speed, then processor time of the client, the server, and both.
    fn metrics(
        &self,
        contender: Contender,
        bytes: u64,
        [speed, client, server, both]: [Metric; 4],
    ) -> Vec<(Metric, f64)> {
        let megabytes = megabytes(bytes);
        let mut metrics = vec![(speed, megabytes / self.seconds)];
        if contender != Contender::Local {
            let gigabytes = megabytes / 1e3;
            metrics.push((client, self.client_cpu / gigabytes));
            metrics.push((server, self.server_cpu / gigabytes));
            metrics.push((both, (self.client_cpu + self.server_cpu) / gigabytes));
        }
        metrics
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_the_lines_is_right() {
        let digits = |from: u64, to: u64, width: u64| (to - from + 1) * (width + 1);
        let sum = digits(1, 9, 1)
            + digits(10, 99, 2)
            + digits(100, 999, 3)
            + digits(1000, 9999, 4)
            + digits(10_000, 99_999, 5)
            + digits(100_000, 999_999, 6)
            + digits(1_000_000, 9_999_999, 7)
            + digits(10_000_000, 20_000_000, 8);
        assert_eq!(sum, LINES_BYTES);
    }
}
