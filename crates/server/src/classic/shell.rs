//! The shell behind a client: a connection of afar's own protocol to the user's supervisor.
//!
//! The listener runs nothing. Each command of a client is a script in a session that lasts as long
//! as the connection, so that `cd`, variables and functions last as in a terminal.

use std::convert::Infallible;
use std::sync::Arc;

use afar_core::escape::escape_for_terminal;
use afar_core::policy::Grant;
use afar_net::clock::Clock;
use afar_net::driver::Driver;
use afar_net::local::attach_local;
use afar_net::transport::AnyTransport;
use afar_proto::connection::{ChannelId, Event, Role, Verdict};
use afar_proto::message::{
    Command, GoodbyeCode, JobId, OpenSpec, SessionName, SessionRef, SessionScope,
};
use afar_proto::outcome::End;
use afar_proto::{Config, Connection};
use afar_sys::random::random_bytes;

use super::answer::{Answer, KeepError, Store};
use crate::listener::{Shared, connect_supervisor};

/// Credit for a command's output: what a client that does not read its answer can cost here beside
/// the answer itself. The supervisor is on this machine, so more would not be faster.
const WINDOW_BYTES: u32 = 256 * 1024;

/// The name of a client's session; its scope is the connection, so every client may use it.
const SESSION: &str = "classic";

/// Where a client's commands are run.
pub(super) struct Shell {
    shared: Arc<Shared>,
    store: Arc<Store>,
    grant: Grant,
    /// The conversation with the supervisor, from the first command on.
    driver: Option<Driver<AnyTransport>>,
}

impl Shell {
    pub(super) fn new(shared: Arc<Shared>, store: Arc<Store>, grant: Grant) -> Self {
        Self { shared, store, grant, driver: None }
    }

    /// Runs a command and gives what a terminal would have shown. Dropped halfway, the command goes
    /// on until [`Shell::end`].
    pub(super) async fn run(&mut self, command: Vec<u8>) -> Answer {
        match self.try_run(command).await {
            Ok(answer) => answer,
            Err(problem) => {
                self.shared.log().info(&format!("classic: {problem}"));
                let text = escape_for_terminal(problem.as_bytes());
                Answer::line(&self.store, &text)
            }
        }
    }

    async fn try_run(&mut self, command: Vec<u8>) -> Result<Answer, String> {
        let spec = spec(command)?;
        let driver = match &mut self.driver {
            Some(driver) => driver,
            None => {
                let supervisor = connect_supervisor(&self.shared, &self.grant)
                    .await
                    .map_err(|error| format!("the command was not started: {error}"))?;
                let clock = Clock::new();
                let config = Config { window_bytes: WINDOW_BYTES, ..Config::default() };
                let connection = Connection::new(Role::Client, config, clock.now());
                self.driver.insert(attach_local(supervisor, &self.grant, connection, clock))
            }
        };
        let opened = driver.connection().open(&spec);
        let channel = opened.map_err(|error| format!("the command was not started: {error}"))?;
        let mut output = Output::new(&self.store);
        loop {
            let event = driver.next().await;
            if let Event::Closed(error) = event {
                self.driver = None;
                return Err(format!("what became of the command is not known: {error}"));
            }
            if let Some((end, verdict)) = output.take(driver.connection(), channel, event).await? {
                return output.sealed(&end, verdict);
            }
        }
    }

    /// Keeps the conversation alive while no command runs. Never returns; cancellation safe.
    pub(super) async fn attend(&mut self) -> Infallible {
        while let Some(driver) = &mut self.driver {
            if let Event::Closed(_) = driver.next().await {
                // The next command gets a new one, and with it a new session.
                self.driver = None;
            }
        }
        std::future::pending().await
    }

    /// Says goodbye: whatever still runs is cancelled, and the session's shell ends.
    pub(super) async fn end(self) {
        if let Some(mut driver) = self.driver {
            driver.connection().close(GoodbyeCode::Done, "the client has gone");
            driver.finish().await;
        }
    }
}

/// What is asked of the supervisor for a command: stderr goes where stdout goes, and there is no
/// stdin (`C-6.1`, `C-6.2`).
fn spec(command: Vec<u8>) -> Result<OpenSpec, String> {
    let random = random_bytes::<16>().map_err(|error| format!("no random bytes: {error}"))?;
    let id = format!("{:032x}", u128::from_be_bytes(random));
    let name = SessionName::new(SESSION).map_err(|error| error.to_string())?;
    let job = JobId::new(&id).map_err(|error| error.to_string())?;
    Ok(OpenSpec {
        session: Some(SessionRef { name, scope: SessionScope::Connection }),
        merge: true,
        ..OpenSpec::new(job, Command::Script(command.into()))
    })
}

/// The output of one command as it arrives.
struct Output {
    answer: Answer,
    failed: Option<KeepError>,
}

impl Output {
    fn new(store: &Arc<Store>) -> Self {
        Self { answer: Answer::new(store), failed: None }
    }

    /// Takes an event; gives the end of the command when it was that.
    async fn take(
        &mut self,
        connection: &mut Connection,
        ours: ChannelId,
        event: Event,
    ) -> Result<Option<(End, Verdict)>, String> {
        match event {
            Event::Data { channel, stream, bytes, .. } if channel == ours => {
                if self.failed.is_none()
                    && let Err(error) = self.answer.push(&bytes).await
                {
                    // The command meets a closed pipe, as with `| head`; its end is waited for.
                    if let Some(mut channel) = connection.channel(channel) {
                        channel.stop(stream);
                    }
                    self.failed = Some(error);
                }
                if let Some(mut channel) = connection.channel(channel) {
                    channel.consume(stream, bytes.len());
                }
                Ok(None)
            }
            Event::Refused { channel, refused } if channel == ours => {
                Err(format!("the command was not started: {}", refused.message))
            }
            Event::Failed { channel, message } if channel == ours => {
                Err(format!("what became of the command is not known: {message}"))
            }
            Event::Seal { channel, seal, verdict } if channel == ours => {
                Ok(Some((seal.end, verdict)))
            }
            _ => Ok(None),
        }
    }

    /// The answer, if it is whole.
    fn sealed(self, end: &End, verdict: Verdict) -> Result<Answer, String> {
        if let Some(error) = self.failed {
            return Err(format!("{error}; nothing of it is shown"));
        }
        if let Verdict::Mismatch(stream) = verdict {
            return Err(format!("the command's {} was damaged on its way here", stream.name()));
        }
        if let End::NotStarted { reason } = end {
            return Err(format!("the command was not started: {reason}"));
        }
        Ok(self.answer)
    }
}
