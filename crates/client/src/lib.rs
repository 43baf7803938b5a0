//! Runs commands on other machines through afar, and says truthfully what became of them.
//!
//! A [`Client`] is set up once; [`Client::connect`] makes a [`Session`] with a target, on which
//! many commands run at once; each is a [`Job`] with its own streams and its own end.
//!
//! ```standalone_crate
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/doc_fixture.in"));
//! # fn main() { supervised(|launch| async move {
//! use afar_client::{Client, Command, Target};
//!
//! let client = Client::builder().launcher(launch).build();
//! let target = Target::parse("local")?; // or "alice@web", or "web:2327"
//! let session = client.connect(&target).await?;
//! let hello = session.start(Command::argv(["printf", "%s|", "a b", "$HOME"]))?;
//! let count = session.start(Command::script("seq 1 1000 | wc -l"))?;
//! assert_eq!(hello.output(1024).await?.stdout, b"a b|$HOME|");
//! let count = count.output(1024).await?;
//! assert_eq!(count.stdout.trim_ascii(), b"1000");
//! assert!(count.outcome.success());
//! session.close().await;
//! # Ok(()) }) }
//! ```
//!
//! See [`Client::run`] for a single command: its request leaves in the same flight as the login.
//!
//! # What happens to a command when something goes away
//!
//! - A [`Job`] that is dropped before its end is cancelled, with everything that it has started.
//! - A [`Session`] that is closed cancels what still runs on it. One that is only dropped lasts
//!   until its last job is.
//! - A link that is lost is made again, and every job goes on exactly where it was, in both
//!   directions; the job's process notices nothing of it. Where there is no other link in time
//!   ([`ClientBuilder::reconnect_for`]), [`Outcome::started`] and [`Outcome::end`] say what is known,
//!   and `unknown` what is not. Nothing is ever guessed, and nothing started twice.
//! - A consumer that does not take a job's events stalls that job and no other.

mod accepted_keys;
mod attachment;
mod backoff;
mod classic;
mod client;
mod command;
mod connect;
mod dispatcher;
mod error;
mod event_queue;
mod host_keys;
mod identities;
mod job;
mod limits;
mod outcome;
mod prompt;
mod route;
mod session;
mod ssh;
mod ssh_config_files;

pub use afar_core::ssh_config::Place;
pub use afar_core::target::{Destination, JobTarget, Target, TargetError};
pub use afar_proto::classic::limits::READ_BYTES as CLASSIC_READ_BYTES;
pub use afar_proto::connection::Stream;
pub use afar_proto::message::{
    Attached, JobId, JobIdError, JobInfo, JobPage, JobState, OnDisconnect, Opened, Overflow,
    Resize, SessionName, SessionNameError, StreamInfo, Terminal,
};
pub use afar_proto::outcome::{End, ExitReport, Phase, Receipt, SealDetail, Started};
pub use attachment::{Attachment, JobRef};
pub use classic::{CLASSIC_PORT, ClassicConnection, ClassicError};
pub use client::{
    Account, AccountLookup, CONNECT_TIMEOUT, Client, ClientBuilder, DELEGATION, HostStanding,
    InspectedHost, Launcher,
};
pub use command::{Command, CommandError};
pub use error::{Error, SshFailure};
pub use host_keys::{HostKeyProblem, HostKeyQuestion, KnownFingerprint};
pub use identities::{KeySource, OfferedCertificate, OfferedKey};
pub use job::{Chunk, Finished, Job, JobEvent, Output, Stdin, StdinClosed};
pub use limits::RECONNECT_FOR;
pub use outcome::{Outcome, StreamOutcome, Verified, format_time};
pub use prompt::{Answer, LockedIdentity, NoPrompt, Notice, Prompt};
pub use route::{DEFAULT_PORT, ResolvedHost};
pub use session::Session;
pub use ssh_config_files::SshConfig;
