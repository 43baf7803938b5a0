//! The protocol's tests: by theme, with the numbers of the faults that they survive.

#[cfg(test)]
#[path = "../rig/mod.rs"]
mod rig;

#[cfg(test)]
mod attach;
#[cfg(test)]
mod auth;
#[cfg(test)]
mod channels;
#[cfg(test)]
mod closing;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod durable;
#[cfg(test)]
mod flow;
#[cfg(test)]
mod framing;
#[cfg(test)]
mod gaps;
#[cfg(test)]
mod hostile_server;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod queries;
#[cfg(test)]
mod refusal;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod scheduling;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod splits;
#[cfg(test)]
mod terminals;
#[cfg(test)]
mod vectors;
#[cfg(test)]
mod walk;
