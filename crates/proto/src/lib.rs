//! Afar's protocol without I/O: frames, messages, limits and the state machines of both roles.
//!
//! Bytes and time come in as arguments, bytes and events go out, and nothing else happens here: no
//! socket, no clock, no task. That is what lets two connections be joined in memory under
//! simulated time and be tested at every split of their bytes.
//!
//! A connection has two parts, one after the other, because they end at different processes:
//!
//! 1. [`auth`]: hellos and authentication, between a client and a *listener*.
//! 2. [`connection`]: jobs, between a client and a *supervisor*, to which the listener hands the
//!    connection over.
//!
//! The bytes are specified in `docs/spec/wire.md`; the code cites its clauses as `W-n.m`.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod auth;
pub mod classic;
pub mod connection;
pub mod error;
pub mod frame;
pub mod gaps;
pub mod json;
pub mod limits;
pub mod message;
pub mod outcome;
pub mod preamble;
pub mod resume;
pub mod seal;
pub mod time;

pub use connection::{Channel, ChannelId, Config, Connection, Event, Role};
pub use error::{ConnectionError, Misbehaviour};
pub use time::Instant;
