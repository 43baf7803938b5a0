//! The subcommands, a file each.

pub(crate) mod as_user;
pub(crate) mod attach;
pub(crate) mod classic;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod keys;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod ps;
pub(crate) mod repl;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod shell;
pub(crate) mod stdio;
pub(crate) mod supervisor;
pub(crate) mod trust;
pub(crate) mod wait;

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use afar_client::{
    Account, Attachment, Client, Destination, Error, JobId, JobRef, Session, Target,
};
use afar_core::escape::escape_bounded;
use afar_core::target::JobTarget;

use crate::args::ConnectArgs;
use crate::console;
use crate::exit::Exit;
use crate::run::{JobName, RunOptions, Signals, Wanted, execute};
use crate::settings::ConnectSettings;

/// The local user, from the user database: the environment may be another user's (sudo, su).
pub(crate) fn account() -> Option<Account> {
    let user = afar_sys::users::current_user().ok().flatten()?;
    Some(Account { name: user.name, home: user.home })
}

/// Afar's own program.
pub(crate) fn executable() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Reaches this user's supervisor, for the target `local`.
pub(crate) fn launch_supervisor() -> Result<UnixStream, String> {
    let executable = executable().map_err(|error| error.to_string())?;
    let launched = afar_server::launch::connect(&executable).map_err(|error| error.to_string())?;
    Ok(launched.stream)
}

/// Reads a target as it stands on the command line.
pub(crate) fn parse_target(text: &OsStr) -> Result<Target, Error> {
    Target::parse_bytes(text.as_bytes()).map_err(Error::from)
}

/// The one host that a command is about, and what is in effect for it.
pub(crate) fn settle(
    target: &OsStr,
    connect: &ConnectArgs,
) -> Result<(Target, ConnectSettings), Error> {
    let target = parse_target(target)?;
    let settings = ConnectSettings::settle(connect, Some(&target))?;
    Ok((target, settings))
}

/// The job that a command is about, and what is in effect for its target. What stands behind the
/// target is its id, or the beginning of that.
pub(crate) fn settle_job(
    job: &OsStr,
    connect: &ConnectArgs,
) -> Result<(Target, JobRef, ConnectSettings), Error> {
    let JobTarget { target, job } = JobTarget::parse_bytes(job.as_bytes())?;
    let settings = ConnectSettings::settle(connect, Some(&target))?;
    // It has the form of an id, or it would be no job's.
    let id = JobId::new(&job).map_err(|error| Error::Configuration(error.to_string()))?;
    Ok((target, JobRef::prefix(id), settings))
}

/// A job that exists, and the client that reaches it.
pub(crate) struct FoundJob {
    pub(crate) client: Client,
    pub(crate) target: Target,
    pub(crate) job: JobRef,
}

impl FoundJob {
    /// Finds out what is meant, without connecting.
    ///
    /// # Errors
    /// Nothing can be meant by it; said already.
    pub(crate) fn find(job: &OsStr, connect: &ConnectArgs) -> Result<Self, Exit> {
        let settled = settle_job(job, connect).map_err(|error| console::fail(&error));
        let (target, job, settings) = settled?;
        let client = settings.client().launcher(launch_supervisor).build();
        Ok(Self { client, target, job })
    }

    /// Goes on with the job as `attachment` says, and ends as it does.
    pub(crate) fn show(self, attachment: Attachment, options: RunOptions) -> Exit {
        let Self { client, target, .. } = self;
        with_signals(async |signals| {
            execute(&client, &target, Wanted::Attach(attachment), options, signals).await
        })
    }
}

/// How jobs on a target are named for other commands, see [`job_place`].
pub(crate) fn job_name(target: &Target, connect: &ConnectArgs) -> JobName {
    let (target, connect) = (target.clone(), connect.clone());
    JobName(Box::new(move |job| job_place(&target, &connect, job)))
}

/// What names a job on the command line: its target, with the user and the port that options have
/// given, and its id.
fn job_place(target: &Target, connect: &ConnectArgs, job: &JobId) -> String {
    let complete = |destination: &Destination| Destination {
        user: destination.user.clone().or_else(|| connect.login.clone()),
        port: destination.port.or(connect.port),
        ..destination.clone()
    };
    let target = match target {
        Target::Host(destination) => Target::Host(complete(destination)),
        Target::Ssh(destination) => Target::Ssh(complete(destination)),
        other => other.clone(),
    };
    format!("{target}/{job}")
}

/// Asks about jobs one after the other, over one connection for those of one target. Whatever fails
/// is said, and the others have their turn all the same.
pub(crate) async fn for_each_job(
    jobs: &[OsString],
    connect: &ConnectArgs,
    ask: impl AsyncFn(Arc<Session>, JobRef) -> Result<(), Error>,
) -> Exit {
    let mut exit = Exit::Status(0);
    let mut sessions: Vec<(Target, Arc<Session>)> = Vec::new();
    for job in jobs {
        let asked = async {
            let (target, job, settings) = settle_job(job, connect)?;
            let known = sessions.iter().find(|(known, _)| *known == target);
            let session = match known {
                Some((_, session)) => Arc::clone(session),
                None => {
                    let client = settings.client().launcher(launch_supervisor).build();
                    let session = Arc::new(client.connect(&target).await?);
                    sessions.push((target, Arc::clone(&session)));
                    session
                }
            };
            ask(session, job).await
        };
        if let Err(error) = asked.await {
            exit = fail_about(job, &error);
        }
    }
    exit
}

/// Says that a command failed for one of several jobs.
fn fail_about(job: &OsStr, error: &Error) -> Exit {
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    let job = escape_bounded(job.as_bytes(), 120);
    console::say(&format!("{job}: {error}{hint}"));
    Exit::Failed
}

/// Runs a command's async part. One thread is enough for a client, and quicker to start.
pub(crate) fn block_on<F: Future<Output = Exit>>(future: F) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(future);
            // A thread that waits for a person or for a file must not keep the program.
            runtime.shutdown_background();
            exit
        }
        Err(error) => {
            console::say(&format!("cannot start the runtime: {error}"));
            Exit::Failed
        }
    }
}

/// The same for one that takes the signals over that are meant for what it shows.
pub(crate) fn with_signals(act: impl AsyncFnOnce(Signals) -> Exit) -> Exit {
    block_on(async {
        match Signals::install() {
            Ok(signals) => act(signals).await,
            Err(exit) => exit,
        }
    })
}

/// An address without a port gets this one.
pub(crate) fn with_port(address: &str, port: u16) -> String {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        Ok(IpAddr::V4(ip)) => format!("{ip}:{port}"),
        Err(_) if address.ends_with(']') || !address.contains(':') => format!("{address}:{port}"),
        Err(_) => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_with_what_options_have_given() {
        use clap::Parser as _;
        let line = ["afar", "ps", "-l", "ann", "-p", "7", "web"];
        let crate::args::Command::Ps(args) = crate::args::Cli::parse_from(line).command else {
            panic!("not ps");
        };
        let id = JobId::new("x").unwrap();
        for (target, place) in [
            ("web", "ann@web:7/x"),
            ("bob@web:8", "bob@web:8/x"),
            ("afar://local", "ann@local:7/x"),
            ("ssh://bob@[::1]", "ssh://bob@[::1]:7/x"),
            ("local", "local/x"),
        ] {
            let target = Target::parse(target).unwrap();
            let shown = job_place(&target, &args.connect, &id);
            let shown = shown.strip_prefix("afar://").unwrap_or(&shown);
            assert_eq!(shown, place);
        }
    }

    #[test]
    fn an_address_without_a_port_gets_the_default() {
        let cases = [
            ("127.0.0.1", "127.0.0.1:2327"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("::1", "[::1]:2327"),
            ("[::1]", "[::1]:2327"),
            ("[::1]:5", "[::1]:5"),
            ("localhost", "localhost:2327"),
            ("localhost:1", "localhost:1"),
        ];
        for (given, expected) in cases {
            assert_eq!(with_port(given, 2327), expected);
        }
    }
}
