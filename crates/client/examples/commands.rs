//! How many commands a second one session runs: `true`, again and again, some at a time.
//!
//! `commands TARGET -i KEY --known-hosts FILE --count N --in-flight M` prints `commands_per_s N`; with
//! `--session NAME`, of commands in the shell of one session.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use afar_client::{Client, Command, Session, SessionName, SshConfig, Target};
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Args {
    target: String,
    identity: Option<PathBuf>,
    known_hosts: Option<PathBuf>,
    count: usize,
    in_flight: usize,
    session: Option<SessionName>,
}

fn parse() -> Result<Args, Failure> {
    let mut args = Args {
        target: String::new(),
        identity: None,
        known_hosts: None,
        count: 1000,
        in_flight: 1,
        session: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} takes a value"));
        match word.as_str() {
            "-i" => args.identity = Some(value()?.into()),
            "--known-hosts" => args.known_hosts = Some(value()?.into()),
            "--count" => args.count = value()?.parse()?,
            "--session" => args.session = Some(SessionName::new(&value()?)?),
            "--in-flight" => args.in_flight = value()?.parse()?,
            _ if args.target.is_empty() => args.target = word,
            _ => return Err(format!("unexpected argument {word:?}").into()),
        }
    }
    if args.target.is_empty() || args.in_flight == 0 {
        return Err("a target and at least one command in flight are needed".into());
    }
    Ok(args)
}

async fn run_one(session: &Session, shell: Option<&SessionName>) -> Result<(), Failure> {
    let command = Command::argv(["true"]);
    let job = session.start(match shell {
        Some(name) => command.connection_session(name.clone()),
        None => command,
    })?;
    let finished = job.wait().await.ok_or("the session ended")?;
    match finished.error {
        Some(error) => Err(error.into()),
        None if finished.outcome.success() => Ok(()),
        None => Err(format!("a command ended with status {}", finished.outcome.status()).into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args = parse()?;
    let mut builder = Client::builder().ssh_config(SshConfig::None).agent(false);
    if let Some(path) = args.identity {
        builder = builder.identity(path);
    }
    if let Some(path) = args.known_hosts {
        builder = builder.known_hosts(path);
    }
    let client = builder.build();
    let session = Arc::new(client.connect(&Target::parse(&args.target)?).await?);
    // The first command starts the supervisor if need be, which is not what is measured.
    let shell = args.session;
    run_one(&session, shell.as_ref()).await?;

    let started = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..args.in_flight {
        let (session, shell) = (Arc::clone(&session), shell.clone());
        let share = args.count / args.in_flight + usize::from(worker < args.count % args.in_flight);
        workers.spawn(async move {
            for _ in 0..share {
                run_one(&session, shell.as_ref()).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(result) = workers.join_next().await {
        result??;
    }
    let per_s = args.count as f64 / started.elapsed().as_secs_f64();
    if let Some(session) = Arc::into_inner(session) {
        session.close().await;
    }
    writeln!(std::io::stdout(), "commands_per_s {per_s:.0}")?;
    Ok(())
}
