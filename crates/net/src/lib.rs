//! Trust and transport for both ends of afar: keys, signatures and TLS, and the two files they
//! are checked against.
//!
//! Everything that decides whether a peer is who it says it is lives here, so that it can be
//! reviewed in one place: [`tls`] proves the host, [`sshsig`] and [`signer`] prove the user,
//! [`host_key`], [`identity`] and [`agent`] find the keys for both, and [`files`] holds the rules
//! about who may have written what is read.

pub mod accept;
pub mod agent;
pub mod certificate;
pub mod clock;
mod der;
pub mod dial;
pub mod driver;
#[cfg(test)]
mod fido_rig;
pub mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod hand_off;
pub mod host_key;
pub mod identity;
pub mod key_file;
#[cfg(test)]
mod keygen;
pub mod limits;
pub mod local;
pub mod login;
pub mod public_key;
mod record;
mod secret_key;
pub mod signature;
pub mod signer;
pub mod ssh;
mod ssh_wire;
pub mod sshsig;
pub mod tls;
pub mod transport;
