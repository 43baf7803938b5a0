//! `afar trust TARGET`: shows a host's key, and adds it to `known_hosts` or replaces one there.

use afar_client::{Answer, Client, Error, HostKeyProblem, HostStanding, InspectedHost, Target};
use afar_core::escape::escape_for_terminal;

use crate::args::TrustArgs;
use crate::commands::{block_on, settle};
use crate::console::{fail, say, write_stdout};
use crate::exit::Exit;
use crate::prompt::{Terminal, describe};

/// Looks at the host's key and does what is wanted with it.
pub(crate) fn cmd_trust(args: TrustArgs) -> Exit {
    let (target, settings) = match settle(&args.target, &args.connect) {
        Ok(settled) => settled,
        Err(error) => return fail(&error),
    };
    let client = settings.client().build();
    let accept_new = settings.accept_new.is_some_and(|(accept_new, _)| accept_new);
    block_on(async move {
        match trust(&client, &target, &args, accept_new).await {
            Ok(line) => write_stdout(format!("{line}\n").as_bytes()),
            Err(Refusal::Client(error)) => fail(&error),
            Err(Refusal::Said(line)) => {
                say(&line);
                Exit::Failed
            }
        }
    })
}

/// Why nothing was changed.
enum Refusal {
    Client(Error),
    Said(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

async fn trust(
    client: &Client,
    target: &Target,
    args: &TrustArgs,
    accept_new: bool,
) -> Result<String, Refusal> {
    let host = client.inspect_host(target).await?;
    let shown = &host.presented;
    let (name, key) = (&shown.name, format!("{} {}", shown.algorithm, shown.fingerprint));
    if let Some(wanted) = &args.fingerprint
        && *wanted != shown.fingerprint
    {
        return Err(Refusal::Said(format!(
            "{name} shows {key}, not {wanted}; nothing was changed"
        )));
    }
    match &host.standing {
        HostStanding::Trusted => Ok(format!("{name} is known: {key}")),
        HostStanding::FirstSight => {
            if !accept_new {
                confirm(&host, args).await?;
            }
            add(&host)
        }
        HostStanding::NewType => {
            confirm(&host, args).await?;
            add(&host)
        }
        HostStanding::Refused(problem) => decide_refused(&host, problem, args).await,
        _ => Err(Refusal::Said(format!("{name} shows {key}; nothing was changed"))),
    }
}

/// A key against which something speaks.
async fn decide_refused(
    host: &InspectedHost,
    problem: &HostKeyProblem,
    args: &TrustArgs,
) -> Result<String, Refusal> {
    match problem {
        HostKeyProblem::CertAuthority { .. } => {
            confirm(host, args).await?;
            add(host)
        }
        HostKeyProblem::Changed { .. } if args.replace => {
            say(&problem.to_string());
            confirm(host, args).await?;
            let lines = host.replace()?;
            let shown = &host.presented;
            let key = format!("{} {}", shown.algorithm, shown.fingerprint);
            Ok(format!("{} is known now: {key} (lines that went for it: {lines})", shown.name))
        }
        _ => Err(Refusal::Client(Error::from(Box::new(problem.clone())))),
    }
}

fn add(host: &InspectedHost) -> Result<String, Refusal> {
    host.trust()?;
    let shown = &host.presented;
    let file = escape_for_terminal(shown.file.as_os_str().as_encoded_bytes());
    Ok(format!(
        "{} is known now: {} {} (in {file})",
        shown.name, shown.algorithm, shown.fingerprint
    ))
}

/// A person's yes, or the fingerprint that was given beforehand.
async fn confirm(host: &InspectedHost, args: &TrustArgs) -> Result<(), Refusal> {
    if args.fingerprint.is_some() {
        return Ok(());
    }
    let question = host.presented.clone();
    let asked = tokio::task::spawn_blocking(move || {
        Terminal::open().map_or(Answer::Nobody, |mut terminal| terminal.ask_host_key(&question))
    });
    match asked.await {
        Ok(Answer::Yes) => Ok(()),
        Ok(Answer::No) => Err(Refusal::Said("nothing was changed".to_owned())),
        Ok(Answer::Nobody) | Err(_) => {
            let what = describe(&host.presented).replace('\n', " ");
            let hint = "there is no terminal to ask at: --fingerprint SHA256:… confirms the key";
            Err(Refusal::Said(format!("{}; {hint}", what.trim_end())))
        }
    }
}
