//! The classic protocol: a command as it is, an answer with its length before it.
//!
//! A small protocol of request and response over plain TCP that existing scripts speak. Afar serves
//! it and speaks it; the bytes are specified in `docs/spec/classic.md`, whose clauses the code cites
//! as `C-n.m`. As everywhere in this crate nothing here reads or writes: [`RequestReader`] is the
//! server's half, [`ResponseReader`] the client's.

pub mod limits;
mod request;
mod response;

pub use request::{Foreign, RequestError, RequestReader};
pub use response::{Cut, Piece, ResponseError, ResponseReader, response_header};
